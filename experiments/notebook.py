"""What a notebook needs: run a spec, open a run's network, read a study with its figures.

Of :mod:`experiments` itself these are ``run``, ``load_run`` and ``load_study``. ``mcr2.load_run``
and ``mcr2.load_study`` read the same folders without methods and figures.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from experiments.report.held import read_study as load_study
from experiments.report.live import training_bar
from experiments.runs import runner
from experiments.runs.grid import GRID_FIELDS, grid
from experiments.runs.machine import Machine
from experiments.runs.methods import METHODS, find_method
from experiments.runs.prepare import Sizes
from experiments.runs.recipes import find_recipe
from experiments.runs.signals import Stopped, StopSignals
from experiments.runs.trained import Trained
from experiments.runs.user_code import is_user_code, name_of
from mcr2 import checks, records
from mcr2.evaluation import ImageEncoder, encode
from mcr2.evaluation.results import Key
from mcr2.readouts import Readout, fit_readout
from mcr2.training import Interrupted

__all__ = ["LoadedRun", "RunEncoder", "load_run", "load_study", "run"]


def run(
    method: str | type = "mcr2",
    dataset: str | Path | None = None,
    *,
    ratio: float = 0.0,
    seed: int = 0,
    epochs: int | None = None,
    recipe: str = "quick",
    out: str | Path | None = None,
    progress: bool = True,
    device: str = "auto",
    threads: int = 1,
    data_root: str | None = None,
    **settings: Any,
) -> LoadedRun:
    """Train and measure one spec as ``mcr2 train`` does; one that is there already is opened.

    Args:
        method: a name of :data:`~experiments.runs.methods.METHODS`, ``path/to/file.py:Class``, or a
            class: an :class:`~mcr2.objectives.Objective`, also one that this notebook defines.
        dataset: a name, ``.npz`` file or image folder; None is the recipe's own, ``digits``.
        ratio: share of the training labels to redraw.
        seed: from which every stream of randomness is seeded.
        epochs: None takes the recipe's.
        recipe: a name of :data:`~experiments.runs.recipes.RECIPES`.
        out: folder of the run; by default one of ``results/runs``, named after the spec.
        progress: show a bar, on a terminal or in a notebook.
        device, threads, data_root: as in :class:`~experiments.runs.machine.Machine`.
        settings: any field of a run, its training or its objective by its bare name, as for
            ``--set``: ``lr=0.1``, ``noise="pair_flip"``, ``eps_sq=1.0``, ``classes=(0, 3)``.

    A KeyboardInterrupt leaves a checkpoint, from which the same call continues.

    Raises:
        TypeError, ValueError: an unknown name, or a spec that cannot be run.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = run("ce", epochs=1, subset=100, out=folder)
        ...     0 <= done.accuracy() <= 1, len(done.encoder()(torch.zeros(2, 1, 8, 8)))
        (True, 2)
    """
    name = method if isinstance(method, str) else _method_name(method)
    if isinstance(settings.get("backbone"), type):
        settings["backbone"] = name_of(settings["backbone"])
    given = {f: settings.pop(f) for f in GRID_FIELDS if f in settings}
    given |= {} if dataset is None else {"dataset": str(dataset)}
    settings |= {} if epochs is None else {"epochs": epochs}
    options = find_method(name).options
    texts = [f"{key}={_text(key, value, key in options)}" for key, value in settings.items()]
    spec = grid(find_recipe(recipe), [name], [ratio], [seed], fields=given, settings=texts)[0]
    with _own_threads():
        machine = Machine(device, threads, data_root)
        (planned,) = runner.plan([spec], Path("results") / "runs", machine)
        folder = planned.folder if out is None else Path(out)
        there = runner.complete(runner.PlannedRun(spec, planned.key, planned.data, folder))
        if there is None:
            console, stop = Console(stderr=True), StopSignals()
            shown = progress and (console.is_terminal or console.is_jupyter)
            label = f"{spec.method} seed {spec.seed}"
            bar = training_bar(label, spec.training.epochs) if shown else contextlib.nullcontext()
            try:
                with stop, bar as tell:
                    there = runner.run(spec, folder, machine, progress=tell, stop=stop)
            except (Interrupted, Stopped):
                signal.raise_signal(stop.signum or signal.SIGINT)
                raise
    code = tuple(filter(is_user_code, (spec.method, spec.backbone)))
    return LoadedRun(there, code, {"device": device, "data_root": data_root})


def load_run(
    folder: str | Path,
    *,
    code: str | type | Sequence[str | type] = (),
    device: str = "auto",
    data_root: str | None = None,
    dataset: str | None = None,
    noise_from: str | None = None,
) -> LoadedRun:
    """Open a finished run's folder; nothing that it names is imported unless ``code`` names it.

    Args:
        folder: the run's.
        code: classes of one's own that the run was made with, or their names: for its encoder.
        device: for its encoder.
        data_root, dataset, noise_from: where its data are now, if elsewhere: for its readouts.

    Raises:
        ValueError: there is no record, or a file of it is damaged; the message names it.

    Example:
        >>> load_run("results/no-such-run")
        Traceback (most recent call last):
        ...
        ValueError: results/no-such-run holds no finished run: there is no record.json in it
    """
    named = [code] if isinstance(code, str | type) else code
    names = [each if isinstance(each, str) else name_of(each) for each in named]
    where = {"data_root": data_root, "dataset": dataset, "noise_from": noise_from}
    return LoadedRun(records.load_run(folder), tuple(names), {"device": device, **where})


@dataclass(frozen=True, eq=False, repr=False)
class LoadedRun:
    """A run as its folder holds it, with what can be made of it.

    Attributes:
        held: record and evaluation, see :class:`mcr2.records.Run`.
        code: names of classes of one's own that may be imported.
        where: device, and where its data are.
    """

    held: records.Run
    code: tuple[str, ...] = ()
    where: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        record, spec = self.held.record, self.held.record.spec
        name = f"{spec['method']} on {record.data['name']}, ratio {spec['ratio']}"
        about = f"{name}, seed {spec['seed']}, {record.status}, in {self.folder}"
        return f"<run of {about}: {record.reason}>" if record.reason else f"<run of {about}>"

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.held.folder

    @property
    def record(self) -> records.Record:
        """What was done."""
        return self.held.record

    @cached_property
    def frames(self) -> records.StudyFrames:
        """Spec, history and evaluations as pandas frames: see :func:`mcr2.records.load_study`."""
        return records.load_study(self.folder)

    @property
    def history(self) -> Any:
        """What was measured along the run, as a pandas frame: a row an epoch and measure."""
        return self.frames.history

    def selected(self, selection: str = "last") -> Mapping[str, Any]:
        """Return what stands in ``evaluation.json`` of a selection rule: its epoch, its measures.

        Raises:
            ValueError: the run failed, or serves no such rule; the message lists those it does.
        """
        if self.held.evaluation is None:
            reason = self.record.reason or f"not measured yet; mcr2 reread {self.folder} does"
            raise ValueError(f"{self.folder} has no evaluation: {reason}")
        found = self.held.evaluation.selections
        return found[checks.choice(f"selection of {self.folder}", selection, found)]

    def accuracy(self, selection: str = "last", *, readout: str | None = None) -> float:
        """Return the test accuracy at a rule's epoch, by the run's own readout or another.

        Raises:
            ValueError: no such rule, or a readout that was not measured.
        """
        measures = {Key.parse(k): v for k, v in self.selected(selection)["measures"].items()}
        of_test = Key(split="test", labels="clean", measure="accuracy")
        found = {
            k.readout: v for k, v in measures.items() if k == of_test._replace(readout=k.readout)
        }
        return float(found[checks.choice("readout", readout or self.record.readout, found)])

    def encoder(self, selection: str = "last") -> RunEncoder:
        """Return the network at a rule's epoch, ready for images.

        Raises:
            ValueError: no such rule; its weights were not kept or are damaged; or the network is
                made with a class of one's own that ``code`` does not name.
        """
        epoch = self.selected(selection)["epoch"]
        spec, method = runner.trusted(self.held, self.code)
        data = self.record.data
        sizes = Sizes(
            **{f.name: checks.integer(f.name, data.get(f.name), 1) for f in fields(Sizes)}
        )
        device = Machine(self.where.get("device", "auto")).torch_device()
        network = runner.encoder_at(self.held, epoch, spec, sizes, method, device)
        network.train(False)
        return RunEncoder(self, epoch, sizes, network, device)


@dataclass(frozen=True, eq=False)
class RunEncoder:
    """The network of a run at an epoch: images -> features, and classifiers on them.

    Attributes:
        run: whose.
        epoch: at which.
        sizes: of the images and classes it was made for.
        network: float images from 0 to 1 on the ``device`` -> features, as it was trained.
    """

    run: LoadedRun
    epoch: int
    sizes: Sizes
    network: ImageEncoder
    device: torch.device

    def __call__(self, images: Tensor | NDArray[Any]) -> Tensor:
        """Return the features ``(N, d)`` of images ``(N, C, H, W)``, without a graph, on the CPU.

        Args:
            images: uint8, or floating from 0 to 1; a tensor or an array.

        Raises:
            TypeError, ValueError: images of another type, range or size.
        """
        given = images if isinstance(images, Tensor) else torch.tensor(np.asarray(images))
        shape = (self.sizes.in_channels, self.sizes.height, self.sizes.width)
        if given.ndim != 4 or given.shape[1:] != shape or len(given) == 0:
            wanted = ", ".join(map(str, ("N", *shape)))
            raise ValueError(f"images has shape {tuple(given.shape)}; it must be ({wanted})")
        if given.is_floating_point() and not (given.min() >= 0 and given.max() <= 1):
            span = f"from {given.min():g} to {given.max():g}"
            raise ValueError(f"images go {span}; floating ones must lie in [0, 1]")
        return encode(self.network, given.to(self.device)).cpu()

    def readout(self, name: str | None = None) -> Readout:
        """Return a classifier of features, fitted on the run's training set with its noisy labels.

        Args:
            name: of :data:`mcr2.readouts.READOUTS`, ``ridge``, ``nearest_subspace@3``, ..., or
                ``head``; None is the run's own.

        Raises:
            ValueError: no such readout, or the run's data are gone or have changed.
        """
        features, labels = self._training_set
        return fit_readout(
            name or self.run.record.readout,
            features,
            labels,
            num_classes=self.sizes.num_classes,
            head=self.network.classifier(),
        )

    def predict(self, images: Tensor | NDArray[Any], readout: str | None = None) -> Tensor:
        """Return the class of each image, int64 ``(N,)``, by a readout as of :meth:`readout`."""
        return self.readout(readout).predict(self(images))

    @cached_property
    def _training_set(self) -> tuple[Tensor, Tensor]:
        with _own_threads():
            opened = runner.reopen(self.run.folder, code=self.run.code, **self.run.where)
            return self(opened.data.train.images), opened.data.train.labels


def _method_name(kind: type) -> str:
    """Return the name of a method of an objective's class."""
    for name, method in METHODS.items():
        if isinstance(method, Trained) and method.objective is kind:
            return name
    return name_of(kind)


def _text(name: str, value: Any, single: bool) -> str:
    """Return a value as ``--set`` takes it, so that both make the same run."""
    if isinstance(value, list | tuple) and not single:
        return "+".join(_text(name, part, True) for part in value)
    if not (value is None or isinstance(value, bool | int | float | str | np.generic)):
        raise TypeError(
            f"{name} must be a number, text, True, False or None, not {checks.describe(value)}"
        )
    return str(value)


@contextlib.contextmanager
def _own_threads() -> Iterator[None]:
    """Leave torch's number of threads as a notebook has it; a run has its own."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
