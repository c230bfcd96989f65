"""Every measure once: its name, title, family and direction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """A measure as tables, figures and history need it."""

    name: str
    title: str
    family: str
    per: str
    better: str | None = None
    history: bool = False
    shown: bool = False
    compute: Callable[[Any], Any] | None = None


FAMILIES = {
    "accuracy": "Accuracy",
    "memorization": "Memorization",
    "rank": "Rank and dimension",
    "collapse": "Neural collapse (0 is collapsed)",
    "coding": "Coding rates of unit-norm features (nats)",
}

MEASURES = {
    m.name: m
    for m in (
        Measure("accuracy", "accuracy", "accuracy", "readout", "high", shown=True),
        Measure("fit_noisy", "training labels fitted", "memorization", "readout"),
        Measure("fit_corrupted", "wrong labels fitted", "memorization", "readout", "low"),
        Measure("recovered", "wrong labels recovered", "memorization", "readout", "high"),
        Measure("participation_ratio", "participation ratio", "rank", "features", shown=True),
        Measure("dim95", "components with 95 % of the energy", "rank", "features", shown=True),
        Measure("class_dim95", "components with 95 % of a class", "rank", "classes", shown=True),
        Measure("coherence", "overlap of class subspaces", "rank", "classes", shown=True),
        Measure("nc1", "NC1: spread within classes", "collapse", "classes", "low", shown=True),
        Measure("cdnv", "class-distance normalised variance", "collapse", "classes", shown=True),
        Measure("nc2_etf", "NC2: means from a simplex", "collapse", "classes", shown=True),
        Measure("nc3", "NC3: classifier from the means", "collapse", "classifier", shown=True),
        Measure("nc4", "NC4: nearest mean differs", "collapse", "classifier", shown=True),
        Measure("mean_energy", "energy of class means", "collapse", "classes", shown=True),
        Measure("means_reliable", "1 where that is enough", "collapse", "classes", shown=True),
        Measure("reduction", "rate reduction", "coding", "classes", shown=True),
    )
}
