"""Imported first by the process that starts runs, and by nothing else: it outlives signals.

A scheduler signals all processes of a job, and a run whose starter is gone is taken to have ended
while it still writes its checkpoint.
"""

import os
import signal

from experiments.runs.signals import CAUGHT

_OURS = [each for each in CAUGHT if signal.getsignal(each) == signal.SIG_DFL]  # not with nohup


def _answer() -> None:
    for each in _OURS:
        signal.signal(each, signal.SIG_DFL)


for _each in _OURS:
    signal.signal(_each, signal.SIG_IGN)
os.register_at_fork(after_in_child=_answer)
