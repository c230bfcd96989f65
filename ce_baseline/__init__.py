"""The baseline that MCR² is compared with: losses on a linear head, as objectives of `mcr2`."""

from __future__ import annotations

from ce_baseline.cross_entropy import CrossEntropy, LabelSmoothing
from ce_baseline.fixed_etf import FixedETF
from ce_baseline.mse import MSE
from mcr2.objectives import Objective

__all__ = ["MSE", "OBJECTIVES", "CrossEntropy", "FixedETF", "LabelSmoothing"]

OBJECTIVES: dict[str, type[Objective]] = {
    "ce": CrossEntropy,
    "ls": LabelSmoothing,
    "mse": MSE,
    "fixed_etf": FixedETF,
}
"""Objectives by the names that studies know them by."""
