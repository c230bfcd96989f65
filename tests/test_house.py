"""One of each thing, added to a copy of the packages by a file or a line, as CONTRIBUTING says.

All additions are made at once, and one study is run from the command line of the copy: each test
follows one addition into the study's records, table and figures.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcr2.records import load_run

ROOT = Path(__file__).parent.parent

LOSS = """
from mcr2.objectives import RateReduction

class Gentle(RateReduction):
    def loss(self, features, labels, context):
        loss, terms = super().loss(features, labels, context)
        return loss / 2, {**terms, "half": loss / 2}
"""

BACKBONE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, in_channels, feature_dim):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.ReLU())
        self.last = nn.Sequential(nn.Flatten(), nn.Linear(6 * 36, feature_dim))

    def forward(self, images):
        return self.last(self.first(images))
"""

NOISE = '''
"""Every redrawn label becomes class 0."""

from dataclasses import dataclass

from mcr2.noise.base import Noise


@dataclass(frozen=True)
class AllZero(Noise):
    def _redraw(self, rs, given, indices):
        return 0 * indices
'''

MEASURE = '''

def largest_norm(features):
    """Return the largest norm of a sample."""
    return float(features.norm(dim=1).max())
'''

READOUT = '''

def fit_middle(features, labels, *, num_classes):
    """Fit the nearest-class-mean classifier under another name."""
    return fit_class_mean(features, labels, num_classes=num_classes)
'''

RULE = '''

def second(accuracies):
    """Return the second evaluation."""
    return min(1, len(accuracies) - 1)
'''

FIGURE = '''

def draw_seeds(results):
    """Test accuracy against the feature dimension, one dot a run."""
    figure, axes = panels(1, 1, 4, 3)
    axes[0, 0].plot([r["feature_dim"] for r in results.rows], [0.5] * len(results.rows), "o")
    return figure
'''

STUDY = '''
"""Accuracy against the feature dimension.

    mcr2 study dimensions
"""

from dataclasses import dataclass, replace

from experiments.report.axis import RATIO, Axis
from experiments.studies.engine import GridStudy


@dataclass(frozen=True)
class Dimensions(GridStudy):
    """Vary the dimension of the features."""

    methods: tuple[str, ...] = ("ce", "mcr2")
    """Names of methods."""
    dimensions: tuple[int, ...] = (4, 8)
    """Dimensions of the features."""

    name = "dimensions"
    tables = ("accuracy", "diversity", "readouts")
    figures = ("accuracy", "seeds")

    def study_axes(self):
        return (Axis("feature_dim", "feature dimension"), RATIO)

    def specs(self):
        return [replace(s, feature_dim=d) for d in self.dimensions for s in self.grid(self.methods)]
'''


def insert(path: Path, before: str, line: str) -> None:
    """Put a line in front of another, which is there once."""
    text = path.read_text()
    assert text.count(before) == 1, (path, before, text.count(before))
    path.write_text(text.replace(before, line + before))


def place_before(path: Path, pattern: str, line: str) -> None:
    """Put a line in front of the first match of a pattern."""
    text = path.read_text()
    found = re.search(pattern, text, re.MULTILINE)
    assert found is not None, (path, pattern)
    path.write_text(text[: found.start()] + line + text[found.start() :])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A copy of the packages with one of each thing added, and a study that it ran."""
    house = tmp_path_factory.mktemp("house")
    for package in ("mcr2", "ce_baseline", "experiments"):
        shutil.copytree(ROOT / package, house / package)
    (house / "gentle.py").write_text(LOSS)
    (house / "tiny.py").write_text(BACKBONE)
    (house / "mcr2/noise/all_zero.py").write_text(NOISE)
    insert(
        house / "mcr2/noise/__init__.py",
        "from mcr2.noise.symmetric import",
        "from mcr2.noise.all_zero import AllZero\n",
    )
    insert(house / "mcr2/noise/__init__.py", '    "symmetric": ', '    "all_zero": AllZero,\n')
    rank = house / "mcr2/metrics/rank.py"
    rank.write_text(rank.read_text() + MEASURE)
    catalogue = house / "mcr2/evaluation/catalogue.py"
    place_before(
        catalogue,
        r'^    _rank\("stable_rank"',
        '    _rank("largest_norm", "largest norm", shown=True,\n'
        "          compute=lambda view: __import__('mcr2.metrics.rank', fromlist=['rank'])"
        ".largest_norm(view.features)),\n",
    )
    place_before(
        house / "mcr2/readouts.py", r"^#: Fit functions by name", READOUT.lstrip() + "\n\n"
    )
    insert(house / "mcr2/readouts.py", '    "class_mean": fit', '    "middle": fit_middle,\n')
    place_before(house / "mcr2/selection.py", r"^@dataclass.*\nclass Rule", RULE.lstrip() + "\n\n")
    insert(
        house / "mcr2/selection.py",
        '    "patience": Rule',
        '    "second": Rule(second, "epoch"),\n',
    )
    figures = house / "experiments/report/figures.py"
    place_before(figures, r"^#: Figures of a study by file name", FIGURE.lstrip() + "\n\n")
    insert(figures, '    "accuracy": draw_accuracy', '    "seeds": draw_seeds,\n')
    (house / "experiments/studies/dimensions.py").write_text(STUDY)
    insert(
        house / "experiments/studies/__init__.py",
        '    "label_noise": ',
        '    "dimensions": "experiments.studies.dimensions:Dimensions",\n',
    )
    command = (
        "study dimensions --methods ce gentle.py:Gentle --ratios 0.4 --subset 200 --epochs 4 "
        "--noise all_zero --out out --set backbone=tiny.py:Tiny evaluate_every=1"
    )
    outcome = subprocess.run(
        [sys.executable, "-m", "experiments.commands", *command.split()],
        cwd=house,
        env=os.environ | {"PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stderr + outcome.stdout
    out = house / "out"
    return {
        "out": out,
        "house": house,
        "rows": json.loads((out / "table.json").read_text())["rows"],
        "text": (out / "table.md").read_text(),
        "runs": [load_run(folder) for folder in sorted((out / "runs").iterdir())],
        "printed": outcome.stdout,
    }


def test_a_study_is_a_file_and_a_line_and_has_a_command_line(study):
    assert {(r["feature_dim"], r["method"]) for r in study["rows"]} == {
        (d, m) for d in (4, 8) for m in ("ce", "gentle.py:Gentle")
    }
    assert len(study["runs"]) == 4
    assert "feature dimension" in study["text"]
    help_text = subprocess.run(
        [sys.executable, "-m", "experiments.commands", "study", "dimensions", "--help"],
        cwd=study["house"],
        env=os.environ | {"PYTHONPATH": str(study["house"])},
        capture_output=True,
        text=True,
    ).stdout
    assert "--dimensions" in help_text
    assert "--ratios" in help_text


def test_a_loss_is_a_file(study):
    runs = [r for r in study["runs"] if r.record.spec["method"] == "gentle.py:Gentle"]
    assert len(runs) == 2
    assert all("half" in entry["terms"] for r in runs for entry in r.record.history[1:])
    assert "gentle.py:Gentle" in study["text"]


def test_a_backbone_is_a_file(study):
    run = study["runs"][0]
    assert run.record.spec["backbone"] == "tiny.py:Tiny"
    assert {row["status"] for row in study["rows"]} == {"finished"}


def test_a_noise_is_a_file_and_a_line(study):
    noise = study["runs"][0].record.noise
    assert noise["kind"] == "all_zero"
    assert noise["redrawn"] == 80
    transition = noise["transition"]
    assert all(row[0] + row[k] == pytest.approx(1) for k, row in enumerate(transition) if k)


def test_a_measure_is_a_function_and_a_line(study):
    run = study["runs"][0]
    key = "features/test/-/-/largest_norm"
    assert run.evaluation.selections["last"]["measures"][key] > 0
    assert all(entry["measures"][key] > 0 for entry in run.record.history)
    assert all(key in row["measures"] for row in study["rows"])
    assert "largest\\_norm" in study["text"] or "largest_norm" in study["text"]
    with open(study["out"] / "table.csv") as file:
        assert key in next(csv.reader(file))


def test_a_readout_is_a_function_and_a_line(study):
    run = study["runs"][0]
    measures = run.evaluation.selections["last"]["measures"]
    names = [f"features/test/clean/{name}/accuracy" for name in ("middle", "class_mean")]
    assert measures[names[0]] == measures[names[1]]
    assert "middle" in study["text"]


def test_a_selection_rule_is_a_function_and_a_line(study):
    rows = [row for row in study["rows"] if row["selection"] == "second"]
    assert len(rows) == 4
    assert {row["selected_epoch"] for row in rows} == {1}
    assert "second" in study["text"]


def test_a_figure_is_a_function_and_a_line(study):
    assert (study["out"] / "seeds.png").read_bytes().startswith(b"\x89PNG")
    assert (study["out"] / "accuracy.png").exists()
