"""Studies through the command line: what they leave, share, repeat, survive and measure again."""

import contextlib
import io
import json
import re
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from experiments.commands.cli import main, parse
from experiments.report.evaluation import run_table
from experiments.runs import runner
from experiments.runs.machine import Machine
from experiments.runs.runner import evaluate_again, evaluate_fully, run
from experiments.runs.specs import RunSpec
from experiments.studies.engine import command_line
from experiments.studies.label_noise import LabelNoise
from mcr2.data import DATASETS, availability
from mcr2.records import load_run, save_evaluation
from mcr2.selection import SELECTIONS
from mcr2.training import TrainingConfig

#: What makes a run of a second; the methods' batch sizes differ, as in the recipe.
SMALL = ["--subset", "100", "--set", "backbone=resnet10_w8", "batch_size=50", "mcr2.batch_size=90"]
SMALL += ["evaluate_every=1", "--seeds", "0"]
GRID = [*SMALL, "--epochs", "2", "--ratios", "0", "0.5"]


def mcr2(*arguments, figures=("accuracy",)):
    """Run the command line here; return its status, what it printed and what it complained of."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelNoise, "figures", figures)  # all of them take longer than the runs
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(a) for a in arguments])
    return status, out.getvalue(), err.getvalue()


def table(out, *arguments, **options):
    status, printed, _ = mcr2("table", "--out", out, "--jobs", 2, *arguments, **options)
    return status, printed, json.loads((out / "table.json").read_text())


def runs(out):
    """The runs of a study by method, ratio and seed."""
    found = [load_run(path.parent) for path in sorted(out.glob("runs/*/record.json"))]
    return {tuple(r.record.spec[k] for k in ("method", "ratio", "seed")): r for r in found}


def stamps(out, *suffixes):
    """When and with what the files of runs were written."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in out.glob("runs/*/*")
        if path.suffix in (suffixes or (".json", ".safetensors"))
    }


def timeless(rows):
    return [{k: v for k, v in row.items() if k != "wall_seconds"} for row in rows]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study of 2 methods x 2 ratios x 1 seed, and what it printed."""
    out = tmp_path_factory.mktemp("study") / "out"
    status, printed, _ = table(out, *GRID, figures=LabelNoise.figures)
    assert status == 0
    return out, printed


@pytest.fixture(scope="module")
def extended(study, tmp_path_factory):
    """The same study with another seed of one ratio, what was there before, and its table."""
    out = tmp_path_factory.mktemp("extended") / "out"
    shutil.copytree(study[0], out)
    before = stamps(out)
    status, _, value = table(out, *SMALL[:-1], "1", "0", "--epochs", "2", "--ratios", "0.5")
    assert status == 0
    return out, before, value


def test_table_json_says_what_the_records_and_evaluations_say(study):
    out, _ = study
    value, found = json.loads((out / "table.json").read_text()), runs(out)
    assert (value["dataset"], value["recipe"]) == ("digits", "quick")
    assert value["environment"]["torch"] == torch.__version__
    assert {"python", "numpy", "device", "threads"} <= value["environment"].keys()
    names = [(row["method"], row["ratio"], row["seed"], row["selection"]) for row in value["rows"]]
    assert sorted(names) == sorted((*run, rule) for run in found for rule in SELECTIONS)
    assert {name[0] for name in names} == {"ce", "mcr2"}
    for row in value["rows"]:
        record, evaluation = (r := found[row["method"], row["ratio"], 0]).record, r.evaluation
        chosen, by = evaluation.selections[row["selection"]], record.readout
        assert by == {"ce": "head", "mcr2": "nearest_subspace@3"}[row["method"]] == row["readout"]
        measures = chosen["measures"]
        assert row["test_accuracy"] == measures[f"features/test/clean/{by}/accuracy"]
        for name in ("fit_noisy", "fit_corrupted", "recovered"):
            assert row[name] == measures[f"features/train/noisy/{by}/{name}"]
            # There is nothing wrong to fit at ratio 0.
            assert (row[name] is None) == (row["ratio"] == 0 and name != "fit_noisy")
        assert (row["wrong_labels"] == 0) == (row["ratio"] == 0)
        assert row["selected_epoch"] in [entry["epoch"] for entry in record.history] == [0, 1, 2]
        assert (row["epochs"], row["steps"]) == (2, record.steps)
        assert row["wall_seconds"] == record.wall_seconds + evaluation.seconds
        assert 0 < record.evaluation_seconds < record.wall_seconds
        assert (row["status"], row["reason"], row["labels"]) == (
            "finished",
            None,
            record.proof["labels"],
        )
        assert "features/train/noisy/-/nc1" in row["measures"].keys() <= measures.keys()
        assert all(measures[key] == held for key, held in row["measures"].items())
    accuracy = {name: row["test_accuracy"] for name, row in zip(names, value["rows"], strict=True)}
    assert all(accuracy[(*name[:3], "oracle")] >= held for name, held in accuracy.items())


def test_a_study_prints_its_tables_and_leaves_them_with_figures(study):
    out, printed = study
    markdown = (out / "table.md").read_text(encoding="utf-8")
    rows = json.loads((out / "table.json").read_text())["rows"]
    assert len((out / "table.csv").read_text(encoding="utf-8").splitlines()) == 1 + len(rows)
    for row in rows:
        words = [row["method"], row["selection"], row["readout"]]
        (line,) = (ln for ln in markdown.splitlines() if ln.startswith(f"| {' | '.join(words)} |"))
        entries = line.strip("| ").split(" | ")
        assert entries[3 if row["ratio"] == 0 else 4] == f"{row['test_accuracy']:.3f}"
        if row["selection"] in ("last", "noisy_validation"):
            _, accuracies = printed.split(f"\n{row['selection']}\n", 1)
            (line, *_) = (
                ln for ln in accuracies.splitlines() if ln.startswith(f"  {row['method']} ")
            )
            assert line.split() == [row["method"], *entries[3:]]
    said = " ".join(printed.split())
    assert "three times running) not reached, 2 of 2 runs, fit_noisy 0." in said
    for name in set(LabelNoise.figures) - {"confusion"}:  # of noise that is not uniform
        assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_off_a_terminal_a_study_tells_its_plan_and_what_is_left(study):
    out, printed = study
    first, *told = printed.splitlines()
    assert first == f"4 runs in {out}, 2 at a time"
    assert sum(line.startswith("estimate, about ") for line in told) == 1
    ended = [line for line in told if re.match(r"\[\d/4\] ", line)]
    assert len(ended) == 4
    assert "about " in ended[0]
    assert ended[-1].endswith(" s)")
    _, again, _ = table(out, *GRID)
    assert again.startswith(
        f"4 runs in {out}, 2 at a time, 4 there already\n[1/4] ce, ratio 0, seed 0:"
    )
    assert again.count(": there already, test accuracy ") == 4
    assert "left" not in again


def test_the_command_of_a_study_is_the_one_that_made_it(study):
    out, _ = study
    command = shlex.split(json.loads((out / "table.json").read_text())["command"])
    assert parse(command[1:]) == parse(["table", "--out", str(out), "--jobs", "2", *GRID])
    varied = ["study", "ablation", "--vary", "lr=0.1,1", "eps_sq=1", "--vary", "gamma1=1", "--amp"]
    assert parse(shlex.split(command_line(parse(varied)))[1:]) == parse(varied)


def test_tables_are_shown_again_without_data_or_runs(study, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(study[0] / "table.json", out)
    status, printed, _ = mcr2("show", out)
    assert status == 0
    named = re.findall(r"^\[(\w+)\]$", printed, re.M)
    assert {"accuracy", "collapse", "readouts_clean"} <= set(named)
    assert "three times running) not reached, " in printed
    alone = mcr2("show", out, "differences")[1]
    assert alone.strip() in printed
    status, _, complaint = mcr2("show", out, "accuracies")
    assert (status, complaint.count("\n")) == (2, 1)
    assert "choose from accuracy, noise, differences" in complaint
    held = json.loads((out / "table.json").read_text())
    for damage in ({"axes": []}, {"rows": [{}]}, {"tables": {"a": 3}}, {"reference": [1]}):
        (out / "table.json").write_text(json.dumps(held | damage))
        status, _, complaint = mcr2("show", out)
        assert (status, complaint.count("\n")) == (2, 1), damage
        assert "table.json is damaged, or older" in complaint


def test_an_extended_study_runs_only_what_is_new(extended):
    out, before, value = extended
    after = stamps(out)
    assert {path: after[path] for path in before} == before
    assert len(runs(out)) == 4 + 2
    # Its table is of what was asked for now.
    assert {(row["ratio"], row["seed"]) for row in value["rows"]} == {(0.5, 0), (0.5, 1)}
    assert "95 % interval over 2 seeds" in (out / "table.md").read_text(encoding="utf-8")
    # Both methods saw the same labels, so that each seed is a pair.
    rows = [row for row in value["rows"] if row["selection"] == "last"]
    last = {(row["method"], row["seed"]): row["test_accuracy"] for row in rows}
    (paired,) = (d for d in value["differences"] if d["selection"] == "last")
    mean = sum(last["mcr2", seed] - last["ce", seed] for seed in (0, 1)) / 2
    assert (paired["where"], paired["seeds"]) == ({"ratio": 0.5}, [0, 1])
    assert paired["estimate"]["mean"] == pytest.approx(mean)


def test_the_records_prove_a_fair_comparison(extended):
    found = {name: run.record for name, run in runs(extended[0]).items()}
    for ratio, seed in ((0.0, 0), (0.5, 0), (0.5, 1)):
        ce, mcr2 = found["ce", ratio, seed], found["mcr2", ratio, seed]
        for name in ("backbone", "feature_dim", "projection", "stem_stride", "shift", "flip"):
            assert ce.spec[name] == mcr2.spec[name]
        # "sampling" is the first epoch's order of samples, "augmentation" its pixels.
        shared = {"initial_weights", "labels", "held_out", "sampling", "augmentation"}
        assert ce.proof.keys() == shared
        for name in ("proof", "seeds", "noise", "data"):
            assert getattr(ce, name) == getattr(mcr2, name)
        assert ce.steps > mcr2.steps  # although their batches differ
        noise = ce.noise
        assert len(noise["indices"]) == noise["redrawn"] == ratio * 100
        assert noise["wrong"] == len(noise["wrong_indices"])
        assert set(noise["wrong_indices"]) <= set(noise["indices"])
    # A ratio changes labels and nothing else, a seed everything.
    clean, noisy, other = (found["ce", *name].proof for name in ((0, 0), (0.5, 0), (0.5, 1)))
    assert {name for name in shared if clean[name] != noisy[name]} == {"labels"}
    assert not set(noisy.values()) & set(other.values())


def test_train_leaves_the_run_of_a_study_and_does_not_train_twice(study, tmp_path):
    out = tmp_path / "run"
    arguments = [
        "train",
        "--method",
        "mcr2",
        "--ratio",
        0.5,
        "--out",
        out,
        *SMALL[:-2],
        "--epochs",
        2,
    ]
    status, printed, _ = mcr2(*arguments)
    assert status == 0
    alone, twin = load_run(out), runs(study[0])["mcr2", 0.5, 0]
    assert alone.record.key == twin.record.key
    assert alone.evaluation.selections == twin.evaluation.selections
    accuracy = alone.evaluation.selections["last"]["measures"][
        "features/test/clean/nearest_subspace@3/accuracy"
    ]
    assert f"{accuracy:.4f}" in printed
    before = (out / "record.json").stat().st_mtime_ns
    assert mcr2(*arguments)[:2] == (0, printed)
    assert (out / "record.json").stat().st_mtime_ns == before


# ------------------------------------------------------------------------------- measured again


def test_evaluate_reads_what_the_evaluation_says_and_further_layers(study, tmp_path):
    out, _ = study
    before, found = stamps(out), runs(out)["mcr2", 0.5, 0]
    again = evaluate_again(found.folder, device="cpu")
    assert again.evaluation.selections == found.evaluation.selections
    status, printed, _ = mcr2("evaluate", found.folder, "--layers", "stage2", "--threads", 1)
    assert status == 0
    for family in ("Accuracy", "Rank", "Collapse", "Margins", "Coding rates"):
        assert f"\nfeatures: {family}" in printed
        assert f"\nstage2: {family}" in printed
    assert "measures are the same as in evaluation.json" in printed
    arguments = ["--measure", "test/clean", "--json", tmp_path / "m", "--selection", "oracle"]
    status, printed, _ = mcr2("evaluate", runs(out)["ce", 0.5, 0].folder, *arguments)
    assert (status, " same " in printed, "differs" in printed) == (0, True, False)
    written = json.loads((tmp_path / "m").read_text())["selections"]
    assert written == json.loads(json.dumps(runs(out)["ce", 0.5, 0].evaluation.selections))
    assert stamps(out) == before


def test_reread_measures_layers_of_a_finished_study_without_training(study, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(study[0], out)
    for found in runs(out).values():
        if found.record.spec["ratio"] == 0:
            shutil.rmtree(found.folder)
    before, files = runs(out), stamps(out, ".safetensors")
    status, printed, _ = mcr2("reread", out, "--layers", "stage2")
    assert status == 0
    assert printed.count("measured again in") == 2
    assert stamps(out, ".safetensors") == files
    for name, again in runs(out).items():
        assert again.record == before[name].record
        assert again.evaluation.layers == ["stage2"]
        for rule, chosen in again.evaluation.selections.items():
            held = before[name].evaluation.selections[rule]["measures"]
            assert chosen["measures"].items() >= held.items()
            assert "stage2/train/noisy/-/nc1" in chosen["measures"].keys() - held.keys()
    # The study is shown anew, of the runs that are there.
    value = json.loads((out / "table.json").read_text())
    assert {row["ratio"] for row in value["rows"]} == {0.5}
    assert "stage2/train/noisy/-/nc1" in value["rows"][0]["measures"]
    assert f"\n2 runs in {out}: table.json" in printed


def test_what_is_damaged_or_of_an_older_version_is_done_again_and_nothing_else(study, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(study[0], out)
    before, files = runs(out), stamps(out)
    evaluated, older, trained, left = (
        before[key].folder
        for key in (("ce", 0.0, 0), ("mcr2", 0.0, 0), ("ce", 0.5, 0), ("mcr2", 0.5, 0))
    )
    text = (evaluated / "evaluation.json").read_text()
    (evaluated / "evaluation.json").write_text(text[: len(text) // 2])
    save_evaluation(older, replace(before["mcr2", 0.0, 0].evaluation, version="of last year"))
    text = (trained / "record.json").read_text()
    (trained / "record.json").write_text(text.replace('"steps": ', '"steps": 1', 1))
    for folder, name in ((evaluated, "evaluation.json"), (trained, "record.json")):
        with pytest.raises(ValueError, match=f"{folder.name}/{name} is "):
            load_run(folder)
    assert parse(["study", "label_noise", *GRID]) == parse(["table", *GRID])
    status, _, complaints = mcr2("study", "label_noise", "--out", out, "--jobs", 2, *GRID)
    assert status == 0
    assert complaints.count("set aside as") == complaints.count("\n") == 2
    assert f"{evaluated / 'evaluation.json'} is not a JSON file" in complaints
    assert f"{trained / 'record.json'} is damaged" in complaints
    after = stamps(out)
    redone = {path.relative_to(out / "runs") for path in files if after[path] != files[path]}
    assert {path for path in redone if path.parts[0] != trained.name} == {
        Path(evaluated.name, "evaluation.json"),
        Path(older.name, "evaluation.json"),
    }
    assert (trained / "record.json.damaged").exists()
    assert not list(left.glob("*.damaged"))
    for name, again in runs(out).items():
        assert content(again) == content(before[name])
    rows = [json.loads((o / "table.json").read_text())["rows"] for o in (study[0], out)]
    assert timeless(rows[0]) == timeless(rows[1])


def test_an_epoch_that_several_rules_select_is_evaluated_once(monkeypatch, tmp_path):
    finals = []
    layer = "stage2/train/noisy/-/nc1"

    def counting(*arguments, final, **options):
        finals.append(final)
        return evaluate_fully(*arguments, final=final, **options)

    monkeypatch.setattr(runner, "evaluate_fully", counting)
    training = TrainingConfig(epochs=1, batch_size=50)
    spec = RunSpec("ce", subset=100, backbone="resnet10_w8", training=training)
    found = run(replace(spec, measured_layers=("stage2",)), tmp_path, Machine("cpu"))
    selections = found.evaluation.selections
    assert list(selections) == list(SELECTIONS)
    assert len(finals) == len({chosen["epoch"] for chosen in selections.values()})
    # The classifiers that take longest are fitted at the last epoch alone.
    assert finals.count(True) == 1
    for chosen in selections.values():
        solved = "features/test/clean/linear_svm/accuracy" in chosen["measures"]
        assert solved == (chosen["epoch"] == 1)
    # A layer that the spec names is measured along the run, too.
    assert found.evaluation.layers == ["stage2"]
    assert all(layer in e["measures"] for e in (*found.record.history, *selections.values()))


# ------------------------------------------------------------------------------ code of one's own

LOSS = """
from mcr2.objectives import Objective

class Pull(Objective):
    def loss(self, features, labels, context):
        return STRENGTH * (features**2).mean(), {}
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A study with a user's loss, run again when that was edited; and the file, a trap by now."""
    place = tmp_path_factory.mktemp("own")
    file, out = place / "loss.py", place / "out"
    found = []
    for strength in ("0.1", "0.9"):  # the same size: only the content tells
        file.write_text(LOSS.replace("STRENGTH", strength))
        arguments = ["--methods", "mcr2", f"{file}:Pull", "--ratios", "0", "--epochs", "1"]
        status, _, value = table(out, *SMALL, *arguments)
        assert status == 0
        found.append((stamps(out), value))
    (place / "moved").mkdir()
    shutil.copy(file, place / "moved" / "loss.py")
    file.write_text(f"open({str(place / 'sprung')!r}, 'w')\n{LOSS}")
    yield out, file, found
    assert not (place / "sprung").exists()


def test_editing_a_loss_runs_its_runs_anew_and_no_others(own):
    _, _, ((first, _), (second, value)) = own
    assert {path: second[path] for path in first} == first
    (new,) = {path.parent.name for path in second.keys() - first.keys()}
    assert new.startswith("loss-Pull-ratio0.0-seed0-")
    assert {row["run"] for row in value["rows"]} > {new}
    assert len({row["run"] for row in value["rows"]}) == 2
    folders = {path.parent for path in second if "Pull" in path.parent.name}
    losses = {load_run(folder).record.history[-1]["loss"] for folder in folders}
    assert len(losses) == len(folders) == 2


def test_a_record_that_names_a_loss_is_read_without_importing_it(own):
    _, file, ((first, _), (second, _)) = own
    (new,) = {path.parent for path in second.keys() - first.keys()}
    (old,) = {path.parent for path in first if "Pull" in path.parent.name}
    found = load_run(new)
    assert found.record.spec["method"] == f"{file}:Pull"
    assert "loss.py:Pull on digits" in run_table(found).text()
    assert mcr2("evaluate", new) == (
        2,
        "",
        f"mcr2: the run was made with {file}:Pull, which is code; name it "
        f"(--code {file}:Pull) to run it\n",
    )
    # Named in another place, it is the same code, of the newer run alone.
    moved = ["--code", file.parent / "moved" / "loss.py:Pull"]
    assert mcr2("evaluate", new, *moved)[0] == 0
    status, _, complaint = mcr2("evaluate", old, *moved)
    assert status == 2
    assert f"is not the file that {old} was run with" in complaint
    assert not (file.parent / "sprung").exists()


def test_reread_imports_only_code_that_is_named(own, tmp_path):
    _, file, ((first, _), _) = own
    out = tmp_path / "out"
    shutil.copytree(own[0], out)
    (old,) = {path.parent.name for path in first if "Pull" in path.parent.name}
    shutil.rmtree(out / "runs" / old)
    status, printed, _ = mcr2("reread", out)
    assert status == 1
    assert "not measured, the run was made with" in printed
    status, printed, _ = mcr2("reread", out, "--code", file.parent / "moved" / "loss.py:Pull")
    assert status == 0
    assert printed.count("measured again in") == 2
    assert "is not shown anew (" in printed


STUDY = """
from dataclasses import dataclass, replace
from typing import ClassVar
from experiments.report.axis import Axis
from experiments.report.table import Table
from experiments.studies.engine import GridStudy

def dimensions(results):
    rows = tuple((str(row["feature_dim"]), row["selection"]) for row in results.rows)
    return Table("How wide", ("feature_dim", "selection"), rows)

@dataclass(frozen=True)
class Widths(GridStudy):
    '''Vary the features' dimension.'''

    dims: tuple[int, ...] = (8, 16)
    name: ClassVar[str] = "widths"
    tables = (dimensions,)
    figures = ()

    def study_axes(self):
        return (Axis("feature_dim", "dimensions"),)

    def specs(self):
        return [replace(s, feature_dim=d) for s in self.grid(["mcr2"]) for d in self.dims]
"""


def test_a_study_of_ones_own_is_a_class_in_a_file(tmp_path):
    file, out = tmp_path / "mine.py", tmp_path / "out"
    file.write_text(STUDY)
    arguments = ["study", f"{file}:Widths", "--out", out, "--ratios", 0, *SMALL, "--epochs", 0]
    status, printed, _ = mcr2(*arguments, "--dims", 8, 12)
    assert status == 0
    assert "How wide\n" in printed
    assert "mcr2, feature_dim 12, seed 0: test accuracy" in printed
    value = json.loads((out / "table.json").read_text())
    assert [row["feature_dim"] for row in value["rows"]] == [8] * 5 + [12] * 5
    folders = sorted(path.name.rpartition("-")[0] for path in (out / "runs").iterdir())
    assert folders == ["mcr2-feature_dim12-seed0", "mcr2-feature_dim8-seed0"]
    assert "the study widths is not shown anew (unknown study" in mcr2("reread", out)[1]


# ------------------------------------------------------------------------------ ends before its end

FAILING = """
from pathlib import Path
from mcr2.objectives import Objective

class Raises(Objective):
    def loss(self, features, labels, context):
        if not Path(__file__).with_name("mended").exists():
            raise RuntimeError("this loss is not ready")
        return features.sum(), {}

class Vanishes(Objective):
    def loss(self, features, labels, context):
        return features.sum() * float("nan"), {}
"""


def test_a_run_that_fails_has_a_reason_and_the_others_finish(tmp_path):
    file, out = tmp_path / "failing.py", tmp_path / "out"
    file.write_text(FAILING)
    methods = ["ce", f"{file}:Raises", f"{file}:Vanishes"]
    arguments = [
        *SMALL[:-4],
        "--seeds",
        "0",
        "--methods",
        *methods,
        "--ratios",
        "0.5",
        "--epochs",
        "1",
    ]

    def by_method(value):
        return {row["method"]: row for row in value["rows"] if row["selection"] == "last"}

    status, printed, value = table(out, *arguments)
    assert status == 1
    rows = by_method(value)
    assert list(rows) == methods
    assert [rows[m]["status"] for m in methods] == ["finished", "failed", "failed"]
    assert "RuntimeError: this loss is not ready" in rows[methods[1]]["reason"]
    assert "loss stopped being finite in epoch 1" in rows[methods[2]]["reason"]
    for failed in (rows[method] for method in methods[1:]):
        for measure in ("test_accuracy", "fit_noisy", "fit_corrupted", "recovered"):
            assert failed[measure] is None
        assert f"failed, {failed['reason']}" in printed
        assert failed["reason"] in (out / "table.md").read_text(encoding="utf-8")
    assert "\n\n\n" not in printed
    assert {r["selection"] for r in value["rows"] if r["status"] == "failed"} == set(SELECTIONS)
    # An exception may be mended from outside and is tried again; a loss that is not finite would
    # stop being finite again.
    before = stamps(out)
    (tmp_path / "mended").touch()
    status, _, value = table(out, *arguments)
    assert status == 1
    again = by_method(value)
    assert [again[m]["status"] for m in methods] == ["finished", "finished", "failed"]
    assert again[methods[2]] == rows[methods[2]]
    after = stamps(out)
    kept = {path for path in before if not path.parent.name.startswith("failing-Raises")}
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


class KilledError(Exception):
    pass


def content(found):
    """A run without its times and its place."""
    record, evaluation = asdict(found.record), asdict(found.evaluation)
    del record["wall_seconds"], record["evaluation_seconds"], evaluation["seconds"]
    for entry in record["history"]:
        del entry["seconds"]
    return record, evaluation


def test_a_run_killed_in_its_middle_continues_to_the_same_record(tmp_path):
    training = TrainingConfig(epochs=5, batch_size=50, evaluate_every=2)
    spec = RunSpec("ce", subset=100, ratio=0.5, backbone="resnet10_w8", training=training)
    machine = Machine("cpu")
    whole = run(spec, tmp_path / "whole", machine)

    def kill(told):
        if told.epoch == 3:
            raise KilledError

    killed = tmp_path / "killed"
    with pytest.raises(KilledError):
        run(spec, killed, machine, progress=kill, checkpoint_seconds=0)
    assert not (killed / "record.json").exists()
    assert (killed / runner.CHECKPOINT).exists()
    told = []
    resumed = run(spec, killed, machine, progress=lambda p: told.append(p.epoch))
    assert told == [4, 5]
    assert content(resumed) == content(whole)
    assert not (killed / runner.CHECKPOINT).exists()
    for kept in whole.record.weights.values():
        assert (killed / kept["file"]).read_bytes() == (whole.folder / kept["file"]).read_bytes()


def test_datasets_lists_what_is_there_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, _ = mcr2("datasets", "--data-root", tmp_path)
    assert status == 0
    lines = printed.splitlines()
    rows = {line.split()[0]: line for line in lines[3 : 3 + len(DATASETS)]}
    assert list(rows) == list(DATASETS)
    said = "".join(printed.split())  # lines are wrapped
    for name, (found, _) in availability(tmp_path).items():
        assert rows[name].endswith(f"  {found or 'missing'}")
        assert bool(found) or f"{name}:lookedforin{tmp_path}" in said
