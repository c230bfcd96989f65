"""Training across processes: each has its rows of a batch, all see the features of the whole.

A rate of a batch is not the mean of its parts' rates, so that averaging the gradients of local
losses, as data-parallel training usually does, is another loss. Here every process passes its own
rows through the backbone, the features are gathered, the objective is scored on all of them by
every process alike, and each pulls its own rows of the gradient back through the backbone; the sum
of these over processes is the gradient of the whole batch, whatever the objective. Its state, of
samples or of classes, stays the same everywhere, because everyone sees everything.

Where the objective is a function of its classes' second moments, these can be summed instead: K d²
numbers for m d. After every step all processes hold the same network, so that a checkpoint of N of
them is a checkpoint of any number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class World:
    """Which of how many processes this one is; ``World()`` is alone and sends nothing.

    Attributes:
        rank: of this process, from 0; the first one writes and tells.
        size: processes, which have one ``torch.distributed`` process group.

    Raises:
        ValueError: a rank that is not in 0 ... size − 1.

    Example:
        >>> World().gathered(torch.ones(3, 2), 3).shape, World(1, 2).rows(5)
        (torch.Size([3, 2]), slice(3, 5, None))
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} of {self.size} processes; it counts from 0")

    @staticmethod
    def of_group() -> World:
        """Return that of this process's group, or one process alone."""
        if dist.is_available() and dist.is_initialized():
            return World(dist.get_rank(), dist.get_world_size())
        return World()

    def rows(self, m: int) -> slice:
        """Return which of m samples are this process's own; shares differ by one at most."""
        short, more = divmod(m, self.size)
        start = self.rank * short + min(self.rank, more)
        return slice(start, start + short + (self.rank < more))

    def gathered(self, own: Tensor, m: int) -> Tensor:
        """Return the rows ``(m, ...)`` of all processes, in the order of the whole, no graph."""
        if self.size == 1:
            return own.detach()
        largest = -(-m // self.size)  # rows of equal number travel; the last may be padding
        padded = own.new_zeros((largest, *own.shape[1:]))
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        counts = [len(range(m)[World(rank, self.size).rows(m)]) for rank in range(self.size)]
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over processes, one message for each dtype."""
        if self.size == 1:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for same in kinds.values():
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            dist.all_reduce(flat)
            for tensor, summed in zip(
                same, torch.split(flat, [t.numel() for t in same]), strict=True
            ):
                tensor.copy_(summed.view_as(tensor))

    def reducing_pays(self, m: int, d: int, num_classes: int) -> bool:
        """Whether K moments of d² numbers travel with fewer bytes than m features of d.

        Features are gathered in four bytes; moments are summed in eight, and travel twice.
        """
        return self.size > 1 and 4 * m * d > 2 * 8 * num_classes * d**2

    def total(self, own: Tensor) -> Tensor:
        """Return the sum over processes of what depends on each one's own rows.

        Its gradient is that of a function which all processes compute alike: they have the same
        gradient of the sum, and each needs just that.
        """
        return own if self.size == 1 else _Total.apply(own)

    def share_gradients(self, backbone: nn.Module, objective: nn.Module, wish: bool) -> Tensor:
        """Make gradients those of the whole batch; return how many processes have the wish, ``()``.

        The backbone's gradients, of own rows, are summed. The objective's are the same already, but
        for the order in which a GPU adds: their mean keeps the processes from drifting apart, as
        does that of the backbone's running statistics, which differ with ghost batches.
        """
        grads = [p.grad for p in backbone.parameters() if p.grad is not None]
        same = [p.grad for p in objective.parameters() if p.grad is not None]
        same += [b for b in backbone.buffers() if b.is_floating_point()]
        for tensor in same:
            tensor /= self.size
        wishes = torch.tensor(float(wish), device=_device())
        self.sum_([*grads, *same, wishes])
        return wishes

    def told(self, yes: bool = False) -> bool:
        """Return what the first process says; the others' own word does not count."""
        if self.size > 1:
            word = torch.tensor([float(yes)], device=_device())
            dist.broadcast(word, 0)
            yes = bool(word.item())
        return yes

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def check_agreement(self, what: str, values: Sequence[float]) -> None:
        """Refuse processes that differ in numbers which must be the same.

        Raises:
            ValueError: they do; ``what`` says in what.
        """
        if self.size == 1:
            return
        both = [*values, *(-value for value in values)]
        largest = torch.tensor(both, dtype=torch.float64, device=_device())
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        first, second = largest.chunk(2)
        if not torch.equal(first, -second):
            raise ValueError(
                f"the {self.size} processes differ in {what}: they must see the same data, code "
                "and folder"
            )


def _device() -> torch.device:
    """Return where the group's messages have to lie."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _summed(own: Tensor) -> Tensor:
    total = own.clone()
    dist.all_reduce(total)
    return total


class _Total(Function):
    """The sum over processes, for a function that all of them compute alike."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return _summed(own)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class _Exchanged(_Total):
    """The sum over processes, of which each makes another function: gradients add up."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _summed(grads[0])


class _SynchronizedOnCPU(_BatchNorm):
    """Batch normalisation by the samples of all processes, for which torch has GPUs alone.

    Every process sends its count, means and centred squares; they are joined by the update for sets
    of samples (Chan, Golub & LeVeque 1983), because E x² − (E x)² would lose what is small.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the layer that this one stands for has checked

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        world = World.of_group()
        others = [dim for dim in range(input.dim()) if dim != 1]
        n = input.numel() // input.shape[1]
        shape = (1, -1, *[1] * (input.dim() - 2))
        own_mean = input.mean(others)
        squares = (input - own_mean.view(shape)).square().sum(others)
        own = torch.cat([input.new_tensor([float(n)]), own_mean, squares])
        table = torch.nn.functional.pad(own[None], (0, 0, world.rank, world.size - world.rank - 1))
        found = _Exchanged.apply(table)
        counts = found[:, :1]
        means, squares = found[:, 1:].chunk(2, dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        variance = (squares + counts * (means - mean).square()).sum(0) / total
        self._follow(mean, variance * total / (total - 1).clamp(min=1))
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        shift = (0 if self.bias is None else self.bias) - mean * scale
        return torch.addcmul(shift.view(shape), input, scale.view(shape))

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        factor = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            factor = 1 / float(self.num_batches_tracked) if factor is None else factor
        self.running_mean.lerp_(mean.to(self.running_mean), factor or 0.0)
        self.running_var.lerp_(variance.to(self.running_var), factor or 0.0)


@contextlib.contextmanager
def synchronized(module: nn.Module, world: World) -> Iterator[None]:
    """Let batch normalisation inside a module see the samples of all processes, inside the block.

    Layers stay the same objects, whatever refers to them, and after the block of the class that
    they were.

    Raises:
        ValueError: a layer of the user's own normalises otherwise.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if world.size > 1 else []
    kinds = [type(norm) for norm in norms]
    for kind in kinds:
        if kind.forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward):
            raise ValueError(
                f"{kind.__name__} has a forward of its own, which cannot see the samples of other "
                "processes; ghost_batches=true lets each normalise its own"
            )
    try:
        for norm in norms:
            on_gpu = next((t.is_cuda for t in (*norm.parameters(), *norm.buffers())), False)
            norm.__class__ = nn.SyncBatchNorm if on_gpu else _SynchronizedOnCPU
            if on_gpu:
                norm.process_group = None  # type: ignore[assignment]
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind
