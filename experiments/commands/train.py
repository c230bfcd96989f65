"""``mcr2 train``: one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experiments.runs.options import TrainingOptions
from experiments.runs.terminal import say
from experiments.studies.engine import one_spec


@dataclass(frozen=True)
class Train(TrainingOptions):
    """Train one run in a folder, and print what was measured."""

    method: str = "mcr2"
    """ce, ls, mse, fixed_etf, mcr2, vmcr2, tcr, ole, redunet, or path/to/file.py:Class,
    package.module:Class."""
    ratio: float = 0.0
    """Share of the training labels to redraw."""
    seed: int = 0
    """From which every stream of randomness is seeded."""
    out: Path | None = None
    """Folder of the run; results/runs/... by default."""

    def prepare(self) -> Callable[[], int]:
        """Plan the run and take its folder."""
        from experiments.runs.machine import Machine
        from experiments.runs.processes import torchrun_rank
        from experiments.runs.runner import check_folder, plan

        how = (self.tensorboard, True, self.processes)
        machine = Machine(self.device, self.threads, self.data_root, *how)
        spec = one_spec(self, self.method, self.ratio, self.seed)
        (planned,) = plan([spec], Path("results") / "runs", machine)
        folder = self.out or planned.folder
        check_folder(folder, planned.key)
        folder.mkdir(parents=True, exist_ok=True)
        if torchrun_rank() is not None and self.processes > 1:
            raise ValueError("torchrun has started the processes; leave out --processes")

        def go() -> int:
            from experiments.report.evaluation import run_table
            from experiments.report.live import training_bar
            from experiments.runs.runner import follow_torchrun, run
            from experiments.runs.signals import STOP
            from mcr2.training import Interrupted

            with training_bar(f"{spec.method} seed {spec.seed}", spec.training.epochs) as progress:
                try:
                    if torchrun_rank():  # the first process does everything else
                        follow_torchrun(spec, folder, machine)
                        return 0
                    done = run(spec, folder, machine, progress=progress, stop=STOP)
                except Interrupted as interrupted:
                    STOP.raise_if_stopped()
                    raise ChildProcessError("another process was asked to stop") from interrupted
            print(run_table(done).text())
            print()
            say(f"{folder / 'record.json'}")
            if done.record.status == "failed":
                say(f"failed: {done.record.reason}")
            return int(done.record.status != "finished")

        return go
