"""What a notebook can do: run a spec or a class of its own, open its network, draw a study."""

import io
import json
import linecache
import re
import shutil
import signal
import sys
import types
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import experiments
import mcr2
from experiments.commands.cli import main, parse
from experiments.notebook import LoadedRun
from experiments.report.live import training_bar
from experiments.runs import runner
from experiments.runs.specs import as_dict
from experiments.studies.engine import one_spec
from mcr2.objectives import RateReduction
from mcr2.training import Progress

DOCS = Path(__file__).parent.parent / "docs"
SMALL = {"subset": 100, "epochs": 1, "evaluate_every": 1}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A small study of two methods."""
    out = tmp_path_factory.mktemp("studies") / "small"
    command = "table --methods ce mcr2 --ratios 0.5 --seeds 0 --epochs 1 --subset 100 --out"
    assert main([*command.split(), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return experiments.run("mcr2", ratio=0.4, out=tmp_path_factory.mktemp("runs") / "a", **SMALL)


@pytest.fixture
def trained(monkeypatch):
    """The folders of the runs that were not there already."""
    folders, run = [], runner.run

    def noted(spec, folder, *others, **named):
        folders.append(Path(folder))
        return run(spec, folder, *others, **named)

    monkeypatch.setattr(runner, "run", noted)
    return folders


# --- run


def test_keywords_are_those_of_set_wherever_they_belong(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = (
        "lr=1 milestones=3+5 eps_sq=1 classes=0+3+7 streams.noise=10 shuffle=false width=none"
    )
    command = [
        "train",
        "--method",
        "vmcr2",
        "--ratio",
        "0.5",
        "--seed",
        "2",
        "--noise",
        "pair_flip",
    ]
    options = parse([*command, "--subset", "100", "--epochs", "3", "--set", *settings.split()])
    wanted = one_spec(options, options.method, options.ratio, options.seed)
    found = []
    monkeypatch.setattr(runner, "complete", lambda planned: found.append(planned.spec))
    monkeypatch.setattr(runner, "run", lambda *_, **__: None)
    numbers = {"lr": 1, "milestones": [3, 5], "eps_sq": np.float32(1), "classes": (0, 3, 7)}
    rest = {"streams.noise": 10, "shuffle": False, "width": None, "subset": 100, "epochs": 3}
    experiments.run("vmcr2", ratio=0.5, seed=2, noise="pair_flip", **numbers, **rest)
    as_json = [json.dumps(as_dict(spec)).replace("1.0", "1") for spec in (*found, wanted)]
    assert as_json[0] == as_json[1]


def test_a_run_is_that_of_the_command_and_found_again(tmp_path, monkeypatch, trained, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--ratio", "0.4", "--subset", "100", "--epochs", "1"]
    assert main(["train", "--method", "ce", *arguments]) == 0
    trained.clear()
    capsys.readouterr()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = experiments.run("ce", ratio=0.4, subset=100, epochs=1)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert trained == []
    (folder,) = Path("results/runs").iterdir()
    assert found.folder == folder
    other = experiments.run("ce", ratio=0.4, subset=100, epochs=1, seed=1)
    assert trained == [other.folder]
    assert other.folder.parent == folder.parent
    assert capsys.readouterr() == ("", "")  # not a terminal: no bar


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"method": "mrc2"}, ValueError, "unknown method 'mrc2'; choose from"),
        ({"learning_rate": 1}, ValueError, "unknown field 'learning_rate'; choose from"),
        ({"epochs": 2.5}, ValueError, "epochs='2.5' is not a value of type int"),
        ({"ratio": 2}, ValueError, "ratio"),
        ({"eps_sq": (1, 2)}, TypeError, "eps_sq must be a number, text, True, False or None"),
        ({"lr": {}}, TypeError, "lr must be a number"),
        ({"recipe": "slow"}, ValueError, "unknown recipe 'slow'"),
        ({"method": int}, ValueError, "builtins has no file"),
        ({"method": torch.nn.Linear}, TypeError, "is not an mcr2.objectives.Objective"),
    ],
)
def test_mistakes_are_named_before_anything_is_run(given, error, message, tmp_path, trained):
    with pytest.raises(error, match=message):
        experiments.run(**{"out": tmp_path / "x", **given})
    assert trained == []
    assert not (tmp_path / "x").exists()


def test_an_interrupt_leaves_a_checkpoint_and_the_same_call_continues(tmp_path, monkeypatch):
    before, steps = signal.getsignal(signal.SIGINT), []
    loss = RateReduction.loss

    def interrupted(self, *given):
        steps.append(1)
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return loss(self, *given)

    monkeypatch.setattr(RateReduction, "loss", interrupted)
    settings = {"subset": 100, "epochs": 6, "batch_size": 90, "out": tmp_path / "x"}
    with pytest.raises(KeyboardInterrupt):
        experiments.run("mcr2", **settings)
    assert (tmp_path / "x" / runner.CHECKPOINT).is_file()
    assert signal.getsignal(signal.SIGINT) is before
    assert experiments.run("mcr2", **settings).record.status == "finished"
    assert len(steps) == 6


def test_a_bar_in_a_notebook_needs_no_widgets(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    display = types.SimpleNamespace(display=lambda *_, **__: handle)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    own, other = (f"features/test/clean/{name}/accuracy" for name in ("head", "class_mean"))
    with training_bar("mcr2 [seed] 0", 4) as tell:
        for epoch in (1, 2):
            tell(Progress(epoch, 4, 0.5, {"rate": 2.0}, {own: 0.7, other: 0.9}, 1.0))
    assert len(shown) == 2
    assert re.match(
        r"mcr2 \[seed\] 0 .*epoch 2/4 .*loss 0.500 +rate 2.000 +test clean 0.700$", shown[1]
    )


# --- classes of one's own

CELL = """
from mcr2.objectives import RateReduction

class Half(RateReduction):
    factor = {factor}
    def loss(self, features, labels, context):
        loss, terms = super().loss(features, labels, context)
        return self.factor * loss, terms
"""


@pytest.fixture
def notebook(monkeypatch):
    """Runs cells as a notebook does: in ``__main__``, which has no file, their text kept."""
    space = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", space)
    count = iter(range(100))

    def cell(text, kept=True):
        name = f"<cell {next(count)}>"
        if kept:
            lines = text.splitlines(keepends=True)
            monkeypatch.setitem(linecache.cache, name, (len(text), None, lines, name))
        exec(compile(text, name, "exec"), vars(space))
        return space

    return cell


def test_a_class_of_a_cell_is_a_method_that_is_known_by_the_cells_text(notebook, tmp_path, trained):
    def run_it(text):
        return experiments.run(notebook(text).Half, out=tmp_path / str(hash(text)), **SMALL)

    first = run_it(CELL.format(factor=0.5))
    other = run_it(CELL.format(factor=0.25))
    assert len(trained) == 2
    assert first.record.key != other.record.key
    # As in another session: the same text, compiled anew.
    assert run_it(CELL.format(factor=0.5)).record.key == first.record.key
    assert len(trained) == 2
    assert first.record.spec["method"] == "__main__:Half"

    reread = experiments.load_run(first.folder)
    assert reread.accuracy() == first.accuracy()
    with pytest.raises(ValueError, match="which is code; name it"):
        reread.encoder()
    images = torch.zeros(2, 1, 8, 8)
    named = experiments.load_run(first.folder, code=sys.modules["__main__"].Half)
    assert torch.equal(named.encoder()(images), first.encoder()(images))
    notebook(CELL.format(factor=0.75))
    with pytest.raises(ValueError, match=r"is not the file that .* was run with"):
        experiments.load_run(first.folder, code="__main__:Half").encoder()


def test_a_class_whose_text_cannot_be_known_is_refused(notebook):
    space = notebook(CELL.format(factor=1), kept=False)
    with pytest.raises(ValueError, match="text that defines Half is lost; put it into a file"):
        experiments.run(space.Half)
    old = notebook(CELL.format(factor=1)).Half
    notebook(CELL.format(factor=2))
    with pytest.raises(ValueError, match="__main__:Half is another class by now"):
        experiments.run(old)
    space = notebook("class Bare(Half):\n    factor = 3\n")  # no function leads to this cell
    with pytest.raises(ValueError, match="text that defines Bare is lost"):
        experiments.run(space.Bare)

    class Inside(RateReduction):
        pass

    with pytest.raises(ValueError, match="defined inside another thing"):
        experiments.run(Inside)


def test_a_module_that_was_edited_after_its_import_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halves.py").write_text(CELL.format(factor=0.5))
    from halves import Half

    monkeypatch.setattr(runner, "run", lambda spec, *_, **__: spec.method)
    assert experiments.run(Half, subset=100).held == "halves:Half"
    (tmp_path / "halves.py").write_text(
        CELL.format(factor=0.5).replace("return self", "return -self")
    )
    with pytest.raises(ValueError, match=r"halves.py was edited after it was imported"):
        experiments.run(Half, subset=100)
    del sys.modules["halves"]


def test_a_built_in_objective_has_its_name(monkeypatch):
    monkeypatch.setattr(runner, "run", lambda spec, *_, **__: spec.method)
    assert experiments.run(mcr2.RateReduction, subset=100).held == "mcr2"


# --- a run's network


def test_readouts_of_a_loaded_run_have_the_accuracies_of_its_evaluation(done):
    held = experiments.load_run(done.folder)
    data = mcr2.load_dataset("digits", subset=100).test
    for selection in ("last", "oracle"):
        encoder = held.encoder(selection)
        assert encoder.epoch == held.selected(selection)["epoch"]
        for name in (None, "ridge", "knn@5"):
            right = (encoder.predict(data.images, name) == data.labels).double().mean().item()
            assert right == pytest.approx(held.accuracy(selection, readout=name), abs=1e-12)


def test_images_may_be_bytes_or_floats_tensors_or_arrays(done):
    encoder, images = done.encoder(), mcr2.load_dataset("digits").test.images[:7]
    features = encoder(images)
    assert features.shape == (7, 64)
    assert not features.requires_grad
    for same in (images.float() / 255, images.numpy(), images.double().numpy() / 255):
        torch.testing.assert_close(encoder(same), features, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "images, error, message",
    [
        (torch.zeros(3, 3, 8, 8), ValueError, r"shape \(3, 3, 8, 8\); it must be \(N, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8), ValueError, "it must be"),
        (torch.full((1, 1, 8, 8), 16.0), ValueError, r"from 16 to 16; floating ones must lie in"),
        (torch.full((1, 1, 8, 8), torch.nan), ValueError, r"must lie in \[0, 1\]"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), TypeError, "images must be a uint8 tensor"),
        (torch.zeros(0, 1, 8, 8), ValueError, "it must be"),
    ],
)
def test_images_that_are_not_those_of_the_network_are_refused(done, images, error, message):
    with pytest.raises(error, match=message):
        done.encoder()(images)


def test_what_a_run_does_not_have_is_named(done, tmp_path):
    with pytest.raises(ValueError, match=r"unknown selection of .* 'best'; choose from last"):
        done.accuracy("best")
    with pytest.raises(ValueError, match="unknown readout 'knn@7'; choose from"):
        done.accuracy(readout="knn@7")
    failed = experiments.run("mcr2", out=tmp_path / "x", **SMALL | {"epochs": 3}, lr=1e30)
    assert isinstance(failed, LoadedRun)
    assert failed.record.reason in repr(failed)
    with pytest.raises(ValueError, match="has no evaluation: "):
        failed.encoder()
    assert mcr2.load_run(done.folder).record.key == done.record.key


def test_a_redunet_has_an_encoder_too(tmp_path):
    built = experiments.run("redunet", subset=100, layers=4, out=tmp_path / "x")
    data = mcr2.load_dataset("digits").test
    right = (built.encoder().predict(data.images) == data.labels).double().mean().item()
    assert right == pytest.approx(built.accuracy(), abs=1e-12)


# --- a study


def test_figures_of_a_study_are_ones_own_and_leave_pyplot_alone(study):
    from matplotlib import pyplot

    before = matplotlib.get_backend()
    matplotlib.use("svg")
    held = experiments.load_study(study)
    figure = held.figure("accuracy")
    assert isinstance(figure, Figure)
    assert "ce" in str([text.get_text() for text in figure.findobj(matplotlib.text.Text)])
    figure.axes[0].set_title("mine")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert all(isinstance(one, Figure) for one in held.figure("settings").values())
    assert matplotlib.get_backend() == "svg"
    matplotlib.use(before)
    assert pyplot.get_fignums() == []
    with pytest.raises(ValueError, match="unknown figure 'acuracy'; choose from accuracy"):
        held.figure("acuracy")


def test_tables_and_frames_of_a_study(study):
    held = experiments.load_study(study)
    frame = held.table("accuracy")
    assert frame.attrs["title"].startswith("Test accuracy")
    assert {"ce", "mcr2"} <= set(frame["method"])
    assert len(held.frames.runs) == 2
    assert repr(held) == f"<study label_noise on digits, 2 runs, in {study}>"
    assert len(repr(mcr2.load_run(held.results.runs[0].folder))) < 500
    with pytest.raises(ValueError, match="unknown table 'x'; choose from accuracy"):
        held.table("x")


def test_the_page_of_the_documentation_runs(study, tmp_path, monkeypatch, notebook):
    """As a notebook would run it, block by block, on fewer images."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(study, "results/quick-digits")
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL):
        notebook(block.replace("epochs=5", "epochs=1, subset=200"))
    assert Path("accuracy.pdf").is_file()
    assert len(list(Path("results/runs").iterdir())) == 2
