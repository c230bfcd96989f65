"""Measures of predictions and features: pure functions, one file a family.

- :mod:`~mcr2.metrics.accuracy`: accuracy and its standard error;
- :mod:`~mcr2.metrics.coding`: R, R_c, ΔR on unit-norm features;
- :mod:`~mcr2.metrics.collapse`: neural collapse, NC1 to NC4 and CDNV;
- :mod:`~mcr2.metrics.margins`: margins of a linear classifier, and its alignment with another;
- :mod:`~mcr2.metrics.memorization`: what became of wrong labels, and the terminal phase;
- :mod:`~mcr2.metrics.moments`: class means and second moments, in one pass over batches;
- :mod:`~mcr2.metrics.rank`: in how many dimensions features spread, overall and by class.

Families are used by their module (``rank.feature_rank``): two of them share a function's name.
"""

from mcr2.metrics import accuracy, coding, collapse, margins, memorization, moments, rank

__all__ = ["accuracy", "coding", "collapse", "margins", "memorization", "moments", "rank"]
