"""What a run that was stopped continues from: one file, whole or absent, and checked when read."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from mcr2.records import content_key, load_tensors, save_tensors, tensors_digest


def write_checkpoint(path: Path, run: str, state: dict[str, Any]) -> None:
    """Write tensors and plain values of a run under a digest of all of them, atomically."""
    tensors: dict[str, Tensor] = {}
    content = {"run": run, "state": _take_out(state, tensors)}
    save_tensors(path, tensors, content | {"digest": content_key(content, tensors_digest(tensors))})


def read_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """Return what :func:`write_checkpoint` wrote, tensors on the CPU; None without a sound file.

    A file that is not what its digest says is moved to ``NAME.damaged``, and the logger
    ``mcr2.training`` warns of it in one line.

    Raises:
        ValueError: the checkpoint is another run's; it stays where it is.
    """
    if not path.exists():
        return None
    try:
        tensors, content = load_tensors(path)
        if content.pop("digest") != content_key(content, tensors_digest(tensors)):
            raise ValueError(f"{path} is not what was written")
    except (ValueError, KeyError, TypeError, AttributeError):
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        logging.getLogger("mcr2.training").warning(
            "%s is damaged and was moved to %s; the run begins again", path, aside.name
        )
        return None
    if content["run"] != run:
        raise ValueError(
            f"{path} is the checkpoint of another run (other network, objective, config, feed or "
            "labels); give another file, or delete this one"
        )
    state: dict[str, Any] = _put_back(content["state"], tensors)
    return state


def _take_out(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return nested values as JSON can hold them, tensors moved to ``tensors``."""
    if isinstance(value, Tensor):
        tensors[str(len(tensors))] = value.detach().cpu()
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):  # pairs, because keys may be numbers
        return {"dict": [[key, _take_out(part, tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_take_out(part, tensors) for part in value]}
    return {"value": value}


def _put_back(value: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_back(part, tensors) for key, part in content}
    return [_put_back(part, tensors) for part in content] if kind == "list" else content
