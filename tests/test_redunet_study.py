"""ReduNet in the study: a row of the table, a command of its own, and what was claimed of it."""

import json
import mmap
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.commands.cli import main
from experiments.report.axis import RATIO
from experiments.report.results import Results
from experiments.report.rows import rows_of
from experiments.report.tables import TABLES
from experiments.runs.executors import Outcome
from experiments.runs.grid import grid
from experiments.runs.machine import Machine
from experiments.runs.memory import peak_memory, restart_peak_memory
from experiments.runs.method import Workspace, readout_for
from experiments.runs.methods import METHODS, find_method
from experiments.runs.prepare import load, prepare
from experiments.runs.recipes import QUICK
from experiments.runs.redunet import make_encoder, read_options
from experiments.runs.runner import evaluate_again, plan, run
from experiments.runs.specs import vary
from experiments.studies import construction, gaussians, shifts
from mcr2.data import to_float
from mcr2.evaluation import measure_key
from mcr2.records import load_tensors
from mcr2.selection import SELECTIONS


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A data set of 5 × 5 images in three classes of 40."""
    file = tmp_path_factory.mktemp("data") / "small.npz"
    generator = np.random.default_rng(0)
    labels = np.arange(120) % 3
    means = generator.integers(0, 200, (3, 5, 5))
    images = (means[labels] + generator.integers(0, 56, (120, 5, 5))).astype(np.uint8)
    np.savez(file, x_train=images[:90], y_train=labels[:90], x_test=images[90:], y_test=labels[90:])
    return str(file)


def spec_of(dataset, *options, **fields):
    return replace(
        QUICK.spec("redunet", additive=False, dataset=dataset, **fields), options=options
    )


@pytest.mark.parametrize("options", [(), (("lifting", 3),)])
def test_the_method_is_the_network_of_the_same_noisy_labels(small, options):
    spec = spec_of(small, ("layers", 7), *options, ratio=0.3)
    spec = vary(vary(spec, "evaluate_every", "3"), "validation", "0.2")
    data = prepare(spec, load(spec))
    told, logged = [], []
    workspace = Workspace(torch.device("cpu"), progress=told.append, log=logged.append)
    method = METHODS["redunet"]
    method.check(spec, data.sizes)
    fitted = method.fit(spec, data, workspace)
    assert [entry["epoch"] for entry in fitted.history] == [0, 3, 6, 7]
    assert [p.epoch for p in told] == list(range(8))
    assert logged == fitted.history
    assert 7 in fitted.kept
    assert set(fitted.kept) <= {0, 3, 6, 7}
    # By hand: the same samples, the labels as corrupted.
    by_hand = make_encoder(spec, 1)
    X = by_hand.enter(to_float(data.train.images))
    by_hand.network.fit(X, data.train.labels, num_classes=3)
    images = to_float(data.test.images)
    for depth, state in fitted.kept.items():
        loaded = method.load(spec, data.sizes, state)
        assert len(loaded.network.layers) == depth
        want = by_hand.network(by_hand.enter(images), layers=depth).flatten(1)
        torch.testing.assert_close(loaded(images), want, atol=1e-5, rtol=0)
    assert by_hand.layer_names() == tuple(f"layer{depth}" for depth in range(1, 8))
    found = by_hand.layer_features(images, ("layer3", "features"))
    assert torch.equal(found["features"], by_hand(images))
    behind = by_hand.network(by_hand.enter(images), layers=3)
    assert torch.equal(found["layer3"], behind.flatten(1))
    with pytest.raises(ValueError, match="unknown layer 'layer8'; choose from layer1, layer2"):
        by_hand.layer_features(images, ("layer8",))
    reductions = [entry["terms"]["reduction"] for entry in fitted.history]
    rates = [by_hand.network.history[e["epoch"]].reduction for e in fitted.history]
    assert reductions == pytest.approx(rates, rel=1e-4)


def test_the_table_has_a_row_whose_records_prove_a_fair_comparison(small, tmp_path):
    settings = ["redunet.layers=4", "redunet.eps_sq=0.5", "validation=0.2", "epochs=1"]
    specs = grid(
        QUICK, ["ce", "redunet"], [0.0, 0.4], [0], fields={"dataset": small}, settings=settings
    )
    planned = plan(specs, tmp_path, Machine())
    outcomes = [Outcome(one, run(one.spec, one.folder), None) for one in planned]
    rows = [row for outcome in outcomes for row in rows_of(outcome, (RATIO,))]
    shown = TABLES["accuracy"](Results("small", (RATIO,), rows, [])).text()
    for rule in SELECTIONS:
        assert f"redunet  {rule:16}  nearest_subspace@3" in shown
    for ce, built in (outcomes[:2], outcomes[2:]):
        ours, theirs = built.run.record, ce.run.record
        for name in ("labels", "held_out"):
            assert ours.proof[name] == theirs.proof[name]
        assert (ours.noise, ours.data) == (theirs.noise, theirs.data)
        assert ours.epochs == ours.steps == 4
        assert dict(ours.spec["options"]) == {"layers": 4, "eps_sq": 0.5}
        again = evaluate_again(built.planned.folder, device="cpu").evaluation
        key = measure_key("accuracy", split="test", labels="clean", readout=again.readout)
        for rule, chosen in built.run.evaluation.selections.items():
            assert again.selections[rule]["measures"][key] == chosen["measures"][key]


def test_what_the_method_is_given_is_checked(small):
    method = find_method("redunet")
    data = prepare(spec_of(small), load(spec_of(small)))
    assert readout_for(spec_of(small), method) == "nearest_subspace@3"
    assert read_options(spec_of(small)).layers == 20
    for option, message in (
        (("layers", 0), "layers is 0"),
        (("eta", -1), "eta is -1"),
        (("membership", "true"), "choose from estimated, given"),
        (("lifting", -2), "lifting is -2"),
        (("lifting", 1.5), "lifting must be an integer, not float 1.5"),
        (("width", 3), "unknown option of redunet 'width'; choose from eps_sq, eta"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            method.check(spec_of(small, option), data.sizes)
    with pytest.raises(ValueError, match="redunet has no classifier"):
        method.check(replace(spec_of(small), readout="head"), data.sizes)


def test_the_command_prints_rates_and_leaves_figures(small, tmp_path, capsys):
    out = tmp_path / "one"
    command = ["redunet", "--dataset", small, "--out", str(out), "--threads", "1"]
    assert main([*command, "--ratio", "0.2", "--set", "layers=3", "store=disk"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["0", "1", "2", "3"]
    assert "peak memory beyond it" in shown
    told = json.loads((out / "rates.json").read_text())
    assert [row["layers"] for row in told["rates"]] == [0, 1, 2, 3]
    assert told["rates"][-1]["reduction"] == pytest.approx(
        float(shown.splitlines()[4].split()[3]), abs=1e-4
    )
    for name in ("rates.png", "cosines.png", "spectra.png", "weights.safetensors"):
        assert (out / name).stat().st_size > 3000
    # A network of 25 numbers a sample: what is beyond it is small change.
    if restart_peak_memory(torch.device("cpu")) is None:
        assert told["extra_mib"] is None
    else:
        assert 0 <= told["extra_mib"] < 300
    _, kept = load_tensors(out / "weights.safetensors")
    assert kept["options"]["store"] == "disk"
    assert (kept["options"]["layers"], kept["options"]["eta"]) == (3, 0.5)
    # Another network does not overwrite it, mistakes are a line and exit status 2.
    for wrong, message in (
        (["--ratio", "0.3"], "holds the study"),
        (["--ratio", "0.2", "--set", "depth=3"], "unknown field 'depth'"),
        (["--ratio", "0.2", "--patience", "0"], "patience is 0"),
    ):
        assert main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_an_eps_sq_too_small_for_the_samples_is_one_line(small, tmp_path, capsys):
    command = ["redunet", "--dataset", small, "--out", str(tmp_path / "one"), "--threads", "1"]
    assert main([*command, "--set", "eps_sq=1e-320"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("mcr2: layer 0: ")
    assert err.endswith("eps_sq=1e-320 is too small\n")
    assert err.count("\n") == 1


def test_memory_is_that_of_the_device(monkeypatch):
    before = restart_peak_memory(torch.device("cpu"))
    if before is not None:  # on Linux
        held = 64 << 20
        # Pages of its own: an allocator may have some left from what ran before.
        torch.frombuffer(mmap.mmap(-1, held), dtype=torch.uint8).fill_(1)
        assert 0.9 * held < peak_memory(torch.device("cpu")) - before < 2 * held
    device, reset = torch.device("cuda:1"), []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", {device: 5}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {device: 9}.__getitem__)
    assert (restart_peak_memory(device), peak_memory(device), reset) == (5, 9, [device])
    assert restart_peak_memory(torch.device("mps")) is None


def test_figures_show_a_few_samples_of_each_class(small):
    split = load(spec_of(small)).train
    few = construction.few_of_each(split, 4, 5)
    assert few.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("d", [2, 3])
def test_gaussian_clusters_end_as_orthogonal_directions(d):
    found = gaussians.construct(d, per_class=60, layers=600)
    assert found.figures["cosine_before"] > 0.5
    assert found.figures["cosine_after"] < 0.05
    assert found.figures["cosine_test"] < 0.05
    assert found.figures["recovered"] == 1
    # Each class ends as one direction.
    for k in range(d):
        own = found.test_features[found.labels == k]
        assert float((own @ own.T).abs().min()) > 0.99


def test_the_study_of_clusters_leaves_rows_and_a_figure(tmp_path, capsys):
    study = gaussians.Gaussians(out=tmp_path, seeds=(3, 4), layers=5)
    assert study.prepare()() == 0
    rows = json.loads((tmp_path / "gaussians.json").read_text())["rows"]
    assert [(row["seed"], row["dimensions"]) for row in rows] == [(3, 2), (3, 3), (4, 2), (4, 3)]
    assert f"{rows[0]['cosine_test']:.4f}" in capsys.readouterr().out
    assert (tmp_path / "gaussians.png").stat().st_size > 10_000
    for wrong, message in (
        ({"layers": 0}, "layers is 0"),
        ({"seeds": (-1,)}, "seeds is -1"),
        ({"seeds": ()}, "number of seeds is 0"),
        ({"threads": 0}, "threads is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussians.Gaussians(**wrong).prepare()


def test_shift_subspaces_are_spanned_by_all_shifts():
    generator = torch.Generator().manual_seed(0)
    Z = torch.randn(5, 2, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1])
    X = torch.randn(4, 2, 3, 4, generator=generator, dtype=torch.float64)
    spectra = shifts.shift_spectra(Z, labels, 2)
    for dimensions in (1, 6, 13, 20, 24):
        found = shifts.residuals(X, spectra, dimensions)
        for k in range(2):
            rows = torch.cat([z.flatten(1) for z in shifts.all_shifts(Z[labels == k])])
            _, values, V = torch.linalg.svd(rows, full_matrices=False)
            # One fewer where a frequency that stands for two would be cut in half.
            options = []
            for n in (dimensions, dimensions - 1):
                n = min(n, int((values > 1e-9).sum()))
                inside = X.flatten(1) @ V[:n].T
                options.append(X.flatten(1).square().sum(1) - inside.square().sum(1))
            near = [bool((found[:, k] - option).abs().max() < 1e-8) for option in options]
            assert any(near), (dimensions, k)
        moved = shifts.residuals(X.roll((1, 2), (2, 3)), spectra, dimensions)
        torch.testing.assert_close(moved, found, atol=1e-9, rtol=0)


def test_the_network_tells_shifted_digits_apart_where_pixels_and_a_plain_network_do_not(tmp_path):
    settings = ("lifting=12", "layers=12")
    shifts.Shifts(out=tmp_path, set=settings, epochs=3, every=13).prepare()()
    rows = json.loads((tmp_path / "shifts.json").read_text())["rows"]
    plain, pixels, lifted, early, network = rows
    # The readout is invariant, on pixels too.
    for row in (pixels, lifted, early, network):
        assert row["worst_shift"] == pytest.approx(row["as_they_are"], abs=0.01)
    assert early["shifted"] > 0.95
    assert network["shifted"] > 0.9
    assert pixels["shifted"] < 0.7
    assert plain["shifted"] < 0.5 < plain["as_they_are"]
    # What the layers add: as many digits told apart by far fewer directions.
    assert network["dimensions"] < lifted["dimensions"]
    assert (tmp_path / "shifts.png").stat().st_size > 5000
    for wrong, message in (
        ({"set": ("depth=3",)}, "unknown field 'depth'"),
        ({"set": ("lifting=0",)}, "needs lifted channels"),
        ({"every": 0}, "every is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            shifts.Shifts(**wrong).prepare()
