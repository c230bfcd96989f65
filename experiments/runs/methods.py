"""What studies compare: names -> how to fit a spec on data.

A method that is trained is an :class:`~mcr2.objectives.Objective` and nothing more: write the
class, and ``path/to/file.py:Class`` or ``package.module:Class`` is a method wherever a name is
asked for. What runs a method does not ask whether it is trained or constructed: either has a
``name``, a default ``readout``, the names of its ``options``, whether its loss is ``additive`` over
samples and whether it is ``trained`` by steps, a ``fingerprint`` of a user's own file; ``check``
refuses a spec before anything is spent, ``fit`` fits one, ``load`` returns a kept encoder.
"""

from __future__ import annotations

from typing import TypeAlias

import ce_baseline
import mcr2.objectives
from experiments.runs.constructed import Constructed
from experiments.runs.prepare import Sizes
from experiments.runs.specs import RunSpec
from experiments.runs.trained import Trained
from experiments.runs.user_code import is_user_code, load_object
from mcr2.objectives import Objective
from mcr2.training import Encoder

Method: TypeAlias = Trained | Constructed

#: Methods by name: each objective that has one, and what is constructed.
METHODS: dict[str, Method] = {
    **{
        name: Trained(name, objective)
        for name, objective in (ce_baseline.OBJECTIVES | mcr2.objectives.OBJECTIVES).items()
    },
    "redunet": Constructed("redunet"),
}


def find_method(name: str) -> Method:
    """Return a method by its name, or make one of an objective's class.

    Args:
        name: a name of :data:`METHODS`, ``path/to/file.py:Class`` or ``package.module:Class``.

    Raises:
        ValueError: no such name, file, module or class, or a file that cannot be imported.
        TypeError: the class is not an :class:`~mcr2.objectives.Objective`, or defines no ``loss``.

    Example:
        >>> find_method("mcr2").readout
        'nearest_subspace'
        >>> find_method("mcr2.objectives:RateReduction").additive
        False
    """
    if name in METHODS:
        return METHODS[name]
    if not is_user_code(name):
        raise ValueError(
            f"unknown method {name!r}; choose from {', '.join(METHODS)}, "
            "or give path/to/file.py:Class or package.module:Class"
        )
    objective, fingerprint = load_object(name)
    if not (isinstance(objective, type) and issubclass(objective, Objective)):
        raise TypeError(f"{name} is not an mcr2.objectives.Objective but {objective!r}")
    if objective.loss is Objective.loss:
        raise TypeError(f"{name} does not define loss(features, labels, context)")
    return Trained(name, objective, fingerprint)


def untrained(spec: RunSpec, sizes: Sizes) -> Encoder:
    """Return the network of a spec before training.

    Raises:
        TypeError: its method constructs a network instead.
    """
    method = find_method(spec.method)
    if not isinstance(method, Trained):
        raise TypeError(f"{spec.method} is constructed layer by layer, not trained")
    return method.build(spec, sizes)
