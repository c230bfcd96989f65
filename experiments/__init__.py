"""The studies and the command line: the only place that names both methods."""
