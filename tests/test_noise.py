"""What corrupt() promises, against rebuilds from NumPy's generator and plain counting."""

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2.data import Split
from mcr2.noise import NOISES, Noise, corrupt, parse_noise

CIFAR10_LABELS = Path(__file__).parents[2] / "shared/data/cifar10-train-labels.npy"

labels_and_classes = st.integers(2, 7).flatmap(
    lambda K: st.tuples(st.lists(st.integers(0, K - 1), min_size=1, max_size=80), st.just(K))
)
ratios = st.floats(0, 1)
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(sorted(kind for kind in NOISES if NOISES[kind].uniform))


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


@given(labels_and_classes, ratios, ratios, seeds, kinds | st.just("pair_flip"))
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
def test_counts_and_hash_say_what_happened(drawn, ratio, seed, kind):
    labels, K = drawn
    noise = corrupt(labels, ratio, num_classes=K, seed=seed, kind=kind)
    after = noise.labels.tolist()
    assert len(set(noise.indices.tolist())) == len(noise.indices) == int(len(labels) * ratio)
    assert noise.wrong.tolist() == [a != b for a, b in zip(labels, after, strict=True)]
    assert set(noise.wrong.nonzero().flatten().tolist()) <= set(noise.indices.tolist())
    assert noise.hash == hashlib.sha256(np.array(after, dtype="<i8").tobytes()).hexdigest()


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


# -------------------------------------------------------------------------- labels not known clean


def split(labels, clean_labels):
    n = len(labels)
    labels = [None if y is None else torch.as_tensor(y) for y in (labels, clean_labels)]
    return Split(torch.zeros(n, 1, 2, 2, dtype=torch.uint8), *labels)


@given(labels_and_classes, ratios, seeds, kinds, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_wrong_and_transition_are_against_the_truth(drawn, ratio, seed, kind, random):
    truth, K = drawn
    given = [random.randrange(K) for _ in truth]
    noise = parse_noise(kind, ratio).apply(split(given, truth), num_classes=K, seed=seed)
    after = noise.labels.tolist()
    assert noise.truth.tolist() == truth
    assert noise.wrong.tolist() == [a != b for a, b in zip(truth, after, strict=True)]
    for i in range(K):
        became = [b for a, b in zip(truth, after, strict=True) if a == i]
        row = [became.count(j) / len(became) if became else float(i == j) for j in range(K)]
        assert noise.transition[i].tolist() == pytest.approx(row)
    kept = sorted(set(range(len(truth))) - set(noise.indices.tolist()))
    assert [after[i] for i in kept] == [given[i] for i in kept]
    if kind == "symmetric_excluding_true":
        assert noise.wrong[noise.indices].all()


@given(labels_and_classes, ratios, seeds, kinds)
@settings(deadline=None)
def test_an_unknown_truth_stays_unknown_and_changes_no_draw(drawn, ratio, seed, kind):
    labels, K = drawn
    clean = corrupt(labels, ratio, num_classes=K, seed=seed, kind=kind)
    noise = parse_noise(kind, ratio).apply(split(labels, None), num_classes=K, seed=seed)
    assert noise.truth is noise.wrong is None
    assert noise.hash == clean.hash
    assert torch.equal(noise.transition, clean.transition)
    assert "an unknown number wrong" in repr(noise)


# ------------------------------------------------------------------------------------ descriptions


def test_a_noise_is_a_frozen_description():
    noise = parse_noise("symmetric", np.float32(0.5))
    assert noise == NOISES["symmetric"](0.5)
    assert len({noise, parse_noise("symmetric", 0.5), parse_noise("symmetric", 0.25)}) == 2
    assert corrupt([0, 1] * 4, 0.5, num_classes=2, seed=0).noise == noise
    with pytest.raises(AttributeError):
        noise.ratio = 0.1


@dataclass(frozen=True)
class Dark(Noise):
    """Images below a brightness become the class of the argument."""

    name: str

    def _choose(self, rs, given):
        return np.flatnonzero(given.images.float().mean((1, 2, 3)).numpy() < 100)

    def _redraw(self, rs, given, indices):
        return np.full(len(indices), int(self.name))


def test_a_kind_may_take_an_argument_and_look_at_images(monkeypatch):
    monkeypatch.setitem(NOISES, "dark", Dark)
    given = Split(torch.tensor([0, 200, 0, 200], dtype=torch.uint8).view(4, 1, 1, 1), LABELS)
    noise = parse_noise("dark:2", 0.3)
    assert noise == Dark(0.3, "2")
    assert noise.apply(given, num_classes=3, seed=0).labels.tolist() == [2, 1, 2, 0]
    with pytest.raises(ValueError, match="noise 'dark' must be written 'dark:NAME'"):
        parse_noise("dark", 0.3)
    with pytest.raises(ValueError, match="noise 'symmetric:2' must be written 'symmetric'"):
        parse_noise("symmetric:2", 0.3)


LABELS = torch.tensor([0, 1, 2, 0])


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
        ({"ratio": 1.5}, ValueError, "ratio is 1.5; it must be between 0 and 1"),
        ({"ratio": float("nan")}, ValueError, "nan"),
        ({"ratio": "0.5"}, TypeError, "ratio must be a number, not str"),
        ({"ratio": True}, TypeError, "bool"),
        ({"labels": [0, 1, 3]}, ValueError, "with 3 classes they must be in 0 ... 2"),
        ({"labels": [0.0, 1.0]}, TypeError, "labels must be integers, .* list"),
        ({"labels": [[0, 1]]}, ValueError, r"\(1, 2\)"),
        ({"labels": np.array([], int)}, ValueError, r"\(0,\)"),
        ({"num_classes": 1}, ValueError, "num_classes is 1; it must be at least 2"),
        ({"num_classes": 3.0}, TypeError, "float"),
        ({"seed": -1}, ValueError, "-1"),
        ({"seed": 2**32}, ValueError, "seed is 4294967296"),
        ({"kind": "pairflip"}, ValueError, "unknown noise .* symmetric, symmetric_excluding_true"),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(change, error, message):
    arguments = {"labels": [0, 1, 2], "ratio": 0.5, "num_classes": 3, "seed": 0} | change
    with pytest.raises(error, match=message):
        corrupt(**arguments)
