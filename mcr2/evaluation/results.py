"""What an evaluation is: measures by key, and the profiles that take more than a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from mcr2.evaluation.catalogue import MEASURES, Value

Profile: TypeAlias = list[float] | list[list[float]] | list[int]

#: The encoder's own output, which is what the loss scores, among the layers.
FEATURES = "features"

#: The readout that every evaluation has, fitted alike whatever made the features.
COMMON_READOUT = "ridge"

#: Behind the name of a readout that was fitted on the clean labels, as a diagnostic.
FITTED_CLEAN = "+clean"


class Key(NamedTuple):
    """The name of a number: ``layer/split/labels/readout/measure``, ``-`` where a part is void.

    A layer is ``features`` or a named stage of the encoder; a split ``train``, ``validation``,
    ``test``, or ``train_wrong`` and ``train_correct``, the parts of train; labels are ``noisy``,
    those trained on, or ``clean``; a readout with ``+clean`` was fitted on clean labels; a measure
    is one of :data:`mcr2.evaluation.catalogue.MEASURES`, or a profile.

    Example:
        >>> str(Key(split="test", labels="clean", readout="ridge", measure="accuracy"))
        'features/test/clean/ridge/accuracy'
        >>> Key.parse("stage2/train/-/-/dim95").layer
        'stage2'
    """

    layer: str = FEATURES
    split: str = "-"
    labels: str = "-"
    readout: str = "-"
    measure: str = "-"

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> Key:
        """Return the key that a text is; ValueError where it does not have five parts."""
        parts = text.split("/")
        if len(parts) != len(cls._fields) or "" in parts:
            raise ValueError(f"{text!r} is not a key; a key is {'/'.join(cls._fields)}")
        return cls(*parts)


def measure_key(
    measure: str, *, split: str, labels: str = "-", readout: str = "-", layer: str = FEATURES
) -> str:
    """Return the text of a :class:`Key`.

    Example:
        >>> measure_key("nc1", split="train", labels="noisy")
        'features/train/noisy/-/nc1'
    """
    return str(Key(layer, split, labels, readout, measure))


@dataclass(frozen=True)
class Evaluation:
    """Measures of one encoder on one data set, by :class:`Key`.

    Attributes:
        readout: the classifier that accuracies are reported with by default.
        measures: values by key; None where a measure is undefined (no wrong label, say).
        profiles: lists by key, of a full evaluation: spectra, cosines, quantiles of margins.
        notes: what to know of them, a line each: absent classes, readouts that were not fitted.
    """

    readout: str
    measures: Mapping[str, Value] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def get(
        self,
        measure: str,
        *,
        split: str,
        labels: str = "-",
        readout: str | None = None,
        layer: str = FEATURES,
    ) -> Value:
        """Return one measure; by the default readout (``ridge`` for ``head`` in other layers).

        Raises:
            KeyError: it was not measured; the message lists keys of that name.
        """
        if readout is None:
            by = measure in MEASURES and MEASURES[measure].per in ("classifier", "readout")
            headless = layer != FEATURES and self.readout == "head"
            readout = (COMMON_READOUT if headless else self.readout) if by else "-"
        key = measure_key(measure, split=split, labels=labels, readout=readout, layer=layer)
        if key not in self.measures:
            alike = [k for k in self.measures if Key.parse(k).measure == measure]
            raise KeyError(f"{key} was not measured; of that name there are {alike}")
        return self.measures[key]
