"""The audit: scores against float64 loops and scikit-learn, estimates, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from mcr2.audit import SCORES, audit, audit_all, estimates, make_given, pixel_features
from mcr2.audit.known import quality, quality_by_class
from mcr2.audit.ridge import folds_of, out_of_fold, probabilities
from mcr2.audit.streams import Stream
from mcr2.audit.unknown import confident_joint, disagreement, realised
from mcr2.audit.with_cleanlab import CLEANLAB


def clusters(N=200, d=6, K=3, share=0.15, seed=0, spread=0.35):
    """Unit directions with noise, and labels of which a share is the next class."""
    rng = np.random.default_rng(seed)
    true = np.arange(N) % K
    H = (np.eye(K, d)[true] + spread * rng.normal(size=(N, d))).astype(np.float32)
    wrong = rng.permutation(N)[: round(share * N)]
    given_labels = true.copy()
    given_labels[wrong] = (true[wrong] + 1) % K
    return H, given_labels, true


def unit64(H):
    H = H.astype(np.float64)
    norms = np.linalg.norm(H, axis=1, keepdims=True)
    return H / np.where(norms > 0, norms, 1)


def by_loops(H, y, K, eps_sq=0.5):
    """The coding length as the design writes it, with each class's covariance and its inverse."""
    Z, d = unit64(H), H.shape[1]
    scores, suggested = np.empty(len(y)), np.empty(len(y), int)
    for i, z in enumerate(Z):
        lengths = np.full(K, np.inf)
        for k in range(K):
            n = int((y == k).sum())
            if n:
                S = sum(np.outer(x, x) for x in Z[y == k]) / n
                c = d / (n * eps_sq)
                inverse = np.linalg.inv(np.eye(d) + c * S * n)
                lengths[k] = n * 0.5 * np.log(1 + c * z @ inverse @ z)
        others = np.delete(lengths, y[i]).min()
        scores[i], suggested[i] = lengths[y[i]] - others, lengths.argmin()
    return scores, suggested


# ------------------------------------------------------------------------------------- scores


def test_coding_length_is_the_formula_with_explicit_covariances():
    H, y, _ = clusters(60)
    scores, suggested = by_loops(H, y, 4)
    found = audit(H.astype(np.float64), y, num_classes=4)
    assert np.allclose(found.scores, scores, rtol=1e-9, atol=1e-9)
    assert np.array_equal(found.suggested, suggested)
    other, _ = by_loops(H, y, 4, eps_sq=0.1)
    assert np.allclose(audit(H, y, num_classes=4, eps_sq=0.1).scores, other, rtol=1e-3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(0, 12), min_size=2, max_size=5).filter(
        lambda c: sum(n > 0 for n in c) > 1
    ),
    d=st.integers(1, 7),
    seed=st.integers(0, 99),
)
def test_imbalance_empty_classes_and_single_samples(counts, d, seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    H = rng.normal(size=(len(y), d))
    scores, suggested = by_loops(H, y, len(counts))
    found = audit(H, y, num_classes=len(counts))
    assert np.allclose(found.scores, scores, atol=1e-8)
    differs = found.suggested.numpy() != suggested
    assert np.abs(scores[differs]).max(initial=0) < 1e-8  # only where two classes tie
    for name, each in audit_all(make_given(H, y, len(counts))).items():
        assert bool(each.scores.isfinite().all()), name
        assert set(each.suggested.tolist()) <= set(y.tolist()), name


@pytest.mark.parametrize("name", [n for n in SCORES if n not in ("own_head_margin", "aum")])
def test_wrong_labels_of_two_clusters_come_first(name):
    H, y, true = clusters(120, d=8, K=2, share=0.1, spread=0.15)
    found = audit(H, y, score=name)
    wrong = np.flatnonzero(y != true)
    assert set(found.ranking[: len(wrong)].tolist()) == set(wrong)
    assert np.array_equal(found.suggested, true)
    assert np.array_equal(found.is_label_issue, y != true)
    order = found.label_score.argsort(stable=True)  # small where suspicious
    assert set(order[: len(wrong)].tolist()) == set(wrong)


def test_subspace_is_the_alignment_with_the_leading_eigenvector():
    H, y, _ = clusters()
    Z = unit64(H)
    aligned = np.stack(
        [(Z @ np.linalg.svd(Z[y == k], full_matrices=False)[2][0]) ** 2 for k in range(3)], axis=1
    )
    found = audit(H.astype(np.float64), y, score="subspace")
    assert np.allclose(found.scores, -aligned[np.arange(len(y)), y])
    assert np.array_equal(found.suggested, aligned.argmax(1))


def test_margins_of_a_head_and_their_mean_over_epochs():
    H, y, _ = clusters()
    W, b = np.random.default_rng(1).normal(size=(3, 6)), np.array([0.5, 0.0, -0.5])

    def by_hand(logits):
        others = np.where(np.eye(3, dtype=bool)[y], -np.inf, logits)
        return others.max(1) - logits[np.arange(len(y)), y]

    logits = H @ W.T + b
    found = audit(H, y, score="own_head_margin", head=(W, b))
    assert np.allclose(found.scores, by_hand(logits), atol=1e-6)
    assert np.array_equal(found.suggested, logits.argmax(1))
    earlier = np.random.default_rng(2).normal(size=logits.shape)
    found = audit(H, y, score="aum", epochs=[earlier, logits])
    assert np.allclose(found.scores, (by_hand(earlier) + by_hand(logits)) / 2)
    assert np.array_equal(found.suggested, (earlier + logits).argmax(1))


def test_knn_counts_the_votes_of_other_samples():
    H, y, _ = clusters()
    Z = unit64(H)
    nearest = NearestNeighbors(n_neighbors=11, metric="cosine").fit(Z).kneighbors(Z)[1][:, 1:]
    votes = np.stack([(y[nearest] == k).sum(1) for k in range(3)], axis=1)
    own = votes[np.arange(len(y)), y]
    others = np.where(np.eye(3, dtype=bool)[y], -1, votes).max(1)
    # Cosines break ties by less than half a vote on either side.
    assert np.abs(audit(H, y, score="knn").scores.numpy() - (others - own)).max() < 1


def test_ridge_is_fitted_on_the_other_folds():
    H, y, _ = clusters(97, d=5)
    H = H.astype(np.float64) + 40  # far from the origin
    scores = out_of_fold(Stream(H, len(y)), torch.from_numpy(y), 3, seed=3)
    folds = folds_of(torch.from_numpy(y), 3).numpy()
    expected = np.empty((len(y), 3))
    for fold in range(5):
        own, rest = folds == fold, folds != fold
        X = H[rest] - H[rest].mean(0)
        alpha = 1e-3 * (X**2).mean() * rest.sum()
        model = Ridge(alpha=alpha).fit(H[rest], np.eye(3)[y[rest]])
        expected[own] = model.predict(H[own])
    assert np.allclose(scores, expected, atol=1e-9)
    assert np.allclose(probabilities(scores).sum(1), 1)
    sizes = [np.bincount(folds[y == k], minlength=5) for k in range(3)]
    assert all(size.max() - size.min() <= 1 for size in sizes)


def test_the_ensemble_is_the_mean_rank():
    H, y, _ = clusters(150)
    found = audit_all(make_given(H, y))
    others = [name for name in found if name != "ensemble" and "cleanlab" not in name]
    members = [found[name].scores.numpy() for name in others]
    ranks = [[np.mean((m < v) + 0.5 * (m == v)) * len(m) - 0.5 for v in m] for m in members]
    assert np.allclose(found["ensemble"].scores, np.mean(ranks, axis=0) / (len(y) - 1))


def test_a_second_iteration_learns_classes_from_labels_that_were_kept():
    H, y, _ = clusters(90, share=0.2)
    first = audit(H.astype(np.float64), y)
    kept = first.suggested.numpy() == y
    twice = audit(H.astype(np.float64), y, iterations=2)
    # Scores of kept samples among kept samples are those of an audit of these alone.
    alone, _ = by_loops(H[kept], y[kept], 3)
    assert np.allclose(twice.scores.numpy()[kept], alone)
    # A class that would lose all its samples stays as it was.
    H = np.array([[1.0, 0], [1, 0.1], [1, -0.1], [1, 0.05]])
    again = audit(H, [0, 0, 0, 1], iterations=3)
    assert bool(again.scores.isfinite().all())


# ------------------------------------------------------------------------------------- inputs


@pytest.mark.parametrize("name", ["coding_length", "subspace", "ridge_cv"])
def test_chunks_make_what_the_whole_makes(name, tmp_path, monkeypatch):
    H, y, _ = clusters(1000)
    whole = audit(H, y, score=name)
    np.save(tmp_path / "H.npy", H)
    mapped = np.load(tmp_path / "H.npy", mmap_mode="r")
    monkeypatch.setattr("mcr2.audit.streams._CHUNK", 1)  # 256 samples at a time
    for features in (mapped, torch.from_numpy(H), [H[:7], H[7:500], torch.from_numpy(H[500:])]):
        found = audit(features, y, score=name)
        assert np.allclose(found.scores, whole.scores, rtol=1e-4, atol=1e-4)
        assert (found.suggested == whole.suggested).double().mean() > 0.998


def test_single_and_half_precision_rank_like_double():
    H, y, true = clusters(400, d=16, spread=0.3)
    exact = audit(H.astype(np.float64), y)
    single, half = audit(H, y), audit(H.astype(np.float16), y)
    assert np.allclose(single.scores, exact.scores, rtol=1e-4, atol=1e-4)
    assert abs(quality(half.scores, y, true).auroc - quality(exact.scores, y, true).auroc) < 1e-3
    assert audit(torch.from_numpy(H).bfloat16(), y).scores.dtype == torch.float64


def test_scale_and_order_of_samples_change_nothing():
    H, y, _ = clusters()
    order = np.random.default_rng(0).permutation(len(y))
    found, moved = audit(H, y), audit(1000 * H[order], y[order])
    assert np.allclose(moved.scores, found.scores[order], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"labels": np.zeros(200, int)}, ValueError, "all 200 labels are 0"),
        ({"labels": np.arange(199) % 3}, ValueError, "199 labels of 200 features"),
        ({"num_classes": 2}, ValueError, r"must be in 0 \.\.\. 1"),
        ({"features": np.full((200, 3), np.nan)}, ValueError, "without NaN"),
        ({"features": np.ones((200, 3), int)}, TypeError, "floating"),
        ({"features": np.ones(200)}, ValueError, r"must be \(N, d\)"),
        ({"features": iter([np.ones((200, 2))])}, TypeError, "iterated over again"),
        ({"features": [np.ones((150, 2))]}, ValueError, "200 labels of 150 features"),
        ({"features": [np.ones((150, 2))] * 2}, ValueError, "200 labels of more than 200"),
        ({"features": [np.ones((150, 2)), np.ones((50, 3))]}, ValueError, r"must be \(N, 2\)"),
        ({"score": "guess"}, ValueError, "unknown score 'guess'; choose from coding_length"),
        ({"score": "aum"}, ValueError, "needs class scores at epochs"),
        ({"score": "own_head_margin"}, ValueError, "needs a head"),
        ({"score": "own_head_margin", "head": (np.ones((3, 5)), None)}, ValueError, "weight"),
        ({"eps_sq": 0}, ValueError, "eps_sq is 0; it must be positive"),
        ({"iterations": 0}, ValueError, "iterations is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_audited_is_refused(change, error, message):
    H, y, _ = clusters()
    arguments = {"features": H, "labels": y} | change
    with pytest.raises(error, match=message):
        audit(arguments.pop("features"), arguments.pop("labels"), **arguments)


def test_pixels_are_projected_on_their_leading_directions():
    rng = np.random.default_rng(0)
    basis, weights = rng.random((5, 48)), rng.random((40, 5)) * [3, 1, 1, 1, 1]
    pixels = np.clip(80 * weights @ basis, 0, 255).astype(np.uint8)
    X = pixels / np.linalg.norm(pixels / 255.0, axis=1, keepdims=True) / 255
    expected = X @ np.linalg.svd(X, full_matrices=False)[2][:3].T
    found = pixel_features(torch.from_numpy(pixels).view(40, 3, 4, 4), dim=3).numpy()
    assert np.allclose(found @ found.T, expected @ expected.T, atol=1e-4)
    whole = pixel_features(torch.from_numpy(pixels).view(40, 3, 4, 4), dim=64).numpy()
    assert whole.shape == (40, 40)
    assert np.allclose(whole @ whole.T, X @ X.T, atol=1e-5)


# ------------------------------------------------------------------ how good, and how many wrong


def test_quality_is_that_of_pairs_and_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores, true = rng.integers(0, 9, 80) / 8, rng.integers(0, 3, 80)
    y = np.where(rng.random(80) < 0.3, (true + 1) % 3, true)
    wrong = y != true
    pairs = scores[wrong][:, None] - scores[~wrong]
    found = quality(scores, y, true)
    assert found.wrong == wrong.sum()
    assert found.auroc == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())
    assert found.average_precision == pytest.approx(average_precision_score(wrong, scores))
    first = np.argsort(-scores, kind="stable")[: wrong.sum()]
    assert found.precision_at_count == pytest.approx(wrong[first].mean())
    for k, own in enumerate(quality_by_class(scores, y, true, num_classes=4)[:3]):
        assert own.auroc == pytest.approx(roc_auc_score(wrong[y == k], scores[y == k]))


def test_quality_where_all_is_right_or_all_is_wrong():
    right = quality(np.array([0.5, 0.2]), [0, 1], [0, 1])
    assert (right.wrong, right.auroc, right.average_precision) == (0, None, None)
    wrong = quality(np.array([0.5, 0.2]), [0, 1], [1, 0])
    assert (wrong.auroc, wrong.average_precision, wrong.precision_at_count) == (None, 1, 1)
    empty = quality_by_class(np.array([0.5, 0.2]), [0, 1], [0, 1], num_classes=3)[2]
    assert empty.wrong == 0


def test_samples_of_no_class_are_wrong_and_in_no_row_of_the_transition():
    y, true = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, -1])
    found = realised(y, true, 2)
    assert (found.wrong, found.transition.tolist()) == (2, [[0.5, 0.5], [0, 1]])
    assert quality(np.array([0.1, 0.9, 0.2, 0.8]), y, true).auroc == 1
    by_class = quality_by_class(np.array([0.1, 0.9, 0.2, 0.8]), y, true, num_classes=2)
    assert [one.wrong for one in by_class] == [1, 1]
    with pytest.raises(ValueError, match="true labels run from -2 to 1"):
        quality(np.array([0.1, 0.9]), [0, 1], [-2, 1])


def test_the_confident_joint_counts_as_it_is_defined():
    rng = np.random.default_rng(0)
    P, y = rng.dirichlet(np.ones(4), 120), rng.integers(0, 3, 120)  # nobody is labelled 3
    thresholds = [P[y == k, k].mean() for k in range(3)] + [np.inf]
    C = np.zeros((4, 4))
    for p, label in zip(P, y, strict=True):
        confident = [k for k in range(4) if p[k] >= thresholds[k]]
        if confident:
            C[label, max(confident, key=lambda k: p[k])] += 1
    joint = C[:3] / C[:3].sum(1, keepdims=True) * np.bincount(y)[:, None]
    found = confident_joint(torch.from_numpy(y), torch.from_numpy(P))
    assert found.wrong == round(120 - np.trace(joint))
    columns = joint[:, :3].sum(0, keepdims=True)
    assert np.allclose(found.transition[:3, :3], (joint[:, :3] / columns).T)
    assert found.transition[3].tolist() == [0, 0, 0, 1]


def test_estimates_find_the_noise_of_separate_classes():
    H, y, true = clusters(600, share=0.2, spread=0.1)
    realised = np.array([[np.mean(y[true == i] == j) for j in range(3)] for i in range(3)])
    for estimate in estimates(make_given(H, y), audit(H, y)):
        assert abs(estimate.wrong - 120) <= 6, estimate.method
        assert np.abs(estimate.transition.numpy() - realised).max() < 0.05, estimate.method
    exact = disagreement(torch.from_numpy(y), torch.from_numpy(true), 3)
    assert np.allclose(exact.transition, realised)


def test_cleanlab_reads_our_probabilities():
    pytest.importorskip("cleanlab", reason="needs the extra mcr2[cleanlab]")
    pytest.importorskip("datasets", reason="needs the extra mcr2[cleanlab]")

    H, y, true = clusters(300, share=0.1, spread=0.1)
    made = make_given(H, y)
    own = audit(H, y, score="ridge_cv")
    for find in CLEANLAB.values():
        found = find(made.labels, made.probabilities)
        assert quality(-found.label_score, y, true).auroc > 0.99
        assert (found.is_label_issue == own.is_label_issue).double().mean() > 0.95
        assert (found.predicted_label == own.suggested).double().mean() > 0.95
