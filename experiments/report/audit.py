"""What an audit leaves: ``audit.csv``, ``audit.json``, contact sheets, a figure of suggestions.

Names of classes may be anybody's text. In the table of samples a cell that a spreadsheet would take
for a formula begins with an apostrophe, and control characters are written out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.report import canvas, sheet
from experiments.report.table import Table, entry, short
from experiments.runs.terminal import visible
from mcr2.audit import Audit, NoiseEstimate, Quality, quality, quality_by_class, transition_error
from mcr2.audit.unknown import realised
from mcr2.records import environment, write_json, write_text

#: Columns of ``audit.csv`` and what they hold: of true labels where they are known, of files where
#: there is one a sample.
COLUMNS = {
    "index": "place of the sample in the data, from 0; the most suspicious come first",
    "given_label": "the label as given",
    "suggested_label": "the class that fits best: the given one where that does",
    "label_score": "as cleanlab's: between 0 and 1, small where the label looks wrong",
    "is_label_issue": "whether another label is suggested",
    "predicted_label": "the suggested label, by cleanlab's name",
    "score": "as the score has it, in its own units: large where the label looks wrong",
    "true_label": "the true label, nothing where it is none of the classes",
    "is_wrong": "whether the given label differs from it",
    "file": "path of the image below its folder",
}

#: Beyond so many classes, the figure has neither numbers nor names.
MOST_NAMED = 20


@dataclass(frozen=True, eq=False)
class Findings:
    """An audit with all that is told of it.

    Args:
        audit: the one that is asked for.
        classes: names of the K classes.
        true: the true labels ``(N,)`` where they are known, or None.
        estimates: of the noise.
        others: audits by other scores, by name, to stand beside it; they may be none.
        files: where each image lies in its folder, or None.
    """

    audit: Audit
    classes: Sequence[str]
    true: Tensor | None
    estimates: Sequence[NoiseEstimate]
    others: Mapping[str, Audit]
    files: Sequence[str] | None = None

    @property
    def all(self) -> dict[str, Audit]:
        """The audit and those beside it, by score."""
        return {self.audit.score: self.audit} | dict(self.others)

    def realised(self) -> NoiseEstimate | None:
        """Return the noise as it is, where the truth is known."""
        if self.true is None:
            return None
        return realised(self.audit.labels.cpu(), self.true, self.audit.num_classes)


def cell(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula.

    Example:
        >>> cell("=1+1"), cell("cat"), cell("a\\nb")
        ("'=1+1", 'cat', 'a\\\\nb')
    """
    text = visible(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") and text.strip() else text


def write_samples(path: Path, found: Findings) -> None:
    """Write ``audit.csv``, a row a sample, the most suspicious first."""
    audit, names = found.audit, [cell(name) for name in found.classes]
    y, suggested = audit.labels.tolist(), audit.suggested.tolist()
    low, scores = audit.label_score.tolist(), audit.scores.tolist()
    true = None if found.true is None else found.true.tolist()
    files = found.files
    left_out = [*([] if true else ["true_label", "is_wrong"]), *([] if files else ["file"])]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([name for name in COLUMNS if name not in left_out])
    for i in audit.ranking.tolist():
        given, guess = names[y[i]], names[suggested[i]]
        row = [i, given, guess, repr(low[i]), y[i] != suggested[i], guess, repr(scores[i])]
        if true is not None:
            row += [names[true[i]] if true[i] >= 0 else "", true[i] != y[i]]
        if files is not None:
            row.append(cell(files[i]))
        writer.writerow(row)
    write_text(path, buffer.getvalue().encode("utf-8", "backslashreplace").decode())


def tables(found: Findings) -> list[Table]:
    """Return what is told of an audit: estimates, and where the truth is known how good it is."""
    audit, true, actual = found.audit, found.true, found.realised()
    known = () if actual is None else (actual,)
    header = ("method", "wrong", "share", *("transition off by" for _ in known))
    rows = [
        (
            each.method,
            str(each.wrong),
            entry(each.wrong / len(audit.labels)),
            *(entry(transition_error(each.transition, truth.transition)) for truth in known),
        )
        for each in (*found.estimates, *known)
    ]
    made = [Table("How many labels are wrong: estimates", header, tuple(rows), left=1)]
    y = audit.labels.cpu()
    if true is not None:
        by_score = [(name, quality(one.scores, y, true)) for name, one in found.all.items()]
        made.append(_qualities("How well the wrong labels are found", by_score))
        if audit.num_classes <= MOST_NAMED:
            each = quality_by_class(audit.scores, y, true, num_classes=audit.num_classes)
            by_class = list(zip(map(short, found.classes), each, strict=True))
            made.append(_qualities(f"By given label, {audit.score}", by_class))
    elif found.others:
        first = _first(audit)
        shared = {name: len(first & _first(other)) for name, other in found.others.items()}
        lines = tuple((name, entry(count / len(first))) for name, count in shared.items())
        title = f"Shared of the {len(first)} most suspicious by {audit.score}"
        made.append(Table(title, ("score", "shared"), lines, left=1))
    return made


def _first(audit: Audit) -> set[int]:
    """Return the samples of the most suspicious twentieth."""
    return set(audit.ranking[: max(1, len(audit.labels) // 20)].tolist())


def _qualities(title: str, rows: Sequence[tuple[str, Quality]]) -> Table:
    header = ("", "wrong", "AUROC", "average precision", "precision at count")
    lines = (tuple(map(entry, (name, *asdict(one).values()))) for name, one in rows)
    return Table(title, header, tuple(lines), left=1)


def facts(found: Findings) -> dict[str, Any]:
    """Return what ``audit.json`` says of an audit beside where it comes from."""
    audit, actual = found.audit, found.realised()
    content: dict[str, Any] = {
        "score": audit.score,
        "samples": len(audit.labels),
        "classes": list(found.classes),
        "label_issues": int(audit.is_label_issue.sum()),
        "estimates": [vars(e) | {"share": e.wrong / len(audit.labels)} for e in found.estimates],
        "columns": COLUMNS,
        "truth": None,
    }
    if actual is not None and found.true is not None:
        y, true, K = audit.labels.cpu(), found.true, audit.num_classes
        by_class = quality_by_class(audit.scores, y, true, num_classes=K)
        content["truth"] = {
            "wrong": actual.wrong,
            "transition": actual.transition,
            "quality": {n: asdict(quality(a.scores, y, true)) for n, a in found.all.items()},
            "by_given_label": [asdict(one) for one in by_class],
        }
    return content


def draw_suggestions(path: Path, found: Findings, title: str) -> None:
    """Draw how many samples of each given label are suggested each other label."""
    audit, K = found.audit, found.audit.num_classes
    pairs = torch.bincount(audit.labels * K + audit.suggested, minlength=K**2).view(K, K)
    counts = pairs.cpu().numpy().astype(float)
    kept = counts.diagonal().copy()
    np.fill_diagonal(counts, np.nan)
    named = K <= MOST_NAMED
    side = 3.5 + 0.42 * (K if named else MOST_NAMED)
    figure, ((panel,),) = canvas.panels(1, 1, side + 1, side)
    panel.grid(False)
    most = max(1.0, float(np.nan_to_num(counts).max()))
    image = panel.imshow(counts, cmap="Blues", vmin=0, vmax=most)
    figure.colorbar(image, ax=panel, label="samples", shrink=0.8)
    panel.set(xlabel="suggested label", ylabel="given label")
    panel.set_title(canvas.label(title, 60))
    if named:
        names = [canvas.label(name, 16) for name in found.classes]
        panel.set_xticks(range(K), names, rotation=90)
        panel.set_yticks(range(K), names)
        for i in range(K):
            for j in range(K):
                value = kept[i] if i == j else counts[i, j]
                if value:
                    colour = "0.6" if i == j else "white" if value > 0.6 * most else "black"
                    panel.text(j, i, f"{value:.0f}", ha="center", va="center", size=8, color=colour)
    canvas.save(figure, path)


def draw_sheets(out: Path, found: Findings, images: Tensor, pages: int, title: str) -> list[str]:
    """Write the most suspicious images, their given and suggested labels and scores, by page."""
    audit, written = found.audit, []
    first = audit.ranking[: pages * sheet.MOST].cpu()
    for number, part in enumerate(torch.split(first, sheet.MOST), start=1):
        captions = [
            f"{short(found.classes[y], 11)} → {short(found.classes[guess], 11)}\n{score:.3g}"
            for y, guess, score in zip(
                audit.labels[part].tolist(),
                audit.suggested[part].tolist(),
                audit.scores[part].tolist(),
                strict=True,
            )
        ]
        name = f"sheet-{number}.png"
        heading = f"{title}: given → suggested label, {audit.score}, page {number}"
        sheet.contact_sheet(out / name, images[part], captions, heading)
        written.append(name)
    return written


def leave(
    out: Path, found: Findings, about: Mapping[str, Any], images: Tensor | None, pages: int
) -> list[str]:
    """Write everything into a folder, and return the names of the files."""
    name = str(about["data"])
    write_samples(out / "audit.csv", found)
    draw_suggestions(out / "suggestions.png", found, f"{name}: suggested labels")
    written = ["audit.csv", "suggestions.png"]
    if images is not None and images.shape[1] in (1, 3) and pages:
        written += draw_sheets(out, found, images, pages, name)
    write_json(out / "audit.json", {**about, **facts(found), "environment": environment()})
    return ["audit.json", *written]
