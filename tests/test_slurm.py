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
import time
from mcr2.objectives import RateReduction

class Fussy(RateReduction):
    def loss(self, features, labels, context):
        if self.eps_sq == 8:
            raise RuntimeError("eps_sq 8 is too much")
        if self.eps_sq < 0.2:
            time.sleep(0.2)
        return super().loss(features, labels, context)
"""

STUDY = [
    *["ablate", "--method", "fussy.py:Fussy", "--vary", "eps_sq=0.1,0.15,0.5,1,2,3,4,8"],
    *["--ratios", "0.3", "--epochs", "20", "--subset", "100", "--set", "backbone=resnet10_w8"],
    *["batch_size=50", "evaluate_every=5", "validation=0"],
]


def start(folder, *arguments):
    """Start the command line, its output in a file."""
    command = [sys.executable, "-m", "experiments.commands", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    log = (folder / "out.txt").open("ab")
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def job_of(out, run):
    """The job of a run and its state, by Slurm's own word."""
    lines = asked("squeue", "--array", "--noheader", "--format=%A|%j|%K|%T|%i")
    return lines


def test_up(cluster):
    (cluster / "fussy.py").write_text(LOSS)
    job = start(cluster, *STUDY, "--executor", "slurm", "--out", "remote")
    t = time.monotonic()
    while job.poll() is None:
        print(round(time.monotonic()-t), asked("squeue", "--array", "--noheader"), flush=True)
        time.sleep(5)
    print((cluster / "out.txt").read_text())
    assert 0
