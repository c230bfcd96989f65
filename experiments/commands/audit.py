"""``mcr2 audit``: which labels look wrong, in a run, in features or in images."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from experiments.runs.options import MachineOptions, Switch
from experiments.runs.terminal import say, warn

if TYPE_CHECKING:
    from experiments.report.audit import Findings
    from experiments.runs.subjects import Subject

#: Options of --train, and those that are for some kinds of target only.
TRAINING = ("recipe", "method", "epochs", "set", "seed")
ONLY_FOR = {
    "a run": ("selection", "code", "dataset"),
    "features": ("num_classes",),
    "images": ("subset", "image_size", "axes", "train", *TRAINING),
}


@dataclass(frozen=True, kw_only=True)
class Audit(MachineOptions):
    """Rank training labels by how wrong they look: of a run, of features, of images.

    Leaves audit.csv (a row a sample, the most suspicious first), audit.json, suggestions.png and,
    of images, contact sheets; with --apply a cleaned data set instead.
    """

    target: tyro.conf.Positional[str]
    """Folder of a run; .npz file of features and labels; or images: a data set's name, an .npz
    file, a folder of CLASS/*."""
    out: Path | None = None
    """Folder of the report, results/audit-NAME by default; with --apply the new .npz file."""
    score: str = "coding_length"
    """coding_length, subspace, knn, ridge_cv, ensemble; of a run or with --train also
    own_head_margin and aum."""
    compare: Switch = False
    """Show every score that can be had beside it, cleanlab's too where that is installed."""
    eps_sq: float = 0.5
    """ε² of the coding length."""
    iterations: int = 1
    """Passes of the coding length: more learn classes from labels that the last one kept."""
    pages: int = 1
    """Contact sheets, of 64 images each."""
    apply: Literal["drop", "relabel"] | None = None
    """Write the data without the most suspicious samples, or with the labels suggested for them."""
    share: float | None = None
    """Share of the samples that --apply drops or relabels."""
    data_root: str | None = None
    """Where data sets are looked for first."""

    selection: str = "last"
    """Of a run: the rule whose epoch's features are audited, such as noisy_validation."""
    code: tuple[str, ...] = ()
    """Of a run: classes of your own that it was made with, as path/to/file.py:Class."""
    dataset: str | None = None
    """Of a run: where its data are now, if not where it was made."""
    num_classes: int | None = None
    """Of features: by default the rows of weight, or the largest label plus one."""
    subset: int | None = None
    """Of images: so many of them, stratified by class."""
    image_size: int | None = None
    """Of a folder: side to which images are resized."""
    axes: Literal["NCHW", "NHWC"] | None = None
    """Of an .npz file of images: how they lie."""
    train: Switch = False
    """Of images: train a network on them first; their projected pixels are audited otherwise."""
    recipe: Literal["quick", "cpu", "paper"] = "cpu"
    """With --train: how."""
    method: str = "ce"
    """With --train: ce, mcr2, ..., or path/to/file.py:Class."""
    epochs: int | None = None
    """With --train: instead of the recipe's."""
    set: tuple[str, ...] = ()
    """With --train: FIELD=VALUE, any field of a run."""
    seed: int = 0
    """With --train: from which every stream of randomness is seeded."""

    def prepare(self) -> Callable[[], int]:
        """Read and check what is to be audited, and where the results go."""
        from experiments.runs.machine import Machine
        from mcr2 import checks
        from mcr2.audit import SCORES

        checks.choice("score", self.score, SCORES)
        checks.positive("eps_sq", self.eps_sq)
        checks.integer("iterations", self.iterations, 1)
        checks.integer("pages", self.pages, 0, 100)
        machine = Machine(self.device, self.threads, self.data_root)
        out = self._place()
        subject = self._subject(machine)

        def go() -> int:
            machine.configure_torch()
            try:
                made = subject()
            except ValueError as error:  # a network whose training failed
                warn(error)
                return 1
            return self._report(made, self._find(made), out)

        return go

    def _place(self) -> Path:
        """Return where the results go, and refuse a place that holds something else."""
        from mcr2 import checks
        from mcr2.records import is_free

        if self.apply is None:
            if self.share is not None:
                raise ValueError("--share is of --apply, which says what is done with that share")
            out = self.out or Path("results") / f"audit-{Path(self.target).resolve().stem}"
            if out.exists() and not out.is_dir():
                raise ValueError(f"--out {out} is a file; give a new or an empty folder")
            if out.is_dir() and not (out / "audit.json").exists() and not is_free(out):
                raise ValueError(f"--out {out} holds something else; give a new or an empty folder")
            return out
        if self.share is None or self.out is None or self.out.suffix != ".npz":
            raise ValueError(f"--apply {self.apply} needs --share and --out FILE.npz")
        if not 0 < checks.number("share", self.share) < 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and below 1")
        if os.path.lexists(self.out):
            raise ValueError(f"--out {self.out} exists; --apply writes a new file, never over one")
        return self.out

    def _subject(self, machine: Any) -> Callable[[], Subject]:
        """Return what makes the samples to audit; all but training is done now."""
        from experiments.runs import subjects
        from experiments.runs.runner import reopen
        from mcr2.data import DATASETS, load_training
        from mcr2.records import RECORD

        path = Path(self.target).expanduser()
        if self.target not in DATASETS and (path / RECORD).is_file():
            self._refuse_options_but("a run")
            opened = reopen(
                path,
                device=self.device,
                threads=self.threads,
                data_root=self.data_root,
                dataset=self.dataset,
                code=self.code,
            )
            along = self.compare or self.score in ("aum", "ensemble")
            return self._checked(subjects.of_run(opened, self.selection, along=along))
        if path.suffix.lower() == ".npz" and path.is_file() and subjects.is_features(path):
            self._refuse_options_but("features")
            return self._checked(subjects.of_features(path, self.num_classes))
        self._refuse_options_but("images")
        names = ("subset", "image_size", "axes", "data_root")
        training = load_training(self.target, **{name: getattr(self, name) for name in names})
        if not self.train:
            for name in TRAINING:
                self._refuse_option(name, "--train")
            return self._checked(subjects.of_pixels(training))
        spec = self._spec()
        encoder = subjects.make_encoder(training, spec)
        if self.score in ("own_head_margin", "aum") and encoder.classifier() is None:
            raise ValueError(f"score {self.score!r} needs a classifier; {self.method} has none")

        def made() -> Subject:
            from experiments.report.live import training_bar

            with training_bar(f"{spec.method} seed {spec.seed}", spec.training.epochs) as progress:
                return subjects.of_training(training, spec, encoder, machine, progress)

        return made

    def _spec(self) -> Any:
        """Return how a network is trained on images that are given."""
        from experiments.runs.grid import grid
        from experiments.runs.recipes import find_recipe

        given = [f"epochs={self.epochs}"] * (self.epochs is not None)
        recipe = find_recipe(self.recipe)
        return grid(recipe, [self.method], [0.0], [self.seed], settings=[*given, *self.set])[0]

    def _checked(self, subject: Subject) -> Callable[[], Subject]:
        """Return what makes a subject that can be audited by the score that is asked for."""
        from mcr2.audit.scores import available

        if self.score not in available(self._given(subject)):
            needs = "a classifier" if self.score == "own_head_margin" else "a training"
            raise ValueError(f"score {self.score!r} needs {needs}; {self.target} has none")
        return lambda: subject

    def _given(self, subject: Subject) -> Any:
        from mcr2.audit import make_given

        return make_given(
            subject.features,
            subject.labels,
            subject.num_classes,
            subject.head,
            subject.epochs,
            self.eps_sq,
            self.iterations,
        )

    def _find(self, subject: Subject) -> Findings:
        """Audit a subject."""
        from experiments.report.audit import Findings
        from mcr2.audit import audit_all, audit_by, estimates

        given = self._given(subject)
        found = audit_all(given) if self.compare else {self.score: audit_by(given, self.score)}
        own = found.pop(self.score)
        told = (subject.classes, subject.true, estimates(given, own), found, subject.files)
        return Findings(own, *told)

    def _report(self, subject: Subject, found: Findings, out: Path) -> int:
        """Print what was found, and leave it, or the cleaned data."""
        from experiments.report.audit import leave, tables
        from experiments.report.table import WIDTH

        N, K = len(subject.labels), subject.num_classes
        say(f"{subject.name}: {N} samples of {K} classes, {subject.made_of}")
        for table in tables(found):
            print(f"\n{table.text(WIDTH)}")
        if self.apply is not None:
            return self._clean(subject, found, out)
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "out"}
        about = {"data": subject.name, "features": subject.made_of, "options": settings}
        written = leave(out, found, about, subject.images, self.pages)
        print()
        say(f"{out}: {', '.join(written)}")
        return 0

    def _clean(self, subject: Subject, found: Findings, out: Path) -> int:
        """Write the data without the most suspicious samples, or with other labels for them."""
        import torch

        from mcr2.records import write_new_arrays

        assert self.share is not None
        labels, N = found.audit.labels.cpu().clone(), len(found.audit.labels)
        first = found.audit.ranking[: round(self.share * N)].cpu()
        kept = torch.ones(N, dtype=torch.bool)
        if self.apply == "drop":
            kept[first], told = False, f"{len(first)} samples dropped"
        else:
            changed = int(found.audit.is_label_issue.cpu()[first].sum())
            told = f"{changed} of the {len(first)} most suspicious samples relabelled"
            labels[first] = found.audit.suggested.cpu()[first]
        index = kept.nonzero().flatten()
        write_new_arrays(out, subject.cleaned(index, labels))
        print()
        say(f"{out}: {len(index)} samples, {told}")
        return 0

    def _refuse_options_but(self, kind: str) -> None:
        """Refuse options that are not for this kind of target."""
        for other, names in ONLY_FOR.items():
            for name in names if other != kind else ():
                self._refuse_option(name, other)

    def _refuse_option(self, name: str, what: str) -> None:
        """Refuse an option that was given and means nothing here."""
        default = next(field.default for field in fields(self) if field.name == name)
        if getattr(self, name) != default:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is for {what} only; {self.target} is not audited so")
