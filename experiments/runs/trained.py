"""Methods that are trained: an objective on a spec's backbone, by the common trainer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from experiments.runs.method import Workspace, readout_for, watch_for
from experiments.runs.prepare import Prepared, Sizes
from experiments.runs.specs import RunSpec
from experiments.runs.user_code import is_user_code, load_object
from mcr2.backbones import BACKBONES, check_backbone
from mcr2.data import Augmentation
from mcr2.objectives import Objective
from mcr2.records import tensors_digest
from mcr2.training import Encoder, Feed, TrainingResult, check_accumulation, seeded, train

#: What the study hands to an objective's constructor where the signature asks for it.
GIVEN = ("num_classes", "feature_dim", "num_samples")


@dataclass(frozen=True)
class Trained:
    """A method made of an objective; see :data:`experiments.runs.methods.Method`."""

    name: str
    objective: type[Objective]
    fingerprint: str = ""
    trained: bool = True

    @property
    def readout(self) -> str:
        """The objective's own."""
        return self.objective.readout

    @property
    def additive(self) -> bool:
        """Whether the loss is a mean over samples."""
        return self.objective.additive

    @cached_property
    def options(self) -> frozenset[str]:
        """Names of the arguments of the objective's constructor that a spec may set."""
        return _parameters(self.objective) - set(GIVEN)

    def make_objective(self, spec: RunSpec, sizes: Sizes) -> Objective:
        """Return the objective with a spec's options.

        Raises:
            ValueError, TypeError: an option that it does not have, or what its constructor raises.
        """
        for option, _ in spec.options:
            if option not in self.options:
                known = ", ".join(sorted(self.options)) or "none"
                raise ValueError(f"{self.name} has no option {option!r}; its options: {known}")
        given = (sizes.num_classes, spec.feature_dim, sizes.num_samples)
        arguments = dict(zip(GIVEN, given, strict=True))
        made: Objective = _construct(self.name, self.objective, arguments, dict(spec.options))
        return made

    def build(self, spec: RunSpec, sizes: Sizes) -> Encoder:
        """Return the network before training, as the spec's seed makes it."""
        seeds = spec.streams.seeds(spec.seed)
        with seeded(seeds["objective"]):
            loss = self.make_objective(spec, sizes)
        with seeded(seeds["backbone"]):
            return Encoder(make_backbone(spec, sizes), loss)

    def check(self, spec: RunSpec, sizes: Sizes) -> None:
        """Refuse a spec that cannot be trained, before anything is spent."""
        encoder = self.build(spec, sizes)
        if is_user_code(spec.backbone):
            check_backbone(
                encoder.backbone,
                in_channels=sizes.in_channels,
                feature_dim=spec.feature_dim,
                height=sizes.height,
                width=sizes.width,
            )
        if readout_for(spec, self) == "head" and encoder.classifier() is None:
            raise ValueError(f"readout is 'head', but {self.name} has no classifier of its own")
        names = encoder.layer_names()
        for layer in spec.measured_layers:
            if layer not in names:
                known = f"{spec.backbone}; choose from {', '.join(names)}"
                raise ValueError(f"unknown layer {layer!r} of {known}")
        check_accumulation(spec.training, encoder.objective)

    def load(self, spec: RunSpec, sizes: Sizes, state: Mapping[str, Tensor]) -> Encoder:
        """Return the encoder whose tensors were kept."""
        encoder = self.build(spec, sizes)
        encoder.load_state_dict(dict(state))
        return encoder

    def fit(self, spec: RunSpec, data: Prepared, workspace: Workspace) -> TrainingResult:
        """Train the spec's network, keeping the weights of the epochs that its rules select."""
        encoder = self.build(spec, data.sizes)
        initial = tensors_digest(encoder.backbone.state_dict())
        result = train(
            encoder.backbone,
            encoder.objective,
            data.train.to(workspace.device),
            spec.training,
            feed_for(spec, data),
            watch_for(spec, readout_for(spec, self), data, workspace),
            device=workspace.device,
            checkpoint=workspace.checkpoint,
            checkpoint_seconds=workspace.checkpoint_seconds,
            stop=workspace.stop,
            world=workspace.world,
        )
        result.proof = {"initial_weights": initial} | result.proof
        return result


def make_backbone(spec: RunSpec, sizes: Sizes) -> nn.Module:
    """Return a spec's backbone, newly initialised; a user's own is given what it takes."""
    arguments = {
        "in_channels": sizes.in_channels,
        "feature_dim": spec.feature_dim,
        "projection": spec.projection,
        "stem_stride": spec.stem_stride,
    }
    if not is_user_code(spec.backbone):
        width = {} if spec.width is None else {"width": spec.width}
        return BACKBONES[spec.backbone](**arguments, **width)
    found = _construct(spec.backbone, load_object(spec.backbone)[0], arguments, {})
    if not isinstance(found, nn.Module):
        raise TypeError(f"{spec.backbone} is not a torch.nn.Module but {type(found).__name__}")
    return found


def feed_for(spec: RunSpec, data: Prepared) -> Feed:
    """Return what a run is fed; a spec may leave augmentation to the data set."""
    return make_feed(spec, shift=data.dataset.shift, flip=data.dataset.flip)


def make_feed(spec: RunSpec, *, shift: int, flip: bool) -> Feed:
    """Return what a spec is fed, of data with an augmentation of their own."""
    seeds = spec.streams.seeds(spec.seed)
    return Feed(
        sampling_seed=seeds["batches"],
        augmentation_seed=seeds["augmentation"],
        objective_seed=seeds["objective"],
        augmentation=Augmentation(
            shift=shift if spec.shift is None else spec.shift,
            flip=flip if spec.flip is None else spec.flip,
        ),
        shuffle=spec.shuffle,
    )


def _parameters(kind: Any) -> frozenset[str]:
    return frozenset(
        name
        for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )


def _construct(name: str, kind: Any, given: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Call a class with what it takes of ``given``; a user's may raise anything, in one line."""
    taken = _parameters(kind)
    arguments = {k: v for k, v in given.items() if k in taken} | dict(options)
    try:
        return kind(**arguments)
    except (Exception, SystemExit) as error:
        raised = TypeError if isinstance(error, TypeError) else ValueError
        raise raised(f"{name} cannot be constructed with {arguments}: {error}") from error
