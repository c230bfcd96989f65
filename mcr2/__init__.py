"""What a representation looks like when some labels are wrong: MCR² and what to measure.

The library trains networks for the maximal coding rate reduction (MCR²) objective, or any other
:class:`mcr2.objectives.Objective`, on images whose labels are partly corrupted, and measures what
became of their features. The parts are imported by module: ``from mcr2.rates import
rate_reduction``.
"""

from importlib.metadata import version

__version__ = version("mcr2-robustness")
