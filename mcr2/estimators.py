"""Readouts as a classifier of scikit-learn, for its pipelines, cross-validation and grids.

Labels may be of any kind and come out again as they went in. :mod:`mcr2.readouts` has the same
readouts in tensors, with labels 0 ... K - 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from mcr2.readouts import WITH_COMPONENTS, fit_readout, parse_readout


class ReadoutClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A readout of :data:`mcr2.readouts.READOUTS` with ``fit``, ``predict`` and ``score``.

    Args:
        readout: its name, ``ridge``, ``class_mean``, ``nearest_subspace@3``, ``knn@5``, ...

    Attributes:
        classes_: the labels seen, sorted.
        readout_: the fitted :class:`mcr2.readouts.Readout`, of classes 0, 1, ... in that order.

    Raises:
        TypeError, ValueError: from ``fit``: an unknown readout, features that are not finite, or
            what the readout's fit function refuses.

    Example:
        >>> X, y = [[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.1, 3.0]], ["cat", "cat", "dog", "dog"]
        >>> model = ReadoutClassifier("nearest_subspace@1").fit(X, y)
        >>> model.predict([[-5.0, 1.0]]), model.score(X, y)
        (array(['cat'], dtype='<U3'), 1.0)
    """

    def __init__(self, readout: str = "ridge") -> None:
        self.readout = readout

    def fit(self, X: Any, y: Any) -> ReadoutClassifier:
        """Fit on features ``(N, d)`` and labels ``(N,)`` of any kind."""
        kind, number = parse_readout(self.readout)
        if kind == "head":
            raise ValueError("readout 'head' is a network's own classifier; it is not fitted")
        least = 1 + (number or 1) if kind in WITH_COMPONENTS else 1
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_features=least)
        check_classification_targets(y)
        self.classes_, ranks = np.unique(y, return_inverse=True)
        self.readout_ = fit_readout(self.readout, X, ranks, num_classes=len(self.classes_))
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the scores ``(N, K)``; of two classes by how much the second one's is higher."""
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the best-scoring label of each sample, ``(N,)``."""
        best = self._scores(X).argmax(axis=1)
        found: NDArray[Any] = self.classes_[best]
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        # Clusters in the plane, which scikit-learn's checks are of, are no subspaces.
        tags.classifier_tags.poor_score = str(self.readout).partition("@")[0] in WITH_COMPONENTS
        return tags

    def _scores(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        scores: NDArray[np.float64] = self.readout_.scores(X).numpy()
        return scores
