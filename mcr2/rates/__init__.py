"""Coding rates: how many nats it takes to code features up to a squared distortion ε².

Features ``Z`` have shape ``(..., m, d)``, one sample a row. A membership says which sample belongs
to which of the K classes: integers ``(m,)``, or a floating ``(m, K)`` whose rows sum to one.

    R(Z)        = ½ logdet(I + d/(m ε²) ZᵀZ)
    R_k(Z)      = ½ logdet(I + d/(tr Π_k ε²) Zᵀ Π_k Z)
    R_c(Z, Π)   = Σ_k (tr Π_k / m) R_k
    ΔR(Z, Π)    = R − R_c  ≥  0

Signals of several channels, ``(m, C, T)`` or ``(m, C, H, W)``, have rates of all their circular
shifts: the ``shift_invariant_…`` functions.

    vectors.py, signals.py   the rates of features and of signals
    moments.py               the rates of features of which the classes' second moments are known
    membership.py            what is checked, once, about features and memberships
    kernels.py, logdet.py    Gram matrices; their log-determinants, as accurate as promised
    precision.py             dtypes, and what is read from a device

Every rate is differentiable any number of times; ``torch.func.grad``, ``vmap`` and ``jacrev``
apply. A call waits for its device for the class sizes and to see whether float32 was accurate
enough, and once more without ``num_classes``. Under ``torch.compile`` it is a graph break: class
sizes shape the work, and compiled code would be compiled anew for every batch.

Reference: Yu, Chan, You, Song & Ma, "Learning Diverse and Discriminative Representations via the
Principle of Maximal Coding Rate Reduction", NeurIPS 2020, Sections 2.1 and 2.2. The paper writes
samples as columns; the determinants are the same.
"""

from mcr2.rates.moments import class_moments, rates_of_moments
from mcr2.rates.signals import (
    shift_invariant_class_rates,
    shift_invariant_rate,
    shift_invariant_rate_reduction,
)
from mcr2.rates.vectors import (
    Rates,
    class_coding_rates,
    coding_rate,
    rate_reduction,
    rate_reduction_with_expansion,
)

__all__ = [
    "Rates",
    "class_coding_rates",
    "class_moments",
    "coding_rate",
    "rate_reduction",
    "rate_reduction_with_expansion",
    "rates_of_moments",
    "shift_invariant_class_rates",
    "shift_invariant_rate",
    "shift_invariant_rate_reduction",
]
