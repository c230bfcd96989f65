"""``mcr2 datasets``: what data are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Datasets:
    """List the data sets that are there, and what is missing."""

    data_root: str | None = None
    """Where data sets are looked for first."""

    def prepare(self) -> Callable[[], int]:
        """Look for them."""
        from mcr2.data import DATASETS, availability

        places = availability(self.data_root)

        def go() -> int:
            from experiments.report.table import Table, terminal_width, wrap

            rows = tuple(
                (name, DATASETS[name].description, str(found or "missing"))
                for name, (found, _) in places.items()
            )
            title = "Data sets (or give the path of an .npz file or an image folder)"
            print(Table(title, ("name", "what", "where"), rows).text() + "\n")
            for name, (found, looked) in places.items():
                if not found:
                    told = f"{name}: looked for in {', '.join(map(str, looked))}"
                    print("\n".join(wrap(told, terminal_width())))
            return 0

        return go
