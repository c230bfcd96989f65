"""Results of a study -> tables and figures: text for a terminal, Markdown, CSV, JSON, PNG.

- :mod:`~experiments.report.results`: what all of them are functions of;
- :mod:`~experiments.report.statistics`: means over seeds with intervals, paired differences;
- :mod:`~experiments.report.table`: a table of text;
- :mod:`~experiments.report.tables`: a study's tables, ``TABLES``, and those of single runs;
- :mod:`~experiments.report.figures`: a study's figures, ``FIGURES``;
- :mod:`~experiments.report.canvas`: what all figures share;
- :mod:`~experiments.report.live`: what a person sees while runs go on.
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
