"""Methods and specs: what a name means, what a run is, and what its key depends on."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.runs.methods import (
    METHODS,
    Sizes,
    Workspace,
    augmentation_for,
    candidates,
    find_method,
    readout_for,
    rules_for,
)
from experiments.runs.recipes import RECIPES
from experiments.runs.runner import load, prepare, run_key
from experiments.runs.specs import STREAMS, Recipe, RunSpec, Streams, as_dict, from_dict, vary
from mcr2.data import Augmentation
from mcr2.selection import SELECTIONS
from mcr2.training import TrainingConfig

K, N = 3, 45
SIZES = Sizes(num_classes=K, in_channels=1, num_samples=N, height=8, width=8)
SMALL = TrainingConfig(epochs=1, batch_size=15, lr=0.01)

LOSS = '''
import torch
from torch import nn
from mcr2.objectives import Objective

class Pull(Objective):
    """Features to one point a class."""
    readout = "class_mean"

    def __init__(self, num_classes, feature_dim, num_samples, strength=1.0, mode="l2"):
        super().__init__(num_classes)
        if strength < 0:
            raise ValueError("strength must not be negative")
        self.given = (num_classes, feature_dim, num_samples, strength, mode)
        self.points = nn.Parameter(torch.randn(num_classes, feature_dim))
        self.register_buffer("losses", torch.zeros(num_samples))

    def loss(self, features, labels, context):
        each = (features - self.points[labels]).square().sum(1)
        self.losses[context.indices] = each.detach()
        return each.mean(), {"pull": each.mean()}

class Lossless(Objective):
    pass

class NoObjective:
    pass

number = 3
'''


@pytest.fixture
def loss_file(tmp_path):
    path = tmp_path / "my_loss.py"
    path.write_text(LOSS)
    return path


def write_npz(path, seed=0):
    rng = np.random.RandomState(seed)
    labels = {"y_train": np.arange(N) % K, "y_test": np.arange(12) % K}
    images = {
        "x_train": rng.randint(0, 255, (N, 8, 8), np.uint8),
        "x_test": rng.randint(0, 255, (12, 8, 8), np.uint8),
    }
    np.savez(path, **images, **labels)
    return str(path)


@pytest.fixture
def small(tmp_path):
    """A spec of a network and a data set that take no time."""
    return RunSpec(
        "mcr2",
        dataset=write_npz(tmp_path / "data.npz"),
        ratio=0.2,
        backbone="resnet10_w8",
        feature_dim=6,
        training=SMALL,
    )


def fitted(spec):
    method = find_method(spec.method)
    data = prepare(spec, load(spec))
    return method.fit(spec, data, Workspace(torch.device("cpu"))), method, data


def backbone_of(state):
    return {k: v for k, v in state.items() if k.startswith("backbone.")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --------------------------------------------------------------------------------- a fair start


def test_all_methods_start_from_the_same_backbone_for_a_seed(small, loss_file):
    untrained = replace(small, training=replace(SMALL, epochs=0))
    starts, proofs = [], []
    for name in ("ce", "mcr2", f"{loss_file}:Pull"):
        got, *_ = fitted(replace(untrained, method=name))
        starts.append(backbone_of(got.kept[0]))
        proofs.append(got.proof["initial_weights"])
    assert len(starts[0]) > 10
    assert same(starts[0], starts[1])
    assert same(starts[0], starts[2])
    assert len(set(proofs)) == 1


@pytest.mark.parametrize(
    "change, moved",
    [
        ({"seed": 1}, True),
        ({"streams": Streams(backbone=1)}, True),
        (
            {"streams": Streams(noise=1, validation=1, objective=1, batches=1, augmentation=1)},
            False,
        ),
        ({"ratio": 0.5}, False),
        ({"shift": 0}, False),
    ],
    ids=str,
)
def test_initial_weights_follow_their_own_stream_only(small, change, moved):
    untrained = replace(small, method="ce", training=replace(SMALL, epochs=0))
    first, second = (fitted(spec)[0] for spec in (untrained, replace(untrained, **change)))
    weights = [backbone_of(f.kept[0]) for f in (first, second)]
    assert same(*weights) is not moved
    assert (first.proof["initial_weights"] != second.proof["initial_weights"]) is moved


def test_an_objectives_own_parameters_follow_its_stream(small):
    untrained = replace(small, method="ce", training=replace(SMALL, epochs=0))
    heads = []
    for streams in (Streams(), Streams(backbone=9), Streams(objective=9)):
        got, *_ = fitted(replace(untrained, streams=streams))
        heads.append(got.kept[0]["objective.head.weight"])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_methods_are_fed_the_same_batches(small):
    proofs = [fitted(replace(small, method=name))[0].proof for name in ("ce", "mcr2")]
    assert proofs[0] == proofs[1]
    assert proofs[0].keys() == {"initial_weights", "sampling", "augmentation"}


@pytest.mark.parametrize(
    "stream, changed",
    [
        ("batches", {"sampling"}),
        ("augmentation", {"augmentation"}),
        ("backbone", {"initial_weights"}),
        ("objective", set()),
        ("noise", set()),
        ("validation", {"augmentation"}),  # other images are trained on
    ],
)
def test_the_proof_of_a_run_changes_with_the_stream_it_is_of(small, stream, changed):
    first, second = (
        fitted(replace(small, method="ce", streams=streams))[0].proof
        for streams in (Streams(), Streams(**{stream: 5}))
    )
    assert {name for name in first if first[name] != second[name]} == changed


def test_load_makes_the_encoder_of_a_state_again(small):
    spec = replace(small, method="ce")
    got, method, data = fitted(spec)
    before = torch.get_rng_state()
    encoder = method.load(spec, data.sizes, got.kept[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert same(dict(encoder.state_dict()), got.kept[1])
    # What it computes is what the history says was measured at that epoch.
    W, b = encoder.classifier()
    encoder.train(False)
    with torch.no_grad():
        scores = encoder(data.test.images.float() / 255) @ W.T + b
    accuracy = float((scores.argmax(1) == data.test.labels).float().mean())
    measures = got.history[-1]["measures"]
    assert measures["features/test/clean/head/accuracy"] == pytest.approx(accuracy)
    assert "features/test/clean/ridge/accuracy" in measures


def test_fitting_keeps_the_epochs_that_the_rules_select(small):
    spec = replace(small, training=replace(SMALL, epochs=4, evaluate_every=1))
    got, method, _ = fitted(spec)
    points = candidates(got.history, readout_for(spec, method))
    best = {
        max(points, key=lambda c: c.validation_accuracy).epoch,
        max(points, key=lambda c: c.validation_clean_accuracy).epoch,
        max(points, key=lambda c: c.test_accuracy).epoch,
        4,
    }
    assert got.kept.keys() == best
    assert got.reason is None
    assert got.steps == 4 * 3


def test_without_a_held_out_share_nothing_is_selected_by_it(small):
    spec = replace(small, validation=0.0)
    assert rules_for(small) == tuple(SELECTIONS)
    assert rules_for(spec) == ("last", "oracle")
    got, *_ = fitted(spec)
    assert not [k for entry in got.history for k in entry["measures"] if "validation" in k]


def test_a_run_that_holds_nothing_out_cannot_serve_early_stopping():
    spec = RunSpec("ce", validation=0.0, selections=("last", "noisy_validation"))
    with pytest.raises(ValueError, match="noisy_validation needs a validation share"):
        rules_for(spec)
    with pytest.raises(ValueError, match="patience and clean_validation needs a validation share"):
        rules_for(replace(spec, selections=("last", "patience", "clean_validation")))
    assert rules_for(replace(spec, validation=0.1)) == ("last", "noisy_validation")


def test_augmentation_is_the_data_sets_unless_the_spec_says(small):
    dataset = load(small)
    assert augmentation_for(small, dataset) == Augmentation(shift=1, flip=False)
    own = replace(small, shift=0, flip=True)
    assert augmentation_for(own, dataset) == Augmentation(shift=0, flip=True)


# --------------------------------------------------------------------------------- finding methods


@pytest.mark.parametrize(
    "name, readout, additive", [("ce", "head", True), ("mcr2", "nearest_subspace", False)]
)
def test_named_methods_say_how_they_are_read(name, readout, additive):
    method = find_method(name)
    assert method is METHODS[name]
    assert (method.name, method.readout, method.additive) == (name, readout, additive)
    assert method.fingerprint == ""


@pytest.mark.parametrize(
    "place, options",
    [
        ("mcr2.objectives:RateReduction", {"eps_sq", "gamma1", "gamma2"}),
        ("ce_baseline.cross_entropy:CrossEntropy", {"label_smoothing"}),
    ],
)
def test_a_class_of_a_module_is_a_method(place, options):
    method = find_method(place)
    assert method.name == place
    assert method.options == options
    assert len(method.fingerprint) == 64


def test_a_class_of_a_file_is_a_method_and_runs(small, loss_file):
    spec = replace(small, method=f"{loss_file}:Pull", options=(("strength", 2.0),))
    got, method, data = fitted(spec)
    assert method.options == {"strength", "mode"}
    assert readout_for(spec, method) == "class_mean"
    encoder = method.load(spec, data.sizes, got.kept[1])
    assert encoder.objective.given == (K, 6, len(data.train), 2.0, "l2")
    # The state kept for each sample, in the order of the split trained on, came with it.
    assert bool((encoder.objective.losses > 0).all())


def test_files_of_one_name_do_not_meet(tmp_path):
    readouts = []
    for folder, readout in (("a", "ridge"), ("b", "class_mean")):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "loss.py"
        path.write_text(LOSS.replace('readout = "class_mean"', f'readout = "{readout}"'))
        readouts.append(find_method(f"{path}:Pull"))
    assert [m.readout for m in readouts] == ["ridge", "class_mean"]


def test_the_fingerprint_is_of_the_files_content(loss_file, tmp_path):
    first = find_method(f"{loss_file}:Pull").fingerprint
    copy = tmp_path / "copy.py"
    copy.write_text(LOSS)
    assert find_method(f"{copy}:Pull").fingerprint == first
    loss_file.write_text(LOSS + "# edited\n")
    assert find_method(f"{loss_file}:Pull").fingerprint != first


def test_the_fingerprint_of_a_class_handed_on_is_of_the_file_that_defines_it(tmp_path, monkeypatch):
    package = tmp_path / "handed_on_losses"
    package.mkdir()
    (package / "__init__.py").write_text("from .pull import Pull\n")
    (package / "pull.py").write_text(LOSS)
    monkeypatch.syspath_prepend(str(tmp_path))
    direct = find_method("handed_on_losses.pull:Pull").fingerprint
    before = find_method("handed_on_losses:Pull").fingerprint
    (package / "pull.py").write_text(LOSS + "# edited\n")
    assert find_method("handed_on_losses.pull:Pull").fingerprint != direct
    assert find_method("handed_on_losses:Pull").fingerprint != before


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "name, kind, parts",
    [
        ("cee", ValueError, ["'cee'", "ce, mcr2", "file.py:Class"]),
        ("", ValueError, ["ce, mcr2"]),
        ("FILE", ValueError, ["ce, mcr2", "file.py:Class"]),
        ("nowhere.py:Loss", ValueError, ["no file nowhere.py"]),
        ("no.such.module:Loss", ValueError, ["no.such.module"]),
        (":Loss", ValueError, ["module"]),
        ("FILE:Missing", ValueError, ["FILE", "'Missing'"]),
        ("FILE:NoObjective", TypeError, ["FILE:NoObjective", "Objective"]),
        ("FILE:number", TypeError, ["FILE:number", "3"]),
        ("FILE:torch", TypeError, ["FILE:torch"]),
        ("FILE:Lossless", TypeError, ["FILE:Lossless", "loss(features, labels, context)"]),
        ("mcr2.objectives:Objective", TypeError, ["loss(features, labels, context)"]),
        ("mcr2.objectives:Context", TypeError, ["mcr2.objectives:Context"]),
    ],
)
def test_a_name_that_means_no_method_is_answered_in_a_line(name, kind, parts, loss_file):
    with pytest.raises(kind) as error:
        find_method(name.replace("FILE", str(loss_file)))
    message = one_line(error)
    for part in parts:
        assert part.replace("FILE", str(loss_file)) in message


@pytest.mark.parametrize(
    "source",
    [
        "def broken(:\n",
        "import no_such_module_at_all\n",
        "raise RuntimeError('broken')\n",
        "1 / 0\n",
        "x = '\x00'\n",
    ],
)
@pytest.mark.parametrize("form", ["file", "module"])
def test_code_that_cannot_be_imported_is_named_in_a_line(source, form, tmp_path, monkeypatch):
    path = tmp_path / "broken_loss_of_a_user.py"
    path.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"{path}:Loss" if form == "file" else "broken_loss_of_a_user:Loss"
    with pytest.raises(ValueError) as error:
        find_method(name)
    assert "broken_loss_of_a_user" in one_line(error)


# ------------------------------------------------------------------------------ what suits a method


def check(name, sizes=SIZES, **changes):
    fields = {"backbone": "resnet10_w8", "feature_dim": 6} | changes
    find_method(name).check(RunSpec(name, **fields), sizes)


@pytest.mark.parametrize(
    "name, options, kind, parts",
    [
        ("mcr2", {"epsilon": 1}, ValueError, ["'epsilon'", "eps_sq, gamma1, gamma2"]),
        ("mcr2", {"num_classes": 4}, ValueError, ["'num_classes'"]),
        ("mcr2", {"eps_sq": -1.0}, ValueError, ["mcr2", "-1.0", "positive"]),
        ("mcr2", {"eps_sq": "much"}, TypeError, ["mcr2", "eps_sq", "number"]),
        ("ce", {"label_smoothing": 1.5}, ValueError, ["ce", "label_smoothing", "[0, 1)"]),
        ("ce", {"eps_sq": 0.5}, ValueError, ["'eps_sq'", "label_smoothing"]),
        ("FILE:Pull", {"strength": -1.0}, ValueError, ["strength must not be"]),
    ],
)
def test_options_that_do_not_suit_are_refused_before_anything_is_spent(
    name, options, kind, parts, loss_file
):
    name = name.replace("FILE", str(loss_file))
    with pytest.raises(kind) as error:
        check(name, options=tuple(options.items()))
    message = one_line(error)
    assert all(part in message for part in parts)


def test_a_method_checks_the_network_too():
    check("mcr2")
    check("mcr2", projection="none", feature_dim=64)
    with pytest.raises(ValueError, match=r"feature_dim is 6; .*pooled width \(64\)"):
        check("mcr2", projection="none")


def test_checking_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    check("ce")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_constructor_that_needs_more_than_is_given_is_refused(tmp_path):
    path = tmp_path / "greedy.py"
    path.write_text(
        LOSS.replace("strength=1.0", "strength")
        .replace('mode="l2"', "mode")
        .replace("Pull", "Greedy")
    )
    with pytest.raises(TypeError, match="Greedy cannot be constructed"):
        check(f"{path}:Greedy")


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, "nearest_subspace@3"),
        ({"n_components": 5}, "nearest_subspace@5"),
        ({"readout": "nearest_subspace_centred@2"}, "nearest_subspace_centred@2"),
        ({"readout": "ridge", "n_components": 5}, "ridge"),
    ],
)
def test_the_readout_is_the_specs_or_the_methods(fields, expected):
    assert readout_for(RunSpec("mcr2", **fields), METHODS["mcr2"]) == expected


# ------------------------------------------------------------------------------------------- specs

FULL = RunSpec(
    "path/to/loss.py:Loss",
    dataset="fashion_mnist",
    ratio=0.3,
    seed=12,
    noise="symmetric_excluding_true",
    subset=500,
    validation=0.2,
    backbone="resnet10_w24",
    stem_stride=2,
    feature_dim=32,
    projection="none",
    shift=3,
    flip=False,
    shuffle=False,
    training=TrainingConfig(
        epochs=7,
        batch_size=50,
        optimizer="adamw",
        lr=1e-3,
        momentum=0.5,
        weight_decay=0.1,
        schedule="steps",
        milestones=(2, 5),
        decay=0.3,
        warmup=0.2,
        evaluate_every=2,
        micro_batch=20,
    ),
    options=(("eps_sq", 0.1), ("name", "x"), ("on", True), ("off", None)),
    readout="nearest_subspace_centred@4",
    n_components=4,
    streams=Streams(noise=1, batches=0),
    selections=("last", "oracle"),
)


@pytest.mark.parametrize("spec", [RunSpec("ce"), FULL])
def test_a_spec_survives_being_saved(spec):
    assert from_dict(as_dict(spec)) == spec
    read = from_dict(json.loads(json.dumps(as_dict(spec))))
    assert read == spec
    assert hash(read) == hash(spec)
    assert isinstance(read.training.milestones, tuple)
    assert read.selections is None or isinstance(read.selections, tuple)


@pytest.mark.parametrize(
    "change",
    [
        {"colour": 1},
        {"training": {"epoch": 3}},
        {"streams": {"weather": 1}},
        {"training": None},
        {"options": None},
    ],
    ids=str,
)
def test_what_is_no_saved_spec_is_refused(change):
    with pytest.raises(ValueError, match="not a run's spec"):
        from_dict(as_dict(FULL) | change)


def test_a_saved_spec_is_checked_again():
    with pytest.raises(ValueError, match=r"ratio is 2\.0"):
        from_dict(as_dict(FULL) | {"ratio": 2.0})
    with pytest.raises(ValueError, match="not a run's spec"):
        from_dict({k: v for k, v in as_dict(FULL).items() if k != "training"})


VARIED = [
    ("ratio", "0.4", 0.4),
    ("seed", "3", 3),
    ("noise", "symmetric", "symmetric"),
    ("subset", "100", 100),
    ("subset", "none", None),
    ("image_size", "16", 16),
    ("validation", "0", 0.0),
    ("backbone", "resnet18", "resnet18"),
    ("stem_stride", "1", 1),
    ("feature_dim", "16", 16),
    ("projection", "mlp", "mlp"),
    ("shift", "0", 0),
    ("shift", "None", None),
    ("flip", "True", True),
    ("flip", "false", False),
    ("flip", "none", None),
    ("shuffle", "true", True),
    ("readout", "ridge", "ridge"),
    ("readout", "none", None),
    ("n_components", "2", 2),
    ("dataset", "digits", "digits"),
    ("selections", "last+oracle", ("last", "oracle")),
    ("selections", "none", None),
]
VARIED_TRAINING = [
    ("epochs", "11", 11),
    ("lr", "1e-2", 0.01),
    ("optimizer", "sgd", "sgd"),
    ("milestones", "1+4+9", (1, 4, 9)),
    ("milestones", "3", (3,)),
    ("milestones", "", ()),
    ("schedule", "cosine", "cosine"),
    ("weight_decay", "0", 0.0),
    ("batch_size", "64", 64),
    ("momentum", "0", 0.0),
    ("decay", "0.5", 0.5),
    ("warmup", "0.1", 0.1),
    ("evaluate_every", "3", 3),
    ("micro_batch", "25", 25),
    ("micro_batch", "none", None),
    ("accumulate", "true", True),
    ("amp", "true", True),
    ("compile", "true", True),
    ("tf32", "true", True),
]


@pytest.mark.parametrize("name, text, value", VARIED)
def test_vary_sets_one_field(name, text, value):
    got = vary(FULL, name, text)
    assert got == replace(FULL, **{name: value})
    assert type(getattr(got, name)) is type(value)


@pytest.mark.parametrize("name, text, value", VARIED_TRAINING)
def test_vary_sets_one_field_of_training(name, text, value):
    got = vary(FULL, name, text)
    assert got == replace(FULL, training=replace(FULL.training, **{name: value}))
    assert type(getattr(got.training, name)) is type(value)


def test_every_field_can_be_varied():
    whole = {"method", "training", "options", "streams"}
    assert {n for n, *_ in VARIED} == {f.name for f in dataclasses.fields(RunSpec)} - whole
    training = {f.name for f in dataclasses.fields(TrainingConfig)}
    assert {n for n, *_ in VARIED_TRAINING} == training


@pytest.mark.parametrize("stream", STREAMS)
def test_vary_sets_one_stream(stream):
    got = vary(FULL, f"streams.{stream}", "77")
    assert got == replace(FULL, streams=replace(FULL.streams, **{stream: 77}))
    none = vary(got, f"streams.{stream}", "none")
    assert none == replace(FULL, streams=replace(FULL.streams, **{stream: None}))


@pytest.mark.parametrize(
    "text, value",
    [("3", 3), ("0.5", 0.5), ("1e-3", 0.001), ("true", True), ("None", None), ("cosine", "cosine")],
)
def test_vary_sets_an_option_and_replaces_the_one_there_was(text, value):
    got = vary(FULL, "eps_sq", text, {"eps_sq", "gamma1"})
    assert dict(got.options) == dict(FULL.options) | {"eps_sq": value}
    assert type(dict(got.options)["eps_sq"]) is type(value)
    assert len(got.options) == len(FULL.options)
    assert replace(got, options=FULL.options) == FULL


@pytest.mark.parametrize(
    "name, text, parts",
    [
        ("colour", "red", ["'colour'", "feature_dim", "batch_size", "gamma1", "streams.NAME"]),
        ("method", "ce", ["'method'"]),
        ("training", "x", ["'training'"]),
        ("streams", "1", ["'streams'"]),
        ("streams.weather", "1", ["'streams.weather'"]),
        ("eps_sq", "1", ["'eps_sq'"]),
        ("seed", "1.5", ["seed='1.5'", "int"]),
        ("lr", "fast", ["lr='fast'", "float"]),
        ("flip", "yes", ["flip='yes'", "bool"]),
        ("milestones", "1+x", ["milestones='x'", "int"]),
        ("streams.noise", "x", ["streams.noise='x'", "int"]),
        ("ratio", "1.5", ["ratio is 1.5", "between 0 and 1"]),
        ("ratio", "nan", ["ratio is nan"]),
        ("epochs", "-3", ["epochs is -3"]),
        ("backbone", "vgg", ["'vgg'", "resnet18"]),
    ],
)
def test_vary_names_what_it_cannot_do(name, text, parts):
    with pytest.raises(ValueError) as error:
        vary(FULL, name, text, {"gamma1"})
    message = one_line(error)
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ratio": -0.1}, "ratio is -0.1; it must be between 0 and 1"),
        ({"ratio": 1.5}, "ratio is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"noise": "pairs"}, "noise is 'pairs'; choose from symmetric"),
        ({"backbone": "vgg"}, "backbone is 'vgg'; choose from resnet18"),
        ({"projection": "linear"}, "projection is 'linear'; choose from mlp, none"),
        ({"validation": 1.0}, "validation is 1.0"),
        ({"validation": -0.1}, "validation is -0.1"),
        ({"subset": 0}, "subset is 0; it must be at least 1"),
        ({"stem_stride": 0}, "stem_stride is 0"),
        ({"feature_dim": 1}, "feature_dim is 1; it must be at least 2"),
        ({"shift": -1}, "shift is -1"),
        ({"n_components": 0}, "n_components is 0; it must be between 1 and 63"),
        ({"n_components": 64}, "n_components is 64; it must be between 1 and 63"),
        ({"readout": "nearest"}, "unknown readout 'nearest'"),
        ({"readout": "nearest_subspace"}, "needs a number"),
        ({"selections": ()}, "selections is ''; choose from last, noisy_validation, patience"),
        ({"selections": ("best",)}, "selections is 'best'"),
        ({"streams": Streams(batches=-1)}, "streams.batches is -1"),
        ({"streams": Streams(noise=2**32)}, "streams.noise is 4294967296"),
    ],
    ids=str,
)
def test_a_spec_that_cannot_be_meant_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunSpec("mcr2", **changes)


# ----------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("value", [0, 5])
def test_setting_a_stream_changes_that_stream_only(stream, value):
    derived = Streams().seeds(10)
    assert Streams(**{stream: value}).seeds(10) == derived | {stream: value}


def test_streams_differ_from_each_other_and_from_seed_to_seed():
    seeds = [Streams().seeds(seed) for seed in range(20)]
    assert [s["noise"] for s in seeds] == list(range(20))
    assert all(tuple(s) == STREAMS for s in seeds)
    derived = [s[name] for s in seeds for name in STREAMS if name != "noise"]
    assert len(set(derived)) == len(derived)
    assert all(0 <= seed < 2**32 for seed in derived)


def test_each_stream_moves_its_own_part_of_the_data_only(small):
    def parts(**streams):
        data = prepare(replace(small, streams=Streams(**streams)), load(small))
        return data.corruption.hash, tuple(data.held_out.tolist())

    labels, held_out = parts()
    assert parts(noise=5)[0] != labels
    assert parts(noise=5)[1] == held_out
    assert parts(validation=5)[0] == labels
    assert parts(validation=5)[1] != held_out
    assert parts(backbone=5, objective=5, batches=5, augmentation=5) == (labels, held_out)


# -------------------------------------------------------------------------------------------- keys

KEY_CHANGES = {
    "image_size": 16,
    "method": "ce",
    "ratio": 0.3,
    "seed": 1,
    "noise": "symmetric_excluding_true",
    "subset": 30,
    "validation": 0.2,
    "backbone": "resnet10_w16",
    "stem_stride": 2,
    "feature_dim": 7,
    "projection": "none",
    "shift": 0,
    "flip": True,
    "shuffle": False,
    "training": replace(SMALL, lr=0.02),
    "options": (("eps_sq", 0.1),),
    "readout": "ridge",
    "n_components": 2,
    "streams": Streams(batches=3),
    "selections": ("last",),
}


def test_a_key_depends_on_every_field_of_the_spec(small):
    changes = [replace(small, **{name: value}) for name, value in KEY_CHANGES.items()]
    changes += [
        replace(small, training=replace(SMALL, **{name: value}))
        for name, value in {
            "epochs": 2,
            "batch_size": 10,
            "optimizer": "adamw",
            "momentum": 0.8,
            "weight_decay": 0.0,
            "schedule": "cosine",
            "milestones": (1,),
            "decay": 0.2,
            "warmup": 0.2,
            "evaluate_every": 1,
            "micro_batch": 5,
            "amp": True,
            "compile": True,
            "tf32": True,
        }.items()
    ]
    dataset, method = load(small), METHODS["mcr2"]
    keys = [run_key(spec, dataset, method) for spec in (small, *changes)]
    assert len(set(keys)) == len(keys)
    covered = KEY_CHANGES.keys() | {"dataset"}
    assert covered == {field.name for field in dataclasses.fields(RunSpec)}
    assert run_key(from_dict(as_dict(small)), load(small), method) == keys[0]


def test_a_key_follows_the_datas_content_not_its_place(small, tmp_path):
    def key(path):
        spec = replace(small, dataset=path)
        return run_key(spec, load(spec), METHODS["mcr2"])

    (tmp_path / "elsewhere").mkdir()
    assert key(write_npz(tmp_path / "elsewhere" / "other.npz")) == key(small.dataset)
    assert key(write_npz(tmp_path / "changed.npz", seed=1)) != key(small.dataset)


@pytest.mark.parametrize(
    "change", [{"classes": ("a", "b", "c", "never seen")}, {"flip": True}, {"shift": 2}], ids=str
)
def test_a_key_depends_on_what_a_data_set_decides_beside_its_images(small, change):
    dataset = load(small)
    other = replace(dataset, **change)
    assert other.content_hash() == dataset.content_hash()
    keys = {run_key(small, d, METHODS["mcr2"]) for d in (dataset, other)}
    assert len(keys) == 2


def test_a_key_depends_on_a_users_file(small, loss_file):
    def key():
        spec = replace(small, method=f"{loss_file}:Pull")
        return run_key(spec, load(spec), find_method(spec.method))

    first = key()
    assert key() == first
    loss_file.write_text(LOSS.replace("strength=1.0", "strength=2.0"))
    assert key() != first


# ----------------------------------------------------------------------------------------- recipes


def test_a_recipe_fills_in_the_rest():
    ce, mcr2 = TrainingConfig(lr=0.1), TrainingConfig(lr=0.2)
    recipe = Recipe("r", "about", RunSpec("ce", n_components=4), {"ce": ce, "mcr2": mcr2})
    spec = recipe.spec("mcr2", additive=False, ratio=0.3, seed=5)
    assert spec == RunSpec("mcr2", ratio=0.3, seed=5, n_components=4, training=mcr2)
    assert recipe.spec("my.py:Mean", additive=True).training == ce
    assert recipe.spec("my.py:Rate", additive=False).training == mcr2


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_the_recipes_suit_their_methods(recipe):
    sizes = Sizes(num_classes=10, in_channels=1, num_samples=1000, height=8, width=8)
    for name, method in METHODS.items():
        method.check(recipe.spec(name, additive=method.additive), sizes)
