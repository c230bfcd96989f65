"""Few-shot accuracy, the bound on CDNV, the law of equiseparation, and the widest margin."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize
from scipy.stats import linregress, t
from sklearn.neighbors import NearestCentroid

from mcr2.metrics.bound import cdnv_bound
from mcr2.metrics.collapse import neural_collapse
from mcr2.metrics.equiseparation import equiseparation, separation_fuzziness
from mcr2.metrics.few_shot import draw_episodes, few_shot
from mcr2.metrics.hard_margin import angle, hard_margin
from mcr2.metrics.margins import margin_distribution
from mcr2.readouts import fit_class_mean, fit_readout, fit_ridge

FITS = {
    "class_mean": fit_class_mean,
    "ridge": fit_ridge,
    "nearest_subspace": partial(fit_readout, "nearest_subspace@1"),
}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def simplex(K):
    """Rows of an exact simplex equiangular tight frame."""
    return math.sqrt(K / (K - 1)) * (torch.eye(K, dtype=torch.float64) - 1 / K)


def blobs(n, d, K, seed, spread=1.0):
    """Gaussian classes of unequal sizes, one of them perhaps absent."""
    rng = np.random.RandomState(seed)
    y = rng.randint(K, size=n)
    centres = rng.randn(K, d) * 2
    return centres[y] + spread * rng.randn(n, d), y


# --- few shots ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("corners", [simplex(7), torch.eye(7).double()], ids=["simplex", "frame"])
@pytest.mark.parametrize("shots", [1, 5])
def test_collapsed_classes_need_one_sample(name, corners, shots):
    y = torch.arange(7 * 20) % 7
    found = few_shot(corners[y], y, FITS[name], shots=shots, episodes=20, generator=draws())
    assert (found.mean, found.half_width) == (1.0, 0.0)


@pytest.mark.parametrize("name", FITS)
def test_features_without_classes_are_at_chance(name):
    H = torch.randn(600, 8, generator=draws(), dtype=torch.float64)
    y = torch.arange(600) % 12
    found = few_shot(H, y, FITS[name], shots=5, ways=4, episodes=200, generator=draws())
    assert abs(found.mean - 0.25) < 3 * found.half_width


def test_an_episode_is_what_scikit_learn_makes_of_it():
    H, y = blobs(400, 5, 6, seed=1)
    found = few_shot(
        H, y, fit_class_mean, shots=3, ways=4, queries=7, episodes=9, generator=draws()
    )
    accuracies = []
    for support, query in draw_episodes(y, 3, 4, 7, 9, draws()):
        centroids = NearestCentroid().fit(H[support.flatten()], y[support.flatten()])
        accuracies.append(centroids.score(H[query.flatten()], y[query.flatten()]))
    assert list(found.accuracies) == pytest.approx(accuracies)
    assert found.mean == pytest.approx(np.mean(accuracies))
    low, high = t.interval(0.95, 8, np.mean(accuracies), np.std(accuracies, ddof=1) / 3)
    assert found.half_width == pytest.approx((high - low) / 2)


@given(
    K=st.integers(2, 6), shots=st.integers(1, 4), queries=st.integers(1, 4), seed=st.integers(0, 99)
)
@settings(max_examples=30, deadline=None)
def test_episodes_hold_other_samples_of_distinct_classes(K, shots, queries, seed):
    y = torch.randperm(K * 9, generator=draws(seed)) % K * 3  # classes 0, 3, 6, …
    ways = min(K, 3)
    again = list(draw_episodes(y, shots, ways, queries, 5, draws(seed)))
    for (support, query), (s, q) in zip(
        draw_episodes(y, shots, ways, queries, 5, draws(seed)), again, strict=True
    ):
        assert torch.equal(support, s)
        assert torch.equal(query, q)
        both = torch.cat([support, query], dim=1)
        assert both.shape == (ways, shots + queries)
        assert len(both.unique()) == both.numel()
        assert (y[both] == y[both][:, :1]).all()
        assert len(y[both][:, 0].unique()) == ways
    assert len({tuple(s.flatten().tolist()) for s, _ in again}) > 1 or K * shots < 4


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"ways": 5}, "ways of 4 classes is 5"),
        ({"ways": 1}, "ways of 4 classes is 1"),
        ({"shots": 0}, "shots is 0"),
        ({"queries": 9}, "class 0 has 10 samples; 2 shots and 9 queries need 11"),
        ({"episodes": 1}, "episodes is 1"),
    ],
)
def test_impossible_episodes_are_refused(wrong, message):
    H, y = torch.randn(40, 3), torch.arange(40) % 4
    how = {"shots": 2, "ways": 3, "queries": 5, "episodes": 4} | wrong
    with pytest.raises(ValueError, match=re.escape(message)):
        few_shot(H, y, fit_class_mean, generator=draws(), **how)


# --- the bound ----------------------------------------------------------------------------------


@given(
    n=st.integers(6, 60), m=st.integers(6, 60), d=st.integers(1, 6), K=st.integers(2, 5),
    seed=st.integers(0, 999), shift=st.floats(-5, 5), scale=st.sampled_from([1e-3, 1.0, 1e3]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_the_bound_holds_for_every_pair_and_its_terms_are_their_definitions(
    n, m, d, K, seed, shift, scale
):
    H, y = blobs(n, d, K, seed)
    G, z = blobs(m, d, K, seed + 1)  # other centres: not even the same distribution
    H, G = H * scale, (G + shift) * scale
    found = cdnv_bound(H, y, G, z, num_classes=K)
    both = sorted(set(y) & set(z))
    pairs = [(i, j) for i in both for j in both if i < j]
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == pairs
    assert (found.bound >= found.test * (1 - 1e-9)).all()
    mean = {(s, k): X[v == k].mean(0) for s, X, v in (("S", H, y), ("P", G, z)) for k in both}
    sq = {(s, k): (X[v == k] ** 2).sum(1).mean() for s, X, v in (("S", H, y), ("P", G, z)) for k in both}  # fmt: skip # noqa: E501
    for k in range(K):
        if k not in both:
            assert all(math.isnan(float(term[k])) for term in (found.e, found.q, found.w))
            continue
        e = np.linalg.norm(mean["P", k] - mean["S", k])
        w = abs((mean["P", k] ** 2).sum() - (mean["S", k] ** 2).sum())
        near = {"rel": 1e-8, "abs": 1e-10 * scale**2}
        assert float(found.e[k]) == pytest.approx(e, rel=1e-8, abs=1e-10 * scale)
        assert float(found.q[k]) == pytest.approx(abs(sq["P", k] - sq["S", k]), **near)
        assert float(found.w[k]) == pytest.approx(w, **near)
    for index, (i, j) in enumerate(pairs):
        D = np.linalg.norm(mean["P", i] - mean["P", j])
        e, q, w = (float(term[i] + term[j]) for term in (found.e, found.q, found.w))
        assert float(found.distance[index]) == pytest.approx(D)
        assert float(found.A[index]) == pytest.approx((1 + e / D) ** 2 - 1)
        assert float(found.B[index]) == pytest.approx((q + w) / (2 * D**2))


def test_both_cdnv_are_the_measures_own():
    H, y = blobs(80, 4, 3, seed=2)
    G, z = blobs(50, 4, 3, seed=3)
    found = cdnv_bound(H, y, G, z, num_classes=3)
    for values, X, v in ((found.train, H, y), (found.test, G, z)):
        assert float(values.mean()) == pytest.approx(neural_collapse(X, v, num_classes=3).cdnv)


@pytest.mark.parametrize("corners", [simplex(5), torch.eye(5).double()], ids=["simplex", "frame"])
def test_of_the_same_samples_the_bound_is_the_value_and_of_collapsed_ones_zero(corners):
    y = torch.arange(40) % 5
    moved = cdnv_bound(corners[y], y, corners.flip(0)[y], y, num_classes=5)
    assert float(moved.bound.abs().max()) < 1e-12  # no variability on either side, wherever it is
    np.testing.assert_allclose(moved.e, (corners - corners.flip(0)).norm(dim=1), atol=1e-12)
    same = cdnv_bound(corners[y], y, corners[y], y, num_classes=5)
    assert max(float(same.bound.max()), float(same.A.max()), float(same.B.max())) < 1e-30
    H = corners[y] + 0.1 * torch.randn(40, 5, generator=draws(), dtype=torch.float64)
    noisy = cdnv_bound(H, y, H, y, num_classes=5)
    assert torch.equal(noisy.bound, noisy.test)


def test_pairs_whose_means_agree_are_left_out():
    H = torch.tensor([[0.0, 1.0], [0.0, -1.0], [0.0, 2.0], [0.0, -2.0], [3.0, 0.0], [5.0, 0.0]])
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    found = cdnv_bound(H, y, H, y, num_classes=3)
    assert list(zip(found.first.tolist(), found.second.tolist(), strict=True)) == [(0, 2), (1, 2)]
    assert found.bound.isfinite().all()
    with pytest.raises(ValueError, match="test_features has shape"):
        cdnv_bound(H, y, H[:, :1], y, num_classes=3)


# --- equiseparation -----------------------------------------------------------------------------


@given(seed=st.integers(0, 999), K=st.integers(2, 6), d=st.integers(6, 9))
@settings(max_examples=30, deadline=None)
def test_fuzziness_of_balanced_classes_is_he_and_sus(seed, K, d):
    H, _ = blobs(10 * K, d, K, seed)
    y = np.arange(10 * K) % K
    means = np.stack([H[y == k].mean(0) for k in range(K)])
    within = (H - means[y]).T @ (H - means[y]) / len(H)
    centred = means - H.mean(0)
    between = centred.T @ centred / K
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True))
    assert separation_fuzziness(H, y, num_classes=K) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("corners", [simplex(5), torch.eye(5).double()], ids=["simplex", "frame"])
def test_collapsed_layers_are_not_fuzzy(corners):
    y = torch.arange(40) % 5
    assert separation_fuzziness(corners[y], y, num_classes=5) < 1e-20
    assert separation_fuzziness(torch.ones(40, 5), y, num_classes=5) is None


def test_a_law_is_found_where_there_is_one_and_noise_lowers_r_squared():
    exact = equiseparation([3 * 0.7**depth for depth in range(8)])
    assert (exact.rho, exact.initial, exact.r_squared) == pytest.approx((0.7, 3, 1))
    spaced = equiseparation([3 * 0.7**depth for depth in (1, 2, 4, 7)], depths=(1, 2, 4, 7))
    assert (spaced.rho, spaced.initial) == pytest.approx((0.7, 3))
    D = np.exp(np.random.RandomState(0).randn(9) - 0.2 * np.arange(9))
    fit = linregress(np.arange(9), np.log(D))
    noisy = equiseparation(D.tolist())
    assert noisy.rho == pytest.approx(math.exp(fit.slope))
    assert noisy.initial == pytest.approx(math.exp(fit.intercept))
    assert noisy.r_squared == pytest.approx(fit.rvalue**2)
    assert equiseparation(5 * D).r_squared == pytest.approx(noisy.r_squared)
    assert equiseparation([2.0, 2.0, 2.0]).r_squared is None


@pytest.mark.parametrize(
    "fuzziness, depths, message",
    [
        ([1.0, 0.5], None, "the number of layers is 2"),
        ([1.0, 0.0, 0.5], None, "fuzziness is 0.0; it must be positive"),
        ([1.0, 0.5, 0.2], [0, 1], "2 depths were given for 3 layers"),
        ([1.0, 0.5, 0.2], [1, 1, 1], "all layers have depth 1"),
    ],
)
def test_what_has_no_fit_is_refused(fuzziness, depths, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        equiseparation(fuzziness, depths)


# --- margins ------------------------------------------------------------------------------------


def oracle_margins(H, y, W, b):
    scores = H @ W.T + b
    return np.array([s[k] - np.delete(s, k).max() for s, k in zip(scores, y, strict=True)])


@given(N=st.integers(1, 30), d=st.integers(1, 5), K=st.integers(2, 6), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_the_distribution_is_the_sorted_margins(N, d, K, seed):
    rng = np.random.RandomState(seed)
    H, y, W, b = rng.randn(N, d), rng.randint(K, size=N), rng.randn(K, d), rng.randn(K)
    found, want = margin_distribution(H, y, W, b), oracle_margins(H, y, W, b)
    np.testing.assert_allclose(found.raw, np.sort(want), atol=1e-12)
    np.testing.assert_allclose(want[found.order], found.raw, atol=1e-12)
    np.testing.assert_allclose(found.normalised * found.scale, found.raw, atol=1e-12)
    assert found.scale == pytest.approx(np.linalg.norm(W) * np.linalg.norm(H, axis=1).mean())


def test_margins_of_a_collapsed_simplex_are_one_number():
    W, y = simplex(4), torch.arange(12) % 4
    found = margin_distribution(W[y], y, W)
    np.testing.assert_allclose(found.raw, 1 + 1 / 3, atol=1e-12)
    np.testing.assert_allclose(found.normalised, (1 + 1 / 3) / 2, atol=1e-12)
    assert margin_distribution(0 * W[y], y, W).normalised is None


@pytest.mark.parametrize("corners", [simplex(5), torch.eye(5).double()], ids=["simplex", "frame"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_widest_margin_of_a_frame_is_the_simplex(corners, bias):
    y = torch.arange(20) % 5
    found = hard_margin(3 * corners[y], y, num_classes=5, bias=bias)
    assert angle(found.weight, simplex(5)) < 1e-5
    assert len(found.support) == 20
    assert (found.bias is None) == (not bias)
    margins = margin_distribution(3 * corners[y], y, found.weight, found.bias)
    np.testing.assert_allclose(margins.raw, 1, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_of_two_classes_it_is_scikit_learns(seed):
    H, y = blobs(60, 4, 2, seed, spread=0.3)
    found = hard_margin(H, y, num_classes=2, bias=False)
    # One row a class: w and -w, half as long as that of a binary classifier through the origin.
    gram = (H * (2 * y - 1)[:, None]) @ (H * (2 * y - 1)[:, None]).T
    dual = minimize(
        lambda a: (a @ gram @ a / 2 - a.sum(), gram @ a - 1),
        np.zeros(60), jac=True, bounds=[(0, None)] * 60, method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 200000, "ftol": 1e-16, "gtol": 1e-10},
    )  # fmt: skip
    w = (dual.x * (2 * y - 1)) @ H
    np.testing.assert_allclose(found.weight, np.stack([-w, w]) / 2, atol=1e-4 * np.abs(w).max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_of_several_classes_it_is_the_quadratic_programmes(seed, bias):
    K, d = 3, 3
    H, y = blobs(24, d, K, seed, spread=0.2)
    X = np.concatenate([H, np.ones((24, 1))], axis=1) if bias else H
    others = [(i, j) for i in range(24) for j in range(K) if j != y[i]]

    def constraint(v):
        scores = X @ v.reshape(K, -1).T
        return np.array([scores[i, y[i]] - scores[i, j] - 1 for i, j in others])

    start = np.random.RandomState(seed).randn(K * X.shape[1])
    solved = minimize(
        lambda v: (v @ v / 2, v), start, jac=True, method="SLSQP",
        constraints={"type": "ineq", "fun": constraint}, options={"maxiter": 500, "ftol": 1e-14},
    )  # fmt: skip
    assert solved.success
    found = hard_margin(H, y, num_classes=K, bias=bias)
    V = found.weight if not bias else torch.cat([found.weight, found.bias[:, None]], dim=1)
    np.testing.assert_allclose(V, solved.x.reshape(K, -1), atol=1e-4 * np.abs(solved.x).max())
    tight = sorted({i for (i, _), slack in zip(others, constraint(solved.x), strict=True) if slack < 1e-4})  # fmt: skip # noqa: E501
    assert found.support.tolist() == tight


@given(seed=st.integers(0, 999), K=st.integers(2, 4), bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_there_is_a_widest_margin_where_a_linear_programme_finds_any(seed, K, bias):
    H, y = blobs(15, 2, K, seed, spread=0.7)
    X = np.concatenate([H, np.ones((15, 1))], axis=1) if bias else H
    onehot = np.eye(K)
    rows = [np.outer(onehot[y[i]] - onehot[j], X[i]).ravel() for i in range(15) for j in range(K) if j != y[i]]  # fmt: skip # noqa: E501
    G = np.array(rows)
    feasible = linprog(np.zeros(G.shape[1]), A_ub=-G, b_ub=-np.ones(len(G)), bounds=(None, None))
    assert (hard_margin(H, y, num_classes=K, bias=bias) is not None) == (feasible.status == 0)


def test_gradient_descent_turns_towards_the_widest_margin():
    """Soudry et al. 2018: the angle falls as the logarithm of time grows."""
    H, y = blobs(40, 3, 3, seed=1, spread=0.2)
    target = hard_margin(H, y, num_classes=3, bias=False)
    H, y = torch.tensor(H), torch.tensor(y)
    W = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    optimizer, angles = torch.optim.SGD([W], lr=0.5), []
    for step in range(3001):
        if step in (10, 100, 1000, 3000):
            angles.append(angle(W.detach(), target.weight))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(H @ W.T, y).backward()
        optimizer.step()
    assert angles == sorted(angles, reverse=True)
    assert angles[-1] < angles[0] / 2


def test_angles_are_those_of_centred_classifiers():
    W = torch.randn(4, 6, generator=draws())
    assert angle(W, 3 * W + torch.randn(6, generator=draws(1))) < 1e-4
    assert angle(W, -W) == pytest.approx(180)
    turned = torch.zeros(2, 2)
    turned[0, 0], turned[1, 0] = 1, -1
    assert angle(turned, turned.flip(1)) == pytest.approx(90)
    assert angle(W, torch.ones(4, 6)) is None
