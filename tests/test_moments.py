"""One pass over batches, merged or not, gives what the in-memory functions give."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2.metrics.collapse import collapse_of_moments, neural_collapse
from mcr2.metrics.moments import ClassMoments, first_moments
from mcr2.metrics.rank import (
    between_classes,
    class_geometry,
    class_geometry_of_moments,
    feature_rank,
    rank_of_moments,
)

K, D = 5, 12


def samples(n=400, seed=0, spread=1.0, shift=0.0, dtype=torch.float64):
    rng = np.random.RandomState(seed)
    y = np.concatenate([np.arange(K), rng.binomial(K - 1, 0.3, n - K)])
    H = rng.randn(K, D)[y] + spread * rng.randn(n, D) @ rng.randn(D, D) / 3 + shift
    order = rng.permutation(n)
    return torch.tensor(H[order]).to(dtype), torch.tensor(y[order])


def in_batches(H, y, sizes, **options):
    moments = ClassMoments(K, H.shape[1], **options)
    for part, labels in zip(torch.split(H, sizes), torch.split(y, sizes), strict=True):
        moments.update(part, labels)
    return moments


def in_processes(H, y, ways, size, **options):
    """As several processes would: each reads its share, sends tensors, and one merges them."""
    states = [in_batches(H[i::ways], y[i::ways], size, **options).state() for i in range(ways)]
    whole = ClassMoments.from_state(states[0])
    for state in states[1:]:
        whole.merge(ClassMoments.from_state(state))
    return whole


def assert_same(got, want, rel=1e-6, absolute=1e-15, but=()):
    got, want = asdict(got), asdict(want)
    assert got.keys() == want.keys()
    for name in want.keys() - set(but):
        if want[name] is None:
            assert got[name] is None, name
        else:
            assert got[name] == pytest.approx(want[name], rel=rel, abs=absolute), name


WAYS = {
    "one batch": lambda H, y, **o: in_batches(H, y, len(H), **o),
    "batches": lambda H, y, **o: in_batches(H, y, 37, **o),
    "sample by sample": lambda H, y, **o: in_batches(H, y, 1, **o),
    "class by class": lambda H, y, **o: in_batches(H[y.argsort()], y.sort().values, 50, **o),
    "merged": lambda H, y, **o: in_processes(H, y, 3, 20, **o),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("kind", [{}, {"spread": 1e-4}, {"shift": 1e4}, {"dtype": torch.float32}])
def test_collapse_of_moments_is_that_of_the_samples(way, per_class, kind):
    H, y = samples(**kind)
    W = torch.randn(K, D, dtype=H.dtype, generator=torch.Generator().manual_seed(0))
    got = collapse_of_moments(WAYS[way](H, y, per_class=per_class), weight=W)
    want = neural_collapse(H, y, num_classes=K, weight=W)
    assert got.nc4 is None
    assert_same(got, want, but=["nc4"])


@pytest.mark.parametrize("size", [400, 37, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_collapse_of_moments_of_more_classes_than_dimensions(size, dtype):
    rng = np.random.RandomState(0)
    y = np.arange(400) % 20
    H = torch.tensor(3 * rng.randn(20, 6)[y] + rng.randn(400, 6)).to(dtype)
    W, y = torch.tensor(rng.randn(20, 6)), torch.tensor(y)
    moments = ClassMoments(20, 6)
    for part, labels in zip(torch.split(H, size), torch.split(y, size), strict=True):
        moments.update(part, labels)
    want = neural_collapse(H, y, num_classes=20, weight=W)
    assert_same(collapse_of_moments(moments, weight=W), want, but=["nc4"])


@pytest.mark.parametrize("way", WAYS)
def test_collapse_about_given_means_and_with_absent_classes(way):
    H, y = samples()
    H, y = H[y != 3], y[y != 3]
    means = torch.randn(K, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = collapse_of_moments(WAYS[way](H, y), means=means)
    assert_same(got, neural_collapse(H, y, num_classes=K, means=means))
    assert got.smallest_class == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("n", [400, 8])
def test_rank_of_moments_is_that_of_the_samples(way, centred, n):
    H, y = samples(n=n, shift=2.0, dtype=torch.float32)
    got = rank_of_moments(WAYS[way](H, y), centred=centred)
    assert_same(got, feature_rank(H, centred=centred))


@pytest.mark.parametrize("way", WAYS)
def test_geometry_of_moments_is_that_of_the_classes(way):
    H, y = samples(dtype=torch.float32)
    H, y = H[y != 3], y[y != 3]
    got = class_geometry_of_moments(WAYS[way](H, y, per_class=True))
    want = class_geometry(H, y, num_classes=K)
    torch.testing.assert_close(got.spectra, want.spectra, rtol=1e-6, atol=1e-9)
    for mine, theirs in zip(got.ranks, want.ranks, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert_same(mine, theirs)
    # The arc cosine of 1 less a rounding is 1e-8.
    assert_same(between_classes(got.bases), between_classes(want.bases), absolute=1e-7)


@given(
    seed=st.integers(0, 999),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    merged=st.integers(0, 6),
)
@settings(max_examples=30, deadline=None)
def test_moments_are_those_of_numpy_however_they_arrive(seed, sizes, merged):
    H, y = samples(n=sum(sizes) + K, seed=seed)
    H, y = H[: sum(sizes)], y[: sum(sizes)]
    left, right = (ClassMoments(K, D, per_class=True) for _ in range(2))
    for i, (part, labels) in enumerate(
        zip(torch.split(H, sizes), torch.split(y, sizes), strict=True)
    ):
        (left if i < merged else right).update(part, labels)
    left.merge(right)
    for k in range(K):
        block = H[y == k].numpy()
        assert left.counts[k] == len(block)
        if len(block) == 0:
            assert left.means[k].eq(0).all()
            assert left.scatters[k].eq(0).all()
            continue
        x = block - block.mean(0)
        np.testing.assert_allclose(left.means[k], block.mean(0), atol=1e-12)
        np.testing.assert_allclose(left.scatters[k], x.T @ x, atol=1e-10)
        np.testing.assert_allclose(left.squares[k], (x**2).sum(), atol=1e-10)


def test_a_collapsed_class_keeps_its_digits_beside_a_large_mean():
    # About one shift, the spread of 1e-5 would be what is left of 1e8 after 1e8 is subtracted.
    H, y = samples(n=1000, spread=1e-5)
    H = 1e4 * H
    want = neural_collapse(H, y, num_classes=K)
    got = collapse_of_moments(in_batches(H, y, 64))
    assert want.nc1 < 1e-9
    assert_same(got, want, rel=1e-6)


def test_moments_about_other_points():
    H, y = samples()
    points = torch.randn(K, D, dtype=torch.float64)
    moments = in_batches(H, y, 50)
    squares, scatter = moments.about(points)
    X = H - points[y]
    torch.testing.assert_close(scatter, X.T @ X)
    torch.testing.assert_close(squares.sum(), X.square().sum())
    torch.testing.assert_close(moments.about(moments.means)[1], moments.scatters[0])


def test_a_state_is_a_copy_and_a_merge_leaves_the_other_alone():
    H, y = samples()
    moments = in_batches(H, y, 50)
    state = moments.state()
    other = ClassMoments.from_state(state)
    moments.merge(other)
    assert moments.counts.sum() == 2 * len(H)
    for name, tensor in other.state().items():
        torch.testing.assert_close(tensor, state[name])
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


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
        (torch.ones(2, 3), y, ValueError, r"\(n, 2\)"),
        (torch.ones(2, 2), y + 2, ValueError, r"0 \.\.\. 2"),
        (torch.ones(2, 2), y[:1], ValueError, r"\(2,\)"),
        (torch.ones(2, 2) / 0, y, ValueError, "finite"),
        (torch.ones(2, 2), y.float(), TypeError, "integer"),
    ):
        with pytest.raises(error, match=message):
            moments.update(H, labels)
    assert moments.counts.sum() == 0
    for other in (ClassMoments(3, 4), ClassMoments(4, 2), ClassMoments(3, 2, per_class=True)):
        with pytest.raises(ValueError, match="same shape"):
            moments.merge(other)
    with pytest.raises(ValueError, match="num_classes=0"):
        ClassMoments(0, 2)
    with pytest.raises(ValueError, match="per_class=True"):
        class_geometry_of_moments(moments)
    with pytest.raises(ValueError, match="no sample"):
        rank_of_moments(moments)
    state = moments.state()
    with pytest.raises(ValueError, match="scatters"):
        ClassMoments.from_state({**state, "scatters": torch.zeros(2, 2, 2)})
    with pytest.raises(KeyError):
        ClassMoments.from_state({"counts": state["counts"]})
