"""The contract of an objective, and what it is told of a training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Context:
    """What a loss may know of a training step beside features and labels.

    Attributes:
        indices: the samples' positions in the training split, ``(m,)``, or None outside training.
        step: optimiser steps taken before this one.
        epoch: epochs finished before this one.
        progress: share of all steps taken, in [0, 1].
        generator: the objective's own stream of random numbers (on the CPU).
    """

    indices: Tensor | None = None
    step: int = 0
    epoch: int = 0
    progress: float = 0.0
    generator: torch.Generator | None = None


class Objective(nn.Module, ABC):
    """The contract between a loss and everything that trains or reads a network with it.

    A new loss is one subclass with one method, :meth:`loss`; the others have defaults. It is
    called as ``objective(features, labels, context)``. Its constructor takes ``num_classes`` and,
    where it names them, ``feature_dim`` (d) and ``num_samples`` (N, for state kept per sample):
    a study passes by name whichever of the three the signature asks for; every further argument
    needs a default. Parameters are trained with the backbone; parameters and buffers are saved
    with it.

    Class attributes:
        additive: the loss is a mean over samples, so that the mean over micro-batches is the
            loss of the batch. Rates are not.
        readout: name of the classifier on features that accuracy is reported with by default,
            ``"head"`` for the objective's own.

    Args:
        num_classes: K, at least 2.

    Raises:
        TypeError: ``num_classes`` is not an integer.
        ValueError: ``num_classes`` is below 2.

    Example:
        >>> class Centre(Objective):
        ...     '''Features of one class close to each other.'''
        ...     def loss(self, features, labels, context):
        ...         onehot = nn.functional.one_hot(labels, self.num_classes).to(features)
        ...         means = onehot.T @ features / onehot.sum(0).clamp(min=1).unsqueeze(1)
        ...         spread = (features - means[labels]).square().sum(1).mean()
        ...         return spread, {"spread": spread}
        >>> loss, terms = Centre(num_classes=2)(torch.eye(3), torch.tensor([0, 0, 1]))
        >>> print(f"{loss:.4f}", list(terms))
        0.3333 ['spread']
    """

    additive: ClassVar[bool] = False
    readout: ClassVar[str] = "nearest_subspace"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not isinstance(num_classes, int):
            raise TypeError(f"num_classes must be an integer, not {type(num_classes).__name__}")
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; it must be at least 2")
        self.num_classes = num_classes

    @abstractmethod
    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score features against labels that :meth:`forward` has checked.

        Args:
            features: what :meth:`embed` returned, ``(m, d)``.
            labels: integers in [0, num_classes), ``(m,)``.
            context: the step, for losses with schedules or state per sample.

        Returns:
            The scalar to minimise, and named scalars for the log. The trainer reads them once an
            evaluation, so leave them as tensors: a ``float(...)`` here waits for the device.
        """

    def forward(
        self, features: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Check the input, call :meth:`loss`, check what it returned.

        Args:
            features: what :meth:`embed` returned, ``(m, d)``, floating.
            labels: integers in [0, num_classes), ``(m,)``, on the features' device.
            context: the step; an empty one by default.

        Returns:
            The loss, shape ``()``, and its terms as detached tensors of shape ``()``.

        Raises:
            TypeError: features or labels of the wrong kind; or the loss returned something else
                than a floating scalar and a dict of named scalars.
            ValueError: shapes or devices that do not agree, or labels out of range.
        """
        self._check_input(features, labels)
        returned = self.loss(features, labels, context or Context())
        name = type(self).__name__
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise TypeError(f"{name}.loss must return (loss, terms), not {_describe(returned)}")
        loss, terms = returned
        if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point()):
            raise TypeError(
                f"{name}.loss must return a floating scalar tensor first, not {_describe(loss)}"
            )
        if not isinstance(terms, Mapping):
            raise TypeError(
                f"{name}.loss must return a dict of named scalars second, not {_describe(terms)}"
            )
        for key, value in terms.items():
            scalar = (
                value.dim() == 0 if isinstance(value, Tensor) else isinstance(value, int | float)
            )
            if not (isinstance(key, str) and scalar):
                raise TypeError(
                    f"{name}.loss returned the term {key!r}: {_describe(value)}; terms are named "
                    "scalars"
                )
        return loss, {key: torch.as_tensor(value).detach() for key, value in terms.items()}

    def _check_input(self, features: Tensor, labels: Tensor) -> None:
        if not (isinstance(features, Tensor) and features.is_floating_point()):
            raise TypeError(f"features must be a floating tensor, not {_describe(features)}")
        if features.dim() != 2 or len(features) == 0:
            raise ValueError(f"features have shape {tuple(features.shape)}; it must be (m, d)")
        integer = isinstance(labels, Tensor) and not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        if not integer:
            raise TypeError(f"labels must be an integer tensor, not {_describe(labels)}")
        if labels.shape != features.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; for features of shape "
                f"{tuple(features.shape)} it must be ({len(features)},)"
            )
        if labels.device != features.device:
            raise ValueError(f"labels are on {labels.device}, features on {features.device}")
        # Free on the CPU; elsewhere it would wait for the device at every step, and the losses
        # find labels that are out of range themselves.
        if labels.device.type == "cpu":
            low, high = (int(x) for x in labels.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"labels run from {low} to {high}; with {self.num_classes} classes they must "
                    f"lie in [0, {self.num_classes - 1}]"
                )

    def embed(self, raw: Tensor) -> Tensor:
        """Turn raw features ``(m, d)`` into those that are scored and read; here as they are."""
        return raw

    def on_epoch(self, features: Tensor, labels: Tensor) -> None:
        """Latch state before an epoch; overriding this makes the trainer provide the features.

        Args:
            features: of all training samples, in the split's order, ``(N, d)``, no gradient.
            labels: those trained on, ``(N,)``.
        """

    @property
    def needs_epoch_features(self) -> bool:
        """Whether :meth:`on_epoch` does anything: nobody computes features that nobody wants."""
        return type(self).on_epoch is not Objective.on_epoch

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the objective's own linear head, weight ``(K, d)`` and bias ``(K,)``, or None."""
        return None

    def param_groups(self) -> list[dict[str, Any]]:
        """Return optimiser groups; ``{"params": [...], "weight_decay": 0.0}`` exempts its own."""
        parameters = list(self.parameters())
        return [{"params": parameters}] if parameters else []


def check_number(name: str, value: object, *, zero: bool = False) -> None:
    """Refuse what is not a finite positive number, or zero where that is allowed.

    Raises:
        TypeError: ``value`` is not a number.
        ValueError: it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 <= value < float("inf") or (value == 0 and not zero):
        sign = "non-negative" if zero else "positive"
        raise ValueError(f"{name} is {value}; it must be {sign} and finite")


def check_count(name: str, value: object) -> None:
    """Refuse what is not an integer of at least one.

    Raises:
        TypeError: ``value`` is not an integer.
        ValueError: it is below one.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")


def unit_norm(raw: Tensor) -> Tensor:
    """Scale every row to unit norm; a zero row stays zero, with a finite gradient."""
    # In float32: the square of a half-precision entry above 255 is already infinite.
    return nn.functional.normalize(raw.to(torch.promote_types(raw.dtype, torch.float32)))


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"{type(value).__name__} {value!r}"[:80]
