"""Noise that is the same for every class."""

import numpy as np

from mcr2.noise.base import Given, IntArray, Noise


class Symmetric(Noise):
    """Redrawn labels are uniform over all K classes: label by label as in the official MCR² code.

    Reference:
        Yu, Chan, You, Song & Ma, "Learning Diverse and Discriminative Representations via the
        Principle of Maximal Coding Rate Reduction", NeurIPS 2020, section 3.2 (the experiment).
    """

    uniform = True

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        return rs.choice(np.arange(given.num_classes), size=len(indices), replace=True)


class SymmetricExcludingTrue(Noise):
    """Redrawn labels are uniform over the K − 1 classes other than the true one: all are wrong.

    Where the truth is unknown the given class is excluded.
    """

    uniform = True

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        drawn = rs.choice(np.arange(given.num_classes - 1), size=len(indices), replace=True)
        return drawn + (drawn >= given.best[indices])  # steps over the true class
