"""Results of a study -> tables and figures: text for a terminal, Markdown, CSV, JSON, PNG.

:mod:`~experiments.report.results` says what a study's results are; ``TABLES`` in ``tables`` and
``FIGURES`` in ``figures`` are functions of them.
"""
