"""Each kind of noise does what its definition says, against loops, SciPy and counting."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mutual_info_score

from mcr2.data import Split
from mcr2.noise import NOISES, corrupt, parse_noise
from mcr2.noise.instance import flip_probabilities
from mcr2.noise.open_set import match_shape

K = 5
SEEDS = range(20)
LABELS = np.random.RandomState(3).choice(K, 600, p=[0.4, 0.3, 0.15, 0.1, 0.05])


def images_of(labels, seed=0, side=6, channels=1):
    """Noisy images of two variants of each class, and which variant each is."""
    rs = np.random.RandomState(seed)
    centres = rs.randint(0, 200, (K, 2, channels, side, side))
    variant = rs.randint(0, 2, len(labels))
    pixels = centres[labels, variant] + rs.randint(0, 40, (len(labels), channels, side, side))
    return torch.from_numpy(pixels.astype(np.uint8)), variant


IMAGES, VARIANT = images_of(LABELS)
SPLIT = Split(IMAGES, torch.from_numpy(LABELS), torch.from_numpy(LABELS))


def apply(kind, ratio, seed=0, split=SPLIT, **other):
    return parse_noise(kind, ratio).apply(split, num_classes=K, seed=seed, **other)


# --- matrices


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """A file of a row-stochastic matrix, and the matrix."""
    P = np.random.RandomState(1).dirichlet(np.ones(K), size=K)
    path = tmp_path_factory.mktemp("matrix") / "P.npy"
    np.save(path, P)
    return path, P


def redrawn_as(kind, ratio):
    """Counts (K, K) of true class and label among what was redrawn, over all seeds."""
    counts = np.zeros((K, K), int)
    for seed in SEEDS:
        found = apply(kind, ratio, seed)
        np.add.at(counts, (LABELS[found.indices], found.labels[found.indices].numpy()), 1)
    return counts


@pytest.mark.parametrize("ratio", [0.3, 1])
@pytest.mark.parametrize("kind", ["symmetric", "symmetric_excluding_true", "transition"])
def test_what_is_redrawn_follows_the_matrix(kind, ratio, matrix):
    path, P = matrix
    off = (1 - np.eye(K)) / (K - 1)
    definition = {"symmetric": np.full((K, K), 1 / K), "symmetric_excluding_true": off}
    expected = definition.get(kind, P)
    counts = redrawn_as(f"transition:{path}" if kind == "transition" else kind, ratio)
    for row, p in zip(counts, expected, strict=True):
        assert row[p == 0].sum() == 0
        assert stats.chisquare(row[p > 0], row.sum() * p[p > 0]).pvalue > 1e-4
    # Wrong labels too are as many as the matrix says, to four deviations.
    share = (counts - np.diag(np.diag(counts))).sum() / counts.sum()
    weights = counts.sum(axis=1) / counts.sum()
    wrong = (weights * (1 - np.diag(expected))).sum()
    assert abs(share - wrong) < 4 * np.sqrt(max(wrong * (1 - wrong), 1e-12) / counts.sum()) + 1e-9


def test_a_matrix_may_be_text(matrix, tmp_path):
    path, P = matrix
    text = tmp_path / "P.csv"
    text.write_text("\n".join(",".join(f"{p:.17g}" for p in row) for row in P) + "\n\n")
    assert apply(f"transition:{text}", 0.7).hash == apply(f"transition:{path}", 0.7).hash


# --- class maps


@given(
    st.floats(0, 1), st.integers(0, 99), st.sampled_from(["pair_flip", "asymmetric:4-1,0-2,2-0"])
)
@settings(deadline=None, max_examples=40)
def test_class_maps_take_exact_counts_of_each_class(ratio, seed, kind):
    targets = {k: (k + 1) % K for k in range(K)} if kind == "pair_flip" else {4: 1, 0: 2, 2: 0}
    found = apply(kind, ratio, seed)
    after = found.labels.numpy()
    for k in range(K):
        n = int((k == LABELS).sum())
        expected = np.zeros(K, int)
        moved = int(n * ratio) if k in targets else 0
        expected[k] += n - moved
        expected[targets.get(k, k)] += moved
        assert np.bincount(after[k == LABELS], minlength=K).tolist() == expected.tolist()
    assert sorted(found.indices.tolist()) == np.flatnonzero(after != LABELS).tolist()
    assert int(found.wrong.sum()) == len(found.indices)


def test_every_member_of_a_class_is_equally_likely():
    drawn = np.zeros(len(LABELS))
    for seed in range(200):
        drawn[apply("pair_flip", 0.4, seed).indices] += 1
    for k in range(K):
        each = drawn[k == LABELS]
        assert stats.chisquare(each).statistic < stats.chi2.ppf(0.9999, len(each) - 1)


def test_the_usual_map_is_cifar10s():
    labels = np.arange(1000) % 10
    found = corrupt(labels, 0.4, num_classes=10, seed=0, kind="asymmetric")
    moves = {(int(a), int(b)) for a, b in zip(labels, found.labels, strict=True) if a != b}
    assert moves == {(9, 1), (2, 0), (3, 5), (5, 3), (4, 7)}
    assert np.bincount(labels[found.indices], minlength=10).tolist() == [
        0,
        0,
        *[40] * 4,
        0,
        0,
        0,
        40,
    ]


def test_a_map_may_be_a_file(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"4": 1, "0": 2, "2": 0}))
    assert apply(f"asymmetric:{path}", 0.5).hash == apply("asymmetric:4-1,0-2,2-0", 0.5).hash


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1, 0]", "not a map of classes"),
        ("3", "not a map of classes"),
        ("{}", "the map of classes is empty"),
        ('{"1": 1}', "class 1 is taken for 1; it must be another class"),
        ('{"1": 9}', "names class 9; there are 5 classes"),
        ('{"one": 2}', "'one': 2 is not a class"),
        ('{"1": 2.0}', "'1': 2.0 is not a class"),
        ('{"1": true}', "'1': True is not a class"),
        ('{"1": [2]}', "'1': .* is not a class"),
        ('{"1": -1}', "class 1 is taken for -1"),
        ('{"1": 2, "1": 3}', "class 1 is taken for two others, 2 and 3"),
        ('{"1": 2, "01": 3}', "class 1 is taken for two others"),
        ('{"1": ', "map.json: "),
        ("\x00\xff", "map.json: "),
    ],
)
def test_a_bad_map_is_refused(content, message, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(content, "latin1")
    with pytest.raises(ValueError, match=message):
        apply(f"asymmetric:{path}", 0.5)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("asymmetric:1", "'1' is not SOURCE-TARGET"),
        ("asymmetric:1-2,", "'' is not SOURCE-TARGET"),
        ("asymmetric:1-1", "class 1 is taken for 1"),
        ("asymmetric:1-2,1-3", "class 1 is taken for two others"),
        ("asymmetric:2-0+symmetric", "is not SOURCE-TARGET"),
        ("asymmetric:1-5", "names class 5; there are 5 classes"),
        ("asymmetric", "of 10 classes; for 5 write"),
        ("symmetric+pair_flip", "is of two kinds"),
        ("transition", "must be written 'transition:MATRIX'"),
        ("transition:P.txt", "a matrix is an .npy or a .csv file"),
        ("open_set:", "names no data"),
        ("open_set", "must be written 'open_set:SOURCE'"),
        ("pair_flip:1", "must be written 'pair_flip'"),
    ],
)
def test_what_is_no_noise_of_these_classes_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        apply(kind, 0.5)


# --- noise that looks at images


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.4, 0.9, 1])
def test_probabilities_to_flip_are_truncated_normal(ratio):
    place = np.linspace(0.001, 0.999, 999)
    low, high = -ratio / 0.1, (1 - ratio) / 0.1
    expected = stats.truncnorm.ppf(place, low, high, loc=ratio, scale=0.1)
    assert flip_probabilities(place, ratio) == pytest.approx(expected, abs=1e-9)
    total = sum(len(apply("instance", ratio, seed).indices) for seed in SEEDS)
    mean, count = stats.truncnorm.mean(low, high, loc=ratio, scale=0.1), len(LABELS) * len(SEEDS)
    assert abs(total - count * mean) < 4 * np.sqrt(count * mean * (1 - mean)) + 1


def test_instance_noise_is_the_papers_one_image_at_a_time():
    """Xia et al. (2020), algorithm 2, from the same draws."""
    ratio, seed = 0.4, 7
    rs = np.random.RandomState(seed)
    place, decides = rs.random_sample((2, len(LABELS)))
    drawn = rs.random_sample(len(LABELS))
    x = IMAGES.reshape(len(LABELS), -1).double().numpy() / 255
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    W = [rs.standard_normal((x.shape[1], K)) for _ in range(K)]
    q = flip_probabilities(place, ratio)
    expected = LABELS.copy()
    for i, y in enumerate(LABELS):
        if decides[i] < q[i]:
            scores = x[i] @ W[y]
            others = [j for j in range(K) if j != y]
            p = np.exp(scores[others] - scores[others].max())
            expected[i] = others[int(np.searchsorted((p / p.sum()).cumsum(), drawn[i], "right"))]
    found = apply("instance", ratio, seed)
    assert found.labels.tolist() == expected.tolist()
    assert found.indices.tolist() == np.flatnonzero(expected != LABELS).tolist()


def information(labels, variant):
    """Mutual information of an image's variant and its label, within classes."""
    parts = [(k == LABELS).nonzero()[0] for k in range(K)]
    return sum(len(p) * mutual_info_score(variant[p], labels[p]) for p in parts) / len(labels)


@pytest.mark.parametrize("kind, depends", [("instance", True), ("pair_flip", False)])
def test_instance_noise_depends_on_the_image_beyond_its_class(kind, depends):
    labels = apply(kind, 0.5, 1).labels.numpy()
    rs = np.random.RandomState(0)
    shuffled = []
    for _ in range(99):
        variant = VARIANT.copy()
        for k in range(K):
            variant[k == LABELS] = rs.permutation(variant[k == LABELS])
        shuffled.append(information(labels, variant))
    assert (information(labels, VARIANT) > max(shuffled)) == depends


def test_margin_noise_takes_what_is_confused_for_what_it_is_confused_with():
    """Classes 0 and 1 overlap, the others lie apart."""
    rs = np.random.RandomState(0)
    labels = np.arange(600) % 4
    centres = np.array([[120, 100, 0, 0], [120, 120, 0, 0], [0, 0, 200, 0], [0, 0, 0, 200]])
    pixels = np.clip(centres[labels] + rs.normal(0, 12, (600, 4)), 0, 255).astype(np.uint8)
    images = torch.from_numpy(pixels).view(600, 1, 2, 2)
    split = Split(images, torch.from_numpy(labels), torch.from_numpy(labels))
    found = parse_noise("margin", 0.1).apply(split, num_classes=4, seed=0)
    assert len(found.indices) == int(found.wrong.sum()) == 60
    assert set(labels[found.indices].tolist()) == {0, 1}
    assert set(found.labels[found.indices].tolist()) == {0, 1}


def test_margin_noise_does_not_hang_on_threads():
    def drawn(threads):
        torch.set_num_threads(threads)
        images = IMAGES.clone()  # another tensor: nothing is remembered
        return apply("margin", 0.3, 5, Split(images, SPLIT.labels, SPLIT.clean_labels))

    before = torch.get_num_threads()
    try:
        one, two = drawn(1), drawn(2)
    finally:
        torch.set_num_threads(before)
    assert one.hash == two.hash
    assert torch.equal(one.indices, two.indices)


OTHER = torch.arange(900 * 16).remainder(251).to(torch.uint8).view(900, 1, 4, 4)


@pytest.mark.parametrize("kind", ["instance", "margin", "pair_flip", "open_set:x"])
def test_corrupted_sets_are_nested_and_depend_on_the_seed_alone(kind):
    other = {"other": OTHER} if kind == "open_set:x" else {}
    less, more, again = (apply(kind, r, 3, **other) for r in (0.2, 0.5, 0.5))
    assert set(less.indices.tolist()) <= set(more.indices.tolist())
    assert torch.equal(less.labels[less.indices], more.labels[less.indices])
    if other:
        assert torch.equal(less.images[less.indices], more.images[less.indices])
    assert more.hash == again.hash
    assert torch.equal(more.indices, again.indices)
    assert not torch.equal(apply(kind, 0.5, 4, **other).indices, more.indices)
    nothing = apply(kind, 0, 3, **other)
    assert len(nothing.indices) == 0
    assert torch.equal(nothing.labels, SPLIT.labels)


@pytest.mark.parametrize("kind", ["instance", "margin", "open_set:x"])
def test_labels_alone_are_not_enough_where_images_are_looked_at(kind):
    with pytest.raises(ValueError, match="looks at images; labels alone are not enough"):
        corrupt(LABELS, 0.5, num_classes=K, seed=0, kind=kind)


def test_open_set_noise_replaces_images_which_then_have_no_true_class():
    found = apply("open_set:x", 0.25, 2, other=OTHER)
    n = len(LABELS) // 4
    assert torch.equal(found.indices, apply("symmetric", 0.25, 2).indices)
    assert torch.equal(found.labels, SPLIT.labels)
    assert found.truth[found.indices].tolist() == [-1] * n
    assert found.wrong.nonzero().flatten().tolist() == sorted(found.indices.tolist())
    kept = ~found.wrong
    assert torch.equal(found.truth[kept], SPLIT.labels[kept])
    assert torch.equal(found.images[kept], SPLIT.images[kept])
    assert torch.equal(SPLIT.images, IMAGES)
    assert torch.equal(found.transition, torch.eye(K, dtype=torch.float64))
    alike = {x.numpy().tobytes() for x in match_shape(OTHER, (1, 6, 6))}
    assert all(x.numpy().tobytes() in alike for x in found.images[found.indices])


@pytest.mark.parametrize(
    "have, want", [((1, 4, 4), (3, 4, 4)), ((3, 4, 4), (1, 4, 4)), ((3, 8, 8), (3, 4, 4))]
)
def test_other_images_keep_their_mean_in_another_shape(have, want):
    images = torch.full((3, *have), 90, dtype=torch.uint8)
    images[1] = 30
    found = match_shape(images, want)
    assert found.shape == (3, *want)
    assert found.dtype == torch.uint8
    assert found.flatten(1).float().mean(1).tolist() == [90, 30, 90]


@pytest.mark.parametrize(
    "other, message",
    [
        (None, "needs the images of x"),
        (OTHER[:10], "has 10 images; 300 are to be replaced"),
        (torch.zeros(600, 4, 6, 6, dtype=torch.uint8), None),
    ],
)
def test_other_images_that_will_not_do_are_refused(other, message):
    if message is None:
        colours = Split(IMAGES.expand(-1, 3, -1, -1), SPLIT.labels, SPLIT.clean_labels)
        with pytest.raises(ValueError, match="4 channels cannot stand among images of 3"):
            apply("open_set:x", 0.5, split=colours, other=other)
    else:
        with pytest.raises(ValueError, match=message):
            apply("open_set:x", 0.5, other=other)


def test_what_is_of_none_of_the_classes_is_wrong_whatever_it_is_labelled():
    truth = torch.from_numpy(LABELS).clone()
    truth[:50] = -1
    split = Split(IMAGES, SPLIT.labels, truth)
    found = apply("symmetric", 0.3, split=split)
    assert bool(found.wrong[:50].all())
    known = truth >= 0
    for i in range(K):
        became = found.labels[(truth == i) & known]
        expected = torch.bincount(became, minlength=K) / len(became)
        assert torch.allclose(found.transition[i].float(), expected)


def test_every_kind_says_whether_it_is_the_same_for_all_classes():
    assert {kind for kind in NOISES if NOISES[kind].uniform} == {
        "symmetric",
        "symmetric_excluding_true",
    }


@pytest.mark.parametrize(
    "content, message",
    [
        (np.eye(4), r"a matrix of shape \(4, 4\); with 5 classes it is \(5, 5\)"),
        (np.eye(5)[:4], r"shape \(4, 5\)"),
        (np.eye(5) * 0.9, "row 0 sums to 0.9; rows must sum to 1"),
        (np.eye(5) * np.nan, "negative or not finite"),
        (2 * np.eye(5) - np.roll(np.eye(5), 1, axis=0), "negative or not finite"),
        (np.eye(5) == 1, "a matrix of bool"),
        (np.eye(5).astype(complex), "a matrix of complex128"),
        ("1,0\n0,one", "P.csv: could not convert string to float: 'one'"),
        ("1,0\n0", "row 2 has 1 entries, the first 2"),
        ("", r"a matrix of shape \(0,\)"),
        (
            b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (5, 5)",
            "P.npy",
        ),
        (b"not an array", "P.npy: "),
        (b"", "P.npy: "),
    ],
)
def test_a_bad_matrix_is_refused_with_its_name(content, message, tmp_path):
    path = tmp_path / ("P.csv" if isinstance(content, str) else "P.npy")
    if isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        apply(f"transition:{path}", 1)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_matrix_that_is_cut_off_or_claims_more_than_there_is_is_refused(tmp_path):
    path = tmp_path / "P.npy"
    np.save(path, np.eye(5))
    whole = path.read_bytes()
    claimed = whole.replace(b"(5, 5)", b"(5, 1234567890123)").replace(b"   ", b"", 1)
    for raw in (whole[:-8], whole + b"\0" * 8, claimed):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"P\.npy: "):
            apply(f"transition:{path}", 1)
    with pytest.raises(FileNotFoundError, match=r"gone\.npy not found"):
        apply(f"transition:{tmp_path}/gone.npy", 1)
