"""Metrics take the values theory gives, and agree with NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import subspace_angles

from mcr2.metrics.accuracy import accuracy, standard_error
from mcr2.metrics.coding import coding_measures
from mcr2.metrics.memorization import Memorization, memorization, terminal_phase
from mcr2.metrics.rank import (
    FeatureRank,
    between_classes,
    class_geometry,
    feature_rank,
    rank_and_spectrum,
)

NAMES = ("effective_rank", "participation_ratio", "stable_rank")
ZERO = FeatureRank(0, 0.0, 0.0, 0.0, 0)


def orthonormal(n, q, rng):
    return np.linalg.qr(rng.randn(n, q))[0]


def with_singular_values(sigma, n, d, seed):
    rng = np.random.RandomState(seed)
    q = len(sigma)
    return torch.tensor(orthonormal(n, q, rng) * sigma @ orthonormal(d, q, rng).T)


# Rank


def rank_oracle(X, eps, centred):
    """The definitions, from NumPy's SVD of the exact values in float64."""
    X = np.asarray(X, np.float64)
    X = X - X.mean(0) if centred else X
    s = np.linalg.svd(X, compute_uv=False)
    s = s[s > 0]
    p, energy = s / s.sum(), s**2
    return FeatureRank(
        int(np.linalg.matrix_rank(X, tol=s.max() * max(X.shape) * eps)),
        float(np.exp(-(p * np.log(p)).sum())),
        float(energy.sum() ** 2 / (energy**2).sum()),
        float(energy.sum() / energy.max()),
        int(np.flatnonzero(np.cumsum(energy) >= 0.95 * energy.sum())[0]) + 1,
    )


@pytest.mark.parametrize("shape", [(200, 30), (20, 30), (30, 30), (50, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("centred", [True, False])
def test_rank_agrees_with_the_definitions_in_numpy(shape, dtype, centred):
    rng = np.random.RandomState(0)
    X = rng.randn(*shape) * np.geomspace(1, 1e-3, shape[1]) + rng.randn(shape[1])
    X = torch.tensor(X).to(dtype)
    eps = np.finfo(np.float64 if dtype == torch.float64 else np.float32).eps
    got, want = feature_rank(X, centred=centred), rank_oracle(X.double(), eps, centred)
    assert (got.numerical_rank, got.dim95) == (want.numerical_rank, want.dim95)
    for name in NAMES:
        assert getattr(got, name) == pytest.approx(getattr(want, name), rel=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numerical_rank_is_numpys(dtype):
    X = with_singular_values(np.geomspace(1, 1e-18, 40), 60, 50, 0).to(dtype)
    got = feature_rank(X, centred=False).numerical_rank
    assert abs(got - np.linalg.matrix_rank(X.numpy())) <= (dtype == torch.float64)


@given(q=st.integers(1, 25), extra=st.integers(0, 10), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_q_equal_singular_values_have_dimension_q(q, extra, seed):
    X = with_singular_values(np.full(q, 3.0), 30, q + extra, seed)
    got = feature_rank(X, centred=False)
    assert got.numerical_rank == q
    assert got.dim95 == -(-95 * q // 100)
    for name in NAMES:
        assert getattr(got, name) == pytest.approx(q, rel=1e-9), name


def test_a_simplex_of_k_class_means_has_rank_k_minus_1():
    got = feature_rank(torch.eye(10)[torch.arange(100) % 10] + 5)
    assert (got.numerical_rank, got.dim95) == (9, 9)
    assert got.participation_ratio == pytest.approx(9, rel=1e-5)


@given(
    n=st.integers(2, 12),
    d=st.integers(1, 12),
    scale=st.sampled_from([1e-150, 1e-3, 7.0, 1e150]),
    centred=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_rank_ignores_scale_and_rotation_and_lies_between_1_and_the_dimension(
    n, d, scale, centred, seed
):
    rng = np.random.RandomState(seed)
    X = torch.tensor(rng.randn(n, d) * rng.rand(d))
    got = feature_rank(X, centred=centred)
    for name in (*NAMES, "numerical_rank", "dim95"):
        assert 1 - 1e-9 <= getattr(got, name) <= min(n, d) + 1e-9, name
    for other in (X * scale, X @ torch.tensor(orthonormal(d, d, rng)), X.flip(0)):
        same = feature_rank(other, centred=centred)
        assert same.numerical_rank == got.numerical_rank
        for name in NAMES:
            assert getattr(same, name) == pytest.approx(getattr(got, name), rel=1e-7), name


def test_features_without_spread_have_rank_zero():
    assert feature_rank(torch.zeros(5, 3)) == feature_rank(torch.zeros(5, 3), centred=False) == ZERO
    assert feature_rank(torch.randn(1, 3)) == ZERO
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert feature_rank(torch.full((1000, 3), 0.1, dtype=dtype)) == ZERO
    # Collapsed up to the last bit, as features from different batches are.
    assert feature_rank(torch.ones(99, 3) + 6e-8 * torch.randint(0, 2, (99, 3))) == ZERO


def test_centring_removes_one_dimension_of_a_large_mean():
    X = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) + 100
    assert feature_rank(X, centred=False).participation_ratio == pytest.approx(1, abs=1e-2)
    assert feature_rank(X).participation_ratio > 3.5


@pytest.mark.parametrize(
    "features, error, message",
    [
        (torch.ones(3), ValueError, r"\(N, d\)"),
        (torch.ones(0, 3), ValueError, r"\(N, d\)"),
        (torch.tensor([[1.0, math.nan]]), ValueError, "finite"),
        (torch.ones(3, 3, dtype=torch.int64), TypeError, "floating"),
        (np.ones((3, 3), dtype=int), TypeError, "int64 array"),
    ],
)
def test_features_without_a_rank_are_refused(features, error, message):
    with pytest.raises(error, match=message):
        feature_rank(features)


# Spectra, classes and what lies between them


@pytest.mark.parametrize("shape", [(80, 6), (4, 9)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-18])
def test_the_spectrum_is_that_of_the_covariance(shape, dtype, scale):
    X = (scale * (np.random.RandomState(0).randn(*shape) + 3)).astype(str(dtype)[6:])
    for centred, moment in ((True, np.cov(X.astype(float).T, bias=True)),
                            (False, X.astype(float).T @ X / len(X))):  # fmt: skip
        want = np.linalg.eigvalsh(moment)[::-1]
        _, got = rank_and_spectrum(X, centred=centred)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-12 * want[0])


def classes_of_subspaces(dims, d, n, seed=0, dtype=torch.float64):
    """A class on each of some random subspaces; returns samples, labels and the bases."""
    rng = np.random.RandomState(seed)
    bases = [orthonormal(d, q, rng) for q in dims]
    H = np.concatenate([rng.randn(n, U.shape[1]) @ U.T for U in bases])
    return torch.tensor(H).to(dtype), torch.arange(len(dims)).repeat_interleave(n), bases


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("n", [40, 5])
def test_class_ranks_are_the_uncentred_ranks_of_each_class(dtype, n):
    H, y, _ = classes_of_subspaces([3, 7, 1], 12, n, dtype=dtype)
    order = torch.randperm(len(H), generator=torch.Generator().manual_seed(0))
    got = class_geometry(H[order], y[order] * 2, num_classes=6).ranks
    assert got[1] is got[3] is got[5] is None
    for k in range(3):
        want = feature_rank(H[y == k], centred=False)
        assert (got[2 * k].numerical_rank, got[2 * k].dim95) == (want.numerical_rank, want.dim95)
        for name in NAMES:
            assert getattr(got[2 * k], name) == pytest.approx(getattr(want, name), rel=1e-6), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [200, 6])
def test_the_geometry_of_classes_is_their_svd(dtype, n):
    H, y, _ = classes_of_subspaces([2, 9], 10, n, dtype=dtype)
    geometry = class_geometry(H, y, num_classes=3)
    assert "tensor" not in repr(geometry)
    for k in range(2):
        s, rows = np.linalg.svd(H[y == k].double().numpy(), full_matrices=False)[1:]
        np.testing.assert_allclose(geometry.spectra[k][: len(s)], s**2 / n, rtol=1e-5, atol=1e-12)
        q = geometry.ranks[k].dim95
        assert geometry.bases[k].shape == (10, q)
        assert subspace_angles(geometry.bases[k].numpy(), rows[:q].T).max() < 1e-6
    assert geometry.spectra[2].eq(0).all()
    assert geometry.bases[2].shape == (10, 0)


def test_a_collapsed_class_is_a_line_whatever_its_noise():
    # Centred, what is left is noise of rank 20.
    rng = np.random.RandomState(0)
    H = torch.tensor(rng.randn(20) + 1e-3 * rng.randn(300, 20))
    (rank,) = class_geometry(H, [0] * 300, num_classes=1).ranks
    assert rank.dim95 == 1
    assert rank.participation_ratio == pytest.approx(1, abs=1e-4)
    assert feature_rank(H).participation_ratio > 15


@pytest.mark.parametrize("dims", [(3, 3), (1, 4), (5, 2), (6, 6)])
def test_angles_of_two_subspaces_are_scipys(dims):
    rng = np.random.RandomState(0)
    U, V = (orthonormal(8, q, rng) for q in dims)
    got, want = between_classes([U, V]), subspace_angles(U, V)
    assert got.smallest_angle == pytest.approx(want.min(), abs=1e-12)
    assert got.mean_angle == pytest.approx(want.mean(), abs=1e-12)


def test_small_principal_angles_are_resolved():
    for angle in (1e-12, 1e-6, 0.5, math.pi / 2):
        U = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
        V = torch.tensor([[math.cos(angle)], [math.sin(angle)]], dtype=torch.float64)
        assert between_classes([U, V]).smallest_angle == pytest.approx(angle, rel=1e-6)
    with pytest.raises(ValueError, match="bases must be finite"):
        between_classes([U, U * math.nan])


def test_coherence_is_the_mean_overlap_of_class_subspaces():
    _, _, bases = classes_of_subspaces([3, 1, 5, 2], 9, 2)
    pairs = [(U, V) for i, U in enumerate(bases) for j, V in enumerate(bases) if i != j]
    overlap = [(np.linalg.norm(U.T @ V) ** 2) / min(U.shape[1], V.shape[1]) for U, V in pairs]
    angles = [subspace_angles(U, V) for U, V in pairs]
    got = between_classes([torch.tensor(U) for U in [*bases, np.empty((9, 0))]])
    assert got.coherence == pytest.approx(np.mean(overlap))
    assert got.smallest_angle == pytest.approx(min(a.min() for a in angles))
    assert got.mean_angle == pytest.approx(np.mean([a.mean() for a in angles]))


def test_orthogonal_classes_have_coherence_0_and_equal_ones_1():
    d, K = 12, 4
    H, y = torch.eye(d).repeat(3, 1), (torch.arange(d) // (d // K)).repeat(3)
    apart = between_classes(class_geometry(H, y, num_classes=K).bases)
    assert apart.coherence == pytest.approx(0, abs=1e-12)
    assert apart.smallest_angle == pytest.approx(math.pi / 2)
    same = between_classes(
        class_geometry(H.repeat(2, 1), torch.arange(72) // 36, num_classes=2).bases
    )
    assert same.coherence == pytest.approx(1)
    assert same.mean_angle == pytest.approx(0, abs=1e-6)
    for few in ([], [torch.eye(3)], [torch.eye(3), torch.empty(3, 0)]):
        alone = between_classes(few)
        assert (alone.coherence, alone.smallest_angle, alone.mean_angle) == (None,) * 3


def test_a_class_of_zeros_or_of_one_sample_has_a_geometry():
    H = torch.tensor([[0.0, 0, 0], [0, 0, 0], [3, 0, 4]])
    geometry = class_geometry(H, torch.tensor([0, 0, 1]), num_classes=2)
    assert geometry.ranks == (ZERO, FeatureRank(1, 1.0, 1.0, 1.0, 1))
    assert geometry.bases[0].shape == (3, 0)
    torch.testing.assert_close(geometry.bases[1].abs().squeeze(1).float(), H[2] / 5)
    assert geometry.spectra[1].tolist() == pytest.approx([25, 0, 0])


@pytest.mark.parametrize(
    "features, labels, error, message",
    [
        (torch.ones(3, 2), torch.tensor([0, 1, 2]), ValueError, r"0 \.\.\. 1"),
        (torch.ones(3, 2), [0.0, 1, 1], TypeError, "integer"),
        (torch.ones(3, 2), torch.tensor([0, 1]), ValueError, r"\(3,\)"),
        (torch.full((3, 2), math.nan), torch.tensor([0, 1, 1]), ValueError, "finite"),
        (torch.ones(3), torch.tensor([0, 1, 1]), ValueError, r"\(N, d\)"),
    ],
)
def test_classes_without_a_geometry_are_refused(features, labels, error, message):
    with pytest.raises(error, match=message):
        class_geometry(features, labels, num_classes=2)


# Accuracy


def test_accuracy_is_the_share_of_agreement():
    rng = np.random.RandomState(0)
    a, b = rng.randint(3, size=97), rng.randint(3, size=97)
    for x, y in ((a, b), (torch.tensor(a), torch.tensor(b)), (a.tolist(), b.tolist())):
        assert accuracy(x, y) == np.mean(a == b)


def test_the_standard_error_is_the_spread_of_binomial_accuracies():
    draws = np.random.RandomState(0).binomial(144, 0.8, 200_000) / 144
    assert standard_error(0.8, 144) == pytest.approx(draws.std(), rel=1e-2)
    assert standard_error(1.0, 10) == 0


def test_accuracy_of_what_it_is_not_defined_for_is_refused():
    y = torch.tensor([0, 1])
    for bad in (torch.rand(2, 2), y.float()):
        with pytest.raises(TypeError, match="integers"):
            accuracy(bad, y)
    for a, b in ((y, y[:1]), (y[:0], y[:0]), (y.view(1, 2), y.view(1, 2))):
        with pytest.raises(ValueError, match="must be"):
            accuracy(a, b)
    for a, n in ((1.1, 5), (math.nan, 5), (0.5, 0)):
        with pytest.raises(ValueError, match=r"accuracy is|n is 0"):
            standard_error(a, n)


# Memorization

CLEAN = torch.tensor([0, 0, 1, 1, 2, 2])
NOISY = torch.tensor([0, 1, 1, 2, 2, 0])


@pytest.mark.parametrize(
    "predictions, expected",
    [
        (NOISY, Memorization(1.0, 1.0, 0.0)),  # memorised
        (CLEAN, Memorization(0.5, 0.0, 1.0)),  # robust
        (torch.tensor([1, 2, 0, 0, 0, 1]), Memorization(0.0, 0.0, 0.0)),  # neither
    ],
)
def test_wrong_labels_are_fitted_recovered_or_neither(predictions, expected):
    assert memorization(predictions, NOISY, CLEAN) == expected


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), min_size=1, max_size=30))
def test_memorization_counts_sample_by_sample(rows):
    got = memorization(*torch.tensor(rows).T)
    wrong = [(p, y, clean) for p, y, clean in rows if y != clean]
    assert got.fit_noisy == sum(p == y for p, y, _ in rows) / len(rows)
    if not wrong:
        assert got.fit_corrupted is got.recovered is None
    else:
        assert got.fit_corrupted == sum(p == y for p, y, _ in wrong) / len(wrong)
        assert got.recovered == sum(p == clean for p, _, clean in wrong) / len(wrong)


def test_without_wrong_or_clean_labels_there_is_nothing_to_memorise():
    assert memorization(CLEAN, CLEAN, CLEAN) == Memorization(1.0, None, None)
    assert memorization(CLEAN, NOISY, None) == Memorization(0.5, None, None)
    with pytest.raises(ValueError, match=r"clean_labels has shape \(5,\); it must be \(6,\)"):
        memorization(CLEAN, NOISY, CLEAN[1:])


@pytest.mark.parametrize(
    "series, start",
    [
        ([], None),
        ([0.99, 0.99], None),
        ([0.99, 0.99, 0.99], 0),
        ([0.5, 1, 1, 0.98, 1, 1, 1, 1, 0.2], 4),
        ([1, 1, math.nan, 1, 1], None),
    ],
)
def test_the_terminal_phase_starts_with_three_evaluations_running(series, start):
    assert terminal_phase(series) == start


# Coding rates


def coding_oracle(Z, y, classes, eps_sq):
    """½ logdet by eigenvalues, class by class, in float64."""
    Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)

    def rate(block):
        gram = block.T @ block * Z.shape[1] / (len(block) * eps_sq)
        return 0.5 * np.log1p(np.clip(np.linalg.eigvalsh(gram), 0, None)).sum()

    parts = [Z[y == k] for k in range(classes)]
    compressed = sum(len(p) / len(Z) * rate(p) for p in parts if len(p))
    return rate(Z), compressed, rate(Z) - compressed


@pytest.mark.parametrize("eps_sq", [0.5, 0.1])
def test_coding_measures_are_the_rates_of_unit_norm_features(eps_sq):
    rng = np.random.RandomState(0)
    Z, y = rng.randn(80, 6), rng.randint(3, size=80)
    want = coding_oracle(Z, y, 4, eps_sq)  # class 3 is absent
    scales = np.geomspace(1e-25, 1e25, 80)[:, None]
    for features in (torch.tensor(Z), torch.tensor(Z * scales, dtype=torch.float32)):
        got = coding_measures(features, torch.tensor(y), num_classes=4, eps_sq=eps_sq)
        assert (got.rate, got.compressed_rate, got.reduction) == pytest.approx(want, rel=1e-4)


def test_orthogonal_classes_have_the_closed_form():
    # K classes, each spread evenly over its own d/K directions, meet the bound on ΔR.
    K, d, eps_sq = 4, 16, 0.5
    Z = torch.eye(d).repeat(5, 1) * 3
    y = (torch.arange(d) // (d // K)).repeat(5)
    got = coding_measures(Z, y, num_classes=K, eps_sq=eps_sq)
    assert got.rate == pytest.approx(d / 2 * math.log(1 + 1 / eps_sq), rel=1e-5)
    assert got.compressed_rate == pytest.approx(d / (2 * K) * math.log(1 + K / eps_sq), rel=1e-5)


def test_a_zero_feature_is_no_division_by_zero():
    got = coding_measures(torch.zeros(3, 2), torch.tensor([0, 1, 1]), num_classes=2)
    assert (got.rate, got.compressed_rate, got.reduction) == (0, 0, 0)


@pytest.mark.parametrize(
    "bad, error, message",
    [
        ({"features": torch.ones(2)}, ValueError, r"\(N, d\)"),
        ({"features": torch.ones(2, 0)}, ValueError, r"\(N, d\)"),
        ({"features": torch.full((2, 2), math.inf)}, ValueError, "finite"),
        ({"features": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "floating"),
        ({"labels": [1, 2]}, ValueError, "labels run from 1 to 2"),
        ({"eps_sq": 0}, ValueError, "eps_sq is 0; it must be positive"),
    ],
)
def test_features_without_rates_are_refused(bad, error, message):
    with pytest.raises(error, match=message):
        coding_measures(**{"features": np.ones((2, 2)), "labels": [0, 1], "num_classes": 2, **bad})
