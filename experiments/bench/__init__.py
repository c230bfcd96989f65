"""Benchmarks: what a part of the library costs against a plain way to compute the same."""
