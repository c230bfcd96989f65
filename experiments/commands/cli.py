"""The command line: ``mcr2 table``, ``ablate``, ``train``, ``redunet``, ``evaluate`` and others.

A mistake in what was asked for is one line on standard error and exit status 2, before anything
is run or overwritten. A run that fails is a row of the table, and exit status 1.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.bench import BENCHES, OF_A_RECIPE, Options

#: An option that is only ever switched on.
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]

OK, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class TableCommand:
    """Train every method at every ratio and seed, and print the label-noise table.

    The same command continues an interrupted study; finished runs are never run twice, and more
    ratios, seeds or methods extend it.
    """

    methods: tuple[str, ...] = ("ce", "mcr2")
    """Names, or path/to/file.py:Class, or package.module:Class of an Objective."""
    ratios: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    """Shares of the training labels to redraw."""
    seeds: tuple[int, ...] = (0,)
    """One run of each cell a seed."""
    dataset: str | None = None
    """Name (see `mcr2 datasets`), .npz file or image folder; the recipe's own by default."""
    recipe: str = "quick"
    """How runs are trained."""
    out: Path | None = None
    """Folder of the study; results/RECIPE-DATASET by default."""
    epochs: int | None = None
    """Epochs of every method, instead of the recipe's."""
    subset: int | None = None
    """Training images to use, stratified by class; the recipe's own of named data by default."""
    image_size: int | None = None
    """Side to which an image folder is resized."""
    noise: str = "symmetric"
    """symmetric (the true class included, as in the paper) or symmetric_excluding_true."""
    set: tuple[str, ...] = ()
    """[METHOD.]FIELD=VALUE: any field of a run, its training or its objective."""
    micro_batch: int | None = None
    """Images that pass through the network at a time; the gradient stays the whole batch's."""
    no_shuffle: Switch = False
    """Keep the data set's order, hence the same batches, in every epoch."""
    amp: Switch = False
    """Run the network in bfloat16 where autocast sees fit; losses stay in float32."""
    compile: Switch = False
    """Run the network through torch.compile."""
    tf32: Switch = False
    """Let the network's products round to TF32 (CUDA)."""
    tensorboard: Switch = False
    """Write TensorBoard events into each run's folder."""
    estimate: Switch = False
    """Measure and tell what all this would take, and do nothing else."""
    jobs: int | None = None
    """Runs at a time; by default as many as fit the processors, one on a GPU."""
    threads: int = 1
    """CPU threads of a run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""


@dataclass(frozen=True)
class AblateCommand:
    """Vary settings of one method, and print and plot what each does.

    The same command continues an interrupted ablation, and more values, ratios or seeds extend it.
    """

    vary: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction] = ()
    """FIELD=V1,V2,...: any field of a run, its training or its objective; all combinations."""
    preset: str | None = None
    """Ready-made: eps_sq, gamma, batch_size, feature_dim, components, projection or width."""
    method: str = "mcr2"
    """A name, path/to/file.py:Class, or package.module:Class of an Objective."""
    ratios: tuple[float, ...] = (0.3,)
    """Shares of the training labels to redraw."""
    seeds: tuple[int, ...] = (0,)
    """One run of each setting a seed."""
    dataset: str | None = None
    """Name (see `mcr2 datasets`), .npz file or image folder; the recipe's own by default."""
    recipe: str = "quick"
    """How runs are trained."""
    out: Path | None = None
    """Folder of the ablation; results/ablate-METHOD-FIELDS-RECIPE-DATASET by default."""
    epochs: int | None = None
    """Epochs, instead of the recipe's."""
    subset: int | None = None
    """Training images to use, stratified by class; the recipe's own of named data by default."""
    image_size: int | None = None
    """Side to which an image folder is resized."""
    noise: str = "symmetric"
    """symmetric (the true class included, as in the paper) or symmetric_excluding_true."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE: any field of the runs, their training or their objective."""
    jobs: int | None = None
    """Runs at a time; by default as many as fit the processors, one on a GPU."""
    threads: int = 1
    """CPU threads of a run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""


@dataclass(frozen=True)
class TrainCommand:
    """Train one run in a folder, and print what it reads there."""

    method: str = "mcr2"
    """A name, path/to/file.py:Class, or package.module:Class of an Objective."""
    ratio: float = 0.0
    """Share of the training labels to redraw."""
    seed: int = 0
    """From which every stream of randomness is seeded."""
    dataset: str | None = None
    """Name (see `mcr2 datasets`), .npz file or image folder; the recipe's own by default."""
    recipe: str = "quick"
    """How the run is trained."""
    out: Path | None = None
    """Folder of the run; results/runs/... by default."""
    epochs: int | None = None
    """Epochs, instead of the recipe's."""
    subset: int | None = None
    """Training images to use, stratified by class; the recipe's own of named data by default."""
    image_size: int | None = None
    """Side to which an image folder is resized."""
    noise: str = "symmetric"
    """symmetric (the true class included, as in the paper) or symmetric_excluding_true."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE: any field of the run, its training or its objective."""
    micro_batch: int | None = None
    """Images that pass through the network at a time; the gradient stays the whole batch's."""
    no_shuffle: Switch = False
    """Keep the data set's order, hence the same batches, in every epoch."""
    amp: Switch = False
    """Run the network in bfloat16 where autocast sees fit; losses stay in float32."""
    compile: Switch = False
    """Run the network through torch.compile."""
    tf32: Switch = False
    """Let the network's products round to TF32 (CUDA)."""
    tensorboard: Switch = False
    """Write TensorBoard events into the run's folder."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""


@dataclass(frozen=True)
class ReduNetCommand:
    """Construct a ReduNet, print the rates of its layers, and leave figures."""

    dataset: str | None = None
    """Name (see `mcr2 datasets`), .npz file or image folder; the recipe's own by default."""
    ratio: float = 0.0
    """Share of the training labels to redraw."""
    seed: int = 0
    """From which every stream of randomness is seeded."""
    recipe: str = "quick"
    """Which data, and how much of it is held out."""
    out: Path | None = None
    """Folder for figures, rates and weights; results/redunet-DATASET by default."""
    subset: int | None = None
    """Training images to use, stratified by class."""
    image_size: int | None = None
    """Side to which an image folder is resized."""
    noise: str = "symmetric"
    """symmetric (the true class included, as in the paper) or symmetric_excluding_true."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE: layers, eta, eps_sq, lam, lifting (channels), kernel_size, membership, store; of
    a run's fields, validation, batch_size, readout, n_components and streams.NAME are read."""
    patience: int | None = None
    """Stop where ΔR has not grown for so many layers, and go back to the best."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Read a finished run again from its weights."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    selection: str | None = None
    """Rule whose epoch is shown; the run's first by default."""
    measure: str | None = None
    """Show instead every measure whose key contains this, beside the record's, for all rules."""
    json: Path | None = None
    """File for all measures and profiles of all rules."""
    threads: int | None = None
    """CPU threads; by default as many as the run had, which gives its very numbers."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    data_root: str | None = None
    """Where data sets are looked for first."""


@dataclass(frozen=True)
class MeasureCommand:
    """Measure features from anywhere: accuracy, rank, collapse, margins, rates."""

    file: tyro.conf.Positional[Path]
    """An .npz file: features, labels; perhaps clean_labels, weight, bias, test_features and
    test_labels."""
    num_classes: int | None = None
    """By default the rows of weight, or the largest label plus one."""
    readouts: tuple[str, ...] | None = None
    """Classifiers to fit, such as class_mean, nearest_subspace@3, knn@5; all by default."""
    json: Path | None = None
    """File for all measures and profiles."""
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads."""


@dataclass(frozen=True)
class DatasetsCommand:
    """List the data sets that are there, and what is missing."""

    data_root: str | None = None
    """Where data sets are looked for first."""


Command = (
    Annotated[TableCommand, tyro.conf.subcommand("table")]
    | Annotated[AblateCommand, tyro.conf.subcommand("ablate")]
    | Annotated[TrainCommand, tyro.conf.subcommand("train")]
    | Annotated[ReduNetCommand, tyro.conf.subcommand("redunet")]
    | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
    | Annotated[MeasureCommand, tyro.conf.subcommand("measure")]
    | Annotated[DatasetsCommand, tyro.conf.subcommand("datasets")]
    | Annotated[Options, tyro.conf.subcommand("bench")]
)


#: Options that may be given more than once.
REPEATABLE = ("--vary",)


def _one_line(boxed: str) -> str:
    """Return the line that names the problem, of tyro's boxed message (in Unicode or ASCII)."""
    rows = [row.strip("│╰╯ ") for row in boxed.splitlines()]
    # The title is in the box's edge, or in ASCII a row of its own above a rule.
    rows = rows[1:] if rows[0].startswith("╭") else rows[2:]
    problem, *hints = [" ".join(b.split()) for b in re.split(r"[─-]{4,}", "\n".join(rows))]
    # What follows are the attempts to read a value as each of its types.
    lines = [problem.partition(" Got errors:")[0].replace("{None}|", "")]
    for hint in hints:
        if hint.startswith("Available"):
            lines.append(hint)
        if hint.startswith("Perhaps") and (option := re.search(r"--[\w-]+", hint)):
            lines.append(f"perhaps you meant {option[0]}")
    return "; ".join(lines)


def parse(arguments: Sequence[str]) -> Any:
    """Return the command that the arguments ask for.

    Raises:
        ValueError: arguments that make none, in one line.
        SystemExit: with status 0, after help was printed.
    """
    # Of an option given twice, tyro would keep the last without a word.
    options = [a.partition("=")[0].replace("_", "-") for a in arguments if a.startswith("--")]
    for option in options:
        if options.count(option) > 1 and option not in REPEATABLE:
            raise ValueError(f"{option} is given twice; give its values together, once")
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(Command, prog="mcr2", args=list(arguments))  # type: ignore[arg-type]
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_one_line(errors.getvalue())) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # package.module:Class, as under `python -m`
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        go = _PREPARE[type(command)](command)
    # An ImportError is a data set's: torchvision that does not fit torch.
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"mcr2: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        return int(go())
    except KeyboardInterrupt:
        print("\nmcr2: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED


def _fields(
    command: TableCommand | AblateCommand | TrainCommand | ReduNetCommand, recipe: Any
) -> dict[str, Any]:
    """Return the fields of a spec that the commands set alike."""
    dataset = recipe.base.dataset if command.dataset is None else command.dataset
    return {
        "dataset": dataset,
        "subset": command.subset,
        "image_size": command.image_size,
        "noise": command.noise,
    }


def _short(dataset: str) -> str:
    """Return what tables call a data set: its name, or its file's or folder's."""
    return Path(dataset).resolve().name.removesuffix(".npz")


def _settings(command: TableCommand | AblateCommand | TrainCommand) -> list[str]:
    """Return options as the settings that they are, before the given ones, which may refine."""
    given = [] if command.epochs is None else [f"epochs={command.epochs}"]
    if not isinstance(command, AblateCommand):
        named = {
            "micro_batch": command.micro_batch,
            "shuffle": False if command.no_shuffle else None,
            **{name: getattr(command, name) or None for name in ("amp", "compile", "tf32")},
        }
        given += [f"{name}={value}" for name, value in named.items() if value is not None]
    return [*given, *command.set]


def _jobs(command: TableCommand | AblateCommand, machine: Any) -> int:
    """Return --jobs; by default as many as fit the processors, one on a GPU."""
    jobs = command.jobs
    if jobs is None:
        cores = max(1, (os.cpu_count() or 1) // machine.threads)
        jobs = cores if machine.torch_device().type == "cpu" else 1
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; it must be at least 1")
    return jobs


def _table(command: TableCommand) -> Any:
    from experiments.runs.recipes import find_recipe
    from experiments.runs.runner import Machine, finished, plan
    from experiments.studies.label_noise import claim, grid

    recipe = find_recipe(command.recipe)
    machine = Machine(command.device, command.threads, command.data_root, command.tensorboard)
    jobs = _jobs(command, machine)
    fields = _fields(command, recipe)
    specs = grid(
        recipe,
        command.methods,
        sorted(command.ratios),
        sorted(command.seeds),
        fields=fields,
        settings=_settings(command),
    )
    out = command.out or Path("results") / f"{recipe.name}-{_short(fields['dataset'])}"
    cells = plan(specs, out / "runs", machine)
    for cell in cells:
        finished(cell.folder, cell.key)  # a damaged record is a mistake too, found before runs are
    if command.estimate:
        from experiments.report.estimate import report_estimate

        def tell() -> int:
            try:
                print(report_estimate(cells, jobs, machine))
            except ValueError as error:
                print(f"mcr2: {error}", file=sys.stderr)
                return FAILED
            return OK

        return tell
    dataset = _short(fields["dataset"])
    claim(
        out,
        {
            "study": "label noise",
            "dataset": dataset,
            "recipe": recipe.name,
            "data": cells[0].data[:12],
        },
    )

    def go() -> int:
        from experiments.studies.label_noise import run_study

        return run_study(cells, out, dataset=dataset, recipe=recipe, jobs=jobs, machine=machine)

    return go


def _ablate(command: AblateCommand) -> Any:
    from experiments.runs.recipes import find_recipe
    from experiments.runs.runner import Machine
    from experiments.studies.ablations import find_preset, plan_ablation

    recipe = find_recipe(command.recipe)
    machine = Machine(command.device, command.threads, command.data_root)
    jobs = _jobs(command, machine)
    varied = [text for group in command.vary for text in group]
    settings = _settings(command)
    if command.preset is not None:
        preset = find_preset(command.preset)
        varied = [*preset.vary, *varied]
        settings = [*preset.settings, *settings]
    ablation = plan_ablation(
        command.method,
        varied,
        recipe=recipe,
        ratios=sorted(command.ratios),
        seeds=sorted(command.seeds),
        fields=_fields(command, recipe),
        settings=settings,
        machine=machine,
        out=command.out,
    )

    def go() -> int:
        failed = any(row["status"] == "failed" for row in ablation.run(jobs))
        return FAILED if failed else OK

    return go


def _train(command: TrainCommand) -> Any:
    from experiments.runs.recipes import find_recipe
    from experiments.runs.runner import Machine, finished, holds_another, plan, run
    from experiments.studies.label_noise import grid

    recipe = find_recipe(command.recipe)
    machine = Machine(command.device, command.threads, command.data_root, command.tensorboard)
    spec = grid(
        recipe,
        [command.method],
        [command.ratio],
        [command.seed],
        fields=_fields(command, recipe),
        settings=_settings(command),
    )[0]
    cell = plan([spec], Path("results") / "runs", machine)[0]
    folder = command.out or cell.folder
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; give a new or an empty folder")
    if folder.exists() and any(folder.iterdir()) and not (folder / "spec.json").exists():
        raise ValueError(f"--out {folder} holds something else; give a new or an empty folder")
    if holds_another(folder, cell.key):
        raise ValueError(f"--out {folder} holds another run; give a new or an empty folder")
    finished(folder, cell.key)  # raises where its record is damaged
    folder.mkdir(parents=True, exist_ok=True)

    def go() -> int:
        from experiments.report import run_table
        from experiments.report.live import training_bar

        with training_bar(spec) as progress:
            record = run(spec, folder, machine, progress=progress)
        print(run_table(record).text())
        print(f"\n{folder / 'record.json'}")
        if record.status == "failed":
            print(f"failed: {record.reason}")
        return OK if record.status == "finished" else FAILED

    return go


def _redunet(command: ReduNetCommand) -> Any:
    from experiments.runs.recipes import find_recipe
    from experiments.runs.runner import Machine
    from experiments.studies.construction import plan
    from experiments.studies.label_noise import grid

    recipe = find_recipe(command.recipe)
    machine = Machine(command.device, command.threads, command.data_root)
    fields = _fields(command, recipe)
    spec = grid(
        recipe,
        ["redunet"],
        [command.ratio],
        [command.seed],
        fields=fields,
        settings=command.set,
    )[0]
    out = command.out or Path("results") / f"redunet-{_short(fields['dataset'])}"
    data, _ = plan(spec, out, machine, patience=command.patience)

    def go() -> int:
        from experiments.studies.construction import run

        try:
            return run(spec, data, out, machine, patience=command.patience)
        except ValueError as error:  # an ε² too small for the samples
            print(f"mcr2: {error}", file=sys.stderr)
            return FAILED

    return go


def _evaluate(command: EvaluateCommand) -> Any:
    from experiments.runs.runner import read_run

    _check_json(command.json)
    record, readings = read_run(
        command.run,
        device=command.device,
        threads=command.threads,
        data_root=command.data_root,
    )
    rule = command.selection or next(iter(readings), None)
    if rule is not None and rule not in readings:
        raise ValueError(f"no selection {rule!r} in {command.run}; it has {', '.join(readings)}")

    def go() -> int:
        from experiments.report import measures_table, run_table
        from experiments.report.readings import agreement, reading_tables
        from mcr2.records import write_json

        measures = {rule: dict(reading.measures) for rule, reading in readings.items()}
        if command.measure is not None:
            print(measures_table(record, measures, command.measure).text())
        else:
            print(run_table(record).text())
            if rule is not None:
                print(f"\nAt the selection {rule}, epoch {record.selections[rule]['epoch']}:")
                for table in reading_tables(measures[rule]):
                    print(f"\n{table.text()}")
                print("\n" + "\n".join(agreement(record.selections, measures)))
            else:
                print(f"failed: {record.reason}")
        if command.json is not None:
            found = {
                name: {
                    "epoch": record.selections[name]["epoch"],
                    "measures": measures[name],
                    "profiles": dict(reading.profiles),
                }
                for name, reading in readings.items()
            }
            write_json(command.json, {"run": command.run, "selections": found})
        return OK

    return go


def _measure(command: MeasureCommand) -> Any:
    import torch

    from mcr2.evaluation import COMMON_READOUT, evaluate_features, read_features, standard_readouts
    from mcr2.readouts import parse_readout

    _check_json(command.json)
    if command.threads < 1:
        raise ValueError(f"threads is {command.threads}; it must be at least 1")
    for name in command.readouts or ():
        if parse_readout(name)[0] == "head":
            raise ValueError("readout 'head' is the weight in the file, and always read")
    arrays = read_features(command.file, num_classes=command.num_classes)
    N, d = arrays.train.features.shape
    torch.set_num_threads(command.threads)

    def go() -> int:
        from experiments.report.readings import reading_tables
        from mcr2.records import write_json

        names = standard_readouts(d) if command.readouts is None else command.readouts
        reading = evaluate_features(
            arrays.train,
            arrays.test,
            num_classes=arrays.num_classes,
            readout=COMMON_READOUT if arrays.head is None else "head",
            readouts=names,
            head=arrays.head,
        )
        print(f"{command.file}: {N} samples of {arrays.num_classes} classes in {d} dimensions")
        for table in reading_tables(reading.measures):
            print(f"\n{table.text()}")
        if command.json is not None:
            found = {"measures": dict(reading.measures), "profiles": dict(reading.profiles)}
            head = {"file": command.file, "num_classes": arrays.num_classes, "samples": N, "dim": d}
            write_json(command.json, {**head, **found})
        return OK

    return go


def _check_json(path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"--json {path} is a folder; give a file")
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"--json {path}: {parent} is a file, no folder")


def _datasets(command: DatasetsCommand) -> Any:
    from mcr2.data import availability

    rows = availability(command.data_root)

    def go() -> int:
        from experiments.report import datasets_table

        print(datasets_table(rows).text())
        return OK

    return go


def _bench(command: Options) -> Any:
    from mcr2.records import environment, write_json

    if command.name not in BENCHES:
        raise ValueError(f"unknown benchmark {command.name!r}; choose from {', '.join(BENCHES)}")
    if command.repeats is not None and command.repeats < 1:
        raise ValueError(f"repeats is {command.repeats}; it must be at least 1")
    if command.out is not None and command.out.is_dir():
        raise ValueError(f"--out {command.out} is a folder; give a file for the figures")
    if command.threads < 1:
        raise ValueError(f"threads is {command.threads}; it must be at least 1")
    module = importlib.import_module(BENCHES[command.name])
    if hasattr(module, "prepare"):
        measure = module.prepare(command)
    else:
        plain = Options(command.name)
        for name in OF_A_RECIPE:
            if getattr(command, name) != getattr(plain, name):
                option = name.replace("_", "-")
                raise ValueError(f"the benchmark {command.name} takes no --{option}")
        given = {} if command.repeats is None else {"repeats": command.repeats}
        measure = functools.partial(module.run, threads=command.threads, **given)

    def go() -> int:
        figures = measure()
        print(module.table(figures))
        if command.out is not None:
            head = {"bench": command.name, "environment": environment()}
            write_json(command.out, {**head, **figures})
        return OK

    return go


#: Each prepares what it was asked for (mistakes surface here) and returns what to run.
_PREPARE: dict[type, Any] = {
    TableCommand: _table,
    AblateCommand: _ablate,
    TrainCommand: _train,
    ReduNetCommand: _redunet,
    EvaluateCommand: _evaluate,
    MeasureCommand: _measure,
    DatasetsCommand: _datasets,
    Options: _bench,
}
