"""What a run that was stopped continues from: one file, whole or absent, and checked when read."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from mcr2.records import write_bytes


def write_checkpoint(path: Path, run: str, state: dict[str, Any]) -> None:
    """Write tensors and plain values of a run under a digest of all of them, atomically."""
    buffer = io.BytesIO()
    torch.save({"run": run, "state": state}, buffer)
    write_bytes(path, hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())


def read_checkpoint(path: Path, run: str) -> dict[str, Any] | None:
    """Return what :func:`write_checkpoint` wrote, tensors on the CPU; None without a sound file.

    A file that is not what its digest says is moved to ``NAME.damaged``, and the logger
    ``mcr2.training`` warns of it in one line.

    Raises:
        ValueError: the checkpoint is another run's; it stays where it is.
    """
    if not path.exists():
        return None
    content = path.read_bytes()
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        logging.getLogger("mcr2.training").warning(
            "%s is damaged and was moved to %s; the run begins again", path, aside.name
        )
        return None
    held = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if held["run"] != run:
        raise ValueError(
            f"{path} is the checkpoint of another run (other network, objective, config, feed or "
            "labels); give another file, or delete this one"
        )
    state: dict[str, Any] = held["state"]
    return state
