"""What ``mcr2 audit`` looks at: samples with labels and features, wherever they come from.

A subject is made from a finished run, from a file of features, or from images, of which the pixels
are projected or a network is trained first.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.runs.machine import Machine
from experiments.runs.methods import find_method
from experiments.runs.prepare import Prepared, Sizes
from experiments.runs.runner import Reopened
from experiments.runs.specs import RunSpec
from experiments.runs.trained import Trained, make_feed
from mcr2.audit import pixel_features
from mcr2.checks import Array
from mcr2.data import Split, Training
from mcr2.evaluation import ImageEncoder, encode, read_features
from mcr2.files import naming
from mcr2.readouts import LinearClassifier, fit_readout
from mcr2.training import Encoder, Progress, Watch, train


@dataclass(frozen=True, eq=False)
class Subject:
    """Samples to audit.

    Args:
        name: of the data.
        made_of: what the features are, in a few words.
        features, labels, num_classes: ``(N, d)``, ``(N,)`` and K.
        classes: names of the K classes.
        true: the true labels ``(N,)`` where they are known, or None.
        head: the linear classifier that comes with the features, or None.
        samples, others, label_name: by name, what a file of them holds: arrays with a row a sample
            beside the labels, which stand under ``label_name``, and other arrays; None is left out.
        epochs: class scores ``(N, K)`` along a training, or none.
        images: uint8 ``(N, C, H, W)``, or None.
        files: where each image lies in its folder, or None.
    """

    name: str
    made_of: str
    features: Array
    labels: Tensor
    num_classes: int
    classes: tuple[str, ...]
    true: Tensor | None
    head: tuple[Array, Array | None] | None
    samples: Mapping[str, Array | None]
    others: Mapping[str, Any]
    label_name: str
    epochs: Sequence[Tensor] = ()
    images: Tensor | None = None
    files: Sequence[str] | None = None

    def cleaned(self, kept: Tensor, labels: Tensor) -> dict[str, NDArray[Any]]:
        """Return the arrays of a file of the samples ``kept``, with these labels ``(N,)``.

        ``index`` is where each sample was.
        """
        index = kept.cpu().numpy()
        rows = {**self.samples, self.label_name: labels}
        found = {
            name: np.asarray(array)[index] for name, array in rows.items() if array is not None
        }
        rest = {name: np.asarray(value) for name, value in self.others.items() if value is not None}
        return found | rest | {"index": index}


def is_features(path: Path) -> bool:
    """Whether an ``.npz`` file holds features, not images."""
    with naming(path), zipfile.ZipFile(path) as archive:
        return "features.npy" in archive.namelist()


def of_features(path: Path, num_classes: int | None = None) -> Subject:
    """Return the samples of a file, as :func:`mcr2.evaluation.read_features` reads it."""
    found = read_features(path, num_classes=num_classes, mapped=True)
    train, test, head = found.train, found.test, found.head
    true = None if train.clean_labels is None else torch.as_tensor(train.clean_labels)
    weight, bias = head or (None, None)
    others: dict[str, Any] = {"weight": weight, "bias": bias}
    if test is not None:
        others |= {"test_features": test.features, "test_labels": torch.as_tensor(test.labels)}
    return Subject(
        name=path.name,
        made_of="features of the file",
        features=train.features,
        labels=torch.as_tensor(train.labels),
        num_classes=found.num_classes,
        classes=tuple(map(str, range(found.num_classes))),
        true=true,
        head=head,
        samples={"features": torch.as_tensor(train.features), "clean_labels": true},
        others=others,
        label_name="labels",
    )


def of_pixels(training: Training) -> Subject:
    """Return images with their pixels as features, see :func:`mcr2.audit.pixel_features`."""
    H = pixel_features(training.split.images)
    made_of = f"pixels, projected on {H.shape[1]} directions"
    own = (training.split, training.classes, training.test)
    return replace(_of_images(training.name, made_of, H, *own), files=training.files)


def of_labels(data: Prepared) -> Subject:
    """Return the training images of prepared data, with the labels after noise and their pixels."""
    dataset, split = data.dataset, _noisy(data)
    H = pixel_features(split.images)
    return _of_images(dataset.name, "pixels", H, split, dataset.classes, dataset.test)


def _noisy(data: Prepared) -> Split:
    """Return all training samples, held-out ones too, in the data's order, as noise left them."""
    parts = [part for part in (data.train, data.validation) if part is not None]
    trained = torch.ones(len(data.dataset.train), dtype=torch.bool)
    trained[data.held_out] = False
    order = torch.cat([trained.nonzero().flatten(), data.held_out]).argsort()
    labels, images = (
        torch.cat([getattr(p, n) for p in parts])[order] for n in ("labels", "images")
    )
    return Split(images, labels, data.corruption.truth)


def make_encoder(training: Training, spec: RunSpec) -> Encoder:
    """Return the network that :func:`of_training` trains, as a spec's seed makes it.

    Raises:
        ValueError, TypeError: a method that is not trained, or a spec that these images do not fit.
    """
    method = find_method(spec.method)
    if not isinstance(method, Trained):
        raise ValueError(f"method {spec.method!r} is not trained; choose one that is, such as ce")
    count, channels, height, width = training.split.images.shape
    sizes = Sizes(len(training.classes), channels, count, height, width)
    method.check(spec, sizes)
    return method.build(spec, sizes)


def of_training(
    training: Training,
    spec: RunSpec,
    encoder: Encoder,
    machine: Machine,
    progress: Callable[[Progress], None] | None = None,
) -> Subject:
    """Train a spec's network on images with their labels, and return its features of them.

    Nothing is held out, and nothing is kept of the network. ``epochs`` are the scores of its own
    head, where it has one, at every evaluation.

    Raises:
        ValueError: the loss stopped being finite.
    """
    split, device = training.split, machine.configure_torch()
    images = split.images.to(device)
    epochs: list[Tensor] = []

    def look(encoder: ImageEncoder) -> dict[str, float | None]:
        head = encoder.classifier()
        if head is not None:
            epochs.append(LinearClassifier(*_with_bias(head)).scores(encode(encoder, images)).cpu())
        return {}

    feed = make_feed(spec, shift=training.shift, flip=training.flip)
    watch = Watch(evaluate=look, progress=progress)
    done = train(
        encoder.backbone, encoder.objective, split, spec.training, feed, watch, device=device
    )
    if done.reason is not None:
        raise ValueError(f"the network cannot be used: {done.reason}")
    return replace(
        _of_images(
            training.name,
            f"{spec.method} after {spec.training.epochs} epochs",
            encode(encoder, images).cpu(),
            split,
            training.classes,
            training.test,
        ),
        head=_on_cpu(encoder.classifier()),
        epochs=epochs[1:],  # not of the network before training
        files=training.files,
    )


def of_run(opened: Reopened, rule: str = "last", *, along: bool = False) -> Subject:
    """Return the training samples of a finished run with its features at the epoch of a rule.

    They are all samples of the data set, also those that the run held out, in its order, with the
    labels that the run was given.

    Args:
        opened: the run.
        rule: the selection rule.
        along: also score the classes at every epoch whose weights were kept, by the run's own
            readout, fitted there on the given labels.

    Raises:
        ValueError: a run that failed, or without weights of that epoch.
    """
    record, data = opened.run.record, opened.data
    if record.status != "finished":
        raise ValueError(f"{opened.run.folder}: the run failed ({record.reason})")
    epoch, split = opened.epoch_of(rule), _noisy(data)
    images = split.images.to(opened.machine.torch_device())
    encoder = opened.encoder(epoch)
    scores = []
    for kept in sorted(map(int, record.weights)) if along else ():
        at = encoder if kept == epoch else opened.encoder(kept)
        H, head = encode(at, images).cpu(), _on_cpu(at.classifier())
        K = data.sizes.num_classes
        readout = fit_readout(record.readout, H, split.labels, num_classes=K, head=head)
        scores.append(readout.scores(H).clamp(min=-torch.finfo(torch.float64).max))
    return replace(
        _of_images(
            data.dataset.name,
            f"{record.spec['method']} at epoch {epoch} ({rule})",
            encode(encoder, images).cpu(),
            split,
            data.dataset.classes,
            data.test,
        ),
        head=_on_cpu(encoder.classifier()),
        epochs=scores,
    )


def _of_images(
    name: str, made_of: str, H: Tensor, split: Split, classes: tuple[str, ...], test: Split | None
) -> Subject:
    """Return images with their features; the truth is known where some label differs from it."""
    true = split.clean_labels
    known = true is not None and bool((true != split.labels).any())
    # Names of folders need not be Unicode.
    names = [name.encode("utf-8", "backslashreplace").decode() for name in classes]
    others: dict[str, Any] = {"classes": np.array(names), "axes": "NCHW", "labels_are": "noisy"}
    if test is not None:
        others |= {"x_test": test.images, "y_test": test.labels}
    return Subject(
        name=name,
        made_of=made_of,
        features=H,
        labels=split.labels,
        num_classes=len(classes),
        classes=classes,
        true=true if known else None,
        head=None,
        samples={"x_train": split.images, "y_train_clean": true if known else None},
        others=others,
        label_name="y_train",
        images=split.images,
    )


def _with_bias(head: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    weight, bias = head
    return weight.detach(), weight.new_zeros(len(weight)) if bias is None else bias.detach()


def _on_cpu(head: tuple[Tensor, Tensor | None] | None) -> tuple[Tensor, Tensor] | None:
    if head is None:
        return None
    weight, bias = _with_bias(head)
    return weight.cpu(), bias.cpu()
