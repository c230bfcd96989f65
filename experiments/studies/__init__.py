"""Studies, one file each: a grid of specs over named axes, and a reading of their records.

A study of one's own is a class in a file, ``mcr2 study path/to/file.py:NAME``.
"""

from __future__ import annotations

import importlib

from experiments.studies.engine import Study

#: Studies by name: where each is defined.
STUDIES: dict[str, str] = {
    "label_noise": "experiments.studies.label_noise:LabelNoise",
    "ablation": "experiments.studies.ablations:Ablation",
    "construction": "experiments.studies.construction:Construction",
    "gaussians": "experiments.studies.gaussians:Gaussians",
    "shifts": "experiments.studies.shifts:Shifts",
    "audits": "experiments.studies.audits:Audits",
    "free_features": "experiments.studies.free_features:FreeFeatures",
    "layers": "experiments.studies.layers:Layers",
    "rate_plane": "experiments.studies.rate_plane:RatePlane",
    "memorization_dilation": "experiments.studies.memorization_dilation:MemorizationDilation",
    "double_descent": "experiments.studies.double_descent:DoubleDescent",
    "transfer": "experiments.studies.transfer:Transfer",
    "test_collapse": "experiments.studies.collapse_on_test:CollapseOnTest",
    "terminal": "experiments.studies.terminal:Terminal",
    "margins": "experiments.studies.margins:MarginsStudy",
    "imbalance": "experiments.studies.imbalance:Imbalance",
}


def find_study(name: str) -> type[Study]:
    """Return a study by its name, or a user's own.

    Args:
        name: of :data:`STUDIES`, ``path/to/file.py:Class`` or ``package.module:Class``.

    Raises:
        ValueError: no such study; the message lists those there are.
        TypeError: it is not a :class:`~experiments.studies.engine.Study`.

    Example:
        >>> find_study("label_noise").name
        'label_noise'
    """
    if name in STUDIES:
        module, _, attribute = STUDIES[name].partition(":")
        found = getattr(importlib.import_module(module), attribute)
    elif ":" in name:
        from experiments.runs.user_code import load_object

        found = load_object(name)[0]
    else:
        raise ValueError(
            f"unknown study {name!r}; choose from {', '.join(STUDIES)}, "
            "or give path/to/file.py:Class or package.module:Class"
        )
    if not (isinstance(found, type) and issubclass(found, Study)):
        raise TypeError(f"{name} is not an experiments.studies.engine.Study but {found!r}")
    return found
