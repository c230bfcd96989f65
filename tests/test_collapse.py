"""Collapse measures are zero for a simplex, match closed forms, and agree with SciPy."""

import itertools
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2.metrics.collapse import (
    MEAN_ENERGY_FLOOR,
    NeuralCollapse,
    collapse_of_moments,
    neural_collapse,
)
from mcr2.metrics.moments import ClassMoments, FirstMoments, first_moments

FLAGS = ("mean_energy", "means_reliable", "classes", "absent", "smallest_class")
MEASURES = tuple(f.name for f in fields(NeuralCollapse) if f.name not in FLAGS)
OF_W = tuple(name for name in MEASURES if name.endswith("_w") or name[:3] in ("nc3", "nc4"))


def simplex(K, d, rng):
    """K unit vectors in d >= K - 1 dimensions, each pair at cosine -1/(K - 1), turned at random."""
    corners = (np.eye(K) - 1 / K) * math.sqrt(K / (K - 1))
    basis = scipy.linalg.null_space(np.ones((1, K)))  # of the span, (K, K - 1)
    return corners @ basis @ np.linalg.qr(rng.randn(d, K - 1))[0].T


def case(N, d, K, *, balanced=True, seed=0, spread=1.0):
    """Anisotropic clusters with a classifier that is often wrong."""
    rng = np.random.RandomState(seed)
    more = np.arange(N - K) % K if balanced else rng.binomial(K - 1, 0.3, N - K)
    y = rng.permutation(np.concatenate([np.arange(K), more]))
    M = rng.randn(K, d)
    H = M[y] + spread * rng.randn(N, d) @ (rng.randn(d, d) / math.sqrt(d)) + rng.randn(d)
    return H, y, M + 0.5 * rng.randn(K, d), rng.randn(K)


def oracle(H, y, K, W, b, means=None):
    """The definitions of the design page in float64 NumPy and SciPy, term by term.

    Over the classes that are present, or those that have given means.
    """
    N, d = H.shape
    mu = {k: H[y == k].mean(0) for k in np.unique(y)} if means is None else dict(enumerate(means))
    classes, P = list(mu), len(mu)
    centred = np.stack(list(mu.values()))
    M = centred - centred.mean(0)
    S_W = sum(np.outer(h - mu[k], h - mu[k]) for h, k in zip(H, y, strict=True)) / N
    S_B = M.T @ M / P
    U, s, Vt = scipy.linalg.svd(S_B)
    r = min(P - 1, d)
    pinv = Vt[:r].T @ np.diag(1 / s[:r]) @ U[:, :r].T
    v = {k: ((H[y == k] - mu[k]) ** 2).sum(1).mean() for k in np.unique(y)}

    def frame(rows):
        norms = np.linalg.norm(rows, axis=1)
        pairs = itertools.combinations(range(P), 2)
        cos = np.array([rows[i] @ rows[j] / norms[i] / norms[j] for i, j in pairs])
        return norms.std() / norms.mean(), cos.std(), np.abs(cos + 1 / (P - 1)).mean()

    etf = (np.eye(P) - np.ones((P, P)) / P) / math.sqrt(P - 1)
    fro = np.linalg.norm
    near = np.array([min(classes, key=lambda k: ((h - mu[k]) ** 2).sum()) for h in H])
    own = W[classes]
    out = {
        "nc1": np.trace(S_W @ pinv) / P,
        "nc1_ratio": np.trace(S_W) / np.trace(S_B),
        "cdnv": np.mean(
            [(v[i] + v[j]) / (2 * fro(mu[i] - mu[j]) ** 2) for i, j in itertools.combinations(v, 2)]
        ),
        "nc2_etf": fro(M @ M.T / fro(M @ M.T) - etf),
        "nc3": fro(own.T / fro(own) - M.T / fro(M)) ** 2,
        "nc3_etf": fro(own @ M.T / fro(own @ M.T) - etf),
        "nc4": np.mean((H @ W.T + b).argmax(1) != near),
        "mean_energy": (centred**2).sum() / (P * (H**2).sum(1).mean()),
    }
    names = ("nc2_equinorm", "nc2_equiangular", "nc2_maxangle")
    out |= dict(zip(names, frame(M), strict=True))
    return out | dict(zip([n + "_w" for n in names], frame(own), strict=True))


def means_of(points):
    return FirstMoments(torch.ones(len(points), dtype=torch.int64), points, 0.0)


def measure(H, y, K, W=None, b=None, dtype=torch.float64, means=None):
    def to(x):
        return None if x is None else torch.tensor(x).to(dtype)

    y = torch.tensor(y)
    given = None if means is None else means_of(to(means))
    return neural_collapse(to(H), y, num_classes=K, weight=to(W), bias=to(b), means=given)


def assert_close(got, want, rel=1e-5, but=()):
    for name in set(want) - set(but):
        assert getattr(got, name) == pytest.approx(want[name], rel=rel, abs=1e-9), name


CASES = {
    "balanced": {"N": 300, "d": 20, "K": 5},
    "imbalanced": {"N": 301, "d": 20, "K": 5, "balanced": False},
    "two classes": {"N": 80, "d": 6, "K": 2, "balanced": False},
    "fewer samples than dimensions": {"N": 15, "d": 40, "K": 4, "balanced": False},
    "fewer dimensions than classes": {"N": 400, "d": 4, "K": 12, "balanced": False},
    "as many dimensions as classes": {"N": 200, "d": 6, "K": 6},
    "one dimension": {"N": 60, "d": 1, "K": 3},
    "one sample a class": {"N": 5, "d": 8, "K": 5},
}


# Agreement


@pytest.mark.parametrize("name", CASES)
def test_all_measures_agree_with_scipy(name):
    K = CASES[name]["K"]
    H, y, W, b = case(**CASES[name])
    got, want = measure(H, y, K, W, b), oracle(H, y, K, W, b)
    assert_close(got, want, rel=1e-9)
    assert got.smallest_class == np.bincount(y).min()
    assert got.means_reliable == (want["mean_energy"] >= MEAN_ENERGY_FLOOR)


@pytest.mark.parametrize("name", CASES)
def test_float32_features_agree_with_scipy_on_their_exact_values(name):
    K = CASES[name]["K"]
    arrays = [x.astype(np.float32) if x.dtype == float else x for x in case(**CASES[name])]
    H, y, W, b = arrays
    want = oracle(H.astype(float), y, K, W.astype(float), b.astype(float))
    assert_close(measure(H, y, K, W, b, torch.float32), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_at_its_exact_values(dtype):
    H, y, W, b = (torch.tensor(x) for x in case(200, 10, 4))
    low = H.to(dtype)
    want = neural_collapse(low.double(), y, num_classes=4, weight=W, bias=b)
    got = neural_collapse(low, y, num_classes=4, weight=W, bias=b)
    assert_close(got, {k: v for k, v in asdict(want).items() if k not in FLAGS})


@pytest.mark.parametrize("name", ["imbalanced", "fewer dimensions than classes"])
def test_test_samples_are_measured_about_training_means(name):
    K, d = CASES[name]["K"], CASES[name]["d"]
    H, y, W, b = case(**CASES[name])
    means = np.random.RandomState(1).randn(K, d)
    assert_close(measure(H, y, K, W, b, means=means), oracle(H, y, K, W, b, means), rel=1e-9)
    own = first_moments(torch.tensor(H), torch.tensor(y), num_classes=K).means.numpy()
    assert_close(measure(H, y, K, W, b, means=own), oracle(H, y, K, W, b), rel=1e-9)


# Absent classes


@given(seed=st.integers(0, 999), K=st.integers(2, 9), d=st.integers(1, 9), data=st.data())
@settings(max_examples=40, deadline=None)
def test_absent_classes_leave_the_measures_of_those_present(seed, K, d, data):
    gone = data.draw(st.sets(st.integers(0, K - 1), max_size=K - 2))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    H, y, W, b = case(20 * K, d, K, balanced=False, seed=seed)
    kept = ~np.isin(y, list(gone))
    means = np.random.RandomState(1).randn(K, d) if data.draw(st.booleans()) else None
    arrays = [None if x is None else x.astype(np.float32) for x in (H[kept], W, b, means)]
    H, W, b, means = [None if x is None else x.astype(float) for x in arrays]
    y = y[kept]
    got, want = measure(H, y, K, W, b, dtype, means), oracle(H, y, K, W, b, means)
    assert_close(got, want, rel=1e-6 if dtype == torch.float64 else 1e-3)
    assert (got.classes, got.absent) == (K - len(gone), tuple(sorted(gone)))
    assert got.smallest_class == np.bincount(y, minlength=K).min()


def test_an_absent_class_can_be_predicted_and_is_nobodys_nearest():
    H, y, W, _ = case(60, 5, 4, spread=0.1)
    kept = y != 2
    got = measure(H[kept], y[kept], 4, W, 1e3 * np.eye(4)[2])
    assert got.nc4 == 1


def test_samples_of_classes_without_a_training_mean_are_left_out():
    H, y, W, b = case(300, 8, 5)
    train = np.arange(len(y)) % 2 == 0
    seen = first_moments(H[train & (y != 3)], y[train & (y != 3)], num_classes=5)
    got = neural_collapse(H[~train], y[~train], num_classes=5, weight=W, bias=b, means=seen)
    known = [0, 1, 2, 4]
    kept = ~train & (y != 3)
    places = np.searchsorted(known, y[kept])
    W_, b_ = W[known], b[known]
    want = oracle(H[kept], places, 4, W_, b_, seen.means.numpy()[known])
    assert_close(got, want, rel=1e-9, but=["nc4"])
    near = np.array(known)[((H[kept][:, None] - seen.means.numpy()[known]) ** 2).sum(2).argmin(1)]
    assert got.nc4 == np.mean((H[kept] @ W.T + b).argmax(1) != near)
    assert got.absent == (3,)
    only = neural_collapse(H[y == 3], y[y == 3], num_classes=5, weight=W, means=seen)
    assert (only.nc1, only.cdnv, only.nc4, only.classes) == (None, None, None, 0)
    assert only.nc2_etf == got.nc2_etf


def test_fewer_than_two_classes_have_no_collapse():
    H, y, W, b = case(60, 5, 4)
    got = measure(H[y == 2], y[y == 2], 4, W, b)
    assert [getattr(got, name) for name in MEASURES] == [None] * len(MEASURES)
    assert (got.classes, got.absent, got.smallest_class) == (1, (0, 1, 3), 0)


# NC4


def test_a_bias_of_minus_infinity_rules_a_class_out():
    H, y, W, b = case(300, 10, 5)
    b[3] = -np.inf
    want = oracle(H, y, 5, W, b)["nc4"]
    assert measure(H, y, 5, W, b).nc4 == pytest.approx(want)


def test_a_biased_classifier_is_read_with_its_bias():
    H, y, W, _ = case(300, 10, 5, spread=0.1)
    assert measure(H, y, 5, W, 1e3 * np.eye(5)[0]).nc4 == pytest.approx(0.8, abs=1e-6)


@given(
    seed=st.integers(0, 999),
    K=st.integers(2, 12),
    d=st.integers(1, 20),
    spread=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    shift=st.sampled_from([0.0, 100.0]),
    wrong=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_samples_that_need_no_product_are_counted_as_all(seed, K, d, spread, shift, wrong):
    H, y, W, b = case(20 * K, d, K, seed=seed, spread=spread)
    rng = np.random.RandomState(seed)
    y = np.where(rng.rand(len(y)) < wrong, rng.permutation(y), y)
    # As after training, W near the means; and a class that is never predicted.
    W = np.stack([H[y == k].mean(0) for k in range(K)]) - H.mean(0) + 0.1 * W
    b[rng.randint(K)] = -np.inf
    H, b = H + shift, b - W @ np.full(d, shift)
    assert measure(H, y, K, W, b).nc4 == oracle(H, y, K, W, b)["nc4"]


# Exact values


@pytest.mark.parametrize("K, d", [(2, 1), (2, 7), (3, 2), (10, 9), (10, 64), (100, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-4, 0), (30, 5)])
def test_an_exact_simplex_has_every_nc_at_zero(K, d, dtype, scale, shift):
    M = simplex(K, d, np.random.RandomState(K))
    y = np.arange(5 * K) % K
    H = scale * M[y] + shift
    got = measure(H, y, K, 7 * M, -7 * M @ np.full(d, shift), dtype)
    for name in MEASURES:
        assert getattr(got, name) == pytest.approx(0, abs=1e-6), name
    assert got.smallest_class == 5


def test_gaussian_clusters_match_their_closed_forms():
    # μ_k = a e_k: K Σ_B has the eigenvalue a² on K - 1 directions; Σ_W = σ² I.
    K, d, n, a, sigma = 5, 12, 8000, 3.0, 0.7
    y = torch.arange(K * n) % K
    noise = torch.randn(K * n, d, generator=torch.Generator().manual_seed(0))
    got = neural_collapse(a * torch.eye(K, d)[y] + sigma * noise, y, num_classes=K)
    assert got.nc1 == pytest.approx((K - 1) * sigma**2 / a**2, rel=0.01)
    assert got.nc1_ratio == pytest.approx(d * sigma**2 / (a**2 * (K - 1) / K), rel=0.01)
    assert got.cdnv == pytest.approx(d * sigma**2 / (2 * a**2), rel=0.01)
    assert got.mean_energy == pytest.approx(a**2 / (a**2 + d * sigma**2), rel=0.01)
    assert got.nc2_etf < 0.02


def test_two_gaussians_meet_their_classifier_where_theory_says():
    # One dimension, means ±1, boundary moved to c: they differ on the samples between 0 and c.
    n, c = 100_000, 0.5
    y = torch.arange(2 * n) % 2
    h = (2.0 * y - 1) + torch.randn(2 * n, generator=torch.Generator().manual_seed(0))
    got = neural_collapse(
        h.unsqueeze(1),
        y,
        num_classes=2,
        weight=torch.tensor([[-1.0], [1.0]]),
        bias=torch.tensor([c, -c]),
    )

    def below(x):
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    between = 0.5 * sum(below(c - m) - below(-m) for m in (-1, 1))
    assert got.nc4 == pytest.approx(between, abs=4e-3)


def test_the_global_mean_is_that_of_class_means_and_variance_that_of_samples():
    H = torch.tensor([[0.0], [0.0], [0.0], [1.0], [-1.0], [4.0]])
    y = torch.tensor([0, 0, 0, 0, 0, 1])
    got = neural_collapse(H, y, num_classes=2)
    # μ = 0 and 4, μ_G = 2, Σ_B = 4, Σ_W = 2/6.
    assert got.nc1_ratio == pytest.approx(2 / 6 / 4)
    assert got.nc1 == pytest.approx(2 / 6 / 4 / 2)
    assert got.cdnv == pytest.approx((2 / 5 + 0) / (2 * 16))
    assert got.nc2_equinorm == pytest.approx(0)
    assert got.smallest_class == 1


# Numerics


def test_float32_means_of_1e4_beside_a_spread_of_1_keep_four_digits():
    rng = np.random.RandomState(0)
    K, d, N = 10, 64, 4000
    y = np.arange(N) % K
    H = ((1e4 * rng.randn(K, d))[y] + rng.randn(N, d)).astype(np.float32)
    W, b = rng.randn(K, d).astype(np.float32), rng.randn(K).astype(np.float32)
    want = oracle(H.astype(float), y, K, W.astype(float), b.astype(float))
    assert_close(measure(H, y, K, W, b, torch.float32), want, rel=1e-4)


def test_a_common_mean_of_1e4_beside_a_spread_of_1_keeps_four_digits():
    H, y, W, b = case(3000, 64, 10)
    H, W = (H + 1e4).astype(np.float32), W.astype(np.float32)
    b = (b - 1e4 * W.sum(1)).astype(np.float32)
    want = oracle(H.astype(float), y, 10, W.astype(float), b.astype(float))
    assert 0 < want["nc4"] < 1
    assert_close(measure(H, y, 10, W, b, torch.float32), want, rel=1e-4)


def test_float32_keeps_digits_however_collapsed():
    # A spread of 1e-3 of the means: a total moment less that of the means would lose it.
    H, y, W, b = case(1000, 32, 8, spread=1e-3)
    H = H.astype(np.float32)
    want = oracle(H.astype(float), y, 8, W, b)
    got = measure(H, y, 8, W, b, torch.float32)
    assert want["nc1"] < 1e-5
    for name in ("nc1", "nc1_ratio", "cdnv"):
        assert getattr(got, name) == pytest.approx(want[name], rel=1e-5), name


def test_the_pseudo_inverse_never_inverts_rounding():
    H, y, _, _ = case(500, 50, 5)
    H32 = torch.tensor(H, dtype=torch.float32)
    mu = torch.stack([H32[y == k].mean(0) for k in range(5)])
    M, X = mu - mu.mean(0), H32 - mu[y]
    naive = float(torch.trace(X.T @ X / 500 @ torch.linalg.pinv(M.T @ M / 5, rtol=1e-9)) / 5)
    got = neural_collapse(H32, torch.tensor(y), num_classes=5).nc1
    assert got == pytest.approx(oracle(H, y, 5, M.numpy(), 0)["nc1"], rel=1e-4)
    assert naive > 10 * got


def test_collinear_means_leave_out_the_directions_they_do_not_span():
    rng = np.random.RandomState(0)
    y = np.arange(400) % 4
    x = rng.randn(400, 5)
    x -= np.stack([x[y == k].mean(0) for k in range(4)])[y]
    H = np.outer([-3.0, -1, 1, 3], np.ones(5))[y] + x
    along = x @ np.ones(5) / math.sqrt(5)
    for dtype in (torch.float64, torch.float32):
        # ‖M‖² = 5 (9 + 1 + 1 + 9), all of it in one direction.
        got = measure(H, y, 4, dtype=dtype)
        assert got.nc1 == pytest.approx((along**2).mean() / 100, rel=1e-4)


@given(
    seed=st.integers(0, 999),
    K=st.integers(2, 6),
    d=st.integers(1, 8),
    scale=st.sampled_from([1e-150, 1e-3, 5.0, 1e300]),
    shift=st.sampled_from([0.0, 3.0]),
)
@settings(max_examples=40, deadline=None)
def test_order_names_rotation_scale_and_shift_change_nothing(seed, K, d, scale, shift):
    H, y, W, b = case(10 * K, d, K, balanced=False, seed=seed)
    want = {k: v for k, v in asdict(measure(H, y, K, W, b)).items() if k in MEASURES}
    rng = np.random.RandomState(seed + 1)
    order, names = rng.permutation(len(H)), rng.permutation(K)
    Q = np.linalg.qr(rng.randn(d, d))[0]
    inverse = np.argsort(names)
    same = measure((H @ Q)[order], names[y[order]], K, (W @ Q)[inverse], b[inverse])
    assert_close(same, want, rel=1e-6)
    moved = H + shift
    # The bias that leaves every prediction what it was.
    same = measure(moved * scale, y, K, W * 3, (b - W @ np.full(d, shift)) * 3 * scale)
    assert_close(same, want, rel=1e-6)


@pytest.mark.parametrize("exponent", [-130, -60, 60, 100])
def test_float32_features_of_any_size_keep_their_digits(exponent):
    H, y, W, b = (x.astype(np.float32) if x.dtype == float else x for x in case(200, 8, 4))
    scale = 2.0**exponent
    want = {k: v for k, v in asdict(measure(H, y, 4, W, b, torch.float32)).items() if k in MEASURES}
    got = measure(H * np.float32(scale), y, 4, W, b.astype(float) * scale, torch.float32)
    assert_close(got, want, but=["nc4"])  # its bias, in float32, may be zero at the lower end
    got = measure(H * np.float32(scale), y, 4, W, dtype=torch.float32)
    assert got.nc4 == measure(H, y, 4, W, dtype=torch.float32).nc4


@pytest.mark.parametrize("flat", [1.0, 1e-2, 1e-4])
def test_means_that_fill_the_space_are_whitened_however_flat_they_lie(flat):
    H, y, W, b = case(400, 7, 12)
    H[:, 2] *= flat
    want = oracle(H, y, 12, W, b)
    assert_close(measure(H, y, 12, W, b), want, rel=1e-8)
    H32 = H.astype(np.float32)
    want = oracle(H32.astype(float), y, 12, W, b)
    got = neural_collapse(torch.tensor(H32), torch.tensor(y), num_classes=12)
    assert got.nc1 == pytest.approx(want["nc1"], rel=1e-5)


def test_automatic_mixed_precision_changes_nothing():
    H, y, W, b = (torch.tensor(x) for x in case(200, 10, 4))
    plain = neural_collapse(H.float(), y, num_classes=4, weight=W, bias=b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert neural_collapse(H.float(), y, num_classes=4, weight=W, bias=b) == plain


def test_pieces_are_one(monkeypatch):
    H, y, W, b = case(1000, 8, 4)
    want = {k: v for k, v in asdict(measure(H, y, 4, W, b)).items() if k in MEASURES}
    monkeypatch.setattr("mcr2.metrics.moments._PIECE", 1)
    assert_close(measure(H, y, 4, W, b), want, rel=1e-9)


def test_measuring_needs_no_gradient_and_changes_no_input():
    H, y, W, b = (torch.tensor(x) for x in case(50, 4, 3))
    H.requires_grad_()
    W.requires_grad_()
    before = [x.detach().clone() for x in (H, y, W, b)]
    neural_collapse(H, y, num_classes=3, weight=W, bias=b)
    assert all(torch.equal(x, old) for x, old in zip((H, y, W, b), before, strict=True))


# What is undefined


def test_without_a_weight_its_measures_are_none():
    H, y, _, _ = case(50, 4, 3)
    got = measure(H, y, 3)
    assert all(getattr(got, name) is None for name in OF_W)
    assert all(getattr(got, name) is not None for name in set(MEASURES) - set(OF_W))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 1.0, 1234.5])
def test_equal_class_means_are_flagged_not_divided_by(dtype, level):
    # Every class holds the same samples: means agree up to rounding.
    X = np.random.RandomState(0).randn(40, 6) + level
    H, y = np.concatenate([X, X[::-1], X]), np.repeat(np.arange(3), 40)
    got = measure(H, y, 3, np.ones((3, 6)), np.zeros(3), dtype)
    for name in ("nc1", "nc1_ratio", "cdnv", "nc3", "nc3_etf", "nc4"):
        assert getattr(got, name) is None, name
    for name in ("nc2_equinorm", "nc2_equiangular", "nc2_maxangle", "nc2_etf"):
        assert getattr(got, name) is None, name
    assert got.nc2_equinorm_w == pytest.approx(0, abs=1e-12)


def test_means_that_vanish_are_not_believed():
    X = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    H, y = torch.cat([X, -X]), torch.arange(1000) % 4
    got = neural_collapse(H, y, num_classes=4)
    assert got.mean_energy < MEAN_ENERGY_FLOOR
    assert not got.means_reliable
    zero = neural_collapse(torch.zeros(8, 3), torch.arange(8) % 4, num_classes=4)
    assert (zero.mean_energy, zero.means_reliable, zero.nc1, zero.cdnv) == (0.0, False, None, None)


def test_two_equal_means_among_others_leave_only_cdnv_undefined():
    M = np.array([[0.0, 0], [0, 0], [5, 1], [1, 5]])
    y = np.arange(80) % 4
    x = np.random.RandomState(0).randn(20, 2)
    H = M[y] + (x - x.mean(0)).repeat(4, axis=0)
    for shift in (0, 1e3):
        got = measure(H + shift, y, 4)
        assert got.cdnv is None
        assert all(getattr(got, n) is not None for n in ("nc1", "nc1_ratio", "nc2_etf"))


def test_a_class_mean_at_the_centre_has_no_angle():
    y = np.arange(30) % 3
    got = measure(np.array([[-1.0], [0], [1]])[y], y, 3)
    assert (got.nc2_equiangular, got.nc2_maxangle) == (None, None)
    assert got.nc2_equinorm == pytest.approx(math.sqrt(0.5))
    assert got.nc1 == 0


def test_a_zero_classifier_has_no_direction():
    H, y, _, _ = case(50, 4, 3)
    got = measure(H, y, 3, np.zeros((3, 4)), np.array([0.0, 1, 0]))
    assert [getattr(got, n) for n in OF_W if n != "nc4"] == [None] * 5
    assert got.nc4 == pytest.approx(1 - (np.argmin(distances(H, y, 3), 1) == 1).mean())


def distances(H, y, K):
    means = np.stack([H[y == k].mean(0) for k in range(K)])
    return ((H[:, None] - means) ** 2).sum(2)


def test_a_class_of_one_sample_counts_and_is_flagged():
    H, y, W, b = case(101, 5, 3)
    H, y = np.concatenate([H, np.full((1, 5), 3.0)]), np.append(y, 3)
    W, b = np.concatenate([W, W[:1] + 1]), np.append(b, 0)
    got = measure(H, y, 4, W, b)
    assert got.smallest_class == 1
    assert_close(got, oracle(H, y, 4, W, b), rel=1e-9)


# Bad input

GOOD = {"features": torch.randn(6, 3), "labels": torch.arange(6) % 2, "num_classes": 2}


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"labels": torch.arange(6) % 3}, ValueError, r"from 0 to 2; .* 0 \.\.\. 1"),
        ({"labels": torch.zeros(6)}, TypeError, "labels must be integers"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, r"labels .*\(6,\)"),
        ({"num_classes": 1}, ValueError, "num_classes is 1; it must be at least 2"),
        ({"features": torch.full((6, 3), math.nan)}, ValueError, "features must be finite"),
        ({"features": np.full((6, 3), math.inf)}, ValueError, "features must be finite"),
        ({"features": torch.randn(6)}, ValueError, r"features .*\(N, d\)"),
        ({"features": torch.randn(6, 0)}, ValueError, r"features .*\(N, d\)"),
        ({"features": torch.ones(6, 3).long()}, TypeError, "features must be a floating"),
        ({"weight": torch.randn(2, 4)}, ValueError, r"weight has shape \(2, 4\).*\(2, 3\)"),
        ({"weight": torch.full((2, 3), math.nan)}, ValueError, "weight must be finite"),
        ({"bias": torch.zeros(2)}, ValueError, "without a weight"),
        ({"weight": torch.ones(2, 3), "bias": torch.zeros(3)}, ValueError, r"bias .*\(2,\)"),
        *(
            ({"weight": torch.ones(2, 3), "bias": torch.tensor(b)}, ValueError, "bias must be fin")
            for b in ([-math.inf, -math.inf], [math.inf, 0], [math.nan, 0])
        ),
        ({"means": means_of(torch.zeros(3, 3))}, ValueError, r"means has shape \(3, 3\)"),
        ({"means": means_of(torch.full((2, 3), math.inf))}, ValueError, "means must be finite"),
    ],
)
def test_bad_input_is_refused_by_name(bad, error, message):
    with pytest.raises(error, match=message):
        neural_collapse(**{**GOOD, **bad})


def test_arrays_are_taken_as_tensors_are():
    H, y, W, b = case(100, 6, 4)
    got = neural_collapse(H, list(y), num_classes=4, weight=W, bias=b)
    assert got == measure(H, y, 4, W, b)


def test_moments_of_no_sample_have_no_collapse():
    with pytest.raises(ValueError, match="no sample"):
        collapse_of_moments(ClassMoments(3, 2))
    with pytest.raises(ValueError, match="num_classes is 1"):
        collapse_of_moments(ClassMoments(1, 2))
