"""``mcr2 doctor``: whether everything is there that studies need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

#: Extras of ours: the package that each installs, and what needs it.
EXTRAS = {
    "pandas": ("pandas", "load_study"),
    "tensorboard": ("tensorboard", "--tensorboard"),
    "torchmetrics": ("torchmetrics", "mcr2.metrics.streaming"),
    "cleanlab": ("cleanlab", "mcr2.audit.with_cleanlab"),
    "slurm": ("submitit", "--executor slurm"),
}

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
        from experiments.report.table import terminal_width, wrap

        checks = [_python(), *_torch(), *self._data(), _disk(), *_extras()]
        print("What mcr2 finds here\n")
        wide = max(len(name) for name, *_ in checks) + 2
        for name, said, fine in checks:
            lines = wrap(said if fine else f"PROBLEM: {said}", terminal_width() - wide)
            print(name.ljust(wide) + f"\n{' ' * wide}".join(lines))
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

        from experiments.report.table import count_of
        from experiments.runs.machine import Machine

        device = Machine("auto").torch_device()
        fine = bool(torch.ones(2, 2, device=device).sum().item() == 4)
        threads = torch.get_num_threads()
    except Exception as error:
        return [("PyTorch", _line(error), False)]
    of_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if of_cuda else count_of(threads, "thread")
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
    for name, (package, what) in EXTRAS.items():
        try:
            told = version(package)
        except PackageNotFoundError:
            told = f"not installed; {what} needs it: pip install 'mcr2-robustness[{name}]'"
        found.append((f"extra {name}", told, True))
    return found
