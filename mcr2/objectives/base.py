"""The contract of an objective, and what it is told of a training step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mcr2 import checks


@dataclass(frozen=True)
class Context:
    """What a loss may know of a training step beside features and labels.

    Attributes:
        indices: the samples' positions in the training split, ``(m,)``, or None outside training.
        step: optimiser steps taken before this one.
        epoch: epochs finished before this one.
        progress: fraction of all steps taken, in [0, 1].
        generator: the objective's own stream of random numbers (on the CPU).
    """

    indices: Tensor | None = None
    step: int = 0
    epoch: int = 0
    progress: float = 0.0
    generator: torch.Generator | None = None


class Objective(nn.Module, ABC):
    """The contract between a loss and everything that trains or evaluates a network with it.

    A new loss is one subclass with one method, :meth:`loss`; the others have defaults. It is
    called as ``objective(features, labels, context)``. Its constructor takes ``num_classes`` (K, at
    least 2) and, where it names them, ``feature_dim`` (d) and ``num_samples`` (N, for state kept
    per sample): a study passes by name whichever of the three the signature asks for; every further
    argument needs a default. Parameters are trained with the backbone, and saved with it as buffers
    are.

    Class attributes:
        additive: the loss is a mean over samples, so that the mean over micro-batches is the
            loss of the batch. Rates are not.
        readout: name of the classifier on features that accuracy is reported with by default,
            ``"head"`` for the objective's own.

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
        self.num_classes = checks.classes(num_classes, 2)

    @abstractmethod
    def loss(
        self, features: Tensor, labels: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Score features against labels that :meth:`forward` has checked.

        Returns:
            The scalar to minimise, and named scalars for the log. The trainer reads them once an
            evaluation, so leave them as tensors: a ``float(...)`` here waits for the device.
        """

    def forward(
        self, features: Tensor, labels: Tensor, context: Context | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss ``()`` and its terms, detached, both ``()``; check what goes in and out.

        Args:
            features: what :meth:`embed` returned, ``(m, d)``, floating.
            labels: integers in [0, num_classes), ``(m,)``, on the features' device.
            context: the step; an empty one by default.

        Raises:
            TypeError: features or labels of the wrong kind; or the loss returned something else
                than a floating scalar and a dict of named scalars.
            ValueError: shapes or devices that do not agree, or labels out of range.
        """
        features = checks.floating("features", features, "m", "d", finite=False)
        device = labels.device if isinstance(labels, Tensor) else torch.device("cpu")
        if device != features.device:
            raise ValueError(f"labels are on {device}, features on {features.device}")
        if device.type == "cpu":
            labels = checks.labels(labels, self.num_classes, count=len(features))
        else:  # reading values would wait for the device at every step: kind and shape alone
            checks.labels(torch.zeros_like(labels, device="cpu"), count=len(features))
        returned = self.loss(features, labels, context or Context())

        must, of = f"{type(self).__name__}.loss must return", checks.describe
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise TypeError(f"{must} (loss, terms), not {of(returned)}")
        loss, terms = returned
        if not (isinstance(loss, Tensor) and loss.dim() == 0 and loss.is_floating_point()):
            raise TypeError(f"{must} a floating scalar tensor first, not {of(loss)}")
        if not isinstance(terms, Mapping):
            raise TypeError(f"{must} a dict of named scalars second, not {of(terms)}")
        for key, value in terms.items():
            plain = isinstance(value, int | float)
            if not (isinstance(key, str) and (plain or getattr(value, "ndim", 1) == 0)):
                raise TypeError(f"{must} named scalars as terms, not {key!r}: {of(value)}")
        return loss, {key: torch.as_tensor(value).detach() for key, value in terms.items()}

    def loss_of_moments(
        self, moments: Tensor, counts: Tensor, context: Context
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what :meth:`loss` does, where second moments of the classes are all it needs.

        Optional: with it, processes that share a batch may send moments in the place of features,
        of which ``embed`` then sees each one's own: it maps rows by themselves, without parameters.

        Args:
            moments: ``Z_kᵀ Z_k`` of the features, float64 ``(K, d, d)``.
            counts: samples of each class, integers ``(K,)``.
            context: the step.
        """
        raise NotImplementedError(f"{type(self).__name__} needs features, not moments alone")

    @property
    def knows_moments(self) -> bool:
        """Whether there is a :meth:`loss_of_moments` of this :meth:`loss` and :meth:`embed`.

        A class that has changed one of the others after it is scored on features: its ``embed`` may
        have parameters, of whose gradient a process with its own rows alone sees a part.
        """
        loss, embed, moments = (
            next(i for i, kind in enumerate(type(self).__mro__) if name in vars(kind))
            for name in ("loss", "embed", "loss_of_moments")
        )
        return loss == moments <= embed

    def embed(self, raw: Tensor) -> Tensor:
        """Turn raw features ``(m, d)`` into those that are scored and evaluated; here as is."""
        return checks.floating("raw features", raw, "m", "d", finite=False)

    def on_epoch(self, features: Tensor, labels: Tensor) -> None:
        """Latch state before an epoch; overriding this makes the trainer provide the features.

        They are ``(N, d)``, of all training samples in the split's order, without gradient.
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
        return [{"params": list(self.parameters())}]


class UnitNormObjective(Objective):
    """An objective that scores features of unit norm, so that none wins by scale."""

    def embed(self, raw: Tensor) -> Tensor:
        """Scale every row to unit norm; a zero row stays zero, with a finite gradient.

        Half precision becomes float32, as the square of an entry above 255 is already infinite.
        A row whose norm overflows becomes NaN: zeros would look like features.
        """
        raw = super().embed(raw)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        norms = raw.norm(dim=1, keepdim=True).clamp_min(1e-12)
        unit: Tensor = raw / norms.masked_fill(norms.isinf(), torch.nan)
        return unit
