"""What studies share that are not a grid of runs: rows for each seed, and one figure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from experiments.studies.engine import Study, claim_folder

#: A row of a study's table, its figures by name.
Row = dict[str, Any]


@dataclass(frozen=True)
class SmallStudy(Study):
    """A study that measures something for each seed, and leaves NAME.json and NAME.png.

    A subclass has a ``title``; ``_check`` refuses options of its own; ``_measure`` draws the figure
    and returns rows of equal keys, the first of which names a row.
    """

    title: ClassVar[str]

    out: Path | None = None
    """Folder for the numbers and the figure; results/NAME by default."""
    seeds: tuple[int, ...] = (0,)
    """Of everything that is drawn; the figure shows the first."""
    threads: int = 1
    """CPU threads."""

    def prepare(self) -> Callable[[], int]:
        """Check the options and return what runs the study."""
        from mcr2 import checks
        from mcr2.records import content_key

        for seed in self.seeds:
            checks.integer("seeds", seed, 0)
        checks.integer("the number of seeds", len(self.seeds), 1)
        checks.integer("threads", self.threads, 1)
        self._check()
        settings = {k: v for k, v in asdict(self).items() if k not in ("out", "threads")}
        claim_folder(self._folder(), {"study": self.name, "settings": content_key(settings)[:12]})
        return self._run

    def _folder(self) -> Path:
        return self.out or Path("results") / self.name

    def _check(self) -> None:
        raise NotImplementedError

    def _measure(self, figure: Path) -> list[Row]:
        raise NotImplementedError

    def _run(self) -> int:
        import torch

        from experiments.report.table import Table, entry
        from mcr2.records import write_json

        out = self._folder()
        torch.set_num_threads(self.threads)
        rows = self._measure(out / f"{self.name}.png")
        write_json(out / f"{self.name}.json", {"rows": rows})
        header = tuple(name.replace("_", " ") for name in rows[0])
        body = tuple(tuple(map(entry, row.values())) for row in rows)
        print(Table(self.title, header, body, left=1).text())
        return 0
