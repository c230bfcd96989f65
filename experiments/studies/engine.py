"""What all studies share: folders, runs and their progress, tables, figures and notes.

A study is a frozen dataclass: its fields are its command line's options, its docstring is its help.
:class:`GridStudy` is a grid of specs over named axes and a reading of their records; a study states
its axes, its specs, and which tables and figures it has. Modules of studies import torch inside
functions only, so that ``--help`` does not wait for it.

The same command continues a study that was interrupted, and a larger grid extends it: a folder
holds ``study.json`` (what it is a study of), ``runs/`` (a folder a run), tables and figures.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from experiments.report.axis import LAYER, RATIO, Axis
from experiments.runs.options import DataOptions, GridOptions, TrainingOptions
from experiments.runs.terminal import say, warn

if TYPE_CHECKING:
    from experiments.report.results import Results
    from experiments.report.table import Table
    from experiments.runs.executors import Executor, Outcome
    from experiments.runs.machine import Machine
    from experiments.runs.runner import PlannedRun
    from experiments.runs.specs import RunSpec
    from mcr2.records import Run

STUDY = "study.json"

#: What a study's last command planned: the runs' folders and what tells each from the others.
CELLS = "cells.json"

#: Options of data that are fields of a spec.
SHARED = ("subset", "image_size", "axes", "labels_are", "noise")

#: A method more than this under cross-entropy on clean labels fails the clean-label check.
COMPETENCE = 0.02


class Study:
    """A study: a dataclass whose fields are its options.

    Attributes:
        name: by which ``mcr2 study`` knows it.
    """

    name: ClassVar[str] = ""

    def prepare(self) -> Callable[[], int]:
        """Check everything and return what runs the study and returns the exit status.

        Raises:
            ValueError, TypeError, OSError: what cannot be done, in one line.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class GridStudy(GridOptions, Study):
    """A grid of runs over named axes, and what their records say."""

    #: Names of ``TABLES`` and ``FIGURES``, or functions of :class:`Results` of the study's own; one
    #: for tables returns a table, None or several. ``"families"`` are the tables of all families.
    #: The first table is shown while runs go on.
    tables: ClassVar[tuple[Any, ...]] = ("accuracy",)
    figures: ClassVar[tuple[Any, ...]] = ("accuracy",)
    #: Whether runs are too many for a note on each that did not reach the terminal phase.
    large: ClassVar[bool] = False
    #: What an estimate does not count, for runs are all that it measures.
    not_estimated: ClassVar[str] = ""

    def study_axes(self) -> tuple[Axis, ...]:
        """Return what the study varies beside methods and seeds; the first makes columns.

        With ``LAYER`` among them a run has a row for each layer, at its last epoch.
        """
        return (RATIO,)

    def specs(self) -> list[RunSpec]:
        """Return the specs of all runs, in the order in which they are to be run."""
        raise NotImplementedError

    def rows(self, outcome: Outcome) -> list[dict[str, Any]]:
        """Return a run's rows of ``table.json``; every row has the same keys."""
        from experiments.report.rows import layer_rows, rows_of

        axes = self.study_axes()
        return layer_rows(outcome, axes) if LAYER in axes else rows_of(outcome, axes)

    def notes(self, outcomes: Sequence[Outcome], results: Results) -> list[str]:
        """Return lines beneath the tables."""
        told = failures(outcomes, self.describe)
        if self.large:
            return [*told, terminal_runs(outcomes)]
        told += not_terminal(outcomes)
        return told + evaluation_notes(outcomes)

    def conclusion(self, results: Results) -> list[str]:
        """Return what the measurements say, printed last: sentences computed, never written."""
        from experiments.report.summary import conclusion

        return conclusion(results)

    def facts(self, results: Results) -> dict[str, Any]:
        """Return what ``table.json`` says of the study beside its rows."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Return what a folder of this study is a study of, beside its data and recipe."""
        return {}

    def default_out(self) -> Path:
        """Return the folder of the study where none is given."""
        return (
            Path("results") / f"{self.name}-{self.recipe}-{self.dataset_name()}{self.noise_name()}"
        )

    def reference(self) -> Mapping[str, Mapping[str, Mapping[float, float]]]:
        """Return published accuracies: source -> method -> value of the first axis -> accuracy."""
        return {}

    def describe(self, spec: RunSpec) -> str:
        """Return what tells a run from the others, on a line."""
        from experiments.report.rows import axis_value

        axes = [axis.name for axis in self.study_axes() if axis != LAYER]
        found = ((name, axis_value(spec, name)) for name in axes)
        values = [f"{name} {f'{v:g}' if isinstance(v, float) else v}" for name, v in found]
        served = f", for {' and '.join(spec.selections)}" if spec.selections else ""
        return ", ".join([spec.method, *values, f"seed {spec.seed}"]) + served

    # What follows is the engine's.

    def noise_name(self) -> str:
        """Return what names of folders say of the noise: nothing of the usual one."""
        return "" if self.noise == "symmetric" else f"-{noise_name(self.noise)}"

    def dataset_name(self) -> str:
        """Return what tables call the data set: its name, or its file's or folder's."""
        return dataset_name(spec_fields(self)["dataset"])

    def grid(self, methods: Sequence[str]) -> list[RunSpec]:
        """Return the specs of methods at all ratios and seeds, with all settings."""
        return specs_of(self, methods, sorted(self.noise_ratios()), sorted(self.seeds))

    def noise_ratios(self) -> tuple[float, ...]:
        """Return the ratios asked for; where none are, those that the kind of noise has."""
        from mcr2.noise import parse_noise

        asked = self.ratios != {field.name: field.default for field in fields(self)}["ratios"]
        own = parse_noise(self.noise, 0).ratios
        return self.ratios if asked or own is None else own

    def machine(self) -> Machine:
        """Return the device and threads of each run."""
        from experiments.runs.machine import Machine

        device = self.devices[0] if self.devices else self.device
        here = self.executor == "local"
        how = (self.tensorboard, here, self.processes)
        return Machine(device, self.threads, self.data_root, *how)

    def plan(self) -> tuple[list[PlannedRun], Path]:
        """Check everything, and return the planned runs and the study's folder; run nothing."""
        from experiments.runs.runner import complete, plan

        out = self.out or self.default_out()
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file; give a new or an empty folder")
        self._check_axes()
        specs = self.specs()
        if not specs:
            raise ValueError(f"the study {self.name} plans no run")
        names = {field.name for field in (*fields(specs[0]), *fields(specs[0].training))}
        names |= {name for spec in specs for name, _ in spec.options}
        axes = [axis.name for axis in self.study_axes() if axis.name in names]
        planned = plan(specs, out / "runs", self.machine(), axes)
        for one in planned if not self.estimate else ():
            complete(one)  # sets damaged files aside before anything is run
        return planned, out

    def _check_axes(self) -> None:
        """Refuse fields that are both set and varied, and ratios that no axis would tell apart."""
        from mcr2 import checks

        axes = self.study_axes()
        taken = {text.partition("=")[0].rpartition(".")[2] for text in self.set}
        for axis in axes:
            if axis != RATIO and axis.name in taken:
                raise ValueError(f"{axis.name} is set and varied; do one of them")
        if RATIO not in axes:
            checks.integer("the number of ratios", len(self.ratios), 1, 1)

    def prepare(self) -> Callable[[], int]:
        """Plan the study and claim its folder; return what runs it."""
        from experiments.runs.executors import make_executor
        from experiments.runs.executors.local import Local
        from mcr2.records import plain

        executor = make_executor(self, self.machine(), self.out or self.default_out())
        planned, out = self.plan()
        if self.estimate:
            if not isinstance(executor, Local):
                raise ValueError("--estimate measures this machine: give it without --executor")
            slots = executor.slots
            return lambda: _print_estimate(planned, slots, self.not_estimated)
        identity = {
            "study": self.name,
            "dataset": self.dataset_name(),
            "recipe": self.recipe,
            "data": planned[0].data[:12],
            **self.identity(),
        }
        claim_folder(out, identity, plain(asdict(self)))
        return lambda: self.run(planned, out, executor)

    def run(self, planned: Sequence[PlannedRun], out: Path, executor: Executor) -> int:
        """Run what is not complete, then show and write everything; return the exit status."""
        from experiments.report.summary import fitting
        from experiments.report.table import terminal_width

        def first_table(outcomes: Sequence[Outcome]) -> str:
            made = self.printed(self.results(outcomes))
            return fitting(made[0], terminal_width()) if made else ""

        start = time.perf_counter()
        outcomes = run_cells(planned, out, executor, first_table, self.describe)
        return self.show(outcomes, out, time.perf_counter() - start)

    def printed(self, results: Results) -> list[Table]:
        """Return the tables that are printed; the others are in the report.

        They are the summary of a study that has the table of accuracies, else the first table.
        """
        from experiments.report.summary import summary_tables

        if "accuracy" not in self.tables:
            return list(self._tables(results).values())[:1]
        return summary_tables(results) if self._tables(results, ("accuracy",)) else []

    def show(self, outcomes: Sequence[Outcome], out: Path, seconds: float | None = None) -> int:
        """Print a summary, and write tables, figures and the report into ``out``."""
        from experiments.report.figures import write_figures
        from experiments.report.held import HeldStudy
        from experiments.report.page import write_page
        from experiments.report.summary import fitting, note_lines
        from experiments.report.table import count_of, terminal_width, wrap
        from experiments.report.tables import write_tables

        results, width = self.results(outcomes), terminal_width()
        tables, notes, said = self._tables(results), self.notes(outcomes, results), []
        if tables:
            said = self.conclusion(results)
        blocks = [fitting(table, width) for table in self.printed(results)]
        blocks.append("\n".join(note_lines(notes, width, f"mcr2 show {out} notes")))
        blocks.append("\n".join(line for sentence in said for line in wrap(sentence, width)))
        print("\n" + "\n\n".join(filter(None, blocks)))
        facts = self._facts(results) | {"conclusion": said}
        failed = any(row["status"] == "failed" for row in results.rows)
        try:
            write_tables(out, results, tables, facts, notes)
            drawn = write_figures(out, results, self.figures)
            held = HeldStudy(out, facts, results, tables, tuple(notes))
            write_page(out / "report.html", [held], [drawn])
        except OSError as error:
            print()
            warn(f"tables and figures cannot be written: {error}")
            return int(failed or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM))
        spent = "" if seconds is None else f" ({seconds:.0f} s)"
        ended = f"{count_of(len(outcomes), 'run')} in {out}{spent}"
        print()
        say(f"{ended}: table.json, .csv, .md, report.html")
        say(f"All else: report.html in a browser, or mcr2 show {out}")
        return int(failed)

    def _facts(self, results: Results) -> dict[str, Any]:
        """Return what ``table.json`` says beside rows and tables: how it came about."""
        from mcr2.records import environment

        machine = self.machine()
        on = {str(run.record.environment["device"]): None for run in results.runs}
        device = ", ".join(on) or str(machine.torch_device())
        used = {**environment(), **asdict(machine), "device": device}
        named = [one if isinstance(one, str) else one.__name__ for one in self.figures]
        facts: dict[str, Any] = {
            "study": self.name,
            "dataset": results.dataset,
            "recipe": self.recipe,
        }
        facts |= {"command": command_line(self), "environment": used, "figures": named}
        return facts | self.facts(results)

    def results(self, outcomes: Sequence[Outcome]) -> Results:
        """Return what tables and figures are made of."""
        from experiments.report.results import Results

        return Results(
            dataset=self.dataset_name(),
            axes=self.study_axes(),
            rows=[row for outcome in outcomes for row in self.rows(outcome)],
            runs=[outcome.run for outcome in outcomes if outcome.run is not None],
            reference=self.reference(),
        )

    def _tables(self, results: Results, names: Sequence[Any] | None = None) -> dict[str, Table]:
        """Return the study's tables by name, or those named."""
        from experiments.report.tables import TABLES, family_tables

        if all(row["status"] == "failed" for row in results.rows):
            return {}  # the reasons stand in the notes
        makers: dict[str, Any] = {}
        for name in self.tables if names is None else names:
            if name == "families":  # every family with a shown measure, those of today and later
                makers |= family_tables()
            elif isinstance(name, str):
                makers[name] = TABLES[name]
            else:
                makers[name.__name__] = name
        tables: dict[str, Table] = {}
        for name, make in makers.items():
            made = make(results)
            several = made if isinstance(made, list) else [made]
            for number, table in enumerate(several, start=1):
                if table is not None:
                    tables[name if len(several) == 1 else f"{name}{number}"] = table
        return tables


def spec_fields(options: DataOptions) -> dict[str, Any]:
    """Return the fields of a spec that options of data set."""
    from experiments.runs.recipes import find_recipe

    base = find_recipe(options.recipe).base
    dataset = base.dataset if options.dataset is None else options.dataset
    return {"dataset": dataset, **{name: getattr(options, name) for name in SHARED}}


def specs_of(
    options: DataOptions, methods: Sequence[str], ratios: Sequence[float], seeds: Sequence[int]
) -> list[RunSpec]:
    """Return the specs of methods at ratios and seeds, as options of data or training say."""
    from experiments.runs.grid import grid
    from experiments.runs.recipes import find_recipe

    settings = options.settings() if isinstance(options, TrainingOptions) else options.set
    recipe, given = find_recipe(options.recipe), spec_fields(options)
    return grid(recipe, methods, ratios, seeds, fields=given, settings=settings)


def one_spec(options: DataOptions, method: str, ratio: float, seed: int) -> RunSpec:
    """Return the spec of a single run of a method."""
    return specs_of(options, [method], [ratio], [seed])[0]


def dataset_name(dataset: str) -> str:
    """Return what tables call a data set: its name, or its file's or folder's.

    Example:
        >>> dataset_name("data/birds.npz")
        'birds'
    """
    return Path(dataset).resolve().name.removesuffix(".npz")


def noise_name(noise: str) -> str:
    """Return a kind of noise as part of a file name.

    Example:
        >>> noise_name("given:some/labels.npz#worse")
        'given-labels.npz-worse'
    """
    kind, _, argument = noise.partition(":")
    return re.sub(r"[^\w.+-]+", "-", f"{kind}-{Path(argument).name}").strip("-")


def restore(kind: type[Any], options: Mapping[str, Any]) -> Any:
    """Return a study from its options in ``study.json``."""

    def value(held: Any) -> Any:
        return tuple(map(value, held)) if isinstance(held, list) else held

    names = {field.name for field in fields(kind)}
    given = {name: value(held) for name, held in options.items() if name in names}
    return kind(**given | {"out": Path(given["out"]) if given.get("out") else None})


def command_line(study: Study) -> str:
    """Return the command that runs a study with these options.

    Example:
        >>> from experiments.studies.label_noise import LabelNoise
        >>> command_line(LabelNoise(ratios=(0.0, 0.5), set=("lr=0.1",)))
        'mcr2 study label_noise --set lr=0.1 --ratios 0.0 0.5'
    """
    import inspect

    from experiments.studies import STUDIES

    kind = type(study)
    name = study.name
    if name not in STUDIES:
        name = f"{inspect.getsourcefile(kind)}:{kind.__qualname__}"
    words = ["mcr2", "study", name]
    for field in fields(study):  # type: ignore[arg-type]
        value, option = getattr(study, field.name), "--" + field.name.replace("_", "-")
        if value in (field.default, None, False):
            continue
        groups = value if isinstance(value, tuple) else (value,)
        for group in groups if isinstance(groups[0], tuple) else (groups,):
            words += [option] if value is True else [option, *map(str, group)]
    return shlex.join(words)


def claim_folder(
    out: Path, identity: Mapping[str, Any], options: Mapping[str, Any] | None = None
) -> None:
    """Make ``out`` the folder of a study, or check that it already is that study's.

    Raises:
        ValueError: the folder holds something else, or a study of something else.
    """
    from experiments.runs.runner import set_aside
    from mcr2.records import is_free, plain, read_signed, temporary_files, write_signed

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a new or an empty folder")
    marker = out / STUDY
    content = {**identity, "options": plain(options or {})}
    if marker.exists():
        try:
            held = read_signed(marker)
        except ValueError as error:
            if not any((out / name).exists() for name in ("runs", "rates.json")):
                raise  # whose it is, nobody knows
            set_aside(marker, error)
            held = content
        known = {k: v for k, v in held.items() if k != "options"}
        if known != dict(identity):
            there, here = _differences(known, identity)
            raise ValueError(
                f"--out {out} holds the study with {there}; this one has {here}: "
                "choose another folder"
            )
        with contextlib.suppress(OSError):  # read-only: what is finished can still be shown
            for path in temporary_files(out):
                path.unlink(missing_ok=True)
            if held != content or not marker.exists():
                write_signed(marker, content)
        return
    if out.exists() and not is_free(out):
        raise ValueError(f"--out {out} holds something else; give a new or an empty folder")
    write_signed(marker, content)


def _differences(*identities: Mapping[str, Any]) -> list[str]:
    """Return what each has, NAME=VALUE, that not all of them have."""

    def told(value: Any) -> str:
        return "+".join(map(str, value)) if isinstance(value, list) else str(value)

    return [
        " ".join(
            f"{name}={told(value)}"
            for name, value in own.items()
            if any(other.get(name) != value for other in identities)
        )
        or "less"
        for own in identities
    ]


def failures(outcomes: Sequence[Outcome], describe: Callable[[RunSpec], str]) -> list[str]:
    """Return a line for each run that failed, with the reason."""
    found = ((outcome.planned.spec, outcome.failure) for outcome in outcomes)
    return [f"{describe(spec)}: failed, {why}" for spec, why in found if why is not None]


def finished(outcomes: Sequence[Outcome]) -> list[tuple[RunSpec, Run]]:
    """Return the specs and runs that finished."""
    held = ((outcome.planned.spec, outcome.run) for outcome in outcomes)
    return [(spec, run) for spec, run in held if run and run.record.status == "finished"]


def unfinished(outcomes: Sequence[Outcome]) -> list[tuple[RunSpec, Run]]:
    """Return the finished runs that did not reach the terminal phase of training."""
    return [
        (spec, run)
        for spec, run in finished(outcomes)
        if run.evaluation is not None and run.evaluation.terminal_epoch is None
    ]


def not_terminal(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each method some of whose runs did not reach the terminal phase.

    The terminal phase begins where ``fit_noisy``, by the method's own readout, stays at 0.99 or
    above for three evaluations running.
    """
    from experiments.report.table import count_of
    from mcr2.evaluation import measure_key

    short: dict[str, list[float]] = {}
    for spec, run in unfinished(outcomes):
        by = run.record.readout
        key = measure_key("fit_noisy", split="train", labels="noisy", readout=by)
        short.setdefault(spec.method, []).append(run.record.history[-1]["measures"][key])
    every = [spec.method for spec, _ in finished(outcomes)]
    return [
        f"{method}: terminal phase (fit_noisy ≥ 0.99 three times running) not reached, "
        f"{len(fits)} of {count_of(every.count(method), 'run')}, fit_noisy "
        + " to ".join(dict.fromkeys((f"{min(fits):.3f}", f"{max(fits):.3f}")))
        for method, fits in short.items()
    ]


def terminal_runs(outcomes: Sequence[Outcome]) -> str:
    """Return how many runs reached the terminal phase: a line each would bury a long table."""
    from experiments.report.table import count_of

    of = len(finished(outcomes))
    reached = of - len(unfinished(outcomes))
    return f"{reached} of {count_of(of, 'finished run')} reached the terminal phase of training"


def evaluation_notes(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what evaluations say of themselves, absent classes say, with how many runs say it."""
    runs = [run for _, run in finished(outcomes)]
    said: list[str] = []
    for run in runs:
        chosen = run.evaluation.selections.values() if run.evaluation else ()
        said += dict.fromkeys(note for each in chosen for note in each["notes"])
    return [f"{note} ({said.count(note)} of {len(runs)} runs)" for note in dict.fromkeys(said)]


def run_cells(
    planned: Sequence[PlannedRun],
    out: Path,
    executor: Executor,
    table: Callable[[Sequence[Outcome]], str],
    describe: Callable[[RunSpec], str],
) -> list[Outcome]:
    """Run what is not complete, and show how it goes; ``mcr2 status`` shows it, too."""
    from experiments.report.live import StudyView
    from experiments.runs.executors import run_planned
    from mcr2.records import write_signed

    cells = [[one.folder.name, describe(one.spec)] for one in planned]
    with contextlib.suppress(OSError):  # read-only: what is finished can still be shown
        write_signed(out / CELLS, {"cells": cells})
    with StudyView(planned, out, executor.at_once, table, describe) as view:
        outcomes = run_planned(planned, executor, watch=view.show)
        view.show(outcomes, {})
    return outcomes


def _print_estimate(planned: Sequence[PlannedRun], slots: Sequence[Machine], beside: str) -> int:
    from experiments.report.estimate import report_estimate

    try:
        print(report_estimate(planned, slots))
        print(f"not counted: {beside}\n" * bool(beside), end="")
    except ValueError as error:
        warn(error)
        return 1
    return 0


def show_again(study: GridStudy, out: Path) -> int:
    """Show the runs of a study that are there, without running any; return the exit status."""
    from experiments.runs.executors import Outcome
    from experiments.runs.runner import complete

    study = replace(study, out=out)
    held = [(one, complete(one)) for one in study.plan()[0]]
    return study.show([Outcome(one, run) for one, run in held if run is not None], out)
