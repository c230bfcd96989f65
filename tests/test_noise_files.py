"""Noisy labels of a file: aligned, checked against the true ones, and nothing in it is run."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcr2.data import Split, load_dataset
from mcr2.noise import parse_noise
from mcr2.noise.pt import read_pt

SHARED = Path(__file__).parents[2] / "shared/data"
N, K = 40, 3
TRUE = np.arange(N) % K
NOISY = np.random.RandomState(0).randint(0, K, N)
IMAGES = torch.zeros(N, 1, 2, 2, dtype=torch.uint8)
SPLIT = Split(IMAGES, torch.from_numpy(TRUE), torch.from_numpy(TRUE))


def apply(argument, ratio=1, split=SPLIT, num_classes=K, seed=0):
    return parse_noise(f"given:{argument}", ratio).apply(split, num_classes=num_classes, seed=seed)


def text(path, header, *columns):
    rows = [",".join(map(str, row)) for row in zip(*columns, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")


def write(path, order, clean=TRUE):
    """Write the noisy labels in an order, as the suffix says, with the true ones beside them."""
    if path.suffix == ".npy":
        np.save(path, NOISY)
    elif path.suffix == ".npz":
        np.savez(path, worse=NOISY[order], clean=clean[order], index=order)
    elif path.suffix == ".csv":
        text(path, "index,worse,clean", order, NOISY[order], clean[order])
    else:
        torch.save({"clean_label": clean, "worse": NOISY, "name": "x"}, path)
    return f"{path}" if path.suffix == ".npy" else f"{path}#worse"


KINDS = pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".pt"])


@KINDS
def test_labels_are_those_of_the_file_at_ratio_1_and_of_the_data_at_0(suffix, tmp_path):
    argument = write(tmp_path / f"labels{suffix}", np.random.RandomState(1).permutation(N))
    found = apply(argument)
    assert found.labels.tolist() == NOISY.tolist()
    assert found.indices.tolist() == list(range(N))
    assert found.wrong.tolist() == (NOISY != TRUE).tolist()
    expected = np.array([[np.mean(NOISY[i == TRUE] == j) for j in range(K)] for i in range(K)])
    assert np.allclose(found.transition, expected)
    before = apply(argument, 0)
    assert before.labels.tolist() == TRUE.tolist()
    assert len(before.indices) == int(before.wrong.sum()) == 0


@KINDS
def test_a_part_of_the_data_gets_its_own_labels(suffix, tmp_path):
    argument = write(tmp_path / f"labels{suffix}", np.arange(N)[::-1])
    first = torch.tensor([30, 2, 17, 5, 9, 38])
    part = SPLIT.select(first).select(torch.tensor([4, 0, 3]))
    assert apply(argument, split=part).labels.tolist() == NOISY[[9, 30, 5]].tolist()


@KINDS
def test_true_labels_of_other_data_are_noticed(suffix, tmp_path):
    argument = write(tmp_path / f"labels{suffix}", np.arange(N), clean=np.roll(TRUE, 1))
    if suffix == ".npy":  # brings none
        assert apply(argument).labels.tolist() == NOISY.tolist()
        return
    with pytest.raises(ValueError, match="not those of the data for 39 of 40 training"):
        apply(argument)


def test_what_an_unknown_truth_cannot_check_stays_unknown(tmp_path):
    argument = write(tmp_path / "labels.npz", np.arange(N))
    found = apply(argument, split=Split(IMAGES, SPLIT.labels))
    assert found.truth is found.wrong is None
    assert found.labels.tolist() == NOISY.tolist()


@pytest.mark.parametrize("ratio", [0, 0.3, 1])
def test_symmetric_noise_on_top_counts_both(ratio, tmp_path):
    argument = write(tmp_path / "labels.npz", np.arange(N)) + "+symmetric"
    found = apply(argument, ratio, seed=4)
    rs = np.random.RandomState(4)
    chosen = rs.choice(range(N), int(N * ratio), replace=False)
    expected = NOISY.copy()
    expected[chosen] = rs.choice(np.arange(K), size=len(chosen))
    assert found.labels.tolist() == expected.tolist()
    assert found.indices.tolist() == chosen.tolist()
    assert int(found.wrong.sum()) == int((expected != TRUE).sum())


def test_a_study_takes_both_ends_unless_noise_is_on_top():
    assert parse_noise("given:labels.npy", 0).ratios == (0, 1)
    assert parse_noise("transition:P.npy", 0).ratios == (0, 1)
    assert parse_noise("given:labels.npy+symmetric", 0).ratios is None
    assert parse_noise("symmetric", 0).ratios is None


def test_an_index_into_larger_data_is_checked_by_the_true_labels(tmp_path):
    path = tmp_path / "labels.npz"
    np.savez(path, worse=NOISY, clean=TRUE, index=np.arange(N) * 7)
    assert apply(f"{path}#worse").labels.tolist() == NOISY.tolist()
    np.savez(path, worse=NOISY, index=np.arange(N) * 7)
    with pytest.raises(ValueError, match="the index runs from 0 to 273; there are 40 training"):
        apply(f"{path}#worse")


# --- image folders


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    for which in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / "data" / which / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.full((5, 5), 20 * i + 100 * (name == "bee"), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / which / name / f"{i}.png")
    return tmp_path / "data"


@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("prefix", ["", "train/"])
def test_labels_beside_a_folder_are_aligned_by_path(names, prefix, folder, tmp_path):
    files = [f"{prefix}{name}/{i}.png" for i in (2, 0, 3, 1) for name in ("bee", "ant")]
    noisy = [1, 1, 0, 0, 1, 1, 1, 0]
    labels = [("ant", "bee")[y] for y in noisy] if names else noisy
    text(tmp_path / "labels.csv", "file,label", files, labels)
    whole = load_dataset(folder).train
    by_file = dict(zip([f.removeprefix("train/") for f in files], noisy, strict=True))
    expected = [by_file[f"{name}/{i}.png"] for name in ("ant", "bee") for i in range(4)]
    found = apply(tmp_path / "labels.csv", split=whole, num_classes=2)
    assert found.labels.tolist() == expected
    part = load_dataset(folder, subset=4).train
    kept = part.places.index.tolist()
    assert len(kept) == 4
    labels = apply(tmp_path / "labels.csv", split=part, num_classes=2).labels
    assert labels.tolist() == [expected[i] for i in kept]


@pytest.mark.parametrize(
    "files, message",
    [
        (["ant/0.png", "ant/9.png"], "ant/9.png is not an image of the training folder"),
        (["ant/0.png", "train/ant/0.png"], "an image stands twice"),
        (["ant/0.png", "../train/ant/1.png"], "is not an image"),
        (["ant/0.png", "ant/1.png"], "no label for 6 of 8 training samples"),
    ],
)
def test_labels_that_are_not_those_of_the_folder_are_refused(files, message, folder, tmp_path):
    text(tmp_path / "labels.csv", "file,label", files, [0, 1])
    with pytest.raises(ValueError, match=message):
        apply(tmp_path / "labels.csv", split=load_dataset(folder).train, num_classes=2)


# --- files that will not do


@pytest.mark.parametrize(
    "argument, ratio, message",
    [
        ("labels.npz", 1, "needs a key: FILE.npz#KEY"),
        ("labels.pt", 1, "needs a key"),
        ("labels.npy#x", 1, "has one array, write no #KEY"),
        ("labels.txt", 1, "write FILE.npy, FILE.npz#KEY"),
        ("labels.npz#worse+pair_flip", 1, "only symmetric noise is drawn on top"),
        ("labels.npz#worse+", 1, "only symmetric"),
        ("labels.npy", 0.4, "ratio is 0.4; it must be 0 .* or 1"),
        ("", 1, "write FILE.npy"),
    ],
)
def test_what_names_no_labels_is_refused_before_any_is_read(argument, ratio, message):
    with pytest.raises(ValueError, match=message):
        parse_noise(f"given:{argument}", ratio)


@pytest.mark.parametrize(
    "labels, message",
    [
        (NOISY[:-1], "39 labels; there are 40 training samples"),
        (np.append(NOISY, 0), "41 labels; there are 40"),
        (NOISY + 1, "with 3 classes they must be in 0 ... 2"),
        (NOISY - 1, "labels run from -1"),
        (NOISY * 1.0, "must be integers, one a sample"),
        (NOISY[:, None], r"labels of shape \(40, 1\)"),
        (NOISY == 1, "must be integers"),
        (np.array(list("a" * N)), "labels are class numbers"),
    ],
)
def test_labels_of_a_wrong_length_or_classes_are_refused(labels, message, tmp_path):
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(ValueError, match=message) as error:
        apply(tmp_path / "labels.npy")
    assert str(tmp_path / "labels.npy") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "columns none"),
        ("index,label\n0,one\n", "labels are class numbers"),
        ("index,label\nzero,1\n", "index: invalid literal"),
        ("index,label\n0,1\n0,2\n", "an index stands twice"),
        ("index,label\n0,1\n1\n", "row 3 has 1 entries, the first 2"),
        ("index,label\n", "there are 40 training samples"),
        ("index,label\n0,1\n", "no label for 39 of 40"),
        ("index,label\n99,1\n", "the index runs from 99 to 99"),
        ("label\n1\n", "needed are label and one of index, file"),
        ("index,file,label\n0,a,1\n", "one of index, file"),
        ("index,index,label\n0,0,1\n", "one of index, file"),
        ("file,label\na.png,1\n", "labels by file are for an image folder"),
        ("index,label\n" + "9" * 5000 + ",1\n", "index: "),
        ("index,label\n99999999999999999999999,1\n", "labels.csv: "),
    ],
)
def test_bad_text_is_refused_with_its_name(content, message, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        apply(path)
    assert "labels.csv" in str(error.value)
    assert "\n" not in str(error.value)


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_damaged_files_are_labels_or_a_line(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from([".npy", ".npz", ".csv", ".pt"]))
    path = tmp_path_factory.mktemp("damaged") / f"labels{suffix}"
    argument = write(path, np.arange(N))
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    path.write_bytes(raw)
    told = ""
    try:
        assert len(apply(argument).labels) == N
    except ValueError as error:
        told = str(error)
    assert "\n" not in told
    assert not told or "labels" in told


# --- .pt


@pytest.mark.parametrize("zipped", [True, False])
def test_published_files_are_read_whichever_format_they_have(zipped, tmp_path):
    path = tmp_path / "CIFAR-10_human.pt"
    arrays = {
        "clean_label": TRUE,
        "big": TRUE.astype(">i4"),
        "table": np.asfortranarray(np.arange(6).reshape(2, 3)),
    }
    torch.save(arrays, path, _use_new_zipfile_serialization=zipped)
    found = read_pt(path)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(zipped, tmp_path):
    path, trace = tmp_path / "labels.pt", tmp_path / "trace"
    content = {"worse": NOISY, "trap": Trap(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"labels\.pt: it names pathlib\.Path\.touch|it names .*"):
        apply(f"{path}#worse")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Trap(trace)))
    assert trace.exists()  # it would have


def pt(path, payload):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", payload)


@pytest.mark.parametrize(
    "payload, message",
    [
        (pickle.dumps([1, 2]), "a list; it must be a dictionary of arrays"),
        (pickle.dumps({"a": np.array([None])}), "an array of 'O8'"),
        (b"\x80\x04\x96" + b"\xff" * 7 + b"\x0f" + b".", "labels.pt: "),
        (b"\x80\x02cos\nsystem\nU\x04trueR.", "it names os.system"),
        (b"\x80\x02cnumpy\nload\nU\x01xR.", "it names numpy.load"),
        (b"\x80\x02}.", "no labels 'worse'"),
        (b"", "labels.pt: "),
    ],
)
def test_a_pickle_of_anything_else_is_refused(payload, message, tmp_path):
    pt(tmp_path / "labels.pt", payload)
    with pytest.raises(ValueError, match=message):
        apply(f"{tmp_path / 'labels.pt'}#worse")


def test_tensors_are_refused_and_say_so(tmp_path):
    torch.save({"worse": torch.from_numpy(NOISY)}, tmp_path / "labels.pt")
    with pytest.raises(ValueError, match="only arrays of NumPy are read"):
        apply(f"{tmp_path / 'labels.pt'}#worse")


def test_a_pickle_in_an_array_is_never_opened(tmp_path):
    np.save(tmp_path / "labels.npy", np.array([Trap(tmp_path / "trace")] * N), allow_pickle=True)
    with pytest.raises(ValueError, match=r"labels\.npy"):
        apply(tmp_path / "labels.npy")
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(tmp_path / "trace")] * N), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "labels.npz", "w") as archive:
        archive.writestr("worse.npy", buffer.getvalue())
    with pytest.raises(ValueError, match=r"labels\.npz"):
        apply(f"{tmp_path / 'labels.npz'}#worse")
    assert not (tmp_path / "trace").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data (CIFAR-10N's labels)")
@pytest.mark.parametrize(
    "key, wrong", [("worse", 0.405), ("random1", 0.176), ("aggre", 0.089), ("idn_40", 0.398)]
)
def test_the_shares_of_wrong_labels_of_cifar10n(key, wrong):
    dataset = load_dataset(SHARED / "cifar10-12k.npz")
    argument = f"{SHARED / 'cifar10n-12k.npz'}#{key}"
    found = apply(argument, split=dataset.train, num_classes=10)
    assert round(float(found.wrong.float().mean()), 3) == wrong
    part = load_dataset(SHARED / "cifar10-12k.npz", subset=500).train
    of_part = apply(argument, split=part, num_classes=10).labels
    assert torch.equal(of_part, found.labels[part.places.index])
