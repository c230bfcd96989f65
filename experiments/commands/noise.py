"""``mcr2 noise``: what a kind of noise would do to a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from experiments.runs.terminal import say
from experiments.studies.engine import dataset_name, noise_name

if TYPE_CHECKING:
    from experiments.report.table import Table
    from mcr2.data import Dataset
    from mcr2.noise import Corruption

#: A table of a transition matrix is of so many classes at most.
MOST_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class ShowNoise:
    """Show what noise would do to a data set: shares, transition matrix, corrupted images."""

    dataset: tyro.conf.Positional[str]
    """Name (see `mcr2 datasets`), .npz file or image folder."""
    noise: str = "symmetric"
    """Kind of noise, as of `mcr2 table --noise`; see docs/noise.md."""
    ratio: float = 0.4
    """Share of the training labels to redraw."""
    seed: int = 0
    """Of the noise."""
    subset: int | None = None
    """Training images to use, stratified by class."""
    image_size: int | None = None
    """Side to which an image folder is resized."""
    axes: Literal["NCHW", "NHWC"] | None = None
    """How the images of an .npz file lie, where it neither says so nor leaves no doubt."""
    labels_are: Literal["clean", "noisy"] | None = None
    """noisy: the labels given may be wrong and nobody knows where."""
    data_root: str | None = None
    """Where data sets are looked for first."""
    out: Path | None = None
    """Folder for noise.json, transition.png and sheet.png; results/noise/... by default."""

    def prepare(self) -> Callable[[], int]:
        """Draw the noise; showing it is left to do."""
        from experiments.runs.prepare import load, load_other, noise_content, prepare
        from experiments.runs.specs import RunSpec

        fields = {name: getattr(self, name) for name in ("subset", "image_size", "axes")}
        spec = RunSpec(
            "ce",
            dataset=self.dataset,
            noise=self.noise,
            ratio=self.ratio,
            seed=self.seed,
            validation=0.0,
            labels_are=self.labels_are,
            **fields,
        )
        dataset, other = load(spec, self.data_root), load_other(spec, self.data_root)
        data = prepare(spec, dataset, other)
        parts = (
            dataset_name(self.dataset),
            noise_name(self.noise),
            f"{self.ratio:g}",
            f"seed{self.seed}",
        )
        out = self.out or Path("results") / "noise" / "-".join(parts)
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out {out} is a file; give a folder")

        def go() -> int:
            from experiments.report.canvas import panels, save, shares
            from experiments.report.sheet import contact_sheet
            from mcr2.records import write_json

            found = data.corruption
            table = self._table(dataset, found)
            print(table.text())
            facts: dict[str, object] = {
                "dataset": dataset.name,
                "data": dataset.content_hash(),
                "noise": self.noise,
            }
            facts |= {"content": noise_content(spec, other), "ratio": self.ratio, "seed": self.seed}
            write_json(out / "noise.json", facts | described(found))
            figure, axes = panels(1, 1, 5.4, 4.8)
            image = shares(axes[0, 0], found.transition.numpy(), dataset.classes)
            axes[0, 0].set(xlabel="label trained on", ylabel="true class")
            figure.colorbar(image, ax=axes).set_label("share of a class")
            save(figure, out / "transition.png")
            made = ["noise.json", "transition.png"]
            chosen, captions = examples(found, dataset)
            if chosen:
                images = data.train.images[chosen]
                contact_sheet(out / "sheet.png", images, captions, table.title)
                made.append("sheet.png")
            print()
            say(f"{out}: {', '.join(made)}")
            return 0

        return go

    def _table(self, dataset: Dataset, found: Corruption) -> Table:
        """Return the transition matrix, a row a true class, with both shares in its title."""
        from experiments.report.table import Table, short

        redrawn, wrong = (described(found)[name] for name in ("redrawn_share", "wrong_share"))
        told = "an unknown share" if wrong is None else f"{wrong:.1%}"
        kind, colon, argument = self.noise.partition(":")
        called = short(f"{kind}{colon}{Path(argument).name}")
        title = f"{called} at ratio {self.ratio:g} on {short(dataset.name)}: of "
        title += f"{len(found.labels):,} labels {redrawn:.1%} redrawn, {told} wrong"
        most = range(min(dataset.num_classes, MOST_CLASSES))
        rows = [
            (
                f"{k} {short(dataset.classes[k], 16)}",
                *(f"{found.transition[k, j]:.3f}" for j in most),
            )
            for k in most
        ]
        rest = dataset.num_classes - len(most)
        notes = [f"{rest} more classes stand in the figure and in noise.json"] * bool(rest)
        foreign = 0 if found.truth is None else int((found.truth < 0).sum())
        notes += [f"{foreign:,} samples are of none of the classes, and not in it"] * bool(foreign)
        first = "true class" if found.truth is not None else "label as given"
        return Table(title, (first, *map(str, most)), tuple(rows), 1, tuple(notes))


def described(found: Corruption) -> dict[str, object]:
    """Return what is saved of a corruption."""
    count = len(found.labels)
    wrong = None if found.wrong is None else found.wrong.nonzero().flatten()
    return {
        "redrawn_share": len(found.indices) / count,
        "wrong_share": None if wrong is None else len(wrong) / count,
        "indices": found.indices,
        "wrong_indices": wrong,
        "transition": found.transition,
        "hash": found.hash,
    }


def examples(found: Corruption, dataset: Dataset) -> tuple[list[int], list[str]]:
    """Return wrong samples, or redrawn ones where nobody knows, and their captions."""
    from experiments.report.sheet import MOST

    names = (*dataset.classes, "none of these")  # reached by -1
    some = found.indices if found.wrong is None else found.wrong.nonzero().flatten()
    count = min(MOST, len(some))
    chosen = [int(some[len(some) * place // count]) for place in range(count)]  # from all over
    captions = []
    for i in chosen:
        true = "unknown" if found.truth is None else names[int(found.truth[i])]
        captions.append(f"given {names[int(found.labels[i])]}\ntrue {true}")
    return chosen, captions
