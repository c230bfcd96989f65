"""ReduNet as a method of the study: a spec's options -> a constructed network of images.

What is trained in other methods is constructed here from the same training samples with the same
noisy labels; augmentation, optimiser and backbone have no part in it. Depth stands where epochs
stand: history and selection go over layers. Of the spec's ``training`` two fields are read,
``evaluate_every`` (layers between evaluations) and ``batch_size`` (samples at a time, for memory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from torch import Tensor, nn

from experiments.runs.specs import RunSpec
from mcr2.data import Split, to_float
from mcr2.redunet import STORES, LayerRates, RandomFilters, ReduNet


# How the defaults were chosen: digits as vectors, noisy validation accuracy at ratio 0.2, mean of
# seeds 0 and 1 (standard error of every figure: 0.02), by nearest subspace with the recipe's 3
# components after every tenth of 100 layers, for η 0.1 and 0.5, ε² 0.1, 0.5 and 2, λ 1, 20 and 500.
# Pixels read 0.792, and the best of 3 components was 0.830, reached by the settings of Chan et al.
# (2022), η = 0.5, ε² = 0.1, λ = 500, after 20 layers, and by η = 0.1 after 100; 100 layers at
# η = 0.5 read 0.816. With λ = 1, membership is hardly estimated and depth only loses (0.747); at
# ε² = 2 little moves (0.799). With 5 components the best was 0.840, within an error of that.
#
# For images lifted to 8 channels the same was tried in seven settings, η 0.5 to 2, ε² 1e-4 to 0.5:
# lifted pixels read 0.778, η = 2, ε² = 0.01, 10 layers 0.812, η = 0.5 as much after 30 layers
# within the error; at ε² = 0.1, 20 layers 0.792.
@dataclass(frozen=True)
class ReduNetOptions:
    """A spec's options for ReduNet.

    Attributes:
        layers: how many to construct.
        eta: η, the step.
        eps_sq: ε².
        lam: λ, how sharply membership is estimated.
        lifting: channels that random filters make of an image, constructed as shift-invariant;
            0 takes the pixels as one vector.
        kernel_size: side of those filters.
        membership: ``"estimated"`` or ``"given"``, see :class:`mcr2.redunet.ReduNet`.
        store: where features are during construction: ``"memory"``, ``"disk"``, ``"recompute"``.
    """

    layers: int = 20
    eta: float = 0.5
    eps_sq: float = 0.1
    lam: float = 500.0
    lifting: int = 0
    kernel_size: int = 3
    membership: str = "estimated"
    store: str = "memory"


#: Names of the options.
OPTIONS = frozenset(field.name for field in fields(ReduNetOptions))


def read_options(spec: RunSpec) -> ReduNetOptions:
    """Return a spec's options.

    Raises:
        ValueError: an option that ReduNet does not have.

    Example:
        >>> read_options(RunSpec("redunet", options=(("layers", 5),))).layers
        5
    """
    for name, _ in spec.options:
        if name not in OPTIONS:
            known = ", ".join(sorted(OPTIONS))
            raise ValueError(f"redunet has no option {name!r}; its options: {known}")
    return ReduNetOptions(**dict(spec.options))


class ReduNetEncoder(nn.Module):
    """A ReduNet of images: pixels as one vector, or lifted channels of a shift-invariant network.

    Args:
        network: constructed or not.
        flat: whether the network takes vectors.
    """

    def __init__(self, network: ReduNet, *, flat: bool) -> None:
        super().__init__()
        self.network = network
        self.flat = flat

    def enter(self, images: Tensor) -> Tensor:
        """Return float images ``(m, C, H, W)`` as the network takes them."""
        return images.flatten(1) if self.flat else images.contiguous()

    def forward(self, images: Tensor) -> Tensor:
        """Map float images to features ``(m, d)``, channels and positions side by side."""
        features: Tensor = self.network(self.enter(images)).flatten(1)
        return features

    def classifier(self) -> None:
        """A network constructed from rates has no linear head."""
        return


def make_encoder(spec: RunSpec, in_channels: int, patience: int | None = None) -> ReduNetEncoder:
    """Return a spec's network before construction; filters are drawn from the backbone's stream.

    Args:
        spec: gives options and seed.
        in_channels: of the images.
        patience: of :class:`mcr2.redunet.ReduNet`.

    Raises:
        ValueError, TypeError: options that ReduNet refuses.
    """
    settings = asdict(read_options(spec))
    channels, side = settings.pop("lifting"), settings.pop("kernel_size")
    store = settings.pop("store")
    if store not in STORES:
        raise ValueError(f"store is {store!r}; choose from {', '.join(STORES)}")
    if not isinstance(channels, int) or isinstance(channels, bool) or channels < 0:
        raise ValueError(f"lifting is {channels!r}; it is a number of channels, 0 for none")
    lifting = None
    if channels:
        seed = spec.streams.seeds(spec.seed)["backbone"]
        lifting = RandomFilters(in_channels, channels, kernel_size=side, dims=2, seed=seed)
    network = ReduNet(**settings, lifting=lifting, patience=patience)
    return ReduNetEncoder(network, flat=lifting is None)


def check(spec: RunSpec, in_channels: int, height: int, width: int) -> None:
    """Refuse options that no network can be constructed with of images of this size.

    An ε² too small for the samples is not among them: it shows in the construction only.

    Raises:
        ValueError, TypeError: options that ReduNet refuses; a filter larger than the images.
    """
    lifting = make_encoder(spec, in_channels).network.lifting
    if isinstance(lifting, RandomFilters) and lifting.kernel_size > min(height, width):
        raise ValueError(
            f"kernel_size is {lifting.kernel_size}; the images, {height} × {width}, are smaller"
        )


def construct(
    encoder: ReduNetEncoder,
    split: Split,
    spec: RunSpec,
    *,
    num_classes: int,
    progress: Callable[[LayerRates], None] | None = None,
) -> None:
    """Construct an encoder's layers from training samples and their labels, on their device.

    Args:
        encoder: of :func:`make_encoder`.
        split: training samples.
        spec: gives batch size and store.
        num_classes: K.
        progress: of :meth:`mcr2.redunet.ReduNet.fit`.

    Raises:
        ValueError: images smaller than a filter; an ε² too small.
    """
    encoder.network.fit(
        encoder.enter(to_float(split.images)),
        split.labels,
        num_classes=num_classes,
        batch_size=spec.training.batch_size,
        store=read_options(spec).store,
        progress=progress,
    )
