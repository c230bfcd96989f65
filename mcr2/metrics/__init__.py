"""Measures of predictions and features: pure functions, one file a family.

- :mod:`~mcr2.metrics.accuracy`: accuracy and its standard error;
- :mod:`~mcr2.metrics.bound`: how far CDNV may grow from training to test samples;
- :mod:`~mcr2.metrics.coding`: R, R_c, ΔR on unit-norm features;
- :mod:`~mcr2.metrics.collapse`: neural collapse, NC1 to NC4 and CDNV;
- :mod:`~mcr2.metrics.equiseparation`: separation of classes by depth, and its law;
- :mod:`~mcr2.metrics.few_shot`: accuracy on new classes from a few samples of each;
- :mod:`~mcr2.metrics.hard_margin`: the linear classifier of widest margin, and angles to it;
- :mod:`~mcr2.metrics.margins`: margins of a linear classifier, and its alignment with another;
- :mod:`~mcr2.metrics.memorization`: what became of wrong labels, and the terminal phase;
- :mod:`~mcr2.metrics.moments`: class means and second moments, in one pass over batches;
- :mod:`~mcr2.metrics.rank`: in how many dimensions features spread, overall and by class;
- ``mcr2.metrics.streaming``: collapse, rank and rates as metrics of torchmetrics, an extra.

Families are used by their module (``rank.feature_rank``): two of them share a function's name.
"""

from mcr2.metrics import (
    accuracy,
    bound,
    coding,
    collapse,
    equiseparation,
    few_shot,
    hard_margin,
    margins,
    memorization,
    moments,
    rank,
)

__all__ = [
    "accuracy",
    "bound",
    "coding",
    "collapse",
    "equiseparation",
    "few_shot",
    "hard_margin",
    "margins",
    "memorization",
    "moments",
    "rank",
]
