"""A real Slurm of one node on loopback: what the executor ``slurm`` makes, and survives.

``make test-slurm``. What is missing of munge, slurmctld and slurmd is installed where that may be
done (Debian, as root); elsewhere the tests are skipped with the reason.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcr2.records import load_run

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parent.parent

CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,sched_min_interval=200000
MpiDefault=none
ReturnToService=2
KillWait=20
MaxArraySize=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def require_slurm():
    """Install Slurm where that may be done, or skip."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    if not sys.platform.startswith("linux"):
        pytest.skip("Slurm is run on Linux")
    if os.geteuid() != 0:
        pytest.skip("slurmd needs root")
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    os.environ["PATH"] = path
    if all(map(shutil.which, programs)):
        return
    if not shutil.which("apt-get"):
        pytest.skip("munge and Slurm are not installed, and this is not Debian")
    packages = ["munge", "slurmctld", "slurmd", "slurm-client"]
    quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    for command in (["apt-get", "update"], install):
        if subprocess.run(command, **quiet).returncode:
            pytest.skip(f"{' '.join(command)} fails here")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_until(true, seconds=60, every=0.3):
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, true
        time.sleep(every)
    return found


def asked(*words):
    return subprocess.run(words, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of this machine; everything that is started ends with the tests."""
    require_slurm()
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    ports = {"controller": free_port(), "node": free_port()}
    conf.write_text(CONF.format(folder=folder, host=host, **ports))
    key, munge = folder / "munge.key", folder / "munge"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge.mkdir(mode=0o700)
    places = [f"--key-file={key}", f"--socket={folder}/munge.socket", f"--pid-file={munge}/pid"]
    places += [f"--log-file={munge}/log", f"--seed-file={munge}/seed"]
    commands = [
        ["munged", "--foreground", "--force", *places],
        ["slurmctld", "-D", "-c", "-f", conf],
        ["slurmd", "-D", "-f", conf, "-N", host],
    ]
    daemons = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(conf))
        try:
            for command in commands:
                log = (folder / f"{command[0]}.out").open("wb")
                daemons.append(subprocess.Popen(command, stdout=log, stderr=log))
                if command[0] == "munged":
                    wait_until((folder / "munge.socket").exists)
            wait_until(lambda: asked("sinfo", "--noheader", "--format=%T").strip() == "idle")
            yield folder
        finally:
            asked("scancel", "--full", "--user", "root")
            with contextlib.suppress(AssertionError):
                wait_until(lambda: not asked("squeue", "--noheader").strip(), 30)
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in reversed(daemons):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(20)
                daemon.kill()
                daemon.wait()


#: Three of its eight runs take their time, so that they are met while they train; one fails.
LOSS = """
import os, time
from mcr2.objectives import RateReduction

class Fussy(RateReduction):
    def loss(self, features, labels, context):
        if self.eps_sq == 8:
            raise RuntimeError("eps_sq 8 is too much")
        if self.eps_sq < 0.2:
            time.sleep(float(os.environ.get("FUSSY", 0)))
        return super().loss(features, labels, context)
"""

STUDY = [
    *["ablate", "--method", "fussy.py:Fussy", "--vary", "eps_sq=0.1,0.15,0.5,1,2,3,4,8"],
    *["--ratios", "0.3", "--epochs", "20", "--subset", "100", "--set", "backbone=resnet10_w8"],
    *["batch_size=50", "evaluate_every=5", "validation=0"],
]


def start(folder, *arguments):
    """Start the command line, its output in a file."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    with (folder / "out.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "experiments.commands", *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def mcr2(folder, *arguments):
    """Run the command line; return its status and what it said."""
    status = start(folder, *arguments).wait(200)
    return status, (folder / "out.txt").read_text()


@pytest.fixture(scope="module")
def met(cluster):
    """A study on the cluster: two of its jobs are sent back while they train, and the command is
    interrupted and given again. What was seen on the way, by name."""
    (cluster / "fussy.py").write_text(LOSS)
    seen = {"local": mcr2(cluster, *STUDY, "--out", "local")}
    out = cluster / "remote"
    remote = [*STUDY, "--out", "remote", "--executor", "slurm", "--slurm", "partition=main"]

    def training():
        return len(list(out.glob("runs/*-eps_sq0.1*/progress.json"))) == 2

    def log(job):
        (text,) = out.glob(f"slurm/*/{job}_0_log.out")
        return text.read_text()

    os.environ["FUSSY"] = "0.3"
    command = start(cluster, *remote)
    try:
        wait_until(training, 120)
        command.send_signal(signal.SIGINT)
        seen["interrupted"] = command.wait(60), (cluster / "out.txt").read_text()
    finally:
        command.kill()
        command.wait()
        del os.environ["FUSSY"]
    seen["batches"] = sorted(out.glob("slurm/mcr2-*"))
    seen["running"] = mcr2(cluster, "status", "remote")
    lines = asked("squeue", "--array", "--noheader", "--states=RUNNING", "--format=%i").split()
    requeued, told = sorted(lines)
    asked("scontrol", "requeue", requeued)
    asked("scancel", "--batch", "--signal=USR2", told)
    wait_until(lambda: "stopped by" in log(requeued) and "stopped by" in log(told))
    seen["logs"] = log(requeued), log(told)
    seen["checkpoints"] = list(out.glob("runs/*/checkpoint.safetensors"))
    seen["continued"] = mcr2(cluster, *remote)
    seen["after"] = mcr2(cluster, "status", "remote")
    seen["batches after"] = sorted(out.glob("slurm/mcr2-*"))
    return seen


def test_the_command_leaves_its_jobs_to_slurm_and_says_so(met):
    status, said = met["interrupted"]
    assert status == 130
    assert "8 jobs submitted" in said
    assert "8 runs are left to Slurm and go on" in said
    assert "Traceback" not in said


def test_status_says_what_runs_and_waits_with_the_place_of_the_log(met):
    status, said = met["running"]
    assert status == 0
    assert "8 runs in remote: 2 running, 6 waiting" in said
    (line,) = [line for line in said.splitlines() if "running: fussy.py:Fussy, eps_sq 0.1," in line]
    log = Path(re.search(r"log: (\S+)\)", line)[1])
    assert log.is_file()
    assert re.search(r"epoch \d+/20", line)


def test_a_job_that_is_sent_back_or_out_of_time_goes_on_from_its_checkpoint(met):
    requeued, told = met["logs"]
    assert "stopped by SIGTERM; Slurm has decided" in requeued
    assert "stopped by SIGUSR2" in told
    assert "is queued again" in told
    assert len(met["checkpoints"]) == 2


def test_the_command_given_again_collects_and_submits_nothing_twice(met):
    status, said = met["continued"]
    assert status == 1  # one run fails
    assert re.search(r"(\d) runs, \1 of them already there, 0 jobs submitted", said)
    assert met["batches after"] == met["batches"]
    assert len(met["batches"]) == 2  # the cluster takes arrays of four


def test_a_run_that_fails_has_its_reason_and_the_place_of_its_traceback(met):
    for status, said in (met["continued"], met["local"]):
        assert status == 1
        assert re.search(
            r"eps_sq 8, .*failed, RuntimeError: eps_sq 8 is too much \(traceback in", said
        )
    assert "8 runs in remote: 7 done, 1 failed" in met["after"][1]
    assert re.search(r"failed: .*eps_sq 8.*traceback in remote/runs/\S+/error.txt", met["after"][1])


def timeless(history):
    return [{k: v for k, v in entry.items() if "seconds" not in k} for entry in history]


def test_results_are_those_of_the_local_executor_bit_for_bit(met, cluster):
    def found(out):
        runs = {path.parent.name: load_run(path.parent) for path in out.glob("runs/*/record.json")}
        return {
            name: (run.record.weights, timeless(run.record.history), run.evaluation.selections)
            for name, run in runs.items()
        }

    local = found(cluster / "local")
    assert len(local) == 7
    assert found(cluster / "remote") == local
