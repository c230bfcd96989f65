"""The common evaluator: it reads every network the same way, whatever trained it.

It knows metrics and readouts, not objectives: an encoder is anything that maps images to
features, with a ``classifier()`` if it has a linear head of its own. Readouts are fitted on the
training features with the labels trained on, as a user would have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mcr2.data import Split, to_float
from mcr2.metrics.accuracy import accuracy
from mcr2.metrics.coding import coding_measures
from mcr2.metrics.memorization import memorization
from mcr2.metrics.rank import feature_rank
from mcr2.readouts import fit_readout

Value = float | int | None


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


def measure_key(
    measure: str,
    *,
    split: str,
    labels: str = "-",
    readout: str = "-",
    layer: str = "features",
) -> str:
    """Return the key of a measure: ``layer/split/labels/readout/measure``.

    ``labels`` says what a measure was counted against (``noisy``: trained on; ``clean``), and
    ``-`` stands where a part does not apply.

    Example:
        >>> measure_key("accuracy", split="test", labels="clean", readout="ridge")
        'features/test/clean/ridge/accuracy'
    """
    return "/".join((layer, split, labels, readout, measure))


@dataclass(frozen=True)
class Evaluation:
    """Measures of one encoder on one data set, keyed as by :func:`measure_key`.

    Attributes:
        readout: the classifier that accuracies are reported with by default.
        measures: values by key; None where a measure is undefined (no wrong label, say).
    """

    readout: str
    measures: Mapping[str, Value] = field(default_factory=dict)

    def get(
        self, measure: str, *, split: str, labels: str = "-", readout: str | None = None
    ) -> Value:
        """Return one measure; ``readout=None`` means the default readout where one applies.

        Raises:
            KeyError: no such measure; the message lists keys of that name.
        """
        if readout is None:
            readout = "-" if labels == "-" else self.readout
        key = measure_key(measure, split=split, labels=labels, readout=readout)
        if key not in self.measures:
            alike = [k for k in self.measures if k.endswith(f"/{measure}")]
            raise KeyError(f"{key} was not measured; of that name there are {alike}")
        return self.measures[key]


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
    """Read one encoder: accuracy and memorization by each readout, rank, dimension and rates.

    Args:
        encoder: images -> features.
        train: the split trained on; its ``labels`` may be wrong, ``clean_labels`` tell where.
        test: the test split; its labels are taken as clean.
        validation: samples held out, with labels as noisy as the training ones.
        num_classes: K.
        readout: the classifier to report by default, a name of :mod:`mcr2.readouts`.
        readouts: further classifiers to read by.
        full: False leaves out the rank measures and rates, for evaluations during training.

    Returns:
        For each readout: ``accuracy`` (test/clean, validation/noisy, train/clean) and
        ``fit_noisy``, ``fit_corrupted``, ``recovered`` (train/noisy). With ``full``, on train
        and test: the fields of :class:`~mcr2.metrics.rank.FeatureRank`, and ``rate``,
        ``compressed_rate``, ``reduction`` on unit-norm features by the labels trained on
        (``noisy``) and by the clean ones.

    Raises:
        ValueError: an unknown readout, ``head`` for an encoder without one, or features that
            are not finite.
    """
    measures: dict[str, Value] = {}
    h_train, h_test = encode(encoder, train.images), encode(encoder, test.images)
    h_validation = encode(encoder, validation.images) if validation is not None else None
    head = encoder.classifier()
    if head is not None:
        head = (head[0].detach(), None if head[1] is None else head[1].detach())

    for name in dict.fromkeys((readout, *readouts)):
        fitted = fit_readout(name, h_train, train.labels, num_classes=num_classes, head=head)
        guesses = fitted.predict_training(h_train)

        def put(measure: str, split: str, labels: str, value: Value, name: str = name) -> None:
            measures[measure_key(measure, split=split, labels=labels, readout=name)] = value

        put("accuracy", "test", "clean", accuracy(fitted.predict(h_test), test.labels))
        if validation is not None and h_validation is not None:
            value = accuracy(fitted.predict(h_validation), validation.labels)
            put("accuracy", "validation", "noisy", value)
        if train.clean_labels is not None:
            put("accuracy", "train", "clean", accuracy(guesses, train.clean_labels))
        learnt = memorization(guesses, train.labels, train.clean_labels)
        for measure, value in asdict(learnt).items():
            put(measure, "train", "noisy", value)

    if full:
        for split, features, labelled in (("train", h_train, train), ("test", h_test, test)):
            for measure, value in asdict(feature_rank(features)).items():
                measures[measure_key(measure, split=split)] = value
            kinds = {"noisy": labelled.labels, "clean": labelled.clean_labels}
            if split == "test":
                kinds = {"clean": test.labels}
            for kind, labels in kinds.items():
                if labels is None:
                    continue
                rates = coding_measures(features, labels, num_classes=num_classes)
                for measure, value in asdict(rates).items():
                    measures[measure_key(measure, split=split, labels=kind)] = value
    return Evaluation(readout=readout, measures=measures)
