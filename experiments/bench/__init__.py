"""Benchmarks: what our code costs beside other ways to the same numbers."""
