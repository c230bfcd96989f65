"""What features learnt on some classes are worth for classes that were held out.

    mcr2 study transfer
    mcr2 study transfer --dataset ../shared/data/omniglot-small.npz --set stem_stride=2

18 runs of the recipe ``quick`` (2, 3 and 5 of the ten digits) and 300 episodes a few-shot accuracy,
about 2 minutes on two cores. Galanti et al. (2022) say that classes which collapse in training are
also collapsed on test samples and, the more classes there were, on classes never seen, so that a
few samples of these suffice. Expect CDNV on held-out classes to fall, and few-shot accuracy to
rise, with the number of source classes; with five of them hardly to collapse at all.

Axes: the number of source classes, the first ones of the data set, in whose order the last
``held_out`` are held out for all. Every layer is measured: pixels, the stages averaged over
positions, the features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.report.axis import Axis
from experiments.report.statistics import shown, verdict
from experiments.report.table import Table
from experiments.studies.claims import STAGES
from experiments.studies.measured import (
    MeasuredStudy,
    Row,
    by_seed,
    entries,
    over_axis,
    over_seeds,
    rise,
    values_at,
)

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.report.results import Results
    from experiments.runs.executors import Outcome
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec

#: Numbers of source classes to choose from, of which the largest that a data set allows are taken.
SOURCES = (2, 3, 5, 10, 20, 50, 100, 200)
MOST_SOURCES, LEAST_HELD_OUT = 6, 5

#: Classes of an episode at most, and samples of each to classify.
WAYS, QUERIES = 5, 15
SHOTS = (1, 5)

#: Classifiers of episodes; a class's subspace has as many dimensions as samples, three at most.
CLASSIFIERS = ("class_mean", "ridge", "nearest_subspace")

#: The layer and the accuracy that claims are about.
LAST, ACCURACY = "features", "class_mean_5"

#: One layer is better than another, or one method, from this difference in accuracy on.
MARGIN = 0.01

#: What is measured of each layer, by name, and what panels call it.
CDNV = {"cdnv_train": "-", "cdnv_test": "--", "cdnv_held_out": ":"}
SETS = {"cdnv_train": "source, train", "cdnv_test": "source, test", "cdnv_held_out": "held out"}
SOURCE = Axis("classes", "number of source classes")


def few_shot_name(classifier: str, shots: int) -> str:
    """Return under which name an accuracy stands in rows.

    Example:
        >>> few_shot_name("class_mean", 5)
        'class_mean_5'
    """
    return f"{classifier}_{shots}"


def fit_of(classifier: str, shots: int) -> Callable[..., Any]:
    """Return what fits a classifier on the samples of an episode."""
    from mcr2.readouts import fit_readout

    components = f"@{min(shots, 3)}" if classifier == "nearest_subspace" else ""
    return partial(fit_readout, classifier + components)


def few_shots(
    features: Tensor, labels: Tensor, *, episodes: int, queries: int, seed: int
) -> dict[str, float]:
    """Return the few-shot accuracies of features, and half-widths over episodes as ``NAME±``.

    All classifiers, layers and methods see the same episodes at a seed.
    """
    import torch

    from mcr2.metrics.few_shot import few_shot

    ways = min(WAYS, len(torch.unique(labels)))
    found: dict[str, float] = {}
    for shots in SHOTS:
        for classifier in CLASSIFIERS:
            generator = torch.Generator().manual_seed(seed)
            how = {"shots": shots, "ways": ways, "queries": queries, "episodes": episodes}
            one = few_shot(features, labels, fit_of(classifier, shots), **how, generator=generator)
            name = few_shot_name(classifier, shots)
            found |= {name: one.mean, f"{name}±": one.half_width}
    return found


# --- claims


def grows(results: Results, name: str, sign: int) -> dict[str, list[bool | None]]:
    """Whether a measure of the features rises (sign 1) or falls (−1), by method and seed."""
    rises = {
        called: [
            rise(each, results.values())
            for each in over_axis(results, name, method=method, layer=LAST).values()
        ]
        for method, called in results.names.items()
    }
    return {n: [None if r is None else sign * r > 0 for r in each] for n, each in rises.items()}


def goes_with(results: Results, method: str) -> bool | None:
    """Whether, over source classes and seeds, a smaller CDNV goes with a higher accuracy."""
    from scipy.stats import spearmanr

    pairs = [
        (row["cdnv_held_out"], row[ACCURACY])
        for row in results.extra
        if row["method"] == method and row["layer"] == LAST and row["cdnv_held_out"] is not None
    ]
    if len(pairs) < 3 or min(len({pair[i] for pair in pairs}) for i in (0, 1)) < 2:
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic) <= -0.8


def by_layer(results: Results, method: str) -> list[dict[str, float]]:
    """Return the accuracy of every layer with the most source classes, seed by seed."""
    most = max(results.values())
    rows = [r for r in results.extra if r["method"] == method and r["classes"] == most]
    return [
        {row["layer"]: row[ACCURACY] for row in rows if row["seed"] == seed}
        for seed in dict.fromkeys(row["seed"] for row in rows)
    ]


def beats_pixels(accuracies: dict[str, float]) -> bool:
    """Whether the features tell held-out classes apart better than pixels, by the margin."""
    return accuracies[LAST] >= accuracies["pixels"] + MARGIN


def stage_is_better(accuracies: dict[str, float]) -> bool | None:
    """Whether the best stage beats the features by the margin.

    Example:
        >>> stage_is_better({"pixels": 0.9, "stage1": 0.5, "features": 0.7})
        False
    """
    stages = [value for layer, value in accuracies.items() if layer not in ("pixels", LAST)]
    return max(stages) >= accuracies[LAST] + MARGIN if stages else None


def verdicts(results: Results) -> list[str]:
    """Return a line for each claim."""
    ends = f"{min(results.values())} to {max(results.values())} source classes"
    lines = [
        verdict(
            "Held-out classes are the more collapsed the more source classes there were",
            grows(results, "cdnv_held_out", -1),
            f"in every seed CDNV of their features falls from {ends}",
        ),
        verdict(
            "Held-out classes are told apart the better the more source classes there were",
            grows(results, ACCURACY, 1),
            f"in every seed 5-shot accuracy by the nearest class mean rises from {ends}",
        ),
        verdict(
            "Held-out classes that are more collapsed are told apart better",
            {name: goes_with(results, method) for method, name in results.names.items()},
            "the rank correlation of CDNV and 5-shot accuracy over all runs is at most -0.8",
        ),
        *(
            verdict(
                claim,
                {n: list(map(judge, by_layer(results, m))) for m, n in results.names.items()},
                "with the most source classes, in every seed 5-shot accuracy by the nearest class "
                f"mean is at least {MARGIN:g} higher",
            )
            for claim, judge in (
                ("Features tell held-out classes apart better than pixels do", beats_pixels),
                ("A stage of the network transfers better than the features", stage_is_better),
            )
        ),
    ]
    if {"ce", "mcr2"} <= results.names.keys():
        most = max(results.values())
        ours, theirs = (
            by_seed(results, ACCURACY, method=method, layer=LAST, classes=most)
            for method in ("mcr2", "ce")
        )
        pairs = [ours[seed] >= theirs[seed] + MARGIN for seed in ours.keys() & theirs.keys()]
        lines.append(
            verdict(
                "Features of mcr2 transfer better than those of ce",
                {f"{most} source classes": pairs},
                f"in every seed the 5-shot accuracy of mcr2 is at least {MARGIN:g} higher",
            )
        )
    return lines


# --- tables and figures


def cdnv_table(results: Results) -> Table:
    """Return CDNV of the features on source and held-out classes, by number of source classes."""
    rows = tuple(
        (name, called, *entries(results, measure, method=method, layer=LAST))
        for method, name in results.names.items()
        for measure, called in SETS.items()
    )
    title = f"CDNV of the features, by {SOURCE.title} ({results.interval})"
    return Table(title, ("method", "classes", *map(str, results.values())), rows, left=2)


def few_shot_table(results: Results) -> Table:
    """Return few-shot accuracies on held-out classes from every layer."""
    rows = []
    layers = list(dict.fromkeys(row["layer"] for row in results.extra))
    for method, name in results.names.items():
        for count in results.values():
            for layer in layers:
                where = {"method": method, "classes": count, "layer": layer}
                found = [
                    shown(over_seeds(results, few_shot_name(kind, shots), **where), results.seeds)
                    for shots in SHOTS
                    for kind in CLASSIFIERS
                ]
                rows.append((name, str(count), layer, *found))
    widths = [v for row in results.extra for k, v in row.items() if k.endswith("±")]
    ways = {row["ways"] for row in results.extra}
    title = (
        f"Accuracy on held-out classes, {', '.join(map(str, sorted(ways)))} of them at a time, by "
        f"shots and classifier ({results.interval})"
    )
    note = f"over a run's episodes the 95 % interval is ±{max(widths, default=0):.3f} at the most"
    header = [f"{shots}: {kind.replace('nearest_', '')}" for shots in SHOTS for kind in CLASSIFIERS]
    names = ("method", "source classes", "layer")
    return Table(title, (*names, *header), tuple(rows), left=3, notes=(note,))


def transfer(results: Results) -> Any:
    """Draw CDNV and accuracy of the features over source classes, and accuracy over layers."""
    from experiments.report import canvas
    from experiments.report.figures import legend

    counts, methods = results.values(), results.names
    figure, axes = canvas.panels(2, 2, 4.4, 3.0)
    left, right, one, five = axes.flat
    layers = list(dict.fromkeys(row["layer"] for row in results.extra))
    styles = [f".{style}" for style in CDNV.values()]
    for method in methods:

        def draw(panel: Any, name: str, axis: str, style: str, m: str = method, **at: Any) -> None:
            values = layers if axis == "layer" else counts
            each = values_at(results, name, axis, values, method=m, **at)
            places = range(len(layers)) if axis == "layer" else counts
            canvas.mean_and_range(panel, places, each, results.colours[m], style)

        for name, style in zip(CDNV, styles, strict=True):
            draw(left, name, "classes", style, layer=LAST)
        for kind, style in zip(CLASSIFIERS, styles, strict=True):
            draw(right, few_shot_name(kind, 5), "classes", style, layer=LAST)
        for panel, shots in ((one, 1), (five, 5)):
            name = few_shot_name("class_mean", shots)
            draw(panel, name, "layer", ".-", classes=counts[-1])
    for panel in (left, right):
        if counts[-1] >= 8 * counts[0]:
            panel.set_xscale("log")
        panel.set_xticks(counts, list(map(str, counts)), minor=False)
        panel.set_xlabel(SOURCE.title)
    canvas.log_y(left)
    left.set(ylabel="CDNV of the features", title="collapse")
    right.set(ylabel="accuracy, held-out classes", title="5 shots, by classifier")
    for panel, given in ((one, "1 shot"), (five, "5 shots")):
        called = f"{given}, class mean, {counts[-1]} source classes"
        panel.set(ylabel="accuracy, held-out classes", title=canvas.label(called, 60))
        panel.set_xticks(range(len(layers)), layers, rotation=30, fontsize=8)
    for panel, names in ((left, SETS.values()), (right, CLASSIFIERS)):
        for called, line in zip(names, CDNV.values(), strict=True):
            panel.plot([], [], line, color="0.35", label=called.replace("_", " "))
        canvas.name_lines(panel, 8)
    legend(figure, {name: results.colours[method] for method, name in methods.items()})
    return figure


@dataclass(frozen=True)
class Transfer(MeasuredStudy):
    """Train on few and on many classes, and tell held-out classes apart by a few samples."""

    sources: tuple[int, ...] | None = None
    """Numbers of source classes, the first of the data set; by default those of 2, 3, 5, 10, 20,
    50, 100, 200 that leave 5 classes, the last six."""
    held_out: int | None = None
    """Classes held out, the last of the data set; by default all that no run is trained on."""
    episodes: int = 300
    """Episodes of a few-shot accuracy."""
    layers: tuple[str, ...] = STAGES
    """Stages to measure between pixels and features."""

    name: ClassVar[str] = "transfer"
    measured_by = ("held_out_classes", "episodes", "layers")
    tables = (cdnv_table, few_shot_table)
    figures = (transfer,)
    claims = (verdicts,)

    def study_axes(self) -> tuple[Axis, ...]:
        """Return the number of source classes."""
        return (SOURCE,)

    @cached_property
    def counts(self) -> list[int]:
        """The numbers of source classes."""
        from mcr2 import checks

        if self.sources is None:
            K = self.all_classes
            able = [count for count in SOURCES if count <= K - LEAST_HELD_OUT]
            if not able:
                raise ValueError(f"{K} classes are too few to hold {LEAST_HELD_OUT} of them out")
            return able[-MOST_SOURCES:]
        checks.integer("the number of sources", len(self.sources), 1)
        return sorted({checks.integer("sources", count, 2) for count in self.sources})

    @cached_property
    def all_classes(self) -> int:
        """How many classes the data set has."""
        from experiments.runs.prepare import load

        return load(self.grid(self.methods)[0], self.data_root).num_classes

    @property
    def held_out_classes(self) -> int:
        """How many classes are held out."""
        from mcr2 import checks

        if self.all_classes < 4:
            raise ValueError(f"{self.all_classes} classes are too few to hold 2 of them out")
        checks.integer("sources", max(self.counts), 2, self.all_classes - 2)
        most = self.all_classes - max(self.counts)
        return most if self.held_out is None else checks.integer("held_out", self.held_out, 2, most)

    def specs(self) -> list[RunSpec]:
        """Return the specs, few source classes first."""
        from mcr2 import checks

        checks.integer("episodes", self.episodes, 2)
        runs = self.grid(self.methods)
        for layer in self.layers if ":" not in runs[0].backbone else ():
            checks.choice("layers", layer, STAGES)
        return [replace(spec, classes=(count,)) for count in self.counts for spec in runs]

    def plan(self) -> tuple[list[PlannedRun], Path]:
        """Plan the runs, and check that episodes can be drawn of the held-out classes."""
        planned = super().plan()
        _, labels = self._others(planned[0][-1].spec)
        if (fewest := int(labels.bincount().min())) <= max(SHOTS):
            raise ValueError(
                f"a held-out class has {fewest} images; {max(SHOTS)} shots and a query need "
                f"{max(SHOTS) + 1}"
            )
        return planned

    def rows(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return a run's rows, with a number of source classes, not a tuple."""
        count = self._count(outcome.planned.spec)
        return [row | {SOURCE.name: count} for row in super().rows(outcome)]

    def describe(self, spec: RunSpec) -> str:
        """Return what tells a run from the others, on a line."""
        return f"{spec.method}, {self._count(spec)} source classes, seed {spec.seed}"

    def _count(self, spec: RunSpec) -> int:
        assert spec.classes is not None
        return spec.classes[0]

    def _others(self, spec: RunSpec) -> tuple[Tensor, Tensor]:
        """Return all images of the held-out classes, and their labels."""
        import torch

        from experiments.runs.prepare import unused_classes

        count = self.held_out_classes
        unused = unused_classes(spec, self.data_root)
        kept = unused.of_classes(range(unused.num_classes - count, unused.num_classes))
        splits = (kept.train, kept.test)
        return torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits])

    def measure(self, planned: PlannedRun) -> list[Row]:
        """Measure CDNV on source and held-out classes, and few-shot accuracies, layer by layer."""
        from experiments.runs.runner import kept_encoder
        from mcr2.data import to_float
        from mcr2.evaluation import encode_layers, layers_of
        from mcr2.metrics.collapse import neural_collapse

        machine, spec = self.machine(), planned.spec
        encoder, data = kept_encoder(planned, machine)
        layers = [name for name in dict.fromkeys(self.layers) if name in layers_of(encoder)]
        others, other_labels = self._others(spec)
        sets = {"train": data.train.images, "test": data.test.images, "held_out": others}
        labels = {"train": data.train.labels, "test": data.test.labels, "held_out": other_labels}
        counts = {name: int(y.max()) + 1 for name, y in labels.items()}
        device = machine.torch_device()
        found = {name: encode_layers(encoder, x.to(device), layers) for name, x in sets.items()}
        for name, images in sets.items():
            found[name] = {"pixels": to_float(images).flatten(1).to(device)} | found[name]
        fewest = int(labels["held_out"].bincount().min())
        queries = min(QUERIES, fewest - max(SHOTS))
        rows = []
        for layer in ("pixels", *layers, LAST):
            row: Row = {"classes": self._count(spec), "layer": layer}
            for name, y in labels.items():
                H = found[name][layer]
                collapse = neural_collapse(H, y.to(device), num_classes=counts[name])
                row[f"cdnv_{name}"] = collapse.cdnv
            H, y = found["held_out"][layer].cpu(), labels["held_out"]
            how = {"episodes": self.episodes, "queries": queries, "seed": spec.seed}
            row |= {"ways": min(WAYS, counts["held_out"]), **few_shots(H, y, **how)}
            rows.append(row)
        return rows
