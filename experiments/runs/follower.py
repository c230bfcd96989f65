"""One of the processes of a run that its first one starts, by ``python -m``."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time

from experiments.runs.machine import Machine
from experiments.runs.processes import join, leave
from experiments.runs.runner import follow
from experiments.runs.signals import STOP, Stopped
from mcr2.training import Interrupted, World


def main() -> None:
    """Join the others, train with them, and leave everything else to the first."""
    told = json.load(sys.stdin)
    threading.Thread(target=_follow_parent, args=(told["parent"],), daemon=True).start()
    machine, rank = Machine(**told["machine"]), told["rank"]
    with STOP, contextlib.suppress(Interrupted, Stopped):
        device = join(machine, machine.configure_torch(), rank, told["place"])
        follow(machine, device, World(rank, machine.processes), **told["job"])
    leave()


def _follow_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    main()
