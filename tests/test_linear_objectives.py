"""Losses on a linear head: their formulas, their gradients, and the minima of free features."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from ce_baseline import MSE, OBJECTIVES, CrossEntropy, FixedETF, LabelSmoothing
from experiments.runs.methods import METHODS
from mcr2.metrics.collapse import neural_collapse


def batch(m: int = 12, d: int = 5, K: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m)
    return torch.randn(m, d, generator=generator, dtype=torch.float64), torch.arange(m) % K


def logits(objective, H):
    W, b = objective.classifier()
    return H.numpy() @ W.numpy().T + (0 if b is None else b.numpy())


def targets(y, K):
    return np.eye(K)[y.numpy()]


@pytest.mark.parametrize("bias", [True, False])
def test_mse_is_half_the_mean_squared_distance(bias):
    H, y = batch()
    objective = MSE(3, 5, bias=bias).double()
    loss, terms = objective(H, y)
    error = ((logits(objective, H) - targets(y, 3)) ** 2).sum() / (2 * len(y))
    assert loss.item() == float(terms["squared_error"]) == pytest.approx(error, rel=1e-12)
    guesses = logits(objective, H).argmax(1)
    assert float(terms["batch_accuracy"]) == pytest.approx((guesses == y.numpy()).mean())
    assert (objective.classifier()[1] is None) == (not bias)


@pytest.mark.parametrize(
    "make, smoothing",
    [
        (lambda: LabelSmoothing(3, 5), 0.1),
        (lambda: CrossEntropy(3, 5, label_smoothing=0.3), 0.3),
        (lambda: FixedETF(3, 5), 0.0),
    ],
)
def test_cross_entropy_is_that_of_its_targets(make, smoothing):
    H, y = batch()
    objective = make().double()
    q = (1 - smoothing) * targets(y, 3) + smoothing / 3
    expected = -(q * log_softmax(logits(objective, H), axis=1)).sum() / len(y)
    assert objective(H, y)[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences_and_the_loss_is_a_mean(name):
    H, y = batch()
    objective = OBJECTIVES[name](3, 5).double()
    parameters = [p for group in objective.param_groups() for p in group["params"]]
    assert torch.autograd.gradcheck(
        lambda H, *_: objective(H, y)[0], (H.requires_grad_(), *parameters)
    )
    halves = (objective(H[:6], y[:6])[0] + objective(H[6:], y[6:])[0]) / 2
    assert objective(H, y)[0].item() == pytest.approx(halves.item(), rel=1e-12)
    assert METHODS[name].objective is OBJECTIVES[name]
    assert METHODS[name].readout == "head"


@pytest.mark.parametrize("K, d", [(2, 1), (3, 2), (4, 10), (10, 9), (10, 64)])
def test_the_fixed_classifier_is_a_simplex_frame_wherever_there_is_room_for_one(K, d):
    W, b = FixedETF(K, d).double().classifier()
    expected = (np.eye(K) - 1 / K) * K / (K - 1)
    np.testing.assert_allclose(W @ W.T, expected, atol=1e-6)
    assert b is None
    y = torch.arange(3 * K) % K
    found = neural_collapse(W[y], y, num_classes=K, weight=W)
    assert max(found.nc1, found.nc2_etf, found.nc3, found.nc3_etf, found.nc4) < 1e-5


def test_the_fixed_classifier_follows_the_seed_is_saved_and_is_never_trained():
    torch.manual_seed(0)
    first = FixedETF(4, 6)
    torch.manual_seed(0)
    again, other = FixedETF(4, 6), FixedETF(4, 6)
    assert torch.equal(first.head.weight, again.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)
    other.load_state_dict(first.state_dict())
    assert torch.equal(first.head.weight, other.head.weight)
    assert first.param_groups() == []
    first(torch.randn(8, 6).requires_grad_(), torch.arange(8) % 4)[0].backward()
    assert first.head.weight.grad is None


def test_features_on_a_fixed_frame_move_along_it_and_nowhere_else():
    """The gradient of a sample is minus W ᵀ(onehot − p): in the frame's own dimensions."""
    objective = FixedETF(3, 7).double()
    H, y = batch(d=7)
    objective(H.requires_grad_(), y)[0].backward()
    W = objective.head.weight
    outside = torch.eye(7).double() - torch.linalg.pinv(W) @ W
    assert (H.grad @ outside).abs().max() < 1e-7
    assert H.grad.abs().max() > 1e-3


def test_the_smoothed_minimum_has_the_logits_of_its_targets():
    """Free logits end where softmax equals the targets: the loss is then their entropy."""
    K, s = 4, 0.1
    objective = LabelSmoothing(K, K).double()
    with torch.no_grad():
        objective.head.weight.copy_(torch.eye(K))
        objective.head.bias.zero_()
    q = (1 - s) * np.eye(K) + s / K
    loss, _ = objective(torch.tensor(np.log(q)), torch.arange(K))
    assert loss.item() == pytest.approx(-(q[0] * np.log(q[0])).sum())


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: FixedETF(10, 8), ValueError, "feature_dim is 8; a simplex frame of 10 classes"),
        (lambda: MSE(3, 0), ValueError, "feature_dim is 0"),
        (lambda: MSE(3, 2, bias=1), TypeError, "bias must be a bool, not int 1"),
        (lambda: LabelSmoothing(3, 2, label_smoothing=1.5), ValueError, "label_smoothing is 1.5"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_features_that_are_not_finite_are_refused(name):
    objective = OBJECTIVES[name](2, 2)
    with pytest.raises(ValueError, match="must be finite"):
        objective(torch.tensor([[1.0, 0.0], [math.nan, 0.0]]), torch.tensor([0, 1]))
