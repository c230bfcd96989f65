"""Records -> tables and figures: text for a terminal, Markdown, CSV, JSON, PNG.

- :mod:`~experiments.report.statistics`: means over seeds with intervals, paired differences;
- :mod:`~experiments.report.tables`: the study's tables, and those of single runs and data sets;
- :mod:`~experiments.report.figures`: the study's figures, each a function in ``FIGURES``;
- :mod:`~experiments.report.ablation`: an ablation's table and figures;
- :mod:`~experiments.report.canvas`: what all figures share.

A cell is a row of ``table.json``; figures over epochs and of spectra read the records themselves.
"""

from experiments.report.ablation import ablation_table, write_ablation_figures
from experiments.report.figures import FIGURES, write_figures
from experiments.report.statistics import Difference, Estimate, difference, estimate, over_seeds
from experiments.report.tables import (
    WIDTH,
    Table,
    accuracy_table,
    clean_readout_table,
    collapse_table,
    datasets_table,
    difference_table,
    differences,
    diversity_table,
    measures_table,
    memorization_table,
    readout_table,
    run_table,
    shown_measures,
    write_tables,
)

__all__ = [
    "FIGURES",
    "WIDTH",
    "Difference",
    "Estimate",
    "Table",
    "ablation_table",
    "accuracy_table",
    "clean_readout_table",
    "collapse_table",
    "datasets_table",
    "difference",
    "difference_table",
    "differences",
    "diversity_table",
    "estimate",
    "measures_table",
    "memorization_table",
    "over_seeds",
    "readout_table",
    "run_table",
    "shown_measures",
    "write_ablation_figures",
    "write_figures",
    "write_tables",
]
