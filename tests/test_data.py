"""Splits, batches and readers, against plain loops and small files in each format's real layout."""

import gzip
import hashlib
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2 import data
from mcr2.data import (
    DATASETS,
    Augmentation,
    Dataset,
    Split,
    availability,
    batches,
    load_dataset,
    num_batches,
    stratified_subset,
    to_float,
)

ROOT = Path(__file__).parents[1]
CIFAR_SUBSET = ROOT.parent / "shared/data/cifar10-12k.npz"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def random_split(n=30, channels=3, height=6, width=5, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = (n, channels, height, width)
    # No zeros, so that padding can be told from pixels.
    images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=g)
    labels = torch.randint(0, classes, (n,), generator=g)
    return Split(images, labels, labels.flip(0))


@pytest.fixture
def no_roots(tmp_path, monkeypatch):
    """A machine on which nothing is found, and from which nothing is reached."""
    monkeypatch.delenv("MCR2_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, source in DATASETS.items():
        monkeypatch.setitem(DATASETS, name, data.replace(source, roots=()))

    def refuse(*_, **__):
        raise URLError("no network\nin tests")

    for name in ("FashionMNIST", "CIFAR10"):
        monkeypatch.setattr(f"torchvision.datasets.{name}.download", refuse)
    return tmp_path


# ------------------------------------------------------------------------------------------ splits


def test_selecting_keeps_images_labels_and_clean_labels_together():
    split = random_split()
    for indices in ([7, 0, 7], np.array([7, 0, 7]), torch.tensor([7, 0, 7], dtype=torch.int32)):
        part = split.select(indices)
        assert torch.equal(part.images, split.images[[7, 0, 7]])
        assert torch.equal(part.labels, split.labels[[7, 0, 7]])
        assert torch.equal(part.clean_labels, split.clean_labels[[7, 0, 7]])
    assert len(split.select([])) == 0


def test_relabelling_shares_the_images_and_leaves_the_split_alone():
    split = random_split()
    other = split.relabelled(torch.zeros(30, dtype=torch.int64), split.labels)
    assert other.images is split.images
    assert torch.equal(other.clean_labels, split.labels)
    assert not torch.equal(split.labels, other.labels)
    assert other.relabelled(split.labels, None).clean_labels is None


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
        ((IMAGES.float(), LABELS), TypeError, "images must be a tensor of torch.uint8"),
        ((IMAGES.numpy(), LABELS), TypeError, "ndarray"),
        ((IMAGES[0], LABELS), ValueError, r"\(N, C, H, W\), not \(1, 2, 2\)"),
        ((IMAGES[:, :, :0], LABELS), ValueError, "no pixels"),
        ((IMAGES, LABELS.int()), TypeError, "labels must be a tensor of torch.int64"),
        ((IMAGES, LABELS[:2]), ValueError, "3 images, but 2 labels"),
        ((IMAGES, LABELS[:, None]), ValueError, r"\(N,\)"),
        ((IMAGES, LABELS - 1), ValueError, "one is -1"),
        ((IMAGES, LABELS.to("meta")), ValueError, "labels on meta"),
        ((IMAGES, LABELS, LABELS - 1), ValueError, "clean_labels must not be negative"),
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
        (torch.ones(30, dtype=torch.bool), TypeError),
    ],
)
def test_selecting_refuses_what_is_no_index(indices, error):
    with pytest.raises(error, match="indices"):
        random_split().select(indices)


def test_a_dataset_refuses_splits_that_do_not_fit():
    split = random_split()
    kwargs = {"name": "x", "flip": False, "shift": 0, "source": ""}
    with pytest.raises(ValueError, match=r"\[0, 2\), but one is 3"):
        Dataset(train=split, test=split, classes=("a", "b"), **kwargs)
    with pytest.raises(ValueError, match="no images"):
        Dataset(train=split, test=split.select([]), classes=tuple("abcd"), **kwargs)
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
        split.relabelled(split.labels.roll(1), split.clean_labels),
        split.relabelled(split.labels, None),
        Split(split.images.reshape(30, 3, 5, 6), split.labels, split.clean_labels),
    ]
    hashes = {base}
    for train in changed[:3]:
        hashes.add(make(train).content_hash())
    swapped = changed[3]
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


@pytest.mark.parametrize("size, error", [(0, ValueError), (9, ValueError), (1438, ValueError)])
def test_an_impossible_subset_is_refused(size, error):
    with pytest.raises(error, match="subset must"):
        load_dataset("digits", subset=size)
    with pytest.raises(TypeError, match="subset must be an integer, not float"):
        load_dataset("digits", subset=100.0)


def test_a_subset_changes_training_images_only():
    whole, part = load_dataset("digits"), load_dataset("digits", subset=200, subset_seed=3)
    assert torch.bincount(part.train.labels).tolist() == [20] * 10
    assert torch.equal(part.test.images, whole.test.images)
    index = stratified_subset(whole.train.labels, 200, 3)
    assert torch.equal(part.train.images, whole.train.images[index])


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
    assert epoch_of(random_split().select([]), 5) == []


def test_the_order_follows_from_sampling_seed_and_epoch_alone():
    order = lambda **kw: torch.cat([b.indices for b in epoch_of(random_split(), 7, **kw)])  # noqa: E731
    base = order()
    assert torch.equal(order(augmentation_seed=5, augmentation=Augmentation(2, True)), base)
    torch.manual_seed(123)
    assert torch.equal(order(), base)
    others = [order(sampling_seed=1), order(epoch=1), order(sampling_seed=1, epoch=1)]
    assert len({tuple(o.tolist()) for o in [base, *others]}) == 4
    assert order(shuffle=False, epoch=3).tolist() == list(range(30))


def test_drawing_batches_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    epoch_of(random_split(), 7, augmentation=Augmentation(1, True))
    assert torch.equal(torch.get_rng_state(), state)


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
    with pytest.raises(ValueError, match="shift must be at least 0, not -1"):
        Augmentation(-1)
    with pytest.raises(TypeError, match="shift"):
        Augmentation(1.5)
    with pytest.raises(TypeError, match="flip"):
        Augmentation(1, 1)


# --------------------------------------------------------------------------------- digits and names


def test_digits_are_scikit_learns_split_1437_to_360_with_every_class_in_both():
    from sklearn.datasets import load_digits

    digits, original = load_dataset("digits"), load_digits()
    assert digits.train.images.shape == (1437, 1, 8, 8)
    assert digits.test.images.shape == (360, 1, 8, 8)
    # The same images, each with its label, in some order.
    pairs = lambda images, labels: sorted(  # noqa: E731
        zip(map(bytes, images), labels.tolist(), strict=True)
    )
    scaled = np.array([[round(v * 255 / 16) for v in image] for image in original.data], np.uint8)
    ours = torch.cat([digits.train.images, digits.test.images]).flatten(1).numpy()
    assert pairs(ours, torch.cat([digits.train.labels, digits.test.labels])) == pairs(
        scaled, original.target
    )
    shares = np.bincount(original.target) * 360 / 1797
    assert (abs(torch.bincount(digits.test.labels).numpy() - shares) < 1).all()
    assert digits.num_classes == 10
    assert torch.equal(digits.train.clean_labels, digits.train.labels)
    assert (digits.flip, digits.shift, digits.image_size) == (False, 1, (8, 8))
    assert digits.content_hash() == load_dataset("digits").content_hash()


def test_digits_and_npz_need_no_torchvision(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('built for\\nanother torch')")
    script = (
        "from mcr2.data import availability, load_dataset; load_dataset('digits'); availability()\n"
        "try: load_dataset('cifar10', data_root='.')\n"
        "except FileNotFoundError as error: print(error)"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "torchvision cannot be imported" in done.stdout
    assert done.stdout.count("\n") == 1


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'mnits'.*digits, fashion_mnist, cifar10.*npz"):
        load_dataset("mnits")


# ----------------------------------------------------------------------------------- idx files


def idx(array, magic=None):
    header = bytes((0, 0, 8, array.ndim)) if magic is None else magic
    return header + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def fashion_files(seed=0, n=(20, 10)):
    rng = np.random.default_rng(seed)
    files = {}
    for prefix, count in zip(("train", "t10k"), n, strict=True):
        files[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28))
        files[f"{prefix}-labels-idx1-ubyte"] = np.arange(count) % 10
    return files


def write_fashion(folder, files, compress):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in files.items():
        raw = idx(array)
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(raw, 1) if compress else raw)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("folder", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_idx_files_are_read_from_every_layout(no_roots, folder, compress):
    files = fashion_files()
    write_fashion(no_roots / "here" / folder, files, compress)
    found = load_dataset("fashion_mnist", data_root=no_roots / "here")
    assert np.array_equal(found.train.images[:, 0], files["train-images-idx3-ubyte"])
    assert np.array_equal(found.train.labels, files["train-labels-idx1-ubyte"])
    assert np.array_equal(found.test.images[:, 0], files["t10k-images-idx3-ubyte"])
    assert np.array_equal(found.test.labels, files["t10k-labels-idx1-ubyte"])
    assert torch.equal(found.train.clean_labels, found.train.labels)
    assert found.source == str(no_roots / "here" / folder)
    assert (found.flip, found.shift, found.in_channels, found.num_classes) == (True, 2, 1, 10)
    by_name = {a.name: a for a in availability(no_roots / "here")}
    assert by_name["fashion_mnist"].found == found.source


def test_roots_are_searched_from_the_most_to_the_least_specific(no_roots, monkeypatch):
    given, env, cache, package = (no_roots / n for n in ("given", "env", "cache/mcr2", "package"))
    monkeypatch.setenv("MCR2_DATA", str(env))
    fashion = DATASETS["fashion_mnist"]
    monkeypatch.setitem(
        DATASETS, "fashion_mnist", data.replace(fashion, roots=(str(package),), folders=(".",))
    )
    for root in (package, cache, env, given):
        write_fashion(root, fashion_files(), compress=False)
        assert load_dataset("fashion_mnist", data_root=given).source == str(root)
    looked = {a.name: a.looked for a in availability(given)}["fashion_mnist"]
    assert looked == tuple(map(str, (given, env, cache, package)))


def test_a_folder_with_some_of_the_files_is_passed_over(no_roots):
    write_fashion(no_roots / "a/fashion-mnist", dict([*fashion_files().items()][:3]), False)
    write_fashion(no_roots / "a", fashion_files(), False)
    assert load_dataset("fashion_mnist", data_root=no_roots / "a").source == str(no_roots / "a")


IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "file, spoil, message",
    [
        (IMAGES_FILE, lambda raw: raw[:-1], r"header says \(20, 28, 28\), 15680.*15679 follow"),
        (IMAGES_FILE, lambda raw: raw + b"x", "15681 follow"),
        (IMAGES_FILE, lambda raw: raw[:9], "truncated, 9 bytes"),
        (IMAGES_FILE, lambda raw: b"", "truncated, 0 bytes"),
        (IMAGES_FILE, lambda raw: b"\x00\x00\x0d\x03" + raw[4:], "00000d03, not with 00000803"),
        (IMAGES_FILE, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "header says"),
        (IMAGES_FILE, lambda raw: idx(np.zeros((20, 5, 5))), r"28×28, not \(5, 5\)"),
        (IMAGES_FILE, lambda raw: idx(np.zeros((0, 28, 28))), "20 labels for the 0 images"),
        (LABELS_FILE, lambda raw: idx(np.zeros(19)), "19 labels for the 20 images"),
        (LABELS_FILE, lambda raw: idx(np.full(20, 10)), r"\[0, 10\), but one is 10"),
        (LABELS_FILE, lambda raw: idx(np.zeros((20, 1))), "00000802, not with 00000801"),
    ],
)
def test_a_malformed_idx_file_is_named_with_its_defect(no_roots, file, spoil, message):
    write_fashion(no_roots, fashion_files(), compress=False)
    path = no_roots / file
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{re.escape(str(path.parent))}.*{message}") as caught:
        load_dataset("fashion_mnist", data_root=no_roots)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spoil", [lambda gz: gz[:-30], lambda gz: b"no gzip", lambda gz: gz[:15]])
def test_a_damaged_gz_is_named(no_roots, spoil):
    write_fashion(no_roots, fashion_files(), compress=True)
    path = no_roots / f"{IMAGES_FILE}.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: cannot be read"):
        load_dataset("fashion_mnist", data_root=no_roots)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_debians_fashion_mnist_is_found_and_whole(tmp_path, monkeypatch):
    monkeypatch.delenv("MCR2_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fashion = load_dataset("fashion_mnist", download=False)
    assert fashion.source == str(DEBIAN)
    assert torch.bincount(fashion.train.labels).tolist() == [6000] * 10
    assert torch.bincount(fashion.test.labels).tolist() == [1000] * 10
    assert fashion.train.images.shape == (60000, 1, 28, 28)


# -------------------------------------------------------------------------- downloads, and none


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_offline_one_line_says_what_was_sought_where_and_what_to_do(no_roots, name):
    root = no_roots / "given"
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset(name, data_root=root)
    message = str(caught.value)
    for part in (name, str(root), str(no_roots / "cache/mcr2"), DATASETS[name].files[0]):
        assert part in message
    for part in ("no network in tests", "--data-root", "MCR2_DATA", DATASETS[name].advice):
        assert part in message
    assert "\n" not in message
    assert not list(root.iterdir())  # nothing half-made
    with pytest.raises(FileNotFoundError, match="downloading is switched off"):
        load_dataset(name, download=False)
    assert {a.name: a.found for a in availability(root)}[name] is None


def test_a_download_lands_in_the_root_and_prints_nothing_on_stdout(no_roots, monkeypatch, capsys):
    def download(self):
        print("Downloading")
        assert socket.getdefaulttimeout() == 30
        write_fashion(Path(self.raw_folder), fashion_files(), compress=False)

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", download)
    root = no_roots / "given"
    first = load_dataset("fashion_mnist", data_root=root)
    assert first.source == str(root / "FashionMNIST/raw")
    assert len(first.train) == 20
    assert capsys.readouterr().out == ""
    assert socket.getdefaulttimeout() is None
    assert [p.name for p in root.iterdir()] == ["FashionMNIST"]
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", None)  # not needed again
    assert load_dataset("fashion_mnist", data_root=root).content_hash() == first.content_hash()


def test_an_interrupted_download_leaves_nothing_behind(no_roots, monkeypatch):
    def download(self):
        write_fashion(Path(self.raw_folder), dict([*fashion_files().items()][:2]), compress=True)
        raise KeyboardInterrupt

    monkeypatch.setattr("torchvision.datasets.FashionMNIST.download", download)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("fashion_mnist", data_root=no_roots / "given")
    assert not list((no_roots / "given").iterdir())


def test_a_file_as_data_root_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="must be a folder"):
        load_dataset("fashion_mnist", data_root=tmp_path / "file")


# ------------------------------------------------------------------------------------------ cifar10


class Bomb:
    """Leaves a trace when unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def write_cifar(root, monkeypatch, n=10):
    """Files in CIFAR-10's layout, with torchvision told their checksums."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng, sums, images = np.random.default_rng(0), {}, {}
    for name in data._CIFAR10_FILES:
        if name == "batches.meta":
            content = {"label_names": [f"class {k}" for k in range(10)]}
        else:
            images[name] = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
            content = {"data": images[name], "labels": [int(k) for k in rng.permutation(10)[:n]]}
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        sums[name] = hashlib.md5(raw).hexdigest()
    listed = [[name, sums[name]] for name in data._CIFAR10_FILES[:6]]
    monkeypatch.setattr(CIFAR10, "train_list", listed[:5])
    monkeypatch.setattr(CIFAR10, "test_list", listed[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    return folder, images


def test_cifar10_is_read_in_torchvisions_layout(no_roots, monkeypatch):
    folder, images = write_cifar(no_roots, monkeypatch)
    cifar = load_dataset("cifar10", data_root=no_roots)
    # In the file an image is its red plane, then green, then blue.
    expected = np.concatenate([images[f"data_batch_{i}"] for i in range(1, 6)])
    assert np.array_equal(cifar.train.images.flatten(1), expected)
    assert np.array_equal(cifar.test.images.flatten(1), images["test_batch"])
    assert cifar.train.images.is_contiguous(memory_format=torch.channels_last)
    assert (cifar.in_channels, cifar.image_size, cifar.flip, cifar.shift) == (3, (32, 32), True, 4)
    assert cifar.classes[3] == "class 3"
    assert cifar.source == str(folder)


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_tampered_cifar10_file_is_refused_and_never_unpickled(no_roots, monkeypatch, file):
    folder, _ = write_cifar(no_roots, monkeypatch)
    (folder / file).write_bytes(pickle.dumps(Bomb(no_roots / "exploded")))
    with pytest.raises(ValueError, match=re.escape(str(folder))) as caught:
        load_dataset("cifar10", data_root=no_roots)
    assert "\n" not in str(caught.value)
    assert not (no_roots / "exploded").exists()


# ---------------------------------------------------------------------------------------------- npz


def npz_arrays(**changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 256, (12, 3, 8, 9), dtype=np.uint8),
        "y_train": np.arange(12) % 3,
        "x_test": rng.integers(0, 256, (6, 3, 8, 9), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def save_npz(path, **changes):
    np.savez(path, **npz_arrays(**changes))
    return path


def test_an_npz_is_read_as_it_is(tmp_path):
    arrays = npz_arrays()
    own = load_dataset(save_npz(tmp_path / "own.npz"))
    assert np.array_equal(own.train.images, arrays["x_train"])
    assert np.array_equal(own.test.images, arrays["x_test"])
    assert own.train.labels.tolist() == own.train.clean_labels.tolist() == [0, 1, 2] * 4
    assert (own.name, own.classes, own.flip, own.shift) == ("own.npz", ("0", "1", "2"), False, 1)
    assert own.source == str(tmp_path / "own.npz")


def test_all_layouts_of_images_mean_the_same(tmp_path):
    x = {k: v for k, v in npz_arrays().items() if k.startswith("x")}
    base = load_dataset(save_npz(tmp_path / "a.npz")).content_hash()
    last = {k: v.transpose(0, 2, 3, 1) for k, v in x.items()}
    assert load_dataset(save_npz(tmp_path / "b.npz", **last)).content_hash() == base
    grey = {k: v[:, 0] for k, v in x.items()}
    hashes = {
        load_dataset(save_npz(tmp_path / "c.npz", **variant)).content_hash()
        for variant in (
            grey,
            {k: v[:, None] for k, v in grey.items()},
            {k: v[..., None] for k, v in grey.items()},
        )
    }
    assert len(hashes) == 1


def test_clean_labels_and_class_names_are_taken_from_an_npz(tmp_path):
    clean = np.array([3, *[0, 1, 2] * 3, 1, 2], np.uint8)
    own = load_dataset(save_npz(tmp_path / "a.npz", y_train_clean=clean))
    assert own.train.clean_labels.tolist() == clean.tolist()
    assert own.train.labels.tolist() == [0, 1, 2] * 4
    assert own.num_classes == 4  # the largest label of all, the clean ones included
    named = load_dataset(save_npz(tmp_path / "b.npz", classes=np.array(["ant", "bee", "cow", "d"])))
    assert named.classes == ("ant", "bee", "cow", "d")


@pytest.mark.parametrize("side, shift", [(15, 1), (16, 2), (31, 2), (32, 4)])
def test_the_default_shift_follows_the_smaller_side(tmp_path, side, shift):
    x = {k: np.zeros((n, side, side + 9), np.uint8) for k, n in (("x_train", 12), ("x_test", 6))}
    assert load_dataset(save_npz(tmp_path / "a.npz", **x)).shift == shift


X, Y = npz_arrays()["x_train"], npz_arrays()["y_train"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_train": None}, "no array x_train; needed are"),
        ({"x_train": None, "y_test": None}, "no array x_train, y_test"),
        ({"x_train": X / 255}, "x_train has dtype float64; allowed is uint8"),
        ({"x_train": X.astype(np.int64)}, "x_train has dtype int64"),
        ({"x_train": X.reshape(12, -1)}, r"x_train has shape \(12, 216\); allowed are"),
        ({"x_train": X[:0]}, r"shape \(0, 3, 8, 9\)"),
        ({"x_train": X[:, :, :7]}, "images must have one size"),
        ({"x_train": np.array([Bomb("never"), None], object)}, "x_train is an object array"),
        ({"y_train": Y[:11]}, r"y_train has shape \(11,\); allowed is \(12,\)"),
        ({"y_train": Y[:, None]}, r"shape \(12, 1\)"),
        ({"y_train": Y.astype(float)}, "y_train has dtype float64; allowed are integers"),
        ({"y_train": Y - 1}, "y_train must not be negative, but one is -1"),
        ({"y_train": Y + 10**12}, r"y_train must lie in \[0, 12\) \(the number of training"),
        ({"y_train": Y.astype(np.uint64) + 2**63}, "y_train must fit int64"),
        ({"y_test": np.array([0, 1, 2, 0, 1, -2])}, "y_test must not be negative"),
        ({"y_train_clean": Y[1:]}, "y_train_clean has shape"),
        ({"classes": np.array(["a", "b"])}, r"\[0, 2\) \(length of classes\), but one is 2"),
        ({"classes": np.array([1, 2, 3])}, "classes has dtype int64"),
        ({"y_train": Y * 0, "y_test": Y[:6] * 0}, "at least 2 classes"),
    ],
)
def test_a_malformed_npz_is_named_with_the_array_and_what_is_allowed(tmp_path, changes, message):
    path = save_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(path)
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def flip_a_byte(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :]


def npy_bytes(_):
    import io

    np.save(stream := io.BytesIO(), X)
    return stream.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: b"not a zip",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: pickle.dumps({"x_train": X}),
        flip_a_byte,
        npy_bytes,
    ],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, spoil):
    path = save_npz(tmp_path / "bad.npz")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_an_npz_whose_header_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (900000000000000, 3, 8, 9), }\n"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            raw = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
            file.writestr(f"{name}.npy", raw)
    with pytest.raises(ValueError, match="array x_train"):
        load_dataset(path)


def test_a_missing_or_unreadable_npz_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.npz"))):
        load_dataset(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        load_dataset(tmp_path / "folder.npz")


@pytest.mark.skipif(not CIFAR_SUBSET.exists(), reason="needs ../shared/data (a CIFAR-10 subset)")
def test_the_cifar10_subset_loads_and_is_balanced():
    cifar = load_dataset(CIFAR_SUBSET, subset=500)
    assert torch.bincount(cifar.train.labels).tolist() == [50] * 10
    assert torch.bincount(cifar.test.labels).tolist() == [200] * 10
    assert (cifar.in_channels, cifar.image_size, cifar.num_classes) == (3, (32, 32), 10)
