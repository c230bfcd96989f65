"""What a run leaves on disk: plain JSON and safe tensors, written atomically, never pickled.

A file is written beside its place and moved there in one step, so that a reader (or a run that
was killed and started again) finds the old content or the new, never a part. Files that others
rely on carry a digest of their content, checked when they are read.

``record.json`` says what was done, once and for all; ``evaluation.json`` what was measured of the
weights, and may be made again. :func:`load_study` reads a study's folder into tables.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

#: Files in a run's folder.
RECORD, EVALUATION = "record.json", "evaluation.json"


#: No JSON of ours is larger.
MOST_JSON = 1 << 28

#: What :func:`_replace` calls a file until it is whole.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


def _replace(path: Path, write: Callable[[str], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(name)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def temporary_files(folder: Path) -> list[Path]:
    """Return the files that writers who were killed left in a folder."""
    return [path for path in folder.glob(".*") if _TEMPORARY.fullmatch(path.name)]


def is_free(folder: Path) -> bool:
    """Whether a folder holds nothing, or only what writers of ours left who were killed there."""
    ours = [folder / ".lock", *temporary_files(folder)]
    return all(path in ours or path.suffix == ".damaged" for path in folder.iterdir())


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, making the folders it needs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_text(f"{folder}/a/b.txt", "ΔR")
        ...     Path(f"{folder}/a/b.txt").read_text(encoding="utf-8")
        'ΔR'
    """
    _replace(Path(path), lambda name: Path(name).write_text(text, encoding="utf-8"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically, making the folders it needs."""
    _replace(Path(path), lambda name: Path(name).write_bytes(content))


def write_new_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as an ``.npz`` file, uncompressed, where there is none yet.

    Raises:
        FileExistsError: there is something; it stays as it is.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("xb").close()  # ours from here on

    def write(name: str) -> None:
        with open(name, "wb") as file:
            np.savez(file, **arrays)

    try:
        _replace(path, write)
    except BaseException:
        path.unlink()
        raise


def plain(value: Any) -> Any:
    """Turn ``value`` into what JSON can hold: numbers that are not finite become None.

    Example:
        >>> plain({"loss": float("nan"), "epochs": (1, 2), "at": Path("runs")})
        {'loss': None, 'epochs': [1, 2], 'at': 'runs'}
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a record holds plain values; got {type(value).__name__}: {value!r}")


def write_json(path: str | Path, value: Any, *, indent: int | None = 1) -> None:
    """Write ``value`` as JSON, atomically; numbers that are not finite become null.

    With an ``indent``, a list without mappings in it takes one line, however long.
    """
    text = _json(plain(value), indent, "\n") + "\n"
    # File names need not be Unicode; their lone surrogates become JSON's escapes.
    write_text(path, text.encode("utf-8", "backslashreplace").decode())


def _json(value: Any, indent: int | None, end: str) -> str:
    line = json.dumps(value, ensure_ascii=False)
    if indent is None or "{" not in line or not value or isinstance(value, str):
        return line
    start = end + " " * indent
    if isinstance(value, list):
        parts = [_json(part, indent, start) for part in value]
        return f"[{start}{f',{start}'.join(parts)}{end}]"
    names = [json.dumps(name, ensure_ascii=False) for name in value]
    parts = [_json(part, indent, start) for part in value.values()]
    members = [f"{name}: {part}" for name, part in zip(names, parts, strict=True)]
    return f"{{{start}{f',{start}'.join(members)}{end}}}"


def write_signed(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with a ``digest`` of it, which :func:`read_signed` checks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_signed(f"{folder}/x.json", {"epochs": 3})
        ...     read_signed(f"{folder}/x.json")
        {'epochs': 3}
    """
    write_json(path, {**value, "digest": content_key(value)})


def read_signed(path: str | Path) -> dict[str, Any]:
    """Read what :func:`write_signed` wrote.

    Raises:
        ValueError: the file is not such a file, or was altered; the message names it.
    """
    value = read_json(path)
    digest = value.pop("digest", None) if isinstance(value, dict) else None
    # What is not finite is written as null, and would have null's digest.
    if digest is None or digest != content_key(value) or plain(value) != value:
        raise ValueError(f"{path} is damaged: its content is not what was written")
    return dict(value)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON, or not one of ours by its size; the message names it.
    """
    try:
        _check_file(path, MOST_JSON)
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from error


def _check_file(path: str | Path, most: float = math.inf) -> None:
    """Refuse what would be read without end."""
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError("it is not a regular file")
    if (size := Path(path).stat().st_size) > most:
        raise ValueError(f"it has {size:,} bytes; the limit is {most:,}")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Any = None) -> None:
    """Write named tensors and a JSON-able ``metadata`` into one safetensors file, atomically."""
    header = {"json": json.dumps(plain(metadata), ensure_ascii=False)}
    # Safetensors wants every tensor contiguous and alone in its memory, and its save_file has
    # temporary files of its own.
    whole = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    write_bytes(path, save(whole, metadata=header))


def load_tensors(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[dict[str, Tensor], Any]:
    """Read what :func:`save_tensors` wrote: tensors by name, on ``device``, and the metadata.

    Raises:
        ValueError: the file is not a safetensors file with our header; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_tensors(f"{folder}/x", {"W": torch.eye(2)}, {"epoch": 3})
        ...     load_tensors(f"{folder}/x")
        ({'W': tensor([[1., 0.],
                       [0., 1.]])}, {'epoch': 3})
    """
    try:
        _check_file(path)
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
        return tensors, json.loads(header["json"])
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes come out of safetensors in many ways
        raise ValueError(f"{path} is not a checkpoint of ours: {error}") from error


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        kind = str(value.dtype).removeprefix("torch.")
        digest.update(f"{name}{kind}{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)  # of any type
    return digest.hexdigest()


def content_key(*parts: Any) -> str:
    """Return the SHA-256 of plain values in canonical JSON: the key of a run.

    Example:
        >>> content_key({"ratio": 0.1, "seed": 0}) == content_key({"seed": 0, "ratio": 0.1})
        True
    """
    text = json.dumps(plain(parts), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def environment() -> dict[str, Any]:
    """Return the versions and the machine a number came from."""
    import scipy
    import sklearn

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Record:
    """What was done in one run: enough to trust its numbers, and to run it again.

    Attributes:
        key: hash of the spec, the data's content and, for a user's own code, of its files.
        spec: the run's spec, as plain values.
        status: ``"finished"``, or ``"failed"`` with the ``reason``.
        seeds: the seed of every stream of randomness.
        data: name, source, content hash and sizes of the splits.
        noise: what was corrupted: counts, indices, which are wrong, realised transition, hash.
        proof: digests by which two runs show that they shared initial weights, labels, sampling
            and augmentation.
        environment: versions, machine, device and threads.
        readout: the classifier that the method's accuracy is reported with.
        epochs, steps, wall_seconds: what the run took, evaluations along it included.
        evaluation_seconds: the part of ``wall_seconds`` spent in evaluations.
        history: one entry an evaluation: epoch, step, learning rate, loss terms, measures.
        weights: by epoch (as text), the ``file`` of the kept weights and their ``digest``.
    """

    key: str
    spec: dict[str, Any]
    status: str
    reason: str | None
    seeds: dict[str, int]
    data: dict[str, Any]
    noise: dict[str, Any]
    proof: dict[str, str]
    environment: dict[str, Any]
    readout: str
    epochs: int
    steps: int
    wall_seconds: float
    evaluation_seconds: float
    history: list[dict[str, Any]]
    weights: dict[str, dict[str, str]]


@dataclass(frozen=True)
class RunEvaluation:
    """What was measured of a run's weights; it can be measured again without training.

    Attributes:
        key: the run's.
        version: of what is measured; an evaluation of another version is measured again.
        readout: the classifier that selected the epochs and that accuracy is reported with.
        terminal_epoch: the epoch at which the terminal phase began by ``readout``, see
            :func:`mcr2.metrics.memorization.terminal_phase`; None where it was not reached.
        data: content hash of the data measured on.
        layers: the layers that were measured beside the features.
        selections: by rule: epoch, its validation accuracy and standard error, the weights' file,
            full measures and profiles there.
        seconds: what measuring took.
        environment: versions, machine, device and threads.
    """

    key: str
    version: str
    readout: str
    terminal_epoch: int | None
    data: str
    layers: list[str]
    selections: dict[str, dict[str, Any]]
    seconds: float
    environment: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A run's folder as it was left; without an evaluation it failed, or is not measured yet."""

    folder: Path
    record: Record = field(repr=False)  # megabytes of text
    evaluation: RunEvaluation | None = field(repr=False)


_MEASURED = {"epoch": int, "measures": dict[str, float | None]}

#: What fields that are free otherwise hold at the least, and what each part of others holds.
_HOLD: dict[str, dict[str, Any]] = {
    "spec": {"training": dict[str, Any]},
    "data": {"name": str, "hash": str},
    "noise": {"wrong": int | None},
    "environment": {"threads": int},
}
_PARTS_HOLD: dict[str, dict[str, Any]] = {
    "history": {**_MEASURED, "step": int},
    "selections": {**_MEASURED, "validation_accuracy": float | None, "notes": list[str]},
    "weights": {"file": str, "digest": str},
}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type as dataclasses of ours annotate it."""
    outer, parts = get_origin(kind), get_args(kind)
    if outer is UnionType:
        return any(_fits(value, part) for part in parts)
    if outer in (dict, list):
        inner = value.values() if isinstance(value, dict) else value
        return isinstance(value, outer) and all(_fits(part, parts[-1]) for part in inner)
    return kind is Any or isinstance(value, (int, float) if kind is float else kind)


def _read(path: Path, kind: type[Any]) -> Any:
    """Read a dataclass from a signed file; every field there, and of its type."""
    value, expected = read_signed(path), get_type_hints(kind)
    if set(value) != set(expected):
        raise ValueError(f"{path} is damaged: it does not hold the fields of a {kind.__name__}")
    for each in fields(kind):
        held = value[each.name]
        if not _fits(held, expected[each.name]):
            raise ValueError(f"{path} is damaged: {each.name} is not of type {each.type}")
        parts = [held] if isinstance(held, dict) else []
        if each.name in _PARTS_HOLD:
            parts = list(held.values()) if isinstance(held, dict) else held
        needed = _HOLD.get(each.name) or _PARTS_HOLD.get(each.name, {})
        for name, wanted in needed.items():
            if not all(name in part and _fits(part[name], wanted) for part in parts):
                raise ValueError(f"{path} is damaged: {each.name} lacks {name}, or holds another")
        if "measures" in needed and any(k.count("/") != 4 for p in parts for k in p["measures"]):
            raise ValueError(
                f"{path} is damaged: {each.name} has a measure without a key of five parts"
            )
    return kind(**value)


def load_run(folder: str | Path, *, evaluated: bool = True) -> Run:
    """Read a finished run's folder, perhaps without its evaluation; nothing it names is imported.

    Raises:
        ValueError: there is no record, or a file of it is damaged; the message names it.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder} holds no finished run: there is no {RECORD} in it")
    record = _read(folder / RECORD, Record)
    if record.status not in ("finished", "failed") or not (record.history or record.reason):
        raise ValueError(f"{folder / RECORD} is damaged: it neither finished nor says why")
    path = folder / EVALUATION
    found = _read(path, RunEvaluation) if evaluated and path.is_file() else None
    return Run(folder, record, found if found and found.key == record.key else None)


def save_record(folder: Path, record: Record) -> None:
    """Write a run's record."""
    write_signed(folder / RECORD, asdict(record))


def save_evaluation(folder: Path, evaluation: RunEvaluation) -> None:
    """Write a run's evaluation."""
    write_signed(folder / EVALUATION, asdict(evaluation))


class StudyFrames(NamedTuple):
    """A study's runs as pandas frames; a measure's key is in parts."""

    runs: Any  # a row a run: the spec's fields, status, sizes, seconds
    history: Any  # a row a run, epoch and measure
    evaluations: Any  # a row a run, selection rule and measure


def load_study(out: str | Path) -> StudyFrames:
    """Read every finished run of a study's folder, a folder of runs or one run's, into frames.

    Raises:
        ImportError: pandas is not installed.
        ValueError: no finished run there, or a damaged one.

    Example:
        >>> load_study("results/no-such-study")
        Traceback (most recent call last):
        ...
        ValueError: results/no-such-study holds no finished run
    """
    places = (f"runs/*/{RECORD}", RECORD, f"*/{RECORD}")
    folders = sorted(path.parent for place in places for path in Path(out).glob(place))
    if not folders:
        raise ValueError(f"{out} holds no finished run")
    import pandas

    runs, history, evaluations = [], [], []
    parts = ("layer", "split", "labels", "readout", "measure")
    for run in map(load_run, folders):
        name, record, evaluation = run.folder.name, run.record, run.evaluation
        spec = dict(record.spec)
        runs.append(
            {"run": name}
            | spec.pop("training", {})
            | spec
            | {"status": record.status, "reason": record.reason, "readout": record.readout}
            | {"epochs_run": record.epochs, "steps": record.steps}
            | {f"data_{key}": value for key, value in record.data.items()}
            | {"wall_seconds": record.wall_seconds, "wrong": record.noise["wrong"]}
            | {"terminal_epoch": evaluation and evaluation.terminal_epoch}
        )
        for entry in record.history:
            at = (name, entry["epoch"], entry["step"])
            history += [(*at, *key.split("/"), v) for key, v in entry["measures"].items()]
        for rule, chosen in (evaluation.selections if evaluation else {}).items():
            at = (name, rule, chosen["epoch"])
            evaluations += [(*at, *key.split("/"), v) for key, v in chosen["measures"].items()]
    return StudyFrames(
        pandas.DataFrame(runs),
        pandas.DataFrame(history, columns=["run", "epoch", "step", *parts, "value"]),
        pandas.DataFrame(evaluations, columns=["run", "selection", "epoch", *parts, "value"]),
    )
