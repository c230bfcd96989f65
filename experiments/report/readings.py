"""A full reading as tables: what a person sees of some hundred measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import Table

#: Columns of tables: what a split and kind of labels are called, in order.
COLUMNS = {
    ("train", "-"): "train",
    ("train", "noisy"): "train, noisy",
    ("train", "clean"): "train, clean",
    ("train_wrong", "noisy"): "wrong, noisy",
    ("train_wrong", "clean"): "wrong, clean",
    ("train_untouched", "noisy"): "untouched",
    ("test", "-"): "test",
    ("test", "clean"): "test",
}

MEANS = (
    *("nc1", "nc1_ratio", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc2_maxangle", "nc2_etf"),
    *("mean_energy", "means_reliable", "smallest_class"),
    *("nc1_about_train", "nc1_ratio_about_train", "cdnv_about_train"),
)
CLASSIFIER = (
    *("nc2_equinorm_w", "nc2_equiangular_w", "nc2_maxangle_w"),
    *("nc3", "nc3_etf", "nc4", "nc4_about_train"),
)
QUANTILES = ("q01", "q05", "q25", "q50", "q75", "q95")
MARGINS = (
    *("margin_positive", "margin_mean", *(f"margin_{q}" for q in QUANTILES)),
    *("margin_normalised_mean", *(f"margin_normalised_{q}" for q in QUANTILES)),
    "svm_alignment",
)
DIMENSION = ("numerical_rank", "effective_rank", "participation_ratio", "stable_rank", "dim95")
CLASSES = (
    *(f"class_{name}" for name in DIMENSION),
    *("coherence", "smallest_angle", "mean_angle"),
)
RATES = ("rate", "compressed_rate", "reduction", "class_rate_mean")

#: Columns of the table of readouts: split, kind of labels, measure, title.
ACCURACIES = (
    ("test", "clean", "accuracy", "test"),
    ("validation", "noisy", "accuracy", "validation, noisy"),
    ("validation", "clean", "accuracy", "validation, clean"),
    ("train", "clean", "accuracy", "train, clean"),
    ("train", "noisy", "fit_noisy", "fit_noisy"),
    ("train", "noisy", "fit_corrupted", "fit_corrupted"),
    ("train", "noisy", "recovered", "recovered"),
)


def reading_tables(measures: Mapping[str, Any]) -> list[Table]:
    """Return a reading's measures as tables, a table a family; empty columns are left out.

    Args:
        measures: by key, as in :attr:`mcr2.evaluation.Evaluation.measures`.
    """
    found = {tuple(key.split("/")[1:]): value for key, value in measures.items()}
    readouts = list(dict.fromkeys(readout for _, _, readout, _ in found if readout != "-"))
    plain = [name for name in readouts if not name.endswith("+clean")]

    columns = [c for c in ACCURACIES if any((c[0], c[1], r, c[2]) in found for r in plain)]
    rows = []
    for name in plain:
        shown = [_shown(found.get((split, kind, name, m))) for split, kind, m, _ in columns]
        shown.append(_shown(found.get(("test", "clean", f"{name}+clean", "accuracy"))))
        rows.append((name, *shown))
    header = ("readout", *(title for *_, title in columns), "test, fitted on clean")
    tables = [Table("Accuracy and memorization, by readout", *_filled(header, rows), left=1)]

    classifiers = [r for r in plain if any(key[2:] == (r, "nc3") for key in found)]
    for title, names, by in (
        ("Rank and dimension of all features, centred", DIMENSION, ("-",)),
        ("Rank and dimension of classes, uncentred (means), and between them", CLASSES, ("-",)),
        ("Collapse of class means (0 is collapsed)", MEANS, ("-",)),
        ("Collapse of the classifier onto class means", CLASSIFIER, classifiers),
        ("Margins", MARGINS, classifiers),
        ("Coding rates of unit-norm features (nats)", RATES, ("-",)),
    ):
        places = [
            (split, kind, readout)
            for readout in by
            for split, kind in COLUMNS
            if any((split, kind, readout, name) in found for name in names)
        ]
        kept = [n for n in names if any((*place, n) in found for place in places)]
        if kept:
            header = (
                "measure",
                *(
                    COLUMNS[split, kind] + (f", {readout}" if readout != "-" else "")
                    for split, kind, readout in places
                ),
            )
            rows = [
                (name, *(_shown(found.get((*place, name))) for place in places)) for name in kept
            ]
            tables.append(Table(title, header, tuple(rows), left=1))
    return tables


def _filled(
    header: tuple[str, ...], rows: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Leave out columns in which nothing stands."""
    keep = [i for i in range(len(header)) if i == 0 or any(row[i] != "-" for row in rows)]
    return tuple(header[i] for i in keep), tuple(tuple(row[i] for i in keep) for row in rows)


def agreement(
    kept: Mapping[str, Mapping[str, Any]], readings: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Return lines that say whether what was read again is what the record holds.

    Args:
        kept: the record's selections, by rule.
        readings: measures read again, by rule.
    """
    differing = [
        f"{rule} {key}: {_shown(value)} now, {_shown(held)} in the record"
        for rule, measures in readings.items()
        for key, value in measures.items()
        if (held := kept[rule]["measures"].get(key)) != value
    ]
    total = sum(map(len, readings.values()))
    if not differing:
        return [f"read again from the weights: all {total} measures are the same as the record's"]
    more = [f"... and {len(differing) - 10} more"] if len(differing) > 10 else []
    return [
        f"read again from the weights: {len(differing)} of {total} measures differ from the "
        "record's",
        *differing[:10],
        *more,
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        small = value != 0 and abs(value) < 1e-3
        return f"{value:.2e}" if small or abs(value) >= 1e5 else f"{value:.4f}"
    return str(value)
