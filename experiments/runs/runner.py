"""Spec -> record; many specs -> many records, in parallel, resumable.

A cell is one run of a grid and has a folder of its own. Its record is written last, so a folder
with a record is finished and is never run again; one without is continued from its checkpoint.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from experiments.runs.methods import (
    Method,
    Prepared,
    Workspace,
    candidates,
    find_method,
    readout_for,
    rules_for,
)
from experiments.runs.specs import RunSpec, as_dict, from_dict
from experiments.runs.tensorboard_log import TensorBoardLog, require_tensorboard
from mcr2.data import Dataset, load_dataset
from mcr2.evaluation import (
    Evaluation,
    ImageEncoder,
    evaluate,
    measure_key,
    standard_readouts,
)
from mcr2.metrics.memorization import terminal_phase
from mcr2.noise import corrupt
from mcr2.records import (
    FORMAT,
    Record,
    content_key,
    environment,
    load_tensors,
    read_json,
    save_tensors,
    write_json,
    write_text,
)
from mcr2.selection import make_selection
from mcr2.training import Progress

RECORD = "record.json"
SPEC = "spec.json"
CHECKPOINT = "checkpoint.safetensors"
PROGRESS = "progress.json"
ERROR = "error.txt"


@dataclass(frozen=True)
class Machine:
    """How runs use the machine; nothing here changes what a run means.

    Attributes:
        device: ``"auto"`` (CUDA, then MPS, then CPU) or a torch device.
        threads: CPU threads of a run.
        data_root: where data sets are looked for first.
        tensorboard: write TensorBoard events into each run's folder.
    """

    device: str = "auto"
    threads: int = 1
    data_root: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; it must be at least 1")
        if self.tensorboard:
            require_tensorboard()
        self.torch_device()

    def settle(self) -> torch.device:
        """Set this process up as the machine says, and return the device.

        Convolutions outside training steps are in full float32, where torch's own default on CUDA
        is TF32; a step's are its training's to decide.
        """
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = False
        return self.torch_device()

    def torch_device(self) -> torch.device:
        """Return the device, or raise ValueError where this machine does not have it."""
        if self.device == "auto":
            if torch.cuda.is_available():
                return torch.device("cuda")
            return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        try:
            device = torch.device(self.device)
            torch.empty(1, device=device).cpu()  # the meta device has no values to bring back
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {self.device!r} cannot be used here: {reason}") from error
        return device


def load(spec: RunSpec, data_root: str | None = None) -> Dataset:
    """Return the data set of a spec, before corruption."""
    return load_dataset(
        spec.dataset, data_root=data_root, subset=spec.subset, image_size=spec.image_size
    )


def prepare(spec: RunSpec, dataset: Dataset) -> Prepared:
    """Corrupt all training labels, then hold out the validation share with its noisy labels.

    The held-out indices come from their own stream and do not depend on the ratio. They are
    drawn without looking at labels: a user has none that are clean.

    Raises:
        ValueError: a share that leaves nothing to train or to validate on.
    """
    seeds = spec.streams.seeds(spec.seed)
    given = dataset.train
    corruption = corrupt(
        given.labels,
        spec.ratio,
        num_classes=dataset.num_classes,
        seed=seeds["noise"],
        kind=spec.noise,
    )
    noisy = given.relabelled(corruption.labels, given.clean_labels)
    generator = torch.Generator().manual_seed(seeds["validation"])
    order = torch.randperm(len(given), generator=generator)
    count = round(len(given) * spec.validation)
    held_out, kept = order[:count].sort().values, order[count:].sort().values
    if len(kept) < 2 or (spec.validation > 0 and count == 0):
        raise ValueError(
            f"validation={spec.validation} of {len(given)} training images leaves {len(kept)} to "
            f"train on and {count} to validate on"
        )
    return Prepared(
        dataset=dataset,
        corruption=corruption,
        train=noisy.select(kept),
        validation=noisy.select(held_out) if count else None,
        test=dataset.test,
        held_out=held_out,
    )


def run_key(spec: RunSpec, dataset: Dataset, method: Method) -> str:
    """Return the key of a run: its spec, its data's content, a user's own file's content."""
    named = replace(spec, dataset=dataset.content_hash())
    # What the data set decides beside its pixels: the same images can come with other defaults.
    decided = [dataset.num_classes, dataset.shift, dataset.flip]
    return content_key(FORMAT, as_dict(named), decided, method.fingerprint)


def run_folder(root: Path, spec: RunSpec, key: str) -> Path:
    """Return a run's folder: readable to a person, unique by its key."""
    name = Path(spec.method).name.replace(":", "-").replace(".py", "")
    return root / f"{name}-r{spec.ratio:g}-s{spec.seed}-{key[:10]}"


def finished(folder: Path, key: str) -> Record | None:
    """Return the record of a folder whose run is over, or None."""
    if not (folder / RECORD).exists():
        return None
    record = Record.load(folder / RECORD)
    return record if record.key == key else None


def holds_another(folder: Path, key: str) -> bool:
    """Whether a folder was begun for a run of another key.

    Raises:
        ValueError: its ``spec.json`` cannot be read.
    """
    if not (folder / SPEC).exists():
        return False
    held = read_json(folder / SPEC)
    return not isinstance(held, dict) or held.get("key") != key


#: Readouts that a solver fits: they take longer than all others, and stand at the last epoch only.
SOLVED = ("logistic_regression", "linear_svm")


def extra_readouts(spec: RunSpec, *, final: bool = True) -> tuple[str, ...]:
    """Return the readouts that a selected epoch is read by, beside the method's own.

    Args:
        spec: the run's.
        final: the epoch is the last; the others are not read by :data:`SOLVED`.
    """
    names = standard_readouts(spec.feature_dim, spec.n_components)
    return names if final else tuple(name for name in names if name not in SOLVED)


def read_encoder(
    encoder: ImageEncoder,
    spec: RunSpec,
    data: Prepared,
    readout: str,
    device: torch.device,
    *,
    final: bool = True,
) -> Evaluation:
    """Read one encoder in full, as for a record."""
    return evaluate(
        encoder,
        data.train.to(device),
        data.test.to(device),
        data.validation and data.validation.to(device),
        num_classes=data.sizes.num_classes,
        readout=readout,
        readouts=extra_readouts(spec, final=final),
    )


def run(
    spec: RunSpec,
    folder: str | Path,
    machine: Machine | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    checkpoint_seconds: float = 20.0,
) -> Record:
    """Run one spec in a folder, continuing what is there, and return its record.

    Args:
        spec: what to run.
        folder: where record, weights and checkpoint go.
        machine: device and threads; torch's thread count is set for the whole process.
        progress: called once an epoch.
        checkpoint_seconds: how often a checkpoint is written, at the most.

    Returns:
        The record, which is also in ``folder/record.json``; a run whose loss stopped being
        finite has status ``failed`` and says why.

    Raises:
        ValueError, TypeError: a spec that cannot be run.
    """
    machine = machine or Machine()
    folder = Path(folder)
    device = machine.settle()
    method = find_method(spec.method)
    dataset = load(spec, machine.data_root)
    key = run_key(spec, dataset, method)
    data = prepare(spec, dataset)
    method.check(spec, data.sizes)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        record = finished(folder, key)
        if record is not None:
            return record
        if holds_another(folder, key):
            raise ValueError(
                f"{folder} holds another run (other spec, data or loss file); choose another folder"
            )
        write_json(folder / SPEC, {"key": key, "spec": as_dict(spec)})
        log = TensorBoardLog(folder) if machine.tensorboard else None
        workspace = Workspace(device, folder / CHECKPOINT, checkpoint_seconds, progress, log)
        fitted = method.fit(spec, data, workspace)
        if log is not None:
            log.close()
        readout = readout_for(spec, method)
        selections = {}
        points = candidates(fitted.history, readout)
        held_out = len(data.held_out)
        begin = time.perf_counter()
        readings: dict[int, Evaluation] = {}  # several rules may choose the same epoch
        for rule in rules_for(spec) if fitted.reason is None else ():
            chosen = make_selection(rule, points, n_validation=held_out)
            weights = f"epoch-{chosen.epoch:05d}.safetensors"
            if chosen.epoch not in readings:
                state = fitted.kept[chosen.epoch]
                save_tensors(folder / weights, state, {"epoch": chosen.epoch})
                encoder = method.load(spec, data.sizes, state)
                _to_device(encoder, device)
                readings[chosen.epoch] = read_encoder(
                    encoder, spec, data, readout, device, final=chosen.epoch == points[-1].epoch
                )
            reading = readings[chosen.epoch]
            selections[rule] = {
                "epoch": chosen.epoch,
                "validation_accuracy": chosen.validation_accuracy,
                "standard_error": chosen.standard_error,
                "weights": weights,
                "measures": dict(reading.measures),
                "profiles": dict(reading.profiles),
            }
        reading_seconds = time.perf_counter() - begin
        corruption = data.corruption
        record = Record(
            key=key,
            spec=as_dict(spec),
            status="finished" if fitted.reason is None else "failed",
            reason=fitted.reason,
            seeds=spec.streams.seeds(spec.seed),
            data={
                "name": dataset.name,
                "source": dataset.source,
                "hash": dataset.content_hash(),
                "classes": list(dataset.classes),
                "train": len(data.train),
                "validation": held_out,
                "test": len(data.test),
                **asdict(data.sizes),
            },
            noise={
                "kind": spec.noise,
                "redrawn": len(corruption.indices),
                "wrong": int(corruption.wrong.sum()),
                "indices": corruption.indices.tolist(),
                "wrong_indices": corruption.wrong.nonzero().flatten().tolist(),
                "transition": corruption.transition.tolist(),
                "hash": corruption.hash,
            },
            proof=fitted.proof
            | {
                "labels": corruption.hash,
                "held_out": content_key(data.held_out),
            },
            environment={
                **environment(),
                "device": str(device),
                "threads": machine.threads,
                "method_fingerprint": method.fingerprint,
            },
            readout=readout,
            epochs=fitted.history[-1]["epoch"] if fitted.history else 0,
            steps=fitted.steps,
            wall_seconds=fitted.wall_seconds + reading_seconds,
            evaluation_seconds=fitted.evaluation_seconds + reading_seconds,
            terminal_epoch=terminal_epoch(fitted.history, readout),
            history=fitted.history,
            selections=selections,
        )
        record.save(folder / RECORD)
        for name in (CHECKPOINT, PROGRESS, ERROR):
            (folder / name).unlink(missing_ok=True)
    return record


def terminal_epoch(history: Sequence[Mapping[str, Any]], readout: str) -> int | None:
    """Return the epoch at which the terminal phase began by a readout, or None."""
    key = measure_key("fit_noisy", split="train", labels="noisy", readout=readout)
    began = terminal_phase([entry["measures"][key] for entry in history])
    return None if began is None else int(history[began]["epoch"])


def _to_device(encoder: ImageEncoder, device: torch.device) -> None:
    if isinstance(encoder, torch.nn.Module):
        encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def read_run(
    folder: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | None = None,
) -> tuple[Record, dict[str, Evaluation]]:
    """Read a finished run again from its weights, by selection rule.

    Args:
        folder: the run's.
        device: as in :class:`Machine`.
        threads: CPU threads; None takes the run's own number, which gives its very numbers.
        data_root: where data sets are looked for first.

    Raises:
        ValueError: the folder holds no finished run, or its data, weights or loss file are not
            those that the record was made from.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder} holds no finished run: there is no {RECORD} in it")
    record = Record.load(folder / RECORD)
    machine = Machine(
        device, record.environment["threads"] if threads is None else threads, data_root
    )
    on = machine.settle()
    spec = from_dict(record.spec)
    method = find_method(spec.method)
    if method.fingerprint != record.environment.get("method_fingerprint"):
        raise ValueError(f"{spec.method} is not the file that {folder} was run with")
    data = prepare(spec, load(spec, machine.data_root))
    if data.dataset.content_hash() != record.data["hash"]:
        raise ValueError(f"{spec.dataset} is not the data that {folder} was run on")
    by_file: dict[str, Evaluation] = {}
    for chosen in record.selections.values():
        if chosen["weights"] in by_file:
            continue
        weights = folder / chosen["weights"]
        state, _ = load_tensors(weights)
        try:
            encoder = method.load(spec, data.sizes, state)
        except RuntimeError as error:
            raise ValueError(f"{weights} holds the weights of another network") from error
        _to_device(encoder, on)
        final = chosen["epoch"] == record.history[-1]["epoch"]
        by_file[chosen["weights"]] = read_encoder(
            encoder, spec, data, record.readout, on, final=final
        )
    return record, {rule: by_file[c["weights"]] for rule, c in record.selections.items()}


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its spec, its key, its data's content hash and its folder."""

    spec: RunSpec
    key: str
    data: str
    folder: Path


def plan(specs: Sequence[RunSpec], root: Path, machine: Machine) -> list[Cell]:
    """Check every spec against its method and data, and give it its folder; run nothing.

    Raises:
        ValueError, TypeError: the first spec that could not be run, and why.
    """
    datasets: dict[tuple[str, int | None, int | None], Dataset] = {}
    cells = []
    for spec in specs:
        method = find_method(spec.method)
        source = (spec.dataset, spec.subset, spec.image_size)
        if source not in datasets:
            datasets[source] = load(spec, machine.data_root)
        dataset = datasets[source]
        method.check(spec, prepare(spec, dataset).sizes)
        readout_for(spec, method)
        rules_for(spec)
        key = run_key(spec, dataset, method)
        cells.append(Cell(spec, key, dataset.content_hash(), run_folder(root, spec, key)))
    return cells


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: with a record, or with an error that another try may mend."""

    cell: Cell
    record: Record | None
    error: str | None = None


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    machine: Machine,
    watch: Callable[[list[Outcome], dict[Cell, dict[str, Any]]], None] | None = None,
    poll_seconds: float = 0.2,
) -> list[Outcome]:
    """Run cells in processes of their own, ``jobs`` at a time, and return how each ended.

    A process for each cell: what one does to its interpreter, and a crash, stays with it.

    Args:
        cells: what to run; finished ones are only read.
        jobs: processes at a time.
        machine: device and threads of each.
        watch: called after every poll with the outcomes so far and each running cell's progress.
        poll_seconds: time between polls.

    Returns:
        One outcome a cell, in the order of ``cells``.
    """
    outcomes: dict[Cell, Outcome] = {}
    waiting: list[Cell] = []
    for cell in cells:
        record = finished(cell.folder, cell.key)
        if record is None:
            waiting.append(cell)
        else:
            outcomes[cell] = Outcome(cell, record)
    running: dict[Cell, BaseProcess] = {}
    context = process_context()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                arguments = (as_dict(cell.spec), str(cell.folder), machine)
                process = context.Process(target=_work, args=arguments, daemon=True)
                process.start()
                running[cell] = process
            time.sleep(poll_seconds)
            for cell, process in list(running.items()):
                if not process.is_alive():
                    process.join()
                    del running[cell]
                    outcomes[cell] = _outcome(cell, process.exitcode)
            if watch is not None:
                watch(list(outcomes.values()), {cell: _progress(cell) for cell in running})
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join()
    return [outcomes[cell] for cell in cells]


def process_context() -> Any:
    """Return how processes for runs are started: from a server that has imported torch.

    Where there is none (Windows), each process imports it.
    """
    # A fork server imports torch once; where there is none (Windows), each process imports it.
    # Plain forks are out: torch's threads and CUDA do not survive them.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Imported once instead of in every run: torch.optim's first use imports torch._dynamo, which
    # takes as long as ten epochs on digits; the digits and some readouts are scikit-learn's.
    context.set_forkserver_preload(
        [
            "experiments.runs.runner",
            "torch._dynamo",
            "sklearn.datasets",
            "sklearn.linear_model",
            "sklearn.svm",
        ]
    )
    return context


def _work(spec: dict[str, Any], folder: str, machine: Machine) -> None:
    """Run one cell in its own process; errors go to a file, for the parent to report."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A study that is killed takes its runs along, so that the next one does not meet them.
        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    place = Path(folder)
    told = 0.0

    def tell(progress: Progress) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= 0.5:
            told = now
            write_json(place / PROGRESS, asdict(progress), indent=None)

    (place / ERROR).unlink(missing_ok=True)
    try:
        run(from_dict(spec), place, machine, progress=tell)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException as error:
        place.mkdir(parents=True, exist_ok=True)
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        write_text(place / ERROR, text + "\n\n" + traceback.format_exc())
        os._exit(1)


def _progress(cell: Cell) -> dict[str, Any]:
    try:
        return dict(read_json(cell.folder / PROGRESS))
    except (OSError, ValueError):
        return {}


def _outcome(cell: Cell, exitcode: int | None) -> Outcome:
    record = finished(cell.folder, cell.key)
    if record is not None:
        return Outcome(cell, record)
    error = cell.folder / ERROR
    if error.exists():
        reason = error.read_text(encoding="utf-8").splitlines()[0]
        return Outcome(cell, None, f"{reason} (traceback in {error})")
    how = f"was killed by signal {-exitcode}" if (exitcode or 0) < 0 else f"ended with {exitcode}"
    return Outcome(cell, None, f"its process {how} and left no record")
