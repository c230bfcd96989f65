"""What the documents say exists: commands parse, names and links lead somewhere, examples run."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from experiments.commands.cli import COMMANDS, find_command, main, parse
from experiments.runs.redunet import read_options
from experiments.studies.engine import GridStudy, one_spec
from mcr2.records import load_run, load_study

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}


def commands():
    """Every command of a page, on a line of its own or within a sentence."""
    for page, text in TEXTS.items():
        lines = re.findall(r"^    (mcr2 (?!fails)(?:[a-z]|--)(?:.* \\\n)*.*)", text, re.MULTILINE)
        inline = re.findall(r"`(mcr2\s[^`…]*)`", text)
        for line in dict.fromkeys([*lines, *inline]):
            line = line.replace("\\\n", " ")
            yield page, shlex.split(line, comments=line in lines)[1:]


@pytest.mark.parametrize(
    "page, arguments", [pytest.param(p, a, id=f"{p}: {' '.join(a)}") for p, a in commands()]
)
def test_a_command_and_its_settings_are_understood(page, arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    if len(arguments) == 1 or arguments[0].startswith("--"):
        assert arguments[0] in (*COMMANDS, "--version", "--install-completion")
        return
    command = parse(arguments)
    if isinstance(command, GridStudy):
        assert command.specs()
    elif isinstance(command, find_command("train")):
        one_spec(command, command.method, command.ratio, command.seed)
    elif isinstance(command, find_command("redunet")):
        read_options(one_spec(command, "redunet", command.ratio, command.seed))


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(((?!https:)[^)\s]+)\)", TEXTS[page]):
        target, _, heading = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        titles = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE) if heading else ()
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert heading in anchors or not heading, link


@pytest.mark.parametrize("page", TEXTS)
def test_names_and_files_exist(page):
    for name in re.findall(r"`((?:mcr2|ce_baseline|experiments)(?:\.\w+)+)", TEXTS[page]):
        found, parts = importlib.import_module(name.split(".")[0]), name.split(".")[1:]
        for end, part in enumerate(parts, start=1):
            if not hasattr(found, part):
                importlib.import_module(".".join(name.split(".")[: end + 1]))
            found = getattr(found, part)
    for name in re.findall(r"`((?:mcr2|ce_baseline|experiments|tests)/[\w/.]*)`", TEXTS[page]):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", TEXTS)
def test_python_imports_what_there_is(page):
    for block in re.findall(r"^ *```python\n(.*?)^ *```", TEXTS[page], re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                assert hasattr(importlib.import_module(node.module), alias.name), alias.name


@pytest.mark.parametrize(
    "page, file",
    [
        ("README.md", "my_loss.py"),
        ("docs/extending.md", "my_study.py"),
        ("docs/cluster.md", "my_executor.py"),
    ],
)
def test_an_example_stands_in_its_page_as_it_is(page, file):
    code = (ROOT / "docs" / file).read_text()
    blocks = re.findall(r"```python\n(.*?)```", TEXTS[page], re.DOTALL)
    assert any(block in code for block in blocks)


def test_a_study_a_loss_and_a_backbone_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    out, loss, net = tmp_path / "out", "docs/my_loss.py:MyLoss", "docs/my_backbone.py:Net"
    settings = ["--set", f"backbone={net}", "measured_layers=conv1+conv2"]
    command = ["study", "docs/my_study.py:MyStudy", "--methods", "ce", loss, "--sizes", "60"]
    assert main([*command, "--epochs", "1", "--out", str(out), *settings]) == 0
    printed = capsys.readouterr().out
    assert "Test accuracy by number of training images (one seed: no interval)" in printed
    assert {path.name for path in out.glob("*.png")} == {"stopping.png", "participation.png"}

    runs = [load_run(folder) for folder in (out / "runs").iterdir()]
    found = {(run.record.spec["method"], run.record.spec["subset"]) for run in runs}
    assert found == {("ce", 60), (loss, 60)}
    assert all(run.evaluation.layers == ["conv1", "conv2"] for run in runs)
    study = load_study(out)
    query = "measure == 'accuracy' and split == 'test' and readout == 'ridge' and layer == 'conv2'"
    assert len(study.evaluations.query(query)) == 2 * 5  # runs, selection rules

    assert main(["reread", str(out), "--layers", "project"]) == 1
    assert "name it (--code" in capsys.readouterr().out
    assert main(["reread", str(out), "--layers", "project", "--code", loss, net]) == 0
