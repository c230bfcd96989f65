"""The common evaluator: it measures every network the same way, whatever trained it.

It knows metrics and readouts, not objectives: an encoder is anything that maps images to
features, with a ``classifier()`` if it has a linear head of its own.

- :mod:`~mcr2.evaluation.catalogue`: every measure, and what is known of it;
- :mod:`~mcr2.evaluation.results`: what an evaluation is, and the keys of its measures;
- :mod:`~mcr2.evaluation.features`: :func:`evaluate_features`, from features, labels and a head;
- :mod:`~mcr2.evaluation.arrays`: what :func:`evaluate_features` takes, from an ``.npz`` file;
- :mod:`~mcr2.evaluation.encoders`: :func:`evaluate`, the same of an encoder and images.
"""

from mcr2.evaluation.arrays import read_features
from mcr2.evaluation.catalogue import FAMILIES, MEASURES, Measure
from mcr2.evaluation.encoders import ImageEncoder, encode, encode_layers, evaluate, layers_of
from mcr2.evaluation.features import Labelled, evaluate_features, standard_readouts
from mcr2.evaluation.results import COMMON_READOUT, Evaluation, Key, measure_key

__all__ = [
    "COMMON_READOUT",
    "FAMILIES",
    "MEASURES",
    "Evaluation",
    "ImageEncoder",
    "Key",
    "Labelled",
    "Measure",
    "encode",
    "encode_layers",
    "evaluate",
    "evaluate_features",
    "layers_of",
    "measure_key",
    "read_features",
    "standard_readouts",
]
