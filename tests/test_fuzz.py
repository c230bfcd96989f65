"""Whatever is typed and whatever is read: a result, or one line that says what is wrong.

``MCR2_FUZZ_SECONDS`` is how long the slow tests look for more (60 by default, for each).
"""

import contextlib
import io
import math
import os
import shutil
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image

from experiments.bench import BENCHES
from experiments.commands import cli
from experiments.runs.machine import Machine
from experiments.runs.runner import run
from experiments.runs.specs import RunSpec
from experiments.studies import STUDIES, find_study
from mcr2.data import DATASETS, load_dataset
from mcr2.evaluation import read_features
from mcr2.records import load_run, load_study, read_json, write_json, write_signed
from mcr2.training import TrainingConfig

SECONDS = float(os.environ.get("MCR2_FUZZ_SECONDS", "60"))

#: Few inputs in the default run; in the slow one as many as there is time for.
FEW, MANY = 25, 100_000

LOSSES = """
import torch
from mcr2.objectives import Objective

class Pull(Objective):
    def loss(self, features, labels, context):
        return features.var(), {}

class Fails(Objective):
    def __init__(self):
        raise KeyError("no")

nothing = 3
"""


def fuzz(strategy, check, count, seconds=SECONDS):
    """Check many examples for some seconds; return how many they were."""
    until, seen = time.monotonic() + seconds, 0

    # In rounds: what would end a round by an exception is a flaky test to hypothesis, which tries
    # an example twice now and then.
    @settings(
        max_examples=min(count, 200),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def go(example):
        nonlocal seen, until
        if time.monotonic() > until:
            return
        seen += 1
        try:
            check(example)
        except BaseException:
            until = math.inf  # to find a smaller one
            raise

    while seen < count and time.monotonic() < until:
        go()
    print(f"{seen} inputs")
    return seen


def test_time_that_runs_out_is_no_failure_and_a_failure_is_told_as_it_is():
    def slow(number):
        time.sleep(0.001)
        assert number != 7 or time.monotonic() < late

    late = math.inf
    assert fuzz(st.integers(0, 9), slow, MANY, 0.2) > 20
    late = time.monotonic() + 0.15
    with pytest.raises(AssertionError):
        fuzz(st.integers(0, 9), slow, MANY, 0.2)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    training = TrainingConfig(epochs=1, batch_size=30)
    spec = RunSpec("ce", subset=60, ratio=0.2, backbone="resnet10_w8", feature_dim=8)
    run(RunSpec(**{**vars(spec), "training": training}), folder, Machine("cpu"))
    return folder


@pytest.fixture
def place(tmp_path, finished_run, monkeypatch):
    """A working folder with data, losses and a run; nothing is downloaded."""

    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr("mcr2.data.sources._download", no_network)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
    np.savez("data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez("features.npz", features=rng.normal(size=(40, 4)), labels=y)
    Path("losses.py").write_text(LOSSES)
    Path("notes.txt").write_text("keep me")
    return tmp_path


# -------------------------------------------------------------------------------- command line

NAMES = [
    *("data.npz", "features.npz", "notes.txt", "run", "gone", "results", "run/record.json", "/"),
    *("losses.py:Pull", "losses.py:Fails", "losses.py:nothing", "losses.py:gone", "no.module:X"),
    *(
        "ce",
        "mcr2",
        "vmcr2",
        "redunet",
        "head",
        "knn@5",
        "nearest_subspace@3",
        "class_mean",
        "last",
    ),
    *("oracle", "symmetric", "symmetric_excluding_true", "quick", "cpu", "paper", "NCHW", "noisy"),
    *("auto", "cuda:99", "meta", "stage3", "layer2", "eps_sq", "components", "projection", "nc1"),
    *("", "-", "--", ":", "=", "../..", "\udcff", "a\x1b[31m", "$x$", "NaN", "{}", "@", "x" * 300),
    *DATASETS,
]
NUMBERS = [
    *("0", "1", "2", "3", "-1", "10", "0.5", "0.1", "1.0", "1e-300", "1e300", "nan", "inf", "-inf"),
    *("64", "4294967295", "4294967296", "9" * 30, "1_000", "0x10", "٣", "1e5", "99999", "9" * 5000),
]
SETTINGS = [field.name for kind in (RunSpec, TrainingConfig) for field in fields(kind)] + [
    *("eps_sq", "gamma1", "gamma2", "layers", "eta", "lam", "lifting", "kernel_size", "membership"),
    *("store", "fft_norm", "streams.noise", "streams.gone", "gone", "label_smoothing"),
]
WORDS = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(NAMES), st.text(min_size=0, max_size=6)
).map(lambda text: text.replace("\0", ""))
SETTING = st.tuples(
    st.sampled_from(["", "", "", "ce.", "mcr2.", "redunet.", "."]),
    st.sampled_from(SETTINGS),
    st.sampled_from(["=", "=", "=", "=", "", "=="]),
    st.lists(WORDS, max_size=3).map("+".join) | WORDS,
).map("".join)


def commands():
    """Every command, study and benchmark, with its class."""
    named = {(name,): cli.find_command(name) for name, where in cli.COMMANDS.items() if where}
    named |= {("study", name): find_study(name) for name in STUDIES}
    return named | {("bench", name): kind for name, kind in BENCHES.items() if name != "rates"}


def option(field):
    """An option of a command with values, likely and unlikely ones."""
    name = "--" + field.name.replace("_", "-")
    if field.name in ("set", "vary"):
        several = st.lists(SETTING, max_size=3)
    elif field.type in ("int | None", "float", "int", "tuple[float, ...]", "tuple[int, ...]"):
        several = st.lists(st.sampled_from(NUMBERS) | WORDS, min_size=1, max_size=3)
    else:
        several = st.lists(st.sampled_from(NAMES) | WORDS, max_size=2)
    one = several.map(lambda values: [name, *values[:1]])
    return one | one | several.map(lambda values: [name, *values])


@st.composite
def command_lines(draw):
    words, kind = draw(st.sampled_from(list(commands().items())))
    count = draw(st.integers(0, 4))
    chosen = draw(st.permutations(fields(kind)))[:count]
    line = [word for field in chosen for word in draw(option(field))]
    if words[0] in ("evaluate", "reread", "measure"):
        line = [draw(st.sampled_from(["run", "features.npz", "gone"]) | WORDS), *line]
    if draw(st.integers(0, 9)) == 0:
        line.insert(draw(st.integers(0, len(line))), draw(WORDS | SETTING))
    return [*words, *line] if draw(st.integers(0, 19)) else draw(st.lists(WORDS, max_size=3))


def answer(arguments, monkeypatch):
    """Ask the command line, which prepares but does not run; return status and standard error."""
    real, err = cli.parse, io.StringIO()

    def parse(given):
        command = real(given)
        return type("Prepared", (), {"prepare": lambda _: command.prepare() and (lambda: 0)})()

    monkeypatch.setattr(cli, "parse", parse)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as a terminal is: strict
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(arguments)
            out.flush()
    except SystemExit as stop:
        status = stop.code or 0
    finally:
        monkeypatch.setattr(cli, "parse", real)
    return status, err.getvalue()


def fuzz_command_line(place, monkeypatch, count):
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}

    def check(line):
        status, err = answer(line, monkeypatch)
        if status:
            assert status == 2, (line, status, err)
            assert err.startswith("mcr2: "), (line, err)
            assert err.count("\n") == 1, (line, err)
            assert len(err) > len("mcr2: \n"), line
        for path in place.iterdir():
            if path not in {
                p.relative_to(place).parts[0] and place / p.relative_to(place).parts[0]
                for p in before
            }:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    seen = fuzz(command_lines(), check, count)
    now = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    assert {p: now.get(p) for p in before} == before, "something was overwritten"
    return seen


def test_what_is_typed_is_understood_or_answered_in_a_line(place, monkeypatch):
    assert fuzz_command_line(place, monkeypatch, FEW)


@pytest.mark.slow
def test_much_that_is_typed(place, monkeypatch):
    fuzz_command_line(place, monkeypatch, MANY)


# ------------------------------------------------------------------------------------- readers

TYPES = st.one_of(
    arrays_of.integer_dtypes(endianness="?"),
    arrays_of.unsigned_integer_dtypes(),
    arrays_of.floating_dtypes(endianness="?"),
    arrays_of.boolean_dtypes(),
    arrays_of.complex_number_dtypes(),
    arrays_of.unicode_string_dtypes(max_len=4),
    arrays_of.byte_string_dtypes(max_len=4),
    arrays_of.datetime64_dtypes(),
)
#: Arrays of any type and shape.
ANYTHING = arrays_of.arrays(
    TYPES, arrays_of.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=5)
) | st.just(np.full(3, None, object))


def likely(dtype, *shape, **elements):
    return arrays_of.arrays(dtype, shape, **elements)


def damaged(draw, content):
    """Bytes as they are, or with something altered."""
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "bytes"]))
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "cut":
        return content[:place]
    new = draw(st.binary(min_size=1, max_size=8)) if kind == "bytes" else b""
    return content[:place] + new + content[place + len(new) :]


@st.composite
def npz(draw, likely_arrays, optional):
    """An .npz file, most of whose arrays are as they should be."""
    sizes = {name: draw(st.integers(1, most)) for name, most in (("n", 30), ("m", 8), ("d", 6))}
    arrays = likely_arrays(draw, **sizes, K=draw(st.integers(1, 4)))
    for name in draw(st.sets(st.sampled_from(optional))):
        del arrays[name]
    if draw(st.integers(0, 2)) == 0:
        arrays[draw(st.sampled_from(sorted(arrays)))] = ANYTHING
    out = io.BytesIO()
    save = draw(st.sampled_from([np.savez, np.savez_compressed]))
    save(out, **{name: draw(array) for name, array in arrays.items()})
    return damaged(draw, out.getvalue())


def data_arrays(draw, n, m, d, K):
    side = draw(st.sampled_from([(8, 8), (8, 8, 3), (1, 8, 8), (3, 3, 3), (1, 1), (64, d)]))
    labels = st.integers(0, K - 1)
    return {
        "x_train": likely("u1", n, *side),
        "y_train": likely(draw(st.sampled_from(["i8", "u1", "i4"])), n, elements=labels),
        "x_test": likely("u1", m, *side),
        "y_test": likely("i8", m, elements=labels),
        "y_train_clean": likely("i8", n, elements=labels),
        "classes": likely("U2", K),
        "axes": st.sampled_from(["NCHW", "NHWC", "HWCN"]).map(np.array),
        "labels_are": st.sampled_from(["noisy", "clean", "dirty"]).map(np.array),
    }


def feature_arrays(draw, n, m, d, K):
    numbers = st.floats(-1e3, 1e3, width=16) | st.sampled_from([0.0, 1.0, 3e4, -1e-7])
    if draw(st.integers(0, 4)) == 0:
        numbers = st.just(1.0)
    labels = st.integers(0, K - 1)
    return {
        "features": likely(draw(st.sampled_from(["f4", "f8", "f2"])), n, d, elements=numbers),
        "labels": likely("i8", n, elements=labels),
        "clean_labels": likely("u1", n, elements=labels),
        "weight": likely("f4", K, d, elements=numbers),
        "bias": likely("f4", K, elements=numbers),
        "test_features": likely("f4", m, d, elements=numbers),
        "test_labels": likely("i8", m, elements=labels),
    }


TRAIN = ["train", "--ratio", "0.2", "--out", "new", "--set", "backbone=resnet10_w8"]
TRAIN += ["feature_dim=4", "batch_size=8", "n_components=1"]


def prepared(line, monkeypatch):
    """A line of the command line is prepared, or refused in one line."""
    status, err = answer(line, monkeypatch)
    assert status in (0, 2), err
    assert status == 0 or err.count("\n") == 1, err
    shutil.rmtree("new", ignore_errors=True)


def done(line):
    """A line of the command line is run, or refused in one line."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main(line)
        out.flush()
    said = out.buffer.getvalue().decode()
    assert status in (0, 1, 2)
    assert status == 0 or err.getvalue().startswith("mcr2: ") or "not measured" in said, said


def fuzz_data(place, monkeypatch, count):
    def check(content):
        Path("fuzzed.npz").write_bytes(content)
        with contextlib.suppress(ValueError, TypeError):
            load_dataset("fuzzed.npz")
        prepared([*TRAIN, "--dataset", "fuzzed.npz"], monkeypatch)

    optional = ["y_train", "y_train_clean", "classes", "axes", "labels_are"]
    return fuzz(npz(data_arrays, optional), check, count)


def fuzz_features(place, monkeypatch, count):
    def check(content):
        Path("fuzzed.npz").write_bytes(content)
        with contextlib.suppress(ValueError, TypeError):
            read_features("fuzzed.npz")
        done(["measure", "fuzzed.npz", "--json", "measured.json"])

    optional = ["clean_labels", "weight", "bias", "test_features", "test_labels"]
    return fuzz(npz(feature_arrays, optional), check, count)


@st.composite
def image_folders(draw):
    """Files below a folder by path: bytes, or the target of a link."""

    def image():
        shape = draw(st.sampled_from([(8, 8), (8, 8), (8, 8), (8, 7), (1, 1)]))
        mode = draw(st.sampled_from(["L", "L", "RGB", "RGBA", "P", "1", "I", "F", "LA", "CMYK"]))
        kind = draw(st.sampled_from(["PNG", "PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]))
        out = io.BytesIO()
        with contextlib.suppress(OSError, ValueError):  # a mode that the format does not have
            colour = draw(st.integers(0, 255)) if mode in "LP" else 0
            Image.new(mode, shape, colour).save(out, kind)
        return damaged(draw, out.getvalue())

    names = st.sampled_from(["a", "b", "c", "\udcff", "$x$", "n\nl", ".h", "\u202e", "<b>|`"])
    files = {}
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        for split in ("train", "test"):
            for number in range(draw(st.sampled_from([0, 1, 2, 2, 3]))):
                files[f"{split}/{name}/{number}.png"] = image()
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        where = st.sampled_from(["train/a/x", "train/x", "x", "test/b/deep/x", "train/a/0.png"])
        content = st.binary(max_size=20) | st.sampled_from(["..", "/etc", "x", "../a"])
        files[draw(where)] = draw(content)
    return files


def fuzz_images(place, monkeypatch, count):
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))

    def check(files):
        shutil.rmtree("fuzzed", ignore_errors=True)
        for name, content in files.items():
            path = Path("fuzzed", name)
            with contextlib.suppress(OSError):  # two of them cannot both be
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(content) if isinstance(content, str) else path.write_bytes(content)
        prepared([*TRAIN, "--dataset", "fuzzed"], monkeypatch)
        prepared([*TRAIN, "--dataset", "fuzzed", "--image-size", "8"], monkeypatch)

    return fuzz(image_folders(), check, count)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=4), part),
    max_leaves=6,
)


@st.composite
def changed(draw, value):
    """A JSON value with some part replaced or removed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        name = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 5)) == 0:
            return {k: v for k, v in value.items() if k != name}
        return value | {name: draw(changed(value[name]))}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(changed(value[place])), *value[place + 1 :]]
    return draw(JSON)


def fuzz_records(place, monkeypatch, count):
    names = ("record.json", "evaluation.json", "spec.json")
    whole = {name: (place / "run" / name).read_bytes() for name in names}
    monkeypatch.setattr("experiments.runs.runner.extra_readouts", lambda *_, **__: ())
    values = {name: read_json(place / "run" / name) for name in names}

    def check(example):
        name, value, content = example
        for other in names:
            (place / "run" / other).write_bytes(whole[other])
        if content is not None:
            (place / "run" / name).write_bytes(content)
        elif isinstance(value, dict):
            write_signed(place / "run" / name, {k: v for k, v in value.items() if k != "digest"})
        else:
            write_json(place / "run" / name, value)
        for read in (load_run, load_study):
            with contextlib.suppress(ValueError):
                read("run")
        for command in ("evaluate", "reread"):
            done([command, "run"])

    example = st.sampled_from(names).flatmap(
        lambda name: st.tuples(
            st.just(name),
            changed(values[name]),
            st.none() | st.none() | st.binary(max_size=30),
        )
    )
    return fuzz(example, check, count)


READERS = {
    "data": fuzz_data,
    "features": fuzz_features,
    "images": fuzz_images,
    "records": fuzz_records,
}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_read_is_understood_or_answered_in_a_line(reader, place, monkeypatch):
    assert READERS[reader](place, monkeypatch, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_much_that_is_read(reader, place, monkeypatch):
    READERS[reader](place, monkeypatch, MANY)
