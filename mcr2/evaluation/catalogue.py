"""Every measure, once: its name, its title, where it stands and which way it points.

The evaluator, what it keeps of a history, the tables of an evaluation and the list in
docs/evaluation.md are made from :data:`MEASURES`. A new measure is a function in its family's file
of :mod:`mcr2.metrics` and a line here that calls it, taken wherever its family is::

    Measure("norm", "mean ‖h‖", "rates", "classes", compute=lambda view: norm(view.features))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mcr2.readouts import LinearClassifier

Value: TypeAlias = float | int | None


@dataclass(frozen=True, eq=False)
class View:
    """What a measure is computed of: samples by one set of labels.

    The ``kinds`` are ``noisy``, ``clean``, or both where these labels agree; ``-`` where labels do
    not matter. A measure per classifier has the ``classifier``, one per readout ``predictions``.
    """

    split: str
    kinds: tuple[str, ...]
    features: Tensor
    labels: Tensor
    num_classes: int
    classifier: LinearClassifier | None = None
    predictions: Tensor | None = None

    @cached_property
    def counts(self) -> Tensor:
        """Samples of each class, int64 ``(K,)``."""
        return torch.bincount(self.labels, minlength=self.num_classes)


@dataclass(frozen=True)
class Measure:
    """What is known of a measure beside its value.

    Attributes:
        name, title: the last part of its key, and what it is in a few words.
        family: a key of :data:`FAMILIES`.
        per: the parts that its key has: of ``features`` no labels; of ``classes`` labels; of a
            ``classifier`` labels, ``head`` and ``ridge``; of a ``readout`` labels and every one.
        better: which way a user would have it, where that can be said.
        history, shown: whether it is also taken along training; is in a study's tables.
        compute: its value of a view, unless it is part of its family's common computation.
    """

    name: str
    title: str
    family: str
    per: Literal["features", "classes", "classifier", "readout"]
    better: Literal["low", "high"] | None = None
    history: bool = False
    shown: bool = False
    compute: Callable[[View], Value] | None = None


#: Families and their titles, in the order of tables.
FAMILIES: dict[str, str] = {
    "accuracy": "Accuracy and memorization, by readout",
    "rank": "Rank and dimension of all features, centred",
    "classes": "Rank and dimension of classes, uncentred (means), and between them",
    "collapse": "Collapse of class means (0 is collapsed)",
    "classifier": "Collapse of the classifier onto class means (0 is collapsed)",
    "margins": "Margins",
    "rates": "Coding rates of unit-norm features (nats)",
}

#: Quantiles of margins that are measures, by name.
QUANTILES = {f"q{round(100 * q):02d}": q for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)}

_BY_NORMS = "of margins over ‖W‖_F mean ‖h‖"
_KEPT = ("q05", "q50", "q95")  # along training, of normalised margins

_readout = partial(Measure, family="accuracy", per="readout", history=True, shown=True)
_rank = partial(Measure, family="rank", per="features", history=True)
_class = partial(Measure, family="classes", per="classes", history=True)
_means = partial(Measure, family="collapse", per="classes")
_head = partial(Measure, family="classifier", per="classifier")
_margin = partial(Measure, family="margins", per="classifier", better="high")
_rate = partial(Measure, family="rates", per="classes", history=True)

_RANKS = (
    _rank("numerical_rank", "rank by NumPy's tolerance"),
    _rank("effective_rank", "exp(entropy of σ/Σσ)"),
    _rank("participation_ratio", "(Σλ)²/Σλ²", shown=True),
    _rank("stable_rank", "Σλ/λ_max"),
    _rank("dim95", "components with 95 % of the energy", shown=True),
)

#: All measures by name, in the order of tables.
MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        _readout("accuracy", "share predicted as labelled", better="high"),
        _readout("fit_noisy", "accuracy on the labels trained on"),
        _readout("fit_corrupted", "wrong labels predicted as trained on", better="low"),
        _readout("recovered", "wrong labels predicted as the true ones", better="high"),
        *_RANKS,
        *(
            _class(f"class_{m.name}", f"{m.title}, mean over classes", shown=m.name == "dim95")
            for m in _RANKS
        ),
        _class("coherence", "mean overlap of class subspaces", shown=True),
        _class("smallest_angle", "least principal angle of two classes", history=False),
        _class("mean_angle", "mean principal angle of two classes", history=False),
        _means("nc1", "tr(Σ_W Σ_B⁺)/K", history=True, shown=True),
        _means("nc1_ratio", "tr Σ_W / tr Σ_B", history=True),
        _means("cdnv", "mean of (v_i + v_j)/(2 ‖μ_i - μ_j‖²)", history=True, shown=True),
        _means("nc2_equinorm", "std/mean of norms of class means", history=True),
        _means("nc2_equiangular", "std of cosines of class means", history=True),
        _means("nc2_maxangle", "mean |cosine + 1/(K - 1)|", history=True),
        _means("nc2_etf", "distance of class means from a simplex", history=True, shown=True),
        _means("mean_energy", "part of the energy in class means", history=True),
        _means("means_reliable", "1 where mean_energy is enough", history=True),
        _means("classes_present", "classes with a sample", history=True),
        _means("smallest_class", "samples in the smallest class", history=True),
        _means("nc1_about_train", "nc1 about the training class means"),
        _means("nc1_ratio_about_train", "nc1_ratio about the training class means"),
        _means("cdnv_about_train", "cdnv about the training class means"),
        _head("nc2_equinorm_w", "nc2_equinorm of the rows of W", history=True),
        _head("nc2_equiangular_w", "nc2_equiangular of the rows of W", history=True),
        _head("nc2_maxangle_w", "nc2_maxangle of the rows of W", history=True),
        _head("nc3", "‖W/‖W‖ - M/‖M‖‖²", history=True, shown=True),
        _head("nc3_etf", "distance of WMᵀ from a simplex", history=True),
        _head("nc4", "share where the nearest class mean differs", history=True, shown=True),
        _head("nc4_about_train", "nc4 about the training class means"),
        _margin("margin_positive", "share of positive margins"),
        _margin("margin_mean", "mean margin"),
        *(_margin(f"margin_{q}", f"{p:g} quantile of margins") for q, p in QUANTILES.items()),
        _margin("margin_normalised_mean", f"mean {_BY_NORMS}", history=True),
        *(
            _margin(f"margin_normalised_{q}", f"{p:g} quantile {_BY_NORMS}", history=q in _KEPT)
            for q, p in QUANTILES.items()
        ),
        _margin("svm_alignment", "mean cosine with the rows of a linear SVM", better=None),
        _rate("rate", "R"),
        _rate("compressed_rate", "R_c"),
        _rate("reduction", "ΔR = R - R_c", shown=True),
        _rate("class_rate_mean", "mean R_k of the classes present"),
    )
}
