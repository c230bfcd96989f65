"""What is written is whole or absent, plain, and read back as it was; the rest is refused."""

import math
import pickle
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mcr2.records import (
    Record,
    Run,
    RunEvaluation,
    content_key,
    load_run,
    load_study,
    load_tensors,
    plain,
    read_json,
    save_evaluation,
    save_record,
    save_tensors,
    tensors_digest,
    write_bytes,
    write_json,
    write_signed,
    write_text,
)

KEYS = ("features/test/clean/head/accuracy", "stage2/train/noisy/-/nc1")
RECORD = Record(
    key="abc",
    spec={"method": "gone.py:Loss", "ratio": 0.1, "training": {"lr": 0.1, "milestones": [2, 3]}},
    status="finished",
    reason=None,
    seeds={"noise": 10},
    data={"name": "digits", "hash": "h", "train": 90},
    noise={"wrong": 2, "indices": [3, 1], "transition": [[0.9, 0.1], [0.0, 1.0]]},
    proof={"sampling": "00"},
    environment={"torch": "2", "threads": 1},
    readout="head",
    epochs=4,
    steps=40,
    wall_seconds=1.25,
    evaluation_seconds=0.5,
    history=[
        {"epoch": 0, "step": 0, "loss": None, "measures": {KEYS[0]: 1 / 3}},
        {"epoch": 4, "step": 40, "loss": 0.5, "measures": {KEYS[0]: 0.7, KEYS[1]: None}},
    ],
    weights={"4": {"file": "epoch-00004.safetensors", "digest": "0f"}},
)
EVALUATION = RunEvaluation(
    key="abc",
    version="v",
    readout="head",
    terminal_epoch=None,
    data="d0",
    layers=["stage2"],
    selections={
        "last": {
            "epoch": 4,
            "validation_accuracy": None,
            "measures": {KEYS[0]: 0.1 + 0.2, KEYS[1]: 2.5},
            "notes": [],
        }
    },
    seconds=0.25,
    environment={"torch": "2", "threads": 1},
)
TENSORS = {
    "double": torch.tensor([[math.pi, -0.0]], dtype=torch.float64),
    "half": torch.tensor([0.5, 65504.0], dtype=torch.float16),
    "brain": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    "int": torch.tensor([2**62, -1]),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 3),
    "special": torch.tensor([math.nan, math.inf, -math.inf]),
}


@pytest.fixture
def folder(tmp_path):
    """A study's folder with one run."""
    folder = tmp_path / "out" / "runs" / "one"
    save_record(folder, RECORD)
    save_evaluation(folder, EVALUATION)
    return folder


def entries(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# ------------------------------------------------------------------------------------------ files


class Unwritable:
    """A value that JSON cannot hold."""


WRITERS = {
    "json": lambda path: write_json(path, {"fine": 1, "bad": Unwritable()}),
    "text": lambda path: write_text(path, "half \ud800"),  # a lone surrogate: UTF-8 refuses it
    "tensors": lambda path: save_tensors(path, {"x": torch.ones(2)}, {"bad": Unwritable()}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_writer_that_fails_leaves_the_old_content_and_nothing_else(writer, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(Exception):  # noqa: B017
        WRITERS[writer](path)
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["file"]


def test_a_file_appears_only_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "a" / "file"
    write_bytes(path, b"old")
    written = []

    def interrupted(source, target):
        written.append((Path(source).read_text(), Path(source).parent, path.read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr("mcr2.records.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new ΔR")
    # All of it was written, on the same file system, while the old content still stood.
    assert written == [("new ΔR", path.parent, "old")]
    assert entries(path.parent) == ["file"]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    values = (math.nan, math.inf, -math.inf)
    write_json(tmp_path / "x", [*values, *map(np.float32, values), torch.tensor(values)])
    assert (tmp_path / "x").read_text() == f"[{', '.join(6 * ['null'])}, [null, null, null]]\n"


def test_plain_values_keep_value_and_type():
    given = {"bool": np.bool_(True), "int": np.int64(7), "tensor": torch.tensor([[1, 2]])}
    given |= {"nested": ({1: (Path("a") / "b",)}, None), "float": np.float64(0.1)}
    found = plain(given)
    assert found == {
        "bool": True,
        "int": 7,
        "tensor": [[1, 2]],
        "nested": [{"1": ["a/b"]}, None],
        "float": 0.1,
    }
    assert (type(found["bool"]), type(found["int"]), type(found["float"])) == (bool, int, float)
    for value in (Unwritable(), {1, 2}, b"bytes", lambda: 0, 1j):
        with pytest.raises(TypeError, match=type(value).__name__):
            plain({"deep": [value]})


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_json_is_read_back_to_the_last_bit_whatever_its_layout(indent, tmp_path):
    floats = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, float(np.float32(0.1))]
    nested = {"a": {}, "b": [], "c": [{}], "d": [[], {"e": [1, [2.5, None]]}], "ü": "ΔR\n"}
    for value in ({}, [], None, nested, [{"a": True}, [1, 2], "x"], floats):
        write_json(tmp_path / "x.json", value, indent=indent)
        assert repr(read_json(tmp_path / "x.json")) == repr(value)


# ------------------------------------------------------------------------------------------- runs


def test_a_run_is_read_back_as_it_was(folder):
    assert load_run(folder) == Run(folder, RECORD, EVALUATION)
    # A list of numbers, such as a profile, takes one line.
    assert '  "transition": [[0.9, 0.1], [0.0, 1.0]]' in (folder / "record.json").read_text()
    save_evaluation(folder, replace(EVALUATION, key="of another run"))
    assert load_run(folder) == Run(folder, RECORD, None)
    (folder / "record.json").unlink()
    with pytest.raises(ValueError, match=r"one holds no finished run: there is no record\.json"):
        load_run(folder)


@pytest.mark.parametrize("name", ["record.json", "evaluation.json"])
def test_a_run_whose_file_was_altered_anywhere_is_refused_by_its_name(name, folder):
    path, given = folder / name, load_run(folder)
    whole = path.read_bytes()
    length = len(whole)
    altered = [whole[:n] for n in range(length)]
    altered += [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(length)]
    altered += [whole[:n] + b"\xff" + whole[n:] for n in range(0, length, 7)]
    messages = []
    for content in altered:
        path.write_bytes(content)
        try:
            assert load_run(folder) == given  # only white space after the last bracket
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) >= len(altered) - 2
    assert all(str(path) in message for message in messages)


@pytest.mark.parametrize("name", ["record.json", "evaluation.json"])
@pytest.mark.parametrize(
    "change", [{"epochs": "4"}, {"readout": None}, {"another": 1}, {"layers": {}}, {"key": None}]
)
def test_signed_values_that_are_not_a_runs_are_refused(name, change, folder):
    value = asdict(RECORD if name == "record.json" else EVALUATION) | change
    write_signed(folder / name, value)
    with pytest.raises(ValueError, match=rf"{name} is damaged: "):
        load_run(folder)
    for other in ([value], None, 3):
        write_json(folder / name, other)
        with pytest.raises(ValueError, match=rf"{name} is damaged: "):
            load_run(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"status": "done"},
        {"history": []},
        {"spec": RECORD.spec | {"training": 3}},
        {"history": [RECORD.history[0] | {"measures": {"accuracy": 1.0}}]},
    ],
)
def test_a_record_that_cannot_be_is_refused(change, folder):
    save_record(folder, replace(RECORD, **change))
    with pytest.raises(ValueError, match=r"record\.json is damaged: "):
        load_run(folder)


def test_a_study_is_read_into_frames_with_keys_in_parts(folder):
    pytest.importorskip("pandas", reason="load_study needs pandas")
    save_record(folder.parent / "two", replace(RECORD, status="failed", reason="not finite"))
    frames = load_study(folder.parents[1])
    one, two = frames.runs.to_dict("records")
    assert (one["run"], one["method"], one["lr"], one["data_train"]) == (
        "one",
        "gone.py:Loss",  # which nobody imports
        0.1,
        90,
    )
    assert (two["status"], two["reason"]) == ("failed", "not finite")
    assert list(frames.evaluations.columns[:3]) == ["run", "selection", "epoch"]
    parts = ("selection", "layer", "split", "labels", "readout", "measure", "value")
    values = [tuple(row[p] for p in parts) for row in frames.evaluations.to_dict("records")]
    assert values == [
        ("last", "features", "test", "clean", "head", "accuracy", 0.1 + 0.2),
        ("last", "stage2", "train", "noisy", "-", "nc1", 2.5),
    ]
    assert len(frames.history) == 2 * 3
    assert len(load_study(folder).runs) == 1
    assert list(load_study(folder.parent).runs["run"]) == ["one", "two"]  # as mcr2 train leaves


# ----------------------------------------------------------------------------------------- tensors


def test_tensors_are_read_back_bit_for_bit_with_their_metadata(tmp_path):
    metadata = {"epoch": 3, "history": [{"loss": 1 / 3, "name": "ΔR"}], "none": None}
    base = torch.arange(12.0).view(3, 4).requires_grad_()
    image = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    views = {"whole": base, "part": base[1:, ::2], "transposed": base.T, "image": image}
    save_tensors(tmp_path / "x", TENSORS | views, metadata)
    tensors, got = load_tensors(tmp_path / "x")
    assert got == metadata
    assert tensors.keys() == TENSORS.keys() | views.keys()
    for name, tensor in (TENSORS | views).items():
        assert tensors[name].dtype == tensor.dtype
        assert not tensors[name].requires_grad
        torch.testing.assert_close(tensors[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_a_damaged_or_foreign_tensor_file_is_refused_by_name(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"x": torch.arange(100.0)})
    whole = path.read_bytes()
    contents = [b"", whole[:-8], bytes(range(256)) * 4, pickle.dumps({"x": [1.0]})]
    for header in (None, {"json": "{"}):
        save_file({"x": torch.ones(2)}, str(path), metadata=header)
        contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.safetensors is not a checkpoint of ours"):
            load_tensors(path)


def test_nothing_that_is_written_is_pickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickled")

    for module, names in ((pickle, ("dump", "dumps", "load", "loads")), (torch, ("save", "load"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    save_tensors(tmp_path / "x", TENSORS, {"epoch": 1})
    assert load_tensors(tmp_path / "x")[0].keys() == TENSORS.keys()


def test_a_tensors_digest_sees_names_shapes_types_and_values_and_nothing_else():
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.zeros(2)}
    reference = tensors_digest(base)
    others = [
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"].view(3, 2), "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"] + 1e-6, "b": base["b"]},
        {"a": base["a"]},
    ]
    assert reference not in {tensors_digest(other) for other in others}
    assert tensors_digest({"b": base["b"], "a": base["a"].T.contiguous().T}) == reference


def test_a_key_depends_on_every_part_and_not_on_the_order_of_names():
    key = content_key(1, {"a": 1, "b": (2, 3)}, "x")
    assert key == content_key(1, {"b": [2, 3], "a": 1}, "x")
    others = [(2, {"a": 1, "b": (2, 3)}, "x"), (1, {"a": 1, "b": (3, 2)}, "x")]
    others += [(1, {"a": 1, "b": (2, 3)}, ""), (1, {"a": "1", "b": (2, 3)}, "x")]
    assert key not in [content_key(*parts) for parts in others]
    assert len(key) == 64
