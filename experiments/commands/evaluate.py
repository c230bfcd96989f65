"""``mcr2 evaluate`` and ``mcr2 reread``: finished runs, measured again from their weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from experiments.runs.options import check_file
from experiments.runs.terminal import say, visible, warn


@dataclass(frozen=True)
class _Again:
    """What measuring again takes."""

    layers: tuple[str, ...] = ()
    """Named stages of the network to measure beside its features, such as stage3."""
    code: tuple[str, ...] = ()
    """Classes of your own that the runs were made with, as path/to/file.py:Class: nothing else
    that a record names is imported."""
    dataset: str | None = None
    """Where the data are now, if not where the runs were made."""
    noise_from: str | None = None
    """Where the file, or the other data, that the noise takes is now, likewise."""
    threads: int | None = None
    """CPU threads; by default as many as a run had, which gives its very numbers."""
    device: str = "auto"
    """auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""

    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(_Again)}


@dataclass(frozen=True, kw_only=True)
class Evaluate(_Again):
    """Measure a finished run again from its weights, and print everything."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    selection: str | None = None
    """Rule whose epoch is shown; the run's first by default."""
    measure: str | None = None
    """Show instead every measure whose key contains this, beside the saved one, for all rules."""
    json: Path | None = None
    """File for all measures and profiles of all rules."""

    def prepare(self) -> Callable[[], int]:
        """Measure the run again; printing is left to do."""
        from experiments.runs.method import candidates, rules_with
        from experiments.runs.runner import evaluate_again, up_to_date
        from experiments.runs.specs import from_dict
        from mcr2.records import load_run

        check_file(self.json)
        saved = load_run(self.run)
        record = saved.record
        if record.status == "finished":
            points = candidates(record.history, record.readout)
            self._check_selection(rules_with(from_dict(record.spec), points))
        if saved.evaluation is not None and up_to_date(saved, self.layers):
            self._check_measure(saved.evaluation.selections)
        other = self.dataset is not None
        again = evaluate_again(self.run, other_data=other, **self._options())
        now = again.evaluation.selections if again.evaluation else {}
        for layer in self.layers:
            if again.evaluation is not None and layer not in again.evaluation.layers:
                raise ValueError(f"{self.run} has no layer {layer!r}")
        rule = self.selection or next(iter(now), None)
        self._check_measure(now)

        def go() -> int:
            from experiments.report import evaluation as report
            from mcr2.records import write_json

            measured = {rule: chosen["measures"] for rule, chosen in now.items()}
            if self.measure is not None:
                print(report.measures_table(saved, measured, self.measure).text())
            elif rule is None:
                print(report.run_table(again).text())
                say(f"failed: {again.record.reason}")
            else:
                print(report.run_table(again).text())
                print()
                say(f"At the selection {rule}, epoch {now[rule]['epoch']}:")
                for table in report.evaluation_tables(now[rule]["measures"]):
                    print(f"\n{table.text()}")
                print("\n".join(["", *map(visible, now[rule]["notes"])]))
                if again.evaluation and again.evaluation.data != again.record.data["hash"]:
                    say(f"measured on {self.dataset}, which is not the data of the run")
                print("\n".join(map(visible, report.agreement(saved, measured))))
            if self.json is not None:
                write_json(self.json, {"run": self.run, "selections": now})
            return 0

        return go

    def _check_selection(self, rules: Collection[str]) -> None:
        if self.selection not in (None, *rules):
            known = ", ".join(rules)
            raise ValueError(f"no selection {self.selection!r} in {self.run}; it has {known}")

    def _check_measure(self, selections: Mapping[str, Any]) -> None:
        keys = {key for chosen in selections.values() for key in chosen["measures"]}
        if self.measure and keys and not any(self.measure in key for key in keys):
            raise ValueError(f"no measure of {self.run} has {self.measure!r} in its key")


@dataclass(frozen=True, kw_only=True)
class Reread(_Again):
    """Measure all finished runs of a study again from their weights, and show the study anew.

    Nothing is trained. Of use when measures or selection rules were added, or for further layers.
    """

    out: tyro.conf.Positional[Path]
    """Folder of a study, or of one run."""

    def prepare(self) -> Callable[[], int]:
        """Find the runs and the study; measuring is left to do."""
        from experiments.studies.engine import STUDY
        from mcr2.records import RECORD, read_signed

        if (self.out / RECORD).is_file():
            return lambda: self._runs([self.out])
        folders = sorted(path.parent for path in self.out.glob(f"runs/*/{RECORD}"))
        if not folders:
            raise ValueError(f"{self.out} holds no finished run")
        marker = self.out / STUDY
        if not marker.exists():
            return lambda: self._runs(folders)
        try:
            held = read_signed(marker)
        except ValueError as error:  # its runs can still be measured
            warn(f"{error}; the study is not shown anew")
            return lambda: self._runs(folders) or 1
        return lambda: self._runs(folders) or self._show(held)

    def _runs(self, folders: list[Path]) -> int:
        from filelock import FileLock, Timeout

        from experiments.runs.runner import evaluate_again
        from mcr2.records import save_evaluation

        failed, missing = False, set(self.layers)
        for number, folder in enumerate(folders, start=1):
            told = "its training failed, nothing to measure"
            try:
                with FileLock(folder / ".lock", timeout=0):
                    run = evaluate_again(folder, **self._options())
                    if run.evaluation is not None:
                        save_evaluation(folder, run.evaluation)
            except Timeout:
                failed, told = True, "not measured, it is being run"
            except (ValueError, OSError) as error:
                failed, told = True, f"not measured, {error}"
            else:
                if run.evaluation is not None:
                    missing -= set(run.evaluation.layers)
                    told = f"measured again in {run.evaluation.seconds:.1f} s"
            say(f"[{number}/{len(folders)}] {folder.name}: {told}")
        for layer in sorted(missing):
            warn(f"no run has a layer {layer!r}")
        return int(failed or bool(missing))

    def _show(self, held: dict[str, object]) -> int:
        from experiments.runs.prepare import taken_by
        from experiments.runs.user_code import only
        from experiments.studies import find_study
        from experiments.studies.engine import GridStudy, restore, show_again

        name, options = str(held.get("study")), held.get("options")
        try:
            with only(self.code):
                kind = find_study(name)
                if not (issubclass(kind, GridStudy) and isinstance(options, dict)):
                    return 0
                here = {"dataset": self.dataset, "data_root": self.data_root, "device": self.device}
                given = options | {name: value for name, value in here.items() if value is not None}
                if self.noise_from is not None and (named := taken_by(str(options["noise"]))):
                    given["noise"] = str(options["noise"]).replace(named, self.noise_from)
                return show_again(restore(kind, given), self.out)
        except (ValueError, TypeError) as error:
            say(f"the study {name} is not shown anew ({error}); its own command does that")
            return 0
