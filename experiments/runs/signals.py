"""SIGINT, SIGTERM, SIGHUP, and SIGUSR2, by which Slurm tells that time is nearly up.

A run finishes its step and writes its checkpoint, then ends.
"""

from __future__ import annotations

import os
import signal
import threading
import types
from typing import Any

#: Windows has neither SIGHUP nor SIGUSR2.
CAUGHT = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2")
    if hasattr(signal, name)
)


class Stopped(BaseException):
    """A signal asked for an end; ``status`` is the exit status that says which."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum, self.status = signum, 128 + signum


class StopSignals:
    """Whether a signal has asked for an end, to be asked after every step.

    As a context manager it catches the signals, in a process's main thread. While nobody asks, and
    at a second signal, :class:`Stopped` is raised at once.

    Attributes:
        patient: pass over second signals. A run of a study is: a group's signal and its parent's
            word are one and the same wish, and it dies with its parent.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.patient = self._asked = False
        self._pid = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self.signum, self._asked, self._pid = None, False, os.getpid()
        if threading.current_thread() is threading.main_thread():
            self._before = {
                each: signal.signal(each, self._catch)
                for each in CAUGHT
                if signal.getsignal(each) != signal.SIG_IGN  # nohup, say
            }
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def _catch(self, signum: int, _: types.FrameType | None) -> None:
        if os.getpid() != self._pid:  # a library's own, forked: it dies as it would without us
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        first, self.signum = self.signum is None, signum
        if not (self._asked and (first or self.patient)):
            raise Stopped(signum)

    def __call__(self) -> bool:
        """Whether an end was asked for."""
        self._asked = True
        return self.signum is not None

    def raise_if_stopped(self) -> None:
        """Raise :class:`Stopped` where an end was asked for."""
        if self():
            raise Stopped(self.signum or signal.SIGTERM)

    def nobody_asks(self) -> None:
        """From now on (until somebody asks again) a signal ends at once, as one that came does."""
        self._asked = False
        if self.signum is not None:
            raise Stopped(self.signum)


#: Of this process.
STOP = StopSignals()
