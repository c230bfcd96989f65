"""Image folders and the cache of decoded arrays, on small files made here."""

import io
import os
import pickle
import re
import shutil
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mcr2 import files
from mcr2.data import cache, folder, load_dataset, load_training, readers
from mcr2.data.splits import Decoded, as_split


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Nothing is found or left in the user's cache."""
    monkeypatch.delenv("MCR2_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def entries(tmp_path):
    return sorted((tmp_path / "cache/mcr2/decoded").glob("*"))


def save(path, pixels, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **kwargs)


def write_images(root, shape=(6, 5, 3), n=(4, 2), suffix="png", **kwargs):
    """Classes ant, bee and cow; returns the pixels by path below the root."""
    rng = np.random.default_rng(0)
    pixels = {
        f"{which}/{name}/{i}.{suffix}": rng.integers(0, 256, shape, dtype=np.uint8)
        for which, count in zip(("train", "test"), n, strict=True)
        for name in ("cow", "ant", "bee")
        for i in range(count)
    }
    for name, array in pixels.items():
        save(root / name, array, **kwargs)
    return pixels


# ---------------------------------------------------------------------------------- what is read


def test_a_folder_is_read_class_by_class_in_the_order_of_names(tmp_path):
    pixels = write_images(tmp_path / "own")
    own = load_dataset(tmp_path / "own")
    for split, which, n in ((own.train, "train", 4), (own.test, "test", 2)):
        order = [f"{which}/{name}/{i}.png" for name in ("ant", "bee", "cow") for i in range(n)]
        expected = np.stack([pixels[name].transpose(2, 0, 1) for name in order])
        assert np.array_equal(split.images, expected)
        assert split.labels.tolist() == [0] * n + [1] * n + [2] * n
        assert torch.equal(split.clean_labels, split.labels)
        assert split.images.is_contiguous(memory_format=torch.channels_last)
    assert (own.name, own.classes, own.flip, own.shift) == ("own", ("ant", "bee", "cow"), False, 1)
    assert own.source == str(tmp_path / "own")


def test_a_folder_may_be_relative_and_a_subset_taken(tmp_path, monkeypatch):
    write_images(tmp_path / "own", (20, 20, 3))
    monkeypatch.chdir(tmp_path / "own")
    own = load_dataset(".", subset=6)
    assert (own.name, own.source, own.shift) == ("own", str(tmp_path / "own"), 2)
    assert own.train.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("suffix", ["bmp", "tiff", "webp", "ppm"])
def test_lossless_formats_are_read_as_they_are(tmp_path, suffix):
    write_images(tmp_path / "a", suffix="png")
    write_images(tmp_path / "b", suffix=suffix, **({"lossless": True} if suffix == "webp" else {}))
    a, b = load_dataset(tmp_path / "a"), load_dataset(tmp_path / "b")
    assert a.content_hash() == b.content_hash()


def test_jpeg_images_are_read_nearly(tmp_path):
    smooth = np.add.outer(np.arange(16), 2 * np.arange(16)).astype(np.uint8)[..., None]
    pixels = smooth + np.array([0, 40, 90], np.uint8)
    for name in ("train/a/x.jpg", "train/b/x.JPEG", "test/a/x.jpg", "test/b/x.jpeg"):
        save(tmp_path / "own" / name, pixels, quality=95, subsampling=0)
    images = load_dataset(tmp_path / "own").train.images.numpy().astype(int)
    assert abs(images - pixels.transpose(2, 0, 1)).max() < 12


def test_grey_images_have_one_channel_and_among_coloured_ones_three(tmp_path):
    pixels = write_images(tmp_path / "own", shape=(6, 5))
    grey = load_dataset(tmp_path / "own")
    assert grey.train.images.shape[1] == 1
    assert np.array_equal(grey.train.images[0, 0], pixels["train/ant/0.png"])
    save(tmp_path / "own/test/cow/0.png", np.full((6, 5, 3), (10, 20, 30), np.uint8))
    mixed = load_dataset(tmp_path / "own")
    assert mixed.train.images.shape[1] == 3
    assert torch.equal(mixed.train.images, grey.train.images.expand(-1, 3, -1, -1))
    assert mixed.test.images[4, :, 0, 0].tolist() == [10, 20, 30]


def test_palettes_transparency_and_orientation_change_no_pixel(tmp_path):
    pixels = write_images(tmp_path / "own", shape=(4, 6, 3))
    plain = load_dataset(tmp_path / "own").content_hash()
    path = tmp_path / "own/train/ant/0.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned
    alpha = np.dstack([pixels["train/ant/0.png"], np.zeros((4, 6), np.uint8)])
    save(path, alpha, exif=exif)
    assert load_dataset(tmp_path / "own").content_hash() == plain
    few = Image.fromarray(pixels["train/ant/0.png"]).quantize(24)  # as many as pixels
    few.save(path)
    own = load_dataset(tmp_path / "own")
    assert np.array_equal(own.train.images[0], np.asarray(few.convert("RGB")).transpose(2, 0, 1))


def test_image_size_makes_images_of_any_size_one(tmp_path):
    write_images(tmp_path / "own", (9, 12, 3))
    save(tmp_path / "own/train/bee/1.png", np.full((40, 30, 3), 77, np.uint8))
    own = load_dataset(tmp_path / "own", image_size=8)
    assert own.train.images.shape[2:] == (8, 8)
    assert (own.train.images[5] == 77).all()


def test_shrinking_averages_rather_than_picks(tmp_path):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    for name in ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png"):
        save(tmp_path / "own" / name, stripes)
    images = load_dataset(tmp_path / "own", image_size=8).train.images
    assert (images.int() - 100).abs().max() <= 10


def test_what_systems_leave_in_folders_is_passed_over(tmp_path):
    write_images(tmp_path / "own")
    plain = load_dataset(tmp_path / "own").content_hash()
    for name in (".DS_Store", "train/.DS_Store", "train/ant/Thumbs.db", "test/ant/.0.png"):
        (tmp_path / "own" / name).write_bytes(b"\0\0")
    (tmp_path / "own/train/.ipynb_checkpoints").mkdir()
    (tmp_path / "own/README.txt").touch()
    assert load_dataset(tmp_path / "own").content_hash() == plain


# --------------------------------------------------------------------------------- what is refused


def png(pixels=None, format="png", **kwargs):
    stream = io.BytesIO()
    image = Image.fromarray(np.zeros((6, 5, 3), np.uint8) if pixels is None else pixels)
    image.save(stream, format, **kwargs)
    return stream.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
SIXTEEN_BITS = np.arange(30, dtype=np.uint16).reshape(6, 5) * 2000
FLOATS = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)


@pytest.mark.parametrize(
    "raw, message",
    [
        (b"", "not an image; allowed are PNG, JPEG"),
        (b"a note, not an image", "not an image; allowed are PNG"),
        (pickle.dumps({"x": 1}), "not an image"),
        (png(NOISE)[:-30], "cannot be read"),
        (png(NOISE)[:40], "cannot be read|not an image"),
        (png(NOISE, "jpeg")[:-60], "cannot be read"),
        (png(SIXTEEN_BITS), "mode I;16.*more than 8 bits"),
        (png(FLOATS, "tiff"), "mode F, floats"),
        (png(np.zeros((5, 6, 3), np.uint8)), r"6×5 pixels.*ant/0.png has 5×6.*image_size"),
    ],
)
def test_a_file_that_is_no_such_image_is_named(tmp_path, raw, message):
    write_images(tmp_path / "own")
    path = tmp_path / "own/test/bee/0.png"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*({message})") as caught:
        load_dataset(tmp_path / "own")
    assert "\n" not in str(caught.value)
    assert not entries(tmp_path)


def test_nothing_is_handed_to_another_program(tmp_path, monkeypatch):
    """Pillow reads EPS by running Ghostscript, which is a program's input, not an image."""
    write_images(tmp_path / "own")
    path = tmp_path / "own/train/ant/0.png"
    path.write_bytes(png(format="eps"))
    assert Image.open(path).format == "EPS"
    monkeypatch.setattr("subprocess.Popen", None)
    monkeypatch.setattr("subprocess.check_call", None)
    with pytest.raises(ValueError, match=r"ant/0.png: not an image; allowed"):
        load_dataset(tmp_path / "own")


def test_a_header_that_claims_too_much_is_refused(tmp_path):
    write_images(tmp_path / "own")
    path = tmp_path / "own/train/ant/0.png"
    raw = bytearray(png())
    raw[16:24] = (1 << 16).to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"ant/0.png: cannot be read .*bomb"):
        load_dataset(tmp_path / "own")


def test_more_bytes_than_a_limit_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    write_images(tmp_path / "own")
    monkeypatch.setattr(folder, "_decode", None)
    with pytest.raises(ValueError, match=r"own: 540,000,000,000 bytes when decoded"):
        load_dataset(tmp_path / "own", image_size=10**5)
    monkeypatch.setattr(files, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"own: 1,620 bytes when decoded; the limit is 1,000"):
        load_dataset(tmp_path / "own")


@pytest.mark.parametrize("which", ["train/ant/0.png", "train/ant", "train"])
def test_links_are_followed_inside_the_folder_only(tmp_path, which):
    for name in ("own", "other"):
        write_images(tmp_path / name)
    path, target = tmp_path / "own" / which, tmp_path / "other" / which
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: a link out of"):
        load_dataset(tmp_path / "own")
    path.unlink()
    shutil.copytree(target, path) if target.is_dir() else shutil.copy(target, path)
    (tmp_path / "own/test/bee/7.png").symlink_to("0.png")
    assert len(load_dataset(tmp_path / "own").test) == 7


def remove(*names):
    return lambda root: [shutil.rmtree(root / name) for name in names]


def empty(root):
    shutil.rmtree(root / "train/bee")
    (root / "train/bee").mkdir()
    (root / "train/bee/.DS_Store").touch()


ONE_CLASS = [f"{which}/{name}" for which in ("train", "test") for name in ("ant", "bee")]


@pytest.mark.parametrize(
    "spoil, where, message",
    [
        (remove("test"), "", "no folder test/; an image folder holds train/CLASS"),
        (remove("test/bee"), "/test", "no class folder bee, which train/ has"),
        (remove("train/cow"), "/train", "no class folder cow, which test/ has"),
        (empty, "/train/bee", "an empty class folder"),
        (
            lambda root: (root / "train/stray.png").write_bytes(png()),
            "/train/stray.png",
            "not a class folder; images belong in train/CLASS/",
        ),
        (
            lambda root: (root / "train/ant/more").mkdir(),
            "/train/ant/more",
            "not a file; a class folder holds images only",
        ),
        (lambda root: os.mkfifo(root / "train/ant/x.png"), "/train/ant/x.png", "not a file"),
        (
            lambda root: (root / "train/ant/x.png").symlink_to(root / "nowhere.png"),
            "/train/ant/x.png",
            "not a file",
        ),
        (remove(*ONE_CLASS), "/train", "1 class folders; at least 2"),
    ],
)
def test_a_malformed_folder_is_named_with_its_defect(tmp_path, spoil, where, message):
    root = tmp_path / "own"
    write_images(root)
    spoil(root)
    with pytest.raises(ValueError, match=f"^{re.escape(str(root) + where)}: {message}") as caught:
        load_dataset(root)
    assert "\n" not in str(caught.value)


def test_image_size_is_for_folders_and_positive(tmp_path):
    write_images(tmp_path / "own")
    for name in ("digits", "cifar10", "file.npz"):
        with pytest.raises(ValueError, match=f"image_size.*{name} is not one"):
            load_dataset(name, image_size=8)
    with pytest.raises(ValueError, match="image_size is 0; it must be at least 1"):
        load_dataset(tmp_path / "own", image_size=0)
    with pytest.raises(TypeError, match="image_size must be an integer"):
        load_dataset(tmp_path / "own", image_size=8.0)


def test_a_folder_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="none not found: name an existing"):
        load_dataset(tmp_path / "none")
    for name in ("", "none"):  # an empty name is not the present folder
        with pytest.raises(ValueError, match=f"unknown data set '{name}'; choose from digits, "):
            load_dataset(name)
    (tmp_path / "file.zip").touch()
    with pytest.raises(ValueError, match=r"unknown data set .*file.zip.*or a folder that holds"):
        load_dataset(tmp_path / "file.zip")


# --------------------------------------------------------------------------------------- the cache


@pytest.fixture
def decoded_times(monkeypatch):
    """How often a folder was decoded or an idx file read, in a list that grows."""
    calls = []
    for module, name in ((folder, "decode"), (readers, "_read_idx")):
        original = getattr(module, name)

        def counted(*args, original=original):
            calls.append(args)
            return original(*args)

        monkeypatch.setattr(module, name, counted)
    return calls


def test_a_second_start_decodes_nothing_and_sees_the_same(tmp_path, decoded_times):
    write_images(tmp_path / "own")
    first = load_dataset(tmp_path / "own")
    second = load_dataset(tmp_path / "own")
    assert len(decoded_times) == 1
    assert first.content_hash() == second.content_hash()
    assert first.classes == second.classes
    assert (first.name, first.shift, first.source) == (second.name, second.shift, second.source)
    assert second.train.images.is_contiguous(memory_format=torch.channels_last)
    before = second.content_hash()
    second.train.images.zero_()  # a copy of its own: the file stays
    assert load_dataset(tmp_path / "own").content_hash() == before


def test_each_image_size_has_an_entry_of_its_own(tmp_path, decoded_times):
    write_images(tmp_path / "own")
    sizes = (None, 4, 8, None, 4, 8)
    found = [load_dataset(tmp_path / "own", image_size=size).train.images for size in sizes]
    assert [images.shape[2:] for images in found] == [(6, 5), (4, 4), (8, 8)] * 2
    assert len(decoded_times) == 3
    assert len(entries(tmp_path)) == 3


def test_idx_files_are_cached_and_digits_and_npz_are_not(tmp_path, decoded_times):
    raw = tmp_path / "root/MNIST/raw"
    raw.mkdir(parents=True)
    for file, shape in zip(readers.IDX_FILES, ((6, 28, 28), (6,), (4, 28, 28), (4,)), strict=True):
        header = bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes()
        content = (np.arange(np.prod(shape)) % 7).astype(np.uint8)
        (raw / file).write_bytes(header + content.tobytes())
    first = load_dataset("mnist", data_root=tmp_path / "root")
    assert len(decoded_times) == 4
    second = load_dataset("mnist", data_root=tmp_path / "root")
    assert len(decoded_times) == 4
    assert first.content_hash() == second.content_hash()
    assert (second.name, second.source, second.classes) == ("mnist", str(raw), first.classes)
    images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
    np.savez(tmp_path / "x.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    load_dataset(tmp_path / "x.npz")
    load_dataset("digits")
    assert [entry.name[:6] for entry in entries(tmp_path)] == ["mnist-"]


def change_time(root):
    stat = (root / "test/cow/1.png").stat()
    os.utime(root / "test/cow/1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        change_time,
        lambda root: save(root / "train/ant/0.png", np.zeros((6, 5, 3), np.uint8)),
        lambda root: save(root / "train/ant/9.png", np.zeros((6, 5, 3), np.uint8)),
        lambda root: (root / "test/cow/1.png").unlink(),
        lambda root: (root / "test/cow/1.png").rename(root / "test/cow/7.png"),
        lambda root: (root / "train/cow/1.png").rename(root / "train/bee/7.png"),
    ],
)
def test_changed_files_replace_their_entry(tmp_path, decoded_times, change):
    write_images(tmp_path / "own")
    load_dataset(tmp_path / "own")
    change(tmp_path / "own")
    changed = load_dataset(tmp_path / "own").content_hash()
    assert len(decoded_times) == 2
    assert len(entries(tmp_path)) == 1
    assert load_dataset(tmp_path / "own").content_hash() == changed
    assert len(decoded_times) == 2
    shutil.rmtree(tmp_path / "cache")
    assert load_dataset(tmp_path / "own").content_hash() == changed


def test_the_same_files_elsewhere_are_another_data_set(tmp_path, decoded_times):
    write_images(tmp_path / "a/own")
    shutil.copytree(tmp_path / "a/own", tmp_path / "b/own")  # times included
    assert load_dataset(tmp_path / "a/own").source == str(tmp_path / "a/own")
    assert load_dataset(tmp_path / "b/own").source == str(tmp_path / "b/own")
    assert len(decoded_times) == 2


def test_an_entry_of_another_format_is_made_anew(tmp_path, decoded_times, monkeypatch):
    write_images(tmp_path / "own")
    load_dataset(tmp_path / "own")
    monkeypatch.setattr(cache, "_FORMAT", cache._FORMAT + 1)
    load_dataset(tmp_path / "own")
    assert len(decoded_times) == 2


@pytest.mark.parametrize("clean", [None, [0, 1, 1, 2]])
def test_an_entry_keeps_what_is_known_of_the_truth(tmp_path, clean):
    images, labels = np.ones((4, 2, 2, 1), np.uint8), [0, 1, 2, 2]
    train, test = as_split(images, labels, clean), as_split(images, labels, labels)
    calls = []
    for _ in range(2):
        read = lambda: calls.append(0) or Decoded(("a", "b", "c"), train, test)  # noqa: E731
        found = cache.cached(tmp_path / "decoded", "x", None, [], read)
        assert found.classes == ("a", "b", "c")
        assert torch.equal(found.train.images, train.images)
        true = found.train.clean_labels
        assert true is None if clean is None else true.tolist() == clean
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_no_link_or_pipe_is_opened_as_an_entry(tmp_path, decoded_times, kind):
    write_images(tmp_path / "own")
    good = load_dataset(tmp_path / "own").content_hash()
    (path,), aside = entries(tmp_path), tmp_path / "aside"
    path.rename(aside)
    path.symlink_to(aside) if kind == "link" else os.mkfifo(path)
    kept = aside.stat().st_mtime_ns
    assert load_dataset(tmp_path / "own").content_hash() == good
    assert len(decoded_times) == 2
    assert aside.stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:20],
        lambda raw: raw[:-3] + bytes([raw[-3] ^ 255]) + raw[-2:],
        lambda raw: raw.replace(b"[6,6,5,3]", b"[6,5,6,3]"),
        lambda raw: raw.replace(b"cow", b"cod"),
        lambda raw: raw.replace(b"train.true", b"train.trux"),
        lambda raw: b"\xff" * 8 + raw[8:],
        lambda raw: pickle.dumps([1, 2, 3]),
    ],
)
def test_a_damaged_entry_is_ignored_and_made_anew(tmp_path, decoded_times, spoil):
    write_images(tmp_path / "own")
    good = load_dataset(tmp_path / "own").content_hash()
    (path,) = entries(tmp_path)
    before = path.read_bytes()
    spoiled = spoil(before)
    assert spoiled != before
    path.write_bytes(spoiled)
    for _ in range(2):
        own = load_dataset(tmp_path / "own")
        assert own.content_hash() == good
        assert own.classes == ("ant", "bee", "cow")
    assert len(decoded_times) == 2


def test_an_unwritable_cache_is_done_without(tmp_path, monkeypatch, decoded_times, capfd):
    write_images(tmp_path / "own")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    hashes = {load_dataset(tmp_path / "own").content_hash() for _ in range(2)}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache, "save_file", full)
        hashes.add(load_dataset(tmp_path / "own").content_hash())
    assert len(hashes) == 1
    assert len(decoded_times) == 3
    assert not entries(tmp_path)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------- folders without test images


def test_a_flat_folder_of_classes_is_read_for_its_training_images(tmp_path):
    pixels = write_images(tmp_path / "own")
    whole = load_dataset(tmp_path / "own")
    for which in ("own/train", "moved"):  # a folder of classes, and one that holds train/ alone
        if which == "moved":
            shutil.copytree(tmp_path / "own/train", tmp_path / "moved/train")
        flat = load_training(tmp_path / which)
        assert torch.equal(flat.split.images, whole.train.images)
        assert torch.equal(flat.split.labels, whole.train.labels)
        assert (flat.split.clean_labels, flat.test, flat.classes) == (None, None, whole.classes)
    both = load_training(tmp_path / "own", subset=6)
    assert len(both.split) == 6
    assert len(both.files) == 6
    for image, file in zip(both.split.images, both.files, strict=True):
        assert np.array_equal(image, pixels[file].transpose(2, 0, 1))
    assert flat.files[0] == "train/ant/0.png"
    assert load_training(tmp_path / "own/train").files[0] == "ant/0.png"
    assert torch.equal(both.test.images, whole.test.images)
    assert len(load_training(tmp_path / "own/train", subset=6).split) == 6
    assert load_training(tmp_path / "own/train", image_size=3).split.images.shape[2:] == (3, 3)
    assert len(pixels) == 18


def test_a_flat_folder_has_the_bounds_of_any_other(tmp_path):
    root = tmp_path / "flat"
    write_images(tmp_path / "own")
    shutil.copytree(tmp_path / "own/train", root)
    (root / "dog").mkdir()
    with pytest.raises(ValueError, match="dog: an empty class folder"):
        load_training(root)
    (root / "dog/0.png").symlink_to(tmp_path / "own/test/ant/0.png")
    with pytest.raises(ValueError, match="a link out of"):
        load_training(root)
    shutil.rmtree(root / "dog")
    (root / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"notes\.txt: not a class folder; images belong in flat/"):
        load_training(root)
    (root / "notes.txt").unlink()
    for name in ("bee", "cow"):
        shutil.rmtree(root / name)
    with pytest.raises(ValueError, match="1 class folders; at least 2 are needed"):
        load_training(root)


def test_an_npz_file_without_test_images_is_read_for_its_training_images(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    arrays = {"x_train": x, "y_train": np.arange(6) % 2, "y_train_clean": np.arange(6) // 3}
    np.savez(tmp_path / "few.npz", **arrays)
    few = load_training(tmp_path / "few.npz")
    assert few.test is None
    assert few.split.clean_labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="no array x_test, y_test"):
        load_dataset(tmp_path / "few.npz")
    with pytest.raises(ValueError, match="image_size resizes the images of a folder"):
        load_training(tmp_path / "few.npz", image_size=8)
    with pytest.raises(ValueError, match="axes says how an"):
        load_training(tmp_path, axes="NCHW")
