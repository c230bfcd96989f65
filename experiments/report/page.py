"""A study's results as one page: ``report.html``, which opens from disk and asks for nothing.

All of it is in the file: figures and matrices as images, the style, and a script of ours that sorts
and filters. Anybody's text (names of classes, methods, data sets) is text: the template escapes it,
and the page's own policy runs no other script and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report.figures import FIGURES, Drawing, curve, draw_all
from experiments.report.held import HeldStudy
from experiments.report.results import value_text
from experiments.report.table import Table, count_of, entry, short
from experiments.runs.terminal import visible
from mcr2.evaluation import measure_key
from mcr2.records import Run, read_json, write_text

#: Keys that rows are filtered by, and columns that hold them.
FILTERS = {"method": ("method", "methods"), "selection": ("selection",), "readout": ("readout",)}

#: Bytes of matrices of cosines, and of contact sheets; what comes later is left out.
MOST_MATRICES, MOST_SHEETS = 1_000_000, 2_000_000

#: Runs that have a part of the page.
MOST_RUNS = 200

#: Classes of a transition matrix that is shown.
MOST_CLASSES = 20

#: Columns of an audit's tables.
AUDITED = ("wrong", "share", "auroc", "average_precision", "precision_at_count")

View = dict[str, Any]


def write_page(
    path: Path,
    studies: Sequence[HeldStudy],
    figures: Sequence[Mapping[str, Drawing]] | None = None,
    audits: Sequence[View] = (),
) -> None:
    """Write a page of studies, beside each other where there are several, and of audits.

    Args:
        path: the file.
        studies: what it shows.
        figures: of each study by name; None draws them again.
        audits: what :func:`read_audit` reads.
    """
    drawn = [_draw(study) for study in studies] if figures is None else figures
    write_text(path, render(studies, drawn, audits))


def render(
    studies: Sequence[HeldStudy],
    figures: Sequence[Mapping[str, Drawing]],
    audits: Sequence[View] = (),
) -> str:
    """Return the page as text, see :func:`write_page`."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    page, style, script = (
        Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css", "js")
    )
    names = _names(studies)
    budget = [MOST_MATRICES]
    views = [
        _study(number, name, study, budget)
        for number, (name, study) in enumerate(zip(names, studies, strict=True))
    ]
    tables = _tables(studies, names)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = [("conclusion", "Conclusion"), ("tables", "Tables"), ("figures", "Figures")]
    parts += [("noise", "Noise"), ("runs", "Runs")]
    found = Environment(autoescape=True, undefined=StrictUndefined).from_string(page)
    return found.render(
        title=" and ".join([*names, *(audit["name"] for audit in audits)]),
        parts=parts * bool(views)
        + [("audit", "Audit")] * bool(audits)
        + [("provenance", "Where this comes from")],
        style=Markup(style),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        studies=views,
        tables=tables,
        filters=_choices(tables),
        figures=_figures(figures, names),
        audits=audits,
        left_out=_left_out(studies, budget[0]),
    )


def _draw(study: HeldStudy) -> dict[str, Drawing]:
    """Draw a study's figures again; one of its own that only its code can draw is read as PNG."""
    names = [name for name in study.facts.get("figures", ()) if name in FIGURES]
    drawn = draw_all(study.results, names)
    for name in study.facts.get("figures", ()):
        path = study.folder / f"{name}.png"
        if name not in FIGURES and Path(name).name == name and path.is_file():
            drawn[name] = Drawing(path.read_bytes(), "image/png", name.replace("_", " "))
    return drawn


def _names(studies: Sequence[HeldStudy]) -> list[str]:
    """Return what studies are called, with their folders where they are several."""
    names = []
    for study in studies:
        facts = study.facts
        name = f"{facts.get('study', 'study')} on {short(study.results.dataset)}".replace("_", " ")
        folder = short(str(study.folder), 60)
        names.append(f"{name}, {folder}" if len(studies) > 1 else name)
    return names


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# --- tables


def _table(id: str, table: Table, *, sortable: bool = True, study: str = "") -> View:
    columns = {
        key: [i for i, name in enumerate(table.header) if name in names]
        for key, names in FILTERS.items()
    }

    def filters(row: Sequence[str]) -> dict[str, list[str]]:
        found = {key: [row[i] for i in places] for key, places in columns.items() if places}
        if "methods" in table.header:  # a difference is of both
            found["method"] = found["method"][0].split(" - ")
        return found

    rows = [
        {
            "entries": list(map(visible, row)),
            "filters": json.dumps(filters(row)) if any(columns.values()) else "",
        }
        for row in table.rows
    ]
    return {
        "id": id,
        "title": visible(table.title),
        "header": list(map(visible, table.header)),
        "rows": rows,
        "left": table.left,
        "notes": list(map(visible, table.notes)),
        "sortable": sortable and bool(rows),
        "study": study,
    }


def _tables(studies: Sequence[HeldStudy], names: Sequence[str]) -> list[list[View]]:
    """Return tables by name, those of all studies beside each other."""
    kinds = dict.fromkeys(chain(*(study.tables for study in studies)))
    return [
        [
            _table(f"table-{i}-{kind}", study.tables[kind], study=name if len(studies) > 1 else "")
            for i, (study, name) in enumerate(zip(studies, names, strict=True))
            if kind in study.tables
        ]
        for kind in kinds
    ]


def _choices(tables: Sequence[Sequence[View]]) -> dict[str, list[str]]:
    """Return the values of each filter that rows have."""
    found: dict[str, dict[str, None]] = {key: {} for key in FILTERS}
    for one in chain(*tables):
        for row in one["rows"]:
            for key, values in json.loads(row["filters"] or "{}").items():
                found[key] |= dict.fromkeys(values)
    return {key: list(values) for key, values in found.items() if len(values) > 1}


def _figures(figures: Sequence[Mapping[str, Drawing]], names: Sequence[str]) -> list[list[View]]:
    kinds = dict.fromkeys(chain(*figures))
    return [
        [
            {
                "source": _data_uri(by[kind].content, by[kind].type),
                "alt": (f"{name}: " if len(names) > 1 else "") + by[kind].about,
            }
            for by, name in zip(figures, names, strict=True)
            if kind in by
        ]
        for kind in kinds
    ]


# --- a study: noise, runs, provenance


def _study(number: int, name: str, study: HeldStudy, budget: list[int]) -> View:
    facts, runs = study.facts, study.results.runs
    rows = {row["run"]: row for row in study.results.rows}
    settings = [
        [
            f"{axis.name} {value_text(rows[run.folder.name][axis.name])}"
            for axis in study.results.axes
            if run.folder.name in rows
        ]
        for run in runs[:MOST_RUNS]
    ]
    return {
        "name": name,
        "conclusion": list(map(str, facts.get("conclusion", ()))),
        "notes": list(map(visible, study.notes)),
        "command": visible(str(facts.get("command") or "")),
        "environment": _pairs(facts.get("environment", {})),
        "noise": _table(f"noise-{number}", _noise(runs), sortable=True),
        "transitions": [
            _table(f"transition-{number}-{i}", table, sortable=False)
            for i, table in enumerate(_transitions(runs))
        ],
        "runs": [
            _run(f"run-{number}-{i}", told, run, budget)
            for i, (told, run) in enumerate(zip(settings, runs, strict=False))
        ],
    }


def _left_out(studies: Sequence[HeldStudy], budget: int) -> str:
    """Return what the page leaves out to stay small."""
    more = sum(max(0, len(study.results.runs) - MOST_RUNS) for study in studies)
    told = [f"{count_of(more, 'further run')}"] * bool(more)
    told += ["matrices of cosines of some runs"] * (budget <= 0)
    return f"Left out, to keep this page small: {', '.join(told)}." if told else ""


def _noise(runs: Sequence[Run]) -> Table:
    """Return both shares of every corruption: of labels redrawn, and of labels that are wrong."""
    rows: dict[str, tuple[str, ...]] = {}
    for run in runs:
        noise, data, spec = run.record.noise, run.record.data, run.record.spec
        total = sum(data.get(split) or 0 for split in ("train", "validation"))

        def share(count: Any, total: int = total) -> str:
            return "unknown" if count is None or not total else f"{count / total:.3f}"

        redrawn, wrong = noise.get("redrawn"), noise.get("wrong")
        line = (
            str(noise.get("kind", "-")),
            f"{spec['ratio']:g}",
            str(spec["seed"]),
            entry(redrawn),
            share(redrawn),
            entry(wrong),
            share(wrong),
        )
        rows.setdefault(json.dumps([run.record.proof.get("labels"), *line]), line)
    header = ("kind", "ratio", "seed", "redrawn", "share redrawn", "wrong", "share wrong")
    title = "Training labels that were redrawn, and that differ from the true ones"
    return Table(title, header, tuple(rows.values()), left=3)


def _transitions(runs: Sequence[Run]) -> list[Table]:
    """Return what became of each class at each ratio, of the first seed: true class -> label."""
    found: dict[tuple[str, str], Table] = {}
    for run in sorted(runs, key=lambda run: run.record.spec["ratio"]):
        noise, classes = run.record.noise, run.record.data.get("classes") or []
        matrix, key = (
            noise.get("transition"),
            (str(noise.get("kind")), f"{run.record.spec['ratio']:g}"),
        )
        if not matrix or key in found or len(matrix) > MOST_CLASSES or not run.record.spec["ratio"]:
            continue
        names = [short(str(name), 20) for name in classes]
        names += [f"row {i}" for i in range(len(names), max(len(matrix), len(matrix[0])))]
        rows = tuple(
            (name, *("-" if value is None else f"{value:.2f}" for value in row))
            for name, row in zip(names, matrix, strict=False)
        )
        title = f"{key[0]} noise at ratio {key[1]}, seed {run.record.spec['seed']}: share of a "
        header = ("true class", *names[: len(matrix[0])])
        found[key] = Table(title + "true class (rows) with each label (columns)", header, rows, 1)
    return list(found.values())


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return entries by dotted names, those of lists of mappings numbered from 0."""
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        value = dict(enumerate(value[:20]))
    if isinstance(value, Mapping):
        return list(
            chain(*(_flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in value.items()))
        )
    return [(prefix, value)]


def _pairs(value: Any) -> list[tuple[str, str]]:
    """Return a mapping's entries, nested ones by dotted names, as text."""

    def text(held: Any) -> str:
        if isinstance(held, float):
            return f"{held:.6g}"
        if isinstance(held, (list, tuple)):
            return ", ".join(map(str, held[:20])) + (" …" if len(held) > 20 else "") or "-"
        return "-" if held is None else str(held)

    return [(visible(name), short(text(held), 200)) for name, held in _flat(value)]


def _run(id: str, settings: Sequence[str], run: Run, budget: list[int]) -> View:
    record, evaluation = run.record, run.evaluation
    spec = record.spec
    chosen = evaluation.selections.get("last", {}) if evaluation else {}
    key = measure_key("accuracy", split="test", labels="clean", readout=record.readout)
    reached = chosen.get("measures", {}).get(key)
    told = record.reason or f"test accuracy {entry(reached)} by {record.readout}"
    profiles = chosen.get("profiles", {})
    terminal = evaluation.terminal_epoch if evaluation else None
    made = {
        "epochs": record.epochs,
        "steps": record.steps,
        "seconds": round(record.wall_seconds, 1),
        "terminal phase from epoch": terminal if terminal is not None else "not reached",
        "folder": run.folder.name,
    }
    data = {name: value for name, value in record.data.items() if name != "classes"}
    return {
        "id": id,
        "name": short(", ".join([str(spec["method"]), *settings, f"seed {spec['seed']}"]), 120),
        "told": visible(told),
        "charts": _charts(run, profiles),
        "cosines": _cosines(profiles, budget),
        "pairs": {
            "Run": _pairs(made),
            "Proofs: what two runs with the same digest share": _pairs(record.proof),
            "Seeds": _pairs(record.seeds),
            "Spec": _pairs({**spec, "options": dict(spec["options"])}),
            "Data": _pairs(data),
            "Notes": _pairs({str(i): n for i, n in enumerate(chosen.get("notes", ()), start=1)}),
        },
    }


def _charts(run: Run, profiles: Mapping[str, Any]) -> list[View]:
    """Return a run's curves along training, and its spectra at the last epoch."""
    by = run.record.readout
    shares = {
        "test accuracy": curve([run], "accuracy", "test", by),
        "fit_noisy": curve([run], "fit_noisy", "train", by),
        "fit_corrupted": curve([run], "fit_corrupted", "train", by),
    }
    history = run.record.history
    losses = [(e["epoch"], e["loss"]) for e in history if isinstance(e.get("loss"), float)]
    spectra = {}
    for split, labels in (("train", "noisy"), ("test", "clean")):
        of_all = profiles.get(measure_key("spectrum", split=split, labels="-"))
        of_each = profiles.get(measure_key("class_spectra", split=split, labels=labels))
        spectra[split] = _decades(of_all)
        if of_each:
            spectra[f"{split}, a class"] = _decades(np.array(of_each, float).mean(axis=0).tolist())
    charts = [
        _chart(
            f"By {by} along training",
            {name: [(p.x, p.mean) for p in points] for name, points in shares.items()},
            "epoch",
            span=(0.0, 1.0),
        ),
        _chart("Loss along training", {"loss": losses}, "epoch"),
        _chart(
            "Spectrum at the last epoch, log10 of the share of energy",
            spectra,
            "component",
            span=(-6.0, 0.0),
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _decades(values: Sequence[float] | None) -> list[tuple[int, float]]:
    """Return a spectrum's logarithms by component, down to a millionth."""
    numbered = enumerate(values or (), start=1)
    return [(i, math.log10(v)) for i, v in numbered if v is not None and v > 1e-6]


def _chart(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    span: tuple[float, float] | None = None,
) -> View | None:
    """Return a small chart's lines in its 300 × 150 units; None of nothing to draw."""
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    xs, ys = zip(*chain(*lines.values()), strict=True)
    low, high = span or (min(ys), max(ys))
    wide, tall = (max(xs) - min(xs)) or 1, (high - low) or 1

    def place(x: float, y: float) -> str:
        return f"{58 + 234 * (x - min(xs)) / wide:.1f},{122 - 112 * (y - low) / tall:.1f}"

    ends = ", ".join(f"{name} ends at {points[-1][1]:.3g}" for name, points in lines.items())
    return {
        "title": title,
        "about": f"{title}: {ends}",
        "lines": [
            {"name": name, "points": " ".join(place(*point) for point in points)}
            for name, points in lines.items()
        ],
        "top": f"{high:.3g}",
        "bottom": f"{low:.3g}",
        "first": f"{min(xs):g}",
        "last": f"{max(xs):g}",
        "xlabel": xlabel,
    }


def _cosines(profiles: Mapping[str, Any], budget: list[int]) -> str:
    """Return a run's matrix of |cosine| as an image, nothing where it has none or room is spent."""
    from PIL import Image

    held = profiles.get(measure_key("abs_cosine", split="test", labels="clean"))
    if not held or budget[0] <= 0:
        return ""
    matrix = np.nan_to_num(np.array(held, dtype=float))
    buffer = io.BytesIO()
    Image.fromarray((255 * (1 - matrix.clip(0, 1))).astype(np.uint8) // 16 * 17).save(
        buffer, "PNG", optimize=True
    )
    budget[0] -= len(buffer.getvalue())
    return _data_uri(buffer.getvalue(), "image/png")


# --- audits


def read_audit(number: int, folder: Path) -> View:
    """Return what an audit found, and its contact sheets as far as there is room.

    Args:
        number: of the audit on its page.
        folder: where its ``audit.json`` is.

    Raises:
        ValueError: the file is damaged.
    """
    held = read_json(folder / "audit.json")
    if not isinstance(held, dict):
        raise ValueError(f"{folder / 'audit.json'} is damaged: it is not an object")
    environment, options = held.pop("environment", {}), held.pop("options", {})
    held.pop("columns", None)  # they are of audit.csv
    try:
        tables = _audit_tables(held)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{folder / 'audit.json'} is damaged: {error}") from None
    budget, sheets, left_out = MOST_SHEETS, [], []
    paths = [folder / "suggestions.png", *sorted(folder.glob("sheet-*.png"), key=_page)]
    for path in filter(Path.is_file, paths):
        if path.stat().st_size > budget:
            left_out.append(f"{path.name} is left out, to keep this page small")
            continue
        content = path.read_bytes()
        budget -= len(content)
        about = "How many samples of each label are suggested each other label"
        if path.name != "suggestions.png":
            about = f"Contact sheet {_page(path)[1]}: the most suspicious labels first"
        sheets.append({"source": _data_uri(content, "image/png"), "alt": about})
    pairs = [(k, v) for k, v in _flat(held) if not (isinstance(v, list) and _nested(v))]
    return {
        "name": f"Audit {short(str(folder), 60)}",
        "tables": [_table(f"audit-{number}-{i}", table) for i, table in enumerate(tables)],
        "options": _pairs(options),
        "pairs": _pairs(dict(pairs)),
        "sheets": sheets,
        "left_out": left_out,
        "environment": _pairs(environment),
    }


def _audit_tables(held: dict[str, Any]) -> list[Table]:
    """Take out of what an audit found what is told of several things alike, as tables."""
    truth, estimates = held.get("truth") or {}, held.pop("estimates", ())
    by_class = zip(held.get("classes", ()), truth.pop("by_given_label", ()), strict=False)
    named: list[tuple[str, str, list[tuple[Any, Mapping[str, Any]]]]] = [
        (
            "How many labels are wrong: estimates",
            "method",
            [(e.get("method"), e) for e in estimates],
        ),
        ("How well the wrong labels are found", "score", list(truth.pop("quality", {}).items())),
        ("How well they are found by given label", "given label", list(by_class)),
    ]
    tables = []
    for title, what, part in named:
        keys = [k for k in AUDITED if part and k in part[0][1]]
        rows = ((short(str(name)), *(entry(each.get(key)) for key in keys)) for name, each in part)
        tables.append(Table(title, (what, *keys), tuple(rows), left=1))
    return [table for table in tables if table.rows]


def _nested(value: list[Any]) -> bool:
    return any(isinstance(each, list) for each in value)


def _page(path: Path) -> tuple[int, str]:
    """Return the number of a contact sheet, to sort by and to say."""
    number = path.stem.rpartition("-")[2]
    return (int(number), number) if number.isdecimal() else (0, number)
