"""Options that commands and studies share, by inheritance; the same option means the same anywhere.

Nothing here imports torch: ``--help`` and mistakes are answered at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

#: An option that is only ever switched on.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class MachineOptions:
    """Where to run."""

    threads: int = 1
    """CPU threads of each run; a run's last digits depend on them."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True)
class ExecutorOptions(MachineOptions):
    """Where many runs go on, and how many at a time."""

    devices: tuple[str, ...] = ()
    """Devices that take turns with the runs, instead of --device: cuda:0 cuda:1."""
    jobs: int | None = None
    """Runs at a time on each device; by default as many as fit the processors, one on a GPU, one in
    a Slurm job."""
    executor: str = "local"
    """local (processes of this machine), slurm (docs/cluster.md) or path/to/file.py:Class."""
    slurm: tuple[str, ...] = ()
    """KEY=VALUE of the Slurm jobs: partition=gpu time=60 (minutes) gpus_per_node=1
    array_parallelism=16, and others of sbatch."""
    cells_per_job: int | None = None
    """Runs that a Slurm job makes, one by default."""


@dataclass(frozen=True)
class DataOptions(MachineOptions):
    """Which data, corrupted how."""

    recipe: Literal["quick", "cpu", "paper"] = "quick"
    """How to train: quick (digits, minutes), cpu (CIFAR-10 subset, an hour), paper (a GPU)."""
    dataset: str | None = None
    """Name (see `mcr2 datasets`), .npz file or image folder; the recipe's own by default."""
    subset: int | None = None
    """Training images to use, stratified by class; the recipe's own of named data by default."""
    image_size: int | None = None
    """Side to which an image folder is resized."""
    axes: Literal["NCHW", "NHWC"] | None = None
    """How the images of an .npz file lie, where it neither says so nor leaves no doubt."""
    labels_are: Literal["clean", "noisy"] | None = None
    """noisy: the labels given may be wrong and nobody knows where; nothing that needs the truth is
    measured. clean is assumed of labels without true ones beside them."""
    noise: str = "symmetric"
    """symmetric (the true class included, as in the paper), symmetric_excluding_true, pair_flip,
    asymmetric (CIFAR-10's, or :9-1,2-0, :FILE.json), transition:FILE, instance, margin,
    open_set:DATA, given:FILE#KEY, given:FILE#KEY+symmetric; see docs/noise.md."""
    set: tuple[str, ...] = ()
    """[METHOD.]FIELD=VALUE: any field of a run, its training or its objective."""
    data_root: str | None = None
    """Where data sets are looked for first."""


@dataclass(frozen=True)
class TrainingOptions(DataOptions):
    """How runs are trained."""

    epochs: int | None = None
    """Epochs of every method, instead of the recipe's."""
    micro_batch: int | None = None
    """Images that pass through the network at a time; the gradient stays the whole batch's."""
    no_shuffle: Switch = False
    """Keep the data set's order, hence the same batches, in every epoch."""
    amp: Switch = False
    """Run the network in bfloat16 where autocast sees fit; losses stay in float32."""
    compile: Switch = False
    """Run the network through torch.compile."""
    tf32: Switch = False
    """Let the network's products round to TF32 (CUDA)."""
    processes: int = 1
    """Processes that share every batch of a run, exactly, each with a GPU of its own where there
    are any; see docs/scale.md. A constructed network takes one."""
    tensorboard: Switch = False
    """Write TensorBoard events into each run's folder."""

    def settings(self) -> list[str]:
        """Return the options as settings, before those of ``--set``, which may refine them."""
        named = {
            "epochs": self.epochs,
            "micro_batch": self.micro_batch,
            "shuffle": False if self.no_shuffle else None,
            **{name: getattr(self, name) or None for name in ("amp", "compile", "tf32")},
        }
        given = [f"{name}={value}" for name, value in named.items() if value is not None]
        return [*given, *self.set]


@dataclass(frozen=True)
class GridOptions(TrainingOptions, ExecutorOptions):
    """Which runs, and where."""

    ratios: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    """Shares of the training labels to redraw."""
    seeds: tuple[int, ...] = (0,)
    """One run of everything a seed."""
    out: Path | None = None
    """Folder of the study; one in results/ named after it by default."""
    estimate: Switch = False
    """Measure and tell what all this would take, and do nothing else."""


def check_file(path: Path | None, option: str = "--json") -> None:
    """Refuse a place where no file can be written, before anything is spent.

    Raises:
        ValueError: it is a folder, lies in a file, or in a folder that cannot be written to.
    """
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give a file")
    parent = next(parent for parent in path.parents if parent.exists())
    if not parent.is_dir():
        raise ValueError(f"{option} {path}: {parent} is a file, not a folder")
    if not os.access(parent, os.W_OK):
        raise ValueError(f"{option} {path}: {parent} cannot be written to")
