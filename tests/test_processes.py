"""``--processes``: who starts, who joins, and what is left when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.commands.cli import main
from experiments.runs.machine import Machine, check_processes
from experiments.runs.processes import end, together
from experiments.runs.traffic import sizes_of, step_traffic
from mcr2.backbones import BACKBONES
from mcr2.objectives import RateReduction
from mcr2.training import Encoder

MCR2 = [sys.executable, "-m", "experiments.commands"]
RUN = [*("train", "--method", "ce", "--ratio", "0.3", "--subset", "300", "--epochs")]


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def test_two_processes_leave_one_record(tmp_path, capsys):
    assert main([*RUN, "2", "--processes", "2", "--out", str(tmp_path / "run")]) == 0
    record = record_of(tmp_path / "run")
    assert record["environment"]["processes"] == 2
    assert record["status"] == "finished"
    assert [entry["epoch"] for entry in record["history"]] == [0, 2]
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"record.json", "evaluation.json", "epoch-00002.safetensors"} <= left
    assert "checkpoint.safetensors" not in left
    # What another process trained is what one would evaluate again.
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    capsys.readouterr()


@pytest.mark.slow
def test_torchrun_trains_what_processes_train(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    subprocess.run([*MCR2, *RUN, "2", "--processes", "2", "--out", ours], check=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [sys.executable, *torchrun, "experiments.commands", *RUN, "2", "--out", theirs]
    subprocess.run(command, check=True)
    name = "epoch-00002.safetensors"
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    # Complete: the first process says so to the other, and nothing is trained.
    subprocess.run(command, check=True, timeout=120)


def begin(folder, processes, epochs="400"):
    """A run in the background."""
    command = [*MCR2, *RUN, epochs, "--processes", str(processes), "--out", folder]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, "no such file"
        time.sleep(0.2)


def children_of(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def lose_the_other(folder, signum):
    """What a run of two says when a signal comes to the second one alone, past a checkpoint."""
    run = begin(folder, 2)
    wait_for(folder / "checkpoint.safetensors", run)
    (other,) = children_of(run.pid)
    os.kill(other, signum)
    told = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert "Traceback" not in told
    return told


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_run_outlives_its_processes(tmp_path):
    """One is killed, then all are stopped, then the first is killed; one process goes on."""
    folder, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint.safetensors"
    assert "process 1 of 2 was killed by signal 9; the checkpoint is kept" in lose_the_other(
        folder, signal.SIGKILL
    )

    run, before = begin(folder, 2), checkpoint.stat().st_mtime_ns
    while checkpoint.stat().st_mtime_ns == before:
        time.sleep(0.2)
    run.terminate()
    run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM

    run = begin(folder, 2)
    while not (others := children_of(run.pid)):
        time.sleep(0.1)
    run.kill()
    run.wait()
    end = time.monotonic() + 30
    while Path(f"/proc/{others[0]}/cmdline").exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not Path(f"/proc/{others[0]}").exists(), "a process outlived the run"

    run = begin(folder, 1)
    run.communicate(timeout=300)
    assert run.returncode == 0
    record = record_of(folder)
    assert record["status"] == "finished"
    assert record["epochs"] == 400
    assert not checkpoint.exists()


@pytest.mark.slow
def test_a_process_that_is_stopped_alone_stops_the_run(tmp_path):
    told = lose_the_other(tmp_path / "run", signal.SIGTERM)
    assert "another process was asked to stop; the same command continues" in told


def test_a_process_that_ends_before_it_joins_is_not_waited_for(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with (
        pytest.raises(ChildProcessError, match="process 1 of 2 ended with 3: no such module"),
        together(Machine("cpu", processes=2), torch.device("cpu"), {"spec": {}}),
    ):
        pass


def test_a_process_that_does_not_hear_is_ended():
    deaf = ["sh", "-c", "trap '' TERM; echo; exec sleep 600"]
    other = subprocess.Popen(deaf, stdout=subprocess.PIPE, text=True)
    with other.stdout:
        other.stdout.readline()
        end([other], patience=0.2)
    assert other.returncode == -signal.SIGKILL


def test_what_cannot_share_is_refused(tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        assert main([*RUN, "2", *arguments, "--out", str(tmp_path / "x")]) == 2
        assert not (tmp_path / "x" / "record.json").exists()
        return capsys.readouterr().err

    assert "processes is 0; it must be between 1 and 1024" in refused("--processes", "0")
    small = refused("--processes", "2", "--set", "batch_size=3")
    assert "2 processes need two samples each in every batch; some have 3" in small
    parts = refused("--processes", "2", "--set", "micro_batch=8", "accumulate=true")
    assert "accumulate is of one process, not 2" in parts
    with pytest.raises(ValueError, match="not mps"):
        check_processes(2, torch.device("mps"))
    with pytest.raises(ValueError, match="leave out cuda:1"):
        check_processes(2, torch.device("cuda:1"))
    if torch.cuda.device_count() < 2:
        with pytest.raises(ValueError, match="as many GPUs"):
            check_processes(2, torch.device("cuda"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert "torchrun has started the processes" in refused("--processes", "2")
    assert main(["table", "--out", str(tmp_path / "t")]) == 2
    assert "torchrun is for mcr2 train" in capsys.readouterr().err


def test_processes_share_the_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [Machine("cpu", 2, processes=n).jobs(None) for n in (1, 2, 4, 8)] == [4, 2, 1, 1]


def test_what_is_sent_follows_from_the_network():
    net = BACKBONES["resnet8_w8"](in_channels=1, feature_dim=4)
    found = sizes_of(Encoder(net, RateReduction(1000)))
    P = sum(p.numel() for p in net.parameters())
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    channels = sum(norm.num_features for norm in norms)
    many = {"num_classes": 1000, "knows_moments": True, "parameters": P, "channels": channels}
    assert found == many
    assert step_traffic(samples=4096, dim=512, processes=1, **many).total == 0
    eight = step_traffic(samples=4096, dim=512, processes=8, **many)
    assert eight.features == 7 / 8 * 4096 * 512 * 4
    assert eight.gradients == 2 * 7 / 8 * 4 * P
    assert not eight.by_moments  # a thousand classes have more moments than a batch has features
    few = {"samples": 32768, "dim": 128, "processes": 8, **many, "num_classes": 10}
    reduced = step_traffic(**few)
    gathered = step_traffic(**few | {"knows_moments": False})
    assert (reduced.by_moments, gathered.by_moments) == (True, False)
    assert reduced.total < gathered.total
