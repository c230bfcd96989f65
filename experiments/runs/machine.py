"""How runs use the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from experiments.runs.tensorboard_log import require_tensorboard
from mcr2 import checks


@dataclass(frozen=True)
class Machine:
    """Where and how runs go on; nothing here changes what a run means.

    Attributes:
        device: ``"auto"`` (CUDA, then MPS, then CPU) or a torch device.
        threads: CPU threads of a run.
        data_root: where data sets are looked for first.
        tensorboard: write TensorBoard events into each run's folder.
        here: whether it is this machine, whose device can be checked.
        processes: how many share each batch of a trained run, see docs/scale.md.
    """

    device: str = "auto"
    threads: int = 1
    data_root: str | None = None
    tensorboard: bool = False
    here: bool = True
    processes: int = 1

    def __post_init__(self) -> None:
        checks.integer("threads", self.threads, 1, 1024)
        checks.integer("processes", self.processes, 1, 1024)
        if self.tensorboard:
            require_tensorboard()
        if self.here:
            check_processes(self.processes, self.torch_device())

    def configure_torch(self) -> torch.device:
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

    @property
    def cores(self) -> int:
        """How many processors a run keeps busy."""
        return self.threads * self.processes

    def jobs(self, asked: int | None) -> int:
        """Return how many runs go on at a time: as asked, or as many as fit the processors."""
        if asked is not None:
            return checks.integer("jobs", asked, 1, 1024)
        cores = max(1, (os.cpu_count() or 1) // self.cores)
        return cores if self.torch_device().type == "cpu" else 1


def check_processes(processes: int, device: torch.device) -> None:
    """Refuse more processes than a device can be shared by.

    Raises:
        ValueError: on GPUs each process needs one of its own, the first of the machine; MPS has no
            way to send.
    """
    if processes == 1 or device.type == "cpu":
        return
    if device.type != "cuda":
        raise ValueError(f"--processes {processes} needs a CPU or GPUs of CUDA, not {device.type}")
    if ":" in str(device):
        raise ValueError(f"--processes {processes} takes the first GPUs; leave out {device}")
    if (found := torch.cuda.device_count()) < processes:
        raise ValueError(f"--processes {processes} needs as many GPUs; here are {found}")
