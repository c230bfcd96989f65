"""Studies that are killed at any instant go on to the same results, and nothing is left over.

The log of the slow test says in which phase each signal came. Phases are told from the files that
exist at the instant of the signal: what is being written then, and what has been written before.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from experiments.commands.cli import main
from experiments.runs.signals import Stopped, StopSignals

ROOT = Path(__file__).resolve().parents[1]
CHEAP = ["--subset", "200", "--jobs", "2"]
SETTINGS = ["--set", "backbone=resnet10_w8", "batch_size=50", "evaluate_every=1"]

#: By name: the command, and its results.
COMMANDS = {
    "table": [*["table", "--ratios", "0.3", "--epochs", "4"], *CHEAP, *SETTINGS],
    "ablate": [*["ablate", "--vary", "eps_sq=0.5,1", "--epochs", "4"], *CHEAP, *SETTINGS],
    "redunet": ["redunet", "--subset", "300", "--set", "layers=30", "lifting=4", "eta=0.1"],
}

#: Of a study of runs; a construction has neither checkpoints nor records.
PHASES = (
    *("start-up", "training", "checkpoint", "weights", "record", "evaluation", "table", "figure"),
)
PHASES_OF = {
    "table": PHASES,
    "ablate": PHASES,
    "redunet": ("start-up", "training", "table", "weights", "figure"),
}
SIGNALS = {"KILL": 50, "TERM": 20, "INT": 4, "HUP": 4}
STATUS = {"TERM": 143, "INT": 130, "HUP": 129}


def phase(out):
    """The phase that a study in a folder is in, from its files; None once it is over."""
    names = [p.name for p in out.rglob("*") if p.is_file()] if out.exists() else []
    runs = [p for p in out.glob("runs/*") if p.is_dir()]
    writing = [name[1:-9] for name in names if name.startswith(".") and name.count(".") > 1]
    holds = {suffix: any(n.endswith(suffix) for n in names) for suffix in ("png", "csv", "md")}
    if any(name.endswith(".png") for name in writing) or holds["png"]:
        return "figure"
    if any(name.startswith(("table", "rates.json")) for name in writing) or "table.json" in names:
        return "table"
    if "rates.json" in names:
        return "weights"
    if any(name.startswith("checkpoint") for name in writing):
        return "checkpoint"
    if any(name.startswith("epoch-") for name in writing):
        return "weights"
    if "record.json" in writing:
        return "record"
    for run in runs:
        held = {p.name for p in run.iterdir()}
        if "record.json" not in held and any(name.startswith("epoch-") for name in held):
            return "weights"
    if any((r / "record.json").exists() and not (r / "evaluation.json").exists() for r in runs):
        return "evaluation"
    if runs and all((r / "evaluation.json").exists() for r in runs) and len(runs) == 2:
        return "table"
    constructs = out.name == "redunet" and "study.json" in names
    return "training" if constructs or any((r / "spec.json").exists() for r in runs) else "start-up"


def timeless(value):
    spent = ("wall_seconds", "seconds", "environment", "extra_mib")
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in spent}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def left(out):
    """What a study left: its results, without times, and the names of all files."""
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    results = "table.json" if "table.json" in files else "rates.json"
    found = json.loads((out / results).read_text())
    return timeless(found.get("rows", found)), files


#: Runs write checkpoints often, on a slow disk: what takes no time is never hit.
SLOWLY = """
import os, sys, tempfile, time
import mcr2.records
from experiments.commands.cli import main
from experiments.runs.runner import run

def slowly(act):
    def acting(*arguments, **named):
        time.sleep(0.03)
        done = act(*arguments, **named)
        time.sleep(0.03)
        return done
    return acting

run.__kwdefaults__["checkpoint_seconds"] = 0.3
os.replace, tempfile.mkstemp = slowly(os.replace), slowly(tempfile.mkstemp)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""

#: Seconds within which an instant is drawn, once a phase has begun.
LASTS = {"start-up": 3.0, "training": 0.5, "evaluation": 0.3, "figure": 0.5}


def start(name, out, log):
    """Start a study in a process group of its own, as from a terminal."""
    script = out.parent / "slowly.py"
    script.write_text(SLOWLY)

    def heed():
        for each in (signal.SIGINT, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, script, *COMMANDS[name], "--out", out],
        cwd=out.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=heed,
    )


def living(group):
    """Members of a process group that are not zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, member = path.read_text().rpartition(")")[2].split()[:3]
            found += [path.parent.name] * (int(member) == group and state != "Z")
    return found


def strike(name, wanted, sent, out, rng):
    """Start a study and send it a signal in a phase; return the phase, the instant and its end."""
    number, group = getattr(signal, f"SIG{sent}"), rng.random() < 0.5
    with (out.parent / "log").open("wb") as log:
        process = start(name, out, log)
        begun = time.monotonic()
        try:
            while process.poll() is None and phase(out) != wanted:
                assert time.monotonic() < begun + 300, (name, wanted)
                time.sleep(0.002)
            if process.poll() is not None:
                return None  # the phase passed unseen
            time.sleep(rng.random() * LASTS.get(wanted, 0.02))
            met, instant = phase(out), time.monotonic() - begun
            # Ctrl-C and a closed terminal reach the group; a scheduler may signal either.
            if sent in ("INT", "HUP") or group:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            status = process.wait(120)
            until = time.monotonic() + 30
            while living(process.pid):
                assert time.monotonic() < until, "processes of a killed study live on"
                time.sleep(0.02)
        finally:
            with contextlib.suppress(ProcessLookupError):
                if living(process.pid):
                    os.killpg(process.pid, signal.SIGKILL)
    said = (out.parent / "log").read_text(errors="replace")
    return met, instant, status, said


def answered(sent, met, status, said):
    """Whether a study ended as it should at a signal; before ``main`` it is Python that answers."""
    if sent == "KILL":
        return status in (-signal.SIGKILL, 0)
    early = status == -getattr(signal, f"SIG{sent}") and met == "start-up"
    told = status == STATUS[sent] and f"stopped by SIG{sent}" in said and "Traceback" not in said
    return early or told or (status == 0 and met in ("figure", "weights"))


def kills(place, plan, seed=0):
    """Strike studies as planned, and run each to its end; return the log, a line each."""
    rng, lines, whole = random.Random(seed), [], {}
    for number, (name, wanted, sent) in enumerate(plan):
        if name not in whole:
            assert main([*COMMANDS[name], "--out", str(place / name)]) == 0
            whole[name] = left(place / name)
        out = place / str(number) / name
        out.parent.mkdir()
        struck = strike(name, wanted, sent, out, rng)
        while struck is None:
            shutil.rmtree(out)
            struck = strike(name, wanted, sent, out, rng)
        met, instant, status, said = struck
        log = place / "log.txt"
        line = f"{name:8} SIG{sent:4} {met:10} {instant:6.2f} s  status {status:4}"
        with log.open("a") as file:
            print(line, file=file)
        assert answered(sent, met, status, said), (line, said)
        assert main([*COMMANDS[name], "--out", str(out)]) == 0, line
        rows, files = left(out)
        assert rows == whole[name][0], line
        assert files == whole[name][1], line
        lines.append((name, met, sent))
    return lines


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("name", "wanted", "sent"), [("table", "checkpoint", "KILL"), ("redunet", "training", "TERM")]
)
def test_a_killed_study_goes_on_to_the_same_results(name, wanted, sent, tmp_path):
    kills(tmp_path, [(name, wanted, sent)])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", COMMANDS)
def test_many_killed_studies_go_on_to_the_same_results(name, tmp_path):
    """A third of all signals; every phase is met."""
    share = {sent: -(-count // len(COMMANDS)) for sent, count in SIGNALS.items()}
    phases = PHASES_OF[name]
    plan = [
        (name, phases[number % len(phases)], sent)
        for sent, count in share.items()
        for number in range(count)
    ]
    lines = kills(tmp_path, plan, seed=len(name))
    print(f"\nlog: {tmp_path / 'log.txt'}")
    for (met, sent), count in sorted(Counter((met, sent) for _, met, sent in lines).items()):
        print(f"{name:8} {met:10} SIG{sent:4} {count:3d}")
    assert {met for _, met, _ in lines} >= set(phases)


@pytest.fixture
def heard():
    """SIGINT is heard, also where the tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_only_for_who_asks_and_never_twice(heard):
    stop = StopSignals()
    with stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        with pytest.raises(Stopped, match="SIGINT"):
            signal.raise_signal(signal.SIGINT)
    with stop:
        assert not stop()
        stop.nobody_asks()
        with pytest.raises(Stopped, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    with stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            stop.nobody_asks()


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_a_library_forks_dies_of_a_signal_as_ever():
    told, tell = os.pipe()
    with StopSignals():
        child = os.fork()
        if child == 0:
            try:
                os.write(tell, b"!")
                time.sleep(60)
            finally:
                os._exit(0)
        os.read(told, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
