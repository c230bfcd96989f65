"""What is written is whole or absent, plain, and read back as it was; the rest is refused."""

import dataclasses
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mcr2.records import (
    FORMAT,
    Record,
    content_key,
    environment,
    load_tensors,
    plain,
    read_json,
    save_tensors,
    tensors_digest,
    write_bytes,
    write_json,
    write_text,
)


def record(**changes):
    fields = {
        "key": "abc",
        "spec": {"method": "ce", "ratio": 0.1, "training": {"lr": 0.1, "milestones": [2, 3]}},
        "status": "finished",
        "reason": None,
        "seeds": {"noise": 10},
        "data": {"classes": ["a", "b"]},
        "noise": {"indices": [3, 1], "transition": [[0.9, 0.1], [0.0, 1.0]]},
        "proof": {"sampling": "00"},
        "environment": {"torch": "2"},
        "readout": "head",
        "epochs": 4,
        "steps": 40,
        "wall_seconds": 1.25,
        "evaluation_seconds": 0.5,
        "terminal_epoch": None,
        "history": [{"epoch": 0, "loss": None, "measures": {"x/accuracy": 1 / 3}}],
        "selections": {"last": {"epoch": 4, "measures": {"x": 0.1 + 0.2}}},
    }
    return Record(**(fields | changes))


TENSORS = {
    "float": torch.linspace(-1, 1, 7),
    "double": torch.tensor([[math.pi, -0.0]], dtype=torch.float64),
    "half": torch.tensor([0.5, 65504.0], dtype=torch.float16),
    "brain": torch.tensor([1.5, 3e38], dtype=torch.bfloat16),
    "int": torch.tensor([2**62, -1]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False]),
    "scalar": torch.tensor(3.0),
    "empty": torch.empty(0, 3),
    "special": torch.tensor([math.nan, math.inf, -math.inf]),
}


def entries(folder):
    return sorted(path.name for path in Path(folder).iterdir())


# ------------------------------------------------------------------------------------------ atomic


class Unwritable:
    """A value that JSON cannot hold."""


WRITERS = {
    "json": lambda path: write_json(path, {"fine": 1, "bad": Unwritable()}),
    "text": lambda path: write_text(path, "half \ud800"),  # a lone surrogate: UTF-8 refuses it
    "bytes": lambda path: write_bytes(path, "no bytes"),  # type: ignore[arg-type]
    "tensors": lambda path: save_tensors(path, {"x": torch.ones(2)}, {"bad": Unwritable()}),
    "sparse": lambda path: save_tensors(path, {"x": torch.eye(2).to_sparse()}),
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
    path = tmp_path / "file"
    path.write_text("old")
    written = []

    def interrupted(source, target):
        written.append((Path(source).read_text(), Path(source).parent, path.read_text()))
        raise KeyboardInterrupt

    monkeypatch.setattr("mcr2.records.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    # All of it was written, on the same file system, while the old content still stood.
    assert written == [("new", tmp_path, "old")]
    assert entries(tmp_path) == ["file"]


def test_missing_folders_are_made_and_old_files_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"one")
    write_text(path, "ΔR")
    assert path.read_bytes() == "ΔR".encode()
    assert entries(path.parent) == ["file"]


# -------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("wrap", [float, np.float32, torch.tensor, lambda v: np.array([v])])
def test_numbers_that_are_not_finite_become_null(value, wrap, tmp_path):
    write_json(tmp_path / "x", {"value": wrap(value)})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    got = json.loads((tmp_path / "x").read_text(), parse_constant=refuse)["value"]
    assert got is None or got == [None]


def test_plain_values_keep_value_and_type():
    given = {
        "bool": np.bool_(True),
        "int": np.int64(7),
        "float": np.float64(0.1),
        "tensor": torch.tensor([[1, 2]]),
        "nested": ({1: (Path("a") / "b",)}, None),
    }
    expected = {
        "bool": True,
        "int": 7,
        "float": 0.1,
        "tensor": [[1, 2]],
        "nested": [{"1": ["a/b"]}, None],
    }
    assert plain(given) == expected
    assert plain(given)["bool"] is True
    assert type(plain(given)["int"]) is int


@pytest.mark.parametrize("value", [Unwritable(), {1, 2}, b"bytes", lambda: 0, 1j])
def test_what_is_not_plain_is_refused_by_its_type(value):
    with pytest.raises(TypeError, match=type(value).__name__):
        plain({"deep": [value]})


def test_floats_survive_to_the_last_bit(tmp_path):
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, float(np.float32(0.1))]
    write_json(tmp_path / "x", values)
    assert [v.hex() for v in read_json(tmp_path / "x")] == [v.hex() for v in values]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"{'a': 1}", b"{} {}"])
def test_foreign_files_are_named_when_read_as_json(content, tmp_path):
    path = tmp_path / "some file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"some file\.json is not a JSON file"):
        read_json(path)


# ----------------------------------------------------------------------------------------- records


def test_a_record_is_read_back_as_it_was(tmp_path):
    given = record()
    given.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == given
    failed = record(status="failed", reason="the loss stopped being finite", selections={})
    failed.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == failed
    assert json.loads((tmp_path / "record.json").read_text())["format"] == FORMAT


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_a_record_of_another_format_is_refused(other, tmp_path):
    path = tmp_path / "record.json"
    value = dataclasses.asdict(record()) | {"format": other}
    if other < FORMAT:  # as format 1 was
        del value["terminal_epoch"], value["evaluation_seconds"]
    write_json(path, value)
    message = rf"record\.json .*format {other}; this is {FORMAT}, and its run has to be run again"
    with pytest.raises(ValueError, match=message):
        Record.load(path)


def test_profiles_are_read_back_and_take_a_line_each(tmp_path):
    profiles = {
        "features/test/clean/-/abs_cosine": [[1.0, 0.125], [0.125, 1.0]],
        "features/test/clean/-/abs_cosine_labels": [0, 1],
        "features/train/-/-/spectrum": [0.75, 0.25],
    }
    given = record(selections={"last": {"epoch": 4, "measures": {}, "profiles": profiles}})
    given.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == given
    lines = (tmp_path / "record.json").read_text().splitlines()
    assert '    "features/test/clean/-/abs_cosine": [[1.0, 0.125], [0.125, 1.0]],' in lines


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        {"a": {}, "b": [], "c": [{}], "d": [[], {"e": [1, [2.5, None]]}], "ü": "ΔR\n"},
        [{"a": True}, [1, 2], "x", 1e-300],
    ],
)
@pytest.mark.parametrize("indent", [None, 1, 4])
def test_json_is_read_back_whatever_its_layout(value, indent, tmp_path):
    write_json(tmp_path / "x.json", value, indent=indent)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize("change", ["missing", "further", "list", "null", "number"])
def test_foreign_json_is_no_record(change, tmp_path):
    value = dataclasses.asdict(record())
    if change == "missing":
        del value["history"]
    value = {
        "missing": value,
        "further": value | {"another": 1},
        "list": [value],
        "null": None,
        "number": 3,
    }[change]
    write_json(tmp_path / "other.json", value)
    with pytest.raises(ValueError, match=r"other\.json is not a run's record"):
        Record.load(tmp_path / "other.json")


# ----------------------------------------------------------------------------------------- tensors


def test_tensors_are_read_back_bit_for_bit_with_their_metadata(tmp_path):
    metadata = {"epoch": 3, "history": [{"loss": 1 / 3, "name": "ΔR"}], "none": None}
    save_tensors(tmp_path / "x", TENSORS, metadata)
    tensors, got = load_tensors(tmp_path / "x")
    assert got == metadata
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].shape == tensor.shape
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_views_and_shared_or_tracked_tensors_can_be_saved(tmp_path):
    base = torch.arange(12.0).view(3, 4).requires_grad_()
    given = {
        "whole": base,
        "part": base[1:, ::2],
        "transposed": base.T,
        "channels_last": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    }
    save_tensors(tmp_path / "x", given)
    tensors, metadata = load_tensors(tmp_path / "x")
    assert metadata is None
    for name in given:
        assert torch.equal(tensors[name], given[name])
        assert not tensors[name].requires_grad


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "pickle", "foreign", "header"])
def test_a_damaged_or_foreign_tensor_file_is_refused_by_name(damage, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"x": torch.arange(100.0)})
    whole = path.read_bytes()
    if damage == "foreign":
        save_file({"x": torch.ones(2)}, str(path))
    elif damage == "header":
        save_file({"x": torch.ones(2)}, str(path), metadata={"json": "{"})
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": whole[:-8],
                "noise": bytes(range(256)) * 4,
                "pickle": pickle.dumps({"x": [1.0]}),
            }[damage]
        )
    with pytest.raises(ValueError, match=r"weights\.safetensors is not a checkpoint of ours"):
        load_tensors(path)


def test_nothing_that_is_written_is_pickled(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for name in ("save", "load"):
        monkeypatch.setattr(torch, name, refuse)
    save_tensors(tmp_path / "x", TENSORS, {"epoch": 1})
    load_tensors(tmp_path / "x")
    record().save(tmp_path / "record.json")
    Record.load(tmp_path / "record.json")
    # A safetensors file says in its first bytes how long its JSON header is.
    raw = (tmp_path / "x").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header["__metadata__"] == {"json": '{"epoch": 1}'}
    assert header.keys() - {"__metadata__"} == TENSORS.keys()


# ---------------------------------------------------------------------------------------- digests


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
    strided = base["a"].T.contiguous().T
    assert tensors_digest({"b": base["b"], "a": strided}) == reference


def test_a_key_depends_on_every_part_and_not_on_the_order_of_names():
    key = content_key(1, {"a": 1, "b": (2, 3)}, "x")
    assert key == content_key(1, {"b": [2, 3], "a": 1}, "x")
    others = [
        content_key(2, {"a": 1, "b": (2, 3)}, "x"),
        content_key(1, {"a": 1, "b": (3, 2)}, "x"),
        content_key(1, {"a": 1, "b": (2, 3)}, ""),
        content_key(1, {"a": "1", "b": (2, 3)}, "x"),
    ]
    assert key not in others
    assert len(key) == 64


def test_the_environment_is_plain_and_names_the_versions():
    got = environment()
    assert plain(got) == got
    assert got["torch"] == torch.__version__
    assert got["numpy"] == np.__version__
