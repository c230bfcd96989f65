"""What a run that was stopped continues from: one file, whole or absent, and checked when read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mcr2.records import content_key, load_tensors, save_tensors, tensors_digest

#: Named tensors by group and number: the encoder's, the optimiser's by parameter, kept by epoch.
Groups = dict[str, dict[int, dict[str, Tensor]]]


def write_checkpoint(path: Path, run: str, groups: Groups, values: Mapping[str, Any]) -> None:
    """Write tensors and plain values under a digest of all of them, atomically.

    Args:
        path: the file.
        run: identifies the run that may continue from it.
        groups: tensors.
        values: what JSON can hold.
    """
    tensors = {
        f"{group}/{number}/{name}": value.detach().cpu()
        for group, members in groups.items()
        for number, named in members.items()
        for name, value in named.items()
    }
    content = {"run": run, "values": dict(values)}
    save_tensors(path, tensors, content | {"digest": _digest(tensors, content)})


def read_checkpoint(path: Path, run: str) -> tuple[Groups, dict[str, Any]]:
    """Read what :func:`write_checkpoint` wrote.

    A file that is damaged (it cannot be read, or is not what its digest says) is moved to
    ``NAME.damaged``, and the logger ``mcr2.training`` warns of it in one line.

    Returns:
        The groups that hold any tensors, and the values; both empty where there is no file, or a
        damaged one.

    Raises:
        ValueError: the checkpoint is another run's; it stays where it is.
    """
    if not path.exists():
        return {}, {}
    try:
        tensors, content = load_tensors(path)
        digest = content.pop("digest", None) if isinstance(content, dict) else None
        if digest != _digest(tensors, content):
            raise ValueError("it is not what its digest says")
    except ValueError as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        logging.getLogger("mcr2.training").warning(
            "%s is damaged and was moved to %s; the run begins again (%s)",
            *(path, aside.name, str(error).splitlines()[0]),
        )
        return {}, {}
    if content["run"] != run:
        raise ValueError(
            f"{path} is the checkpoint of another run (other network, objective, config, feed or "
            "labels); give another file, or delete this one"
        )
    groups: Groups = {}
    for key, value in tensors.items():
        group, number, name = key.split("/", 2)
        groups.setdefault(group, {}).setdefault(int(number), {})[name] = value
    return groups, content["values"]


def _digest(tensors: Mapping[str, Tensor], content: Any) -> str:
    return content_key(content, tensors_digest(tensors))
