"""Results of a study -> tables, figures, a page: text, Markdown, CSV, JSON, PNG, HTML.

:mod:`~experiments.report.results` says what a study's results are; ``TABLES`` in ``tables`` and
``FIGURES`` in ``figures`` are functions of them.
"""
