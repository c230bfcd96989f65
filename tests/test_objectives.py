"""The contract of an objective, the two losses that the project compares, and their relatives."""

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from ce_baseline import CrossEntropy
from mcr2.objectives import (
    Context,
    Objective,
    OrthogonalLowRank,
    RateReduction,
    TotalCodingRate,
    VariationalRateReduction,
)
from mcr2.objectives.low_rank import nuclear_norm
from mcr2.objectives.variational import shrink


def batch(m: int = 24, d: int = 5, K: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m)
    return torch.randn(m, d, generator=generator, dtype=torch.float64), torch.arange(m) % K


class Returning(Objective):
    """Returns what it was told to, whatever the features."""

    def __init__(self, returned, num_classes=3):
        super().__init__(num_classes)
        self.returned = returned

    def loss(self, features, labels, context):
        return self.returned


# --- the contract -------------------------------------------------------------------------------


class Ramped(Objective):
    """Fifteen lines: a squared error on a head of its own that grows while training goes on."""

    def __init__(self, num_classes, feature_dim):
        super().__init__(num_classes)
        self.head = nn.Linear(feature_dim, num_classes, bias=False)

    def loss(self, features, labels, context):
        targets = nn.functional.one_hot(labels, self.num_classes).to(features)
        error = (self.head(features) - targets).square().mean()
        return context.progress * error, {"error": error, "progress": context.progress}

    def classifier(self):
        return self.head.weight, None


def test_a_loss_of_fifteen_lines_is_an_objective():
    Z, y = batch()
    objective = Ramped(num_classes=3, feature_dim=5).double()
    loss, terms = objective(Z.requires_grad_(), y, Context(progress=0.5))
    assert all(t.shape == () and not t.requires_grad for t in terms.values())
    assert float(terms["progress"]) == 0.5
    assert loss.item() == pytest.approx(float(terms["error"]) / 2)
    loss.backward()
    assert Z.grad.any()
    assert objective.head.weight.grad.any()
    assert objective(Z, y)[0].item() == 0  # no context is one without progress
    assert objective.embed(Z) is Z
    assert objective.param_groups() == [{"params": [objective.head.weight]}]


def test_defaults_without_parameters_and_state():
    objective = RateReduction(3)
    assert objective.param_groups() == [{"params": []}]
    assert objective.classifier() is None
    assert not objective.needs_epoch_features
    objective.on_epoch(*batch())


def test_overriding_on_epoch_asks_for_epoch_features():
    class Latching(RateReduction):
        def on_epoch(self, features, labels):
            self.seen = len(features)

    assert Latching(3).needs_epoch_features


def test_an_objective_without_a_loss_cannot_be_made():
    class Nothing(Objective):
        pass

    with pytest.raises(TypeError, match=r"Nothing.*loss"):
        Nothing(3)


SCALAR = torch.tensor(1.0)


@pytest.mark.parametrize(
    "returned, message",
    [
        (SCALAR, "must return (loss, terms)"),
        (None, "must return (loss, terms), not NoneType"),
        ((torch.ones(3), {}), "floating scalar tensor first, not a torch.float32 tensor of shape"),
        ((1.0, {}), "floating scalar tensor first, not float 1.0"),
        ((torch.tensor(1), {}), "torch.int64"),
        ((SCALAR, [SCALAR]), "dict of named scalars second, not list"),
        ((SCALAR, {"z": torch.ones(2)}), "named scalars as terms, not 'z': a torch.float32 tensor"),
        ((SCALAR, {1: SCALAR}), "terms, not 1"),
        ((SCALAR, {"z": "high"}), "terms, not 'z': str 'high'"),
    ],
)
def test_a_loss_that_returns_something_else_is_refused_by_name(returned, message):
    with pytest.raises(TypeError, match=r"^Returning\.loss.*" + re.escape(message)):
        Returning(returned)(*batch())


@pytest.mark.parametrize(
    "features, labels, error, message",
    [
        ("four", torch.zeros(4).long(), TypeError, "str 'four'"),
        (torch.ones(4, 2).to_sparse(), torch.zeros(4).long(), TypeError, "sparse_coo"),
        (torch.ones(4, 2).long(), torch.zeros(4).long(), TypeError, "torch.int64"),
        (torch.ones(4, 2), torch.zeros(4), TypeError, "torch.float32"),
        (torch.ones(4, 2), torch.zeros(4).bool(), TypeError, "torch.bool"),
        (torch.ones(4, 2), [0.0, 1.0, 0.0, 1.0], TypeError, "list"),
        (torch.ones(4), torch.zeros(4).long(), ValueError, "(4,)"),
        (torch.ones(0, 2), torch.zeros(0).long(), ValueError, "(0, 2)"),
        (torch.ones(4, 2), torch.zeros(3).long(), ValueError, "(3,)"),
        (torch.ones(4, 2), torch.zeros(4, 2).long(), ValueError, "(4, 2)"),
        (torch.ones(4, 2), torch.zeros(4, device="meta").long(), ValueError, "meta"),
        (torch.ones(4, 2), torch.tensor([0, 1, 2, 3]), ValueError, "from 0 to 3"),
        # -100 is a label that PyTorch's cross-entropy would pass over in silence
        (torch.ones(4, 2), torch.tensor([0, 1, 2, -100]), ValueError, "from -100 to 2"),
    ],
)
@pytest.mark.parametrize("objective", [RateReduction(3), CrossEntropy(3, 2)])
def test_bad_batches_are_named(objective, features, labels, error, message):
    with pytest.raises(error, match=re.escape(message)):
        objective(features, labels)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: RateReduction(1), ValueError, "num_classes is 1"),
        (lambda: RateReduction("3"), TypeError, "num_classes must be an integer, not str"),
        (lambda: RateReduction(3, eps_sq=0), ValueError, "eps_sq is 0"),
        (lambda: RateReduction(3, gamma1=-1), ValueError, "gamma1 is -1"),
        (lambda: RateReduction(3, gamma2="1"), TypeError, "gamma2 must be a number, not str"),
        (lambda: TotalCodingRate(3, eps_sq=-1), ValueError, "eps_sq is -1; it must be positive"),
        (lambda: OrthogonalLowRank(3, delta=-1), ValueError, "delta is -1.0; it must be at least"),
        (lambda: VariationalRateReduction(3, 0), ValueError, "feature_dim is 0"),
        (lambda: VariationalRateReduction(3, 5, eps_sq=0), ValueError, "eps_sq is 0"),
        (lambda: VariationalRateReduction(3, 5, penalty=math.inf), ValueError, "penalty is inf"),
        (lambda: VariationalRateReduction(3, 5, components=0), ValueError, "components is 0"),
        (lambda: VariationalRateReduction(3, 5, latch_every=0), ValueError, "latch_every is 0"),
        (lambda: CrossEntropy(3, 0), ValueError, "feature_dim is 0"),
        (lambda: CrossEntropy(3, 2, label_smoothing=1), ValueError, "label_smoothing is 1"),
        (lambda: RateReduction(True), TypeError, "num_classes must be an integer, not bool"),
        (lambda: CrossEntropy(3, 2, label_smoothing=None), TypeError, "NoneType"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


ALL = [
    RateReduction(2),
    CrossEntropy(2, 2),
    VariationalRateReduction(2, 2),
    TotalCodingRate(2),
    OrthogonalLowRank(2),
]


@pytest.mark.parametrize("objective", ALL)
def test_features_that_are_not_finite_are_refused_and_overflow_does_not_pass_for_zero(objective):
    y = torch.tensor([0, 1])
    for Z in (
        torch.tensor([[1.0, 0.0], [math.nan, 0.0]]),
        objective.embed(torch.eye(2) * math.inf),
    ):
        with pytest.raises(ValueError, match="must be finite"):
            objective(Z, y)
    large = objective.embed(torch.full((2, 2), 1e30))
    assert torch.isnan(large).all() or isinstance(objective, CrossEntropy)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("raw", ["raw", torch.ones(3).long(), torch.ones(3), np.ones((2, 2, 2))])
def test_raw_features_of_another_kind_are_refused(objective, raw):
    with pytest.raises((TypeError, ValueError), match="raw features"):
        objective.embed(raw)


def test_arrays_are_features_and_labels_too():
    Z, y = batch()
    for objective in (RateReduction(3), CrossEntropy(3, 5).double()):
        given = objective(objective.embed(Z.numpy()), y.tolist())[0]
        assert torch.equal(given, objective(objective.embed(Z), y)[0])


# --- MCR² ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma1, gamma2", [(1, 1), (2.5, 1), (1, 0.3), (0.5, 4)])
@pytest.mark.parametrize("m, d", [(24, 5), (5, 24)])
def test_the_mcr2_loss_is_the_papers(m, d, gamma1, gamma2):
    raw, y = batch(m, d)
    objective = RateReduction(4, eps_sq=0.4, gamma1=gamma1, gamma2=gamma2)
    Z = objective.embed(raw)
    loss, terms = objective(Z, y)

    W, a = Z.numpy().T, d / (m * 0.4)  # the paper's columns
    expand = np.linalg.slogdet(np.eye(d) + gamma1 * a * W @ W.T)[1] / 2
    plain = np.linalg.slogdet(np.eye(d) + a * W @ W.T)[1] / 2
    compress = 0.0
    for k in range(3):
        Pi = np.diag((y.numpy() == k).astype(float))
        trace = np.trace(Pi)
        logdet = np.linalg.slogdet(np.eye(d) + d / (trace * 0.4) * W @ Pi @ W.T)[1]
        compress += trace / m * logdet / 2
    assert loss.item() == pytest.approx(-gamma2 * expand + compress, rel=1e-10)
    assert float(terms["rate"]) == pytest.approx(plain, rel=1e-10)
    assert float(terms["compressed_rate"]) == pytest.approx(compress, rel=1e-10)
    assert float(terms["reduction"]) == pytest.approx(plain - compress, rel=1e-10)


@pytest.mark.parametrize(
    "objective", [RateReduction(3), RateReduction(3, gamma1=3), TotalCodingRate(3)]
)
def test_the_gradient_reaches_raw_features(objective):
    raw, y = batch(8, 3)
    assert torch.autograd.gradcheck(
        lambda raw: objective(objective.embed(raw), y)[0], (raw.requires_grad_(),)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_embedded_features_have_unit_norm_and_zero_stays_zero(dtype):
    raw = torch.tensor([[300.0, 400.0], [3e-3, 4e-3], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    Z = RateReduction(2).embed(raw)
    assert Z.norm(dim=1).tolist() == pytest.approx([1, 1, 0], abs=1e-3)
    RateReduction(2)(Z, torch.tensor([0, 1, 1]))[0].backward()
    assert torch.isfinite(raw.grad).all()


def test_descending_on_the_loss_separates_the_classes():
    raw, y = batch(30, 6)
    raw.requires_grad_()
    objective = RateReduction(3)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(150):
        loss, terms = objective(objective.embed(raw), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # The maximum for unit norm, three balanced classes of two dimensions each in six.
    best = 6 / 2 * math.log(1 + 1 / 0.5) - 6 / 6 * math.log(1 + 3 / 0.5)
    assert 0.98 * best < float(terms["reduction"]) <= best * (1 + 1e-9)
    Z = objective.embed(raw).detach()
    assert (Z[y == 0] @ Z[y == 1].T).abs().max() < 0.05


# --- V-MCR² -------------------------------------------------------------------------------------


def class_moments(Z: torch.Tensor, y: torch.Tensor, K: int) -> list[np.ndarray]:
    """Z_kᵀZ_k / n_k, zero for an absent class."""
    Z, y = Z.numpy(), y.numpy()
    return [Z[y == k].T @ Z[y == k] / max((y == k).sum(), 1) for k in range(K)]


def half_logdet(S: np.ndarray, c: float) -> float:
    return float(np.linalg.slogdet(np.eye(len(S)) + c * S)[1] / 2)


def test_shrinkage_is_the_minimiser_found_by_a_grid():
    sigma = torch.tensor([0.0, 1e-3, 0.02, 0.1, 0.4, 1.0], dtype=torch.float64)
    for c, penalty in [(128.0, 100.0), (128.0, 1000.0), (10.0, 5.0), (3.0, 1e5)]:
        a = np.linspace(0, 1.2, 1_200_001)
        for s, found in zip(sigma.tolist(), shrink(sigma, c, penalty).tolist(), strict=True):
            cost = np.log1p(c * a) / 2 + penalty / 2 * (a - s) ** 2
            assert found == pytest.approx(a[cost.argmin()], abs=2e-6)


@pytest.mark.parametrize("penalty", [30.0, 1e3, 1e9])
def test_latched_the_variational_loss_is_the_moreau_envelope_of_mcr2(penalty):
    raw, y = batch(40, 6, 3)
    K, d, eps_sq = 4, 6, 0.4
    objective = VariationalRateReduction(K, d, eps_sq=eps_sq, penalty=penalty).double().eval()
    Z = objective.embed(raw)
    objective.on_epoch(Z, y)
    loss, terms = objective(Z, y)

    c, m = d / eps_sq, len(y)
    envelope, bound, exact = 0.0, 0.0, 0.0
    for k, S in enumerate(class_moments(Z, y, K)):
        share = float((y == k).sum()) / m
        exact += share * half_logdet(S, c)
        grid = np.linspace(0, 1, 200_001)
        for s in np.linalg.eigvalsh(S).clip(0):
            cost = np.log1p(c * grid) / 2 + penalty / 2 * (grid - s) ** 2
            if penalty < 1e6:
                envelope += share * cost.min()
                bound += share * np.log1p(c * grid[cost.argmin()]) / 2
            else:  # the penalty leaves nothing to shrink
                envelope += share * np.log1p(c * s) / 2
                bound = envelope
    rate = half_logdet(Z.numpy().T @ Z.numpy() / m, c)
    assert float(terms["rate"]) == pytest.approx(rate)
    assert loss.item() == pytest.approx(envelope - rate, abs=1e-5)
    assert float(terms["bound"]) == pytest.approx(bound, abs=2e-3)
    # The mismatch, a difference of numbers near 1, is rounded before the penalty multiplies it.
    assert loss.item() <= exact - rate + 1e-9 + 1e-15 * penalty
    if penalty > 1e6:
        mcr2 = RateReduction(K, eps_sq=eps_sq)(Z, y)[0]
        assert loss.item() == pytest.approx(mcr2.item(), rel=1e-6)


def test_latched_the_variational_gradient_tends_to_that_of_mcr2():
    raw, y = batch(40, 6, 3)
    raw.requires_grad_()
    objective = VariationalRateReduction(3, 6, penalty=1e8).double().eval()
    Z = objective.embed(raw)
    objective.on_epoch(Z.detach(), y)
    (ours,) = torch.autograd.grad(objective(Z, y)[0], raw, retain_graph=True)
    (exact,) = torch.autograd.grad(RateReduction(3)(Z, y)[0], raw)
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("components", [2, 20])
def test_the_variational_loss_is_its_formula_wherever_dictionary_and_features_are(components):
    raw, y = batch(30, 5, 3)
    objective = VariationalRateReduction(4, 5, penalty=50, components=components).double().eval()
    Z = objective.embed(raw)
    other = objective.embed(batch(60, 5, 3)[0])
    objective.on_epoch(other, batch(60, 5, 3)[1])
    loss, terms = objective(Z, y)

    c = 5 / 0.5
    bound, mismatch = 0.0, 0.0
    for k, S in enumerate(class_moments(Z, y, 4)):
        U, a = objective.dictionary[k].numpy(), objective.coefficients[k].numpy()
        np.testing.assert_allclose(U @ U.T, np.eye(len(U)), atol=1e-10)
        share = float((y == k).sum()) / len(y)
        bound += share * np.log1p(c * a).sum() / 2
        mismatch += share * ((S - (U.T * a) @ U) ** 2).sum()
    assert float(terms["bound"]) == pytest.approx(bound)
    assert float(terms["mismatch"]) == pytest.approx(mismatch)
    rate = half_logdet(Z.numpy().T @ Z.numpy() / 30, c)
    assert loss.item() == pytest.approx(bound + 25 * mismatch - rate)
    assert torch.autograd.gradcheck(
        lambda raw: objective(objective.embed(raw), y)[0], (raw.requires_grad_(),)
    )


def test_steps_bring_the_dictionary_to_where_latching_would():
    raw, y = batch(60, 6, 3)
    latched, following = (
        VariationalRateReduction(3, 6, penalty=300, components=3).double() for _ in range(2)
    )
    Z = latched.embed(raw)
    latched.on_epoch(Z, y)
    target = latched.eval()(Z, y)[0]
    losses = [following(Z, y)[0].item() for _ in range(200)]
    assert losses[0] > target + 1e-3
    assert losses[-1] == pytest.approx(target.item(), abs=1e-6)
    before = {k: v.clone() for k, v in latched.state_dict().items()}
    latched(Z, y)  # in evaluation mode nothing moves
    assert all(torch.equal(v, latched.state_dict()[k]) for k, v in before.items())


def test_an_absent_class_keeps_its_atoms_and_costs_nothing():
    raw, y = batch(30, 5, 3)
    objective = VariationalRateReduction(4, 5).double()
    Z = objective.embed(raw)
    objective.on_epoch(Z, y)
    atoms, coefficients = objective.dictionary[2].clone(), objective.coefficients[2].clone()
    loss, _ = objective(Z[y != 2], y[y != 2])
    assert torch.isfinite(loss)
    assert torch.equal(objective.dictionary[2], atoms)
    assert torch.equal(objective.coefficients[2], coefficients)


def test_the_dictionary_is_no_parameter_and_latched_when_it_is_time():
    objective = VariationalRateReduction(3, 5, latch_every=2).double()
    assert objective.param_groups() == [{"params": []}]
    raw, y = batch(30, 5, 3)
    wanted = []
    for epoch in range(5):
        wanted.append(objective.needs_epoch_features)
        objective(objective.embed(raw), y, Context(epoch=epoch))
    assert wanted == [True, False, True, False, True]
    before = objective.dictionary.clone()
    objective.on_epoch(torch.full((30, 5), math.nan).double(), y)
    assert torch.equal(objective.dictionary, before)
    with pytest.raises(ValueError, match="finite"):
        objective(torch.full((30, 5), math.nan).double(), y)


# --- total coding rate --------------------------------------------------------------------------


@pytest.mark.parametrize("m, d", [(24, 5), (5, 24)])
def test_the_total_coding_rate_ignores_labels(m, d):
    raw, y = batch(m, d)
    objective = TotalCodingRate(3, eps_sq=0.3)
    Z = objective.embed(raw)
    loss, terms = objective(Z, y)
    expected = half_logdet(Z.numpy().T @ Z.numpy() / m, d / 0.3)
    assert loss.item() == pytest.approx(-expected)
    assert float(terms["rate"]) == pytest.approx(expected)
    assert torch.equal(objective(Z, torch.zeros_like(y))[0], loss)
    # Its least value is where the second moment is I/d.
    even = torch.eye(d, dtype=torch.float64)
    best = -d / 2 * math.log(1 + 1 / 0.3)
    assert objective(even, torch.zeros(d).long())[0].item() == pytest.approx(best)
    assert loss.item() > best


# --- orthogonal low rank ------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("m, d", [(24, 5), (5, 24)])
def test_ole_is_the_papers(m, d, delta):
    raw, y = batch(m, d)
    objective = OrthogonalLowRank(4, delta=delta)  # the fourth class is absent
    Z = objective.embed(raw)
    loss, terms = objective(Z, y)

    def norm(X):
        return np.linalg.norm(X, "nuc")

    X = Z.numpy()
    classes = sum(max(delta, norm(X[y.numpy() == k])) for k in range(3))
    assert float(terms["class_norm"]) == pytest.approx(classes / m)
    assert float(terms["total_norm"]) == pytest.approx(norm(X) / m)
    assert loss.item() == pytest.approx((classes - norm(X)) / m)
    assert loss.item() >= 0
    assert torch.autograd.gradcheck(
        lambda raw: objective(objective.embed(raw), y)[0], (raw.requires_grad_(),)
    )


def test_ole_vanishes_exactly_where_classes_are_orthogonal():
    y = torch.arange(30) % 3
    rows = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    blocks = torch.zeros(30, 6, dtype=torch.float64)
    for k in range(3):
        blocks[y == k, 2 * k : 2 * k + 2] = rows[y == k]
    objective = OrthogonalLowRank(3)
    Z = objective.embed(blocks)
    assert objective(Z, y)[0].item() == pytest.approx(0, abs=1e-12)
    turned = Z @ torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    assert objective(turned, y)[0].item() == pytest.approx(0, abs=1e-12)
    assert objective(Z, y.sort().values)[0].item() > 0.01


def test_the_subgradient_of_the_nuclear_norm_leaves_the_null_space_alone():
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0][:, :2]
    V = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0][:, :2]
    Z = (U @ torch.diag(torch.tensor([3.0, 1.0])) @ V.T).requires_grad_()  # rank 2, and rounding
    value = nuclear_norm(Z)
    value.backward()
    assert value.item() == pytest.approx(4)
    torch.testing.assert_close(Z.grad, U @ V.T, atol=1e-5, rtol=0)
    zero = torch.zeros(4, 3, requires_grad=True)
    nuclear_norm(zero).backward()
    assert not zero.grad.any()


# --- cross-entropy ------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_the_mean_negative_log_softmax(smoothing):
    Z, y = batch()
    objective = CrossEntropy(3, 5, label_smoothing=smoothing).double()
    loss, terms = objective(Z, y)

    W, b = (p.detach().numpy() for p in (objective.head.weight, objective.head.bias))
    logits = Z.numpy() @ W.T + b
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    q = (1 - smoothing) * np.eye(3)[y] + smoothing / 3
    assert loss.item() == pytest.approx(-(q * logp).sum(1).mean(), rel=1e-12)
    assert float(terms["cross_entropy"]) == pytest.approx(loss.item())
    assert float(terms["batch_accuracy"]) == pytest.approx((logits.argmax(1) == y.numpy()).mean())


def test_cross_entropy_is_additive_and_the_rates_are_not():
    Z, y = batch()
    for objective in (CrossEntropy(3, 5).double(), RateReduction(3)):
        whole = objective(Z, y)[0].item()
        halves = (objective(Z[:12], y[:12])[0].item() + objective(Z[12:], y[12:])[0].item()) / 2
        assert (whole == pytest.approx(halves, rel=1e-9)) == objective.additive


def test_the_head_is_the_classifier_and_is_trained():
    Z, y = batch()
    objective = CrossEntropy(3, 5).double()
    weight, bias = objective.classifier()
    assert not weight.requires_grad
    accuracy = ((Z @ weight.T + bias).argmax(1) == y).double().mean()
    assert float(objective(Z, y)[1]["batch_accuracy"]) == pytest.approx(float(accuracy))
    assert len(objective.param_groups()[0]["params"]) == 2
    objective(Z, y)[0].backward()
    assert objective.head.weight.grad.any()


def test_cross_entropy_of_half_precision_features_and_short_labels():
    Z, y = batch()
    objective = CrossEntropy(3, 5)
    full = objective(Z.bfloat16().float(), y)[0]
    torch.testing.assert_close(objective(Z.bfloat16(), y.to(torch.uint8))[0], full)


@pytest.mark.parametrize("objective", [CrossEntropy(3, 4), VariationalRateReduction(3, 4)])
def test_features_of_another_dimension_are_refused(objective):
    with pytest.raises(ValueError, match=r"features has shape \(24, 5\); it must be \(m, 4\)"):
        objective.double()(*batch())
    if objective.needs_epoch_features:
        with pytest.raises(ValueError, match=r"must be \(m, 4\)"):
            objective.on_epoch(*batch())
