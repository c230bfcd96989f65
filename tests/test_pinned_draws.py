"""The draws of a seed, pinned: a change of code, NumPy or PyTorch that changes them is noticed.

A seed is worth what it draws. NumPy promises that ``RandomState`` never changes; that the others
draw alike in the next release is promised by nobody, and has held so far. Where one of these fails,
runs of before and after the change are no longer runs of the same seed: say so in the changelog.
"""

import hashlib

import pytest
import torch

from experiments.runs.methods import METHODS
from experiments.runs.prepare import load, prepare
from experiments.runs.specs import RunSpec, Streams
from mcr2.data import Augmentation, Split, batches, mix_seed, stratified_subset
from mcr2.noise import corrupt
from mcr2.objectives import RateReduction
from mcr2.training import Feed, TrainingConfig, train

SPEC = RunSpec("ce", backbone="resnet10_w8", feature_dim=16, ratio=0.3, seed=10)


def digest(tensor):
    return hashlib.sha256(tensor.numpy().astype("<i8").tobytes()).hexdigest()[:16]


def written(tensor):
    return " ".join(map(str, tensor.tolist()))


def split(n=20):
    images = torch.arange(n * 36).remainder(251).to(torch.uint8).view(n, 1, 6, 6)
    return Split(images, torch.arange(n) % 2)


def test_the_seeds_of_the_streams():
    assert Streams().seeds(10) == {
        "noise": 10,
        "validation": 1804558039,
        "backbone": 3329704037,
        "objective": 462383346,
        "batches": 3782351289,
        "augmentation": 2691845233,
    }
    assert mix_seed("order", 0, 1) == 5235859805464026190


def test_the_redrawn_labels():
    labels = torch.arange(1000) % 10
    drawn = corrupt(labels, 0.3, num_classes=10, seed=10)
    assert drawn.indices[:6].tolist() == [841, 956, 544, 173, 759, 955]
    assert int(drawn.wrong.sum()) == 270
    assert digest(drawn.labels) == "040980a133a3e18a"


def test_the_subset_and_what_is_held_out():
    subset = stratified_subset(torch.arange(40) % 4, 8, seed=0)
    assert written(subset) == "4 6 7 10 15 17 36 37"
    data = prepare(SPEC, load(SPEC))
    assert data.held_out[:6].tolist() == [0, 12, 17, 18, 46, 47]
    assert digest(data.held_out) == "c5e68657c354e461"
    assert digest(data.corruption.labels) == "6a006d89780e4830"


def test_the_order_of_samples():
    parts = batches(split(), 7, epoch=3, sampling_seed=5, augmentation_seed=0)
    order = torch.cat([part.indices for part in parts])
    assert written(order) == "8 1 4 13 9 14 19 7 17 0 18 3 10 2 5 6 12 15 11 16"


def test_the_shifts_and_flips():
    """Where one bright pixel goes: by its place, four images' shifts and mirrorings."""
    images = torch.zeros(4, 1, 9, 9, dtype=torch.uint8)
    images[:, 0, 4, 3] = 255
    (batch,) = batches(
        Split(images, torch.arange(4) % 2),
        4,
        epoch=1,
        sampling_seed=0,
        augmentation_seed=7,
        augmentation=Augmentation(shift=2, flip=True),
        shuffle=False,
    )
    assert batch.images[:, 0].nonzero()[:, 1:].tolist() == [[2, 4], [2, 3], [2, 2], [2, 3]]


def test_what_the_first_epoch_feeds():
    config = TrainingConfig(epochs=1, batch_size=10, lr=0.0, schedule="constant")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 4))
    fed = train(
        net, RateReduction(2), split(), config, Feed(augmentation=Augmentation(1, True))
    ).proof
    assert {name: value[:16] for name, value in fed.items()} == {
        "sampling": "04278a72807cca5d",
        "augmentation": "d21b523ec86f7b77",
    }


@pytest.mark.parametrize("method", ["ce", "mcr2"])
def test_the_initial_weights(method):
    """To five digits: the last ones hang on how a processor rounds the scaling of a draw."""
    data = prepare(SPEC, load(SPEC))
    weights = METHODS[method].build(SPEC, data.sizes).backbone.state_dict()
    first, last = next(iter(weights)), [name for name in weights if name.endswith("weight")][-1]
    assert weights[first].flatten()[:3].tolist() == pytest.approx(
        [0.048608582, -0.054172836, -0.31569409], rel=1e-5
    )
    assert weights[last].flatten()[:3].tolist() == pytest.approx(
        [0.049222499, -0.077715218, -0.099669561], rel=1e-5
    )
