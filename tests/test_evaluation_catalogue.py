"""One list of measures: what is evaluated, kept, shown and documented comes from it.

``python tests/test_evaluation_catalogue.py`` writes the list in docs/evaluation.md anew.
"""

from pathlib import Path

import pytest
import torch

from experiments.report.evaluation import evaluation_tables
from mcr2.evaluation import FAMILIES, MEASURES, Evaluation, Key, Labelled, Measure
from mcr2.evaluation import evaluate_features as measure

K, D = 3, 6
DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"
MARKS = "<!-- measures: from mcr2.evaluation.catalogue -->", "<!-- end of measures -->"


def as_markdown():
    """The measures as a table in Markdown, a family at a time."""
    lines = ["| measure | | by | better | history |", "|---|---|---|---|---|"]
    for family, title in FAMILIES.items():
        lines.append(f"| **{title}** | | | | |")
        for m in MEASURES.values():
            if m.family == family:
                title = m.title.replace("|", "\\|")
                cells = f"`{m.name}`", title, m.per, m.better or "", "yes" if m.history else ""
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def documented():
    """docs/evaluation.md with the list as the catalogue has it."""
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    return f"{before}{MARKS[0]}\n\n{as_markdown()}\n\n{MARKS[1]}{after}"


def evaluated(full=True):
    generator = torch.Generator().manual_seed(0)

    def split(n):
        y = torch.arange(n) % K
        return torch.randn(n, D, generator=generator) + 3 * torch.eye(K, D)[y], y

    H, clean = split(60)
    noisy = torch.where(torch.arange(60) % 5 == 0, (clean + 1) % K, clean)
    V, truth = split(20)
    head = torch.randn(K, D, generator=generator), None
    return measure(
        Labelled(H, noisy, clean),
        Labelled(*split(30)),
        Labelled(V, truth, truth),
        num_classes=K,
        head=head,
        readouts=("linear_svm",),
        full=full,
    )


def names_of(measures):
    return {Key.parse(key).measure for key in measures}


def shown(evaluation):
    """Names of measures that stand in a row or a column of the tables."""
    tables = evaluation_tables(evaluation.measures)
    return {row[0] for t in tables for row in t.rows} | {h.split()[0] for h in tables[0].header}


def test_the_docs_list_the_catalogue():
    command = "run python tests/test_evaluation_catalogue.py"
    assert DOCS.read_text(encoding="utf-8") == documented(), command


def test_an_evaluation_takes_the_measures_of_the_catalogue_and_a_history_its_own():
    assert names_of(evaluated().measures) == set(MEASURES)
    assert names_of(evaluated(full=False).measures) == {
        m.name for m in MEASURES.values() if m.history
    }
    assert {m.family for m in MEASURES.values()} == set(FAMILIES)
    assert set(MEASURES) <= shown(evaluated())


def test_a_key_has_the_parts_that_its_measure_says():
    linear = {"head", "ridge"}
    for key in map(Key.parse, evaluated().measures):
        per = MEASURES[key.measure].per
        assert (key.labels == "-") == (per == "features"), key
        assert (key.readout == "-") == (per in ("features", "classes")), key
        assert per != "classifier" or key.readout in linear


def width(view):
    return view.features.shape[1]


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize(
    "family, per, compute, readouts",
    [
        ("rank", "features", width, {"-"}),
        ("collapse", "classes", width, {"-"}),
        ("rates", "classes", width, {"-"}),
        ("margins", "classifier", lambda v: float(v.classifier.weight.norm()), {"head", "ridge"}),
        (
            "accuracy",
            "readout",
            lambda v: len(v.predictions),
            {"head", "ridge", "linear_svm", "ridge+clean", "linear_svm+clean"},
        ),
    ],
)
def test_a_measure_is_added_by_one_line(monkeypatch, family, per, compute, readouts, history):
    new = Measure("extra", "a measure of mine", family, per, history=history, compute=compute)
    monkeypatch.setitem(MEASURES, "extra", new)
    full, short = evaluated(), evaluated(full=False)
    taken = [Key.parse(key) for key in full.measures if key.endswith("/extra")]
    assert {key.readout for key in taken} == readouts
    assert {key.split for key in taken} >= {"train", "test"}
    assert all(full.measures[str(key)] is not None for key in taken)
    assert ("extra" in names_of(short.measures)) == history
    assert "extra" in shown(full)
    assert "`extra` | a measure of mine" in as_markdown()


def test_a_key_is_built_and_parsed_in_one_place():
    key = Key(split="test", labels="clean", readout="nearest_subspace@3", measure="accuracy")
    assert str(key) == f"{key}" == "features/test/clean/nearest_subspace@3/accuracy"
    assert Key.parse(str(key)) == key
    for text in ("accuracy", "a/b/c/d", "a/b/c/d/e/f", "features/train//-/nc1"):
        with pytest.raises(ValueError, match=r"not a key; a key is layer/split/labels/readout/me"):
            Key.parse(text)


def test_tables_keep_layers_apart():
    deep = evaluated().measures
    both = {**deep, **{str(Key.parse(k)._replace(layer="stage2")): 0.5 for k in deep}}
    tables = evaluation_tables(both)
    alone = evaluation_tables(deep)
    assert [t.title for t in tables] == [
        f"{layer}: {t.title}" for layer in ("features", "stage2") for t in alone
    ]
    assert [t.rows for t in tables[: len(alone)]] == [t.rows for t in alone]
    entries = {cell for t in tables[len(alone) :] for row in t.rows for cell in row[1:]}
    assert entries <= {"0.5000", "-"}


def test_a_default_readout_applies_where_one_does():
    values = {"features/train/noisy/-/nc1": 1, "features/train/noisy/head/nc3": 2}
    evaluation = Evaluation("head", {**values, "stage1/test/clean/ridge/accuracy": 3})
    assert evaluation.get("nc1", split="train", labels="noisy") == 1
    assert evaluation.get("nc3", split="train", labels="noisy") == 2
    assert evaluation.get("accuracy", split="test", labels="clean", layer="stage1") == 3


if __name__ == "__main__":
    DOCS.write_text(documented(), encoding="utf-8")
