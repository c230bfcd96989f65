"""Noise that takes each class for one other."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mcr2.files import naming, read_text
from mcr2.noise.base import Given, IntArray, Noise


class _ClassMap(Noise):
    """Exactly int(n_k·ratio) of the n_k samples of class k become its target.

    n_k counts true labels where they are known.
    """

    def _targets(self, num_classes: int) -> dict[int, int]:
        """Return what classes are taken for; those that keep their labels are not in it."""
        raise NotImplementedError

    def _choose(self, rs: np.random.RandomState, given: Given) -> IntArray:
        best, chosen, places = given.best, [], []
        for k in sorted(self._targets(given.num_classes)):
            members = np.flatnonzero(best == k)
            count = int(len(members) * self.ratio)
            # One full permutation a class whatever the ratio, as for noise that is uniform.
            chosen.append(rs.permutation(members)[:count])
            places.append((np.arange(count) + 1) / max(len(members), 1))
        # In the order in which a rising ratio reaches them: fewer draws are a prefix of more.
        order = np.argsort(np.concatenate(places), kind="stable")
        return np.concatenate(chosen)[order]

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        targets = np.arange(given.num_classes)
        for source, target in self._targets(given.num_classes).items():
            targets[source] = target
        return targets[given.best[indices]]


@dataclass(frozen=True)
class Asymmetric(_ClassMap):
    """Classes are taken for similar ones: by default CIFAR-10's 9→1, 2→0, 3↔5, 4→7.

    Those are truck to automobile, bird to airplane, cat and dog to each other, deer to horse.

    Args:
        classes: ``SOURCE-TARGET`` pairs of class numbers, joined by commas, or a ``.json`` file of
            an object ``{"9": 1, …}``. Classes that are no source keep their labels.

    Reference:
        Patrini, Rozza, Menon, Nock & Qu, "Making Deep Neural Networks Robust to Label Noise: a Loss
        Correction Approach", CVPR 2017, section 5 (the map).

    Example:
        >>> Asymmetric(0.4, "2-0,0-2")._targets(3)
        {2: 0, 0: 2}
    """

    classes: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file is None:
            self._written()

    @property
    def file(self) -> str | None:
        """The ``.json`` file of the map, if it is one."""
        return self.classes if self.classes.endswith(".json") else None

    def _written(self) -> dict[int, int]:
        pairs = (self.classes or CIFAR10).split(",")
        if wrong := [pair for pair in pairs if not re.fullmatch(r"\d{1,6}-\d{1,6}", pair)]:
            raise ValueError(
                f"asymmetric:{self.classes}: {wrong[0]!r} is not SOURCE-TARGET, two class numbers; "
                "allowed are pairs joined by commas (9-1,2-0) and a .json file"
            )
        return _checked(tuple(map(int, pair.split("-"))) for pair in pairs)

    def _targets(self, num_classes: int) -> dict[int, int]:
        if not self.classes and num_classes != 10:
            raise ValueError(
                f"asymmetric noise without a map is CIFAR-10's, of 10 classes; for {num_classes} "
                "write asymmetric:0-1,1-0 or asymmetric:FILE.json"
            )
        if self.file is None:
            found = self._written()
        else:
            with naming(self.file):
                found = _read_map(Path(self.file))
        most = max([*found, *found.values()])
        if most >= num_classes:
            raise ValueError(
                f"asymmetric:{self.classes} names class {most}; there are {num_classes} classes, "
                f"0 ... {num_classes - 1}"
            )
        return found


CIFAR10 = "9-1,2-0,3-5,5-3,4-7"
"""What is taken for what in CIFAR-10, usually."""


class PairFlip(_ClassMap):
    """Class i is taken for i + 1, the last for the first.

    Reference:
        Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy
        Labels", NeurIPS 2018, section 4.
    """

    def _targets(self, num_classes: int) -> dict[int, int]:
        return {k: (k + 1) % num_classes for k in range(num_classes)}


def _read_map(path: Path) -> dict[int, int]:
    given = json.loads(read_text(path), object_pairs_hook=lambda pairs: pairs)
    if not isinstance(given, list) or not all(isinstance(pair, tuple) for pair in given):
        raise ValueError('not a map of classes; it must be an object such as {"9": 1, "2": 0}')
    for source, target in given:
        if not re.fullmatch(r"\d{1,6}", source) or type(target) is not int:
            raise ValueError(f"{source!r}: {target!r} is not a class and the one it is taken for")
    return _checked((int(source), target) for source, target in given)


def _checked(pairs: Iterable[tuple[int, ...]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for source, target in pairs:
        if target < 0 or source == target:
            raise ValueError(f"class {source} is taken for {target}; it must be another class")
        if source in found:
            raise ValueError(
                f"class {source} is taken for two others, {found[source]} and {target}"
            )
        found[source] = target
    if not found:
        raise ValueError("the map of classes is empty")
    return found
