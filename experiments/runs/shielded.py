"""Imported first by the process that starts runs, and by nothing else: it outlives signals.

A scheduler signals all processes of a job, and a run whose starter is gone is taken to have ended
while it still writes its checkpoint. Signals are blocked, not ignored: what is sent to a run before
it unblocks them is kept for it.
"""

import os
import signal

from experiments.runs.signals import CAUGHT

if hasattr(os, "register_at_fork"):
    signal.pthread_sigmask(signal.SIG_BLOCK, CAUGHT)
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT))
