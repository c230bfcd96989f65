"""A mistake on the command line: one line naming it, status 2, nothing written or overwritten."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import experiments.runs.runner
from experiments.commands.cli import main
from experiments.runs.runner import Machine, run
from experiments.runs.specs import RunSpec
from mcr2.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]

TINY = RunSpec(
    method="ce",
    subset=60,
    ratio=0.5,
    backbone="resnet10_w8",
    training=TrainingConfig(epochs=1, batch_size=30),
)

LOSSES = """
from mcr2.objectives import Objective

class Stranger:
    pass

class Unfinished(Objective):
    pass

class Demanding(Objective):
    def __init__(self, num_classes, temperature):
        super().__init__(num_classes)

    def loss(self, features, labels, context):
        return features.sum(), {}

class Picky(Demanding):
    def __init__(self, num_classes):
        raise RuntimeError("not on a Monday")
"""


def arrays(**changed):
    """A small valid .npz in pieces, some of them replaced."""
    return {
        "x_train": np.zeros((20, 8, 8), np.uint8),
        "y_train": np.arange(20) % 2,
        "x_test": np.zeros((6, 8, 8), np.uint8),
        "y_test": np.arange(6) % 2,
    } | changed


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(TINY, folder, Machine("cpu"))
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with everything that a mistake may be made with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MCR2_DATA", raising=False)
    (tmp_path / "notes.txt").write_text("keep me")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("keep me too")
    (tmp_path / "losses.py").write_text(LOSSES)
    (tmp_path / "typo.py").write_text("def loss(:\n")
    (tmp_path / "needy.py").write_text("import no_such_package_anywhere\n")
    (tmp_path / "quits.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "fine.npz", **arrays())
    np.savez(tmp_path / "flat.npz", **arrays(x_train=np.zeros((20, 64), np.uint8)))
    np.savez(tmp_path / "float.npz", **arrays(x_train=np.zeros((20, 8, 8))))
    np.savez(tmp_path / "objects.npz", **arrays(y_train=np.array([object()] * 20)))
    np.savez(tmp_path / "uneven.npz", **arrays(y_train=np.arange(19) % 2))
    np.savez(tmp_path / "part.npz", x_train=np.zeros((20, 8, 8), np.uint8))
    whole = (tmp_path / "fine.npz").read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def tree(folder):
    """Everything below a folder: bytes of files, and when they were written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def assert_mistake(arguments, fragment, place, capsys):
    before = tree(place)
    status = main(arguments)
    out, err = capsys.readouterr()
    assert status == 2, err
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert err.startswith("mcr2: ")
    assert fragment in err
    for alien in ("Traceback", "╭", "│", "──", "---"):
        assert alien not in err
    assert tree(place) == before


IN_A_STUDY = {
    # data
    "--dataset mnits": "unknown data set 'mnits'; choose from digits, fashion_mnist, mnist",
    "--dataset notes.txt": "unknown data set 'notes.txt'",
    "--dataset thesis": "thesis: no folder train/",
    "--dataset=": "unknown data set ''",
    "--dataset missing.npz": "missing.npz not found",
    "--dataset text.npz": "text.npz: cannot be read",
    "--dataset truncated.npz": "truncated.npz: cannot be read",
    "--dataset flat.npz": "flat.npz: x_train has shape (20, 64)",
    "--dataset uneven.npz": "uneven.npz: y_train has shape (19,)",
    "--dataset float.npz": "float.npz: x_train has dtype float64; allowed is uint8",
    "--dataset objects.npz": "y_train is an object array",
    "--dataset part.npz": "y_train",
    "--data-root notes.txt": "the data root must be a folder, but notes.txt is a file",
    "--subset 100000": "subset is 100000; it must be between 10 and 1437",
    "--subset 0": "subset is 0",
    "--subset 12 --set validation=0.001": "leaves 12 to train on and 0 to validate on",
    # noise
    "--ratios 1.5": "ratio is 1.5; it must be between 0 and 1",
    "--ratios -0.1": "ratio is -0.1; it must be between 0 and 1",
    "--ratios nan": "ratio is nan",
    "--ratios half": "--ratios",
    "--ratios": "ratios is empty",
    "--ratios 0.1 0.10": "ratios has repetitions",
    "--noise pairwise": "noise is 'pairwise'; choose from symmetric, symmetric_excluding_true",
    # seeds
    "--seeds -1": "seed is -1",
    "--seeds 4294967296": "seed is 4294967296",
    "--seeds 1 1": "seeds has repetitions: 1 1",
    "--seeds 0.5": "--seeds",
    # methods
    "--methods svm": "unknown method 'svm'; choose from ce, mcr2",
    "--methods": "methods is empty",
    "--methods ce ce": "methods has repetitions: ce ce",
    "--methods losses.py": "unknown method 'losses.py'",
    "--methods losses.py:Stranger": "losses.py:Stranger is no mcr2.objectives.Objective",
    "--methods losses.py:Absent": "losses.py defines no 'Absent'",
    "--methods losses.py:Unfinished": "losses.py:Unfinished defines no loss",
    "--methods losses.py:Demanding": "losses.py:Demanding cannot be constructed",
    "--methods losses.py:Picky": "not on a Monday",
    "--methods typo.py:Loss": "typo.py cannot be imported: SyntaxError",
    "--methods needy.py:Loss": "no_such_package_anywhere",
    "--methods absent.py:Loss": "no file absent.py",
    "--methods no_such_package.losses:Loss": "'no_such_package.losses'",
    "--methods torch.nn:Linear": "torch.nn:Linear is no mcr2.objectives.Objective",
    # training
    "--epochs -1": "epochs is -1; it must be at least 0",
    "--epochs ten": "--epochs",
    "--epochs 1.5": "['1.5']",
    "--recipe slow": "unknown recipe 'slow'; choose from quick",
    "--set temperature=1": "'temperature' is no field of a run; choose from accumulate",
    "--set lr": "--set 'lr' is not of the form [METHOD.]FIELD=VALUE",
    "--set lr=fast": "lr='fast' is not a value of type float",
    "--set lr=nan": "lr is nan",
    "--set batch_size=64.0": "batch_size='64.0' is not a value of type int",
    "--set shuffle=maybe": "shuffle='maybe' is not a value of type bool",
    "--set backbone=vgg": "backbone is 'vgg'; choose from resnet18",
    "--set readout=oracle": "unknown readout 'oracle'; choose from",
    "--set readout=head": "mcr2 has no classifier of its own",
    "--methods quits.py:Loss": "quits.py cannot be imported: SystemExit",
    "--set n_components=64": "n_components is 64; it must be between 1 and 63",
    "--set mcr2.eps_sq=-1": "eps_sq is -1",
    "--set ce.eps_sq=0.1": "'eps_sq' is no field of a run",
    "--methods mcr2 --set ce.lr=1": "ce is not among the methods mcr2",
    "--set training=all": "'training' is no field of a run",
    # What a grid shares or spans is not to be set a second time: cells would differ, or coincide.
    "--set ratio=0.3": "ratio has an option of its own",
    "--set seed=3": "seed has an option of its own",
    "--set mcr2.dataset=fine.npz": "dataset has an option of its own",
    # machine
    "--jobs 0": "jobs is 0; it must be at least 1",
    "--threads 0": "threads is 0; it must be at least 1",
    "--device cuda:77": "device 'cuda:77' cannot be used here",
    "--device nonsense": "device 'nonsense' cannot be used here",
    "--device meta": "device 'meta' cannot be used here",
    # the line itself
    "--epoch 3": "perhaps you meant --epochs",
    "--set lr=0.1 --set momentum=0": "--set is given twice",
    "surplus": "Unrecognized options: surplus",
}


@pytest.mark.parametrize("options", IN_A_STUDY)
def test_a_mistaken_study(options, place, capsys):
    assert_mistake(["table", "--out", "new", *options.split()], IN_A_STUDY[options], place, capsys)


@pytest.mark.parametrize("command", ["redunet", "table --methods ce redunet"])
@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ("store=foo", "unknown store 'foo'; choose from memory, disk"),
        ("lifting=4 kernel_size=9", "kernel_size is 9; the images, 8 × 8, are smaller"),
        ("lifting=4 kernel_size=2.5", "kernel_size must be an integer, not float 2.5"),
        ("lifting=4 kernel_size=2", "kernel_size is 2; it must be odd"),
        ("lifting=true", "lifting must be an integer, not bool True"),
        ("layers=2.5", "layers must be an integer"),
        ("eps_sq=0", "eps_sq is 0"),
    ],
)
def test_a_mistaken_option_of_redunet(command, settings, fragment, place, capsys):
    prefix = "redunet." if "table" in command else ""
    given = [prefix + setting for setting in settings.split()]
    assert_mistake([*command.split(), "--out", "new", "--set", *given], fragment, place, capsys)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ("tabel", "Available subcommands: table, ablate, train, redunet, evaluate, measure"),
        ("", "Expected one of {table, ablate, train, redunet, evaluate, measure, datasets, bench}"),
        ("train --ratio 1.5", "ratio is 1.5"),
        ("train --ratio", "--ratio"),
        ("train --method svm", "unknown method 'svm'"),
        ("train --device nonsense", "device 'nonsense'"),
        ("train --threads 0", "threads is 0"),
        ("train --seed -1", "seed is -1"),
        ("evaluate", "Missing from mcr2 evaluate: PATH"),
        ("evaluate absent", "absent holds no finished run"),
        ("evaluate thesis", "thesis holds no finished run"),
        ("evaluate notes.txt", "notes.txt holds no finished run"),
        ("evaluate thesis --threads 0", "thesis holds no finished run"),
        ("evaluate absent --json thesis", "--json thesis is a folder"),
        ("evaluate absent --json notes.txt/m", "notes.txt is a file"),
        ("datasets --data-root notes.txt", "the data root must be a folder"),
        ("datasets --verbose", "Unrecognized options: --verbose"),
    ],
)
def test_a_mistaken_command(arguments, fragment, place, capsys):
    assert_mistake(arguments.split(), fragment, place, capsys)


@pytest.mark.parametrize("command", ["table", "train"])
@pytest.mark.parametrize(
    ("out", "fragment"),
    [
        ("thesis", "--out thesis holds something else"),
        ("notes.txt", "--out notes.txt is a file"),
        ("notes.txt/deeper", "notes.txt"),
    ],
)
def test_out_of_something_else_is_left_alone(command, out, fragment, place, capsys):
    assert_mistake([command, "--out", out, "--epochs", "1"], fragment, place, capsys)


@pytest.mark.parametrize(
    ("identity", "fragment"),
    [
        ('{"study": "label noise", "dataset": "digits", "recipe": "grand"}', "holds the study"),
        ('{"study": "label noise", "dataset": "fine", "recipe": "quick"}', "holds the study"),
        ('{"study": "abla', "study.json is not a JSON file"),
        ("[]", "holds the study"),
    ],
)
def test_out_of_another_study_is_left_alone(identity, fragment, place, capsys):
    (place / "study").mkdir()
    (place / "study" / "study.json").write_text(identity)
    assert_mistake(["table", "--out", "study", "--epochs", "1"], fragment, place, capsys)


def test_a_study_of_other_data_does_not_continue_one(place, capsys):
    from experiments.studies.label_noise import claim

    identity = {"study": "label noise", "dataset": "digits", "recipe": "quick", "data": "0" * 12}
    claim(place / "study", identity)
    arguments = ["table", "--out", "study", "--dataset", "fine.npz", "--epochs", "1"]
    assert_mistake(arguments, "'dataset': 'fine'", place, capsys)
    assert_mistake(["table", "--out", "study", "--subset", "100"], "'data': '", place, capsys)


def copied(finished_run, place):
    folder = place / "run"
    folder.mkdir()
    for path in finished_run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def weights_of(folder):
    return (
        folder / json.loads((folder / "record.json").read_text())["selections"]["last"]["weights"]
    )


def test_a_run_does_not_replace_another(finished_run, place, capsys):
    copied(finished_run, place)
    arguments = ["train", "--out", "run", "--method", "mcr2", "--subset", "60", "--epochs", "1"]
    assert_mistake(arguments, "--out run holds another run", place, capsys)


@pytest.mark.parametrize(
    ("damage", "fragment"),
    [
        (lambda text: text[: len(text) // 2], "record.json is not a JSON file"),
        (lambda text: "[1, 2]", "record.json is not a run's record"),
        (lambda text: '{"key": 1}', "record.json is not a run's record"),
        (lambda text: text.replace('"format": 2', '"format": 1'), "run has to be run again"),
        (lambda text: text.replace('"seed": 0', '"seed": -5'), "seed is -5"),
    ],
)
def test_a_damaged_record_is_not_read(damage, fragment, finished_run, place, capsys):
    record = copied(finished_run, place) / "record.json"
    record.write_text(damage(record.read_text()))
    assert_mistake(["evaluate", "run", "--threads", "1"], fragment, place, capsys)


def test_damaged_weights_are_not_read(finished_run, place, capsys):
    weights = weights_of(copied(finished_run, place))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert_mistake(["evaluate", "run"], weights.name, place, capsys)
    weights.unlink()
    assert_mistake(["evaluate", "run"], weights.name, place, capsys)


def test_the_weights_of_another_network_are_not_read(finished_run, place, capsys):
    import torch

    from mcr2.records import save_tensors

    weights = weights_of(copied(finished_run, place))
    save_tensors(weights, {"backbone.conv": torch.zeros(3)})
    assert_mistake(["evaluate", "run"], "weights of another network", place, capsys)


def test_a_run_on_data_that_have_changed_is_not_read(place, capsys):
    spec = RunSpec(
        "ce",
        dataset="fine.npz",
        backbone="resnet10_w8",
        n_components=1,
        training=TrainingConfig(epochs=0),
    )
    run(spec, place / "run", Machine("cpu"))
    np.savez(place / "fine.npz", **arrays(x_train=np.ones((20, 8, 8), np.uint8)))
    assert_mistake(["evaluate", "run"], "fine.npz is not the data", place, capsys)


def test_a_damaged_record_stops_a_study_before_anything_is_run(place, capsys):
    command = ["table", "--out", "study", "--methods", "ce", "--subset", "60", "--epochs", "0"]
    command += ["--jobs", "1", "--set", "backbone=resnet10_w8", "--ratios"]
    assert main([*command, "0"]) == 0
    capsys.readouterr()
    (record,) = (place / "study" / "runs").glob("*/record.json")
    record.write_text("{")
    assert_mistake([*command, "0", "0.5"], "record.json is not a JSON file", place, capsys)


def test_a_library_that_cannot_be_imported_is_one_line(place, capsys, monkeypatch):
    def broken(*_, **__):
        raise ImportError("torchvision cannot be imported,\nreinstall it")

    monkeypatch.setattr(experiments.runs.runner, "load_dataset", broken)
    assert_mistake(["table", "--out", "new"], "torchvision cannot be imported", place, capsys)


@pytest.mark.parametrize(
    "command", ["", "table", "ablate", "train", "redunet", "evaluate", "measure", "datasets"]
)
def test_help_is_no_mistake(command, place, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    out, err = capsys.readouterr()
    assert stop.value.code == 0
    assert "usage: mcr2" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ("table --out thesis --epochs 1", "--out thesis holds something else"),
        ("table --out new --epochs ten", "--epochs"),
    ],
)
def test_a_mistake_in_a_process_of_its_own(arguments, fragment, place):
    before = tree(place)
    result = subprocess.run(
        [sys.executable, "-m", "experiments.commands", *arguments.split()],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert fragment in result.stderr
    assert tree(place) == before
