"""What the rates of signals must satisfy, against circulant matrices written out."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mcr2.rates import (
    class_coding_rates,
    coding_rate,
    rate_reduction,
    shift_invariant_class_rates,
    shift_invariant_rate,
    shift_invariant_rate_reduction,
)


def random_signals(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[1] ** 0.5


def random_membership(m: int, K: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, K, generator=generator, dtype=torch.float64).softmax(1)


def circulant(z: np.ndarray) -> np.ndarray:
    """All circular shifts of one signal (C, T) or (C, H, W) as columns, CT × T."""
    axes = tuple(range(1, z.ndim))
    shifts = [np.roll(z, shift, axes).ravel() for shift in np.ndindex(z.shape[1:])]
    return np.stack(shifts, axis=1)


def oracle_rate(Z: Tensor, weights: np.ndarray, eps_sq: float) -> float:
    """1/(2T) logdet(I + C/(tr Π ε²) circ(Z) Π circ(Z)ᵀ), every matrix written out."""
    if weights.sum() == 0:
        return 0.0
    signals = Z.detach().double().numpy()
    C, T = signals.shape[1], signals[0, 0].size
    matrices = [circulant(z) for z in signals]
    gram = sum(w * matrix @ matrix.T for w, matrix in zip(weights, matrices, strict=True))
    _, logdet = np.linalg.slogdet(np.eye(C * T) + C / (weights.sum() * eps_sq) * gram)
    return logdet / (2 * T)


def assert_equals_oracle(Z: Tensor, membership: Tensor, K: int, eps_sq: float, **close: float):
    m = len(Z)
    hard = membership.dim() == 1
    Pi = (torch.nn.functional.one_hot(membership, K) if hard else membership).double().numpy()
    rates = shift_invariant_rate_reduction(Z, membership, num_classes=K, eps_sq=eps_sq)
    rate = oracle_rate(Z, np.ones(m), eps_sq)
    class_rates = np.array([oracle_rate(Z, column, eps_sq) for column in Pi.T])
    compressed_rate = Pi.sum(0) / m @ class_rates
    np.testing.assert_allclose(rates.rate, rate, **close)
    np.testing.assert_allclose(rates.class_rates, class_rates, **close)
    np.testing.assert_allclose(rates.compressed_rate, compressed_rate, **close)
    np.testing.assert_allclose(shift_invariant_rate(Z, eps_sq=eps_sq), rate, **close)
    alone = shift_invariant_class_rates(Z, membership, num_classes=K, eps_sq=eps_sq)
    np.testing.assert_allclose(alone, class_rates, **close)


signals = st.fixed_dictionaries(
    {
        "channels": st.integers(1, 4),
        "positions": st.one_of(
            st.tuples(st.integers(1, 7)), st.tuples(st.integers(1, 4), st.integers(1, 4))
        ),
        "K": st.integers(1, 4),
        "labels": st.lists(st.integers(0, 3), min_size=1, max_size=9),
        "eps_sq": st.floats(0.05, 20),
        "seed": st.integers(0, 99),
    }
)


@settings(max_examples=60, deadline=None)
@given(signals, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), st.booleans())
def test_rates_equal_those_of_the_circulant_matrices(problem, dtype, soft):
    m, K = len(problem["labels"]), problem["K"]
    Z = random_signals(m, problem["channels"], *problem["positions"], seed=problem["seed"])
    membership = torch.tensor(problem["labels"]) % K
    if soft:
        membership = random_membership(m, K, problem["seed"])
    unit = 1e-11 if dtype == torch.float64 else 2e-5
    assert_equals_oracle(Z.to(dtype), membership, K, problem["eps_sq"], rtol=unit, atol=unit)


@pytest.mark.parametrize("positions", [(6,), (5,), (4, 3), (3, 4), (2, 2)])
@pytest.mark.parametrize("C, m", [(3, 8), (5, 4)])
def test_gradients_of_hard_and_soft_rates(positions, C, m):
    Z = random_signals(m, C, *positions).requires_grad_()
    labels = torch.tensor([0, 1, 0, 0, 1, 3, 1, 0])[:m]
    Pi = random_membership(m, 3).requires_grad_()

    def hard(Z):
        return shift_invariant_rate_reduction(Z, labels, num_classes=4)[:3]

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(hard, (Z,), fast_mode=True)
        assert check(shift_invariant_rate_reduction, (Z, Pi), fast_mode=True)


def test_transforms_of_functions_of_signals():
    batch, labels = random_signals(3, 6, 2, 4), torch.arange(6) % 2

    def reduction(Z):
        return shift_invariant_rate_reduction(Z, labels).reduction

    torch.testing.assert_close(torch.vmap(reduction)(batch), torch.stack([*map(reduction, batch)]))
    gradients = torch.stack([torch.autograd.functional.jacobian(reduction, Z) for Z in batch])
    torch.testing.assert_close(torch.vmap(torch.func.grad(reduction))(batch), gradients)


@pytest.mark.parametrize("positions", [(5,), (3, 2)])
def test_every_entry_of_a_gradient(positions):
    Z, labels = random_signals(5, 2, *positions).requires_grad_(), torch.arange(5) % 2
    Pi = random_membership(5, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda Z: shift_invariant_rate_reduction(Z, labels), (Z,))
    assert torch.autograd.gradcheck(shift_invariant_class_rates, (Z, Pi))
    assert torch.autograd.gradcheck(shift_invariant_rate, (Z,))


@pytest.mark.parametrize("positions", [(1,), (1, 1)])
@pytest.mark.parametrize("soft", [False, True])
def test_signals_of_one_position_are_vectors(positions, soft):
    Z = random_signals(12, 4, *positions)
    membership = random_membership(12, 3) if soft else torch.arange(12) % 3
    vectors = Z.reshape(12, 4)
    signal_rates = shift_invariant_rate_reduction(Z, membership)
    for value, expected in zip(signal_rates, rate_reduction(vectors, membership), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(shift_invariant_rate(Z), coding_rate(vectors))
    class_rates = shift_invariant_class_rates(Z, membership)
    assert torch.equal(class_rates, class_coding_rates(vectors, membership))


@pytest.mark.parametrize("positions", [(7,), (4, 5)])
def test_shifting_samples_each_by_its_own_changes_nothing(positions):
    Z, labels = random_signals(9, 3, *positions), torch.arange(9) % 2
    dims = tuple(range(1, 1 + len(positions)))
    moved = torch.stack([z.roll([i + 1] * len(dims), dims) for i, z in enumerate(Z)])
    expected = shift_invariant_rate_reduction(Z, labels)
    for value, other in zip(shift_invariant_rate_reduction(moved, labels), expected, strict=True):
        torch.testing.assert_close(value, other)


def test_an_image_of_one_row_is_a_signal():
    Z, labels = random_signals(6, 2, 5), torch.arange(6) % 2
    expected = shift_invariant_rate_reduction(Z, labels)
    for image in (Z.unsqueeze(2), Z.unsqueeze(3)):
        for value, other in zip(
            shift_invariant_rate_reduction(image, labels), expected, strict=True
        ):
            torch.testing.assert_close(value, other)


def test_an_absent_class_has_rate_zero_and_gradient_zero():
    Z = random_signals(6, 2, 4).requires_grad_()
    rates = shift_invariant_class_rates(Z, torch.arange(6) % 2, num_classes=3)
    assert rates[2] == 0
    (gradient,) = torch.autograd.grad(rates[2], Z)
    assert not gradient.any()


def test_zero_signals_cost_nothing():
    Z = torch.zeros(4, 2, 3, requires_grad=True)
    rates = shift_invariant_rate_reduction(Z, torch.arange(4) % 2)
    assert not any(r.any() for r in rates)
    rates.reduction.backward()
    assert not Z.grad.any()


def test_float32_signals_that_overflow_are_computed_in_float64():
    Z = random_signals(6, 2, 4)
    rate = shift_invariant_rate(1e30 * Z.float())
    assert rate.dtype == torch.float32
    assert float(rate) == pytest.approx(float(shift_invariant_rate(1e30 * Z)), rel=1e-6)


Z3 = random_signals(4, 2, 3)
TWO = torch.arange(4) % 2


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: shift_invariant_rate(Z3[0]), ValueError, "(2, 3)"),
        (lambda: shift_invariant_rate(Z3[..., None, None]), ValueError, "(m, C, T)"),
        (lambda: shift_invariant_rate(Z3[:0]), ValueError, "(0, 2, 3)"),
        (lambda: shift_invariant_rate(Z3.long()), TypeError, "int64"),
        (lambda: shift_invariant_rate(Z3, eps_sq=0), ValueError, "eps_sq is 0"),
        (lambda: shift_invariant_rate(Z3 * np.nan), ValueError, "without NaN"),
        (lambda: shift_invariant_rate_reduction(Z3, TWO[:3]), ValueError, "3 labels for 4"),
        (
            lambda: shift_invariant_class_rates(Z3, TWO + 1, num_classes=2),
            ValueError,
            "be in 0 ... 1",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
