"""Results of a study -> tables and figures: text for a terminal, Markdown, CSV, JSON, PNG.

:mod:`~experiments.report.results` says what a study's results are; ``TABLES`` and ``FIGURES`` are
functions of them.
"""

from experiments.report.figures import FIGURES, write_figures
from experiments.report.results import RATIO, Axis, Results
from experiments.report.statistics import Difference, Estimate, difference, estimate
from experiments.report.table import WIDTH, Table
from experiments.report.tables import (
    TABLES,
    datasets_table,
    differences,
    measures_table,
    run_table,
    shown_measures,
    write_tables,
)

__all__ = [
    "FIGURES",
    "RATIO",
    "TABLES",
    "WIDTH",
    "Axis",
    "Difference",
    "Estimate",
    "Results",
    "Table",
    "datasets_table",
    "difference",
    "differences",
    "estimate",
    "measures_table",
    "run_table",
    "shown_measures",
    "write_figures",
    "write_tables",
]
