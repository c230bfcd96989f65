"""``mcr2 report`` and ``mcr2 show``: results of finished studies, read again from their folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tyro

from experiments.runs.options import check_file


@dataclass(frozen=True)
class Report:
    """Write a page of a finished study, or of several beside each other, and of audits."""

    out: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of studies or audits."""
    page: Path | None = None
    """File of the page; by default report.html in the folder, comparison.html of several."""

    def prepare(self) -> Callable[[], int]:
        """Read the folders; drawing and writing are left to do."""
        from experiments.report.held import read_study
        from experiments.report.page import read_audit, write_page

        if not self.out:
            raise ValueError("out is empty; give at least one folder")
        if len(set(self.out)) < len(self.out):
            raise ValueError(f"out has repetitions: {' '.join(map(str, self.out))}")
        check_file(self.page, "--page")
        audits = [folder for folder in self.out if (folder / "audit.json").is_file()]
        held = [
            read_study(folder)
            for folder in self.out
            if folder not in audits or (folder / "table.json").is_file()
        ]
        read = [read_audit(number, folder) for number, folder in enumerate(audits)]
        name = "report.html" if len(self.out) == 1 else "comparison.html"
        page = self.page or self.out[0] / name

        def go() -> int:
            write_page(page, held, audits=read)
            print(f"{page}: {page.stat().st_size / 1e6:.1f} MB; open it in a browser")
            return 0

        return go


@dataclass(frozen=True)
class Show:
    """Print the tables of a finished study; nothing is run."""

    out: tyro.conf.Positional[Path]
    """Folder of the study."""
    table: tyro.conf.Positional[str | None] = None
    """A table's name, or notes; all of them by default."""

    def prepare(self) -> Callable[[], int]:
        """Read the study's tables."""
        from experiments.report.held import read_study
        from experiments.report.table import terminal_width, wrap

        held, width = read_study(self.out, runs=False), terminal_width()
        if self.table not in (None, "notes", *held.tables):
            known = ", ".join((*held.tables, "notes"))
            raise ValueError(f"{self.out} has no table {self.table!r}; choose from {known}")

        def go() -> int:
            blocks = [
                f"[{name}]\n{table.text(width)}"
                for name, table in held.tables.items()
                if self.table in (None, name)
            ]
            if self.table in (None, "notes"):
                notes = [line for note in held.notes for line in wrap(note, width)]
                blocks.append("\n".join(notes or ["no notes"]))
            print("\n\n".join(blocks))
            return 0

        return go
