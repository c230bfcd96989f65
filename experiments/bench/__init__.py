"""Benchmarks: what our code costs, beside other ways to the same numbers or by itself.

    mcr2 bench NAME --repeats 30 --threads 2 --out figures.json

Each is a module with a function ``measure(options)``, which checks what was asked for and returns
an iterator of rows, printed as they come.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs.options import DataOptions, MachineOptions, check_file


@dataclass(frozen=True)
class Bench(MachineOptions):
    """Options of every benchmark."""

    repeats: int | None = None
    """Times that each thing is measured, instead of the benchmark's own."""
    out: Path | None = None
    """JSON file for the figures."""

    def prepare(self) -> Callable[[], int]:
        """Check everything; measuring is left to do."""
        from experiments.runs.machine import Machine
        from mcr2 import checks
        from mcr2.records import environment, write_json

        if self.repeats is not None:
            checks.integer("repeats", self.repeats, 1)
        check_file(self.out, "--out")
        machine = Machine(self.device, self.threads)
        name = next(name for name, kind in BENCHES.items() if kind is type(self))
        rows = importlib.import_module(f"experiments.bench.{name}").measure(self)

        def go() -> int:
            machine.configure_torch()
            found: list[Mapping[str, Any]] = []
            for row in rows:
                found.append(row)
                print_row(row, header=len(found) == 1 or list(row) != list(found[-2]))
            if self.out is not None:
                head = {"bench": name, "threads": self.threads, "environment": environment()}
                write_json(self.out, {**head, "rows": found})
            return 0

        return go


@dataclass(frozen=True)
class FormBench(Bench):
    """Options of a benchmark of forms."""

    full: bool = False
    """Add large sizes, which take many minutes."""


@dataclass(frozen=True)
class RecipeBench(Bench, DataOptions):
    """Options of a benchmark of a recipe's steps."""

    methods: tuple[str, ...] = ("ce", "mcr2")
    """ce, ls, mse, fixed_etf, mcr2, vmcr2, tcr, ole, redunet, or path/to/file.py:Class,
    package.module:Class."""


class Step(RecipeBench):
    """Time a training step, its parts, and forward and backward of the network alone."""


class MicroBatch(RecipeBench):
    """Measure memory and time of micro-batches, and what they do to the gradient."""


class Processes(RecipeBench):
    """Measure time, memory and bytes sent of processes that share a batch."""


class Rates(FormBench):
    """Time the coding rates beside plain forms of them."""


class Metrics(FormBench):
    """Time the collapse metrics beside a plain form of them."""


class ReduNet(Bench):
    """Time the construction of a ReduNet's layer beside a plain form of it."""


class Audit(FormBench):
    """Time the audit of labels beside nearest neighbours and cleanlab."""


#: Benchmarks by name, that of their module.
BENCHES: dict[str, type[Bench]] = {
    "step": Step,
    "micro_batch": MicroBatch,
    "processes": Processes,
    "rates": Rates,
    "metrics": Metrics,
    "redunet": ReduNet,
    "audit": Audit,
}


def print_row(row: Mapping[str, Any], *, header: bool) -> None:
    """Print a row as soon as it is known, under the names of its values if it is the first."""
    texts = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()]
    widths = [max(len(name), 10) for name in row]
    lines = [list(row), texts] if header else [texts]
    for line in lines:
        print("  ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)), flush=True)
