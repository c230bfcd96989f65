"""One pass over batches, merged or not, gives what the in-memory functions give."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2.metrics.collapse import collapse_of_moments, neural_collapse
from mcr2.metrics.moments import ClassMoments, first_moments

K, D = 5, 12


def samples(n=400, seed=0, spread=1.0, shift=0.0, dtype=torch.float64):
    rng = np.random.RandomState(seed)
    y = np.concatenate([np.arange(K), rng.binomial(K - 1, 0.3, n - K)])
    H = rng.randn(K, D)[y] + spread * rng.randn(n, D) @ rng.randn(D, D) / 3 + shift
    order = rng.permutation(n)
    return torch.tensor(H[order]).to(dtype), torch.tensor(y[order])


def in_batches(H, y, sizes):
    moments = ClassMoments(K, H.shape[1])
    for part, labels in zip(torch.split(H, sizes), torch.split(y, sizes), strict=True):
        moments.update(part, labels)
    return moments


def merged(H, y, ways, size):
    """As several processes would: each takes its share, and one merges them."""
    whole = ClassMoments(K, H.shape[1])
    for i in range(ways):
        whole.merge(in_batches(H[i::ways], y[i::ways], size))
    return whole


WAYS = {
    "one batch": lambda H, y: in_batches(H, y, len(H)),
    "batches": lambda H, y: in_batches(H, y, 37),
    "sample by sample": lambda H, y: in_batches(H, y, 1),
    "class by class": lambda H, y: in_batches(H[y.argsort()], y.sort().values, 50),
    "merged": lambda H, y: merged(H, y, 3, 20),
}


def assert_same(got, want, rel=1e-6):
    for name, value in asdict(want).items():
        if value is None:
            assert getattr(got, name) is None, name
        elif name != "nc4":
            assert getattr(got, name) == pytest.approx(value, rel=rel, abs=1e-15), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("absent", [-1, 3])
@pytest.mark.parametrize("kind", [{}, {"spread": 1e-4}, {"shift": 1e4}, {"dtype": torch.float32}])
def test_collapse_of_moments_is_that_of_the_samples(way, absent, kind):
    H, y = samples(**kind)
    H, y = H[y != absent], y[y != absent]
    W = torch.randn(K, D, dtype=H.dtype, generator=torch.Generator().manual_seed(0))
    got = collapse_of_moments(WAYS[way](H, y), weight=W)
    want = neural_collapse(H, y, num_classes=K, weight=W)
    assert got.nc4 is None
    assert want.classes == K - (absent >= 0)
    assert_same(got, want)


@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    merged=st.integers(0, 6),
)
@settings(max_examples=30, deadline=None)
def test_moments_are_those_of_numpy_however_they_arrive(seed, sizes, merged):
    H, y = samples(n=sum(sizes) + K, seed=seed)
    H, y = H[: sum(sizes)], y[: sum(sizes)]
    left, right = (ClassMoments(K, D) for _ in range(2))
    for i, (part, labels) in enumerate(
        zip(torch.split(H, sizes), torch.split(y, sizes), strict=True)
    ):
        (left if i < merged else right).update(part, labels)
    before = right.scatter.clone()
    left.merge(right)
    assert torch.equal(right.scatter, before)
    scatter = np.zeros((D, D))
    for k in range(K):
        block = H[y == k].numpy()
        assert left.counts[k] == len(block)
        if len(block) == 0:
            assert left.means[k].eq(0).all()
            continue
        x = block - block.mean(0)
        scatter += x.T @ x
        np.testing.assert_allclose(left.means[k], block.mean(0), atol=1e-12)
        np.testing.assert_allclose(left.squares[k], (x**2).sum(), atol=1e-10)
    np.testing.assert_allclose(left.scatter, scatter, atol=1e-10)
    assert left.energy == pytest.approx(float(H.square().sum(1).mean()))


def test_a_collapsed_class_keeps_its_digits_beside_a_large_mean():
    # About one shift, the spread of 1e-5 would be what is left of 1e8 after 1e8 is subtracted.
    H, y = samples(n=1000, spread=1e-5)
    H = 1e4 * H
    want = neural_collapse(H, y, num_classes=K)
    assert want.nc1 < 1e-9
    assert_same(collapse_of_moments(in_batches(H, y, 64)), want)


def test_first_moments_are_exact_for_any_precision():
    H, y = samples(shift=100.0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        X = H.to(dtype)
        counts, means, energy = first_moments(X, y, num_classes=K + 1)
        assert counts.tolist() == [int((y == k).sum()) for k in range(K + 1)]
        for k in range(K):
            torch.testing.assert_close(means[k], X[y == k].double().mean(0), rtol=1e-12, atol=0)
        assert means[K].eq(0).all()
        assert energy == pytest.approx(float(X.double().square().sum(1).mean()))


def test_bad_batches_and_mismatched_moments_are_refused():
    moments = ClassMoments(3, 2)
    y = torch.tensor([0, 1])
    for H, labels, error, message in (
        (torch.ones(2, 3), y, ValueError, r"must be \(2, 2\)"),
        (torch.ones(2, 2), y + 2, ValueError, r"0 \.\.\. 2"),
        (torch.ones(2, 2), y[:1], ValueError, r"\(2,\)"),
        (torch.ones(2, 2) / 0, y, ValueError, "finite"),
        (torch.ones(2, 2), y.float(), TypeError, "integer"),
    ):
        with pytest.raises(error, match=message):
            moments.update(H, labels)
    assert moments.counts.sum() == 0
    for other in (ClassMoments(3, 4), ClassMoments(4, 2)):
        with pytest.raises(ValueError, match="the other's means has shape"):
            moments.merge(other)
    with pytest.raises(ValueError, match="num_classes is 0"):
        ClassMoments(0, 2)
