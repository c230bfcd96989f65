"""Recipes: how the study's runs are trained. What was tried, and the rule: ``docs/recipes.md``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.runs.specs import RunSpec, Streams
from mcr2 import checks
from mcr2.training import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """Everything about a study's runs but method, ratio and seed.

    Attributes:
        name: of the recipe.
        about: what it is for and what it costs, in one line.
        base: the spec that runs start from; its method, ratio and seed are replaced.
        training: how each method is trained. A method that is not named here is trained as
            ``ce`` where its loss is a mean over samples (``additive``), as ``mcr2`` otherwise.
        subsets: named data sets of which so many training images are taken, unless told otherwise.
        early_stopping_share: where ``base`` holds nothing out, the validation share of a second
            run of each, from which early stopping is reported; None makes no second run.
    """

    name: str
    about: str
    base: RunSpec
    training: Mapping[str, TrainingConfig]
    subsets: Mapping[str, int] = field(default_factory=dict)
    early_stopping_share: float | None = None

    def spec(self, method: str, *, additive: bool, **fields: Any) -> RunSpec:
        """Return the spec of one run of a method; ``fields`` replace those of ``base``."""
        if fields.get("subset") is None:
            dataset = fields.get("dataset", self.base.dataset)
            fields["subset"] = self.subsets.get(dataset, self.base.subset)
        like = method if method in self.training else ("ce" if additive else "mcr2")
        return replace(self.base, method=method, training=self.training[like], **fields)


QUICK = Recipe(
    name="quick",
    about="digits (8x8), ResNet-8 of width 16: minutes on two cores",
    base=RunSpec(
        method="ce",
        dataset="digits",
        backbone="resnet8_w16",
        feature_dim=64,
        shift=0,
        validation=0.1,
        n_components=3,
    ),
    training={
        "ce": TrainingConfig(
            epochs=60, batch_size=128, lr=0.05, weight_decay=1e-4, evaluate_every=5
        ),
        "mcr2": TrainingConfig(
            epochs=60, batch_size=718, lr=0.2, weight_decay=1e-4, evaluate_every=5
        ),
        # Constructed, 20 layers: of all this, layers between evaluations and samples at a time.
        "redunet": TrainingConfig(batch_size=718, evaluate_every=2),
    },
)

CPU = Recipe(
    name="cpu",
    about="CIFAR-10, 10,000 images, ResNet-10 of width 16: an hour on two cores",
    base=RunSpec(
        method="ce",
        dataset="cifar10",
        backbone="resnet10_w16",
        stem_stride=2,
        feature_dim=32,
        shift=0,
        validation=0.1,
        n_components=2,
    ),
    training={
        "ce": TrainingConfig(epochs=100, batch_size=64, lr=0.1, weight_decay=1e-4),
        "mcr2": TrainingConfig(epochs=150, batch_size=500, lr=0.1, weight_decay=1e-4),
    },
    subsets=dict.fromkeys(
        ("cifar10", "cifar100", "cifar100_coarse", "fashion_mnist", "kmnist", "mnist", "svhn"),
        10_000,
    ),
)

# Nothing of this was tuned here. MCR²: the official code of Chan et al. (2021), which draws noise
# with seed 10 whatever else is seeded. Cross-entropy: the common recipe, He et al. (2016).
PAPER = Recipe(
    name="paper",
    about="CIFAR-10, ResNet-18, 500 epochs: days on a GPU",
    base=RunSpec(
        method="ce",
        dataset="cifar10",
        backbone="resnet18",
        feature_dim=128,
        projection="mlp",
        validation=0.0,
        shift=8,
        flip=True,
        n_components=30,
        streams=Streams(noise=10),
    ),
    training={
        "ce": TrainingConfig(
            epochs=200, batch_size=128, lr=0.1, weight_decay=5e-4, schedule="cosine"
        ),
        "mcr2": TrainingConfig(
            epochs=500,
            batch_size=1000,
            lr=0.01,
            weight_decay=5e-4,
            schedule="steps",
            milestones=(200, 400),
            evaluate_every=10,
        ),
    },
    early_stopping_share=0.1,
)

#: Recipes by name.
RECIPES: dict[str, Recipe] = {"quick": QUICK, "cpu": CPU, "paper": PAPER}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        ValueError: no such recipe; the message lists those there are.
    """
    return RECIPES[checks.choice("recipe", name, RECIPES)]
