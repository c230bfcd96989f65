"""``mcr2 doctor``: whether everything is there that studies need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

#: Packages that are installed by an extra of ours, and for what.
EXTRAS = {"pandas": "load_study", "tensorboard": "--tensorboard"}

#: Bytes without which a study should not be begun: a recipe's weights and checkpoints.
ROOM = 1 << 30


@dataclass(frozen=True)
class Doctor:
    """Say whether Python, PyTorch, data sets and disk are there; exit status 1 where not."""

    data_root: str | None = None
    """Where data sets are looked for first."""

    def prepare(self) -> Callable[[], int]:
        """Nothing can be mistaken."""
        return self._go

    def _go(self) -> int:
        from experiments.report.table import Table

        checks = [_python(), *_torch(), *self._data(), _disk(), *_extras()]
        rows = tuple((name, said, "" if fine else "PROBLEM") for name, said, fine in checks)
        print(Table("What mcr2 finds here", ("what", "found", ""), rows, left=3).text())
        problems = [name for name, _, fine in checks if not fine]
        print(f"\nnot fine: {', '.join(problems)}" if problems else "\neverything is there")
        return int(bool(problems))

    def _data(self) -> list[tuple[str, str, bool]]:
        try:
            from mcr2.data import availability

            found = availability(self.data_root)
        except Exception as error:  # torch or torchvision that cannot be imported
            return [("data sets", _line(error), False)]
        there = [name for name, (place, _) in found.items() if place]
        missing = [name for name in found if name not in there]
        told = ", ".join(there) + (f"; not here: {', '.join(missing)}" if missing else "")
        return [("data sets", told, bool(there))]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _python() -> tuple[str, str, bool]:
    version = ".".join(map(str, sys.version_info[:3]))
    return ("Python", f"{version}, {sys.executable}", sys.version_info >= (3, 11))


def _torch() -> list[tuple[str, str, bool]]:
    """Check that torch computes on the device that runs would use."""
    try:
        import torch
        import torchvision

        from experiments.runs.machine import Machine

        device = Machine("auto").torch_device()
        fine = bool(torch.ones(2, 2, device=device).sum().item() == 4)
        threads = torch.get_num_threads()
    except Exception as error:
        return [("PyTorch", _line(error), False)]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} threads"
    return [
        ("PyTorch", f"{torch.__version__}, torchvision {torchvision.__version__}", True),
        ("device", f"{device}, {name}", fine),
    ]


def _disk() -> tuple[str, str, bool]:
    import os
    import shutil

    free = shutil.disk_usage(".").free
    can = os.access(".", os.W_OK)
    told = f"{free / 2**30:.1f} GB free here" + ("" if can else ", which cannot be written to")
    return ("disk", told, can and free >= ROOM)


def _extras() -> list[tuple[str, str, bool]]:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for name, what in EXTRAS.items():
        try:
            told = version(name)
        except PackageNotFoundError:
            told = f"not installed; {what} needs it: pip install 'mcr2-robustness[{name}]'"
        found.append((f"extra {name}", told, True))
    return found
