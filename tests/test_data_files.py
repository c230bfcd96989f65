"""Named data sets and .npz files, from small files in each format's real layout made here."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from mcr2 import files
from mcr2.data import DATASETS, availability, load_dataset, sources
from mcr2.data.readers import CIFAR10_FILES

ROOT = Path(__file__).parents[1]
CIFAR_SUBSET = ROOT.parent / "shared/data/cifar10-12k.npz"
OMNIGLOT = CIFAR_SUBSET.with_name("omniglot-small.npz")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "cifar100_coarse": "CIFAR100",
    "svhn": "SVHN",
    "stl10": "STL10",
    "omniglot": "Omniglot",
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is found or left in the user's cache."""
    monkeypatch.delenv("MCR2_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def no_roots(tmp_path, monkeypatch):
    """A machine on which nothing is found, and from which nothing is reached."""
    monkeypatch.setattr(sources, "SYSTEM_ROOT", str(tmp_path / "system"))

    def refuse(*_, **__):
        raise URLError("no network\nin tests")

    for name in TORCHVISION.values():
        monkeypatch.setattr(f"torchvision.datasets.{name}.download", refuse)
    return tmp_path


def test_every_named_data_set_is_tested_here():
    assert {"digits", *TORCHVISION} == set(DATASETS)


# --------------------------------------------------------------------------------- digits and names


def test_digits_are_scikit_learns_split_1437_to_360_with_every_class_in_both():
    from sklearn.datasets import load_digits

    digits, original = load_dataset("digits"), load_digits()
    ours = torch.cat([digits.train.images, digits.test.images]).flatten(1).numpy()
    labels = torch.cat([digits.train.labels, digits.test.labels])
    scaled = np.array([[round(v * 255 / 16) for v in image] for image in original.data], np.uint8)
    # The same images, each with its label, in some order.
    pairs = sorted(zip(map(bytes, ours), labels.tolist(), strict=True))
    assert pairs == sorted(zip(map(bytes, scaled), original.target.tolist(), strict=True))
    shares = np.bincount(original.target) * 360 / 1797
    assert (abs(torch.bincount(digits.test.labels).numpy() - shares) < 1).all()
    assert torch.equal(digits.train.clean_labels, digits.train.labels)
    assert (digits.flip, digits.shift, len(digits.train)) == (False, 1, 1437)


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
    with pytest.raises(ValueError, match=r"'mnits'.*digits, fashion_mnist,.*cifar10,.*npz.*folder"):
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
    assert (found.flip, found.shift, found.num_classes) == (True, 2, 10)
    assert str(availability(no_roots / "here")["fashion_mnist"][0]) == found.source


def test_roots_are_searched_from_the_most_to_the_least_specific(no_roots, monkeypatch):
    given, env, cache, system = (no_roots / n for n in ("given", "env", "cache/mcr2", "system"))
    monkeypatch.setenv("MCR2_DATA", str(env))
    fashion = dataclasses.replace(DATASETS["fashion_mnist"], folders=(".",))
    monkeypatch.setitem(DATASETS, "fashion_mnist", fashion)
    for root in (system, cache, env, given):
        write_fashion(root, fashion_files(), compress=False)
        assert load_dataset("fashion_mnist", data_root=given).source == str(root)
    assert availability(given)["fashion_mnist"][1] == [given, env, cache, system]


def test_a_folder_with_some_of_the_files_is_passed_over(no_roots):
    write_fashion(no_roots / "a/fashion-mnist", dict([*fashion_files().items()][:3]), False)
    write_fashion(no_roots / "a", fashion_files(), False)
    assert load_dataset("fashion_mnist", data_root=no_roots / "a").source == str(no_roots / "a")


@pytest.mark.parametrize(
    "name, folder, third_class",
    [("mnist", "MNIST/raw", "2"), ("mnist", "mnist", "2"), ("kmnist", "KMNIST/raw", "su")],
)
def test_mnist_and_kmnist_are_known_by_their_folders_names(no_roots, name, folder, third_class):
    files = fashion_files()
    write_fashion(no_roots, files, compress=False)
    with pytest.raises(FileNotFoundError):  # could be anyone's
        load_dataset(name, data_root=no_roots)
    write_fashion(no_roots / folder, files, compress=True)
    found = load_dataset(name, data_root=no_roots)
    assert np.array_equal(found.train.images[:, 0], files["train-images-idx3-ubyte"])
    assert (found.name, found.flip, found.shift, found.classes[2]) == (name, False, 2, third_class)


IMAGES_FILE, LABELS_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    "file, spoil, message",
    [
        (IMAGES_FILE, lambda raw: raw[:-1], r"header says \(20, 28, 28\), 15680.*15679 follow"),
        (IMAGES_FILE, lambda raw: raw + b"x", "more follow"),
        (IMAGES_FILE, lambda raw: raw[:9], "starts with 000008030000001400, not .* 00000803 and 3"),
        (IMAGES_FILE, lambda raw: b"", "starts with nothing, not with 00000803"),
        (IMAGES_FILE, lambda raw: b"\x00\x00\x0d\x03" + raw[4:], "00000d03.*, not with 00000803"),
        (IMAGES_FILE, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "when decoded; the limit"),
        (IMAGES_FILE, lambda raw: idx(np.zeros((20, 5, 5))), r"N×28×28, not \(20, 5, 5\)"),
        (IMAGES_FILE, lambda raw: idx(np.zeros((0, 28, 28))), r"not \(0, 28, 28\)"),
        (LABELS_FILE, lambda raw: idx(np.zeros(19)), r"shape \(19,\); it must be \(20,\)"),
        (
            LABELS_FILE,
            lambda raw: idx(np.full(20, 10)),
            "from 10 to 10; with 10 classes they must be in 0 ... 9",
        ),
        (LABELS_FILE, lambda raw: idx(np.zeros((20, 1))), "00000802.*, not with 00000801"),
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
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: "):
        load_dataset("fashion_mnist", data_root=no_roots)


def test_an_idx_header_is_bounded_before_anything_is_decompressed(no_roots):
    write_fashion(no_roots, fashion_files(), compress=True)
    path = no_roots / f"{IMAGES_FILE}.gz"
    sizes = np.array((4_000_000, 28, 28), ">u4").tobytes()
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + sizes + bytes(10**6)))
    with pytest.raises(ValueError, match=r"gz: 3,136,000,000 bytes when decoded; the limit"):
        load_dataset("fashion_mnist", data_root=no_roots)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_debians_fashion_mnist_is_found_and_whole():
    fashion = load_dataset("fashion_mnist", download=False)
    assert fashion.source == str(DEBIAN)
    assert torch.bincount(fashion.train.labels).tolist() == [6000] * 10
    assert torch.bincount(fashion.test.labels).tolist() == [1000] * 10
    assert fashion.train.images.shape == (60000, 1, 28, 28)


# -------------------------------------------------------------------------- downloads, and none


@pytest.mark.parametrize("name", TORCHVISION)
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
    assert availability(root)[name][0] is None


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


def write_cifar(folder, contents, monkeypatch, name):
    """Files in CIFAR's layout, with torchvision told their checksums."""
    published, sums = getattr(torchvision.datasets, name), {}
    folder.mkdir(parents=True)
    for file, content in contents.items():
        (folder / file).write_bytes(raw := pickle.dumps(content))
        sums[file] = hashlib.md5(raw).hexdigest()
    meta = published.meta["filename"]
    for key in ("train_list", "test_list"):
        listed = [[file, sums[file]] for file, _ in getattr(published, key)]
        monkeypatch.setattr(published, key, listed)
    monkeypatch.setattr(published, "meta", published.meta | {"md5": sums[meta]})
    return folder, contents


def write_cifar10(root, monkeypatch):
    rng = np.random.default_rng(0)
    contents = {
        name: {
            "data": rng.integers(0, 256, (10, 3072), dtype=np.uint8),
            "labels": rng.permutation(10).tolist(),
        }
        for name in CIFAR10_FILES[:6]
    }
    contents["batches.meta"] = {"label_names": [f"class {k}" for k in range(10)]}
    return write_cifar(root / "cifar-10-batches-py", contents, monkeypatch, "CIFAR10")


def write_cifar100(root, monkeypatch):
    rng = np.random.default_rng(0)
    contents = {
        name: {
            "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
            "fine_labels": (np.arange(n) % 100).tolist(),
            "coarse_labels": (np.arange(n) % 100 // 5).tolist(),
        }
        for name, n in (("train", 200), ("test", 100))
    }
    contents["meta"] = {
        f"{kind}_label_names": [f"{kind} {k}" for k in range(K)]
        for kind, K in (("fine", 100), ("coarse", 20))
    }
    return write_cifar(root / "cifar-100-python", contents, monkeypatch, "CIFAR100")


def test_cifar10_is_read_in_torchvisions_layout(no_roots, monkeypatch):
    folder, contents = write_cifar10(no_roots, monkeypatch)
    cifar = load_dataset("cifar10", data_root=no_roots)
    # In the file an image is its red plane, then green, then blue.
    expected = np.concatenate([contents[f"data_batch_{i}"]["data"] for i in range(1, 6)])
    assert np.array_equal(cifar.train.images.flatten(1), expected)
    assert np.array_equal(cifar.test.images.flatten(1), contents["test_batch"]["data"])
    assert cifar.train.images.is_contiguous(memory_format=torch.channels_last)
    assert (cifar.flip, cifar.shift) == (True, 4)
    assert cifar.classes[3] == "class 3"
    assert cifar.source == str(folder)


@pytest.mark.parametrize(
    "name, kind, K", [("cifar100", "fine", 100), ("cifar100_coarse", "coarse", 20)]
)
def test_cifar100_has_fine_and_coarse_labels(no_roots, monkeypatch, name, kind, K):
    folder, contents = write_cifar100(no_roots, monkeypatch)
    cifar = load_dataset(name, data_root=no_roots)
    assert np.array_equal(cifar.train.images.flatten(1), contents["train"]["data"])
    assert np.array_equal(cifar.test.images.flatten(1), contents["test"]["data"])
    assert cifar.train.labels.tolist() == contents["train"][f"{kind}_labels"]
    assert cifar.test.labels.tolist() == contents["test"][f"{kind}_labels"]
    assert cifar.classes == tuple(f"{kind} {k}" for k in range(K))
    assert (cifar.flip, cifar.shift, cifar.source) == (True, 4, str(folder))


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_a_malicious_cifar100_pickle_is_never_opened(no_roots, monkeypatch, file):
    folder, _ = write_cifar100(no_roots, monkeypatch)
    load_dataset("cifar100", data_root=no_roots)  # a cached copy does not vouch for other files
    (folder / file).write_bytes(pickle.dumps(Bomb(no_roots / "exploded")))
    for name in ("cifar100", "cifar100_coarse"):
        with pytest.raises(ValueError, match=re.escape(f"{folder / file}: not opened")) as caught:
            load_dataset(name, data_root=no_roots)
        assert "\n" not in str(caught.value)
    assert not (no_roots / "exploded").exists()


def test_the_bomb_of_these_tests_would_explode(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "exploded")))
    assert (tmp_path / "exploded").exists()


# ---------------------------------------------------------------------------------- SVHN and STL-10


def write_svhn(folder, monkeypatch):
    """Files as published, with torchvision told their checksums.

    X is (32, 32, 3, N) uint8, y (N, 1) uint8 from 1 to 10.
    """
    from torchvision.datasets import SVHN

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    arrays, listed = {}, {}
    for which, n in (("train", 20), ("test", 10)):
        arrays[which] = {
            "X": rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8),
            "y": (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None],
        }
        path = folder / f"{which}_32x32.mat"
        savemat(path, arrays[which], do_compression=True)
        listed[which] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", SVHN.split_list | listed)
    return arrays


@pytest.mark.parametrize("folder", ["svhn", "SVHN", "."])
def test_svhn_is_read_and_its_label_10_is_the_digit_0(no_roots, monkeypatch, folder):
    arrays = write_svhn(no_roots / folder, monkeypatch)
    svhn = load_dataset("svhn", data_root=no_roots)
    assert svhn.train.images.is_contiguous(memory_format=torch.channels_last)
    for split, which in ((svhn.train, "train"), (svhn.test, "test")):
        for i, image in enumerate(split.images.numpy()):
            assert np.array_equal(image, arrays[which]["X"][..., i].transpose(2, 0, 1))
        assert split.labels.tolist() == [y if y < 10 else 0 for y in arrays[which]["y"][:, 0]]
    assert (svhn.flip, svhn.shift, svhn.classes[0]) == (False, 2, "0")
    assert svhn.source == str(no_roots / folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1],
        lambda raw: raw[:140] + bytes([raw[140] ^ 1]) + raw[141:],
    ],
)
@pytest.mark.parametrize("file", ["train_32x32.mat", "test_32x32.mat"])
def test_a_damaged_svhn_file_never_reaches_the_parser(no_roots, monkeypatch, spoil, file):
    """SciPy's parser may crash on one, rather than raise."""
    write_svhn(no_roots, monkeypatch)
    path = no_roots / file
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(f"{path}: not opened")) as caught:
        load_dataset("svhn", data_root=no_roots)
    assert "\n" not in str(caught.value)


def write_stl10(root):
    """Files as published: three planes of 96 columns each, labels from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {}
    for which, n in (("train", 10), ("test", 5)):
        images[which] = rng.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8)
        columns = np.concatenate([plane.T.ravel() for image in images[which] for plane in image])
        columns.tofile(folder / f"{which}_X.bin")
        (np.arange(n, dtype=np.uint8) % 10 + 1).tofile(folder / f"{which}_y.bin")
    return folder, images


def test_stl10_is_read_column_by_column(no_roots):
    folder, images = write_stl10(no_roots)
    stl10 = load_dataset("stl10", data_root=no_roots)
    assert np.array_equal(stl10.train.images, images["train"])
    assert np.array_equal(stl10.test.images, images["test"])
    assert stl10.train.images.is_contiguous(memory_format=torch.channels_last)
    assert stl10.train.labels.tolist() == list(range(10))
    assert (stl10.classes[0], stl10.classes[9]) == ("airplane", "truck")
    assert (stl10.flip, stl10.shift, stl10.source) == (True, 12, str(folder))


@pytest.mark.parametrize(
    "file, spoil, message",
    [
        ("train_X.bin", lambda raw: raw[:-1], "276479 into shape"),
        ("train_X.bin", lambda raw: b"", r"shape \(10,\); it must be \(0,\)"),
        ("test_X.bin", lambda raw: raw[: 3 * 96 * 96], r"shape \(5,\); it must be \(1,\)"),
        ("train_y.bin", lambda raw: raw[:-1], r"shape \(9,\); it must be \(10,\)"),
        ("train_y.bin", lambda raw: bytes(10), "less 1: labels run from -1 to -1; with 10 classes"),
        ("test_y.bin", lambda raw: b"\x0b" * 5, "from 10 to 10; with 10 classes"),
    ],
)
def test_a_malformed_stl10_file_is_named_with_its_defect(no_roots, file, spoil, message):
    folder, _ = write_stl10(no_roots)
    (folder / file).write_bytes(spoil((folder / file).read_bytes()))
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))}.*{message}") as caught:
        load_dataset("stl10", data_root=no_roots)
    assert "\n" not in str(caught.value)


def test_svhn_and_stl10_are_downloaded_by_torchvision_without_what_is_unused(no_roots, monkeypatch):
    def svhn(self):
        Path(self.root).mkdir(exist_ok=True)
        write_svhn(Path(self.root), monkeypatch)

    def stl10(self):
        if not (Path(self.root) / "stl10_binary").exists():
            folder, _ = write_stl10(Path(self.root))
            (folder / "unlabeled_X.bin").touch()
        (Path(self.root) / "stl10_binary.tar.gz").touch()

    for name, download in (("SVHN", svhn), ("STL10", stl10)):
        monkeypatch.setattr(f"torchvision.datasets.{name}.download", download)
        monkeypatch.setattr(f"torchvision.datasets.{name}._check_integrity", lambda self: True)
    root = no_roots / "given"
    assert len(load_dataset("svhn", data_root=root).train) == 20
    assert len(load_dataset("stl10", data_root=root).test) == 5
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*")) == [
        *(f"stl10_binary/{which}_{x}.bin" for which in ("test", "train") for x in "Xy"),
        *("svhn/test_32x32.mat", "svhn/train_32x32.mat"),
    ]


# ---------------------------------------------------------------------------------------- omniglot


def write_omniglot(root, monkeypatch):
    """Two zip files as published, one character an alphabet and two, black ink on white."""
    folder, drawings, published = root / "omniglot-py", {}, {}
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, characters in (
        ("images_evaluation", ("Zulu/character02", "Zulu/character01")),
        ("images_background", ("Greek/character01",)),
    ):
        with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
            archive.writestr(f"{part}/", "")
            archive.writestr("__MACOSX/Zulu/character01/._0001_01.png", b"no picture")
            for character in characters:
                for person in range(1, 21):
                    ink = rng.integers(0, 2, (105, 105), dtype=np.uint8)
                    drawings[character, person] = ink
                    png = io.BytesIO()
                    Image.fromarray(255 * (1 - ink)).convert("1").save(png, "PNG")
                    archive.writestr(f"{part}/{character}/0001_{person:02}.png", png.getvalue())
        published[part] = hashlib.md5((folder / f"{part}.zip").read_bytes()).hexdigest()
    monkeypatch.setattr("torchvision.datasets.Omniglot.zips_md5", published)
    return folder, drawings


def test_omniglot_is_shrunk_by_areas_and_split_by_person(no_roots, monkeypatch):
    folder, drawings = write_omniglot(no_roots, monkeypatch)
    omniglot = load_dataset("omniglot", data_root=no_roots)
    assert omniglot.classes == ("Greek/character01", "Zulu/character01", "Zulu/character02")
    assert omniglot.train.labels.tolist() == [0] * 14 + [1] * 14 + [2] * 14
    assert omniglot.test.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    for split, people in ((omniglot.train, range(1, 15)), (omniglot.test, range(15, 21))):
        order = [(name, person) for name in omniglot.classes for person in people]
        for image, key in zip(split.images[:, 0].numpy(), order, strict=True):
            fine = drawings[key].repeat(28, 0).repeat(28, 1)  # 2940 pixels a side: 105 each
            means = fine.reshape(28, 105, 28, 105).mean(axis=(1, 3))
            assert np.abs(image - 255 * means).max() <= 0.5 + 1e-9
    assert (omniglot.flip, omniglot.shift, omniglot.source) == (False, 2, str(folder))


def test_another_omniglot_than_the_published_one_is_refused(no_roots, monkeypatch):
    folder, _ = write_omniglot(no_roots, monkeypatch)
    with zipfile.ZipFile(folder / "images_background.zip", "a") as archive:
        archive.writestr("images_background/Greek/character01/0001_21.png", b"")
    with pytest.raises(ValueError, match=r"images_background.zip: not opened, since its MD5"):
        load_dataset("omniglot", data_root=no_roots)


def test_omniglot_is_downloaded_by_torchvision_in_two_parts(no_roots, monkeypatch):
    asked = []

    def download(self):
        asked.append(self.background)
        if len(asked) == 1:
            write_omniglot(Path(self.root).parent, monkeypatch)
        (Path(self.root) / "images_background" / "Greek").mkdir(parents=True, exist_ok=True)
        (Path(self.root) / "images_evaluation").mkdir(exist_ok=True)

    monkeypatch.setattr("torchvision.datasets.Omniglot.download", download)
    root = no_roots / "given"
    assert len(load_dataset("omniglot", data_root=root).train) == 42
    assert asked == [True, False]
    assert sorted(p.name for p in root.rglob("*.*")) == [
        *("images_background.zip", "images_evaluation.zip"),
    ]


@pytest.mark.skipif(not OMNIGLOT.exists(), reason="needs ../shared/data (Omniglot's small sets)")
def test_the_small_omniglot_has_14_and_6_drawings_of_each_character():
    small = load_dataset(OMNIGLOT)
    assert small.num_classes == 242
    assert small.train.images.shape == (3388, 1, 28, 28)
    assert set(small.train.labels.bincount().tolist()) == {14}
    assert set(small.test.labels.bincount().tolist()) == {6}


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


def images_of(*shape):
    rng = np.random.default_rng(1)
    return {
        k: rng.integers(0, 256, (n, *shape), np.uint8) for k, n in (("x_train", 12), ("x_test", 6))
    }


@pytest.mark.parametrize("shape", [(32, 32, 4), (16, 16, 13), (9, 8, 2), (3, 32, 3), (1, 28, 1)])
def test_axes_that_could_be_either_are_asked_for_in_the_file_or_the_call(tmp_path, shape):
    x = images_of(*shape)
    path = save_npz(tmp_path / "a.npz", **x)
    with pytest.raises(ValueError, match=r"a.npz: x_train has shape .* say which by an array axes"):
        load_dataset(path)
    for axes, order in (("NCHW", (0, 1, 2, 3)), ("NHWC", (0, 3, 1, 2))):
        asked = load_dataset(path, axes=axes)
        assert np.array_equal(asked.train.images, x["x_train"].transpose(order))
        assert np.array_equal(asked.test.images, x["x_test"].transpose(order))
        told = load_dataset(save_npz(tmp_path / "b.npz", axes=np.array(axes), **x))
        assert told.content_hash() == asked.content_hash()
    other = load_dataset(tmp_path / "b.npz", axes="NCHW")  # the call is the last word
    assert np.array_equal(other.train.images, x["x_train"])


@pytest.mark.parametrize("shape, channels", [((3, 32, 4), 3), ((1, 9, 2), 1), ((2, 9, 3), 3)])
def test_one_or_three_channels_on_one_side_tell_the_axes(tmp_path, shape, channels):
    own = load_dataset(save_npz(tmp_path / "a.npz", **images_of(*shape)))
    assert own.train.images.shape[1] == channels


def test_axes_are_one_of_two_words_and_for_an_npz(tmp_path):
    with pytest.raises(ValueError, match="unknown axes 'HWC'; choose from NCHW, NHWC"):
        load_dataset(save_npz(tmp_path / "a.npz"), axes="HWC")
    with pytest.raises(ValueError, match=r"a.npz: unknown axes 'CHW'"):
        load_dataset(save_npz(tmp_path / "a.npz", axes=np.array("CHW")))
    with pytest.raises(ValueError, match=r"axes says how .* digits is not one"):
        load_dataset("digits", axes="NCHW")


def test_labels_known_to_be_noisy_are_not_passed_off_as_clean(tmp_path):
    noisy, clean = np.array("noisy"), np.array([1, *[0, 1, 2] * 3, 1, 2])
    told = load_dataset(save_npz(tmp_path / "a.npz", labels_are=noisy))
    assert told.train.clean_labels is None
    assert torch.equal(told.test.clean_labels, told.test.labels)
    assert load_dataset(tmp_path / "a.npz", labels_are="clean").train.clean_labels is not None
    plain = save_npz(tmp_path / "b.npz")
    assert load_dataset(plain).train.clean_labels is not None
    asked = load_dataset(plain, labels_are="noisy", subset=6)
    assert asked.train.clean_labels is None
    assert load_dataset("digits", labels_are="noisy").train.clean_labels is None
    both = save_npz(tmp_path / "c.npz", labels_are=noisy, y_train_clean=clean)
    assert load_dataset(both).train.clean_labels.tolist() == clean.tolist()
    with pytest.raises(ValueError, match=r"c.npz: labels_are is 'clean', but y_train differs"):
        load_dataset(both, labels_are="clean")
    with pytest.raises(ValueError, match="unknown labels_are 'dirty'; choose from clean, noisy"):
        load_dataset(plain, labels_are="dirty")


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
        (
            {"x_train": np.array([Bomb("never"), None], object)},
            "array x_train: Object arrays cannot be loaded",
        ),
        ({"y_train": Y[:11]}, r"y_train has shape \(11,\); it must be \(12,\)"),
        ({"y_train": Y[:, None]}, r"shape \(12, 1\)"),
        ({"y_train": Y.astype(float)}, "y_train must be integers, one a sample, not a float64"),
        ({"y_train": Y - 1}, "y_train run from -1 to 1; they must not be negative"),
        (
            {"y_train": Y + 10**12},
            "the training labels go up to 1000000000002, but none is 0; without",
        ),
        ({"y_train": Y.astype(np.uint64) + 2**63}, "y_train run from -9223"),
        ({"y_test": np.array([0, 1, 2, 0, 1, -2])}, "y_test run from -2 to 2"),
        ({"y_test": np.array([0, 1, 2, 0, 1, 3])}, "y_test run from 0 to 3; with 3 classes"),
        (
            {"y_train": np.where(Y == 1, 9, Y)},
            "the training labels go up to 9, but none is 1; without",
        ),
        ({"y_train_clean": Y * 2 + 1}, "the training labels go up to 5, but none is 4"),
        ({"y_train_clean": Y[1:]}, "y_train_clean has shape"),
        (
            {"classes": np.array(["a", "b"])},
            "y_train run from 0 to 2; with 2 classes they must be in 0 ... 1",
        ),
        ({"classes": np.array([1, 2, 3])}, "classes has dtype int64"),
        ({"y_train": Y * 0, "y_test": Y[:6] * 0}, "1 classes; at least 2"),
    ],
)
def test_a_malformed_npz_is_named_with_the_array_and_what_is_allowed(tmp_path, changes, message):
    path = save_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(path)
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pickled_object_in_an_npz_is_never_loaded(tmp_path):
    path, trace = tmp_path / "bad.npz", tmp_path / "exploded"
    for key in ("x_train", "y_train", "classes"):
        save_npz(path, **{key: np.array([Bomb(trace)], object)})
        with pytest.raises(ValueError, match=f"array {key}: Object arrays cannot be loaded"):
            load_dataset(path)
        assert not trace.exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: b"not a zip",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: pickle.dumps({"x_train": X}),
        lambda raw: raw[:700] + bytes([raw[700] ^ 255]) + raw[701:],
        lambda raw: npy("|u1", X.shape, X.tobytes()),
    ],
)
def test_a_file_that_is_no_npz_is_refused(tmp_path, spoil):
    path = save_npz(tmp_path / "bad.npz")
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def members(path, **raw):
    """An .npz with some members' bytes replaced."""
    save_npz(path, **dict.fromkeys(raw))
    with zipfile.ZipFile(path, "a") as file:
        for key, content in raw.items():
            file.writestr(f"{key}.npy", content)
    return path


def npy(descr, shape, data=b""):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    "key, raw, message",
    [
        ("x_train", npy("|u1", (1 << 40, 3, 8, 9), bytes(99)), "expected|allocate"),
        ("x_train", npy("|u1", (-1, -216), bytes(216)), "array|reshape|unknown|negative"),
        ("y_train", npy("<i8", (12,), bytes(97)), "int64 .12,. is not as long"),
        ("classes", npy("<U0", (1 << 40,)), "<U0 .* is not as long"),
    ],
)
def test_an_array_that_is_not_as_long_as_its_header_says_is_refused(tmp_path, key, raw, message):
    with pytest.raises(ValueError, match=f"bad.npz: .*({message})"):
        load_dataset(members(tmp_path / "bad.npz", **{key: raw}))


def test_what_decodes_to_more_than_a_limit_of_ours_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, **npz_arrays())
    raw = bytearray(path.read_bytes())
    first = raw.index(b"PK\x01\x02")  # where the archive's own list says how large a member is
    raw[first + 24 : first + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(raw)
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", None)
        with pytest.raises(ValueError, match=r"bomb.npz: 4,29.* bytes when decoded; the limit"):
            load_dataset(path)
    whole = save_npz(tmp_path / "whole.npz")
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="the limit is 1,000"):
        load_dataset(whole)


def test_a_compression_that_gives_out_more_than_asked_for_is_refused(tmp_path):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as file:
        for key, array in npz_arrays().items():
            file.writestr(f"{key}.npy", npy(array.dtype.str, array.shape, array.tobytes()))
    with pytest.raises(ValueError, match="array x_train is compressed in a way"):
        load_dataset(path)


def test_names_that_lead_elsewhere_are_not_looked_at_and_pipes_not_opened(tmp_path):
    path = members(tmp_path / "a.npz", **{"../y_train_clean": b"x", "/classes": b"x", "/dev/": b""})
    assert (
        load_dataset(path).content_hash()
        == load_dataset(save_npz(tmp_path / "b.npz")).content_hash()
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"pipe.npz: not a file"):
        load_dataset(tmp_path / "pipe.npz")


def test_a_missing_or_unreadable_npz_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "none.npz"))):
        load_dataset(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=r"folder\.npz: not a file"):
        load_dataset(tmp_path / "folder.npz")


@pytest.mark.skipif(not CIFAR_SUBSET.exists(), reason="needs ../shared/data (a CIFAR-10 subset)")
def test_the_cifar10_subset_loads_and_is_balanced():
    cifar = load_dataset(CIFAR_SUBSET, subset=500)
    assert torch.bincount(cifar.train.labels).tolist() == [50] * 10
    assert torch.bincount(cifar.test.labels).tolist() == [200] * 10
    assert (cifar.train.images.shape[1:], cifar.num_classes) == ((3, 32, 32), 10)
