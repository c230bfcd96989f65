"""``mcr2 measure``: features from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.runs.options import check_file
from experiments.runs.terminal import say


@dataclass(frozen=True)
class Measure:
    """Measure features from anywhere: accuracy, rank, collapse, margins, rates."""

    file: tyro.conf.Positional[Path]
    """An .npz file: features, labels; perhaps clean_labels, weight, bias, test_features and
    test_labels."""
    num_classes: int | None = None
    """By default the rows of weight, or the largest label plus one."""
    readouts: tuple[str, ...] | None = None
    """Classifiers to fit, such as class_mean, nearest_subspace@3, knn@5; all by default."""
    json: Path | None = None
    """File for all measures and profiles."""
    threads: int = 1
    """CPU threads."""

    def prepare(self) -> Callable[[], int]:
        """Read and check the file."""
        from experiments.runs.machine import Machine
        from mcr2.evaluation import (
            COMMON_READOUT,
            evaluate_features,
            read_features,
            standard_readouts,
        )
        from mcr2.readouts import parse_readout

        check_file(self.json)
        machine = Machine("cpu", self.threads)
        for name in self.readouts or ():
            if parse_readout(name)[0] == "head":
                raise ValueError("readout 'head' is the weight in the file, and always read")
        arrays = read_features(self.file, num_classes=self.num_classes)
        count, d = arrays.train.features.shape

        def go() -> int:
            from experiments.report.evaluation import evaluation_tables
            from mcr2.records import write_json

            machine.configure_torch()
            found = evaluate_features(
                arrays.train,
                arrays.test,
                num_classes=arrays.num_classes,
                readout=COMMON_READOUT if arrays.head is None else "head",
                readouts=standard_readouts(d) if self.readouts is None else self.readouts,
                head=arrays.head,
            )
            say(f"{self.file}: {count} samples of {arrays.num_classes} classes, {d} dimensions")
            for table in evaluation_tables(found.measures):
                print(f"\n{table.text()}")
            for note in found.notes:
                print(f"\n{note}")
            if self.json is not None:
                content = {name: getattr(found, name) for name in ("measures", "profiles", "notes")}
                head = {"file": self.file, "num_classes": arrays.num_classes, "samples": count}
                write_json(self.json, {**head, "dim": d, **content})
            return 0

        return go
