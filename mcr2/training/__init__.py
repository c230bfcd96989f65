"""The one trainer.

- :mod:`~mcr2.training.config`: how a network is trained, and what it is fed;
- :mod:`~mcr2.training.step`: one step's gradient and update;
- :mod:`~mcr2.training.gather`: the same across processes;
- :mod:`~mcr2.training.loop`: :func:`train`, and the :class:`Encoder` it yields;
- :mod:`~mcr2.training.history`: what is recorded on the way, of constructed networks too;
- :mod:`~mcr2.training.checkpoint`: what a stopped run continues from.
"""

from mcr2.training.config import (
    Feed,
    TrainingConfig,
    check_accumulation,
    check_shares,
    learning_rate,
)
from mcr2.training.gather import World
from mcr2.training.history import History, Progress, TrainingResult, Watch
from mcr2.training.loop import Encoder, Interrupted, seeded, train
from mcr2.training.step import backpropagate, make_optimizer

__all__ = [
    "Encoder",
    "Feed",
    "History",
    "Interrupted",
    "Progress",
    "TrainingConfig",
    "TrainingResult",
    "Watch",
    "World",
    "backpropagate",
    "check_accumulation",
    "check_shares",
    "learning_rate",
    "make_optimizer",
    "seeded",
    "train",
]
