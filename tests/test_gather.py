"""Training across processes: that of one, whatever the objective."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import OBJECTIVES, K, N, split, trained
from safetensors.torch import load_file
from torch import nn

from ce_baseline import CrossEntropy
from mcr2.objectives import Context, RateReduction
from mcr2.rates import class_moments, rate_reduction_with_expansion, rates_of_moments
from mcr2.training import Encoder, TrainingConfig, World, train
from mcr2.training.gather import synchronized
from mcr2.training.loop import SharedEncoder

WORKER = Path(__file__).with_name("processes.py")


def run_processes(case, size, folder):
    """The tensors that each process left."""
    commands = [[sys.executable, WORKER, case, rank, size, folder] for rank in range(size)]
    running = [subprocess.Popen([*map(str, one)], stderr=subprocess.PIPE) for one in commands]
    told = [one.communicate(timeout=300)[1].decode() for one in running]
    assert [one.returncode for one in running] == [0] * size, "\n".join(told)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(size)]


def largest_difference(one, other):
    return max((one[key].double() - other[key].double()).abs().max().item() for key in one)


def parts(found, name):
    return {k: v for k, v in found.items() if k.startswith(f"{name}/") and v.numel()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run_processes("whole", 1, tmp_path_factory.mktemp("alone"))[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    return folder, run_processes("whole+resumed+ghosts", 2, folder)


def assert_trained_alike(alone, together):
    for found in together:
        for name in (*OBJECTIVES, "mcr2 in float32"):
            # In float32 two steps: in twenty some ReLU is turned on or off by rounding.
            tolerance = 1e-4 if "float32" in name else 1e-9
            assert largest_difference(parts(alone, name), parts(found, name)) < tolerance, name


def test_two_processes_train_the_network_of_one(alone, pair):
    assert_trained_alike(alone, pair[1])


@pytest.mark.slow
def test_four_processes_train_the_network_of_one(alone, tmp_path):
    assert_trained_alike(alone, run_processes("whole", 4, tmp_path))


def test_a_checkpoint_of_two_processes_is_continued_by_one(alone, pair):
    path = pair[0] / "checkpoint.safetensors"
    assert path.is_file()
    state = trained("state", World(), checkpoint=path)
    expected = {key: alone[f"state/{key}"] for key in state}
    assert largest_difference({k: v for k, v in state.items() if v.numel()}, expected) < 1e-9


def test_ghost_batches_keep_processes_together(pair):
    first, second = pair[1]
    for name in ("ghost", "micro"):
        assert largest_difference(parts(first, name), parts(second, name)) == 0
        own = {"ghost_batches": True} if name == "ghost" else {"micro_batch": 4}
        other = trained("mcr2", World(), epochs=2, **own)
        there = {key: first[f"{name}/{key}"] for key, value in other.items() if value.numel()}
        assert largest_difference(there, other) > 1e-4  # another normalisation, another network


def test_processes_draw_the_same_in_a_loss(pair):
    first, second = (parts(found, "drawn") for found in pair[1])
    assert first["drawn/objective.last"] > 0
    assert largest_difference(first, second) == 0


def test_local_losses_have_another_gradient():
    """Why features are gathered: the mean of two halves' losses against the loss of the whole."""
    Z = torch.randn(40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(40) % 4

    def gradient(objective, rows):
        leaf = Z[rows].clone().requires_grad_()
        objective(objective.embed(leaf), labels[rows], Context())[0].backward()
        return leaf.grad

    for objective, alike in ((CrossEntropy(4, 8).double(), True), (RateReduction(4), False)):
        whole = gradient(objective, slice(None))
        halves = [gradient(objective, World(rank, 2).rows(40)) / 2 for rank in range(2)]
        off = (torch.cat(halves) - whole).norm() / whole.norm()
        assert (off < 1e-12) if alike else (off > 0.1)


@pytest.mark.parametrize("m, size", [(7, 3), (6, 3), (2, 3), (0, 2)])
def test_shares_are_a_partition_in_order(m, size):
    rows = [range(m)[World(rank, size).rows(m)] for rank in range(size)]
    assert [i for share in rows for i in share] == list(range(m))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_rates_of_moments_are_the_rates():
    generator = torch.Generator().manual_seed(1)
    Z = torch.nn.functional.normalize(
        torch.randn(60, 5, generator=generator, dtype=torch.float64), dim=1
    ).requires_grad_()
    labels = torch.randint(0, 3, (60,), generator=generator)  # the class 3 is absent
    expected = rate_reduction_with_expansion(Z, labels, gamma=2.0, num_classes=4, eps_sq=0.3)
    moments = class_moments(Z, labels, num_classes=4)
    counts = torch.bincount(labels, minlength=4)
    found = rates_of_moments(moments, counts, gamma=2.0, eps_sq=0.3)
    for one, other in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(one, other)
    (one,) = torch.autograd.grad(found[0] - found[1].compressed_rate, Z, retain_graph=True)
    (other,) = torch.autograd.grad(expected[0] - expected[1].compressed_rate, Z)
    torch.testing.assert_close(one, other)


def test_a_loss_of_its_own_does_not_inherit_moments():
    class Changed(RateReduction):
        def loss(self, features, labels, context):
            loss, terms = super().loss(features, labels, context)
            return 2 * loss, terms

    class Projected(RateReduction):
        def embed(self, raw):
            return super().embed(raw.flip(0))

    assert RateReduction(2).knows_moments
    assert not Changed(2).knows_moments
    assert not Projected(2).knows_moments
    assert not CrossEntropy(2, 2).knows_moments


def test_bad_moments_are_named():
    M, counts = torch.eye(2, dtype=torch.float64)[None], torch.tensor([1])
    with pytest.raises(TypeError, match="float64"):
        rates_of_moments(M.float(), counts)
    with pytest.raises(ValueError, match="shape"):
        rates_of_moments(M, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="one of them more"):
        rates_of_moments(M, torch.tensor([0]))
    with pytest.raises(ValueError, match="finite"):
        rates_of_moments(M * torch.nan, counts)
    with pytest.raises(ValueError, match="too small"):
        rates_of_moments(M * M.new_tensor([1.0, 0.0]), counts, eps_sq=1e-30)


def test_layers_that_share_a_name_or_are_held_elsewhere_are_synchronized():
    norm = nn.BatchNorm1d(3)
    net = nn.Sequential(norm, nn.ReLU(), norm)
    with synchronized(net, World(0, 2)):
        assert net[0] is net[2] is norm
        assert type(norm) is not nn.BatchNorm1d
    assert type(norm) is nn.BatchNorm1d


def test_a_normalization_of_ones_own_is_refused():
    class Own(nn.BatchNorm1d):
        def forward(self, input):
            return 2 * super().forward(input)

    with (
        pytest.raises(ValueError, match="Own has a forward of its own"),
        synchronized(nn.Sequential(Own(3)), World(0, 2)),
    ):
        pass


def test_nobody_is_given_an_empty_batch():
    class Picky(nn.Module):
        def forward(self, images):
            return images.view(images.size(0), -1)

    encoder, image = Encoder(Picky(), CrossEntropy(2, 4)), torch.rand(1, 1, 2, 2)
    for rank in (0, 1):
        assert torch.equal(SharedEncoder(encoder, World(rank, 2))(image), encoder(image))


def test_too_many_processes_are_refused():
    with pytest.raises(ValueError, match="12 processes need two samples each"):
        train(
            nn.Flatten(),
            RateReduction(K),
            split(),
            TrainingConfig(epochs=1, batch_size=24),
            world=World(0, 12),
        )
    with pytest.raises(ValueError, match="counts from 0"):
        World(2, 2)
    with pytest.raises(ValueError, match="accumulate is of one process"):
        train(
            nn.Flatten(),
            CrossEntropy(K, 64),
            split(),
            TrainingConfig(epochs=1, batch_size=N, micro_batch=8, accumulate=True),
            world=World(0, 2),
        )
