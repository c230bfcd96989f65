"""What a study varies."""

from typing import NamedTuple


class Axis(NamedTuple):
    """What a study varies: a key of rows, a field of a spec, and what it is called on axes."""

    name: str
    title: str


#: The axis of depth: a row for each layer of a run, see
#: :func:`experiments.report.rows.layer_rows`.
LAYER = Axis("layer", "layer")

#: The axis of label noise.
RATIO = Axis("ratio", "share of training labels redrawn")
