"""What tests of several processes run in each: ``python processes.py CASE RANK SIZE FOLDER``.

The processes meet in a file of the folder, and leave their tensors there.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from ce_baseline import CrossEntropy
from mcr2.backbones import BACKBONES
from mcr2.data import Augmentation, Split
from mcr2.objectives import Objective, RateReduction, VariationalRateReduction
from mcr2.training import Feed, Interrupted, TrainingConfig, Watch, World, seeded, train

K, D, N = 3, 6, 43  # batches of 22 and 21: no share of either is the same everywhere


class Remembered(Objective):
    """Features near their own moving average: state of every sample, and of the whole batch."""

    def __init__(self, num_classes, num_samples, feature_dim):
        super().__init__(num_classes)
        self.register_buffer("memory", torch.zeros(num_samples, feature_dim))
        self.scale = nn.Parameter(torch.ones(()))

    def loss(self, features, labels, context):
        held = self.memory[context.indices].to(features)
        self.memory[context.indices] = (0.9 * held + 0.1 * features.detach()).to(self.memory)
        near = (self.scale * features - held).square().mean()
        return near - 0.1 * (features.mT @ features / len(features)).logdet(), {"near": near}


class MomentsAlone(RateReduction):
    """MCR² that will not see the features of several processes."""

    def loss(self, features, labels, context):
        assert World.of_group().size == 1
        return super().loss(features, labels, context)

    def loss_of_moments(self, moments, counts, context):
        assert World.of_group().size > 1
        return super().loss_of_moments(moments, counts, context)


class Drawn(CrossEntropy):
    """Cross-entropy of features of which some are dropped."""

    def __init__(self, num_classes, feature_dim):
        super().__init__(num_classes, feature_dim)
        self.register_buffer("last", torch.zeros(()))

    def loss(self, features, labels, context):
        loss, terms = super().loss(nn.functional.dropout(features), labels, context)
        self.last.copy_(loss.detach())
        return loss, terms


OBJECTIVES = {
    "ce": lambda: CrossEntropy(K, D),
    "mcr2": lambda: RateReduction(K),
    "vmcr2": lambda: VariationalRateReduction(K, D, penalty=30.0, components=2, latch_every=2),
    "state": lambda: Remembered(K, N, D),
    "moments": lambda: MomentsAlone(K),
}


class Wide(nn.Module):
    """A network in another precision than the images that it is given."""

    def __init__(self, inner, dtype):
        super().__init__()
        self.inner, self.dtype = inner.to(dtype), dtype

    def forward(self, images):
        return self.inner(images.to(self.dtype))


def split():
    images = torch.randint(0, 256, (N, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return Split(images.byte(), torch.arange(N) % K)


def trained(name, world, dtype=torch.float64, *, dim=D, **config):
    """The tensors of a network after training, and the result."""
    with seeded(0):
        net = Wide(BACKBONES["resnet8_w8"](in_channels=1, feature_dim=dim), dtype)
    with seeded(1):
        objective = OBJECTIVES[name]().to(dtype)
    rest = {"checkpoint": config.pop("checkpoint", None), "stop": config.pop("stop", None)}
    settings = {"epochs": 10, "batch_size": 24, "lr": 0.02, "evaluate_every": 5} | config
    images = split().images.float() / 255
    watch = Watch(evaluate=lambda encoder: {"norm": encoder.eval()(images).detach().norm().item()})
    feed = Feed(augmentation=Augmentation(shift=1, flip=True))
    config = TrainingConfig(**settings)
    result = train(net, objective, split(), config, feed, watch, world=world, **rest)
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    state |= {f"objective.{k}": v for k, v in objective.state_dict().items()}
    return state | {"norms": torch.tensor([e["measures"]["norm"] for e in result.history])}


def stopped(name, world, folder, *, steps, **config):
    """Train until the last process, and no other, asks to stop after so many steps."""
    asked = iter(range(steps))
    last = world.rank == world.size - 1
    path = folder / "checkpoint.safetensors"
    try:
        trained(
            name,
            world,
            checkpoint=path,
            stop=lambda: last and next(asked, None) is None,
            **config,
        )
    except Interrupted:
        return path
    raise AssertionError("nobody stopped")


def whole(world, folder):
    """Every objective in float64; MCR² by moments, in micro-batches, in float32."""
    variants: dict = {name: {} for name in OBJECTIVES}
    # Two dimensions: m d numbers outweigh K d².
    variants["moments"] = {"dim": 2, "batch_size": N}
    variants["mcr2 in float32"] = {"dtype": torch.float32, "epochs": 1}
    found = {}
    for name, how in variants.items():
        state = trained(name.partition(" ")[0], world, **how)
        found |= {f"{name}/{key}": value for key, value in state.items()}
    return found


def resumed(world, folder):
    """A checkpoint written here is continued by one process, by the test."""
    stopped("state", world, folder, steps=7)
    return {}


def ghosts(world, folder):
    """Ghost batches and micro-batches, where processes normalise by less than the batch."""
    OBJECTIVES["drawn"] = lambda: Drawn(K, D)
    found = {f"drawn/{key}": value for key, value in trained("drawn", world, epochs=2).items()}
    for name, how in {"ghost": {"ghost_batches": True}, "micro": {"micro_batch": 4}}.items():
        state = trained("mcr2", world, epochs=2, **how)
        found |= {f"{name}/{key}": value for key, value in state.items()}
    return found


CASES = {"whole": whole, "resumed": resumed, "ghosts": ghosts}


def main():
    case, rank, size, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    if size > 1:
        store = (folder / "store").resolve().as_uri()
        dist.init_process_group("gloo", store, timedelta(seconds=60), size, rank)
    found = {}
    for each in case.split("+"):
        found |= CASES[each](World.of_group(), folder)
    save_file({k: v.contiguous() for k, v in found.items()}, folder / f"rank{rank}.safetensors")
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
