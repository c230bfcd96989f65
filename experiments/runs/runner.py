"""Spec -> record -> evaluation, in a folder of its own, resumable.

A run's record is written when its training is over, and it is never trained again; one without a
record continues from its checkpoint. Its evaluation is made from the kept weights, and made again
where what is measured has changed.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from experiments.runs import processes
from experiments.runs.machine import Machine
from experiments.runs.method import Workspace, candidates, readout_for, rules_for, rules_with
from experiments.runs.methods import Method, find_method
from experiments.runs.prepare import (
    Prepared,
    Sizes,
    check_meant,
    load,
    load_other,
    noise_content,
    prepare,
    prepared,
    source_of,
    taken_by,
)
from experiments.runs.signals import STOP, StopSignals
from experiments.runs.specs import RunSpec, as_dict, field_value, from_dict
from experiments.runs.tensorboard_log import TensorBoardLog
from experiments.runs.terminal import warn
from experiments.runs.user_code import is_user_code, load_object
from mcr2 import checks
from mcr2.data import DATASETS, Dataset
from mcr2.evaluation import (
    Evaluation,
    ImageEncoder,
    evaluate,
    layers_of,
    measure_key,
    standard_readouts,
)
from mcr2.evaluation.catalogue import MEASURES
from mcr2.metrics.memorization import terminal_phase
from mcr2.readouts import READOUTS
from mcr2.records import (
    EVALUATION,
    RECORD,
    Record,
    Run,
    RunEvaluation,
    content_key,
    environment,
    is_free,
    load_run,
    load_tensors,
    read_signed,
    save_evaluation,
    save_record,
    save_tensors,
    temporary_files,
    tensors_digest,
    write_signed,
)
from mcr2.selection import SELECTIONS, make_selection, select
from mcr2.training import Progress, World, check_shares

SPEC = "spec.json"
CHECKPOINT = "checkpoint.safetensors"
PROGRESS = "progress.json"
ERROR = "error.txt"

#: What a run's folder holds only while the run goes on.
PASSING = (CHECKPOINT, PROGRESS, ERROR)

#: Raised where a measure of the same name is measured otherwise than before.
EVALUATION_FORMAT = 1

#: Readouts that a solver fits: they take longer than all others, and stand at the last epoch only.
SOLVED = ("logistic_regression", "linear_svm")


def evaluation_version() -> str:
    """Return what tells evaluations apart that hold other measures, readouts or rules."""
    return content_key(EVALUATION_FORMAT, sorted(MEASURES), sorted(READOUTS), sorted(SELECTIONS))


def run_key(spec: RunSpec, dataset: Dataset, method: Method, other: Dataset | None = None) -> str:
    """Return the key of a run: its spec, its data's content, a user's own files' content.

    Files and other data that its noise takes count by their content too.
    """
    named = as_dict(spec) | {"dataset": dataset.content_hash(), "noise": noise_content(spec, other)}
    # What the data set decides beside its pixels: the same images can come with other defaults.
    decided = [dataset.num_classes, dataset.shift, dataset.flip]
    return content_key(named, decided, code_fingerprints(spec, method))


def code_fingerprints(spec: RunSpec, method: Method) -> list[str]:
    """Return hashes of the user's own files that a run is made with; empty for what is built in."""
    backbone = load_object(spec.backbone)[1] if is_user_code(spec.backbone) else ""
    return [method.fingerprint, backbone]


@dataclass(frozen=True)
class PlannedRun:
    """A run that was checked and has its place: its spec, key, data's content hash and folder."""

    spec: RunSpec
    key: str
    data: str
    folder: Path


def plan(
    specs: Sequence[RunSpec], root: Path, machine: Machine, axes: Sequence[str] = ("ratio",)
) -> list[PlannedRun]:
    """Check every spec against its method and data, and give it its folder; run nothing.

    Args:
        specs: what to run.
        root: folder of all runs.
        machine: where data sets are looked for.
        axes: fields of a spec that stand in the folder's name, for a person to read.

    Raises:
        ValueError, TypeError: the first spec that could not be run, and why.
    """
    datasets: dict[tuple[Any, ...], Dataset] = {}
    others: dict[str, Dataset | None] = {}
    planned = []
    for spec in specs:
        method = find_method(spec.method)
        source = (spec.dataset, *source_of(spec).values())
        if source not in datasets:
            datasets[source] = load(spec, machine.data_root)
        if spec.noise not in others:
            others[spec.noise] = load_other(spec, machine.data_root)
        dataset, other = datasets[source], others[spec.noise]
        data = prepare(spec, dataset, other)
        check_meant(spec, data, readout_for(spec, method))
        method.check(spec, data.sizes)
        if method.trained:
            check_shares(spec.training, data.sizes.num_samples, machine.processes)
        rules_for(spec)
        key = run_key(spec, dataset, method, other)
        name = short_name(spec.method)
        values = [f"{axis}{field_value(spec, axis)}" for axis in axes]
        parts = [re.sub(r"[^\w.+-]", "_", p)[:40] for p in (name, *values, f"seed{spec.seed}")]
        folder = root / "-".join([*parts, key[:10]])
        planned.append(PlannedRun(spec, key, dataset.content_hash(), folder))
    return planned


def short_name(method: str) -> str:
    """Return a method's name as part of a file name.

    Example:
        >>> short_name("losses/pull.py:Pull")
        'pull-Pull'
    """
    return Path(method).name.replace(":", "-").replace(".py", "")


def set_aside(path: Path, why: Exception) -> None:
    """Rename a damaged file, and say so on standard error."""
    damaged = path.with_name(f"{path.name}.damaged")
    path.replace(damaged)
    warn(f"{why}; set aside as {damaged.name}, and made again")


def read_or_set_aside(path: Path) -> dict[str, Any] | None:
    """Return what a signed file holds; None where there is none, or it is damaged and set aside."""
    if not path.is_file():
        return None
    try:
        return read_signed(path)
    except ValueError as error:
        set_aside(path, error)
        return None


def held(folder: Path, key: str, *, mend: bool = True) -> Run | None:
    """Return a folder's run if its record has this key; damaged files are set aside to mend it."""
    while (folder / RECORD).is_file():
        try:
            run = load_run(folder)
            return run if run.record.key == key else None
        except ValueError as error:
            if not mend:
                return None
            set_aside(folder / (EVALUATION if EVALUATION in str(error) else RECORD), error)
    return None


def complete(planned: PlannedRun, *, mend: bool = True) -> Run | None:
    """Return a planned run that has nothing left to do: failed, or evaluated as of today.

    What is damaged or left over in its folder goes, unless that is not to be mended.
    """
    run, folder = held(planned.folder, planned.key, mend=mend), planned.folder
    if run is None:
        return None
    if run.record.status == "finished" and not up_to_date(run, planned.spec.measured_layers):
        return None
    left = any((folder / name).exists() for name in PASSING) or temporary_files(folder)
    if left and mend:
        with contextlib.suppress(OSError, Timeout), FileLock(folder / ".lock", timeout=0):
            remove_leftovers(folder)
    return run


def remove_leftovers(folder: Path, names: Sequence[str] = PASSING) -> None:
    """Remove what a run that was killed left beside its results."""
    for path in [*(folder / name for name in names), *temporary_files(folder)]:
        path.unlink(missing_ok=True)


def up_to_date(run: Run, layers: Sequence[str] = ()) -> bool:
    """Whether an evaluation holds what would be measured now."""
    found = run.evaluation
    return (
        found is not None
        and found.version == evaluation_version()
        and set(layers) <= set(found.layers)
    )


def check_folder(folder: Path, key: str) -> None:
    """Refuse a folder that was begun for a run of another key.

    Raises:
        ValueError: it was, or it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a new or an empty folder")
    if not (folder / SPEC).exists():
        if folder.exists() and not is_free(folder):
            raise ValueError(f"{folder} holds something else; give a new or an empty folder")
        return
    try:
        begun = read_signed(folder / SPEC)
    except ValueError as error:
        set_aside(folder / SPEC, error)
        return
    if begun.get("key") != key:
        raise ValueError(
            f"{folder} holds another run (other spec, data or code); choose another folder"
        )


def extra_readouts(spec: RunSpec, *, final: bool = True) -> tuple[str, ...]:
    """Return the readouts of a selected epoch beside the method's own; :data:`SOLVED` if final."""
    names = standard_readouts(spec.feature_dim, spec.n_components)
    return names if final else tuple(name for name in names if name not in SOLVED)


def kept_encoder(planned: PlannedRun, machine: Machine) -> tuple[ImageEncoder, Prepared]:
    """Return the network that a finished run kept of its last epoch, on its device, and the data.

    Raises:
        ValueError: the run is not finished, or its weights are missing or damaged.
    """
    run, spec = held(planned.folder, planned.key), planned.spec
    if run is None or run.record.status != "finished":
        raise ValueError(f"{planned.folder} holds no finished run of {spec.method}")
    kept = run.record.weights.get(str(run.record.epochs))
    if kept is None:
        raise ValueError(f"{planned.folder} does not hold the weights of the last epoch")
    data = prepared(spec, machine.data_root)
    state = _read_weights(planned.folder, kept)
    encoder: Any = find_method(spec.method).load(spec, data.sizes, state)
    if isinstance(encoder, torch.nn.Module):
        encoder.to(machine.torch_device())
    return encoder, data


def evaluate_fully(
    encoder: ImageEncoder,
    spec: RunSpec,
    data: Prepared,
    readout: str,
    device: torch.device,
    *,
    final: bool = True,
    layers: Sequence[str] = (),
) -> Evaluation:
    """Evaluate one encoder in full, as for a selected epoch."""
    if isinstance(encoder, torch.nn.Module):
        encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, test, validation = data.on(device)
    return evaluate(
        encoder,
        train,
        test,
        validation,
        num_classes=data.sizes.num_classes,
        readout=readout,
        readouts=extra_readouts(spec, final=final),
        layers=layers,
    )


def run(
    spec: RunSpec,
    folder: str | Path,
    machine: Machine | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    checkpoint_seconds: float = 20.0,
    stop: StopSignals | None = None,
) -> Run:
    """Run one spec in a folder, continuing what is there.

    Args:
        spec: what to run.
        folder: where record, evaluation, weights and checkpoint go.
        machine: device and threads; torch's thread count is set for the whole process.
        progress: called once an epoch.
        checkpoint_seconds: how often a checkpoint is written, at the most.
        stop: where it is true while training, the run writes its checkpoint and raises
            :class:`mcr2.training.Interrupted`.

    Returns:
        The run as it is on disk; one whose loss stopped being finite has status ``failed`` and says
        why.

    Raises:
        ValueError, TypeError: a spec that cannot be run.
    """
    machine = machine or Machine()
    folder = Path(folder)
    device = machine.configure_torch()
    method = find_method(spec.method)
    dataset, other = load(spec, machine.data_root), load_other(spec, machine.data_root)
    key = run_key(spec, dataset, method, other)
    data = prepare(spec, dataset, other)
    method.check(spec, data.sizes)
    check_folder(folder, key)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        remove_leftovers(folder, ())
        done = held(folder, key)
        if done is not None and not up_to_date(done, spec.measured_layers):
            try:
                for kept in done.record.weights.values():
                    _read_weights(folder, kept)
            except ValueError as error:  # without an evaluation, they are all there is
                set_aside(folder / RECORD, error)
                done = None
        job = {"spec": as_dict(spec), "folder": str(folder)}
        shared = done is None and method.trained
        with processes.together(machine, device, job if shared else None) as (world, own):
            if done is None:
                write_signed(folder / SPEC, {"key": key, "spec": as_dict(spec)})
                log = TensorBoardLog(folder) if machine.tensorboard else None
                place = folder / CHECKPOINT
                workspace = Workspace(own, place, checkpoint_seconds, progress, log, stop, world)
                record = _fit(spec, data, method, key, folder, workspace, machine.threads)
                if log is not None:
                    log.close()
                save_record(folder, record)
        if done is None:
            if stop is not None:
                stop.nobody_asks()
            done = Run(folder, record, None)
        if done.record.status == "finished" and not up_to_date(done, spec.measured_layers):
            evaluation = _evaluate(
                done, spec, data, method, device, machine.threads, spec.measured_layers
            )
            save_evaluation(folder, evaluation)
            done = replace(done, evaluation=evaluation)
        remove_leftovers(folder)
    return done


def follow_torchrun(spec: RunSpec, folder: Path, machine: Machine) -> None:
    """Be one of torchrun's processes beside the first, which runs the spec."""
    with processes.of_torchrun(machine.configure_torch()) as (world, device):
        if world.told():
            follow(machine, device, world, as_dict(spec), str(folder))


def follow(
    machine: Machine, device: torch.device, world: World, spec: dict[str, Any], folder: str
) -> None:
    """Train a run together with the process that runs it, and leave everything else to that."""
    meant = from_dict(spec)
    data = prepare(meant, load(meant, machine.data_root), load_other(meant, machine.data_root))
    workspace = Workspace(device, Path(folder) / CHECKPOINT, stop=STOP, world=world)
    find_method(meant.method).fit(meant, data, workspace)


def _fit(
    spec: RunSpec,
    data: Prepared,
    method: Method,
    key: str,
    folder: Path,
    workspace: Workspace,
    threads: int,
) -> Record:
    """Fit a spec and keep the weights of the selected epochs."""
    fitted = method.fit(spec, data, workspace)
    weights = {}
    for epoch, state in fitted.kept.items() if fitted.reason is None else ():
        name = f"epoch-{epoch:05d}.safetensors"
        save_tensors(folder / name, state, {"epoch": epoch})
        weights[str(epoch)] = {"file": name, "digest": tensors_digest(state)}
    dataset, corruption = data.dataset, data.corruption
    wrong = None if corruption.wrong is None else corruption.wrong.nonzero().flatten().tolist()
    return Record(
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
            "validation": len(data.held_out),
            "test": len(data.test),
            **asdict(data.sizes),
        },
        noise={
            "kind": spec.noise,
            "content": data.noise,
            "redrawn": len(corruption.indices),
            "wrong": None if wrong is None else len(wrong),
            "indices": corruption.indices.tolist(),
            "wrong_indices": wrong,
            "transition": corruption.transition.tolist(),
            "hash": corruption.hash,
        },
        proof=fitted.proof | {"labels": corruption.hash, "held_out": content_key(data.held_out)},
        environment=_environment(workspace.device, threads)
        | {"code": code_fingerprints(spec, method), "processes": workspace.world.size},
        readout=readout_for(spec, method),
        epochs=fitted.history[-1]["epoch"] if fitted.history else 0,
        steps=fitted.steps,
        wall_seconds=fitted.wall_seconds,
        evaluation_seconds=fitted.evaluation_seconds,
        history=fitted.history,
        weights=weights,
    )


def _environment(device: torch.device, threads: int) -> dict[str, Any]:
    return {**environment(), "device": str(device), "threads": threads}


def _evaluate(
    run: Run,
    spec: RunSpec,
    data: Prepared,
    method: Method,
    device: torch.device,
    threads: int,
    layers: Sequence[str],
) -> RunEvaluation:
    """Evaluate the kept weights of the epochs that the selection rules choose."""
    begin = time.perf_counter()
    record, readout = run.record, run.record.readout
    points = candidates(record.history, readout)
    measured: dict[str, None] = {}
    evaluations: dict[int, Evaluation] = {}  # several rules may choose the same epoch
    selections: dict[str, dict[str, Any]] = {}
    for rule in rules_with(spec, points):
        chosen = make_selection(rule, points, n_validation=len(data.held_out))
        kept = record.weights.get(str(chosen.epoch))
        if kept is not None and chosen.epoch not in evaluations:
            encoder = _load_encoder(run.folder, kept, spec, data.sizes, method)
            own = [layer for layer in layers if layer in layers_of(encoder)]  # by depth, of ReduNet
            measured |= dict.fromkeys(own)
            final = chosen.epoch == points[-1].epoch
            evaluations[chosen.epoch] = evaluate_fully(
                encoder, spec, data, readout, device, final=final, layers=own
            )
        found = evaluations.get(chosen.epoch)  # a rule of later date may choose what was not kept
        selections[rule] = {
            "epoch": chosen.epoch,
            "validation_accuracy": chosen.validation_accuracy,
            "standard_error": chosen.standard_error,
            "weights": kept and kept["file"],
            "measures": dict(found.measures) if found else {},
            "profiles": dict(found.profiles) if found else {},
            "notes": list(found.notes) if found else [],
        }
    return RunEvaluation(
        key=record.key,
        version=evaluation_version(),
        readout=readout,
        terminal_epoch=_terminal_epoch(record),
        data=data.dataset.content_hash(),
        layers=list(measured),
        selections=selections,
        seconds=time.perf_counter() - begin,
        environment=_environment(device, threads),
    )


def _read_weights(folder: Path, kept: dict[str, str]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file of a run; a record does not lead out of its folder."""
    path = folder / Path(kept["file"]).name
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    state, _ = load_tensors(path)
    if tensors_digest(state) != kept["digest"]:
        raise ValueError(f"{path} is damaged: it is not what the run wrote")
    return state


def _load_encoder(
    folder: Path, kept: dict[str, str], spec: RunSpec, sizes: Sizes, method: Method
) -> ImageEncoder:
    """Return the network of a file of a run."""
    state = _read_weights(folder, kept)
    try:
        return method.load(spec, sizes, state)
    except RuntimeError as error:
        where = folder / kept["file"]
        raise ValueError(f"{where} holds the weights of another network") from error


def _terminal_epoch(record: Record) -> int | None:
    key = measure_key("fit_noisy", split="train", labels="noisy", readout=record.readout)
    began = terminal_phase([entry["measures"].get(key) or 0.0 for entry in record.history])
    return None if began is None else int(record.history[began]["epoch"])


@dataclass(frozen=True)
class Reopened:
    """A run from its folder, with its data and method, which are those that it was made with."""

    run: Run
    spec: RunSpec
    method: Method
    data: Prepared
    machine: Machine

    def epoch_of(self, rule: str) -> int:
        """Return the epoch that a selection rule reports.

        Raises:
            ValueError: the run does not serve the rule; the message lists those it does.
        """
        points = candidates(self.run.record.history, self.run.record.readout)
        checks.choice(f"selection of {self.run.folder}", rule, rules_with(self.spec, points))
        return points[select(rule, points)].epoch

    def encoder(self, epoch: int) -> ImageEncoder:
        """Return the network at an epoch whose weights were kept, on the machine's device.

        Raises:
            ValueError: they were not kept, are damaged, or are those of another network.
        """
        device = self.machine.torch_device()
        return encoder_at(self.run, epoch, self.spec, self.data.sizes, self.method, device)


def encoder_at(
    run: Run, epoch: int, spec: RunSpec, sizes: Sizes, method: Method, device: torch.device
) -> ImageEncoder:
    """Return a run's network at an epoch, on a device; errors are those of Reopened.encoder."""
    kept = run.record.weights.get(str(epoch))
    if kept is None:
        raise ValueError(f"{run.folder} has no weights of epoch {epoch}")
    encoder = _load_encoder(run.folder, kept, spec, sizes, method)
    if isinstance(encoder, torch.nn.Module):
        encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return encoder


def trusted(run: Run, code: Sequence[str]) -> tuple[RunSpec, Method]:
    """Return a run's spec and its method, importing nothing that ``code`` does not name.

    Raises:
        ValueError: the run was made with other code, or with some that is not named.
    """
    spec = from_dict(run.record.spec)
    method, backbone = (_trusted(name, code) for name in (spec.method, spec.backbone))
    spec = replace(spec, method=method, backbone=backbone)
    found = find_method(spec.method)
    if code_fingerprints(spec, found) != run.record.environment.get("code"):
        raise ValueError(f"{' or '.join(code)} is not the file that {run.folder} was run with")
    return spec, found


def reopen(
    folder: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    data_root: str | None = None,
    dataset: str | None = None,
    noise_from: str | None = None,
    code: Sequence[str] = (),
    other_data: bool = False,
) -> Reopened:
    """Open a finished run's folder; arguments and errors are those of :func:`evaluate_again`."""
    run = load_run(folder, evaluated=False)  # the old one may be damaged
    record = run.record
    own = record.environment.get("threads", 1) if threads is None else threads
    machine = Machine(device, own, data_root)
    machine.configure_torch()
    spec, method = trusted(run, code)
    spec = replace(
        spec,
        dataset=dataset or _find_data(spec.dataset, run.folder),
        noise=_find_noise(spec, noise_from, run.folder),
    )
    data = prepared(spec, machine.data_root)
    if not other_data:
        if data.dataset.content_hash() != record.data.get("hash"):
            raise ValueError(f"{spec.dataset} is not the data that {folder} was run on")
        if data.noise != record.noise.get("content", data.noise):
            raise ValueError(f"{spec.noise} is not the noise that {folder} was run with")
        if data.corruption.hash != record.noise.get("hash"):
            raise ValueError(f"{spec.noise} draws other labels here than {folder} was run with")
    return Reopened(run, spec, method, data, machine)


def evaluate_again(folder: str | Path, *, layers: Sequence[str] = (), **how: Any) -> Run:
    """Evaluate a finished run again from its weights; nothing is trained and nothing written.

    Args:
        folder: the run's.
        layers: named stages to measure beside the features, where the network has them.
        how: ``device``, as in :class:`Machine`; ``threads``, CPU threads, None takes the run's own
            number, which gives its very numbers; ``data_root``, where data sets are looked for
            first; ``dataset``, where the run's data are now, if not where its spec says;
            ``noise_from``, where the file or the other data of its noise are now, likewise;
            ``code``, the user's own classes that may be imported, as the run's spec names them, or
            the same file or module and class in another place; ``other_data``, allow data that the
            run was not made with.

    Returns:
        The run, with the new evaluation; its ``layers`` and ``data`` say what was measured.

    Raises:
        ValueError: the folder holds no finished run, or its data, weights or code are not those
            that the record was made from.
    """
    opened = reopen(folder, **how)
    run, spec, machine = opened.run, opened.spec, opened.machine
    if run.record.status != "finished":
        return run
    wanted = tuple(dict.fromkeys((*spec.measured_layers, *layers)))
    device, method = machine.torch_device(), opened.method
    evaluation = _evaluate(run, spec, opened.data, method, device, machine.threads, wanted)
    return replace(run, evaluation=evaluation)


def _find_data(dataset: str, folder: Path, option: str = "--dataset") -> str:
    """Return a data set's name, or where its file or folder is: perhaps beside the run or study."""
    places = [folder / Path(dataset).name, *(p / Path(dataset).name for p in folder.parents[:3])]
    for place in (Path(dataset), *places):
        if dataset in DATASETS or place.exists():
            return dataset if dataset in DATASETS else str(place)
    raise ValueError(f"{dataset}, the data of {folder}, is gone; say where it is with {option}")


def _find_noise(spec: RunSpec, given: str | None, folder: Path) -> str:
    """Return a spec's kind of noise with the place where its file or other data are now."""
    named = taken_by(spec.noise)
    if named is None:
        return spec.noise
    return spec.noise.replace(named, given or _find_data(named, folder, "--noise-from"))


def _trusted(name: str, code: Sequence[str]) -> str:
    """Return where a user's own class is to be imported from: only what was named just now."""
    if not is_user_code(name):
        return name
    for given in code:
        if given == name or short_name(given) == short_name(name):
            return given
    raise ValueError(
        f"the run was made with {name}, which is code; name it (--code {name}) to run it"
    )
