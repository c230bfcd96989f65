"""What the coding rates must satisfy, against determinants taken in NumPy."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mcr2.rates import (
    class_coding_rates,
    coding_rate,
    kernels,
    rate_reduction,
    rate_reduction_with_expansion,
)
from mcr2.rates.kernels import group


def oracle_rate(Z: np.ndarray, weights: np.ndarray, eps_sq: float) -> float:
    """½ logdet(I + d/(tr Π ε²) Zᵀ Π Z) with Π = diag(weights) written out, in float64."""
    trace, d = weights.sum(), Z.shape[1]
    if trace == 0:
        return 0.0
    _, logdet = np.linalg.slogdet(np.eye(d) + d / (trace * eps_sq) * Z.T @ np.diag(weights) @ Z)
    return logdet / 2


def oracle(Z: Tensor, labels: Tensor, K: int, eps_sq: float) -> tuple[float, np.ndarray, float]:
    """R, R_k and R_c of one (m, d) matrix."""
    features = Z.detach().double().numpy()
    m = len(features)
    Pi = (torch.nn.functional.one_hot(labels, K) if labels.dim() == 1 else labels.detach()).numpy()
    rate = oracle_rate(features, np.ones(m), eps_sq)
    class_rates = np.array([oracle_rate(features, column, eps_sq) for column in Pi.T])
    return rate, class_rates, float(Pi.sum(0) / m @ class_rates)


def random_features(m: int, d: int, seed: int = 0, *, batch: tuple[int, ...] = ()) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    Z = torch.randn(*batch, m, d, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(Z, dim=-1)


def random_membership(m: int, K: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, K, generator=generator, dtype=torch.float64).softmax(1)


problems = st.fixed_dictionaries(
    {
        "d": st.integers(1, 9),
        "K": st.integers(1, 6),
        # Taken modulo K: classes come out unbalanced, and often absent.
        "labels": st.lists(st.integers(0, 5), min_size=1, max_size=24),
        "eps_sq": st.floats(0.01, 100),
        "seed": st.integers(0, 99),
    }
)


# --- values -------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(problems, st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
def test_hard_rates_equal_the_determinants(problem, dtype):
    K, labels = problem["K"], torch.tensor(problem["labels"]) % problem["K"]
    Z = random_features(len(labels), problem["d"], problem["seed"]).to(dtype)
    rates = rate_reduction(Z, labels, num_classes=K, eps_sq=problem["eps_sq"])
    rate, class_rates, compressed_rate = oracle(Z, labels, K, problem["eps_sq"])
    assert rates.rate.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # The oracle sees the rounded features: half precision loses nothing after the input. What
    # float32 can lose is its unit times the condition number of I + d/ε² M, at most 1 + d/ε².
    unit = 1e-14 if dtype == torch.float64 else 5e-7
    close = {"rtol": 10 * unit, "atol": unit * (1 + problem["d"] / problem["eps_sq"])}
    np.testing.assert_allclose(rates.rate, rate, **close)
    np.testing.assert_allclose(rates.class_rates, class_rates, **close)
    np.testing.assert_allclose(rates.compressed_rate, compressed_rate, **close)
    np.testing.assert_allclose(rates.reduction, rate - compressed_rate, **close)
    np.testing.assert_allclose(coding_rate(Z, eps_sq=problem["eps_sq"]), rate, **close)
    assert rates.reduction >= -close["atol"]


@settings(max_examples=40, deadline=None)
@given(problems)
def test_soft_rates_equal_the_determinants(problem):
    m, K = len(problem["labels"]), problem["K"]
    Z, Pi = random_features(m, problem["d"]), random_membership(m, K, problem["seed"])
    rates = rate_reduction(Z, Pi, eps_sq=problem["eps_sq"])
    rate, class_rates, compressed_rate = oracle(Z, Pi, K, problem["eps_sq"])
    np.testing.assert_allclose(rates.rate, rate, rtol=1e-10)
    np.testing.assert_allclose(rates.class_rates, class_rates, rtol=1e-10)
    np.testing.assert_allclose(rates.compressed_rate, compressed_rate, rtol=1e-10)
    assert rates.reduction >= -1e-12


@pytest.mark.parametrize("m, d", [(40, 6), (6, 40)])
def test_labels_and_their_one_hot_matrix_agree(m, d):
    Z, labels = random_features(m, d), torch.arange(m) % 3
    onehot = torch.nn.functional.one_hot(labels, 4).double()
    for hard, soft in zip(
        rate_reduction(Z, labels, num_classes=4), rate_reduction(Z, onehot), strict=True
    ):
        torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("K, q, n, eps_sq", [(2, 1, 4, 0.5), (3, 4, 8, 0.5), (5, 2, 6, 2.0)])
def test_orthogonal_isotropic_classes_have_the_closed_form(K, q, n, eps_sq):
    # Class k: unit vectors whose second moment is I/q on its own q coordinates.
    d = K * q + 1
    Z = torch.zeros(K * n, d, dtype=torch.float64)
    labels = torch.arange(K).repeat_interleave(n)
    for i, k in enumerate(labels.tolist()):
        Z[i, k * q + i % q] = 1
    rates = rate_reduction(Z, labels, eps_sq=eps_sq)
    rate = K * q / 2 * math.log(1 + d / (K * q * eps_sq))
    class_rate = q / 2 * math.log(1 + d / (q * eps_sq))
    assert float(rates.rate) == pytest.approx(rate, rel=1e-12)
    assert rates.class_rates.tolist() == pytest.approx([class_rate] * K, rel=1e-12)
    assert float(rates.reduction) == pytest.approx(rate - class_rate, rel=1e-12)


def test_one_sample_costs_the_logarithm_of_its_norm_and_nothing_is_saved():
    z = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    rates = rate_reduction(z, torch.tensor([1]), num_classes=3, eps_sq=0.5)
    assert float(rates.rate) == pytest.approx(math.log(1 + 3 / 0.5) / 2)
    assert rates.class_rates.tolist() == pytest.approx([0, float(rates.rate), 0])
    assert float(rates.reduction) == pytest.approx(0, abs=1e-12)


def test_gamma_inside_the_determinant_is_a_smaller_distortion():
    Z, gamma = random_features(20, 5), 3.0
    _, logdet = np.linalg.slogdet(np.eye(5) + gamma * 5 / (20 * 0.5) * (Z.T @ Z).numpy())
    assert float(coding_rate(Z, eps_sq=0.5 / gamma)) == pytest.approx(logdet / 2, rel=1e-12)


# --- as accurate as promised --------------------------------------------------------------------

CLOSE = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-7, 1e-4)}  # values, gradients


def spectral(Z: np.ndarray, eps_sq: float) -> tuple[float, np.ndarray]:
    """R and its gradient from the singular values: ½ Σ log1p(c σ²) and U cσ/(1 + cσ²) Vᵀ."""
    U, S, Vt = np.linalg.svd(Z, full_matrices=False)
    c = Z.shape[1] / (len(Z) * eps_sq)
    return np.log1p(c * S**2).sum() / 2, (U * (c * S / (1 + c * S**2))) @ Vt


def clusters(m: int, d: int, K: int, spread: float) -> tuple[Tensor, Tensor]:
    """Unit features around K directions; a spread of 0 makes copies of them."""
    labels = torch.arange(m) % K
    Z = random_features(K, d)[labels] + spread * random_features(m, d, 1)
    return torch.nn.functional.normalize(Z, dim=1), labels


@pytest.mark.parametrize("m, d, K", [(120, 32, 4), (30, 64, 3), (200, 8, 1), (60, 40, 12)])
@pytest.mark.parametrize("spread", [0, 1e-3, 0.1, 1])
@pytest.mark.parametrize("eps_sq", [1e-6, 1e-4, 1e-2, 0.5, 1e2, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_keep_their_promise(m, d, K, spread, eps_sq, dtype):
    Z, labels = clusters(m, d, K, spread)
    Z = Z.to(dtype).requires_grad_()
    features = Z.detach().double().numpy()
    rate, gradient = spectral(features, eps_sq)
    class_rates, class_gradient = np.zeros(K), np.zeros_like(gradient)
    for k in range(K):
        class_rates[k], part = spectral(features[labels == k], eps_sq)
        class_gradient[labels == k] = part * (labels == k).numpy().mean()
    compressed_rate = np.bincount(labels, minlength=K) / m @ class_rates

    of_value, of_gradient = CLOSE[dtype]
    onehot = torch.nn.functional.one_hot(labels, K).to(dtype)
    for membership in (labels, onehot):
        rates = rate_reduction(Z, membership, num_classes=K, eps_sq=eps_sq)
        found = [r.detach().numpy() for r in rates]
        np.testing.assert_allclose(found[0], rate, rtol=of_value)
        np.testing.assert_allclose(found[1], class_rates, rtol=of_value)
        np.testing.assert_allclose(found[2], compressed_rate, rtol=of_value)
        assert abs(found[3] - (rate - compressed_rate)) <= 1e-6 * (1 + rate)
        assert found[3] >= -1e-6 * rate
        for value, expected in ((rates.rate, gradient), (rates.compressed_rate, class_gradient)):
            (got,) = torch.autograd.grad(value, Z, retain_graph=True)
            error = np.linalg.norm(got.double().numpy() - expected)
            assert error <= of_gradient * np.linalg.norm(expected)


def test_copies_of_one_vector_save_nothing():
    z = random_features(1, 128).expand(1000, 128)
    rates = rate_reduction(z.float(), torch.arange(1000) % 10, eps_sq=1e-4)
    assert float(rates.rate) == pytest.approx(math.log1p(128e4) / 2, rel=1e-6)
    assert float(rates.reduction) == pytest.approx(0, abs=1e-6)
    assert float(coding_rate(z, eps_sq=1e-12)) == pytest.approx(math.log1p(128e12) / 2, rel=1e-9)


def test_float64_is_for_the_matrices_that_need_it(monkeypatch):
    dtypes = []
    svd, gram = torch.linalg.svd, kernels._Gram.forward
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: dtypes.append("svd") or svd(*a, **k))
    monkeypatch.setattr(
        kernels._Gram,
        "forward",
        staticmethod(lambda Z, side: dtypes.append((Z.dtype, len(Z))) or gram(Z, side)),
    )
    Z, labels = random_features(300, 32).float(), torch.arange(300) % 3
    Z[labels == 1] = Z[1].clone()  # one class of three is collapsed
    assert torch.isfinite(class_coding_rates(Z, labels, eps_sq=0.4)).all()
    assert dtypes == [(torch.float32, 3), (torch.float64, 1)]
    class_coding_rates(Z, labels, eps_sq=1e-10)
    assert dtypes[-1] == "svd"


def test_a_gradient_that_float64_cannot_hold_is_refused_and_its_value_is_not():
    Z, labels = clusters(40, 16, 2, 0)
    assert torch.isfinite(rate_reduction(Z, labels, eps_sq=1e-13).reduction)
    with pytest.raises(ValueError, match=r"eps_sq=1e-13 is too small .* norm up to 1: .*gradients"):
        rate_reduction(Z.requires_grad_(), labels, eps_sq=1e-13)


# --- torch.func ---------------------------------------------------------------------------------


@pytest.mark.parametrize("m, d", [(9, 4), (4, 9)])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps_sq", [0.5, 1e-4])
def test_transforms_of_functions_of_features(m, d, soft, dtype, eps_sq):
    batch = random_features(m, d, batch=(3,)).to(dtype)
    membership = random_membership(m, 3) if soft else torch.arange(m) % 3
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {}

    def rates(Z):
        return rate_reduction(Z, membership, num_classes=3, eps_sq=eps_sq)

    def score(Z):
        return rates(Z).rate + 0.5 * rates(Z).class_rates.sum()

    X = batch.clone().requires_grad_()
    (expected,) = torch.autograd.grad(sum(map(score, X)), X)
    torch.testing.assert_close(torch.func.grad(score)(batch[0]), expected[0], **close)
    torch.testing.assert_close(torch.vmap(torch.func.grad(score))(batch), expected, **close)
    for value, other in zip(torch.vmap(rates)(batch), rates(batch), strict=True):
        torch.testing.assert_close(value, other, **close)

    def class_rates(Z):
        return rates(Z).class_rates

    jacobian = torch.autograd.functional.jacobian(class_rates, batch[0])
    torch.testing.assert_close(torch.func.jacrev(class_rates)(batch[0]), jacobian, **close)
    if dtype == torch.float64 and eps_sq == 0.5:
        hessian = torch.autograd.functional.hessian(score, batch[0])
        torch.testing.assert_close(
            torch.func.jacrev(torch.func.grad(score))(batch[0]), hessian, rtol=1e-6, atol=1e-8
        )


def test_transforms_of_functions_of_a_soft_membership():
    Z, Pi = random_features(9, 4), torch.stack([random_membership(9, 3, s) for s in range(2)])

    def reduction(Pi):
        return rate_reduction(Z, Pi).reduction

    expected = torch.stack(list(map(reduction, Pi)))
    torch.testing.assert_close(torch.vmap(reduction)(Pi), expected)
    gradients = torch.stack([torch.autograd.functional.jacobian(reduction, P) for P in Pi])
    torch.testing.assert_close(torch.vmap(torch.func.grad(reduction))(Pi), gradients)
    with pytest.raises(RuntimeError, match="vmap"):  # class sizes shape the work
        torch.vmap(lambda labels: class_coding_rates(Z, labels))(torch.zeros(2, 9).long())


# --- invariances --------------------------------------------------------------------------------


@pytest.mark.parametrize("m, d", [(30, 7), (7, 30)])
def test_rotations_signs_and_orders_of_samples_change_nothing(m, d):
    Z, labels = random_features(m, d), torch.arange(m) % 3
    reference = rate_reduction(Z, labels)
    rotation, _ = torch.linalg.qr(random_features(d, d, 1))
    order = torch.randperm(m, generator=torch.Generator().manual_seed(2))
    signs = torch.where(torch.arange(m) % 2 == 0, 1.0, -1.0).unsqueeze(1)
    for Z2, labels2 in ((Z @ rotation, labels), (Z[order], labels[order]), (signs * Z, labels)):
        for value, expected in zip(rate_reduction(Z2, labels2), reference, strict=True):
            torch.testing.assert_close(value, expected)


def test_renaming_classes_permutes_their_rates():
    Z, labels, names = random_features(30, 4), torch.arange(30) % 3, torch.tensor([2, 0, 1])
    renamed = class_coding_rates(Z, names[labels])
    torch.testing.assert_close(renamed[names], class_coding_rates(Z, labels))


@pytest.mark.parametrize("m, d", [(12, 5), (5, 12)])
@pytest.mark.parametrize("soft", [False, True])
def test_leading_dimensions_are_independent_problems(m, d, soft):
    Z = random_features(m, d, batch=(2, 3))
    labels = random_membership(m, 4) if soft else torch.arange(m) % 3
    batched = rate_reduction(Z, labels, num_classes=4)
    assert batched.class_rates.shape == (2, 3, 4)
    assert batched.rate.shape == batched.compressed_rate.shape == batched.reduction.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            single = rate_reduction(Z[i, j], labels, num_classes=4)
            for value, expected in zip(batched, single, strict=True):
                torch.testing.assert_close(value[i, j], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_dtype_of_labels(dtype):
    Z, labels = random_features(10, 4), torch.arange(10) % 3
    torch.testing.assert_close(
        class_coding_rates(Z, labels.to(dtype)), class_coding_rates(Z, labels)
    )


# --- classes of any size -------------------------------------------------------------------------

# Classes of few samples, of many, and both, of one size or not.
SIZES = {
    "few": ([1, 3, 2, 3, 1], 6),
    "equal": ([3, 3, 3], 5),
    "many": ([7, 9, 8], 4),
    "many, equal": ([6, 6], 4),
    "mixed": ([12, 1, 2, 0, 7, 4, 1], 4),
    "fewer than dimensions": ([2, 0, 3], 8),
}


def reference_rates(Z: Tensor, labels: Tensor, K: int, eps_sq: float = 0.5) -> tuple[Tensor, ...]:
    """R, R_k and R_c class by class, for autograd to differentiate."""

    def rate(X: Tensor) -> Tensor:
        n, d = X.shape[-2:]
        matrix = torch.eye(d, dtype=X.dtype) + d / (max(n, 1) * eps_sq) * X.mT @ X
        return torch.linalg.slogdet(matrix).logabsdet / 2

    class_rates = torch.stack([rate(Z[..., labels == k, :]) for k in range(K)], dim=-1)
    shares = torch.stack([(labels == k).double().mean() for k in range(K)])
    return rate(Z), class_rates, class_rates @ shares


def labels_of_sizes(sizes: list[int]) -> Tensor:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("batch", [(), (2,)])
def test_classes_of_any_size_have_their_rates_and_gradients(case, batch):
    sizes, d = SIZES[case]
    K, labels = len(sizes), labels_of_sizes(sizes)
    Z = random_features(len(labels), d, batch=batch).requires_grad_()
    weights = torch.rand(K, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def score(rate, class_rates, compressed_rate):
        return (0.7 * rate - compressed_rate + class_rates @ weights).sum()

    rates = rate_reduction(Z, labels, num_classes=K)
    expected = reference_rates(Z, labels, K)
    for value, other in zip(rates, expected, strict=False):
        torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(score(*rates[:3]), Z)
    (other,) = torch.autograd.grad(score(*expected), Z)
    torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)

    alone = class_coding_rates(Z, labels, num_classes=K)
    torch.testing.assert_close(alone, expected[1], rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad((alone @ weights).sum(), Z)
    (other,) = torch.autograd.grad((reference_rates(Z, labels, K)[1] @ weights).sum(), Z)
    torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", SIZES)
def test_second_derivatives_of_classes_of_any_size(case):
    sizes, d = SIZES[case]
    labels = labels_of_sizes(sizes)
    Z = random_features(len(labels), d).requires_grad_()

    def rates(Z):
        return rate_reduction(Z, labels, num_classes=len(sizes))[:3]

    assert torch.autograd.gradcheck(rates, (Z,), fast_mode=True)
    assert torch.autograd.gradgradcheck(rates, (Z,), fast_mode=True)


@settings(max_examples=80, deadline=None)
@given(problems, st.sampled_from([torch.float64, torch.float32]), st.booleans())
def test_hard_gradients_equal_those_of_the_determinants(problem, dtype, total):
    K, labels = problem["K"], torch.tensor(problem["labels"]) % problem["K"]
    eps_sq = problem["eps_sq"]
    Z = random_features(len(labels), problem["d"], problem["seed"]).to(dtype).requires_grad_()
    exact = Z.detach().double().requires_grad_()
    _, class_rates, compressed = reference_rates(exact, labels, K, eps_sq)
    if total:
        value = rate_reduction(Z, labels, num_classes=K, eps_sq=eps_sq).compressed_rate
        expected = compressed
    else:
        value = class_coding_rates(Z, labels, num_classes=K, eps_sq=eps_sq).sum()
        expected = class_rates.sum()
    (gradient,) = torch.autograd.grad(value, Z)
    (reference,) = torch.autograd.grad(expected, exact)
    unit = 1e-13 if dtype == torch.float64 else 1e-6
    # Relative to the whole gradient, and to the condition number of I + d/ε² M.
    error = (gradient.double() - reference).norm()
    assert error <= unit * (10 + problem["d"] / eps_sq) * (1e-30 + reference.norm())


@settings(max_examples=40, deadline=None)
@given(problems)
def test_soft_gradients_equal_those_of_the_determinants(problem):
    m, K, d = len(problem["labels"]), problem["K"], problem["d"]
    Z = random_features(m, d, problem["seed"]).requires_grad_()
    Pi = random_membership(m, K, problem["seed"]).requires_grad_()

    def compressed(Z, Pi):
        mass = Pi.sum(0)
        moments = torch.einsum("mk,md,me->kde", Pi, Z, Z) / mass[:, None, None]
        eye = torch.eye(d, dtype=Z.dtype)
        logdets = torch.linalg.slogdet(eye + d / problem["eps_sq"] * moments).logabsdet
        return (mass / m) @ logdets / 2

    value = rate_reduction(Z, Pi, eps_sq=problem["eps_sq"]).compressed_rate
    gradients = torch.autograd.grad(value, (Z, Pi))
    expected = torch.autograd.grad(compressed(Z, Pi), (Z, Pi))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sizes", [[5] * 60 + [4] * 40 + [500], [2**k for k in range(9)], [7]])
def test_at_most_half_of_the_rows_are_padding(sizes):
    labels = labels_of_sizes(sizes)
    ordered, order = labels.sort(stable=True)
    bounds = np.cumsum([0, *sizes]).tolist()
    groups = group(ordered, order, bounds)
    assert sorted(n for bucket in groups.buckets for n in bucket) == sorted(sizes)
    for bucket in groups.buckets:
        assert len(bucket) * bucket[-1] <= 2 * sum(bucket)
    assert len(groups.buckets) <= 5


def test_the_expansion_is_the_rate_at_a_smaller_distortion():
    Z, labels = random_features(20, 5).requires_grad_(), torch.arange(20) % 3
    expansion, rates = rate_reduction_with_expansion(Z, labels, gamma=3.0)
    expected = coding_rate(Z, eps_sq=0.5 / 3), rate_reduction(Z, labels)
    torch.testing.assert_close(expansion, expected[0])
    for value, other in zip(rates, expected[1], strict=True):
        torch.testing.assert_close(value, other)
    gradients = [
        torch.autograd.grad(E + 2 * r.reduction, Z)[0] for E, r in ((expansion, rates), expected)
    ]
    torch.testing.assert_close(*gradients)
    with pytest.raises(ValueError, match="gamma is 0"):
        rate_reduction_with_expansion(Z, labels, gamma=0)


# --- what reaches the host ----------------------------------------------------------------------


class Transfers(TorchDispatchMode):
    """Counts the numbers that are read one by one."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("soft", [False, True])
def test_a_device_is_waited_for_twice(monkeypatch, soft):
    # For class sizes or what a matrix is checked by, and to see that float32 is accurate enough.
    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda x: lists.append(x) or tolist(x))
    Z = random_features(50, 8).float().requires_grad_()
    labels = random_membership(50, 4) if soft else torch.arange(50) % 4
    with Transfers() as transfers:
        rates = rate_reduction(Z, labels, num_classes=4)
        rates.reduction.backward()
    assert len(lists) == 2
    assert transfers.count == 0


@pytest.mark.parametrize("soft", [False, True])
def test_compiled_losses_have_the_same_values_and_gradients(soft):
    def loss(raw, labels):
        return -rate_reduction(torch.nn.functional.normalize(raw), labels, num_classes=3)[3].exp()

    compiled = torch.compile(loss, backend="aot_eager")
    for seed in range(3):  # class sizes change, and nothing is compiled anew
        raw = random_features(30, 6, seed).requires_grad_()
        labels = random_membership(30, 3, seed)
        labels = labels if soft else labels.argmax(1)
        values = [f(raw, labels) for f in (loss, compiled)]
        torch.testing.assert_close(*values, rtol=0, atol=0)
        torch.testing.assert_close(*[torch.autograd.grad(v, raw)[0] for v in values])


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("m, d", [(9, 4), (4, 9), (1, 3)])
def test_gradients_of_hard_rates(m, d):
    Z, labels = random_features(m, d).requires_grad_(), torch.arange(m) % 3
    assert torch.autograd.gradcheck(lambda Z: rate_reduction(Z, labels, num_classes=4), (Z,))
    assert torch.autograd.gradcheck(coding_rate, (Z,))


@pytest.mark.parametrize("m, d", [(9, 4), (4, 9)])
def test_gradients_of_soft_rates_with_respect_to_features_and_membership(m, d):
    Z, Pi = random_features(m, d).requires_grad_(), random_membership(m, 3).requires_grad_()
    assert torch.autograd.gradcheck(rate_reduction, (Z, Pi))
    assert torch.autograd.gradcheck(class_coding_rates, (Z, Pi))


def test_second_derivatives_exist():
    Z, labels = random_features(6, 3).requires_grad_(), torch.arange(6) % 2
    Pi = random_membership(6, 2).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda Z: rate_reduction(Z, labels).reduction, (Z,))
    assert torch.autograd.gradgradcheck(lambda Z, Pi: rate_reduction(Z, Pi).reduction, (Z, Pi))


def test_the_gradient_of_r_is_zero_with_respect_to_the_membership():
    Pi = random_membership(8, 2).requires_grad_()
    rate = rate_reduction(random_features(8, 3).requires_grad_(), Pi).rate
    (gradient,) = torch.autograd.grad(rate, Pi, allow_unused=True)
    assert gradient is None or not gradient.any()


def test_an_absent_class_has_rate_zero_and_gradient_zero():
    Z, labels = random_features(8, 3).requires_grad_(), torch.arange(8) % 2
    rates = class_coding_rates(Z, labels, num_classes=4)
    assert rates[2:].tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(rates[2:].sum(), Z)
    assert not gradient.any()

    Pi = torch.nn.functional.one_hot(labels, 3).double().requires_grad_()
    rates = class_coding_rates(Z, Pi)
    assert rates[2] == 0
    gradients = torch.autograd.grad(rates[2], (Z, Pi))
    assert not any(g.any() for g in gradients)
    (gradient,) = torch.autograd.grad(rate_reduction(Z, Pi).reduction, Pi)
    assert torch.isfinite(gradient).all()


def test_half_precision_features_get_half_precision_gradients():
    Z = random_features(16, 4).bfloat16().requires_grad_()
    rate_reduction(Z, torch.arange(16) % 2).reduction.backward()
    assert Z.grad is not None
    assert Z.grad.dtype == torch.bfloat16
    assert torch.isfinite(Z.grad).all()


def test_autocast_does_not_lower_the_precision():
    Z, labels = random_features(64, 8).float(), torch.arange(64) % 4
    for membership in (labels, random_membership(64, 4).float()):
        X = Z.clone().requires_grad_()
        outside = rate_reduction(X, membership)
        (expected,) = torch.autograd.grad(outside.reduction, X)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = rate_reduction(X, membership)
            (gradient,) = torch.autograd.grad(inside.reduction, X)
        for value, other in zip(inside, outside, strict=True):
            torch.testing.assert_close(value, other, rtol=0, atol=0)
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


# --- edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_features_cost_nothing(dtype):
    Z = torch.zeros(6, 4, dtype=dtype, requires_grad=True)
    rates = rate_reduction(Z, torch.arange(6) % 2)
    for value in rates:
        assert not value.any()
    rates.reduction.backward()
    assert not Z.grad.any()


@pytest.mark.parametrize("m, d", [(40, 6), (6, 40)])
@pytest.mark.parametrize("eps_sq", [1e-30, 1e-9, 1e6, 1e30])
def test_huge_and_tiny_distortions_in_float64(m, d, eps_sq):
    # The oracle is the spectrum: determinants of I + aG leave float64 long before their logarithm.
    Z = random_features(m, d)
    singular = np.linalg.svd(Z.numpy(), compute_uv=False)
    expected = np.log1p(d / (m * eps_sq) * singular**2).sum() / 2
    assert float(coding_rate(Z, eps_sq=eps_sq)) == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_float32_that_overflows_is_computed_in_float64():
    Z = random_features(30, 4).float()
    expected = float(coding_rate(Z.double(), eps_sq=1e-42))
    got = coding_rate(Z.requires_grad_(), eps_sq=1e-42)
    assert got.dtype == torch.float32
    assert float(got.detach()) == pytest.approx(expected, rel=1e-6)
    got.backward()
    assert torch.isfinite(Z.grad).all()
    large = 1e30 * random_features(30, 4).float()
    assert float(coding_rate(large)) == pytest.approx(float(coding_rate(large.double())), rel=1e-6)


def test_what_float64_cannot_factor_is_refused_with_the_cause():
    Z = random_features(40, 3) @ random_features(3, 10)  # of rank 3
    with pytest.raises(
        ValueError, match=r"eps_sq=1e-30 is too small for features of norm up to [\d.]+: .*float64"
    ):
        coding_rate(Z, eps_sq=1e-30)
    with pytest.raises(
        ValueError, match=r"eps_sq=1e-30 is too small for features of norm up to [\d.]+: .*float64"
    ):
        rate_reduction(Z, torch.arange(40) % 2, eps_sq=1e-30)


def test_many_samples_need_no_dense_membership():
    # A (K, m, m) membership would take 800 GB here.
    Z = random_features(100_000, 4).float()
    rates = rate_reduction(Z, torch.arange(100_000) % 20, eps_sq=0.5)
    assert rates.class_rates.shape == (20,)
    assert 0 <= float(rates.reduction) < 0.01


def test_the_features_are_left_as_they_were():
    Z, labels = random_features(9, 3), torch.tensor([2, 0, 1] * 3)
    before = Z.clone(), labels.clone()
    rate_reduction(Z, labels)
    assert torch.equal(Z, before[0])
    assert torch.equal(labels, before[1])


# --- refusals -----------------------------------------------------------------------------------

Z64 = random_features(6, 3)
TWO = torch.arange(6) % 2
HALVES = torch.full((6, 2), 0.5)


def nested(Z):
    with warnings.catch_warnings(action="ignore"):  # it is a prototype
        return torch.nested.as_nested_tensor([Z, Z])


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: coding_rate(torch.ones(3, 2).long()), TypeError, "torch.int64"),
        (lambda: coding_rate(Z64.to(torch.complex128)), TypeError, "complex128"),
        (lambda: coding_rate(Z64.tolist()), TypeError, "list"),
        (lambda: coding_rate(Z64.to("meta")), TypeError, "floating tensor"),
        (lambda: coding_rate(Z64.to_sparse()), TypeError, "floating tensor"),
        (lambda: coding_rate(Z64.to(torch.float8_e4m3fn)), TypeError, "float8_e4m3fn"),
        (lambda: coding_rate(torch.ones(3)), ValueError, "(3,)"),
        (lambda: coding_rate(torch.ones(0, 3)), ValueError, "(0, 3)"),
        (lambda: coding_rate(torch.ones(3, 0)), ValueError, "(3, 0)"),
        (lambda: coding_rate(Z64, eps_sq=0), ValueError, "eps_sq is 0"),
        (lambda: coding_rate(Z64, eps_sq=-1.0), ValueError, "eps_sq is -1.0"),
        (lambda: coding_rate(Z64, eps_sq=math.nan), ValueError, "eps_sq is nan"),
        (lambda: coding_rate(Z64, eps_sq="0.5"), TypeError, "eps_sq must be a number, not str"),
        (lambda: coding_rate(Z64, eps_sq=5e-324), ValueError, "too small for features"),
        (lambda: coding_rate(Z64, eps_sq=10**400), ValueError, "eps_sq is inf"),
        (lambda: coding_rate(nested(Z64)), TypeError, "not a nested torch.float64 tensor"),
        (lambda: coding_rate(torch.ones(9, 4) * 3e38), ValueError, "norm up to 6e+38"),
        (lambda: rate_reduction(Z64, TWO, num_classes=10**11), ValueError, "num_classes is 1000"),
        (lambda: rate_reduction(Z64, TWO, num_classes=10**40), ValueError, "num_classes is 1000"),
        (lambda: rate_reduction(Z64, TWO * (2**63 - 1)), ValueError, "labels run to 92233720368"),
        (lambda: rate_reduction(Z64, np.array(["a"] * 6)), TypeError, "a <U1 array of shape (6,)"),
        (lambda: coding_rate(Z64, eps_sq=True), TypeError, "eps_sq must be a number, not bool"),
        (lambda: rate_reduction(Z64, TWO.tolist()), TypeError, "list"),
        (lambda: rate_reduction(Z64, TWO.bool()), TypeError, "torch.bool"),
        (lambda: rate_reduction(Z64, TWO.double()), TypeError, "(6,)"),
        (lambda: rate_reduction(Z64, HALVES.long()), TypeError, "(6, 2)"),
        (lambda: rate_reduction(Z64, TWO[:5]), ValueError, "5 labels for 6 samples"),
        (lambda: rate_reduction(Z64, HALVES[:4]), ValueError, "4 labels for 6 samples"),
        (lambda: rate_reduction(Z64, TWO + 1, num_classes=2), ValueError, "be in 0 ... 1"),
        (lambda: rate_reduction(Z64, TWO * 10**9), ValueError, "run to 1000000000 for 6 samples"),
        (lambda: rate_reduction(Z64, TWO - 1), ValueError, "from -1 to 0"),
        (lambda: rate_reduction(Z64, TWO - 5), ValueError, "from -5 to -4"),
        (lambda: rate_reduction(Z64, TWO.to("meta")), ValueError, "on meta"),
        (lambda: rate_reduction(Z64, TWO, num_classes=0), ValueError, "num_classes is 0"),
        (
            lambda: rate_reduction(Z64, TWO, num_classes=2.0),
            TypeError,
            "num_classes must be an integer",
        ),
        (lambda: rate_reduction(Z64, HALVES, num_classes=3), ValueError, "2 columns for 3"),
        (lambda: rate_reduction(Z64, HALVES * 1.01), ValueError, "sum to one"),
        (lambda: rate_reduction(Z64, HALVES * math.nan), ValueError, "sum to one"),
        (
            lambda: rate_reduction(Z64, torch.tensor([[1.5, -0.5]]).expand(6, 2)),
            ValueError,
            "non-negative",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("m, d", [(6, 3), (3, 6), (1, 1)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_features_that_are_not_finite_are_refused(m, d, value, dtype):
    Z = random_features(m, d).to(dtype)
    Z[-1, 0] = value
    for call in (coding_rate, lambda Z: rate_reduction(Z, torch.arange(m) % 2, num_classes=2)):
        with pytest.raises(ValueError, match="must be finite, without NaN"):
            call(Z)


def test_a_softmax_in_half_precision_is_a_membership():
    scores = 3 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float16):
        rates = rate_reduction(random_features(50, 4).float(), scores.to(dtype).softmax(1))
        assert torch.isfinite(rates.reduction)
