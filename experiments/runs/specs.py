"""What a run is: a frozen :class:`RunSpec`, enough to run again what it describes.

It is saved beside what it produced, and its hash is part of the run's key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mcr2 import checks
from mcr2.backbones import BACKBONES, PROJECTIONS
from mcr2.noise import parse_noise
from mcr2.readouts import parse_readout
from mcr2.selection import SELECTIONS
from mcr2.training import TrainingConfig

#: Beyond it second moments of features, d × d, fit no machine.
MOST_DIMENSIONS = 1 << 16


@dataclass(frozen=True)
class Streams:
    """Seeds of the streams of randomness; None derives a stream from the run's seed.

    Each source of randomness has a stream of its own, so that changing one changes nothing
    else. The noise stream is the run's seed itself: corrupted sets are then those of the
    official code at that seed.
    """

    noise: int | None = None
    validation: int | None = None
    backbone: int | None = None
    objective: int | None = None
    batches: int | None = None
    augmentation: int | None = None

    def seeds(self, seed: int) -> dict[str, int]:
        """Return the seed of every stream for a run's seed.

        Example:
            >>> seeds = Streams(augmentation=7).seeds(10)
            >>> seeds["noise"], seeds["augmentation"]
            (10, 7)
        """

        def derived(name: str) -> int:
            digest = hashlib.sha256(f"{name}:{seed}".encode()).digest()
            return seed if name == "noise" else int.from_bytes(digest[:4], "big")

        given = dataclasses.asdict(self).items()
        return {name: derived(name) if value is None else value for name, value in given}


STREAMS = tuple(field.name for field in dataclasses.fields(Streams))


@dataclass(frozen=True)
class RunSpec:
    """One run: a method, on a data set, at a corruption ratio, with a seed.

    Attributes:
        method: a name of ``METHODS``, or ``path/to/file.py:Class``, ``package.module:Class``.
        dataset: a name of ``mcr2.data.DATASETS``, the path of an ``.npz`` file or of an image
            folder.
        image_size: side to which an image folder is resized; None takes it as it is.
        axes, labels_are: how an ``.npz`` file's images lie (``NCHW``, ``NHWC``), and whether labels
            without true ones beside them are ``clean`` or ``noisy``; None asks the file.
        ratio: share of the training labels that are redrawn.
        seed: from which every stream is seeded that ``streams`` does not set.
        noise: kind of corruption, a name of ``mcr2.noise.NOISES``, with its argument behind a
            colon where it takes one.
        subset: training images to use, stratified by class; None uses all.
        classes: the classes to use, relabelled in this order; one number L alone is the first L of
            them; None uses all.
        imbalance: R, by which the later half of the classes is smaller in training.
        validation: share of the training samples held out, with their noisy labels.
        backbone: a name of ``mcr2.backbones.BACKBONES``, or ``path/to/file.py:Class``,
            ``package.module:Class`` of any ``nn.Module`` from images to features.
        stem_stride, feature_dim, projection: of the network; a class of one's own is given those
            that it takes.
        width: channels of the first stage of a named backbone; None is its own.
        shift, flip: augmentation; None takes the data set's own.
        shuffle: a new order of samples each epoch.
        training: epochs, batches, optimiser, schedule.
        options: keyword arguments of the objective, as (name, value) pairs.
        readout: classifier of the reported accuracy; None takes the objective's own, with
            ``n_components`` where it is a subspace readout.
        n_components: dimensions of a class in subspace readouts.
        streams: seeds of single streams.
        selections: the selection rules that the run serves; None means all that it can.
        measured_layers: named stages of the network to measure along the run beside its features.
    """

    method: str
    dataset: str = "digits"
    ratio: float = 0.0
    seed: int = 0
    noise: str = "symmetric"
    subset: int | None = None
    classes: tuple[int, ...] | None = None
    imbalance: float = 1.0
    image_size: int | None = None
    axes: str | None = None
    labels_are: str | None = None
    validation: float = 0.1
    backbone: str = "resnet10_w16"
    stem_stride: int = 1
    feature_dim: int = 64
    projection: str = "mlp"
    width: int | None = None
    shift: int | None = None
    flip: bool | None = None
    shuffle: bool = True
    training: TrainingConfig = field(default_factory=TrainingConfig)
    options: tuple[tuple[str, Any], ...] = ()
    readout: str | None = None
    n_components: int = 3
    streams: Streams = field(default_factory=Streams)
    selections: tuple[str, ...] | None = None
    measured_layers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks.number("ratio", self.ratio, 0, 1)
        parse_noise(self.noise, self.ratio)
        if ":" not in self.backbone:
            checks.choice("backbone", self.backbone, BACKBONES)
        checks.choice("projection", self.projection, PROJECTIONS)
        checks.integer("seed", self.seed, 0, 2**32 - 1)
        for name in STREAMS:
            checks.integer(f"streams.{name}", getattr(self.streams, name) or 0, 0, 2**32 - 1)
        if not 0 <= checks.number("validation", self.validation) < 1:
            raise ValueError(f"validation is {self.validation}; it must be from 0 to below 1")
        lowest = {"subset": 1, "image_size": 1, "shift": 0, "stem_stride": 1, "width": 1}
        for name, low in lowest.items():
            if getattr(self, name) is not None:
                checks.integer(name, getattr(self, name), low)
        if self.width is not None and ":" in self.backbone:
            raise ValueError(f"width is {self.width}; {self.backbone} has a width of its own")
        for name, allowed in (("axes", ("NCHW", "NHWC")), ("labels_are", ("clean", "noisy"))):
            if getattr(self, name) is not None:
                checks.choice(name, getattr(self, name), allowed)
        if self.classes is not None:
            checks.integer("the number of classes", len(self.classes), 1)
            for k in self.classes:
                checks.integer("classes", k, 2 * (len(self.classes) == 1))
        checks.number("imbalance", self.imbalance, 1)
        checks.integer("feature_dim", self.feature_dim, 2, MOST_DIMENSIONS)
        checks.integer("n_components", self.n_components, 1, self.feature_dim - 1)
        if self.readout is not None:
            parse_readout(self.readout)
        if self.selections is not None:
            for rule in self.selections or ("",):
                checks.choice("selection", rule, SELECTIONS)


def as_dict(spec: RunSpec) -> dict[str, Any]:
    """Return a spec as plain values, the form in which it is saved and hashed."""
    return dataclasses.asdict(spec)


def from_dict(value: Mapping[str, Any]) -> RunSpec:
    """Read a saved spec.

    Raises:
        ValueError: a field that a spec does not have.

    Example:
        >>> spec = RunSpec("ce", ratio=0.2)
        >>> from_dict(as_dict(spec)) == spec
        True
    """
    try:
        parts = _tuples(value)
        parts["training"] = TrainingConfig(**_tuples(parts["training"]))
        parts["streams"] = Streams(**parts["streams"])
        parts["options"] = tuple((str(k), v) for k, v in parts["options"])
        return RunSpec(**parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a run's spec: {error}") from error


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


def _convert(name: str, text: str, kind: Any) -> Any:
    """Read ``text`` as a value of an annotated type: int, float, bool, str, tuple, X | None."""
    if isinstance(kind, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        if not text:
            return ()
        return tuple(_convert(name, part, typing.get_args(kind)[0]) for part in text.split("+"))
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name}={text!r} is not a value of type {kind.__name__}") from None


def _guess(text: str) -> Any:
    """Read an objective's option, whose type only its constructor knows."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def vary(spec: RunSpec, name: str, text: str, options: typing.Collection[str] = ()) -> RunSpec:
    """Return a spec with one field set from text: an option, the spec's own, or training's.

    An option goes first: ``layers`` of a ReduNet is how many it has, not those to measure.

    Args:
        spec: what to change.
        name: a field of the spec, of its ``training``, ``streams.NAME``, or one of ``options``.
        text: the value; the parts of a tuple are joined by ``+``, and nothing is the empty one.
        options: names of the keyword arguments that the objective takes.

    Raises:
        ValueError: an unknown name (the message lists those there are) or a value of the wrong
            type.

    Example:
        >>> vary(RunSpec("ce"), "batch_size", "64").training.batch_size
        64
        >>> vary(RunSpec("mcr2"), "eps_sq", "0.1", {"eps_sq"}).options
        (('eps_sq', 0.1),)
    """
    own = typing.get_type_hints(RunSpec)
    whole = {"method", "training", "options", "streams"}
    training = typing.get_type_hints(TrainingConfig)
    if name in options:
        kept = tuple(pair for pair in spec.options if pair[0] != name)
        return replace(spec, options=(*kept, (name, _guess(text))))
    if name in own and name not in whole:
        return replace(spec, **{name: _convert(name, text, own[name])})
    if name in training:
        changed = replace(spec.training, **{name: _convert(name, text, training[name])})
        return replace(spec, training=changed)
    stream = name.removeprefix("streams.")
    if name.startswith("streams.") and stream in STREAMS:
        changed_streams = replace(spec.streams, **{stream: _convert(name, text, int | None)})
        return replace(spec, streams=changed_streams)
    known = sorted((own.keys() - whole) | training.keys() | set(options))
    raise ValueError(f"unknown field {name!r}; choose from {', '.join(known)}, streams.NAME")


def field_value(spec: RunSpec, name: str) -> Any:
    """Return what :func:`vary` sets by a name; an option that is not set is an error.

    Raises:
        KeyError: no such field, or an option that the spec leaves to its default.

    Example:
        >>> spec = vary(RunSpec("mcr2"), "eps_sq", "0.1", {"eps_sq"})
        >>> field_value(spec, "eps_sq"), field_value(spec, "feature_dim"), field_value(spec, "lr")
        (0.1, 64, 0.1)
    """
    if name in dict(spec.options):
        return dict(spec.options)[name]
    stream = name.removeprefix("streams.")
    if name.startswith("streams.") and stream in STREAMS:
        return getattr(spec.streams, stream)
    for owner in (spec, spec.training):
        if name in {f.name for f in dataclasses.fields(owner)}:
            return getattr(owner, name)
    raise KeyError(name)
