"""The readouts as scikit-learn's: its own checks, and the same answers as without it."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import mcr2
from mcr2.readouts import NUMBERED, READOUTS, fit_readout

#: Checks that are skipped: they need an environment variable set before scikit-learn is imported.
SKIPPED = {"check_array_api_input"}

NAMES = [f"{kind}@1" if kind in NUMBERED else kind for kind in READOUTS]


@pytest.mark.parametrize("name", [*NAMES, "knn@5"])
@pytest.mark.filterwarnings("ignore")
def test_it_passes_the_checks_of_scikit_learn(name):
    results = check_estimator(mcr2.ReadoutClassifier(name), on_skip=None)
    assert len(results) > 50
    assert {r["check_name"] for r in results if r["status"] != "passed"} <= SKIPPED


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_the_readout_does_with_labels_of_any_kind(name):
    X, y = load_digits(return_X_y=True)
    words = np.array([f"digit {k}" for k in y])
    model = mcr2.ReadoutClassifier(name).fit(X[:400], words[:400])
    readout = fit_readout(name, torch.tensor(X[:400]), torch.tensor(y[:400]), num_classes=10)
    wanted = readout.predict(torch.tensor(X[400:600])).numpy()
    found = model.predict(X[400:600])
    assert [f"digit {k}" for k in wanted] == found.tolist()
    assert model.score(X[400:600], words[400:600]) == np.mean(wanted == y[400:600])


def test_a_grid_over_readouts_in_a_pipeline():
    X, y = load_digits(return_X_y=True)
    X, y = X[y < 4][:200], y[y < 4][:200]
    pipeline = make_pipeline(StandardScaler(), mcr2.ReadoutClassifier())
    grid = {"readoutclassifier__readout": ["nearest_subspace@1", "nearest_subspace@5", "knn@3"]}
    search = GridSearchCV(pipeline, grid, cv=3).fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert search.best_score_ > 0.9


@pytest.mark.parametrize(
    "name, message",
    [
        ("head", "a network's own classifier"),
        ("nearest", "unknown readout 'nearest'; choose from"),
        ("knn", "needs a number from 1"),
        ("nearest_subspace@2", "minimum of 3 is required"),
    ],
)
def test_readouts_that_cannot_be_fitted_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        mcr2.ReadoutClassifier(name).fit(np.eye(2), [0, 1])
