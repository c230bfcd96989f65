"""Whatever is typed and whatever is read: a result, or one line that says what is wrong.

``MCR2_FUZZ_SECONDS`` is how long the slow tests look for more (60 by default, for each).
"""

import contextlib
import io
import os
import shutil
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments.bench import BENCHES
from experiments.commands import cli
from experiments.runs.machine import Machine
from experiments.runs.runner import run
from experiments.runs.specs import RunSpec
from experiments.studies import STUDIES, find_study
from mcr2.data import DATASETS
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


class SpentError(Exception):
    """There is no time left."""


def fuzz(strategy, check, count, seconds=SECONDS):
    """Check many examples for some seconds; return how many they were."""
    until, seen = time.monotonic() + seconds, 0

    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def go(example):
        nonlocal seen
        if time.monotonic() > until:
            raise SpentError
        seen += 1
        check(example)

    with contextlib.suppress(SpentError):
        go()
    print(f"{seen} inputs")
    return seen


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
