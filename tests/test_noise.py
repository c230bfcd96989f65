"""What corrupt() promises, against rebuilds from NumPy's generator and plain counting."""

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2.noise import KINDS, corrupt, symmetric_transition

CIFAR10_LABELS = Path(__file__).parents[2] / "shared/data/cifar10-train-labels.npy"

labels_and_classes = st.integers(2, 7).flatmap(
    lambda K: st.tuples(st.lists(st.integers(0, K - 1), min_size=1, max_size=80), st.just(K))
)
ratios = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(sorted(KINDS))


def rebuild(labels, ratio, num_classes, seed):
    """The official code's corruption, one label at a time."""
    rs = np.random.RandomState(seed)
    labels = list(labels)
    chosen = rs.choice(range(len(labels)), size=int(len(labels) * ratio), replace=False)
    drawn = rs.choice(np.arange(num_classes), size=int(len(labels) * ratio), replace=True)
    for i, label in zip(chosen, drawn, strict=True):
        labels[i] = int(label)
    return labels, chosen.tolist()


@pytest.mark.parametrize("seed", [0, 1, 10, 2**32 - 1])
@pytest.mark.parametrize("ratio", [0, 0.1, 0.3, 0.5, 0.7, 1])
def test_symmetric_noise_is_the_official_codes_label_by_label(seed, ratio):
    labels = np.random.RandomState(5).randint(0, 10, size=1437)
    noise = corrupt(labels, ratio, num_classes=10, seed=seed)
    expected, chosen = rebuild(labels, ratio, 10, seed)
    assert noise.labels.tolist() == expected
    assert noise.indices.tolist() == chosen


@pytest.mark.skipif(not CIFAR10_LABELS.exists(), reason="needs ../shared/data (CIFAR-10's labels)")
def test_the_papers_counts_of_wrong_labels_on_cifar10():
    labels = np.load(CIFAR10_LABELS)
    for ratio, wrong in zip(
        (0.1, 0.2, 0.3, 0.4, 0.5), (4502, 8963, 13445, 17969, 22464), strict=True
    ):
        noise = corrupt(labels, ratio, num_classes=10, seed=10)
        assert int(noise.wrong.sum()) == wrong
        assert noise.labels.tolist() == rebuild(labels, ratio, 10, 10)[0]


@given(labels_and_classes, ratios, ratios, seeds, kinds)
@settings(deadline=None)
def test_corrupted_sets_are_nested(drawn, one, other, seed, kind):
    labels, K = drawn
    less = corrupt(labels, min(one, other), num_classes=K, seed=seed, kind=kind)
    more = corrupt(labels, max(one, other), num_classes=K, seed=seed, kind=kind)
    n = len(less.indices)
    assert torch.equal(less.indices, more.indices[:n])
    assert torch.equal(less.labels[less.indices], more.labels[less.indices])
    assert bool(more.wrong[less.wrong].all())


@given(labels_and_classes, ratios, seeds, kinds)
@settings(deadline=None)
def test_counts_hash_and_transition_say_what_happened(drawn, ratio, seed, kind):
    labels, K = drawn
    noise = corrupt(labels, ratio, num_classes=K, seed=seed, kind=kind)
    after = noise.labels.tolist()
    assert len(set(noise.indices.tolist())) == len(noise.indices) == int(len(labels) * ratio)
    assert noise.wrong.tolist() == [a != b for a, b in zip(labels, after, strict=True)]
    assert set(noise.wrong.nonzero().flatten().tolist()) <= set(noise.indices.tolist())
    assert noise.hash == hashlib.sha256(np.array(after, dtype="<i8").tobytes()).hexdigest()
    for i in range(K):
        became = [b for a, b in zip(labels, after, strict=True) if a == i]
        row = [became.count(j) / len(became) if became else float(i == j) for j in range(K)]
        assert noise.transition[i].tolist() == pytest.approx(row)
        assert noise.transition[i].sum().item() == pytest.approx(1)


@given(labels_and_classes, ratios, seeds)
@settings(deadline=None)
def test_excluding_the_true_class_every_redrawn_label_is_wrong(drawn, ratio, seed):
    labels, K = drawn
    any_class = corrupt(labels, ratio, num_classes=K, seed=seed)
    other = corrupt(labels, ratio, num_classes=K, seed=seed, kind="symmetric_excluding_true")
    assert torch.equal(other.indices, any_class.indices)
    assert int(other.wrong.sum()) == len(other.indices)
    assert 0 <= int(other.labels.min()) <= int(other.labels.max()) < K


@given(labels_and_classes, ratios, seeds, kinds)
@settings(deadline=None, max_examples=20)
def test_the_global_generators_are_neither_read_nor_moved(drawn, ratio, seed, kind):
    labels, K = drawn
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first = corrupt(labels, ratio, num_classes=K, seed=seed, kind=kind)
    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])
    # Inside hypothesis the global seeds may not be moved for good.
    np.random.rand(3), torch.rand(3), random.random()
    assert torch.equal(
        first.labels, corrupt(labels, ratio, num_classes=K, seed=seed, kind=kind).labels
    )
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])


@pytest.mark.parametrize("kind", KINDS)
def test_the_realised_transition_tends_to_the_expected_one(kind):
    labels = np.arange(200_000) % 4
    noise = corrupt(labels, 0.4, num_classes=4, seed=3, kind=kind)
    expected = symmetric_transition(0.4, 4, kind)
    # Four standard errors of a share of 50,000.
    assert (noise.transition - expected).abs().max() < 4 * 0.5 / 50_000**0.5


def test_expected_transitions_in_closed_form():
    eye, ones = np.eye(5), np.ones((5, 5))
    assert np.allclose(symmetric_transition(0.3, 5), 0.7 * eye + 0.3 / 5 * ones)
    assert np.allclose(
        symmetric_transition(0.3, 5, "symmetric_excluding_true"),
        0.7 * eye + 0.3 / 4 * (ones - eye),
    )
    assert np.array_equal(symmetric_transition(0, 5), eye)


def test_tensors_arrays_and_sequences_give_the_same_and_stay_as_they_were():
    plain = [2, 0, 1, 1, 2, 0] * 5
    array = np.array(plain, dtype=np.uint8)
    tensor = torch.tensor(plain, dtype=torch.int32)
    results = [corrupt(x, 0.8, num_classes=3, seed=1) for x in (plain, array, tensor)]
    assert len({r.hash for r in results}) == 1
    assert all(r.labels.dtype == r.indices.dtype == torch.int64 for r in results)
    assert array.tolist() == tensor.tolist() == plain


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"ratio": 1.5}, ValueError, r"ratio must lie in \[0, 1\], not 1.5"),
        ({"ratio": -0.1}, ValueError, "ratio"),
        ({"ratio": float("nan")}, ValueError, "nan"),
        ({"ratio": "0.5"}, TypeError, "ratio must be a number, not str"),
        ({"ratio": True}, TypeError, "bool"),
        ({"labels": [0, 1, 3]}, ValueError, r"\[0, 3\), but one is 3"),
        ({"labels": [0, -1, 2]}, ValueError, "one is -1"),
        ({"labels": [0.0, 1.0]}, TypeError, "float64"),
        ({"labels": [True, False]}, TypeError, "bool"),
        ({"labels": ["a", "b"]}, TypeError, "integers"),
        ({"labels": [[0, 1]]}, ValueError, r"\(1, 2\)"),
        ({"labels": []}, ValueError, r"\(0,\)"),
        ({"num_classes": 1}, ValueError, r"\[2, 2\*\*32\), not 1"),
        ({"num_classes": 3.0}, TypeError, "float"),
        ({"seed": -1}, ValueError, "-1"),
        ({"seed": 2**32}, ValueError, r"2\*\*32"),
        ({"seed": 1.0}, TypeError, "float"),
        ({"kind": "pairflip"}, ValueError, "symmetric, symmetric_excluding_true"),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(change, error, message):
    arguments = {"labels": [0, 1, 2], "ratio": 0.5, "num_classes": 3, "seed": 0} | change
    with pytest.raises(error, match=message):
        corrupt(**arguments)
