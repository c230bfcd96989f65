"""Readouts agree with scikit-learn and with float64 loops, and never predict an absent class."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from mcr2.readouts import (
    NUMBERED,
    READOUTS,
    WITH_COMPONENTS,
    LinearClassifier,
    class_bases,
    fit_class_mean,
    fit_knn,
    fit_linear_svm,
    fit_logistic_regression,
    fit_readout,
    fit_ridge,
    parse_readout,
)

K, D = 4, 7
NAMES = [f"{kind}@2" if kind in NUMBERED else kind for kind in READOUTS]


def blobs(n=300, seed=0, d=D, classes=K):
    """Overlapping, imbalanced, anisotropic classes: no classifier is perfect on them."""
    rng = np.random.RandomState(seed)
    y = np.concatenate([np.arange(classes), rng.binomial(classes - 1, 0.35, n - classes)])
    mixing = rng.randn(classes, d, d)
    X = rng.randn(classes, d)[y] + np.einsum("nd,nde->ne", rng.randn(n, d), mixing[y]) / 2
    return torch.tensor(X, dtype=torch.float32), torch.tensor(y)


X, Y = blobs()
TEST, _ = blobs(seed=1)


@pytest.mark.parametrize("n", [1, 3, D - 1])
def test_the_centred_subspace_is_pca_of_each_class(n):
    got = fit_readout(f"nearest_subspace_centred@{n}", X, Y, num_classes=K).scores(TEST)
    for k in range(K):
        pca = PCA(n, svd_solver="full").fit(X[k == Y].double().numpy())
        T = TEST.double().numpy()
        residual = T - pca.inverse_transform(pca.transform(T))
        np.testing.assert_allclose(got[:, k], -(residual**2).sum(1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 3, D - 1])
def test_the_uncentred_subspace_is_the_truncated_svd_of_each_class(n):
    got = fit_readout(f"nearest_subspace@{n}", X, Y, num_classes=K).scores(TEST)
    T = TEST.double().numpy()
    for k in range(K):
        svd = TruncatedSVD(n, algorithm="arpack").fit(X[k == Y].double().numpy())
        residual = T - svd.inverse_transform(svd.transform(T))
        np.testing.assert_allclose(got[:, k], -(residual**2).sum(1), rtol=1e-7, atol=1e-7)


def test_class_mean_is_nearest_centroid():
    oracle = NearestCentroid().fit(X.double().numpy(), Y.numpy())
    readout = fit_class_mean(X, Y, num_classes=K)
    np.testing.assert_allclose(readout.means, oracle.centroids_, atol=1e-12)
    np.testing.assert_array_equal(readout.predict(TEST), oracle.predict(TEST.double().numpy()))


def test_ridge_is_ridge_on_one_hot_labels_with_a_free_bias():
    H, onehot = X.double().numpy(), np.eye(K)[Y.numpy()]
    penalty = 1e-3 * ((H - H.mean(0)) ** 2).sum() / H.size
    oracle = Ridge(alpha=penalty * len(H)).fit(H, onehot)
    readout = fit_ridge(X, Y, num_classes=K)
    np.testing.assert_allclose(readout.weight, oracle.coef_, atol=1e-10)
    np.testing.assert_allclose(readout.bias, oracle.intercept_, atol=1e-10)


def test_ridge_does_not_change_with_the_scale_or_copies_of_the_data():
    reference = fit_ridge(X, Y, num_classes=K).scores(TEST)
    scaled = fit_ridge(X * 64, Y, num_classes=K).scores(TEST * 64)
    copied = fit_ridge(torch.cat([X, X]), torch.cat([Y, Y]), num_classes=K).scores(TEST)
    torch.testing.assert_close(scaled, reference)
    torch.testing.assert_close(copied, reference)


def test_ridge_on_constant_features_predicts_the_majority():
    y = torch.tensor([1, 1, 0])
    assert fit_ridge(torch.ones(3, 2), y, num_classes=2).predict(torch.randn(4, 2)).eq(1).all()


def standardised(H):
    H = H.double().numpy()
    scale = np.sqrt(((H - H.mean(0)) ** 2).mean())
    return (H - H.mean(0)) / scale


def minimised(loss, H, rows):
    """Minimise a smooth loss of ``rows`` scores and their penalty, without scikit-learn."""
    d = H.shape[1]

    def objective(p):
        W, b = torch.split(p.view(rows, d + 1), [d, 1], dim=1)
        return loss(torch.tensor(H) @ W.T + b.T, b) + 5e-4 * W.square().sum()

    def with_gradient(p):
        p = torch.tensor(p, requires_grad=True)
        value = objective(p)
        value.backward()
        return value.item(), p.grad.numpy()

    start = np.zeros(rows * (d + 1))
    options = {"maxiter": 5000, "gtol": 1e-10, "ftol": 1e-15}
    p = minimize(with_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    p = p.reshape(rows, d + 1)
    return H @ p[:, :-1].T + p[:, -1]


@pytest.mark.parametrize("classes", [2, K])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-6, 0), (10, 500)])
def test_logistic_regression_minimises_cross_entropy_and_its_penalty(classes, scale, shift):
    y = Y % classes
    want = minimised(lambda s, b: torch.nn.functional.cross_entropy(s, y), standardised(X), classes)
    H = X.double() * scale + shift
    got = fit_logistic_regression(H, y, num_classes=classes).scores(H).numpy()

    def free(scores):  # a constant added to all scores of a sample is no difference
        return scores - scores.mean(1, keepdims=True)

    np.testing.assert_allclose(free(got), free(want), atol=1e-3)


@pytest.mark.parametrize("classes", [2, K])
@pytest.mark.parametrize("scale, shift", [(1, 0), (1e-6, 0), (10, 500)])
def test_the_linear_svm_minimises_its_squared_hinge(classes, scale, shift):
    y = Y % classes
    t = 2.0 * torch.nn.functional.one_hot(y, classes) - 1

    def loss(scores, b):
        hinge = (1 - t * scores).clamp(min=0).square().mean(0).sum()
        return hinge + 5e-4 * (b / 10).square().sum()

    H = X.double() * scale + shift
    got = fit_linear_svm(H, y, num_classes=classes).scores(H)
    np.testing.assert_allclose(got, minimised(loss, standardised(X), classes), atol=1e-4)


@pytest.mark.parametrize("fit", [fit_logistic_regression, fit_linear_svm])
def test_linear_fits_repeat_exactly_and_take_one_class_or_no_spread(fit):
    first, second = (fit(X, Y, num_classes=K) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert fit(X, torch.full_like(Y, 2), num_classes=K).predict(TEST).eq(2).all()
    y = torch.tensor([1, 1, 0])
    assert fit(torch.ones(3, 2), y, num_classes=3).predict(torch.randn(4, 2)).eq(1).all()


def votes(directions, y, k, queries):
    """The definition, sample by sample, for queries that are rows of unit norm."""
    out = np.zeros((len(queries), K))
    for i, q in enumerate(queries):
        for j in np.argsort(-(directions @ q))[:k]:
            out[i, y[j]] += 1
    return out


@pytest.mark.parametrize("k", [1, 5, 30])
def test_knn_is_scikit_learns_by_cosine_wherever_votes_differ(k):
    readout = fit_readout(f"knn@{k}", X, Y, num_classes=K)
    unit, test = (
        H.double().numpy() / np.linalg.norm(H.double().numpy(), axis=1, keepdims=True)
        for H in (X, TEST)
    )
    counts = votes(unit, Y.numpy(), k, test)
    scores = readout.scores(TEST)
    np.testing.assert_array_equal(scores.round(), counts)
    clear = np.sort(counts, 1)[:, -1] > np.sort(counts, 1)[:, -2]
    oracle = KNeighborsClassifier(k, metric="cosine").fit(X.double().numpy(), Y.numpy())
    want = oracle.predict(TEST.double().numpy())
    np.testing.assert_array_equal(readout.predict(TEST)[clear], want[clear])


def test_ties_in_votes_go_to_the_nearer_class():
    H = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    readout = fit_readout("knn@1", torch.cat([H, -H]), torch.tensor([0, 1, 0, 1]), num_classes=2)
    both = type(readout)(readout.directions, readout.labels, readout.present, k=2)
    queries = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    assert both.scores(queries).round().eq(1).all()
    assert both.predict(queries).tolist() == [0, 1]


@pytest.mark.parametrize("k", [1, 4])
def test_knn_on_training_samples_leaves_the_sample_out(k, monkeypatch):
    readout = fit_knn(X, Y, num_classes=K, k=k)
    monkeypatch.setattr("mcr2.readouts._CHUNK", 7 * len(X))
    got = readout.predict_training(X)
    for i in range(0, len(X), 17):
        rest = torch.arange(len(X)) != i
        alone = fit_knn(X[rest], Y[rest], num_classes=K, k=k)
        assert alone.predict(X[i : i + 1]) == got[i]
    assert k > 1 or fit_knn(X, Y, num_classes=K, k=1).predict(X).equal(Y)
    with pytest.raises(ValueError, match="fitted on 300 samples, not on 299"):
        readout.predict_training(X[1:])


def test_only_neighbours_tell_training_samples_from_others():
    for name in NAMES:
        readout = fit_readout(name, X, Y, num_classes=K)
        same = readout.predict_training(X).equal(readout.predict(X))
        assert same == (not name.startswith("knn"))


def test_one_eigendecomposition_serves_every_number_of_components():
    for centred, kind in ((False, "nearest_subspace"), (True, "nearest_subspace_centred")):
        bases = class_bases(X, Y, num_classes=K, centred=centred)
        for n in range(1, D):
            want = fit_readout(f"{kind}@{n}", X, Y, num_classes=K).scores(TEST)
            torch.testing.assert_close(bases.leading(n).scores(TEST), want)


def test_directions_are_orthonormal_up_to_the_rank_of_the_class():
    few = torch.cat([(Y == 0).nonzero()[:3], (Y != 0).nonzero()]).flatten()
    for centred in (False, True):
        bases = class_bases(X[few], Y[few], num_classes=K, centred=centred).bases
        for k, rank in enumerate((3 - centred, D, D, D)):
            expected = torch.zeros(D, D, dtype=torch.float64)
            expected[:rank, :rank] = torch.eye(rank)
            torch.testing.assert_close(bases[k].T @ bases[k], expected)


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_class_is_never_predicted(name):
    readout = fit_readout(name, X, Y, num_classes=K + 2)
    scores = readout.scores(torch.cat([TEST, torch.zeros(1, D)]))
    assert scores[:, K:].eq(-torch.inf).all()
    assert scores[:, :K].isfinite().all()
    assert readout.predict(TEST).max() < K


@pytest.mark.parametrize("name", NAMES)
def test_order_of_samples_and_a_rotation_change_no_score(name):
    permutation = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    Q = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q
    reference = fit_readout(name, X, Y, num_classes=K).scores(TEST)
    moved = fit_readout(name, (X.double() @ Q)[permutation], Y[permutation], num_classes=K)
    # Solvers that stop at a tolerance take other steps to the same minimum.
    slack = {"logistic_regression": 1e-3, "linear_svm": 1e-5}.get(name, 1e-7)
    torch.testing.assert_close(moved.scores(TEST.double() @ Q), reference, rtol=slack, atol=slack)


@pytest.mark.parametrize("name", ["nearest_subspace_centred@2", "class_mean", "ridge"])
def test_means_of_1e4_beside_a_spread_of_1_change_no_prediction(name):
    shifted, test = X.double() + 1e4, TEST.double() + 1e4
    want = fit_readout(name, X, Y, num_classes=K).scores(TEST)
    got = fit_readout(name, shifted, Y, num_classes=K).scores(test)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_a_class_of_one_sample_is_its_line_or_its_point():
    H = torch.cat([X, torch.full((1, D), 2.0)])
    y = torch.cat([Y, torch.tensor([K])])
    line = fit_readout("nearest_subspace@3", H, y, num_classes=K + 1).scores(TEST)[:, K].double()
    u = torch.full((D,), D**-0.5, dtype=torch.float64)
    T = TEST.double()
    torch.testing.assert_close(line, -(T - torch.outer(T @ u, u)).square().sum(1))
    point = fit_readout("nearest_subspace_centred@3", H, y, num_classes=K + 1).scores(TEST)[:, K]
    torch.testing.assert_close(point, -(T - 2).square().sum(1))


def test_with_fewer_samples_than_dimensions_every_sample_is_in_its_own_subspace():
    H, y = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    for name in ("nearest_subspace@10", "nearest_subspace_centred@10", "ridge", "class_mean"):
        readout = fit_readout(name, H, y, num_classes=2)
        assert readout.predict(H).equal(y)
    inside = fit_readout("nearest_subspace@10", H, y, num_classes=2).scores(H)
    assert inside.gather(1, y[:, None]).abs().max() < 1e-12


def test_half_precision_features_give_the_scores_of_their_exact_values():
    H = X.bfloat16()
    got = fit_readout("nearest_subspace@2", H, Y, num_classes=K).scores(TEST)
    want = fit_readout("nearest_subspace@2", H.double(), Y, num_classes=K).scores(TEST)
    assert torch.equal(got, want)


def test_the_head_is_used_as_it_is_and_copied():
    W, b = torch.randn(K, D), torch.randn(K)
    readout = fit_readout("head", X, Y, num_classes=K, head=(W, b))
    want = (TEST @ W.T + b).double()
    W.zero_()
    torch.testing.assert_close(readout.scores(TEST), want, rtol=1e-5, atol=1e-5)
    unbiased = fit_readout("head", X, Y, num_classes=K, head=(torch.eye(K, D), None))
    torch.testing.assert_close(unbiased.scores(TEST), TEST[:, :K].double())


def test_a_fit_needs_no_gradient_and_keeps_none():
    readout = fit_readout("ridge", X.clone().requires_grad_(), Y, num_classes=K)
    assert not readout.scores(TEST.clone().requires_grad_()).requires_grad


def test_names_parse():
    assert parse_readout("nearest_subspace_centred@10") == ("nearest_subspace_centred", 10)
    assert parse_readout("knn@200") == ("knn", 200)
    assert set(WITH_COMPONENTS) < set(NUMBERED) < set(READOUTS)
    assert NUMBERED["nearest_subspace_centred"] == "n_components"
    assert NUMBERED["knn"] == "k"
    assert [parse_readout(n)[1] for n in ("head", "ridge", "class_mean")] == [None] * 3


@pytest.mark.parametrize(
    "name, message",
    [
        ("svm", "choose from head, nearest_subspace@n, .*, class_mean, ridge"),
        ("", "choose from"),
        ("nearest_subspace", "needs a number"),
        ("nearest_subspace@", "needs a number"),
        ("nearest_subspace@0", "needs a number"),
        ("nearest_subspace@-1", "needs a number"),
        ("nearest_subspace@03", "needs a number"),
        ("nearest_subspace@2.5", "needs a number"),
        ("knn", "needs a number"),
        ("knn@0", "needs a number"),
        ("linear_svm@3", "takes no number"),
        ("ridge@3", "takes no number"),
        ("head@", "takes no number"),
    ],
)
def test_a_wrong_name_is_refused_with_what_is_allowed(name, message):
    with pytest.raises(ValueError, match=message):
        parse_readout(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "features, labels, error, message",
    [
        (X[:, 0], Y, ValueError, r"\(N, d\)"),
        (X[:0], Y[:0], ValueError, r"shape \(0, 7\)"),
        (X, Y[1:], ValueError, r"must be \(300,\)"),
        (X, Y - 1, ValueError, r"from -1 to 2; .*0 \.\.\. 3"),
        (X, Y + 1, ValueError, r"from 1 to 4; .*0 \.\.\. 3"),
        (X, Y.float(), TypeError, "must be integers"),
        (X.long(), Y, TypeError, "floating"),
        (X.log(), Y, ValueError, "finite"),
        (1e200 * X.double(), Y, ValueError, r"features go up to \d.*e\+200 in size"),
        (1e-200 * X.double(), Y, ValueError, r"features go up to \d.*e-200 in size"),
    ],
)
def test_bad_training_sets_are_refused(name, features, labels, error, message):
    with pytest.raises(error, match=message):
        fit_readout(name, features, labels, num_classes=K)


def test_bad_numbers_heads_and_widths_are_refused():
    with pytest.raises(ValueError, match="n_components is 7; it must be between 1 and 6"):
        fit_readout(f"nearest_subspace@{D}", X, Y, num_classes=K)
    for k in (len(X), len(X) + 5):
        with pytest.raises(ValueError, match=r"k of 300 samples is .* between 1 and 299"):
            fit_readout(f"knn@{k}", X, Y, num_classes=K)
    with pytest.raises(ValueError, match="needs the objective's own"):
        fit_readout("head", X, Y, num_classes=K)
    with pytest.raises(ValueError, match=r"weight has shape \(7, 7\); it must be \(4, 7\)"):
        fit_readout("head", X, Y, num_classes=K, head=(torch.eye(D), torch.zeros(D)))
    with pytest.raises(ValueError, match=r"bias has shape \(2,\); it must be \(4,\)"):
        fit_readout("head", X, Y, num_classes=K, head=(torch.ones(K, D), torch.zeros(2)))
    with pytest.raises(ValueError, match=r"\(N, 7\)"):
        fit_class_mean(X, Y, num_classes=K).predict(TEST[:, :2])


@pytest.mark.parametrize("name", [*NAMES, "head"])
def test_numpy_arrays_are_what_tensors_are(name):
    head = torch.randn(K, D), torch.randn(K)
    want = fit_readout(name, X, Y, num_classes=K, head=head)
    arrays = tuple(part.numpy() for part in head)
    got = fit_readout(name, X.numpy(), Y.numpy().astype("u1"), num_classes=K, head=arrays)
    assert torch.equal(got.scores(TEST.numpy()), want.scores(TEST))
    assert torch.equal(got.predict(TEST.numpy()), want.predict(TEST))
    assert torch.equal(got.predict_training(X.numpy()), want.predict_training(X))


def test_a_readout_is_added_by_one_line(monkeypatch):
    def fit_majority(features, labels, *, num_classes):
        bias = torch.bincount(torch.as_tensor(labels), minlength=num_classes).double()
        return LinearClassifier(torch.zeros(num_classes, len(features[0])), bias)

    monkeypatch.setitem(READOUTS, "majority", fit_majority)
    assert fit_readout("majority", X, Y, num_classes=K).predict(TEST).eq(Y.mode().values).all()
