"""Recipes: how the study's runs are trained, each with how its numbers were chosen.

The rule: learning rates and component counts on noisy validation accuracy at ratio 0.2; epochs
so that cross-entropy reaches its terminal phase at every ratio; never on the test set, never on
the gap between methods.
"""

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
            run of each cell, from which early stopping is reported; None makes no second run.
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


# How quick's numbers were chosen. The network was taken as given: 0.33 M parameters, shifts by one
# pixel, one-cycle SGD with momentum 0.9 and weight decay 1e-4 for both methods.
#
# Epochs: of 120 and 200 the first at which cross-entropy is in its terminal phase at ratio 0.5
# (120: fit_noisy 0.93 to 0.98 at learning rates 0.05 to 0.2). MCR² gets as many epochs.
#
# Learning rate, batch size, components: best noisy validation accuracy along the run at ratio 0.2,
# mean of seeds 0 and 1, six settings for each method (standard error of every figure: 0.02, so the
# choice is among near equals; a tie goes to the cheaper):
#
#     ce    batch 64:   lr 0.05 0.819   0.1 0.819   0.2 0.812
#           batch 128:  lr 0.05 0.797   0.1 0.802   0.2 0.826  <-
#     mcr2  batch 350:  lr 0.05 0.847   0.1 0.851   0.2 0.844
#           batch 718:  lr 0.05 0.844   0.1 0.844   0.2 0.851  <-
#
# At the chosen setting, components 1, 2, 3, 5, 10 of MCR²'s nearest subspace read 0.823, 0.840,
# 0.851, 0.847, 0.837 at the selected epoch. All of this was measured with an evaluation every five
# epochs, before the rates were given their own backward; rounding has changed since, and with it
# each figure within its error. Each is one command, for example
#
#     mcr2 table --methods mcr2 --ratios 0.2 --seeds 0 1 \
#         --set lr=0.05 batch_size=350 evaluate_every=5
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
        "ce": TrainingConfig(
            epochs=200, batch_size=128, lr=0.2, weight_decay=1e-4, evaluate_every=10
        ),
        "mcr2": TrainingConfig(
            epochs=200, batch_size=718, lr=0.2, weight_decay=1e-4, evaluate_every=10
        ),
        # Constructed, 20 layers: of all this, layers between evaluations and samples at a time.
        "redunet": TrainingConfig(batch_size=718, evaluate_every=2),
    },
)

# How cpu's numbers were chosen, on a stratified subset of 10,000 CIFAR-10 images in a file, a tenth
# held out. (The subset of the named data set is drawn here, and is another 10,000.)
#
# The network and what both methods share were settled first, by cost: a ResNet-10 of width 16 whose
# stem halves the image (4 s an epoch and core), 32 features (with 128, a class has fewer samples in
# a batch than dimensions, and MCR² hardly learns), one-cycle SGD, momentum 0.9, weight decay 1e-4.
# Mirroring, where the data set allows it, is the only augmentation: with shifts as well
# cross-entropy does not reach its terminal phase in as many epochs as two cores afford.
#
# Learning rate and batch size: best noisy validation accuracy along runs of 40 epochs at ratio 0.2,
# seed 0, four settings for each method (standard error of every figure: 0.016):
#
#     ce    batch 64:   lr 0.1 0.443  <-   0.3 0.452
#           batch 128:  lr 0.1 0.416   0.3 0.430
#     mcr2  batch 250:  lr 0.1 0.441   0.3 0.394
#           batch 500:  lr 0.1 0.465  <-   0.3 0.450
#
# At the chosen setting, components 1, 2, 3, 5, 10 of MCR²'s nearest subspace read 0.458, 0.467,
# 0.465, 0.466, 0.452 at the selected epoch.
#
# Epochs: cross-entropy as many as its terminal phase at ratio 0.5 takes. At learning rate 0.3 that
# was not reached in 100 (fit_noisy 0.929; test accuracy 0.319, stopped early 0.376), so that of the
# two best, which the standard error does not tell apart, the other was taken. MCR², whose
# validation accuracy still rose after 40 epochs, has as many as it takes to stop rising: it is
# level from epoch 100 on at ratio 0, from 75 on at ratio 0.5.
#
# On Fashion-MNIST the same numbers are used; nothing was chosen there.
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

# Where paper's numbers are from. Nothing of it was tuned here.
#
# MCR²: the official code of Chan et al. (2021): its network, optimiser, schedule, batch size,
# augmentation, 30 components and corrupted labels, which it draws with seed 10 whatever else is
# seeded. That code never shuffles; shuffling is the default here and --no-shuffle keeps its fixed
# batches. It fits both subspace classifiers; the uncentred one is reported, the centred one stands
# in every record, at 30 components as at others.
#
# Cross-entropy: no code or setting was published. What stands here is the common recipe for this
# network on CIFAR-10 (He et al. 2016, with a cosine in place of steps), with the same augmentation.
#
# Nothing is held out, as there. Early stopping cannot be had without, so that a second run of each
# cell holds out a tenth.
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
