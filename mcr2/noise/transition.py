"""Noise by a matrix of one's own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcr2.files import naming, read_array, read_table
from mcr2.noise.base import FloatArray, Given, IntArray, Noise


@dataclass(frozen=True)
class Transition(Noise):
    """A redrawn label of class i is j with probability P_ij.

    All labels then change by (1 − ratio) I + ratio P, at ratio 1 by the matrix itself.

    Args:
        matrix: an ``.npy`` or ``.csv`` file of P (K, K): no entry is negative, rows sum to 1.
    """

    matrix: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.matrix).suffix not in (".npy", ".csv"):
            raise ValueError(f"transition:{self.matrix}: a matrix is an .npy or a .csv file")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Labels as they are, and by the matrix."""
        return (0.0, 1.0)

    @property
    def file(self) -> str:
        """The matrix."""
        return self.matrix

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        bounds = read_matrix(Path(self.matrix), given.num_classes).cumsum(axis=1)
        bounds /= bounds[:, -1:]  # exactly 1 at the end, where it was 1 to rounding
        drawn = rs.random_sample(len(indices))
        found = np.empty(len(indices), np.int64)
        for k, best in ((k, given.best[indices] == k) for k in range(given.num_classes)):
            found[best] = np.searchsorted(bounds[k], drawn[best], side="right")
        return found


def read_matrix(path: Path, num_classes: int) -> FloatArray:
    """Read a row-stochastic matrix (K, K) of K classes."""
    with naming(path):
        if path.suffix == ".npy":
            read = read_array(path)
            if read.dtype.kind not in "fiu":
                raise ValueError(f"a matrix of {read.dtype}; it must hold numbers")
            matrix = read.astype(np.float64)
        else:
            matrix = np.array([[float(entry) for entry in row] for row in read_table(path)])
        K = num_classes
        if matrix.shape != (K, K):
            raise ValueError(f"a matrix of shape {matrix.shape}; with {K} classes it is ({K}, {K})")
        if not (np.isfinite(matrix).all() and (matrix >= 0).all()):
            raise ValueError("an entry is negative or not finite; entries are probabilities")
        if (off := np.abs(matrix.sum(axis=1) - 1)).max() > 1e-6:
            row = int(off.argmax())
            raise ValueError(f"row {row} sums to {matrix[row].sum():g}; rows must sum to 1")
        return matrix
