"""The command line: a mistake is one line, exit status 2 and nothing written; help is quick."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import experiments.runs.prepare
from experiments.commands.cli import COMMANDS, main
from experiments.runs.machine import Machine
from experiments.runs.recipes import RECIPES
from experiments.runs.runner import run
from experiments.runs.specs import RunSpec
from experiments.studies import STUDIES
from experiments.studies.ablations import ABLATIONS
from experiments.studies.engine import claim_folder
from mcr2.noise import NOISES
from mcr2.records import load_run, save_record, save_tensors
from mcr2.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]

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

QUITTER = """
import sys
from mcr2.objectives import Objective

class Loss(Objective):
    def loss(self, features, labels, context):
        sys.exit(0)
"""


def arrays(**changed):
    """A small valid .npz in pieces, some of them replaced."""
    return {
        "x_train": np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8),
        "y_train": np.arange(20) % 2,
        "x_test": np.zeros((6, 8, 8), np.uint8),
        "y_test": np.arange(6) % 2,
    } | changed


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A working folder with everything that a mistake may be made with."""
    place = tmp_path_factory.mktemp("place")
    (place / "notes.txt").write_text("keep me")
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("keep me too")
    (place / "losses.py").write_text(LOSSES)
    (place / "typo.py").write_text("def loss(:\n")
    (place / "quits.py").write_text("raise SystemExit(0)\n")
    (place / "quitter.py").write_text(QUITTER)
    (place / "text.npz").write_text("not an archive")
    np.savez(place / "fine.npz", **arrays())
    np.savez(place / "uneven.npz", **arrays(y_train=np.arange(19) % 2))
    training = TrainingConfig(epochs=0)
    run(
        RunSpec("ce", subset=60, ratio=0.5, backbone="resnet10_w8", training=training),
        place / "run",
    )
    claim_folder(
        place / "study",
        {"study": "label_noise", "dataset": "digits", "recipe": "quick", "data": "0" * 12},
    )
    for name, content in (("cut", '{"study": "abla'), ("list", "[]")):
        (place / name).mkdir()
        (place / name / "study.json").write_text(content)
    return place


@pytest.fixture
def place(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("MCR2_DATA", raising=False)
    return prepared


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
    assert (status, out) == (2, ""), err
    assert err.startswith("mcr2: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert fragment in err
    for alien in ("Traceback", "╭", "│", "──", "---"):
        assert alien not in err
    assert tree(place) == before


IN_A_STUDY = {
    # data
    "--dataset mnits": "unknown data set 'mnits'; choose from digits, fashion_mnist, mnist",
    "--dataset thesis": "thesis: no folder train/",
    "--dataset=": "unknown data set ''",
    "--dataset missing.npz": "missing.npz not found",
    "--dataset text.npz": "text.npz: cannot be read",
    "--dataset uneven.npz": "uneven.npz: y_train has shape (19,)",
    "--data-root notes.txt": "the data root must be a folder, but notes.txt is a file",
    "--subset 100000": "subset is 100000; it must be between 10 and 1437",
    "--subset 0": "subset is 0; it must be at least 1",
    "--subset 12 --set validation=0.001": "leaves 12 to train on and 0 to validate on",
    "--set classes=0+10": "a class of digits is 10; it must be between 0 and 9",
    "--set classes=1": "classes is 1; it must be at least 2",
    "--set classes=": "the number of classes is 0; it must be at least 1",
    "--set classes=0+zero": "classes='zero' is not a value of type int",
    "--set classes=2+2": "class 2 of digits is named twice",
    "--set imbalance=0.5": "imbalance is 0.5; it must be at least 1",
    "--set validation=1": "validation is 1.0; it must be from 0 to below 1",
    "--image-size 8": "image_size resizes the images of a folder, and digits is not one",
    # noise
    "--ratios 1.5": "ratio is 1.5; it must be between 0 and 1",
    "--ratios -0.1": "ratio is -0.1; it must be between 0 and 1",
    "--ratios": "--ratios is empty; give at least one",
    "--ratios 0.1 0.10": "ratios has repetitions",
    "--noise pairwise": "unknown noise 'pairwise'; choose from symmetric, symmetric_excluding_true",
    "--noise symmetric:3": "noise 'symmetric:3' must be written 'symmetric'",
    # seeds
    "--seeds -1": "seed is -1; it must be between 0 and 4294967295",
    "--seeds 1 1": "seeds has repetitions: 1 1",
    "--set streams.noise=-1": "streams.noise is -1",
    # methods
    "--methods svm": "unknown method 'svm'; choose from ce, ls, mse, fixed_etf, mcr2",
    "--methods": "methods is empty",
    "--methods ce ce": "methods has repetitions: ce ce",
    "--methods losses.py:Stranger": "losses.py:Stranger is not an mcr2.objectives.Objective",
    "--methods losses.py:Absent": "losses.py does not define 'Absent'",
    "--methods losses.py:Unfinished": "losses.py:Unfinished does not define loss(features, labels",
    "--methods losses.py:Demanding": "losses.py:Demanding cannot be constructed",
    "--methods losses.py:Picky": "not on a Monday",
    "--methods typo.py:Loss": "typo.py cannot be imported: SyntaxError",
    "--methods quits.py:Loss": "quits.py cannot be imported: SystemExit",
    "--methods absent.py:Loss": "no file absent.py to take Loss from",
    "--methods no_such_package.losses:Loss": "module 'no_such_package.losses' cannot be imported",
    "--methods torch.nn:Linear": "torch.nn:Linear is not an mcr2.objectives.Objective",
    # training and networks
    "--epochs -1": "epochs is -1; it must be at least 0",
    "--epochs 1.5": "['1.5']",
    "--recipe slow": "invalid choice 'slow' for argument '--recipe'",
    "--set temperature=1": "unknown field 'temperature'; choose from accumulate",
    "--set lr": "--set 'lr' is not of the form [METHOD.]FIELD=VALUE",
    "--set lr=fast": "lr='fast' is not a value of type float",
    "--set milestones=1+x": "milestones='x' is not a value of type int",
    "--set backbone=losses.py:Stranger": "losses.py:Stranger is not a torch.nn.Module but Stranger",
    "--set projection=linear": "unknown projection 'linear'; choose from mlp, none",
    "--set shift=8": "shift is 8; the images have a side of 8",
    "--set measured_layers=stage9": "unknown layer 'stage9' of resnet8_w16; choose from",
    "--set readout=head": "readout is 'head', but mcr2 has no classifier of its own",
    "--set accumulate=true": "accumulate sums over micro-batches; say how large",
    "--set mcr2.eps_sq=-1": "eps_sq is -1; it must be positive",
    "--set eps_sq=much": "eps_sq must be a number, not str 'much'",
    "--set ce.eps_sq=0.1": "unknown field 'eps_sq'",
    "--methods mcr2 --set ce.lr=1": "ce is not among the methods mcr2",
    # What a grid shares or spans is not to be set a second time: runs would differ, or coincide.
    "--set ratio=0.3": "ratio has an option of its own",
    "--set mcr2.dataset=fine.npz": "dataset has an option of its own",
    # machine
    "--jobs 0": "jobs is 0; it must be between 1 and 1024",
    "--jobs 100000000000": "it must be between 1 and 1024",
    "--threads 0": "threads is 0; it must be between 1 and",
    "--device meta": "device 'meta' cannot be used here",
    # the line itself
    "--epoch 3": "perhaps you meant --epochs",
    "--set lr=0.1 --set momentum=0": "--set is given twice; give its values together, once",
    "surplus": "Unrecognized options: surplus",
}


@pytest.mark.parametrize("options", IN_A_STUDY)
def test_a_mistaken_study(options, place, capsys):
    assert_mistake(["table", "--out", "new", *options.split()], IN_A_STUDY[options], place, capsys)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ("tabel", f"unknown command 'tabel'; choose from {', '.join(COMMANDS)}"),
        ("study shift", "unknown study 'shift'; choose from label_noise, ablation, construction"),
        ("study nowhere.py:Mine", "no file nowhere.py to take Mine from"),
        (
            "study losses.py:Stranger",
            "losses.py:Stranger is not an experiments.studies.engine.Study",
        ),
        ("study label_noise --epochs -1", "epochs is -1"),
        ("study test_collapse --sizes", "--sizes is empty; give at least one value"),
        ("study gaussians --out notes.txt", "--out notes.txt is a file; give a new"),
        ("bench speed", "unknown benchmark 'speed'; choose from step"),
        ("train --ratio 1.5", "ratio is 1.5"),
        ("train --method mcr2 --subset 60 --out run", "run holds another run"),
        ("evaluate", "Missing from mcr2 evaluate: PATH"),
        ("evaluate absent", "absent holds no finished run"),
        ("evaluate run --threads 0", "threads is 0"),
        ("evaluate run --json thesis", "--json thesis is a folder"),
        ("evaluate run --selection first", "no selection 'first' in run; it has last, noisy_"),
        ("evaluate run --measure nc9", "no measure of run has 'nc9' in its key"),
        ("evaluate run --layers stage9", "run has no layer 'stage9'"),
        ("reread thesis", "thesis holds no finished run"),
        ("show thesis", "thesis holds no finished study"),
        ("report", "out is empty; give at least one folder"),
        ("report thesis", "thesis holds no finished study"),
        ("report study study", "out has repetitions: study study"),
        ("report thesis --page thesis", "--page thesis is a folder"),
        ("--install-completion fish", "--install-completion takes one of bash, zsh, tcsh"),
        # Folders of something else are left alone.
        *(
            (f"{command} --epochs 1 --out {out}", fragment)
            for command in ("table", "train")
            for out, fragment in (
                ("thesis", "thesis holds something else; give a new or an empty folder"),
                ("notes.txt", "notes.txt is a file; give a new or an empty folder"),
                ("notes.txt/deeper", "notes.txt"),
            )
        ),
        ("table --out cut", "cut/study.json is not a JSON file"),
        ("table --out list", "list/study.json is damaged"),
        (
            "table --out study --dataset fine.npz --set n_components=1",
            "this one has dataset=fine data=",
        ),
        ("table --out study --subset 100", "holds the study with data="),
        ("ablate --preset eps_sq --out study", "study holds the study"),
        ("redunet --out new --set store=foo", "unknown store 'foo'; choose from memory, disk"),
        ("redunet --out new --set lifting=4 kernel_size=9", "the images, 8 × 8, are smaller"),
        ("table --out new --methods ce redunet --set redunet.eps_sq=0", "eps_sq is 0"),
        (
            "table --out new --methods redunet --set measured_layers=stage2",
            "measured_layers: redunet is measured after its layers",
        ),
        ("redunet --patience 0 --out new", "patience is 0"),
    ],
)
def test_a_mistaken_command(arguments, fragment, place, capsys):
    assert_mistake(arguments.split(), fragment, place, capsys)


def test_a_library_that_cannot_be_imported_is_one_line(place, capsys, monkeypatch):
    def broken(*_, **__):
        raise ImportError("torchvision cannot be imported,\nreinstall it")

    monkeypatch.setattr(experiments.runs.prepare, "load_dataset", broken)
    assert_mistake(["table", "--out", "new"], "torchvision cannot be imported", place, capsys)


def python(place, *arguments, stdout=subprocess.PIPE):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_selection_and_a_measure_are_refused_before_anything_is_measured(place, monkeypatch):
    monkeypatch.setattr("experiments.runs.runner.evaluate", None)
    assert main(["evaluate", "run", "--selection", "first"]) == 2
    assert main(["evaluate", "run", "--measure", "nc9"]) == 2


def test_no_name_in_a_file_sends_a_terminal_anything(place, tmp_path, capsys):
    folder, _ = altered(place, tmp_path)
    record = load_run(folder).record
    save_record(folder, replace(record, spec=record.spec | {"method": "\x1b]0;title\x07.py:Loss"}))
    fragment = r"made with \x1b]0;title\x07.py:Loss, which is code"
    assert_mistake(["evaluate", str(folder)], fragment, tmp_path, capsys)
    assert main(["reread", str(folder)]) == 1
    assert fragment in capsys.readouterr().out


def test_a_loss_that_exits_has_failed(place, tmp_path):
    arguments = ["--method", "quitter.py:Loss", "--epochs", "1", "--out", str(tmp_path / "run")]
    with pytest.raises(RuntimeError, match=r"code of your own called sys\.exit\(0\)"):
        main(["train", *arguments, "--subset", "60", "--set", "backbone=resnet10_w8"])


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe that nobody reads")
@pytest.mark.parametrize("command", ["datasets", "--help", "table --help"])
def test_output_that_nobody_reads_is_no_error(command, place):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        result = python(place, "-m", "experiments.commands", *command.split(), stdout=nobody)
    assert (result.returncode, result.stderr) == (141, "")


def test_a_mistake_in_a_process_of_its_own(place):
    before = tree(place)
    result = python(place, "-m", "experiments.commands", "table", "--epochs", "ten")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "mcr2: Error parsing --epochs: " in result.stderr
    assert tree(place) == before


# ------------------------------------------------------------------------- runs that were altered


def altered(place, tmp_path):
    """A copy of the run in a folder of its own, and where its last weights are."""
    (tmp_path / "run").mkdir()
    for path in (place / "run").iterdir():
        (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    chosen = load_run(place / "run").evaluation.selections["last"]
    return tmp_path / "run", tmp_path / "run" / chosen["weights"]


def test_a_run_with_other_weights_or_a_damaged_record_is_not_evaluated(place, tmp_path, capsys):
    folder, weights = altered(place, tmp_path)
    whole, record = weights.read_bytes(), (folder / "record.json").read_text()

    def refused(fragment):
        assert_mistake(["evaluate", str(folder), "--threads", "1"], fragment, tmp_path, capsys)

    weights.write_bytes(whole[: len(whole) // 2])
    refused(f"{weights} is not a checkpoint of ours")
    weights.unlink()
    refused(f"{weights} is missing")
    # Those of another network, or of another epoch under this one's name.
    save_tensors(weights, {"backbone.conv": torch.zeros(3)})
    refused(f"{weights} is damaged: it is not what the run wrote")
    weights.write_bytes(whole)
    (folder / "record.json").write_text(record.replace('"seed": 0', '"seed": 5'))
    refused("record.json is damaged: its content is not what was written")


def test_a_run_on_data_that_have_changed_is_not_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("fine.npz", **arrays())
    training = TrainingConfig(epochs=0)
    spec = RunSpec("ce", "fine.npz", backbone="resnet10_w8", n_components=1, training=training)
    run(spec, tmp_path / "run", Machine("cpu"))
    np.savez("fine.npz", **arrays(x_train=arrays()["x_train"] + np.uint8(1)))
    assert_mistake(["evaluate", "run"], "fine.npz is not the data", tmp_path, capsys)


# ------------------------------------------------------------------------------------------- help

HELP = """
import contextlib, io, sys
from experiments.commands.cli import COMMANDS, main
from experiments.studies import STUDIES

studies = [["study", name] for name in STUDIES]
for command in ([], ["study"], *([name] for name, where in COMMANDS.items() if where), *studies):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(command if command == ["study"] else [*command, "--help"])
    assert "torch" not in sys.modules, command
    print("@", *command)
    print(out.getvalue())

"""


def test_help_imports_no_torch_and_names_what_there_is(tmp_path):
    result = python(tmp_path, "-c", HELP)
    assert result.returncode == 0, result.stderr
    texts = dict(re.findall(r"^@([^\n]*)\n(.*?)(?=^@|\Z)", result.stdout, re.M | re.S))
    texts = {name.strip(): re.sub(r"[│\s]+", " ", text) for name, text in texts.items()}
    assert len(texts) == 2 + sum(map(bool, COMMANDS.values())) + len(STUDIES)
    assert all("usage: mcr2" in text for text in texts.values())
    assert all(f" {name} " in texts[""] for name in COMMANDS)
    assert all(f" {name} " in texts["study"] for name in STUDIES)
    assert texts["table"] == texts["study label_noise"].replace("study label_noise", "table", 1)
    for name in ("table", "train", "redunet", "ablate"):
        assert f"--recipe {{{','.join(RECIPES)}}}" in texts[name]
        assert all(f"{kind}: " in texts[name] or f"{kind} (" in texts[name] for kind in RECIPES)
        described = re.search(r"--noise STR (.*?) \(default", texts[name])[1]
        assert all(re.search(rf"\b{kind}\b", described) for kind in NOISES)
    presets = re.search(r"Ready-made: ([\w, ]+)\. \(default", texts["ablate"])[1]
    assert re.split(r", | or ", presets) == list(ABLATIONS)


def test_alone_it_prints_a_short_guide_of_commands_that_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert len(printed.splitlines()) <= 12
    named = re.findall(r"^  mcr2 ([a-z]+) ", printed, re.M)
    assert {"doctor", "table", "show"} <= set(named) <= set(COMMANDS)


def test_the_doctor_says_what_is_there_and_what_is_not(place, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5 << 30))
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    extras = ("extra torchmetrics", "extra cleanlab", "extra slurm")
    said = (torch.__version__, "cpu, 1 thread\n", "digits", "5.0 GB free here", *extras)
    assert all(each in printed for each in (*said, "everything is there"))
    assert max(map(len, printed.splitlines())) <= 60
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert printed.endswith("\nnot fine: PyTorch, disk\n")
    assert printed.count("PROBLEM") == 2


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_written_where_the_shell_looks(shell, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["--install-completion", shell])
    assert stop.value.code == 0
    (script,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert str(script) in capsys.readouterr().out
    text = script.read_text()
    assert all(word in text for word in ("ablate", "--ratios", "label_noise"))
