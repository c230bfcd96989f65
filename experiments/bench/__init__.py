"""Benchmarks: what our code costs, beside other ways to the same numbers or by itself.

    mcr2 bench NAME --repeats 30 --threads 2 --out figures.json

A benchmark is a file named in :data:`BENCHES`, with a function ``run(threads=..., repeats=...)``
that returns plain figures for ``--out``. One of a recipe's steps has ``prepare(options)`` in its
place, which checks what was asked for (ValueError, in one line) and returns what to run. A function
``table(figures)`` lays the figures out as text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import tyro

#: Benchmarks by name: the module of each, imported when it is asked for.
BENCHES: dict[str, str] = {
    "step": "experiments.bench.step",
    "micro_batch": "experiments.bench.micro_batch",
    "rates": "experiments.bench.rates",
    "metrics": "experiments.bench.metrics",
    "redunet": "experiments.bench.redunet",
}

#: The options that only a recipe's benchmarks take.
OF_A_RECIPE = ("recipe", "methods", "dataset", "subset", "set", "device", "data_root")


@dataclass(frozen=True)
class Options:
    """Measure what something costs on this machine."""

    name: tyro.conf.Positional[str]
    """step: a training step and its parts. micro_batch: memory and time of micro-batches.
    rates: the rates' kernels. metrics: the collapse metrics. redunet: a layer's construction."""
    recipe: str = "quick"
    """Whose steps to measure."""
    methods: tuple[str, ...] = ("ce", "mcr2")
    """Names, or path/to/file.py:Class, or package.module:Class of an Objective."""
    dataset: str | None = None
    """Name (see `mcr2 datasets`) or .npz file; the recipe's own by default."""
    subset: int | None = None
    """Training images to use, stratified by class."""
    set: tuple[str, ...] = ()
    """[METHOD.]FIELD=VALUE: any field of a run, its training or its objective."""
    repeats: int | None = None
    """Times that each thing is measured, instead of the benchmark's own; medians are reported."""
    out: Path | None = None
    """JSON file for the figures."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""
