"""Methods and specs: what a name means, what a run is, and what its key depends on."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments.runs.method import Workspace, readout_for, rules_for
from experiments.runs.methods import METHODS, find_method
from experiments.runs.prepare import Sizes, load, prepare, unused_classes
from experiments.runs.recipes import RECIPES, Recipe
from experiments.runs.runner import run_key
from experiments.runs.specs import (
    STREAMS,
    RunSpec,
    Streams,
    as_dict,
    field_value,
    from_dict,
    vary,
)
from experiments.runs.trained import feed_for
from mcr2.data import Augmentation
from mcr2.selection import SELECTIONS
from mcr2.training import TrainingConfig

K, N = 3, 45
SIZES = Sizes(num_classes=K, in_channels=1, num_samples=N, height=8, width=8)
SMALL = TrainingConfig(epochs=1, batch_size=15, lr=0.01)

LOSS = """
import torch
from torch import nn
from mcr2.objectives import Objective

class Pull(Objective):
    readout = "class_mean"

    def __init__(self, num_classes, feature_dim, num_samples, strength=1.0):
        super().__init__(num_classes)
        self.given = (num_classes, feature_dim, num_samples, strength)
        self.points = nn.Parameter(torch.randn(num_classes, feature_dim))
        self.register_buffer("losses", torch.zeros(num_samples))

    def loss(self, features, labels, context):
        each = (features - self.points[labels]).square().sum(1)
        self.losses[context.indices] = each.detach()
        return each.mean(), {"pull": each.mean()}
"""


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
    method, data = find_method(spec.method), prepare(spec, load(spec))
    return method.fit(spec, data, Workspace(torch.device("cpu"))), method, data


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# --------------------------------------------------------------------------------- a fair start


def start(spec):
    return find_method(spec.method).build(spec, SIZES).state_dict()


def backbone(spec):
    return {k: v for k, v in start(spec).items() if k.startswith("backbone.")}


def test_all_methods_start_from_the_same_backbone_for_a_seed(small, loss_file):
    trained = [name for name, method in METHODS.items() if method.trained]
    assert {"ce", "mcr2", "vmcr2"} <= set(trained)
    before = torch.get_rng_state()
    first, *others = (backbone(replace(small, method=m)) for m in (*trained, f"{loss_file}:Pull"))
    assert len(first) > 10
    assert all(same(first, other) for other in others)
    assert torch.equal(torch.get_rng_state(), before)


def test_initial_weights_follow_their_own_stream_only(small):
    others = Streams(noise=1, validation=1, objective=1, batches=1, augmentation=1)
    for change in ({"streams": others}, {"ratio": 0.5, "shift": 0}):
        assert same(backbone(small), backbone(replace(small, **change)))
    for change in ({"streams": Streams(backbone=1)}, {"seed": 1}):
        assert not same(backbone(small), backbone(replace(small, **change)))


def test_an_objectives_own_parameters_follow_its_stream(small):
    heads = [
        start(replace(small, method="ce", streams=streams))["objective.head.weight"]
        for streams in (Streams(), Streams(backbone=9), Streams(objective=9))
    ]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_what_a_run_can_prove_changes_with_the_stream_it_is_of(small):
    def proof(**streams):
        got, _, data = fitted(replace(small, method="ce", streams=Streams(**streams)))
        return got.proof | {"labels": data.corruption.hash, "held_out": data.held_out.tolist()}

    first = proof()
    changed = {s: {n for n, v in proof(**{s: 5}).items() if v != first[n]} for s in STREAMS}
    assert changed == {
        "batches": {"sampling"},
        "augmentation": {"augmentation"},
        "backbone": {"initial_weights"},
        "objective": set(),
        "noise": {"labels"},
        "validation": {"held_out", "augmentation"},  # other images are trained on
    }


def test_without_a_held_out_share_nothing_is_selected_by_it(small):
    spec = replace(small, validation=0.0)
    assert rules_for(small) == tuple(SELECTIONS)
    assert rules_for(spec) == ("last", "oracle")
    got, *_ = fitted(spec)
    assert not [k for entry in got.history for k in entry["measures"] if "validation" in k]
    early = replace(spec, selections=("last", "patience", "clean_validation"))
    with pytest.raises(ValueError, match="patience and clean_validation needs a validation share"):
        rules_for(early)
    assert rules_for(replace(early, validation=0.1)) == early.selections


def test_augmentation_is_the_data_sets_unless_the_spec_says(small):
    data = prepare(small, load(small))
    assert feed_for(small, data).augmentation == Augmentation(shift=1, flip=False)
    own = replace(small, shift=0, flip=True)
    assert feed_for(own, data).augmentation == Augmentation(shift=0, flip=True)


# --------------------------------------------------------------------------------- finding methods


def test_a_method_says_how_it_is_read_and_what_may_be_set():
    named, of_a_module = find_method("mcr2"), find_method("mcr2.objectives:RateReduction")
    assert named is METHODS["mcr2"]
    for method in (named, of_a_module):
        assert (method.readout, method.additive) == ("nearest_subspace", False)
        assert method.options == {"eps_sq", "gamma1", "gamma2"}
    assert (named.fingerprint, len(of_a_module.fingerprint)) == ("", 64)
    assert (find_method("ce").readout, find_method("ce").additive) == ("head", True)


def test_a_class_of_a_file_is_a_method_and_runs(small, loss_file):
    spec = replace(small, method=f"{loss_file}:Pull", options=(("strength", 2.0),))
    got, method, data = fitted(spec)
    assert method.options == {"strength"}
    assert readout_for(spec, method) == "class_mean"
    encoder = method.load(spec, data.sizes, got.kept[1])
    assert encoder.objective.given == (K, 6, len(data.train), 2.0)
    # The state kept for each sample, in the order of the split trained on, came with it.
    assert bool((encoder.objective.losses > 0).all())


def test_files_of_one_name_do_not_meet(tmp_path):
    for readout in ("ridge", "class_mean"):
        (tmp_path / readout).mkdir()
        text = LOSS.replace('readout = "class_mean"', f'readout = "{readout}"')
        (tmp_path / readout / "loss.py").write_text(text)
    for readout in ("ridge", "class_mean", "ridge"):
        assert find_method(f"{tmp_path}/{readout}/loss.py:Pull").readout == readout


def test_the_fingerprint_is_of_the_content_of_the_file_that_defines_the_class(
    tmp_path, loss_file, monkeypatch
):
    first = find_method(f"{loss_file}:Pull").fingerprint
    package = tmp_path / "handed_on_losses"
    package.mkdir()
    (package / "__init__.py").write_text("from .pull import Pull\n")
    (package / "pull.py").write_text(LOSS)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("handed_on_losses:Pull", "handed_on_losses.pull:Pull")
    before = [find_method(name).fingerprint for name in names]
    assert before[1] == find_method(f"{package}/pull.py:Pull").fingerprint == first
    (package / "pull.py").write_text(LOSS + "# edited\n")
    assert all(find_method(n).fingerprint != b for n, b in zip(names, before, strict=True))


def test_the_readout_is_the_specs_or_the_methods():
    for expected, fields in {
        "nearest_subspace@3": {},
        "nearest_subspace@5": {"n_components": 5},
        "nearest_subspace_centred@2": {"readout": "nearest_subspace_centred@2"},
        "ridge": {"readout": "ridge", "n_components": 5},
    }.items():
        assert readout_for(RunSpec("mcr2", **fields), METHODS["mcr2"]) == expected


# ------------------------------------------------------------------------------------------- specs

#: Another value of every field of a spec, and of its training, than a new spec has.
OTHER = {
    "method": "path/to/loss.py:Loss",
    "dataset": "fashion_mnist",
    "ratio": 0.4,
    "seed": 3,
    "noise": "symmetric_excluding_true",
    "subset": 30,
    "classes": (3, 0, 7),
    "imbalance": 10.0,
    "image_size": 16,
    "axes": "NHWC",
    "labels_are": "noisy",
    "validation": 0.2,
    "backbone": "resnet18",
    "stem_stride": 2,
    "feature_dim": 7,
    "projection": "none",
    "width": 4,
    "shift": 0,
    "flip": True,
    "shuffle": False,
    "options": (("eps_sq", 0.1), ("name", "x"), ("on", True), ("off", None)),
    "readout": "nearest_subspace_centred@2",
    "n_components": 2,
    "streams": Streams(noise=1, batches=0),
    "selections": ("last", "oracle"),
    "measured_layers": ("stage2",),
}
OTHER_TRAINING = {
    "epochs": 11,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 0.02,
    "momentum": 0.0,
    "weight_decay": 0.5,
    "schedule": "steps",
    "milestones": (1, 4, 9),
    "decay": 0.5,
    "warmup": 0.1,
    "evaluate_every": 3,
    "micro_batch": 25,
    "accumulate": True,
    "amp": True,
    "compile": True,
    "tf32": True,
    "ghost_batches": True,
}
FULL = RunSpec(**OTHER, training=TrainingConfig(**OTHER_TRAINING))
#: Fields that hold others.
WHOLE = ("method", "training", "options", "streams")


def test_every_field_is_among_the_others():
    assert OTHER.keys() | {"training"} == {f.name for f in dataclasses.fields(RunSpec)}
    assert OTHER_TRAINING.keys() == {f.name for f in dataclasses.fields(TrainingConfig)}


@pytest.mark.parametrize("spec", [RunSpec("ce"), FULL])
def test_a_spec_survives_being_saved(spec):
    read = from_dict(json.loads(json.dumps(as_dict(spec))))
    assert read == spec
    assert hash(read) == hash(spec)


@pytest.mark.parametrize(
    "change",
    [{"colour": 1}, {"training": {"epoch": 3}}, {"streams": {"weather": 1}}, {"options": None}],
    ids=str,
)
def test_what_is_not_a_saved_spec_is_refused(change):
    with pytest.raises(ValueError, match="not a run's spec"):
        from_dict(as_dict(FULL) | change)
    with pytest.raises(ValueError, match=r"ratio is 2\.0"):
        from_dict(as_dict(FULL) | {"ratio": 2.0})


def as_text(value):
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("name", sorted((OTHER | OTHER_TRAINING).keys() - set(WHOLE)))
def test_vary_sets_one_field_from_its_text_and_field_value_reads_it(name):
    base = RunSpec("mcr2")
    if name in OTHER:
        value, wanted = OTHER[name], replace(base, **{name: OTHER[name]})
    else:
        value = OTHER_TRAINING[name]
        wanted = replace(base, training=replace(base.training, **{name: value}))
    got = vary(base, name, as_text(value))
    assert got == wanted != base
    assert field_value(got, name) == value
    assert type(field_value(got, name)) is type(value)
    assert vary(got, name, as_text(field_value(base, name))) == base


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("lr", "1e-2", 0.01),
        ("flip", "false", False),
        ("shift", "None", None),
        ("subset", "none", None),
        ("milestones", "3", (3,)),
        ("milestones", "", ()),
        ("classes", "none", None),
        ("classes", "5", (5,)),
        ("streams.batches", "77", 77),
        ("streams.noise", "none", None),
        ("eps_sq", "1e-3", 0.001),
        ("eps_sq", "3", 3),
        ("eps_sq", "true", True),
        ("eps_sq", "None", None),
        ("eps_sq", "cosine", "cosine"),
    ],
)
def test_vary_reads_text_and_replaces_an_option_that_was_there(name, text, value):
    got = vary(FULL, name, text, {"eps_sq", "gamma1"})
    assert field_value(got, name) == value
    assert type(field_value(got, name)) is type(value)
    assert len(got.options) == len(FULL.options)
    with pytest.raises(KeyError):
        field_value(got, "gamma1")  # left to its default


def test_setting_a_stream_changes_that_stream_only_and_streams_differ():
    seeds = [Streams().seeds(seed) for seed in range(20)]
    for stream in STREAMS:
        for value in (0, 5):
            assert Streams(**{stream: value}).seeds(10) == seeds[10] | {stream: value}
    assert [s["noise"] for s in seeds] == list(range(20))
    assert all(tuple(s) == STREAMS for s in seeds)
    derived = [s[name] for s in seeds for name in STREAMS if name != "noise"]
    assert len(set(derived)) == len(derived)
    assert all(0 <= seed < 2**32 for seed in derived)


# ------------------------------------------------------------------------------------------ classes


DIGITS = RunSpec("ce", dataset="digits")


def test_classes_and_imbalance_are_applied_before_anything_is_drawn():
    spec = replace(DIGITS, classes=(8, 1), imbalance=2.0, ratio=0.4)
    data, whole = prepare(spec, load(spec)), load(DIGITS)
    assert data.sizes.num_classes == 2
    counts = whole.train.labels.bincount().tolist()
    kept = counts[8] + round(counts[1] / 2)
    assert len(data.train) + len(data.held_out) == len(data.corruption.labels) == kept
    assert data.test.labels.bincount().tolist() == whole.test.labels.bincount()[[8, 1]].tolist()
    assert load(spec).classes == ("8", "1")


@pytest.mark.parametrize("classes, left", [((8,), (8, 9)), ((9, 0, 5), (1, 2, 3, 4, 6, 7, 8))])
def test_the_classes_that_a_spec_leaves_out_are_there_in_full(classes, left):
    found = unused_classes(replace(DIGITS, classes=classes, imbalance=3.0, subset=40))
    assert found.classes == tuple(map(str, left))
    assert found.content_hash() == load(DIGITS).of_classes(left).content_hash()


def test_there_are_classes_that_leave_too_few():
    for classes, count in (((9,), 1), (None, 0), (tuple(range(10)), 0)):
        with pytest.raises(ValueError, match=f"classes leaves {count} of 10"):
            unused_classes(replace(DIGITS, classes=classes))


# -------------------------------------------------------------------------------------------- keys


def test_a_key_depends_on_every_field_of_the_spec(small):
    changed = [replace(small, **{n: v}) for n, v in OTHER.items() if n != "dataset"]
    changed += [
        replace(small, training=replace(SMALL, **{n: v})) for n, v in OTHER_TRAINING.items()
    ]
    dataset, method = load(small), METHODS["mcr2"]
    keys = [run_key(spec, dataset, method) for spec in (small, *changed)]
    assert len(set(keys)) == len(keys)
    assert run_key(from_dict(as_dict(small)), load(small), method) == keys[0]


def test_a_key_follows_the_datas_content_and_defaults_not_its_place(small, tmp_path):
    def key(path):
        spec = replace(small, dataset=path)
        return run_key(spec, load(spec), METHODS["mcr2"])

    (tmp_path / "elsewhere").mkdir()
    assert key(write_npz(tmp_path / "elsewhere" / "other.npz")) == key(small.dataset)
    assert key(write_npz(tmp_path / "changed.npz", seed=1)) != key(small.dataset)
    dataset = load(small)
    changes = ({"classes": ("a", "b", "c", "never seen")}, {"flip": True}, {"shift": 2})
    others = [replace(dataset, **change) for change in changes]
    assert {d.content_hash() for d in others} == {dataset.content_hash()}
    assert len({run_key(small, d, METHODS["mcr2"]) for d in (dataset, *others)}) == 4


@pytest.mark.parametrize("field", ["method", "backbone"])
def test_a_key_depends_on_a_users_files(small, loss_file, field):
    spec = replace(small, **{field: f"{loss_file}:Pull"})

    def key():
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
