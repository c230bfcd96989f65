"""The recipe `paper`, part by part, against what the official code of the paper does."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from experiments.commands.cli import parse
from experiments.runs.grid import grid
from experiments.runs.method import readout_for, rules_for
from experiments.runs.methods import METHODS
from experiments.runs.prepare import Sizes, load, prepare
from experiments.runs.recipes import PAPER
from experiments.runs.runner import extra_readouts
from experiments.runs.trained import feed_for
from mcr2.data import Augmentation, Split, batches, num_batches
from mcr2.noise import corrupt
from mcr2.objectives import Context
from mcr2.selection import SELECTIONS
from mcr2.training import backpropagate, learning_rate, make_optimizer

SHARED = Path(__file__).parents[2] / "shared/data"
CIFAR10_LABELS = SHARED / "cifar10-train-labels.npy"
CIFAR10 = SHARED / "cifar10-12k.npz"

SIZES = Sizes(num_classes=10, in_channels=3, num_samples=50_000, height=32, width=32)

# The others are constructed: they have no backbone and take no steps.
TRAINED = [name for name, method in METHODS.items() if method.trained]


def spec(method, *settings, **changes):
    """The run of a method that holds nothing out."""
    ratio, seed = changes.pop("ratio", 0.0), changes.pop("seed", 0)
    return grid(PAPER, [method], [ratio], [seed], settings=settings, fields=changes)[0]


def test_the_network_has_the_papers_parameters():
    for method in TRAINED:
        backbone = METHODS[method].build(spec(method), SIZES).backbone
        assert sum(p.numel() for p in backbone.parameters()) == 11_497_664


def test_the_learning_rate_of_mcr2_at_every_epoch():
    config = spec("mcr2").training
    per_epoch = num_batches(50_000, config.batch_size)
    assert (config.epochs, config.batch_size, per_epoch) == (500, 1000, 50)
    for epoch in range(500):
        expected = 0.01 if epoch < 200 else 0.001 if epoch < 400 else 0.0001
        for step in (epoch * 50, epoch * 50 + 49):
            assert learning_rate(config, step, 50) == pytest.approx(expected, rel=1e-12)


def test_the_learning_rate_of_cross_entropy_at_every_epoch():
    config = spec("ce").training
    per_epoch = num_batches(50_000, config.batch_size)
    assert (config.epochs, config.batch_size, per_epoch) == (200, 128, 391)
    for epoch in range(200):
        expected = 0.05 * (1 + math.cos(math.pi * epoch / 200))
        assert learning_rate(config, epoch * per_epoch, per_epoch) == pytest.approx(expected)


@pytest.mark.parametrize("method", TRAINED)
def test_the_optimiser_is_the_papers(method):
    encoder = METHODS[method].build(spec(method), SIZES)
    config = spec(method).training
    optimizer = make_optimizer(config, encoder.backbone, encoder.objective)
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["weight_decay"]) == (0.9, 5e-4)
        assert (group["dampening"], group["nesterov"]) == (0, False)


def test_the_loss_is_the_papers():
    objective = METHODS["mcr2"].build(spec("mcr2"), SIZES).objective
    assert (objective.eps_sq, objective.gamma1, objective.gamma2) == (0.5, 1.0, 1.0)


def orders(run, epochs=3):
    split = Split(torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), torch.zeros(50_000).long())
    for epoch in range(epochs):
        yield list(
            batches(
                split,
                run.training.batch_size,
                epoch=epoch,
                sampling_seed=run.streams.seeds(run.seed)["batches"],
                augmentation_seed=0,
                shuffle=run.shuffle,
            )
        )


@pytest.mark.parametrize("command", ["table", "train"])
def test_without_shuffling_every_epoch_has_the_same_thousands_in_their_order(command):
    (setting,) = parse([command, "--recipe", "paper", "--no-shuffle"]).settings()
    for epoch in orders(spec("mcr2", setting)):
        assert len(epoch) == 50
        for number, batch in enumerate(epoch):
            assert torch.equal(batch.indices, torch.arange(1000) + 1000 * number)


def test_with_shuffling_every_epoch_has_an_order_of_its_own():
    seen = [torch.cat([batch.indices for batch in epoch]) for epoch in orders(spec("mcr2"))]
    for order in seen:
        assert torch.equal(order.sort().values, torch.arange(50_000))
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.skipif(not CIFAR10_LABELS.exists(), reason="needs ../shared/data (CIFAR-10's labels)")
@pytest.mark.parametrize("seed", [0, 3])
def test_the_five_counts_of_wrong_labels_whatever_the_runs_seed(seed):
    labels = np.load(CIFAR10_LABELS)
    expected = {0.1: 4502, 0.2: 8963, 0.3: 13445, 0.4: 17969, 0.5: 22464}
    for ratio, wrong in expected.items():
        for run in grid(PAPER, ["ce", "mcr2"], [ratio], [seed]):
            noise = run.streams.seeds(run.seed)["noise"]
            found = corrupt(labels, run.ratio, num_classes=10, seed=noise, kind=run.noise)
            assert int(found.wrong.sum()) == wrong


@pytest.mark.parametrize("method", TRAINED)
def test_shifts_are_uniform_over_the_padding_of_eight_and_half_the_images_are_mirrored(method):
    # A bright pixel tells where the image went, a dim one right of it whether it was mirrored.
    n = 20_000
    images = torch.zeros(n, 1, 32, 32, dtype=torch.uint8)
    images[:, 0, 15, 15], images[:, 0, 15, 16] = 255, 128
    run = spec(method)
    (batch,) = batches(
        Split(images, torch.zeros(n).long()),
        n,
        epoch=0,
        sampling_seed=0,
        augmentation_seed=run.streams.seeds(run.seed)["augmentation"],
        augmentation=Augmentation(run.shift, run.flip),
    )
    place = batch.images.flatten(1).argmax(1)
    rows, columns = place // 32, place % 32
    pixels = batch.images[torch.arange(n), 0, rows]
    mirrored = pixels[torch.arange(n), columns - 1] > 0
    down = rows - 15
    right = torch.where(mirrored, 16 - columns, columns - 15)
    assert (int(down.min()), int(down.max())) == (-8, 8)
    assert (int(right.min()), int(right.max())) == (-8, 8)
    counts = torch.bincount((down + 8) * 17 + right + 8, minlength=17 * 17)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert stats.binomtest(int(mirrored.sum()), n).pvalue > 1e-3


def test_both_thirty_component_subspaces_are_read_and_the_uncentred_one_is_reported():
    run = spec("mcr2")
    assert readout_for(run, METHODS["mcr2"]) == "nearest_subspace@30"
    assert {"nearest_subspace@30", "nearest_subspace_centred@30"} <= set(extra_readouts(run))
    assert readout_for(spec("ce"), METHODS["ce"]) == "head"


def test_nothing_is_held_out_but_in_the_runs_that_serve_early_stopping():
    runs = grid(PAPER, ["ce", "mcr2"], [0.0, 0.5], [0, 1])
    assert len(runs) == 2 * 2 * 2 * 2
    for run in runs:
        early = ("noisy_validation", "patience", "clean_validation")
        assert rules_for(run) == (("last", "oracle") if run.validation == 0 else early)
    assert sorted({run.validation for run in runs}) == [0.0, 0.1]
    (one,) = grid(PAPER, ["ce"], [0.0], [0], settings=["validation=0.05"])
    assert rules_for(one) == tuple(SELECTIONS)


# -------------------------------------------------------------------------- the gradient of a step


def paper_loss(Z, labels, K, eps_sq=0.5):
    """The loss as the paper writes it: samples are columns, Pi_j diagonal m x m matrices."""
    d, m = Z.shape
    eye = torch.eye(d, dtype=Z.dtype)
    Pi = torch.stack([torch.diag((labels == k).to(Z.dtype)) for k in range(K)])
    expanded = 0.5 * torch.logdet(eye + d / (m * eps_sq) * Z @ Z.T)
    compressed = Z.new_zeros(())
    for k in range(K):
        trace = Pi[k].trace()
        inner = torch.logdet(eye + d / (trace * eps_sq) * Z @ Pi[k] @ Z.T)
        compressed = compressed + trace / (2 * m) * inner
    return compressed - expanded


def one_batch(*settings):
    run = spec("mcr2", "shuffle=false", *settings, ratio=0.5, dataset=str(CIFAR10))
    data = prepare(run, load(run))
    batch = next(
        batches(
            data.train,
            run.training.batch_size,
            epoch=0,
            sampling_seed=0,
            augmentation_seed=1,
            augmentation=feed_for(run, data).augmentation,
            shuffle=run.shuffle,
        )
    )
    assert len(batch.labels) == 1000
    return run, METHODS["mcr2"].build(run, data.sizes).train(), batch


def gradient(module):
    return torch.cat([p.grad.flatten().double() for p in module.parameters()])


needs_cifar = pytest.mark.skipif(not CIFAR10.exists(), reason="needs ../shared/data (CIFAR-10)")


@needs_cifar
@pytest.mark.parametrize(
    "dtype, layout, tolerance",
    # Torch's batch normalisation on the CPU sums channels_last images plainly in float32: on a
    # thousand of them its mean is off by 1e-4, and this gradient, at its start, by percents.
    [
        (torch.float32, torch.contiguous_format, 1e-4),
        (torch.float64, torch.channels_last, 1e-9),
    ],
)
def test_the_gradient_of_a_step_on_cifar_is_that_of_a_float64_network_under_the_papers_loss(
    dtype, layout, tolerance
):
    run, encoder, batch = one_batch("backbone=resnet10_w8", "stem_stride=2")
    oracle = copy.deepcopy(encoder.backbone).double()
    raw = oracle(batch.images.double())
    Z = (raw / raw.norm(dim=1, keepdim=True)).T
    expected_loss = paper_loss(Z, batch.labels, 10)
    expected_loss.backward()

    backbone = encoder.backbone.to(dtype)
    batch = batch._replace(images=batch.images.to(dtype).contiguous(memory_format=layout))
    loss, _ = backpropagate(backbone, encoder.objective, batch, Context(), run.training)
    assert float(loss) == pytest.approx(expected_loss.item(), rel=tolerance)
    off = gradient(backbone) - gradient(oracle)
    assert off.norm() <= tolerance * gradient(oracle).norm()


@pytest.mark.slow
@needs_cifar
def test_the_gradient_of_a_step_of_resnet18_is_that_of_the_papers_loss_in_float64():
    # The loss alone in float64: a ResNet-18 in float64 takes a thousand images many minutes.
    run, encoder, batch = one_batch()
    oracle = copy.deepcopy(encoder.backbone)
    raw = oracle(batch.images)
    wide = raw.detach().double().requires_grad_()
    expected_loss = paper_loss((wide / wide.norm(dim=1, keepdim=True)).T, batch.labels, 10)
    expected_loss.backward()
    raw.backward(wide.grad.float())
    del raw

    loss, _ = backpropagate(encoder.backbone, encoder.objective, batch, Context(), run.training)
    assert float(loss) == pytest.approx(expected_loss.item(), rel=1e-5)
    off = gradient(encoder.backbone) - gradient(oracle)
    assert off.norm() <= 1e-4 * gradient(oracle).norm()
