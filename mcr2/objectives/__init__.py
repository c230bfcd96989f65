"""Objectives: what a network is trained for, as modules that score features against labels.

:class:`Objective` is the contract. An objective never sees images or the backbone, so that one
class serves every network and every way of batching; rates live in :mod:`mcr2.rates`.
All raise TypeError for an argument that is not a number of its kind, and ValueError for one out of
its range or, when called, for features that are not finite or of another d.

    base.py          the contract
    rates.py         RateReduction, the MCR² loss; TotalCodingRate, its expansion alone
    variational.py   VariationalRateReduction: class rates by a dictionary that is latched
    low_rank.py      OrthogonalLowRank (OLE): nuclear norms in the place of rates
"""

from mcr2.objectives.base import Context, Objective
from mcr2.objectives.low_rank import OrthogonalLowRank
from mcr2.objectives.rates import RateReduction, TotalCodingRate
from mcr2.objectives.variational import VariationalRateReduction

#: Objectives by name.
OBJECTIVES: dict[str, type[Objective]] = {
    "mcr2": RateReduction,
    "vmcr2": VariationalRateReduction,
    "tcr": TotalCodingRate,
    "ole": OrthogonalLowRank,
}

__all__ = [
    "OBJECTIVES",
    "Context",
    "Objective",
    "OrthogonalLowRank",
    "RateReduction",
    "TotalCodingRate",
    "VariationalRateReduction",
]
