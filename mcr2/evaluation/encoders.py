"""Encoders of images: their features first, then :mod:`mcr2.evaluation.features`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.data import Split, to_float
from mcr2.evaluation.features import Labelled, evaluate_features
from mcr2.evaluation.results import COMMON_READOUT, FEATURES, Evaluation


class ImageEncoder(Protocol):
    """What the evaluator asks of a network, trained or constructed.

    It may name stages by ``layer_names()``: then ``layer_features(images, names)`` returns their
    outputs ``(m, d_l)`` by name, ``features`` being the encoder's own.
    """

    training: bool

    def __call__(self, images: Tensor) -> Tensor:
        """Map float images to features ``(m, d)``."""

    def train(self, mode: bool = True) -> object:
        """Set training or evaluation mode."""

    def classifier(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the own linear head, or None."""


def layers_of(encoder: ImageEncoder) -> tuple[str, ...]:
    """Return the names of an encoder's stages, none where it does not name them."""
    staged: Any = encoder
    return tuple(staged.layer_names()) if hasattr(encoder, "layer_names") else ()


def encode(encoder: ImageEncoder, images: Tensor, *, batch_size: int = 500) -> Tensor:
    """Return the features ``(N, d)`` of images, as :func:`encode_layers` does."""
    return encode_layers(encoder, images, batch_size=batch_size)[FEATURES]


@torch.no_grad()
def encode_layers(
    encoder: ImageEncoder, images: Tensor, layers: Sequence[str] = (), *, batch_size: int = 500
) -> dict[str, Tensor]:
    """Return the features of images, and the outputs of named stages, in one pass over them.

    Args:
        encoder: maps float images to features; it is set to evaluation mode meanwhile.
        images: ``(N, C, H, W)``, uint8, or floating from 0 to 1 as the encoder takes them.
        layers: names of stages of the encoder.
        batch_size: images at a time; memory grows with it, the result does not change.

    Returned are ``(N, d_l)`` by name, ``features`` first, at least float32, on the images' device.

    Raises:
        TypeError: images that are neither uint8 nor floating.
        ValueError: a stage that the encoder does not have, or not one feature an image.
    """
    names = tuple(dict.fromkeys((FEATURES, *layers)))
    for name in names:
        checks.choice("layer", name, (FEATURES, *layers_of(encoder)))
    staged: Any = encoder
    mode = encoder.training
    encoder.train(False)
    try:
        batches = map(_pixels, torch.split(images, batch_size))
        if len(names) == 1:
            parts = [{FEATURES: encoder(batch)} for batch in batches]
        else:
            parts = [staged.layer_features(batch, names) for batch in batches]
    finally:
        encoder.train(mode)
    whole = {name: torch.cat([part[name] for part in parts]) for name in names}
    if len(whole[FEATURES]) != len(images):
        count = len(whole[FEATURES])
        raise ValueError(f"{len(images)} images make {count} features; one each is needed")
    return {n: H.to(torch.promote_types(H.dtype, torch.float32)) for n, H in whole.items()}


def _pixels(images: Tensor) -> Tensor:
    if not images.is_floating_point():
        return to_float(images)
    return checks.floating("images", images, "N", "C", "H", "W").float()


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
    layers: Sequence[str] = (),
) -> Evaluation:
    """Measure one encoder by its features of all splits.

    Arguments and errors are those of :func:`evaluate_features`, with images for features. Named
    stages are measured too where ``layers`` lists them. There is no head in them, and a note names
    the readouts that do not fit their width.
    """
    splits = [split for split in (train, test, validation) if split is not None]
    encoded = [encode_layers(encoder, split.images, layers) for split in splits]
    found = []
    for layer in encoded[0]:
        own, names = layer == FEATURES, (readout, *readouts)
        labelled = [
            Labelled(by_layer[layer], split.labels, split.clean_labels)
            for by_layer, split in zip(encoded, splits, strict=True)
        ]
        found.append(
            evaluate_features(
                *labelled,
                num_classes=num_classes,
                readout=readout if own else COMMON_READOUT,
                readouts=names if own else [name for name in names if name != "head"],
                head=encoder.classifier() if own else None,
                full=full,
                layer=layer,
            )
        )
    return Evaluation(
        readout,
        {key: value for part in found for key, value in part.measures.items()},
        {key: value for part in found for key, value in part.profiles.items()},
        tuple(dict.fromkeys(note for part in found for note in part.notes)),
    )
