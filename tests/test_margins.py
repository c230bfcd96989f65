"""Margins are what a loop over samples gives; alignment sees directions that predictions see."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_blobs
from sklearn.svm import SVC

from mcr2.metrics.margins import alignment
from mcr2.metrics.margins import margins as margins_at
from mcr2.readouts import fit_linear_svm

QUANTILES = (0.0, 0.01, 0.1, 0.5, 0.9, 1.0)
margins = partial(margins_at, quantiles=QUANTILES)


def case(N=200, d=6, K=4, seed=0):
    rng = np.random.RandomState(seed)
    return rng.randn(N, d), rng.randint(K, size=N), rng.randn(K, d), rng.randn(K)


def oracle(H, y, W, b):
    scores = H @ W.T + b
    return np.array(
        [s[k] - max(s[j] for j in range(len(s)) if j != k) for s, k in zip(scores, y, strict=True)]
    )


def tensors(*arrays):
    return [torch.tensor(x) for x in arrays]


@given(N=st.integers(1, 30), d=st.integers(1, 5), K=st.integers(2, 6), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_margins_and_their_quantiles_are_numpys(N, d, K, seed):
    H, y, W, b = case(N, d, K, seed)
    want = oracle(H, y, W, b)
    got = margins(H, y, W, b)
    assert got == margins(*tensors(H, y, W, b))
    np.testing.assert_allclose(got.raw, np.quantile(want, QUANTILES), atol=1e-12)
    scale = np.linalg.norm(W) * np.linalg.norm(H, axis=1).mean()
    np.testing.assert_allclose(got.normalised, np.quantile(want / scale, QUANTILES), atol=1e-12)
    assert got.mean == pytest.approx(want.mean())
    assert got.normalised_mean == pytest.approx(want.mean() / scale)
    assert got.positive == (want > 0).mean()


def test_positive_margins_are_right_predictions():
    H, y, W, b = tensors(*case())
    assert margins(H, y, W, b).positive == float(((H @ W.T + b).argmax(1) == y).double().mean())


def test_normalised_margins_ignore_the_scale_of_features_and_of_the_classifier():
    H, y, W, b = tensors(*case())
    want = margins(H, y, W, b).normalised
    assert margins(5 * H, y, W, 5 * b).normalised == pytest.approx(want)
    assert margins(H, y, 5 * W, 5 * b).normalised == pytest.approx(want)


def test_pieces_are_one_and_float32_is_measured_in_float64(monkeypatch):
    H, y, W, b = tensors(*case(N=600))
    want = margins(H.float(), y, W.float(), b.float())
    monkeypatch.setattr("mcr2.metrics.moments._PIECE", 1)
    got = margins(H.float().double(), y, W.float().double(), b.float().double())
    assert got.raw == pytest.approx(want.raw)


def test_without_features_or_classifier_margins_have_no_scale():
    H, y, W, _ = tensors(*case())
    for got in (margins(H, y, 0 * W), margins(0 * H, y, W)):
        assert (got.scale, got.normalised, got.normalised_mean) == (0.0, None, None)
        assert got.raw == (0.0,) * len(QUANTILES)
        assert got.positive == 0


def test_alignment_is_the_mean_cosine_of_centred_rows():
    W, V = np.random.RandomState(0).randn(2, 5, 7)
    A, B = W - W.mean(0), V - V.mean(0)
    want = np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                    for a, b in zip(A, B, strict=True)])  # fmt: skip
    assert alignment(*tensors(W, V)) == pytest.approx(want)
    assert alignment(*tensors(W * 1e-200 + 0, V * 1e200)) == pytest.approx(want)
    same = alignment(*tensors(W, 3 * W + np.random.RandomState(1).randn(7)))
    assert same == pytest.approx(1)


def test_alignment_leaves_out_rows_without_a_direction():
    W = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    assert alignment(W, W) == pytest.approx(1)
    assert alignment(W, torch.ones(3, 2)) is None
    assert alignment(torch.full((3, 2), 0.1), W) is None
    assert alignment(torch.zeros(3, 2), W) is None


def test_the_linear_svm_points_where_the_margin_is_widest():
    # The hard-margin direction from an SVM of another kind and solver.
    H, y = make_blobs(200, centers=[[-3, -1, 0], [3, 1, 0]], cluster_std=0.8, random_state=0)
    hard = SVC(kernel="linear", C=1e6).fit(H, y)
    V = torch.tensor(np.concatenate([-hard.coef_, hard.coef_]))
    svm = fit_linear_svm(*tensors(H, y), num_classes=2)
    between = torch.tensor(H[y == 1].mean(0) - H[y == 0].mean(0))
    assert alignment(svm.weight, V) > 0.98
    assert alignment(torch.stack([between, 0 * between]), V) < 0


GOOD = {
    "features": torch.randn(3, 2),
    "labels": torch.tensor([0, 1, 1]),
    "weight": torch.randn(2, 2),
    "bias": torch.zeros(2),
}


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"0 \.\.\. 1"),
        ({"labels": torch.zeros(3)}, TypeError, "labels"),
        ({"labels": torch.tensor([0])}, ValueError, r"labels .*\(3,\)"),
        ({"features": torch.full((3, 2), math.nan)}, ValueError, "features must be finite"),
        ({"features": torch.randn(3)}, ValueError, "features"),
        ({"weight": torch.randn(2, 3)}, ValueError, r"weight has shape .* \(2, 2\)"),
        ({"weight": torch.randn(1, 2)}, ValueError, "weight has one row"),
        ({"weight": torch.full((2, 2), math.inf)}, ValueError, "weight must be finite"),
        ({"weight": torch.ones(2, 2).long()}, TypeError, "weight"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias has shape .* \(2,\)"),
        ({"bias": torch.tensor([0.0, -math.inf])}, ValueError, "bias must be finite"),
        ({"bias": torch.zeros(2).long()}, TypeError, "bias"),
        ({"quantiles": (0.5, 1.5)}, ValueError, "quantiles is 1.5"),
    ],
)
def test_bad_input_is_refused_by_name(bad, error, message):
    with pytest.raises(error, match=message):
        margins(**{**GOOD, **bad})


def test_weights_that_do_not_compare_are_refused():
    with pytest.raises(ValueError, match=r"other has shape \(2, 4\); it must be \(2, 3\)"):
        alignment(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(ValueError, match="other"):
        alignment(torch.ones(2, 3), torch.ones(3))
