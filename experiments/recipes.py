"""Recipes: how the study's runs are trained, each with how its numbers were chosen.

The rule: learning rates and component counts on noisy validation accuracy at ratio 0.2; epochs
so that cross-entropy reaches its terminal phase at every ratio; never on the test set, never on
the gap between methods.
"""

from __future__ import annotations

from experiments.specs import Recipe, RunSpec
from mcr2.training import TrainingConfig

QUICK = Recipe(
    name="quick",
    about="digits (8x8), ResNet-10 of width 16: minutes on two cores",
    base=RunSpec(
        method="ce",
        dataset="digits",
        backbone="resnet10_w16",
        feature_dim=64,
        validation=0.1,
        n_components=3,
    ),
    training={
        "ce": TrainingConfig(epochs=100, batch_size=128, lr=0.1, weight_decay=1e-4),
        "mcr2": TrainingConfig(epochs=100, batch_size=718, lr=0.05, weight_decay=1e-4),
    },
)

#: Recipes by name.
RECIPES: dict[str, Recipe] = {"quick": QUICK}
