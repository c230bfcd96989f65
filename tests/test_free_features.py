"""Features without a network, moved freely, become what the theory of each loss says."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ce_baseline import MSE, CrossEntropy
from experiments.studies.free_features import (
    FreeFeatures,
    ascend,
    largest_reduction,
    reduction_at,
    symmetries,
)
from experiments.studies.unconstrained import (
    MODELS,
    closed_form,
    descend,
    landscape,
    layer_peeled,
    orbit_dimension,
)
from mcr2.metrics.collapse import neural_collapse
from mcr2.rates import rate_reduction

# --- ΔR -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_free_features_reach_orthogonal_isotropic_classes(seed):
    found = ascend(16, 4, 8, seed=seed)
    assert found.distance < 1e-6
    assert sum(found.dimensions) == 16
    for q, values in zip(found.dimensions, found.singular_values, strict=True):
        assert float(values[0] / values[q - 1]) == pytest.approx(1, abs=1e-4)
        assert (values[q:] < 1e-6 * values[0]).all()
    Z = found.features.unflatten(0, (4, 8))
    assert all(float((Z[i] @ Z[j].T).abs().max()) < 1e-6 for i in range(4) for j in range(i))
    # Classes may settle at 3, 4 and 5 dimensions where 4 each is best.
    assert max(found.dimensions) - min(found.dimensions) <= 2
    assert found.reduction[-1] == pytest.approx(found.at_dimensions, rel=1e-9)
    assert found.best * 0.99 <= found.reduction[-1] <= found.best * (1 + 1e-12)
    labels = torch.arange(4).repeat_interleave(8)
    rates = rate_reduction(found.features, labels, num_classes=4, eps_sq=0.5)
    assert float(rates.reduction) == pytest.approx(found.reduction[-1], rel=1e-12)


@pytest.mark.parametrize("d, K, n, seed", [(8, 2, 6, 0), (12, 3, 7, 0), (16, 4, 8, 0)])
def test_around_a_maximum_only_symmetries_are_flat(d, K, n, seed):
    found = ascend(d, K, n, seed=seed)
    assert found.landscape.kind == "extremum"
    assert found.landscape.flat == symmetries(found.dimensions, n)


@pytest.mark.parametrize("d, K, eps_sq", [(40, 4, 0.5), (12, 3, 2.0)])
def test_classes_of_equal_dimensions_have_the_closed_form(d, K, eps_sq):
    best = largest_reduction(d, K, eps_sq)
    assert reduction_at([d // K] * K, d, eps_sq) == pytest.approx(best, rel=1e-12)


def test_equal_dimensions_are_the_best_at_a_small_distortion_only():
    for eps_sq, better in ((0.1, False), (0.5, False), (2.0, True)):
        unequal = reduction_at([3, 4, 5], 12, eps_sq)
        assert (unequal > largest_reduction(12, 3, eps_sq)) == better


# --- cross-entropy and squared error ------------------------------------------------------------

DECAYS = [(0.02, 0.02), (0.05, 0.01), (0.004, 0.03)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("K, n, d", [(3, 5, 3), (4, 6, 9)])
@pytest.mark.parametrize("decay_w, decay_h", DECAYS)
def test_every_start_descends_to_the_closed_form(model, K, n, d, decay_w, decay_h):
    form = closed_form(model, K, n, decay_w, decay_h)
    for seed in range(2):
        found = descend(
            model, num_classes=K, per_class=n, d=d, decay_w=decay_w, decay_h=decay_h, seed=seed
        )
        assert found.values[-1] == pytest.approx(form.value, abs=1e-9)
        assert found.distance(form, decay_w / (decay_h * n)) < 1e-5
        assert found.landscape.kind == "extremum"
        rank = int(torch.linalg.matrix_rank(form.frame))
        assert found.landscape.flat == orbit_dimension(rank, d)
        np.testing.assert_allclose(found.bias, 1 / K if model == "mse" else 0, atol=1e-6)
        y = torch.arange(K).repeat_interleave(n)
        collapse = neural_collapse(found.features, y, num_classes=K, weight=found.weight)
        assert max(collapse.nc1, collapse.nc4) < 1e-10
        if model != "mse, no bias":
            assert max(collapse.nc2_etf, collapse.nc3) < 1e-5


@pytest.mark.parametrize("model", MODELS)
def test_nothing_lies_below_the_closed_form_in_scipys_eyes(model):
    """The objective is written out in NumPy, its gradient taken by differences."""
    K, n, d, decay_w, decay_h = 3, 2, 3, 0.03, 0.05
    y = np.arange(K).repeat(n)

    def loss(x):
        W, H, b = np.split(x, [K * d, K * d + K * n * d])
        W, H = W.reshape(K, d), H.reshape(K * n, d)
        logits = H @ W.T + (b if model == "mse" else 0)
        if model == "ce":
            data = (np.log(np.exp(logits).sum(1)) - logits[range(K * n), y]).mean()
        else:
            data = ((logits - np.eye(K)[y]) ** 2).sum() / (2 * K * n)
        return data + decay_w / 2 * (W**2).sum() + decay_h / 2 * (H**2).sum()

    starts = np.random.RandomState(0).randn(3, K * d + K * n * d + K)
    found = min(minimize(loss, start, method="BFGS", tol=1e-9).fun for start in starts)
    assert found == pytest.approx(closed_form(model, K, n, decay_w, decay_h).value, abs=1e-7)


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_that_of_the_objective(model):
    H = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(6) % 3
    kinds = {"ce": CrossEntropy, "mse": MSE, "mse, no bias": MSE}
    objective = kinds[model](3, 4).double()
    W, b = objective.classifier()
    assert MODELS[model].loss(H @ W.T + b, y).item() == pytest.approx(objective(H, y)[0].item())


@pytest.mark.parametrize("model", MODELS)
def test_so_much_decay_that_everything_vanishes(model):
    K, n, decay = 3, 4, 0.5
    form = closed_form(model, K, n, decay, decay)
    assert form.scale == 0
    nothing = {"ce": math.log(K), "mse": (K - 1) / (2 * K), "mse, no bias": 1 / 2}[model]
    assert form.value == pytest.approx(nothing)
    found = descend(model, num_classes=K, per_class=n, d=4, decay_w=decay, decay_h=decay, seed=0)
    assert found.values[-1] == pytest.approx(nothing, abs=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_without_decay_the_loss_vanishes_and_nothing_collapses(model):
    found = descend(model, num_classes=3, per_class=5, d=6, decay_w=0.0, decay_h=0.0, seed=0)
    assert 0 <= found.values[-1] < 1e-9
    y = torch.arange(3).repeat_interleave(5)
    assert neural_collapse(found.features, y, num_classes=3).nc1 > 1e-3
    # Cross-entropy is on its way to infinity, where the squared error has arrived.
    assert found.landscape.kind == (None if model == "ce" else "extremum")


def test_the_origin_is_a_saddle():
    """Zhu et al. 2021, Theorem 3.2: what is critical and not a minimum has a way down."""

    def loss(x):
        W, H = x.view(2, 3, 3)
        cost = torch.nn.functional.cross_entropy(H @ W.T, torch.arange(3))
        return cost + 0.01 * x.square().sum() / 2

    found = landscape(loss, torch.zeros(18, dtype=torch.float64))
    assert found.kind == "saddle"
    # Between W and H stands (11ᵀ/3 − I)/3 in each of 3 dimensions: -1/3 twice, and 0.
    expected = [0.01 - 1 / 3] * 6 + [0.01] * 6 + [0.01 + 1 / 3] * 6
    np.testing.assert_allclose(found.eigenvalues, expected, atol=1e-12)


# --- classes of unequal size --------------------------------------------------------------------


def convex_gap(counts, energy_w, energy_h, Z):
    """Return the loss at predictions Z ``(K, K)``, and how far below it any other can be.

    ``min Σ n_k/N · CE(Z_k, k)`` over ``‖Z‖_* ≤ K √(E_W E_H)`` is convex: the linear lower bound at
    Z is least at minus the radius times the leading singular pair of the gradient (Frank & Wolfe).
    """
    K, shares = len(counts), np.array(counts) / sum(counts)
    radius = K * math.sqrt(energy_w * energy_h)
    p = np.exp(Z - Z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = shares[:, None] * (p - np.eye(K))
    assert np.linalg.norm(Z, "nuc") <= radius * (1 + 1e-9)
    value = -(shares * np.log(p[range(K), range(K)])).sum()
    return value, (gradient * Z).sum() + radius * np.linalg.norm(gradient, 2)


@pytest.mark.parametrize("counts", [[100] * 5 + [100] * 5, [100] * 5 + [10] * 5, [9, 5, 3, 1]])
@pytest.mark.parametrize("energies", [(1.0, 5.0), (2.0, 0.7)])
def test_the_layer_peeled_optimum_is_certified_by_convexity(counts, energies):
    energy_w, energy_h = energies
    found = layer_peeled(counts, energy_w=energy_w, energy_h=energy_h)
    Z = (found.features @ found.weight.T).numpy()
    value, gap = convex_gap(counts, energy_w, energy_h, Z)
    assert found.value == pytest.approx(value, rel=1e-12)
    assert gap < 1e-6
    for rows, energy in ((found.weight, energy_w), (found.features, energy_h)):
        assert float(rows.square().sum(1).mean()) == pytest.approx(energy)


def minority_cosine(weight):
    W = torch.nn.functional.normalize(weight)[len(weight) // 2 :]
    i, j = torch.triu_indices(len(W), len(W), 1)
    return float((W @ W.T)[i, j].mean())


@pytest.mark.parametrize("ratio, expected", [(1, -1 / 9), (10, 0.52), (100, 1.0)])
def test_minority_classifiers_collapse_as_the_imbalance_grows(ratio, expected):
    counts = [100] * 5 + [100 // ratio] * 5
    cosines = [minority_cosine(layer_peeled(counts, seed=seed).weight) for seed in (0, 1)]
    assert cosines[0] == pytest.approx(expected, abs=5e-3)
    assert cosines[0] == pytest.approx(cosines[1], abs=1e-5)


@pytest.mark.parametrize("counts", [[10] * 4, [20, 20, 2, 2], [30, 10, 3]])
def test_the_layer_peeled_optimum_is_that_of_a_convex_solver(counts):
    cvxpy = pytest.importorskip("cvxpy", reason="needs cvxpy, the independent convex solver")
    K, shares = len(counts), np.array(counts) / sum(counts)
    Z = cvxpy.Variable((K, K))
    losses = cvxpy.hstack([cvxpy.log_sum_exp(Z[k]) - Z[k, k] for k in range(K)])
    limit = [cvxpy.normNuc(Z) <= K * math.sqrt(5)]
    cvxpy.Problem(cvxpy.Minimize(shares @ losses), limit).solve(
        solver="SCS", eps_abs=1e-8, eps_rel=1e-8
    )
    found = layer_peeled(counts)
    predictions = (found.features @ found.weight.T).numpy()
    np.testing.assert_allclose(predictions, Z.value, atol=1e-3)


@pytest.mark.parametrize("counts", [[10] * 4, [20, 20, 2, 2], [30, 10, 3]])
def test_the_layer_peeled_optimum_is_that_of_projected_gradients(counts):
    """SciPy's plain cousin of the convex solver: descent on Z, projected onto the nuclear ball."""
    K, shares = len(counts), np.array(counts) / sum(counts)
    radius, Z = K * math.sqrt(5), np.zeros((K, K))
    for _ in range(30_000):
        p = np.exp(Z - Z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        U, s, V = np.linalg.svd(Z - 2 * shares[:, None] * (p - np.eye(K)))
        if s.sum() > radius:  # onto the simplex of singular values
            means = (np.cumsum(s) - radius) / np.arange(1, K + 1)
            s = np.maximum(s - means[s > means][-1], 0)
        step, Z = np.abs(U * s @ V - Z).max(), U * s @ V
        if step < 1e-12:
            break
    found = layer_peeled(counts)
    np.testing.assert_allclose((found.features @ found.weight.T).numpy(), Z, atol=1e-4)


def test_a_layer_peeled_model_needs_classes():
    for counts, wrong in (([3], "the number of classes is 1"), ([3, 0], "counts is 0")):
        with pytest.raises(ValueError, match=wrong):
            layer_peeled(counts)
    with pytest.raises(ValueError, match="energy_h is -1"):
        layer_peeled([1, 2], energy_h=-1)


# --- the study ----------------------------------------------------------------------------------


def test_the_study_leaves_rows_and_a_figure(tmp_path, capsys):
    assert FreeFeatures(out=tmp_path, seeds=(0, 5), d=8).prepare()() == 0
    rows = json.loads((tmp_path / "free_features.json").read_text())["rows"]
    assert [row["start"] for row in rows] == [0, 5] * 7
    assert {row["model"] for row in rows} == {"mcr2", *MODELS}
    for row in rows:
        if row["decay"] != 0:  # a closed form, and nothing flat about it but its symmetries
            assert abs(row["gap"]) < 1e-9
            assert row["distance"] < 1e-6
            assert row["flat"] == row["symmetries"]
            assert row["kind"] == "extremum"
        else:
            assert row["distance"] > 0.1
    assert str(rows[1]["dimensions"]) in capsys.readouterr().out
    assert (tmp_path / "free_features.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"d": 3}, "d is 3"),
        ({"d": 33}, "d is 33"),
        ({"eps_sq": 0.0}, "eps_sq is 0.0"),
        ({"decay": 0.0}, "decay is 0.0"),
        ({"decay": 0.1}, r"decay is 0.1; it must be below 0.0884"),
    ],
)
def test_what_cannot_be_studied_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        FreeFeatures(**wrong).prepare()
