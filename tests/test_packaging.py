"""Installed from a wheel, `mcr2` works wherever it is started, and runs nothing that lies there."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mcr2

ROOT = Path(__file__).parent.parent

TRAP = "open({place!r}, 'a').write(__file__ + chr(10))\nraise ImportError(__file__)\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder into which a wheel of the project was installed, without what it depends on."""
    place = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", place / "wheel", ROOT], check=True)
    (wheel,) = (place / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", place / "site", wheel], check=True)
    return place / "site"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "table --ratios 0 --subset 100 --epochs 1 --methods ce --out table",
        "table --ratios 0 --subset 100 --epochs 1 --methods loss.py:Half --out own",
        "table --ratios 0 --subset 100 --epochs 1 --methods losses.half:Half --out module",
        "measure features.npz",
        "--help",
    ],
)
def test_nothing_in_the_current_folder_is_executed(command, installed, tmp_path):
    executed = tmp_path / "executed.txt"
    trap = TRAP.format(place=str(executed))
    for name in ("experiments/__init__.py", "mcr2/__init__.py", "torch.py", "scipy.py", "rich.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(trap)
    loss = "from mcr2.objectives import RateReduction\n\nclass Half(RateReduction):\n    pass\n"
    (tmp_path / "loss.py").write_text(loss.replace("pass", "gamma = 2"))
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses/half.py").write_text(loss)
    np.savez(tmp_path / "features.npz", features=np.eye(8), labels=np.arange(8) % 2)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    outcome = subprocess.run(
        [sys.executable, installed / "bin" / "mcr2", *command.split()],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert not executed.exists(), executed.read_text()


def test_the_main_names_are_there_and_stand_where_they_are_defined():
    for name in mcr2._NAMES:
        assert getattr(mcr2, name).__name__ == name
    text = (ROOT / "mcr2/__init__.py").read_text()
    checked = {line.split()[-1] for line in text.splitlines() if " as " in line}
    assert checked == set(mcr2._NAMES)
    for name in mcr2._MODULES:
        assert getattr(mcr2, name).__name__ == f"mcr2.{name}"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mcr2.nothing  # noqa: B018
