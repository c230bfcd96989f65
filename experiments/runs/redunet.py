"""ReduNet as a method of the study: a spec's options -> a constructed network of images.

What is trained in other methods is constructed here from the same training samples with the same
noisy labels; augmentation, optimiser and backbone have no part in it. Depth stands where epochs
stand: history and selection go over layers. Of the spec's ``training`` two fields are read,
``evaluate_every`` (layers between evaluations) and ``batch_size`` (samples at a time, for memory).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields

from torch import Tensor, nn

from experiments.runs.specs import RunSpec
from mcr2 import checks
from mcr2.data import Split, to_float
from mcr2.redunet import STORES, LayerRates, RandomFilters, ReduNet


@dataclass(frozen=True)
class ReduNetOptions:
    """A spec's options: those of :class:`mcr2.redunet.ReduNet` and its ``fit``, and its lifting.

    ``lifting`` channels are made of an image by random filters of side ``kernel_size``, constructed
    as shift-invariant; 0 takes the pixels as one vector.
    """

    layers: int = 20
    eta: float = 0.5
    eps_sq: float = 0.1
    lam: float = 500.0
    lifting: int = 0
    kernel_size: int = 3
    membership: str = "estimated"
    fft_norm: str = "backward"
    store: str = "memory"


#: Names of the options.
OPTIONS = frozenset(field.name for field in fields(ReduNetOptions))


def read_options(spec: RunSpec) -> ReduNetOptions:
    """Return a spec's options; ValueError where ReduNet has no such option.

    Example:
        >>> read_options(RunSpec("redunet", options=(("layers", 5),))).layers
        5
    """
    for name, _ in spec.options:
        checks.choice("option of redunet", name, sorted(OPTIONS))
    return ReduNetOptions(**dict(spec.options))


class ReduNetEncoder(nn.Module):
    """A ReduNet of images: of pixels as one vector, or of lifted channels, shift-invariant."""

    def __init__(self, network: ReduNet) -> None:
        super().__init__()
        self.network = network

    def enter(self, images: Tensor) -> Tensor:
        """Return float images ``(m, C, H, W)`` as the network takes them."""
        return images.flatten(1) if self.network.lifting is None else images.contiguous()

    def forward(self, images: Tensor) -> Tensor:
        """Map float images to features ``(m, d)``, channels and positions side by side."""
        features: Tensor = self.network(self.enter(images)).flatten(1)
        return features

    def layer_names(self) -> tuple[str, ...]:
        """Return ``layer1``, ..., ``layerL``, the layers that are constructed."""
        return tuple(f"layer{depth}" for depth in range(1, len(self.network.layers) + 1))

    def layer_features(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return features ``(m, d)`` behind named layers; ``"features"`` are those behind all."""
        depths = {name: depth for depth, name in enumerate(self.layer_names(), 1)}
        depths["features"] = len(depths)
        wanted = {name: depths[checks.choice("layer", name, depths)] for name in names}
        found = self.network.by_layer(self.enter(images), set(wanted.values()))
        return {name: found[depth].flatten(1) for name, depth in wanted.items()}

    def classifier(self) -> None:
        """A network constructed from rates has no linear head."""


def make_encoder(spec: RunSpec, in_channels: int, patience: int | None = None) -> ReduNetEncoder:
    """Return a spec's network before construction; filters are drawn from the backbone's stream."""
    settings = asdict(read_options(spec))
    side = settings.pop("kernel_size")
    checks.choice("store", settings.pop("store"), STORES)
    lifting = None
    if channels := checks.integer("lifting", settings.pop("lifting"), 0):
        seed = spec.streams.seeds(spec.seed)["backbone"]
        lifting = RandomFilters(in_channels, channels, kernel_size=side, seed=seed)
    return ReduNetEncoder(ReduNet(**settings, lifting=lifting, patience=patience))


def check(spec: RunSpec, in_channels: int, height: int, width: int) -> None:
    """Refuse options that no network of images of this size can be constructed with."""
    lifting = make_encoder(spec, in_channels).network.lifting
    if isinstance(lifting, RandomFilters) and lifting.kernel_size > min(height, width):
        size, side = f"{height} × {width}", lifting.kernel_size
        raise ValueError(f"kernel_size is {side}; the images, {size}, are smaller")


def construct(
    encoder: ReduNetEncoder,
    split: Split,
    spec: RunSpec,
    *,
    num_classes: int,
    progress: Callable[[LayerRates], None] | None = None,
) -> None:
    """Construct an encoder's layers from training samples; the spec gives batch size and store."""
    encoder.network.fit(
        encoder.enter(to_float(split.images)),
        split.labels,
        num_classes=num_classes,
        batch_size=spec.training.batch_size,
        store=read_options(spec).store,
        progress=progress,
    )
