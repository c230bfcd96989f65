"""The studies and the command line: the only place that names both methods.

For notebooks, imported when they are used: ``experiments.run``, ``load_run``, ``load_study``, see
:mod:`experiments.notebook`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.notebook import load_run as load_run
    from experiments.notebook import load_study as load_study
    from experiments.notebook import run as run

_NAMES = ("load_run", "load_study", "run")


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module("experiments.notebook"), name)
    raise AttributeError(f"module 'experiments' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
