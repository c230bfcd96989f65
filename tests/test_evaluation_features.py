"""Features read without a network: the right samples, labels and classifiers under every key."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from mcr2.evaluation import MEASURES, Key, Labelled, evaluate_features, standard_readouts

K, D, N, M = 4, 9, 240, 80


def clusters(n, generator, spread=1.0):
    y = torch.arange(n) % K
    means = 3 * torch.randn(K, D, generator=torch.Generator().manual_seed(1))
    return means[y] + 2 + spread * torch.randn(n, D, generator=generator), y


@pytest.fixture(scope="module")
def data():
    """Training samples a fifth of whose labels are wrong, test and validation samples, a head."""
    generator = torch.Generator().manual_seed(0)
    H, clean = clusters(N, generator)
    noisy = clean.clone()
    noisy[::5] = (clean[::5] + 1 + torch.arange(N // 5) % (K - 1)) % K
    tested = Labelled(*clusters(M, generator))
    V, truth = clusters(40, generator)
    head = torch.randn(K, D, generator=generator), torch.randn(K, generator=generator)
    validation = Labelled(V, (truth + (torch.arange(40) % 3 == 0)) % K, truth)
    return Labelled(H, noisy, clean), tested, validation, head


def read(train, test, validation, head):
    return evaluate_features(
        train,
        test,
        validation,
        num_classes=K,
        readout="head",
        readouts=standard_readouts(D),
        head=head,
    )


@pytest.fixture(scope="module")
def evaluation(data):
    return read(*data)


def views(data):
    train, test, *_ = data
    wrong = train.labels != train.clean_labels
    return {
        ("train", "noisy"): (train.features, train.labels),
        ("train", "clean"): (train.features, train.clean_labels),
        ("train_wrong", "noisy"): (train.features[wrong], train.labels[wrong]),
        ("train_wrong", "clean"): (train.features[wrong], train.clean_labels[wrong]),
        ("train_correct", "noisy"): (train.features[~wrong], train.labels[~wrong]),
        ("train_correct", "clean"): (train.features[~wrong], train.labels[~wrong]),
        ("test", "clean"): (test.features, test.labels),
    }


def variability(H, y, means):
    """nc1, nc1_ratio and cdnv about given means, with NumPy."""
    H, y, mu = H.double().numpy(), y.numpy(), np.asarray(means)
    centred = mu - mu.mean(0)
    X = H - mu[y]
    within, between = X.T @ X / len(H), centred.T @ centred / K
    v = [((H[y == k] - mu[k]) ** 2).sum(1).mean() for k in range(K)]
    pairs = [(i, j) for i in range(K) for j in range(K) if i != j]
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-8)) / K,
        "nc1_ratio": np.trace(within) / np.trace(between),
        "cdnv": np.mean([(v[i] + v[j]) / 2 / ((mu[i] - mu[j]) ** 2).sum() for i, j in pairs]),
    }


def class_means(H, y):
    return np.stack([H[y == k].double().numpy().mean(0) for k in range(K)])


def test_collapse_is_that_of_each_set_of_samples_by_each_kind_of_labels(data, evaluation):
    for (split, labels), (H, y) in views(data).items():
        expected = variability(H, y, class_means(H, y))
        got = {m: evaluation.get(m, split=split, labels=labels, readout="-") for m in expected}
        assert got == pytest.approx(expected, rel=1e-4), (split, labels)
        smallest = evaluation.get("smallest_class", split=split, labels=labels, readout="-")
        assert smallest == int(torch.bincount(y).min())


def test_collapse_about_training_means_takes_those_of_the_labels_trained_on(data, evaluation):
    train = data[0]
    means = class_means(train.features, train.labels)
    for (split, labels), (H, y) in views(data).items():
        if split == "train":
            continue
        for name, value in variability(H, y, means).items():
            got = evaluation.get(f"{name}_about_train", split=split, labels=labels, readout="-")
            assert got == pytest.approx(value, rel=1e-4), (split, labels, name)
    assert not [k for k in evaluation.measures if k.startswith("features/train/") and "about" in k]


def ridge(data, labels):
    H = data[0].features.double().numpy()
    penalty = 1e-3 * ((H - H.mean(0)) ** 2).sum() / H.size
    return Ridge(alpha=penalty * len(H)).fit(H, np.eye(K)[labels.numpy()])


def test_measures_of_a_classifier_take_the_head_or_the_ridge_of_the_noisy_labels(data, evaluation):
    train, _, _, (W, b) = data
    model = ridge(data, train.labels)
    centres = class_means(train.features, train.labels)
    for name, weight, bias in (
        ("head", W.double().numpy(), b.double().numpy()),
        ("ridge", model.coef_, model.intercept_),
    ):
        for split, labels in (("train", "noisy"), ("train", "clean"), ("test", "clean")):
            H, y = views(data)[split, labels]
            H = H.double().numpy()
            mu = class_means(torch.tensor(H), y)
            centred = mu - mu.mean(0)
            guesses = (H @ weight.T + bias).argmax(1)

            def mismatch(mu, H=H, guesses=guesses):
                near = ((H[:, None] - mu) ** 2).sum(2).argmin(1)
                return np.mean(near != guesses)

            normalised = weight / np.linalg.norm(weight) - centred / np.linalg.norm(centred)
            expected = {"nc3": (normalised**2).sum(), "nc4": mismatch(mu)}
            if split == "test":
                expected["nc4_about_train"] = mismatch(centres)
            scores = H @ weight.T + bias
            own = scores[np.arange(len(H)), y.numpy()]
            scores[np.arange(len(H)), y.numpy()] = -np.inf
            q = own - scores.max(1)
            scale = np.linalg.norm(weight) * np.linalg.norm(H, axis=1).mean()
            for place in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95):
                expected[f"margin_q{round(100 * place):02d}"] = np.quantile(q, place)
                at = f"margin_normalised_q{round(100 * place):02d}"
                expected[at] = np.quantile(q, place) / scale
            expected |= {"margin_mean": q.mean(), "margin_positive": (q > 0).mean()}
            got = {m: evaluation.get(m, split=split, labels=labels, readout=name) for m in expected}
            assert got == pytest.approx(expected, rel=1e-4, abs=1e-6), (name, split, labels)
            if (split, labels) == ("train", "noisy"):
                profile = evaluation.profiles[f"features/train/noisy/{name}/margin_quantiles"]
                np.testing.assert_allclose(
                    profile, np.quantile(q, np.linspace(0, 1, 41)) / scale, rtol=1e-3, atol=1e-6
                )


def test_readouts_called_clean_were_fitted_on_clean_labels(data, evaluation):
    train, test, *_ = data
    H, queries = train.features.double().numpy(), test.features.double().numpy()
    clean, noisy = train.clean_labels.numpy(), train.labels.numpy()
    unit, unit_queries = (X / np.linalg.norm(X, axis=1, keepdims=True) for X in (H, queries))
    readers = {
        "class_mean": lambda y: NearestCentroid().fit(H, y).predict(queries),
        "ridge": lambda y: ridge(data, torch.tensor(y)).predict(queries).argmax(1),
        "knn@5": lambda y: KNeighborsClassifier(5).fit(unit, y).predict(unit_queries),
    }
    differ = 0
    for name, predict in readers.items():
        for readout, labels in ((name, noisy), (f"{name}+clean", clean)):
            got = evaluation.get("accuracy", split="test", labels="clean", readout=readout)
            # Neighbours tie, which scikit-learn breaks by the smallest class.
            slack = 2.5 / M if name == "knn@5" else 0
            expected = np.mean(predict(labels) == test.labels.numpy())
            assert got == pytest.approx(expected, abs=slack + 1e-12)
        pair = [
            evaluation.get("accuracy", split="test", labels="clean", readout=r)
            for r in (name, f"{name}+clean")
        ]
        differ += pair[0] != pair[1]
    assert differ
    fitted_clean = {k.split("/")[3] for k in evaluation.measures if "+clean" in k}
    assert fitted_clean == {f"{name}+clean" for name in standard_readouts(D)}


def test_the_alignment_is_with_the_svm_of_the_noisy_labels(data, evaluation):
    from sklearn.svm import LinearSVC

    train, _, _, (W, _) = data
    H = train.features.double().numpy()
    X = (H - H.mean(0)) / (H - H.mean(0)).std()
    svm = LinearSVC(C=1e3 / N, dual=False, intercept_scaling=10, tol=1e-8, max_iter=9999)
    V = svm.fit(X, train.labels.numpy()).coef_
    for name, weight in (("head", W.double().numpy()), ("ridge", ridge(data, train.labels).coef_)):
        a, b = weight - weight.mean(0), V - V.mean(0)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        got = evaluation.get("svm_alignment", split="train", labels="noisy", readout=name)
        assert got == pytest.approx(np.mean((a * b).sum(1) / norms), abs=1e-4)


def test_ranks_of_classes_are_means_over_classes(data, evaluation):
    for (split, labels), (H, y) in views(data).items():
        if split not in ("train", "test"):
            continue
        energies = [
            np.linalg.svd(H[y == k].double().numpy(), compute_uv=False) ** 2 for k in range(K)
        ]
        ratio = np.mean([e.sum() ** 2 / (e**2).sum() for e in energies])
        dim95 = np.mean([(np.cumsum(e) < 0.95 * e.sum()).sum() + 1 for e in energies])
        get = {"split": split, "labels": labels, "readout": "-"}
        assert evaluation.get("class_participation_ratio", **get) == pytest.approx(ratio, rel=1e-4)
        assert evaluation.get("class_dim95", **get) == dim95
        spectra = evaluation.profiles[f"features/{split}/{labels}/-/class_spectra"]
        expected = [e / e.sum() for e in energies]
        np.testing.assert_allclose(spectra, expected, rtol=1e-4, atol=1e-6)


def test_the_profiles_of_all_features(data, evaluation):
    train, test, *_ = data
    values = np.linalg.eigvalsh(np.cov(train.features.double().numpy().T))[::-1]
    spectrum = evaluation.profiles["features/train/-/-/spectrum"]
    np.testing.assert_allclose(spectrum, values / values.sum(), rtol=1e-4)
    labels = evaluation.profiles["features/test/clean/-/abs_cosine_labels"]
    assert labels == sorted(labels)
    assert labels.count(0) == 12
    first = torch.cat([(test.labels == k).nonzero().flatten()[:12] for k in range(K)])
    Z = test.features[first].double().numpy()
    Z /= np.linalg.norm(Z, axis=1, keepdims=True)
    cosines = evaluation.profiles["features/test/clean/-/abs_cosine"]
    np.testing.assert_allclose(cosines, np.abs(Z @ Z.T), atol=6e-4)
    assert max(len(str(v)) for row in cosines for v in row) <= len("0.123")


def test_the_mean_class_rate_is_over_the_classes_there_are():
    H = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    evaluation = evaluate_features(
        Labelled(H, torch.tensor([0, 0, 2])), num_classes=3, readouts=(), full=False
    )
    # R_0 = 2 · ½ log(1 + 2/(2 · ½)), R_2 = ½ log(1 + 2/(1 · ½)), and no class 1.
    expected = (math.log(3) + math.log(5) / 2) / 2
    got = evaluation.get("class_rate_mean", split="train", labels="noisy", readout="-")
    assert got == pytest.approx(expected)


# ------------------------------------------------------------------------------------ known answers


def simplex(repeats, K=5, d=7, scale=3.0, seed=0):
    """Samples on the K corners of a simplex in d dimensions, about a far centre."""
    rotation, _ = np.linalg.qr(np.random.RandomState(seed).randn(d, d))
    corners = scale * np.pad(np.eye(K) - 1 / K, ((0, 0), (0, d - K))) @ rotation
    y = np.tile(np.arange(K), repeats)
    return torch.tensor(corners[y]), torch.tensor(y), torch.tensor(corners)


def test_an_exact_simplex_is_collapsed_in_every_measure():
    H, y, corners = simplex(20)
    head = (2.5 * corners, None)
    evaluation = evaluate_features(
        Labelled(H, y, y), Labelled(H[:50], y[:50]), num_classes=5, readout="head", head=head
    )
    means = ("nc1", "nc1_ratio", "cdnv", "nc2_equinorm", "nc2_equiangular", "nc2_maxangle")
    of_w = ("nc2_equinorm_w", "nc2_equiangular_w", "nc2_maxangle_w", "nc3", "nc3_etf", "nc4")
    about = ("nc1_about_train", "nc1_ratio_about_train", "cdnv_about_train")
    zero = [
        *(("train", k, "-", m) for k in ("noisy", "clean") for m in (*means, "nc2_etf")),
        *(("test", "clean", "-", m) for m in (*means, "nc2_etf", *about)),
        *(("train", "noisy", C, m) for C in ("head", "ridge") for m in of_w),
        *(("test", "clean", C, m) for C in ("head", "ridge") for m in (*of_w, "nc4_about_train")),
    ]
    for split, labels, readout, measure in zero:
        value = evaluation.get(measure, split=split, labels=labels, readout=readout)
        assert abs(value) < 1e-6, (split, labels, readout, measure)
    expected = {
        ("train", "-", "-", "participation_ratio"): 4,
        ("train", "-", "-", "numerical_rank"): 4,
        ("train", "noisy", "-", "class_participation_ratio"): 1,
        ("train", "noisy", "-", "coherence"): 1 / 16,
        ("train", "noisy", "-", "mean_energy"): 1,
        ("train", "noisy", "-", "means_reliable"): 1,
        # The margin of a corner is K/(K-1) of its score, and ‖W‖_F is √K of one row's norm.
        ("train", "noisy", "head", "margin_normalised_mean"): 5 / 4 / math.sqrt(5),
        ("train", "noisy", "head", "margin_normalised_q05"): 5 / 4 / math.sqrt(5),
        ("test", "clean", "head", "margin_positive"): 1,
        ("test", "clean", "ridge", "accuracy"): 1,
    }
    for (split, labels, readout, measure), value in expected.items():
        got = evaluation.get(measure, split=split, labels=labels, readout=readout)
        assert got == pytest.approx(value), measure
    spectrum = evaluation.profiles["features/train/-/-/spectrum"]
    assert spectrum == pytest.approx([0.25] * 4 + [0] * 3, abs=1e-6)
    # Equal labels are one evaluation under two names, and nothing is wrong or fitted otherwise.
    for key, value in evaluation.measures.items():
        if key.startswith("features/train/noisy/-/"):
            assert evaluation.measures[key.replace("noisy", "clean")] == value
    assert not [k for k in evaluation.measures if "wrong" in k or "correct" in k or "+clean" in k]


def test_gaussian_clusters_have_their_closed_forms():
    K, d, n, size, spread = 6, 8, 60_000, 4.0, 0.5
    y = torch.arange(n) % K
    H = size * torch.eye(K, d, dtype=torch.float64)[y]
    H = H + spread * torch.randn(H.shape, generator=torch.Generator().manual_seed(3)).double()
    evaluation = evaluate_features(Labelled(H, y), num_classes=K)
    ratio = spread**2 / size**2
    expected = {
        "nc1": (K - 1) * ratio,
        "nc1_ratio": d * ratio / (1 - 1 / K),
        "cdnv": d * ratio / 2,
        "mean_energy": 1 / (1 + d * ratio),
        "class_participation_ratio": (1 + d * ratio) ** 2 / ((1 + ratio) ** 2 + (d - 1) * ratio**2),
    }
    got = {m: evaluation.get(m, split="train", labels="noisy", readout="-") for m in expected}
    assert got == pytest.approx(expected, rel=0.02)


# ------------------------------------------------------------------------------- what is undefined


def test_a_class_without_wrong_samples_leaves_their_collapse_undefined():
    generator = torch.Generator().manual_seed(0)
    H, clean = clusters(60, generator)
    noisy = clean.clone()
    noisy[0] = (clean[0] + 1) % K
    evaluation = evaluate_features(Labelled(H, noisy, clean), num_classes=K)
    for labels in ("noisy", "clean"):
        get = {"split": "train_wrong", "labels": labels, "readout": "-"}
        assert evaluation.get("nc1", **get) is None
        assert evaluation.get("classes_present", **get) == 1
        assert evaluation.get("smallest_class", **get) == 0
        # About given means one sample has a distance.
        assert evaluation.get("nc1_ratio_about_train", **get) > 0
        assert evaluation.get("cdnv_about_train", **get) is None
    assert evaluation.get("nc1", split="train_correct", labels="noisy", readout="-") > 0


def test_where_every_label_is_wrong_none_is_correct():
    H, clean = clusters(40, torch.Generator().manual_seed(0))
    evaluation = evaluate_features(Labelled(H, (clean + 1) % K, clean), num_classes=K)
    assert not [k for k in evaluation.measures if "correct" in k]
    assert evaluation.get("fit_corrupted", split="train", labels="noisy") == evaluation.get(
        "fit_noisy", split="train", labels="noisy"
    )


@pytest.mark.parametrize("full", [True, False])
def test_absent_classes_are_named_and_the_others_are_measured(full):
    """Without the samples of a class everything is as if that class did not exist."""
    generator = torch.Generator().manual_seed(0)
    H, clean = clusters(80, generator)
    noisy = torch.where(clean == K - 1, 0, clean)
    test = Labelled(*clusters(40, generator))
    evaluation = evaluate_features(
        Labelled(H, noisy, clean), test, num_classes=K, readouts=standard_readouts(D), full=full
    )
    fewer = evaluate_features(Labelled(H, noisy), num_classes=K - 1, full=full)
    for key, value in fewer.measures.items():
        name = Key.parse(key).measure
        if MEASURES[name].per != "readout" and name != "smallest_class":
            close = value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)
            assert evaluation.measures[key] == close, key
    assert evaluation.notes[0] == f"train, noisy labels: no sample of 1 of {K} classes ({K - 1})"
    assert evaluation.get("classes_present", split="train", labels="noisy") == K - 1
    assert evaluation.get("classes_present", split="test", labels="clean") == K
    assert evaluation.get("nc1", split="test", labels="clean") > 0
    assert evaluation.get("accuracy", split="test", labels="clean") > 0.5
    if full:
        # A sample of a class that is never predicted has no margin; one never trained on no mean.
        assert evaluation.get("margin_mean", split="test", labels="clean") is None
        assert evaluation.get("nc1_about_train", split="test", labels="clean") > 0
        of_known = test.labels < K - 1
        known = Labelled(test.features[of_known], test.labels[of_known])
        alone = evaluate_features(Labelled(H, noisy), known, num_classes=K - 1)
        for name in ("nc1", "nc1_ratio", "cdnv"):
            where = {"split": "test", "labels": "clean"}
            got = evaluation.get(f"{name}_about_train", **where)
            assert got == pytest.approx(alone.get(f"{name}_about_train", **where), rel=1e-6)
        fitted_clean = {"labels": "clean", "readout": "ridge+clean"}
        assert evaluation.get("accuracy", split="test", **fitted_clean) > 0.9


def test_a_test_split_of_classes_never_trained_on_is_measured():
    H, y = clusters(40, torch.Generator().manual_seed(0))
    old = y < 2
    train, test = Labelled(H[old], y[old]), Labelled(H[~old], y[~old])
    evaluation = evaluate_features(train, test, num_classes=K)
    assert evaluation.get("accuracy", split="test", labels="clean") == 0
    assert evaluation.get("nc1_about_train", split="test", labels="clean") is None
    assert evaluation.get("nc1", split="test", labels="clean") > 0
    assert len(evaluation.notes) == 2


def test_a_class_of_one_sample_is_measured_and_flagged():
    H, y = clusters(41, torch.Generator().manual_seed(0))
    y[y == 3] = 2
    y[0] = 3
    evaluation = evaluate_features(Labelled(H, y), num_classes=K)
    assert evaluation.get("smallest_class", split="train", labels="noisy") == 1
    assert evaluation.get("nc1", split="train", labels="noisy") > 0
    note = f"train, noisy labels: one sample only, hence no variance, of 1 of {K} classes (3)"
    assert evaluation.notes == (note,)


def test_features_without_spread_are_measured():
    y = torch.arange(20) % 2
    for H in (torch.zeros(20, 3), torch.ones(20, 3)):
        evaluation = evaluate_features(
            Labelled(H, y, 1 - y), Labelled(H, y), num_classes=2, readouts=standard_readouts(3)
        )
        assert evaluation.get("nc1", split="train", labels="noisy", readout="-") is None
        assert evaluation.get("participation_ratio", split="train") == 0
        assert "features/train/-/-/spectrum" not in evaluation.profiles


def test_a_readout_that_cannot_be_fitted_costs_only_its_own_measures():
    H, y = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.arange(5) % 2
    names = ("knn@5", "nearest_subspace@3", "class_mean")
    train, test = Labelled(H, 1 - y, y), Labelled(H, y)
    evaluation = evaluate_features(train, test, test, num_classes=2, readouts=names)
    for name in names[:2]:
        own = [v for k, v in evaluation.measures.items() if f"/{name}" in k]
        assert len(own) == 7
        assert set(own) == {None}
        told = [note for note in evaluation.notes if note.startswith(name)]
        assert [" could not be fitted: " in note for note in told] == [True, True]
    own = [v for k, v in evaluation.measures.items() if "/class_mean/" in k]
    assert len(own) == 6
    assert None not in own
    with pytest.raises(ValueError, match="k of 5 samples is 5"):
        evaluate_features(train, test, num_classes=2, readout="knn@5")


def test_a_solver_that_breaks_costs_only_its_own_measures(monkeypatch, data):
    from mcr2 import readouts

    def breaks(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setitem(readouts.READOUTS, "linear_svm", breaks)
    train, test, _, head = data
    evaluation = evaluate_features(
        train, test, num_classes=K, head=head, readouts=("linear_svm", "class_mean")
    )
    assert evaluation.get("accuracy", split="test", labels="clean", readout="linear_svm") is None
    for name in ("head", "ridge"):
        assert evaluation.get("svm_alignment", split="train", labels="noisy", readout=name) is None
    assert evaluation.get("accuracy", split="test", labels="clean", readout="class_mean") > 0.5


def test_many_classes_make_no_endless_profiles():
    K, d = 130, 4
    y = torch.arange(2 * K) % K
    H = torch.randn(2 * K, d, generator=torch.Generator().manual_seed(0))
    evaluation = evaluate_features(Labelled(H, y), Labelled(H, y), num_classes=K)
    assert len(evaluation.profiles["features/test/clean/-/abs_cosine"]) == K
    assert len(evaluation.profiles["features/train/noisy/-/class_spectra"]) == 100


# ------------------------------------------------------------------- measuring less, refusing more


def test_the_cheap_evaluation_is_a_part_of_the_full_one(data, evaluation):
    train, test, validation, head = data
    short = evaluate_features(
        train, test, validation, num_classes=K, readout="head", head=head, full=False
    )
    assert short.measures.items() <= evaluation.measures.items()
    assert not short.profiles
    # What trajectories are drawn of.
    for key in (
        *("train/noisy/-/nc1", "test/clean/-/cdnv", "train/noisy/-/nc2_etf"),
        *("train/noisy/head/nc3", "train/noisy/ridge/nc4", "test/clean/ridge/nc3_etf"),
        *("train/-/-/participation_ratio", "test/-/-/dim95", "train/noisy/-/coherence"),
        *("test/clean/-/class_dim95", "train/noisy/-/reduction"),
        *(f"train/noisy/head/margin_normalised_{q}" for q in ("mean", "q05", "q50", "q95")),
        *("validation/noisy/head/accuracy", "validation/clean/ridge/accuracy"),
        *("train/noisy/ridge/fit_corrupted", "train/noisy/head/recovered"),
    ):
        assert f"features/{key}" in short.measures, key


def test_evaluation_changes_nothing_and_repeats(data, evaluation):
    train, test, validation, head = data
    before = [t.clone() for t in (train.features, train.labels, test.features, *head)]
    random = torch.get_rng_state()
    again = read(train, test, validation, head)
    assert again == evaluation
    assert torch.equal(torch.get_rng_state(), random)
    after = (train.features, train.labels, test.features, *head)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_numpy_arrays_are_measured_as_tensors_are(data):
    train, test, validation, head = data
    arrays = [
        Labelled(
            *(None if t is None else t.numpy() for t in (s.features, s.labels, s.clean_labels))
        )
        for s in (train, test, validation)
    ]
    got = evaluate_features(*arrays, num_classes=K, head=tuple(h.numpy() for h in head))
    assert got == evaluate_features(train, test, validation, num_classes=K, head=head)


def test_without_the_truth_nothing_is_said_of_it(data):
    train, test, validation, _ = data
    unknown = [Labelled(s.features, s.labels) for s in (train, validation)]
    evaluation = evaluate_features(unknown[0], test, unknown[1], num_classes=K)
    keys = {Key.parse(text) for text in evaluation.measures}
    assert {(k.split, k.labels) for k in keys if k.labels != "-"} == {
        *(("train", "noisy"), ("validation", "noisy"), ("test", "clean"))
    }
    for name in ("fit_corrupted", "recovered"):
        assert evaluation.get(name, split="train", labels="noisy") is None


GOOD = Labelled(torch.randn(12, 3), torch.arange(12) % 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_classes": 1}, ValueError, "num_classes is 1; it must be at least 2"),
        ({"train": Labelled(GOOD.features.long(), GOOD.labels)}, TypeError, "features must be"),
        (
            {"train": Labelled(GOOD.features, GOOD.labels + 1)},
            ValueError,
            r"train labels run from 1 to 2; .* 0 \.\.\. 1",
        ),
        (
            {"train": Labelled(GOOD.features, GOOD.labels, GOOD.labels - 2)},
            ValueError,
            r"clean train labels run from -2 to -1",
        ),
        ({"train": Labelled(GOOD.features / 0, GOOD.labels)}, ValueError, "must be finite"),
        ({"test": Labelled(GOOD.features.double() * 1e200, GOOD.labels)}, ValueError, "in size"),
        ({"num_classes": 1 << 40}, ValueError, "num_classes is 1099511627776; it must be at most"),
        ({"test": Labelled(GOOD.features, GOOD.labels[:5])}, ValueError, "shape"),
        ({"test": Labelled(GOOD.features[:, :2], GOOD.labels)}, ValueError, "of one width"),
        ({"readout": "head"}, ValueError, "it has none"),
        ({"readouts": ("svm",)}, ValueError, "unknown readout 'svm'"),
        ({"head": (torch.ones(2, 4), None)}, ValueError, "the head's weight has shape"),
        ({"head": (torch.ones(2, 3), torch.ones(3))}, ValueError, "bias"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, message):
    arguments = {"train": GOOD, "num_classes": 2} | change
    with pytest.raises(error, match=message):
        evaluate_features(**arguments)
