<<<<<<< HEAD
"""Benchmarks: what a part of the library costs against a plain way to compute the same."""
=======
"""Benchmarks: what our code costs beside other ways to the same numbers."""
>>>>>>> issue4-rates
