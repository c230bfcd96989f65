"""What the documents say exists: commands parse, names and links lead somewhere, examples run."""

import ast
import doctest
import importlib
import inspect
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import mcr2
from experiments.commands.cli import COMMANDS, find_command, main, parse
from experiments.runs.redunet import read_options
from experiments.studies.engine import GridStudy, one_spec
from mcr2.records import load_run, load_study

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *DOCS.glob("notebooks/*.py")]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
for page in [page for page in TEXTS if page.endswith(".py")]:  # prose stands in its comments
    TEXTS[page] = re.sub(r"^# ?", "", TEXTS[page], flags=re.MULTILINE)


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


@pytest.mark.parametrize("page", [page for page in TEXTS if "```pycon" in TEXTS[page]])
def test_examples_print_what_they_say(page):
    blocks = re.findall(r"```pycon\n(.*?)```", TEXTS[page], re.DOTALL)
    for block in blocks:
        example = doctest.DocTestParser().get_doctest(block, {}, page, page, 0)
        assert doctest.DocTestRunner().run(example).failed == 0
    assert blocks


def public_modules():
    """The modules of the library that are for its users, by name."""
    families = [f"mcr2.metrics.{name}" for name in mcr2.metrics.__all__]
    return [*(f"mcr2.{name}" for name in mcr2._MODULES), *families, "ce_baseline"]


def test_every_public_module_has_its_place_in_the_api():
    text = "".join(page.read_text() for page in sorted(DOCS.glob("api/*.md")))
    assert set(public_modules()) <= set(re.findall(r"^::: (\S+)", text, re.MULTILINE))
    main = re.findall(r"\[`mcr2\.(\w+)`\]\[mcr2\.([\w.]+)\.\1\]", TEXTS["docs/api/README.md"])
    assert dict(main) == mcr2._NAMES


def public_names():
    """Every public name of a public module, in full."""
    for module in map(importlib.import_module, public_modules()):
        defined = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and inspect.getmodule(value) is module
        ]
        for name in getattr(module, "__all__", defined):
            if not inspect.ismodule(getattr(module, name)):
                yield f"{module.__name__}.{name}"


def build_site(place, *, execute):
    """Build the site strictly, so that a broken link ends it, and return its pages by name."""
    environment = {"PYTHONPATH": str(ROOT), "DOCS_EXECUTE": str(execute).lower()}
    outcome = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", place],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stderr
    return {str(path.relative_to(place)): path.read_text() for path in place.rglob("*.html")}


def test_the_site_has_every_name_and_figure_and_loads_nothing_from_elsewhere(tmp_path):
    pages = build_site(tmp_path, execute=False)
    places = set(re.findall(r'id="((?:mcr2|ce_baseline)\.[\w.]+)"', "".join(pages.values())))
    assert set(public_names()) <= places
    figures = set(re.findall(r'src="([^"]*\.png)"', pages["gallery.html"]))
    assert figures == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.png")}
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//")
    for page, text in pages.items():
        assert not loaded.search(text), page
        assert not re.search(r":(?:class|func|mod|data|meth):", text), page


@pytest.mark.slow
def test_notebooks_run_and_show_their_figures(tmp_path):
    pages = build_site(tmp_path, execute=True)
    for script in DOCS.glob("notebooks/*.py"):
        page = pages[f"notebooks/{script.stem}.html"]
        assert page.count("<img") == len(re.findall("plt.subplots|held.figure", script.read_text()))
        assert str(Path.home()) not in page
        assert str(ROOT) not in page


def test_figures_of_explanations_show_what_their_pages_say():
    explain = runpy.run_path(str(DOCS / "explain.py"))
    curves = {
        line.get_label(): line.get_ydata() for line in explain["draw_reduction"]().axes[2].lines
    }
    assert max(curves["ΔR"]) == curves["ΔR"][18]  # orthogonal, in steps of 5 degrees
    assert curves["R_c"] == pytest.approx(curves["R_c"][0], rel=0.01)
    measures = {
        line.get_label(): line.get_ydata() for line in explain["draw_collapse"]().axes[2].lines
    }
    assert measures["nc1"][12] / measures["nc1"][-1] == pytest.approx(100, rel=0.1)  # of spread, 10
    rates = [axes.get_title().split()[-2] for axes in explain["draw_rate"]().axes]
    assert sorted(rates) == rates
