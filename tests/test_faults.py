"""Files that were altered, and files made to do harm: recognised or harmless, never executed.

Runs and data are small; ``MCR2_FAULTS`` multiplies nothing, the slow tests do all there is.
"""

import contextlib
import io
import itertools
import json
import os
import pickle
import random
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
from experiments.runs.specs import RunSpec
from mcr2.data import load_dataset
from mcr2.records import load_run, write_signed
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
STUDY = [
    "table",
    "--methods",
    "ce",
    "redunet",
    "--subset",
    "60",
    "--ratios",
    "0.3",
    "--epochs",
    "1",
    "--jobs",
    "2",
    "--set",
]
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
            assert err.strip().startswith("mcr2: ") or "not measured" in out or "failed, " in out, (
                out + err
            )
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
    ("cache/mcr2/decoded/*", of_training("images")),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    # Runs' processes inherit the environment of the first server: the cache's place is set anew.
    return Whole(tmp_path_factory.mktemp("whole") / "whole")


def alterations(whole, tmp_path, monkeypatch, count):
    """Alter ``count`` files, one at a time, and go on; return how often what came of it."""
    monkeypatch.setattr("experiments.report.figures.write_figures", lambda *_: {})
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
        except (ValueError, OSError):  # what the command line makes a line of
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


# --------------------------------------------------------------------------------- made to do harm

#: What runs where something is executed that was only to be read.
EVIL = "open({marker!r}, 'w').close()"


class Evil:
    """A pickle that leaves a marker where it is opened."""

    def __init__(self, marker):
        self.code = EVIL.format(marker=str(marker))

    def __reduce__(self):
        return exec, (self.code,)


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    """A copy of everything, in a working folder of its own."""
    shutil.copytree(whole.folder, tmp_path / "whole")
    monkeypatch.chdir(tmp_path / "whole")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "whole" / "cache"))
    return tmp_path / "whole"


def assert_answered(status, out, err):
    assert status in (1, 2), (out, err)
    assert "Traceback" not in out + err
    assert err.startswith("mcr2: ") or "not measured" in out, (out, err)


def test_no_pickle_is_opened(place):
    marker = place / "executed"
    evil, objects = pickle.dumps(Evil(marker)), np.array([Evil(marker)] * 40, dtype=object)
    good = dict(np.load(place / "data.npz"))
    for name in good:
        np.savez("evil.npz", **(good | {name: objects}))
        assert_answered(*mcr2("train", "--dataset", "evil.npz", "--out", "new"))
    for name in ("features", "labels", "weight"):
        np.savez("evil.npz", **(dict(np.load("features.npz")) | {name: objects}))
        assert_answered(*mcr2("measure", "evil.npz"))
    np.save("evil.npy", objects)
    torch.save(Evil(marker), "evil.pt")
    for content in (evil, Path("evil.npy").read_bytes(), Path("evil.pt").read_bytes()):
        Path("evil.npz").write_bytes(content)
        assert_answered(*mcr2("measure", "evil.npz"))
        assert_answered(*mcr2("train", "--dataset", "evil.npz", "--out", "new"))
        for weights in Path("run").glob("*.safetensors"):
            weights.write_bytes(content)
        assert_answered(*mcr2("evaluate", "run"))
        again("stopped")(place)
        shutil.rmtree("stopped")
        Whole.stop(SPEC, Path("stopped"))
        Path("stopped/checkpoint.safetensors").write_bytes(content)
        whole = load_dataset("images").content_hash()
        for file in Path("cache").rglob("*.np[yz]"):
            file.write_bytes(content)
            assert load_dataset("images").content_hash() == whole
    for file in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"):
        for name in (file, "test_batch", "batches.meta"):
            Path("cifar-10-batches-py").mkdir(exist_ok=True)
            Path("cifar-10-batches-py", name).write_bytes(evil)
    assert_answered(*mcr2("train", "--dataset", "cifar10", "--data-root", ".", "--out", "new"))
    assert not marker.exists()


@pytest.mark.parametrize("field", ["method", "backbone", "study", "methods", "set"])
def test_nothing_is_imported_because_a_file_names_it(field, place):
    Path("evil.py").write_text(EVIL.format(marker="executed") + "\nclass Loss: pass\n")
    Path("package").mkdir()
    Path("package/evil.py").write_text(EVIL.format(marker="executed"))
    for name in ("evil.py:Loss", str(place / "evil.py:Loss"), "package.evil:Loss"):
        if field in ("method", "backbone"):
            record = asdict(load_run("run").record)
            record["spec"] |= {field: name}
            write_signed("run/record.json", record)
            write_signed("run/spec.json", {"key": record["key"], "spec": record["spec"]})
            for words in (["evaluate", "run"], ["reread", "run"]):
                assert_answered(*mcr2(*words))
            for folder in Path("study/runs").iterdir():
                write_signed(folder / "record.json", record | {"key": folder.name})
            assert_answered(*mcr2("reread", "study"))
        else:
            study = json.loads(Path("study/study.json").read_text())
            del study["digest"]
            if field == "study":
                study["study"] = name
            else:
                study["options"][field] = [name] if field == "methods" else [f"backbone={name}"]
            write_signed("study/study.json", study)
            status, out, err = mcr2("reread", "study")
            assert status == 0, err
            assert "is not shown anew" in out
    assert not Path("executed").exists()


def test_nothing_leads_out_of_a_folder_or_an_archive(place):
    outside = place.parent / "outside"
    outside.mkdir()
    shutil.copy("images/train/cat/0.png", outside)
    before = sorted(place.parent.rglob("*"))
    with zipfile.ZipFile("evil.npz", "w") as archive:
        for name in ("../outside/x.npy", "/tmp/x.npy", "x_train.npy/../../y.npy", "C:\\x.npy"):
            archive.writestr(name, b"x")
    for words in (["measure", "evil.npz"], ["train", "--dataset", "evil.npz", "--out", "new"]):
        assert_answered(*mcr2(*words))
    Path("evil.npz").unlink()
    assert sorted(place.parent.rglob("*")) == before

    for link, target in (
        ("images/train/cat/link.png", outside / "0.png"),
        ("images/train/cat/link.png", Path("/dev/zero")),
        ("images/train/cow", outside),
        ("images/train/cat/link.png", Path("../../../../outside/0.png")),
    ):
        Path(link).symlink_to(target)
        status, out, err = mcr2("train", "--dataset", "images", "--out", "new")
        assert_answered(status, out, err)
        assert "link out" in err
        Path(link).unlink()

    record = asdict(load_run("run").record)
    record["weights"] = {
        epoch: kept | {"file": f"../../outside/{kept['file']}"}
        for epoch, kept in record["weights"].items()
    }
    for file in Path("run").glob("*.safetensors"):
        file.rename(outside / file.name)
    write_signed("run/record.json", record)
    assert_answered(*mcr2("evaluate", "run"))


#: Runs a command with bounded memory, and prints what it took.
BOUNDED = """
import resource, sys
from experiments.commands.cli import main
import torch, matplotlib, sklearn, experiments.runs.runner
held = int(open("/proc/self/statm").read().split()[0]) * 4096
limit = held + (3 << 30)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
statuses = []
for line in sys.stdin:
    statuses.append(main(line.split()))
print(statuses, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


def sparse(path, size, head=b""):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)


def header(shape, dtype="|u1", order="False"):
    text = f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and sparse files")
def test_bombs_meet_limits_of_ours(place):
    tera, lines = 1 << 40, []
    good = dict(np.load("data.npz"))
    for number, (shape, dtype) in enumerate(
        [((1 << 40, 8, 8), "|u1"), ((1 << 62, 1 << 62, 4), "|u1"), ((40,), "<U1000000000")]
    ):
        with zipfile.ZipFile(f"claims{number}.npz", "w") as archive:
            for name in ("x_train", "y_train", "x_test", "y_test", "features", "labels"):
                archive.writestr(f"{name}.npy", header(shape, dtype) + bytes(100))
    with zipfile.ZipFile("deflated.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        zeros = bytes(1 << 24)
        for name in ("x_train", "features"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header((1 << 26, 8, 8)))
                for _ in range(256):
                    member.write(zeros)
        for name in ("y_train", "x_test", "y_test", "labels"):
            archive.writestr(f"{name}.npy", header((0,)))
    sparse("sparse.npz", tera, Path("data.npz").read_bytes())
    for name in (*(f"claims{n}.npz" for n in range(3)), "deflated.npz", "sparse.npz"):
        lines += [f"measure {name}", f"train --dataset {name} --out new"]
    # Images that claim to be large, or are.
    for name, size in (("large", 20000), ("many", 8000)):
        shutil.copytree("images", name)
        image = io.BytesIO()
        Image.new("1", (size, size)).save(image, format="PNG")
        for path in Path(name).glob("*/*/*.png"):
            path.write_bytes(image.getvalue())
        lines.append(f"train --dataset {name} --out new")
    shutil.copytree("images", "sparse")
    sparse("sparse/train/cat/0.png", tera, Path("images/train/cat/0.png").read_bytes()[:60])
    lines.append("train --dataset sparse --out new")
    # Records, tensors, named data.
    for name in ("deep", "long"):
        shutil.copytree("run", f"run_{name}")
    Path("run_deep/record.json").write_text("[" * 10_000_000)
    sparse("run_long/record.json", tera, b"{")
    lines += ["evaluate run_deep", "evaluate run_long", "reread run_long"]
    for number, head in enumerate([b"", b"\xff" * 8, (1 << 39).to_bytes(8, "little") + b"{"]):
        shutil.copytree("run", f"run_{number}")
        for weights in Path(f"run_{number}").glob("*.safetensors"):
            sparse(weights, tera, head)
        lines.append(f"evaluate run_{number}")
    sparse("study/study.json", tera, b"{")
    lines.append("reread study")
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"):
        sparse(f"cifar-10-batches-py/{name}", tera)
    for name in ("test_batch", "batches.meta"):
        sparse(f"cifar-10-batches-py/{name}", tera)
    for name in ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"):
        sparse(f"stl10_binary/{name}", tera)
    for file, ndim in (("images-idx3", 3), ("labels-idx1", 1)):
        head = bytes((0, 0, 8, ndim)) + (b"\x7f\xff\xff\xff" + b"\0\0\0\x1c" * 2)[: 4 * ndim]
        for split in ("train", "t10k"):
            sparse(f"mnist/{split}-{file}-ubyte", tera, head)
    for name in ("cifar10", "stl10", "mnist"):
        lines.append(f"train --dataset {name} --data-root . --out new")
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    statuses, mib = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert not [f for f in zip(lines, json.loads(statuses), strict=True) if f[1] not in {1, 2}]
    assert int(mib) < 2500
    print(f"{len(lines)} bombs took {mib} MiB")
    assert good


def test_a_checkpoint_and_a_cache_are_no_bombs_either(place):
    sparse("stopped/checkpoint.safetensors", 1 << 40, b"\xff" * 8)
    assert again("stopped")(place) == again("run")(place)
    found = load_dataset("images").content_hash()
    (entry,) = (path for path in Path("cache").rglob("*.safetensors") if "images" in path.name)
    for head in (b"", b"\xff" * 8, entry.read_bytes()):
        sparse(entry, 1 << 40, head)
        assert load_dataset("images").content_hash() == found
