"""What the study compares: names -> how to fit a spec on data.

A method that is trained is an :class:`~mcr2.objectives.Objective` and nothing more: write the
class, and ``path/to/file.py:Class`` or ``package.module:Class`` is a method wherever a name is
asked for. A method that is constructed brings its own ``check``, ``fit`` and ``load``.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import ce_baseline
import mcr2.objectives
from experiments.runs import redunet
from experiments.runs.specs import RunSpec
from mcr2.backbones import BACKBONES, ResNet
from mcr2.data import Augmentation, Dataset, Split
from mcr2.evaluation import Evaluation, ImageEncoder, evaluate, measure_key
from mcr2.noise import Corruption
from mcr2.objectives import Objective
from mcr2.readouts import WITH_COMPONENTS, parse_readout
from mcr2.records import tensors_digest
from mcr2.redunet import LayerRates
from mcr2.selection import NEED_VALIDATION, SELECTIONS, Candidate, select
from mcr2.training import (
    Encoder,
    Feed,
    History,
    Progress,
    TrainingResult,
    Watch,
    check_accumulation,
    seeded,
    train,
)


@dataclass(frozen=True)
class Sizes:
    """What a network needs to know of the data."""

    num_classes: int
    in_channels: int
    num_samples: int
    height: int
    width: int


@dataclass(frozen=True)
class Prepared:
    """The data of one run, after corruption and with the validation share held out.

    Attributes:
        dataset: as loaded, before corruption.
        corruption: what was done to all its training labels.
        train, validation, test: the splits; validation is None where nothing is held out.
        held_out: indices of the validation samples in the data set's training split.
    """

    dataset: Dataset
    corruption: Corruption
    train: Split
    validation: Split | None
    test: Split
    held_out: Tensor

    @property
    def sizes(self) -> Sizes:
        """What a network needs to know of the data."""
        _, channels, height, width = self.train.images.shape
        return Sizes(self.dataset.num_classes, channels, len(self.train), height, width)


@dataclass(frozen=True)
class Workspace:
    """Where and how a run may work: its device, its checkpoint, whom it tells.

    ``progress`` is called once an epoch, ``log`` with every entry of the history.
    """

    device: torch.device
    checkpoint: Path | None = None
    checkpoint_seconds: float = 20.0
    progress: Callable[[Progress], None] | None = None
    log: Callable[[Mapping[str, Any]], None] | None = None


@dataclass(frozen=True)
class Method:
    """A named way to fit a spec.

    Attributes:
        name: as given on the command line.
        check: ``(spec, sizes)`` raises ValueError or TypeError where the spec does not suit the
            method, before anything is spent.
        fit: ``(spec, data, workspace) -> TrainingResult``.
        load: ``(spec, sizes, state) -> encoder``, from the tensors that ``fit`` kept.
        readout: name of the classifier that its accuracy is reported with by default.
        build: ``(spec, sizes) -> encoder`` before training, as the spec's seed makes it; None for
            a method that is not trained by steps.
        options: names of the keyword arguments that a spec's ``options`` may set.
        additive: whether its loss is a mean over samples.
        fingerprint: hash of a user's own file; empty for what is built in.
    """

    name: str
    check: Callable[[RunSpec, Sizes], None]
    fit: Callable[[RunSpec, Prepared, Workspace], TrainingResult]
    load: Callable[[RunSpec, Sizes, Mapping[str, Tensor]], ImageEncoder]
    readout: str
    build: Callable[[RunSpec, Sizes], Encoder] | None = None
    options: frozenset[str] = frozenset()
    additive: bool = False
    fingerprint: str = ""


def readout_for(spec: RunSpec, method: Method) -> str:
    """Return the full name of the readout that a run's accuracy is reported with.

    Example:
        >>> readout_for(RunSpec("mcr2", n_components=5), METHODS["mcr2"])
        'nearest_subspace@5'
    """
    name = spec.readout or method.readout
    if name in WITH_COMPONENTS:
        name = f"{name}@{spec.n_components}"
    parse_readout(name)
    return name


def rules_for(spec: RunSpec) -> tuple[str, ...]:
    """Return the selection rules that a run serves: without a held-out share, no validation.

    Raises:
        ValueError: it is to serve a rule that it cannot.
    """
    able = tuple(r for r in SELECTIONS if spec.validation > 0 or r not in NEED_VALIDATION)
    if spec.selections is None:
        return able
    if not_able := [rule for rule in spec.selections if rule not in able]:
        raise ValueError(
            f"selection {' and '.join(not_able)} needs a validation share; validation is 0"
        )
    return tuple(rule for rule in able if rule in spec.selections)


def candidates(history: Sequence[Mapping[str, Any]], readout: str) -> list[Candidate]:
    """Return what selection sees of a history's entries, by one readout's accuracies."""
    noisy, test, clean = (
        measure_key("accuracy", split=split, labels=labels, readout=readout)
        for split, labels in (("validation", "noisy"), ("test", "clean"), ("validation", "clean"))
    )
    return [
        Candidate(e["epoch"], *(e["measures"].get(key) for key in (noisy, test, clean)))
        for e in history
    ]


def augmentation_for(spec: RunSpec, dataset: Dataset) -> Augmentation:
    """Return the spec's augmentation, the data set's own where the spec leaves it open."""
    return Augmentation(
        shift=dataset.shift if spec.shift is None else spec.shift,
        flip=dataset.flip if spec.flip is None else spec.flip,
    )


def feed_for(spec: RunSpec, dataset: Dataset) -> Feed:
    """Return what the spec's network is fed."""
    seeds = spec.streams.seeds(spec.seed)
    return Feed(
        sampling_seed=seeds["batches"],
        augmentation_seed=seeds["augmentation"],
        objective_seed=seeds["objective"],
        augmentation=augmentation_for(spec, dataset),
        shuffle=spec.shuffle,
    )


def watch_for(spec: RunSpec, readout: str, data: Prepared, workspace: Workspace) -> Watch:
    """Return who looks at the spec's network on its way: evaluation, selection, workspace."""
    read = reader(data, readout, workspace.device)

    def keep(history: Sequence[Mapping[str, Any]]) -> set[int]:
        points = candidates(history, readout)
        return {points[select(rule, points)].epoch for rule in rules_for(spec)}

    return Watch(
        evaluate=lambda encoder: read(encoder).measures,
        keep=keep,
        log=workspace.log,
        progress=workspace.progress,
    )


def reader(
    data: Prepared, readout: str, device: torch.device
) -> Callable[[ImageEncoder], Evaluation]:
    """Return what reads an encoder at every evaluation in training, and what estimates time."""
    train, test = data.train.to(device), data.test.to(device)
    validation = data.validation and data.validation.to(device)

    def read(encoder: ImageEncoder) -> Evaluation:
        return evaluate(
            encoder,
            train,
            test,
            validation,
            num_classes=data.sizes.num_classes,
            readout=readout,
            full=False,
        )

    return read


#: What the study hands to an objective's constructor where the signature asks for it.
GIVEN = ("num_classes", "feature_dim", "num_samples")


def trained(name: str, objective: type[Objective], fingerprint: str = "") -> Method:
    """Make a method of an objective: the common trainer on the spec's backbone."""
    parameters = {
        key: parameter
        for key, parameter in inspect.signature(objective).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    options = frozenset(parameters) - set(GIVEN)

    def make_objective(spec: RunSpec, sizes: Sizes) -> Objective:
        for option, _ in spec.options:
            if option not in options:
                known = ", ".join(sorted(options)) or "none"
                raise ValueError(f"{name} has no option {option!r}; its options: {known}")
        given = {
            "num_classes": sizes.num_classes,
            "feature_dim": spec.feature_dim,
            "num_samples": sizes.num_samples,
        }
        arguments = {k: v for k, v in given.items() if k in parameters} | dict(spec.options)
        try:
            return objective(**arguments)
        except (Exception, SystemExit) as error:
            # A user's class may raise anything; on the command line it is still one line.
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name} cannot be constructed with {arguments}: {error}") from error

    def make_backbone(spec: RunSpec, sizes: Sizes) -> ResNet:
        return BACKBONES[spec.backbone](
            in_channels=sizes.in_channels,
            feature_dim=spec.feature_dim,
            projection=spec.projection,
            stem_stride=spec.stem_stride,
        )

    def build(spec: RunSpec, sizes: Sizes) -> Encoder:
        seeds = spec.streams.seeds(spec.seed)
        with seeded(seeds["objective"]):
            loss = make_objective(spec, sizes)
        with seeded(seeds["backbone"]):
            return Encoder(make_backbone(spec, sizes), loss)

    def check(spec: RunSpec, sizes: Sizes) -> None:
        encoder = build(spec, sizes)
        if readout_for(spec, method) == "head" and encoder.classifier() is None:
            raise ValueError(f"readout is 'head', but {name} has no classifier of its own")
        check_accumulation(spec.training, encoder.objective)

    def load(spec: RunSpec, sizes: Sizes, state: Mapping[str, Tensor]) -> Encoder:
        encoder = build(spec, sizes)
        encoder.load_state_dict(dict(state))
        return encoder

    def fit(spec: RunSpec, data: Prepared, workspace: Workspace) -> TrainingResult:
        encoder = build(spec, data.sizes)
        initial = tensors_digest(encoder.backbone.state_dict())
        result = train(
            encoder.backbone,
            encoder.objective,
            data.train.to(workspace.device),
            spec.training,
            feed_for(spec, data.dataset),
            watch_for(spec, readout_for(spec, method), data, workspace),
            device=workspace.device,
            checkpoint=workspace.checkpoint,
            checkpoint_seconds=workspace.checkpoint_seconds,
        )
        result.proof = {"initial_weights": initial} | result.proof
        return result

    method = Method(
        name=name,
        check=check,
        fit=fit,
        load=load,
        readout=objective.readout,
        build=build,
        options=options,
        additive=objective.additive,
        fingerprint=fingerprint,
    )
    return method


def constructed() -> Method:
    """Make the method ``redunet``: layers constructed from the labels, read along their depth."""

    def check(spec: RunSpec, sizes: Sizes) -> None:
        redunet.check(spec, sizes.in_channels, sizes.height, sizes.width)
        if readout_for(spec, method) == "head":
            raise ValueError("readout is 'head', but redunet has no classifier of its own")

    def load(spec: RunSpec, sizes: Sizes, state: Mapping[str, Tensor]) -> redunet.ReduNetEncoder:
        encoder = redunet.make_encoder(spec, sizes.in_channels)
        encoder.load_state_dict(dict(state))
        return encoder

    def fit(spec: RunSpec, data: Prepared, workspace: Workspace) -> TrainingResult:
        encoder = redunet.make_encoder(spec, data.sizes.in_channels)
        encoder.to(workspace.device)
        history = History(
            encoder,
            watch_for(spec, readout_for(spec, method), data, workspace),
            epochs=redunet.read_options(spec).layers,
            evaluate_every=spec.training.evaluate_every,
            device=workspace.device,
            copy=False,
        )

        def record(rates: LayerRates) -> None:
            depth, loss = rates.layers, -rates.reduction
            terms = {name: value for name, value in rates._asdict().items() if name != "layers"}
            history.result.steps = depth
            if history.due(depth):
                history.evaluate_and_record(depth, lr=None, loss=loss, terms=terms)
            history.tell_progress(depth, loss, terms)

        redunet.construct(
            encoder,
            data.train.to(workspace.device),
            spec,
            num_classes=data.sizes.num_classes,
            progress=record,
        )
        return history.finish()

    method = Method(
        name="redunet",
        check=check,
        fit=fit,
        load=load,
        readout="nearest_subspace",
        options=redunet.OPTIONS,
    )
    return method


#: Methods by name: each objective that has one, and what is constructed.
METHODS: dict[str, Method] = {
    **{
        name: trained(name, objective)
        for name, objective in (ce_baseline.OBJECTIVES | mcr2.objectives.OBJECTIVES).items()
    },
    "redunet": constructed(),
}


def find_method(name: str) -> Method:
    """Return a method by its name, or make one of an objective's class.

    Args:
        name: a name of :data:`METHODS`, ``path/to/file.py:Class`` or ``package.module:Class``.

    Raises:
        ValueError: no such name, file, module or class, or a file that cannot be imported.
        TypeError: the class is no :class:`~mcr2.objectives.Objective`, or defines no ``loss``.

    Example:
        >>> find_method("mcr2").readout
        'nearest_subspace'
        >>> find_method("mcr2.objectives:RateReduction").additive
        False
    """
    if name in METHODS:
        return METHODS[name]
    place, colon, class_name = name.rpartition(":")
    if not colon:
        raise ValueError(
            f"unknown method {name!r}; choose from {', '.join(METHODS)}, "
            "or give path/to/file.py:Class or package.module:Class"
        )
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    objective = getattr(module, class_name, None)
    if objective is None:
        raise ValueError(f"{place} defines no {class_name!r}")
    if not (isinstance(objective, type) and issubclass(objective, Objective)):
        raise TypeError(f"{name} is no mcr2.objectives.Objective but {objective!r}")
    if objective.loss is Objective.loss:
        raise TypeError(f"{name} defines no loss(features, labels, context)")
    # The class may come from another file than the one that was named.
    files = {str(module.__file__), inspect.getfile(objective)}
    source = b"".join(sorted(Path(file).read_bytes() for file in files))
    return trained(name, objective, hashlib.sha256(source).hexdigest())


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"module {name!r} cannot be imported: {reason}") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ValueError(f"no file {path} to take a method from")
    # A name of its own for each file, so that two files called loss.py do not meet.
    name = f"mcr2_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        # Compiled from its text: cached bytecode does not see an edit within the same second, and
        # leaves a folder beside the user's file.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
