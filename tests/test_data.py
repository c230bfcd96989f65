"""Splits, subsets and batches, against plain loops."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2.data import (
    Augmentation,
    Dataset,
    Split,
    batches,
    load_dataset,
    num_batches,
    step_imbalance,
    stratified_subset,
    to_float,
)

NONE = torch.tensor([], dtype=torch.int64)


def random_split(n=30, channels=3, height=6, width=5, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (n, channels, height, width)
    # No zeros, so that padding can be told from pixels.
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=g)
    labels = torch.randint(0, classes, (n,), generator=g)
    return Split(images, labels, labels.flip(0))


# ------------------------------------------------------------------------------------------ splits


def test_selecting_keeps_images_labels_and_clean_labels_together():
    split = random_split()
    part = split.select(torch.tensor([7, 0, 7], dtype=torch.int32))
    assert torch.equal(part.images, split.images[[7, 0, 7]])
    assert torch.equal(part.labels, split.labels[[7, 0, 7]])
    assert torch.equal(part.clean_labels, split.clean_labels[[7, 0, 7]])
    assert len(split.select(NONE)) == 0
    assert repr(split) == "Split(30 images of 3×6×5 on cpu, 20 labelled wrong)"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_are_those_of_the_cpu():
    split, kwargs = random_split(), {"augmentation": Augmentation(2, True), "epoch": 3}
    there = split.to("cuda")
    assert there.labels.device == there.clean_labels.device == there.device
    for a, b in zip(epoch_of(split, 7, **kwargs), epoch_of(there, 7, **kwargs), strict=True):
        assert torch.equal(a.indices, b.indices.cpu())
        assert torch.equal(a.labels, b.labels.cpu())
        # Not bit for bit: a GPU may divide by multiplying with the inverse.
        assert torch.allclose(a.images, b.images.cpu(), rtol=1e-6)


IMAGES, LABELS = torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((IMAGES.float(), LABELS), TypeError, "images must be a uint8 tensor, not a torch.float32"),
        ((IMAGES.numpy(), LABELS), TypeError, "not a uint8 array"),
        ((IMAGES[0], LABELS), ValueError, r"shape \(1, 2, 2\); it must be \(N, C, H, W\)"),
        ((IMAGES[:, :, :0], LABELS), ValueError, r"shape \(3, 1, 0, 2\)"),
        ((IMAGES, LABELS.float()), TypeError, "labels must be integers"),
        ((IMAGES, LABELS[:2]), ValueError, r"labels has shape \(2,\); it must be \(3,\)"),
        ((IMAGES, LABELS - 1), ValueError, "labels run from -1 to 1; they must not be negative"),
        ((IMAGES.to("meta"), LABELS), ValueError, "images lie on meta, labels on cpu"),
        (
            (IMAGES, LABELS, LABELS - 2),
            ValueError,
            "clean_labels run from -2 to 0",
        ),
    ],
)
def test_a_split_refuses_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        Split(*arguments)


@pytest.mark.parametrize(
    "indices, error",
    [
        ([30], ValueError),
        ([-1], ValueError),
        ([[0]], ValueError),
        ([0.0], TypeError),
        ([True] * 30, TypeError),
    ],
)
def test_selecting_refuses_what_is_no_index(indices, error):
    with pytest.raises(error, match="indices"):
        random_split().select(torch.tensor(indices))


def test_a_dataset_refuses_splits_that_do_not_fit():
    split = random_split()
    kwargs = {"name": "x", "flip": False, "shift": 0, "source": ""}
    with pytest.raises(
        ValueError, match="x: training labels run from 0 to 3; with 2 classes they must"
    ):
        Dataset(train=split, test=split, classes=("a", "b"), **kwargs)
    with pytest.raises(ValueError, match="no images"):
        Dataset(train=split, test=split.select(NONE), classes=tuple("abcd"), **kwargs)
    with pytest.raises(ValueError, match="shape"):
        Dataset(train=split, test=random_split(height=7), classes=tuple("abcd"), **kwargs)


def test_the_content_hash_sees_every_pixel_and_label_but_not_the_layout():
    split = random_split()
    make = lambda train: Dataset("x", train, split, tuple("abcd"), False, 0, "")  # noqa: E731
    base = make(split).content_hash()
    other_layout = split.images.to(memory_format=torch.channels_last)
    assert make(Split(other_layout, split.labels, split.clean_labels)).content_hash() == base
    pixel = split.images.clone()
    pixel[3, 1, 2, 2] += 1
    changed = [
        Split(pixel, split.labels, split.clean_labels),
        replace(split, labels=split.labels.roll(1)),
        replace(split, clean_labels=None),
    ]
    hashes = {base, *(make(train).content_hash() for train in changed)}
    swapped = Split(split.images.reshape(30, 3, 5, 6), split.labels, split.clean_labels)
    hashes.add(Dataset("x", swapped, swapped, tuple("abcd"), False, 0, "").content_hash())
    assert len(hashes) == 5


# ------------------------------------------------------------------------------------------ subset


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.data())
@settings(deadline=None)
def test_a_stratified_subset_is_proportional_to_within_one(labels, draw):
    counts = Counter(labels)
    size = draw.draw(st.integers(len(counts), len(labels)))
    seed = draw.draw(st.integers(0, 2**63))
    chosen = stratified_subset(torch.tensor(labels), size, seed).tolist()
    assert len(chosen) == size
    assert chosen == sorted(set(chosen))
    got = Counter(labels[i] for i in chosen)
    quota = {k: size * n / len(labels) for k, n in counts.items()}
    assert all(1 <= got[k] <= n for k, n in counts.items())
    if min(quota.values()) >= 1:  # nobody had to give up an image for a rare class
        assert all(abs(got[k] - q) < 1 for k, q in quota.items())
    assert chosen == stratified_subset(torch.tensor(labels), size, seed).tolist()


def test_subsets_differ_between_seeds_and_leave_the_global_generators_alone():
    labels = torch.arange(1000) % 10
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    one, two = (stratified_subset(labels, 100, seed) for seed in (0, 1))
    assert not torch.equal(one, two)
    assert np.array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


@pytest.mark.parametrize("size", [0, 9, 1438])
def test_an_impossible_subset_is_refused(size):
    with pytest.raises(ValueError, match=f"subset is {size}; it must be between 10 and 1437"):
        load_dataset("digits", subset=size)
    with pytest.raises(TypeError, match="subset must be an integer, not float"):
        load_dataset("digits", subset=100.0)


def test_a_subset_changes_training_images_only():
    whole, part = load_dataset("digits"), load_dataset("digits", subset=200, subset_seed=3)
    assert torch.bincount(part.train.labels).tolist() == [20] * 10
    assert torch.equal(part.test.images, whole.test.images)
    index = stratified_subset(whole.train.labels, 200, 3)
    assert torch.equal(part.train.images, whole.train.images[index])


# ----------------------------------------------------------------------------------------- classes


@given(kept=st.permutations(range(4)).map(lambda order: order[:3]), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=20)
def test_classes_are_kept_in_their_order_with_their_images(kept, seed):
    train, test = random_split(seed=seed), random_split(n=20, seed=seed + 10)
    whole = Dataset("x", train, test, tuple("abcd"), False, 0, "")
    part = whole.of_classes(kept)
    assert part.classes == tuple("abcd"[k] for k in kept)
    for before, after in ((train, part.train), (test, part.test)):
        pairs = zip(before.labels.tolist(), before.clean_labels.tolist(), strict=True)
        rows = [i for i, (given, true) in enumerate(pairs) if given in kept and true in kept]
        assert torch.equal(after.images, before.images[rows])
        assert [kept[k] for k in after.labels] == before.labels[rows].tolist()
        assert [kept[k] for k in after.clean_labels] == before.clean_labels[rows].tolist()


def test_the_first_classes_are_the_same_as_those_named_and_a_subset_is_of_them():
    first = load_dataset("digits", classes=4)
    assert first.content_hash() == load_dataset("digits", classes=(0, 1, 2, 3)).content_hash()
    assert first.content_hash() != load_dataset("digits", classes=(1, 0, 2, 3)).content_hash()
    part = load_dataset("digits", classes=(9, 2), subset=50)
    assert part.train.labels.bincount().tolist() == [25, 25]
    assert load_dataset("digits", classes=4, labels_are="noisy").train.clean_labels is None


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80), st.floats(1, 200), st.floats(1, 200),
    st.integers(0, 99),
)  # fmt: skip
@settings(deadline=None)
def test_imbalance_has_exact_counts_and_is_nested(labels, ratio, other, seed):
    small, large = sorted([ratio, other])
    few, more = (step_imbalance(torch.tensor(labels), 5, r, seed).tolist() for r in (large, small))
    assert set(few) <= set(more)
    assert few == sorted(set(few))
    counts = Counter(labels)
    got = Counter(labels[i] for i in few)
    for k, n in counts.items():  # classes 3 and 4 are the later half of five
        assert got[k] == (n if k < 3 else max(1, round(n / large)))


def test_an_imbalanced_training_set_leaves_the_test_set_alone():
    whole, uneven = load_dataset("digits"), load_dataset("digits", imbalance=10)
    n = whole.train.labels.bincount().tolist()
    assert uneven.train.labels.bincount().tolist() == n[:5] + [round(k / 10) for k in n[5:]]
    assert torch.equal(uneven.test.labels, whole.test.labels)
    again = load_dataset("digits", imbalance=10, subset_seed=1)
    assert again.content_hash() != uneven.content_hash()


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"classes": 11}, ValueError, "classes is 11; it must be between 2 and 10"),
        ({"classes": 1}, ValueError, "classes is 1; it must be between 2 and 10"),
        ({"classes": 2.0}, TypeError, "classes must be an integer, not float"),
        ({"classes": (0, 10)}, ValueError, "a class of digits is 10; it must be between 0 and 9"),
        ({"classes": (0, 3, 3)}, ValueError, "class 3 of digits is named twice"),
        ({"classes": (3,)}, ValueError, "digits: 1 classes; at least 2 are needed"),
        ({"classes": ("3", "4")}, TypeError, "a class of digits must be an integer, not str"),
        ({"imbalance": 0.5}, ValueError, "imbalance is 0.5; it must be at least 1"),
    ],
)
def test_impossible_classes_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        load_dataset("digits", **wrong)


# ----------------------------------------------------------------------------------------- batches


def epoch_of(split, batch_size, **kwargs):
    seeds = {"epoch": 0, "sampling_seed": 0, "augmentation_seed": 0} | kwargs
    return list(batches(split, batch_size, **seeds))


def by_sample(epoch):
    """The epoch's images in the order of the split."""
    indices = torch.cat([b.indices for b in epoch])
    return torch.cat([b.images for b in epoch])[indices.argsort()]


@pytest.mark.parametrize("n, size", [(30, 7), (30, 30), (30, 100), (1, 5), (31, 1), (1437, 128)])
def test_an_epoch_visits_every_sample_once_in_batches_of_equal_size(n, size):
    split = random_split(n)
    epoch = epoch_of(split, size)
    sizes = [len(b.labels) for b in epoch]
    assert len(epoch) == num_batches(n, size) == int(np.ceil(n / size))
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert sorted(torch.cat([b.indices for b in epoch]).tolist()) == list(range(n))
    for b in epoch:
        assert torch.equal(b.labels, split.labels[b.indices])


def test_without_augmentation_images_are_x_over_255_in_channels_last():
    for layout in (torch.contiguous_format, torch.channels_last):
        split = random_split()
        split = Split(split.images.contiguous(memory_format=layout), split.labels)
        for b in epoch_of(split, 7):
            assert b.images.dtype == torch.float32
            assert b.images.is_contiguous(memory_format=torch.channels_last)
            assert torch.equal(b.images, split.images[b.indices].float() / 255)
            assert torch.equal(b.images, to_float(split.images[b.indices]))
    assert to_float(split.images).is_contiguous(memory_format=torch.channels_last)


def test_an_empty_split_has_no_batches():
    assert epoch_of(random_split().select(NONE), 5) == []


def test_the_order_follows_from_sampling_seed_and_epoch_alone():
    order = lambda **kw: torch.cat([b.indices for b in epoch_of(random_split(), 7, **kw)])  # noqa: E731
    base = order()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    assert torch.equal(order(augmentation_seed=5, augmentation=Augmentation(2, True)), base)
    assert torch.equal(torch.get_rng_state(), state)
    others = [order(sampling_seed=1), order(epoch=1), order(sampling_seed=1, epoch=1)]
    assert len({tuple(o.tolist()) for o in [base, *others]}) == 4
    assert order(shuffle=False, epoch=3).tolist() == list(range(30))


def candidates(image, shift):
    """All shifted and mirrored versions of one (C, H, W) image, pixel by pixel."""
    _, H, W = image.shape
    made = {}
    for flip in (False, True):
        for top in range(2 * shift + 1):
            for left in range(2 * shift + 1):
                out = np.zeros_like(image)
                for i in range(H):
                    for j in range(W):
                        row = top + i - shift
                        column = left + (W - 1 - j if flip else j) - shift
                        if 0 <= row < H and 0 <= column < W:
                            out[:, i, j] = image[:, row, column]
                made[top, left, flip] = out
    return made


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shift, flip", [(2, True), (2, False), (0, True), (1, False), (7, True)])
def test_every_augmented_image_is_a_shifted_and_perhaps_mirrored_original(channels, shift, flip):
    split = random_split(12, channels=channels)
    for b in epoch_of(split, 5, augmentation=Augmentation(shift, flip)):
        assert b.images.is_contiguous(memory_format=torch.channels_last)
        for image, index in zip((b.images * 255).round().byte(), b.indices, strict=True):
            made = candidates(split.images[index].numpy(), shift)
            matches = [key for key, out in made.items() if np.array_equal(out, image.numpy())]
            assert matches
            assert flip or any(not mirrored for _, _, mirrored in matches)


def test_shifts_and_flips_are_uniform_and_independent():
    # One bright pixel in the middle of an asymmetric image shows the offset and the flip.
    n, shift = 36_000, 1
    images = torch.zeros(n, 1, 7, 7, dtype=torch.uint8)
    images[:, 0, 3, 3], images[:, 0, 3, 4] = 255, 100
    split = Split(images, torch.zeros(n, dtype=torch.int64))
    out = by_sample(epoch_of(split, 4000, augmentation=Augmentation(shift, True)))
    bright = (out == 1).flatten(1).long().argmax(1)
    dim = ((out > 0.3) & (out < 0.5)).flatten(1).long().argmax(1)
    cells = Counter(zip((bright // 7).tolist(), (bright % 7).tolist(), (dim - bright).tolist()))  # noqa: B905
    assert len(cells) == 9 * 2
    expected = n / 18
    chi2 = sum((c - expected) ** 2 / expected for c in cells.values())
    assert chi2 < 40.8  # the 0.999 quantile at 17 degrees of freedom


def test_an_augmented_image_depends_on_seed_epoch_and_sample_only():
    split, augmentation = random_split(), Augmentation(2, True)
    get = lambda size=7, **kw: by_sample(  # noqa: E731
        epoch_of(split, size, augmentation=augmentation, **kw)
    )
    base = get()
    assert torch.equal(get(size=30), base)
    assert torch.equal(get(sampling_seed=9), base)
    assert torch.equal(get(shuffle=False), base)
    assert not torch.equal(get(augmentation_seed=1), base)
    assert not torch.equal(get(epoch=1), base)


def test_the_shifts_are_the_same_with_and_without_flips():
    split = random_split()
    plain, flipped = (
        by_sample(epoch_of(split, 7, augmentation=Augmentation(2, flip))) for flip in (False, True)
    )
    same = (plain == flipped).flatten(1).all(1)
    assert 5 < int(same.sum()) < 25  # about half are mirrored, the others untouched


@pytest.mark.parametrize(
    "change, error",
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 2.0}, TypeError),
        ({"epoch": -1}, ValueError),
        ({"sampling_seed": -1}, ValueError),
        ({"augmentation_seed": None}, TypeError),
    ],
)
def test_batches_refuse_bad_arguments_at_once(change, error):
    arguments = {"batch_size": 4, "epoch": 0, "sampling_seed": 0, "augmentation_seed": 0} | change
    with pytest.raises(error, match=next(iter(change))):
        batches(random_split(), **arguments)


def test_an_augmentation_refuses_bad_arguments():
    with pytest.raises(ValueError, match="shift is -1; it must be at least 0"):
        Augmentation(-1)
    with pytest.raises(TypeError, match="shift"):
        Augmentation(1.5)
    with pytest.raises(TypeError, match="flip"):
        Augmentation(1, 1)
