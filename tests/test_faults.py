"""Files that were altered, and files made to do harm: recognised or harmless, never executed.

Runs and data are small; ``MCR2_FAULTS`` multiplies nothing, the slow tests do all there is.
"""

import contextlib
import io
import itertools
import json
import pickle
import random
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.commands.cli import main
from experiments.runs.machine import Machine
from experiments.runs.runner import run
from experiments.runs.signals import StopSignals
from experiments.runs.specs import RunSpec, as_dict
from mcr2.data import load_dataset
from mcr2.records import content_key, load_run, save_tensors, write_signed
from mcr2.training import Interrupted, TrainingConfig

ROOT = Path(__file__).resolve().parents[1]
SPEC = RunSpec(
    "ce",
    subset=60,
    ratio=0.3,
    backbone="resnet10_w8",
    feature_dim=8,
    training=TrainingConfig(epochs=4, batch_size=30, evaluate_every=2),
)
STUDY = "table --methods ce redunet --subset 60 --ratios 0.3 --epochs 1 --jobs 2 --set".split()
STUDY += ["backbone=resnet10_w8", "feature_dim=8", "batch_size=30", "redunet.layers=2"]


def timeless(value):
    """A value of JSON without what took how long, or where."""
    spent = ("seconds", "wall_seconds", "evaluation_seconds", "environment", "file")
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in spent}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def mcr2(*arguments):
    """Run the command line here; return its status and what it printed, errors last."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


# ------------------------------------------------------------------------------------ alterations

OTHER_JSON = ([], {}, None, 3, "text", {"key": 1}, [[["deep"]]], {"digest": "0"}, True, 1e308)


def retyped(value, rng):
    """A JSON value with one part of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(sorted(value))
        return value | {name: retyped(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], retyped(value[place], rng), *value[place + 1 :]]
    return rng.choice([other for other in OTHER_JSON if other != value])


def alter(path, rng, swaps):
    """Alter a file somehow; return what was done, or None where it left everything as it was."""
    content = path.read_bytes()
    kinds = ["bit", "bytes", "truncated", "emptied", "other", "swapped", "folder", "appended"]
    kind = rng.choice([*kinds, *["retyped"] * (2 * (path.suffix == ".json"))])
    place = rng.randrange(max(len(content), 1))
    new = {
        "bit": content[:place]
        + bytes(b ^ 1 << rng.randrange(8) for b in content[place : place + 1])
        + content[place + 1 :],
        "bytes": content[:place] + rng.randbytes(rng.randrange(1, 9)) + content[place + 8 :],
        "truncated": content[:place],
        "emptied": b"",
        "other": json.dumps(rng.choice(OTHER_JSON)).encode(),
        "swapped": rng.choice(swaps).read_bytes(),
        "appended": content + rng.randbytes(20),
        "folder": b"folder",
    }.get(kind) or b""
    if kind == "retyped":
        new = json.dumps(retyped(json.loads(content), rng)).encode()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(new)
    return kind if new != content else None


class Whole:
    """A study, a run, one that was stopped, data of all kinds, and what each gives as it is."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8), np.arange(40) % 2
        np.savez(folder / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y, y_train_clean=y)
        H = rng.normal(size=(40, 4)).astype("f4")
        np.savez(folder / "features.npz", features=H, labels=y, clean_labels=1 - y)
        for split, name, n in itertools.product(("train", "test"), ("cat", "dog"), range(4)):
            place = folder / "images" / split / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[n * 2 + (name == "dog")]).save(place / f"{n}.png")
        run(SPEC, folder / "run", Machine("cpu"))
        self.stop(SPEC, folder / "stopped")
        for which, data in (("npz", "data.npz"), ("images", "images")):
            mcr2(*self.train(folder, which, data))
        mcr2(*STUDY, "--out", folder / "study")

    @staticmethod
    def stop(spec, folder):
        class Stop(StopSignals):
            def __call__(self):
                self.asked = getattr(self, "asked", 0) + 1
                return self.asked == 3

        with pytest.raises(Interrupted):
            run(spec, folder, Machine("cpu"), stop=Stop(), checkpoint_seconds=0)

    @staticmethod
    def train(folder, which, data):
        sets = ["--set", "backbone=resnet10_w8", "batch_size=10", "n_components=1", "feature_dim=8"]
        given = ["--dataset", folder / data, "--out", folder / f"of_{which}", "--epochs", 1]
        return ["train", "--method", "ce", *given, *sets]


def results_of_run(folder):
    found = load_run(folder)
    return timeless(asdict(found.record)), timeless(found.evaluation.selections)


def again(name):
    """What goes on with a run's folder: it is run."""

    def go(folder):
        run(SPEC, folder / name, Machine("cpu"))
        return results_of_run(folder / name)

    return go


def not_evaluated(folder):
    (folder / "run" / "evaluation.json").unlink(missing_ok=True)
    return again("run")(folder)


def command(*words, result):
    """What goes on from the command line; a mistake or a failure is a line."""

    def go(folder):
        status, out, err = mcr2(*(str(w).replace("FOLDER", str(folder)) for w in words))
        assert "Traceback" not in out + err, err
        if status:
            assert err.startswith("mcr2: ") or "not measured" in out or "failed, " in out, out + err
            raise ValueError(err or out)
        return result(folder)

    return go


def of_table(folder):
    return timeless(json.loads((folder / "study" / "table.json").read_text())["rows"])


def of_json(folder):
    return timeless(json.loads((folder / "out.json").read_text()))


def of_training(which):
    def go(folder):
        status, out, err = mcr2(*Whole.train(folder, which, {"npz": "data.npz"}.get(which, which)))
        assert "Traceback" not in out + err
        if status:
            assert err.startswith("mcr2: ")
            raise ValueError(err)
        return results_of_run(folder / f"of_{which}")

    return go


EVALUATE = command("evaluate", "FOLDER/run", "--json", "FOLDER/out.json", result=of_json)
TABLE = command(*STUDY, "--out", "FOLDER/study", result=of_table)
MEASURE = command("measure", "FOLDER/features.npz", "--json", "FOLDER/out.json", result=of_json)
REREAD = command("reread", "FOLDER/study", result=of_table)

#: What is altered (a pattern below the folder), and what is then done.
READ = [
    ("run/record.json", again("run")),
    ("run/evaluation.json", again("run")),
    ("run/spec.json", again("run")),
    ("run/.lock", not_evaluated),
    ("run/*.safetensors", not_evaluated),
    ("run/record.json", EVALUATE),
    ("run/evaluation.json", EVALUATE),
    ("run/*.safetensors", EVALUATE),
    ("stopped/checkpoint.safetensors", again("stopped")),
    ("stopped/checkpoint.safetensors", again("stopped")),
    ("stopped/spec.json", again("stopped")),
    ("study/study.json", TABLE),
    ("study/study.json", REREAD),
    ("study/runs/*/*.json", TABLE),
    ("study/runs/*/*", REREAD),
    ("study/table.json", TABLE),
    ("data.npz", of_training("npz")),
    ("features.npz", MEASURE),
    ("images/*/*/*", of_training("images")),
    ("cache/mcr2/decoded/*/*", of_training("images")),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    # Runs' processes inherit the environment of the first server: the cache's place is set anew.
    return Whole(tmp_path_factory.mktemp("whole") / "whole")


def alterations(whole, tmp_path, monkeypatch, count):
    """Alter ``count`` files, one at a time, and go on; return how often what came of it."""
    monkeypatch.setattr("experiments.report.figures.write_figures", lambda *_: None)
    place, came, expected = tmp_path / "whole", Counter(), {}
    for number in range(-len(READ), count):
        pattern, go = READ[number % len(READ)]
        rng = random.Random(number)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole.folder, place)
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        load_dataset(place / "images")  # into the cache
        if number < 0:  # as it is
            expected[go] = go(place)
            continue
        path = rng.choice(sorted(p for p in place.glob(pattern) if p.is_file()))
        files = sorted(p for p in place.rglob("*") if p.is_file() and p != path)
        kind = alter(path, rng, [p for p in files if p.suffix == path.suffix] or files)
        try:
            found = go(place)
        except (ValueError, OSError) as error:  # what the command line makes a line of
            assert str(error).strip()
            came[pattern, "refused"] += 1
        else:
            assert found == expected[go], (number, pattern, kind, path)
            aside = any(place.rglob("*.damaged"))
            came[pattern, "redone" if aside else "harmless"] += 1
    return came


def test_altered_files_are_recognised_or_harmless(whole, tmp_path, monkeypatch):
    alterations(whole, tmp_path, monkeypatch, len(READ))


@pytest.mark.slow
def test_two_hundred_altered_files_are_recognised_or_harmless(whole, tmp_path, monkeypatch):
    came = alterations(whole, tmp_path, monkeypatch, 10 * len(READ))
    for (pattern, what), times in sorted(came.items()):
        print(f"{times:4d}  {what:9}  {pattern}")
    assert came.total() == 10 * len(READ)
