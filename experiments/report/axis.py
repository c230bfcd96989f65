"""What a study varies."""

from typing import NamedTuple


class Axis(NamedTuple):
    """What a study varies: a key of rows, a field of a spec, and what it is called on axes."""

    name: str
    title: str


#: The axis of label noise.
RATIO = Axis("ratio", "share of training labels redrawn")
