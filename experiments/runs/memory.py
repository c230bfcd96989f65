"""What this process holds in memory, and the most that it has held."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_mib() -> float | None:
    """Return the largest resident size of this process so far in MiB, None where unknown.

    On Linux since :func:`restart_peak`, elsewhere since the process began. (``getrusage`` on Linux
    remembers the process that this one was forked from, so it is not asked there.)
    """
    if _STATUS.exists():
        return _status("VmHWM")
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def restart_peak() -> float | None:
    """Begin :func:`peak_mib` anew; return what is resident now in MiB, None off Linux."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return None
    return _status("VmRSS")


def restart_peak_memory(device: torch.device) -> int | None:
    """Begin :func:`peak_memory` anew; return what is held now in bytes.

    None where that is not known: off CUDA on any device but the CPU, and there off Linux.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    held = restart_peak() if device.type == "cpu" else None
    return None if held is None else int(held * (1 << 20))


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes this process has held: on a GPU those of tensors, else all of it."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = peak_mib()
    return None if peak is None else int(peak * (1 << 20))


def _status(field: str) -> float:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))
