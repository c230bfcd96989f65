"""What a study varies."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """What a study varies.

    Attributes:
        name: its key in rows, a field of a spec.
        title: what it is called on axes and in titles.
    """

    name: str
    title: str


#: The axis of label noise.
RATIO = Axis("ratio", "share of training labels redrawn")
