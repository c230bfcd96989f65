"""What a reading is: measures by name, and the profiles that take more than a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Value: TypeAlias = float | int | None
Profile: TypeAlias = list[float] | list[list[float]] | list[int]


class Key(NamedTuple):
    """The key of a measure, in parts."""

    layer: str
    split: str
    labels: str
    readout: str
    measure: str

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> Key:
        """Read a key."""
        return cls(*text.split("/"))


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
        profiles: lists by key, of a full reading: spectra, cosines, quantiles of margins.
    """

    readout: str
    measures: Mapping[str, Value] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)

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
