"""The common evaluator: it reads every network the same way, whatever trained it.

It knows metrics and readouts, not objectives: an encoder is anything that maps images to
features, with a ``classifier()`` if it has a linear head of its own.

- :mod:`~mcr2.evaluation.results`: what a reading is, and the names of its measures;
- :mod:`~mcr2.evaluation.features`: :func:`evaluate_features`, from features, labels and a head;
- :mod:`~mcr2.evaluation.arrays`: what :func:`evaluate_features` reads, from an ``.npz`` file;
- :mod:`~mcr2.evaluation.encoders`: :func:`evaluate`, the same of an encoder and images.
"""

from mcr2.evaluation.arrays import Arrays, read_features
from mcr2.evaluation.encoders import ImageEncoder, encode, evaluate
from mcr2.evaluation.features import (
    COMMON_READOUT,
    Labelled,
    evaluate_features,
    standard_readouts,
)
from mcr2.evaluation.results import Evaluation, Value, measure_key

__all__ = [
    "COMMON_READOUT",
    "Arrays",
    "Evaluation",
    "ImageEncoder",
    "Labelled",
    "Value",
    "encode",
    "evaluate",
    "evaluate_features",
    "measure_key",
    "read_features",
    "standard_readouts",
]
