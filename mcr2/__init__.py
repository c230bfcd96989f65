"""What a representation looks like when some labels are wrong: MCR² and what to measure.

The library trains networks for the maximal coding rate reduction (MCR²) objective, or any other
:class:`mcr2.objectives.Objective`, on images whose labels are partly corrupted, and measures what
became of their features. The main names are here, imported when they are used; everything else is
in its module: ``mcr2.rates``, ``mcr2.metrics``, ...

Example:
    >>> import mcr2, torch
    >>> round(float(mcr2.coding_rate(torch.eye(4))), 4)
    2.1972
"""

from __future__ import annotations

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcr2.data import load_dataset as load_dataset
    from mcr2.estimators import ReadoutClassifier as ReadoutClassifier
    from mcr2.evaluation import evaluate_features as evaluate_features
    from mcr2.metrics.collapse import neural_collapse as neural_collapse
    from mcr2.metrics.rank import class_geometry as class_geometry
    from mcr2.metrics.rank import feature_rank as feature_rank
    from mcr2.noise import corrupt as corrupt
    from mcr2.objectives import Objective as Objective
    from mcr2.objectives import RateReduction as RateReduction
    from mcr2.rates import class_coding_rates as class_coding_rates
    from mcr2.rates import coding_rate as coding_rate
    from mcr2.rates import rate_reduction as rate_reduction
    from mcr2.records import load_run as load_run
    from mcr2.records import load_study as load_study
    from mcr2.redunet import ReduNet as ReduNet

__version__ = version("mcr2-robustness")

#: The main names, by the module that defines them.
_NAMES = {
    "Objective": "objectives",
    "RateReduction": "objectives",
    "ReadoutClassifier": "estimators",
    "ReduNet": "redunet",
    "class_coding_rates": "rates",
    "class_geometry": "metrics.rank",
    "coding_rate": "rates",
    "corrupt": "noise",
    "evaluate_features": "evaluation",
    "feature_rank": "metrics.rank",
    "load_dataset": "data",
    "load_run": "records",
    "load_study": "records",
    "neural_collapse": "metrics.collapse",
    "rate_reduction": "rates",
}

#: Modules that are attributes without being imported first.
_MODULES = (
    *("audit", "backbones", "checks", "data", "estimators", "evaluation", "metrics", "noise"),
    *("objectives", "rates", "readouts", "records", "redunet", "selection", "training"),
)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"mcr2.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"mcr2.{name}")
    raise AttributeError(f"module 'mcr2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", *_NAMES, *_MODULES])
