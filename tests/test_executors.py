"""Executors: devices in turn, one's own, and Slurm's, with a scheduler made of scripts."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.commands.cli import main
from experiments.report.estimate import room
from experiments.runs.executors import slurm
from experiments.runs.executors.local import Local
from experiments.runs.machine import Machine
from experiments.runs.options import ExecutorOptions
from experiments.runs.runner import PlannedRun
from experiments.runs.scheduler import array_limit
from experiments.runs.signals import Stopped
from experiments.runs.specs import RunSpec
from experiments.runs.task import main as task
from experiments.studies.label_noise import LabelNoise
from mcr2.records import load_run, read_signed, write_signed, write_text

ROOT = Path(__file__).parent.parent

TABLE = ["table", "--methods", "ce", "--ratios", "0", "0.5", "--seeds", "0", "--epochs", "2"]
TABLE += ["--subset", "100", "--set", "backbone=resnet8_w8", "batch_size=50", "validation=0"]

#: A scheduler of shell scripts: jobs wait until a line of ``states`` says otherwise.
SCRIPTS = {
    "sbatch": """
        if [ -e "$FAKE/refuses" ]; then echo "invalid partition specified" >&2; exit 1; fi
        name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
        echo "$name $((last + 1))" >> "$FAKE/jobs"
        echo "Submitted batch job $(wc -l < "$FAKE/jobs")"
    """,
    "squeue": """
        echo squeue >> "$FAKE/calls"
        awk 'NR == FNR { state[$1 " " $2] = $3; next } { for (i = 0; i < $2; i++) {
            s = FNR " " i in state ? state[FNR " " i] : "PENDING"
            if (s != "GONE") print $1 "|" i "|" s "|" FNR "|Priority" } }' \
            "$FAKE/states" "$FAKE/jobs"
    """,
    "scontrol": """
        echo "scontrol $*" >> "$FAKE/calls"
        [ "$1 $2" = "show config" ] && echo "MaxArraySize            = 401"
        [ "$1 $2" = "show job" ] && echo "JobId=7 JobState=$(cat "$FAKE/job") Reason=None"
        exit 0
    """,
    "srun": "",
}


@pytest.fixture(autouse=True, scope="module")
def one_figure():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelNoise, "figures", ("accuracy",))  # all take longer than the runs
        yield


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Put a scheduler on the PATH; its folder holds what it was told and asked."""
    place = tmp_path / "fake"
    for name, text in SCRIPTS.items():
        write_text(place / "bin" / name, f"#!/bin/sh\n{text}\n")
        (place / "bin" / name).chmod(0o755)
    write_text(place / "states", "0 0 none\n")
    monkeypatch.setenv("FAKE", str(place))
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "UNSEEN", 0)
    return place


def told(fake, *states):
    """Set the states of jobs: array, task, state."""
    write_text(fake / "states", "".join(f"{line}\n" for line in ("0 0 none", *states)))


def jobs(fake):
    """The number of tasks of each array that was submitted."""
    text = (fake / "jobs").read_text() if (fake / "jobs").exists() else ""
    return [int(line.split()[1]) for line in text.splitlines()]


def cells_of(out, number):
    """Planned runs that are never run."""
    return [PlannedRun(RunSpec("ce", seed=i), "k", "d", out / f"runs/c{i}") for i in range(number)]


def on_slurm(out, **options):
    return slurm.Slurm(ExecutorOptions(executor="slurm", **options), [Machine("cpu")], out)


def polled(executor):
    """What an executor says has ended, when it asks at once."""
    executor._due = 0
    return executor.ended()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A table of two runs, in the usual way."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert main([*TABLE, "--out", str(out), "--jobs", "1"]) == 0
    return out


def weights(out):
    return {path.name: load_run(path).record.weights for path in (out / "runs").iterdir()}


def test_devices_take_turns_and_jobs_count_on_each():
    machines = [Machine("cpu"), Machine("cpu", threads=2)]
    slots = Local(ExecutorOptions(jobs=2), machines, Path()).slots
    assert [machine.threads for machine in slots] == [1, 2, 1, 2]
    assert len(Local(ExecutorOptions(), machines, Path()).slots) == 2


def test_two_devices_and_an_executor_of_ones_own_give_the_results_of_one(
    local, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    own = ["--executor", "docs/my_executor.py:OneByOne"]
    for name, how in {"two": ["--devices", "cpu", "cpu"], "own": own}.items():
        assert main([*TABLE, "--out", str(tmp_path / name), *how]) == 0
        assert weights(tmp_path / name) == weights(local)
    assert f"2 runs in {tmp_path / 'two'}, 2 at a time" in capsys.readouterr().out
    assert json.loads((local / "table.json").read_text())["environment"]["device"] == "cpu"


def test_an_estimate_says_how_many_runs_fit_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 << 30, 16 << 30))
    names = ["cuda:0", "cpu", "cuda:0", "cuda:1"]
    slots = [SimpleNamespace(torch_device=lambda name=name: name) for name in names]
    first, second = room(3 << 30, slots)
    assert "cuda:0: 10.0 GB of 16.0 GB are free, room for the tensors of 3 such runs" in first
    assert "(--jobs 2)" in first
    assert "(--jobs 1)" in second


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--executor", "pbs"], "choose from local, slurm"),
        (["--slurm", "partition=gpu"], "--slurm and --cells-per-job are for --executor slurm"),
        (["--cells-per-job", "2"], "--slurm and --cells-per-job are for --executor slurm"),
        (["--devices", "cpu", "--device", "cpu"], "--device and --devices are both given"),
        (["--devices", "cpu", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["--executor", "slurm", "--slurm", "partition"], "not of the form KEY=VALUE"),
        (["--executor", "slurm", "--slurm", "patience=1"], "unknown 'patience'; choose from"),
        (["--executor", "slurm", "--slurm", "time=soon"], "'soon' is not a value of time"),
        (["--executor", "slurm", "--slurm", "time=1", "time=2"], "time is given twice"),
        (["--executor", "slurm", "--slurm", "qos=a\nb"], "is not a value of qos"),
        (
            ["--executor", "slurm", "--cells-per-job", "0"],
            "cells_per_job is 0; it must be at least 1",
        ),
        (
            ["--executor", "slurm", "--slurm", "gpus_per_node=a100:1", "--processes", "2"],
            "--processes 2 needs a GPU each; gpus_per_node is 1",
        ),
        (["--executor", "slurm", "--estimate"], "--estimate measures this machine"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_nothing_is_begun(
    arguments, complaint, fake, tmp_path, capsys
):
    assert main([*TABLE, "--out", str(tmp_path / "out"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line
    assert not (tmp_path / "out").exists()
    assert jobs(fake) == []


def test_without_sbatch_slurm_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*TABLE, "--executor", "slurm", "--out", str(tmp_path / "out")]) == 2
    assert "needs sbatch" in capsys.readouterr().err


def test_a_refusal_of_sbatch_is_one_line(fake, tmp_path, capsys):
    (fake / "refuses").touch()
    assert main([*TABLE, "--executor", "slurm", "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "sbatch refuses:" in line
    assert "invalid partition specified" in line


def test_a_thousand_runs_are_submitted_once_in_arrays_that_the_cluster_takes(
    fake, tmp_path, capsys
):
    assert array_limit() == 400
    cells = cells_of(tmp_path, 1000)
    first = on_slurm(tmp_path, slurm=("partition=gpu", "array_parallelism=16"))
    first.submit(cells)
    assert jobs(fake) == [400, 400, 200]
    script = next(tmp_path.glob("slurm/*/1_submission.sh")).read_text()
    for line in ("--partition=gpu", "--array=0-399%16", "--requeue", "--signal=B:USR2@90"):
        assert f"#SBATCH {line}\n" in script
    first.close()
    assert "1000 runs are left to Slurm" in capsys.readouterr().out
    on_slurm(tmp_path).submit(cells)
    assert jobs(fake) == [400, 400, 200]
    told(fake, "1 7 CANCELLED", "2 0 RUNNING", "3 9 GONE")
    on_slurm(tmp_path).submit(cells)
    assert jobs(fake) == [400, 400, 200, 2]
    last = read_signed(max(tmp_path.glob("slurm/*/batch.json"), key=lambda p: p.stat().st_mtime_ns))
    assert len(last["tasks"]) == 2


def test_status_of_a_thousand_runs_asks_the_scheduler_once(fake, local, tmp_path, capsys):
    out = tmp_path / "out"
    cells = cells_of(out, 1000)
    (there, _) = sorted((local / "runs").iterdir())
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "done").symlink_to(there)
    names = [[one.folder.name, f"seed {one.spec.seed}"] for one in cells]
    write_signed(out / "cells.json", {"cells": [*names, ["done", "x"], ["never", "y"]]})
    on_slurm(out, cells_per_job=5).submit(cells)
    told(fake, "1 0 RUNNING", "1 1 TIMEOUT")
    first, second = sorted(out.glob("slurm/*/"))[0], out / "runs" / "c1"
    write_text(first / "1_0_0_log.out", "\n")
    write_text(first / "1_1_0_log.out", "\n")
    write_text(second / "error.txt", "ValueError: no\n\nTraceback")
    write_signed(out / "runs/c0/progress.json", {"epoch": 3, "epochs": 9})
    (fake / "calls").unlink()
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1002 runs in {out}: 1 done, 6 failed, 4 running, 990 waiting, 1 left"
    assert f"failed: seed 1: ValueError: no (traceback in {second / 'error.txt'})" in lines
    assert f"running: seed 0: epoch 3/9 (job 1_0; log: {first / '1_0_0_log.out'})" in lines
    assert f"failed: seed 5: its job 1_1 ended (TIMEOUT; log: {first / '1_1_0_log.out'})" in lines
    assert "waiting: 990, Slurm: PENDING, Priority" in lines
    assert (fake / "calls").read_text() == "squeue\n"


def test_status_of_a_local_study_and_of_no_study(local, tmp_path, capsys):
    assert main(["status", str(local)]) == 0
    assert capsys.readouterr().out == f"2 runs in {local}: 2 done\n"
    assert main(["status", str(tmp_path)]) == 2
    assert "holds no study of runs" in capsys.readouterr().err


def test_a_job_that_leaves_nothing_has_its_end_and_its_log_told(fake, tmp_path):
    cells = cells_of(tmp_path, 3)
    executor = on_slurm(tmp_path, jobs=2)
    assert executor.settings["cpus_per_task"] == "2"
    executor.submit(cells)
    assert polled(executor) == {}
    assert executor.running() == []
    told(fake, "1 0 RUNNING", "1 1 OUT_OF_MEMORY", "1 2 GONE")
    write_text(next(tmp_path.glob("slurm/*/")) / "1_1_0_log.out", "\n")
    assert polled(executor) == {}  # a shared file system may be late
    assert executor.running() == cells[:1]
    ended = polled(executor)
    assert list(ended) == cells[1:]
    assert "its job 1_1 ended (OUT_OF_MEMORY) and left no record" in ended[cells[1]]
    assert "1_1_0_log.out" in ended[cells[1]]
    assert "Slurm has forgotten how" in ended[cells[2]]


def test_a_scheduler_that_does_not_answer_is_asked_again(fake, tmp_path, capsys):
    executor = on_slurm(tmp_path)
    executor.submit(cells_of(tmp_path, 1))
    (fake / "bin" / "squeue").write_text("#!/bin/sh\necho 'no controller' >&2; exit 1\n")
    assert polled(executor) == {}
    assert polled(executor) == {}
    assert "squeue fails: no controller; it is asked again" in capsys.readouterr().err
    assert main(["status", str(tmp_path)]) == 2  # no study
    with pytest.raises(OSError, match="no controller"):
        on_slurm(tmp_path).submit(cells_of(tmp_path, 1))


@pytest.mark.parametrize(
    ("state", "restarts", "requeued"),
    [("RUNNING", 0, True), ("RUNNING", 100, False), ("CANCELLED", 0, False), ("PENDING", 0, False)],
)
def test_a_job_that_is_stopped_is_queued_again_unless_somebody_else_decided(
    state, restarts, requeued, fake, monkeypatch
):
    def stopped(path, number):
        raise Stopped(15)

    monkeypatch.setattr("experiments.runs.task._run", stopped)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    write_text(fake / "job", state)
    assert task("batch.json", 0) == 143
    assert ("scontrol requeue 7" in (fake / "calls").read_text()) == requeued
