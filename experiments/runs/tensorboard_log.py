"""A run's history for TensorBoard, where the extra ``tensorboard`` is installed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def require_tensorboard() -> None:
    """Raise ValueError, with what to do, where TensorBoard is not installed."""
    if find_spec("tensorboard") is None:
        raise ValueError(
            "--tensorboard needs the package tensorboard, which is not installed; "
            "pip install 'mcr2-robustness[tensorboard]' (from a clone: pip install -e "
            "'.[tensorboard]')"
        )


class TensorBoardLog:
    """Writes entries of a history as scalars over epochs, into ``folder/tensorboard``.

    A run that continues from a checkpoint comes by epochs it had already written: what an earlier
    file holds from there on is dropped by the reader.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorboard"
        self.writer: Any = None

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Write one entry: lr, loss, its terms and the measures that are defined."""
        from torch.utils.tensorboard import SummaryWriter

        epoch = entry["epoch"]
        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder), purge_step=epoch)
        scalars = {"train/lr": entry["lr"], "train/loss": entry["loss"]}
        scalars |= {f"train/{name}": value for name, value in entry["terms"].items()}
        for name, value in {**scalars, **entry["measures"]}.items():
            if value is not None:
                self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def close(self) -> None:
        """Close the file, if one was opened."""
        if self.writer is not None:
            self.writer.close()
