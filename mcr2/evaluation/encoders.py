"""Encoders read on images: features first, then :mod:`mcr2.evaluation.features`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mcr2.data import Split, to_float
from mcr2.evaluation.features import Labelled, evaluate_features
from mcr2.evaluation.results import Evaluation


class ImageEncoder(Protocol):
    """What the evaluator asks of a network, trained or constructed."""

    training: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Map float images to features ``(m, d)``."""

    def train(self, mode: bool = True) -> object:
        """Set training or evaluation mode."""

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the own linear head, or None."""


@torch.no_grad()
def encode(encoder: ImageEncoder, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the features of uint8 images, in evaluation mode, in pieces of ``batch_size``.

    Args:
        encoder: maps float images to features.
        images: uint8 images ``(N, C, H, W)``.
        batch_size: images at a time; memory grows with it, the result does not change.

    Returns:
        Features ``(N, d)`` in at least float32, on the images' device.
    """
    mode = encoder.training
    encoder.train(False)
    try:
        parts = [encoder(to_float(part)) for part in torch.split(images, batch_size)]
    finally:
        encoder.train(mode)
    features = torch.cat(parts)
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def evaluate(
    encoder: ImageEncoder,
    train: Split,
    test: Split,
    validation: Split | None = None,
    *,
    num_classes: int,
    readout: str,
    readouts: Sequence[str] = (),
    full: bool = True,
) -> Evaluation:
    """Read one encoder: its features of all splits, as :func:`evaluate_features` reads them.

    Args:
        encoder: images -> features.
        train: the split trained on; its ``labels`` may be wrong, ``clean_labels`` tell where.
        test: the test split; its labels are taken as clean.
        validation: samples held out, with labels as noisy as the training ones.
        num_classes: K.
        readout: the classifier to report by default, a name of :mod:`mcr2.readouts`.
        readouts: further classifiers to read by.
        full: False takes the cheap subset, for evaluations during training.

    Returns:
        What :func:`evaluate_features` returns.

    Raises:
        ValueError: an unknown readout, ``head`` for an encoder without one, or features that
            are not finite.
    """

    def read(split: Split) -> Labelled:
        return Labelled(encode(encoder, split.images), split.labels, split.clean_labels)

    return evaluate_features(
        read(train),
        read(test),
        None if validation is None else read(validation),
        num_classes=num_classes,
        readout=readout,
        readouts=readouts,
        head=encoder.classifier(),
        full=full,
    )
