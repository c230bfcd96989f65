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
            from experiments.report.table import Table

            table = Table(
                "Data sets (or give the path of an .npz file or an image folder)",
                ("name", "what", "where"),
                tuple(
                    (
                        name,
                        DATASETS[name].description,
                        str(found or f"missing; looked in {', '.join(map(str, looked))}"),
                    )
                    for name, (found, looked) in places.items()
                ),
            )
            print(table.text())
            return 0

        return go
