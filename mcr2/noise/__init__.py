"""Label noise: which training labels are redrawn, and as what.

Kinds that choose uniformly redraw the same labels for one seed and differ in what they become, and
what is redrawn at ratio 0.1 is redrawn, as the same class, at 0.2. A new kind is one class (see
``Noise``) and its line in ``NOISES``.
"""

from dataclasses import MISSING, fields

from mcr2 import checks
from mcr2.checks import Labels
from mcr2.noise.base import Corruption, Given, Noise
from mcr2.noise.class_map import Asymmetric, PairFlip
from mcr2.noise.given import GivenLabels
from mcr2.noise.instance import Instance
from mcr2.noise.margin import Margin
from mcr2.noise.open_set import OpenSet
from mcr2.noise.symmetric import Symmetric, SymmetricExcludingTrue
from mcr2.noise.transition import Transition

__all__ = ["NOISES", "Corruption", "Given", "Noise", "corrupt", "parse_noise"]

#: Kinds of noise by name.
NOISES: dict[str, type[Noise]] = {
    "symmetric": Symmetric,
    "symmetric_excluding_true": SymmetricExcludingTrue,
    "asymmetric": Asymmetric,
    "pair_flip": PairFlip,
    "transition": Transition,
    "instance": Instance,
    "margin": Margin,
    "open_set": OpenSet,
    "given": GivenLabels,
}


def parse_noise(text: str, ratio: float) -> Noise:
    """Return the noise written ``kind``, a name in ``NOISES``, or ``kind:ARGUMENT``.

    Example:
        >>> parse_noise("symmetric", 0.2)
        Symmetric(ratio=0.2)
        >>> parse_noise("asymmetric:9-1,1-9", 0.2)
        Asymmetric(ratio=0.2, classes='9-1,1-9')
    """
    kind, colon, argument = text.partition(":")
    if "+" in kind:
        raise ValueError(
            f"noise {text!r} is of two kinds; only given:FILE#KEY+symmetric is of more than one"
        )
    noise = NOISES[checks.choice("noise", kind, NOISES)]
    wanted = fields(noise)[1:]
    needed = any(field.default is MISSING for field in wanted)
    if (colon and not wanted) or (needed and not colon):
        how = ":".join([kind, *(field.name.upper() for field in wanted)])
        raise ValueError(f"noise {text!r} must be written {how!r}")
    return noise(ratio, *[argument] * bool(colon))


def corrupt(
    labels: Labels, ratio: float, *, num_classes: int, seed: int, kind: str = "symmetric"
) -> Corruption:
    """Redraw labels (N,) that are the true ones; see ``parse_noise`` and ``Noise.apply``.

    Example:
        >>> corrupt([0, 1, 2] * 100, 0.5, num_classes=3, seed=0)
        Corruption(Symmetric(ratio=0.5), seed=0: of 300 labels 150 redrawn, 100 wrong)
    """
    true = Given(None, y := checks.labels(labels), y, num_classes)
    return parse_noise(kind, ratio).apply(true, num_classes=num_classes, seed=seed)
