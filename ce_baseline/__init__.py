"""The baseline that MCR² is compared with: losses on a linear head, as objectives of `mcr2`."""

from __future__ import annotations

from ce_baseline.cross_entropy import CrossEntropy
from mcr2.objectives import Objective

__all__ = ["OBJECTIVES", "CrossEntropy"]

OBJECTIVES: dict[str, type[Objective]] = {"ce": CrossEntropy}
