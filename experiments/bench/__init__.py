"""Benchmarks: what a step, a loss or a metric costs on the machine at hand.

    mcr2 bench NAME --repeats 30 --threads 2 --out figures.json

A benchmark is a file with a function ``prepare(options)`` that checks what was asked for
(ValueError, in one line) and returns what to run: a function of nothing that returns a table for
the reader and plain figures for ``--out``. Its name stands in :data:`BENCHES`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path

import tyro

#: Benchmarks by name: the module of each, imported when it is asked for.
BENCHES: dict[str, str] = {
    "step": "experiments.bench.step",
    "micro_batch": "experiments.bench.micro_batch",
    "rates": "experiments.bench.rates",
    "metrics": "experiments.bench.metrics",
}


@dataclass(frozen=True)
class Options:
    """Measure what something costs on this machine: step, micro_batch, rates or metrics."""

    name: tyro.conf.Positional[str]
    """step: a training step and its parts. micro_batch: memory and time of micro-batches.
    rates: coding rates beside other ways to them. metrics: collapse beside two-pass forms."""
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
    repeats: int = 30
    """Times that each thing is measured; medians are reported."""
    out: Path | None = None
    """JSON file for the figures."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""


def refuse_options(options: Options, *taken: str) -> None:
    """Refuse options that a benchmark does not read.

    Raises:
        ValueError: an option other than ``taken`` was set.
    """
    default = Options(options.name)
    for option in fields(Options):
        read = option.name in ("name", "out", *taken)
        if not read and getattr(options, option.name) != getattr(default, option.name):
            flag = "--" + option.name.replace("_", "-")
            raise ValueError(f"bench {options.name} has no use for {flag}")
