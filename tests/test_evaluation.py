"""The evaluator reads what it says it reads, against the labels it says, and leaves no trace."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestCentroid
from torch import nn

from ce_baseline import CrossEntropy
from mcr2.backbones import BACKBONES
from mcr2.data import Split
from mcr2.evaluation import (
    Evaluation,
    Key,
    Labelled,
    encode,
    encode_layers,
    evaluate,
    evaluate_features,
    measure_key,
)
from mcr2.objectives import RateReduction
from mcr2.training import Encoder, TrainingConfig, seeded, train

K, D = 3, 6


def images_of(labels, seed):
    """Noisy images, brighter at their class's columns."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 160, (len(labels), 1, 8, 8), generator=generator)
    for image, label in zip(images, labels, strict=True):
        image[0, :, 2 * int(label) : 2 * int(label) + 2] += 60
    return images.to(torch.uint8)


def noisy_split(n, seed):
    clean = torch.arange(n) % K
    labels = clean.clone()
    labels[::4] = (labels[::4] + 1) % K
    return Split(images_of(clean, seed), labels, clean)


TRAIN, VALIDATION = noisy_split(61, 0), noisy_split(31, 1)
CLEAN = torch.arange(40) % K
TEST = Split(images_of(CLEAN, 2), CLEAN, CLEAN)


def trained(objective):
    """An encoder after a little training: its batch statistics are not the initial ones."""
    with seeded(0):
        net = BACKBONES["resnet10_w8"](in_channels=1, feature_dim=D)
    settings = TrainingConfig(epochs=3, batch_size=20, lr=0.05)
    train(net, objective, TRAIN, settings)
    return Encoder(net, objective)


@pytest.fixture(scope="module")
def encoder():
    with seeded(1):
        return trained(CrossEntropy(K, D))


@pytest.fixture(scope="module")
def features(encoder):
    """Features of train, validation and test, image by image, on a copy."""
    alone = copy.deepcopy(encoder).eval()
    with torch.no_grad():
        return [
            torch.cat([alone(image[None].float() / 255) for image in split.images])
            for split in (TRAIN, VALIDATION, TEST)
        ]


def share(a, b):
    return float(np.mean(np.asarray(a) == np.asarray(b)))


# ------------------------------------------------------------------------------------------ encode


@pytest.mark.parametrize("batch_size", [1, 7, 61, 500])
def test_encode_is_a_plain_loop_in_evaluation_mode(encoder, features, batch_size):
    got = encode(encoder, TRAIN.images, batch_size=batch_size)
    torch.testing.assert_close(got, features[0], rtol=1e-4, atol=1e-5)
    assert not got.requires_grad


@pytest.mark.parametrize("mode", [True, False])
def test_encode_leaves_the_mode_and_the_weights_as_they_were(encoder, mode):
    before = copy.deepcopy(encoder.state_dict())
    encoder.train(mode)
    encode(encoder, TRAIN.images)
    assert all(module.training is mode for module in encoder.modules())
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_encode_restores_the_mode_of_an_encoder_that_fails():
    class Failing(nn.Module):
        def forward(self, images):
            raise RuntimeError("out of memory")

    failing = Failing().train()
    with pytest.raises(RuntimeError, match="out of memory"):
        encode(failing, TRAIN.images)
    assert failing.training


@pytest.mark.parametrize(
    "dtype, expected",
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_features_come_in_at_least_single_precision(dtype, expected):
    class Cast(nn.Module):
        def forward(self, images):
            return images.flatten(1).to(dtype)

    assert encode(Cast(), TRAIN.images).dtype == expected


# -------------------------------------------------------------------------------- constructed cases


class Oracle(nn.Module):
    """An encoder whose features are its images: three channels of one pixel, one-hot."""

    def forward(self, images):
        return images.flatten(1)

    def classifier(self):
        return torch.eye(K), None


def predicted_as(predictions, labels, clean):
    """A split on which the oracle's own head predicts ``predictions``."""
    images = 255 * nn.functional.one_hot(torch.tensor(predictions), K)[:, :, None, None]
    clean = None if clean is None else torch.tensor(clean)
    return Split(images.to(torch.uint8), torch.tensor(labels), clean)


def test_memorization_and_accuracies_are_counted_against_the_right_labels():
    #           right, right, fitted, recovered, neither, fitted; the first two labels are clean
    noisy = [0, 1, 2, 0, 1, 2]
    clean = [0, 1, 0, 1, 2, 1]
    guess = [0, 2, 2, 1, 0, 2]
    train_split = predicted_as(guess, noisy, clean)
    validation = predicted_as([0, 1, 2, 2, 1], [0, 2, 2, 2, 0], [0, 1, 1, 1, 0])
    test = predicted_as([0, 1, 2, 0], [0, 1, 2, 1], None)
    evaluation = evaluate(
        Oracle(), train_split, test, validation, num_classes=K, readout="head", full=False
    )
    accuracies = ("accuracy", "fit_noisy", "fit_corrupted", "recovered")
    assert {
        key: value
        for key, value in evaluation.measures.items()
        if "/head/" in key and key.endswith(accuracies)
    } == {
        "features/train/noisy/head/fit_noisy": 3 / 6,
        "features/train/noisy/head/fit_corrupted": 2 / 4,
        "features/train/noisy/head/recovered": 1 / 4,
        "features/train/clean/head/accuracy": 2 / 6,
        "features/validation/noisy/head/accuracy": 3 / 5,
        "features/validation/clean/head/accuracy": 2 / 5,
        "features/test/clean/head/accuracy": 3 / 4,
    }


def test_without_wrong_labels_there_is_nothing_to_memorise():
    split = predicted_as([0, 1, 2], [0, 1, 1], [0, 1, 1])
    evaluation = evaluate(Oracle(), split, split, num_classes=K, readout="head", full=False)
    assert evaluation.get("fit_noisy", split="train", labels="noisy") == pytest.approx(2 / 3)
    assert evaluation.get("fit_corrupted", split="train", labels="noisy") is None
    assert evaluation.get("recovered", split="train", labels="noisy") is None


def test_without_clean_labels_nothing_is_said_about_them():
    split = predicted_as([0, 1, 2], [0, 1, 1], None)
    evaluation = evaluate(Oracle(), split, split, num_classes=K, readout="head")
    assert not [k for k in evaluation.measures if k.startswith("features/train/clean")]
    assert evaluation.get("fit_corrupted", split="train", labels="noisy") is None
    assert not [k for k in evaluation.measures if "/validation/" in k]


# -------------------------------------------------------------------- readouts on a trained network


def subspace_guesses(H, y, n, queries):
    residuals = []
    for k in range(K):
        _, _, Vt = np.linalg.svd(H[y == k], full_matrices=False)
        residuals.append(((queries - queries @ Vt[:n].T @ Vt[:n]) ** 2).sum(1))
    return np.argmin(residuals, 0)


def ridge_guesses(H, y, queries):
    penalty = 1e-3 * ((H - H.mean(0)) ** 2).sum() / H.size
    return Ridge(alpha=penalty * len(H)).fit(H, np.eye(K)[y]).predict(queries).argmax(1)


READERS = {
    "class_mean": lambda H, y, queries: NearestCentroid().fit(H, y).predict(queries),
    "ridge": ridge_guesses,
    "nearest_subspace@1": lambda H, y, queries: subspace_guesses(H, y, 1, queries),
    "nearest_subspace@4": lambda H, y, queries: subspace_guesses(H, y, 4, queries),
}


@pytest.fixture(scope="module")
def evaluation(encoder):
    return evaluate(
        encoder,
        TRAIN,
        TEST,
        VALIDATION,
        num_classes=K,
        readout="head",
        readouts=tuple(READERS),
    )


@pytest.mark.parametrize("name", READERS)
def test_readouts_are_fitted_on_the_noisy_labels_of_the_training_features(
    name, evaluation, features
):
    H, H_validation, H_test = (f.double().numpy() for f in features)
    noisy, clean = TRAIN.labels.numpy(), TRAIN.clean_labels.numpy()
    wrong = noisy != clean
    guesses = {
        part: READERS[name](H, noisy, queries)
        for part, queries in (("train", H), ("validation", H_validation), ("test", H_test))
    }
    expected = {
        ("accuracy", "test", "clean"): share(guesses["test"], TEST.labels),
        ("accuracy", "validation", "noisy"): share(guesses["validation"], VALIDATION.labels),
        ("accuracy", "train", "clean"): share(guesses["train"], clean),
        ("fit_noisy", "train", "noisy"): share(guesses["train"], noisy),
        ("fit_corrupted", "train", "noisy"): share(guesses["train"][wrong], noisy[wrong]),
        ("recovered", "train", "noisy"): share(guesses["train"][wrong], clean[wrong]),
    }
    got = {
        (measure, split, labels): evaluation.get(measure, split=split, labels=labels, readout=name)
        for measure, split, labels in expected
    }
    assert got == pytest.approx(expected)
    # The same readout fitted on clean labels would have read something else.
    assert share(READERS[name](H, clean, H), noisy) != got["fit_noisy", "train", "noisy"]


def test_the_head_is_read_as_it_was_trained(encoder, evaluation, features):
    W, b = (p.detach().double().numpy() for p in encoder.objective.head.parameters())
    guesses = (features[2].double().numpy() @ W.T + b).argmax(1)
    assert evaluation.get("accuracy", split="test", labels="clean") == share(guesses, TEST.labels)
    guesses = (features[0].double().numpy() @ W.T + b).argmax(1)
    assert evaluation.get("fit_noisy", split="train", labels="noisy") == share(
        guesses, TRAIN.labels
    )


def test_the_held_out_accuracy_is_against_noisy_labels(encoder, evaluation, features):
    W, b = (p.detach().double().numpy() for p in encoder.objective.head.parameters())
    guesses = (features[1].double().numpy() @ W.T + b).argmax(1)
    accuracy = evaluation.get("accuracy", split="validation", labels="noisy")
    assert accuracy == share(guesses, VALIDATION.labels)
    clean = evaluation.get("accuracy", split="validation", labels="clean")
    assert clean == share(guesses, VALIDATION.clean_labels) != accuracy


def test_rates_are_of_unit_norm_features_by_either_labels(evaluation, features):
    def logdet(Z, scale):
        return np.linalg.slogdet(np.eye(D) + scale * Z.T @ Z)[1] / 2

    def rates(H, labels):
        Z = H / np.linalg.norm(H, axis=1, keepdims=True)
        total = logdet(Z, D / (0.5 * len(Z)))
        parts = [Z[labels == k] for k in range(K)]
        compressed = sum(len(P) / len(Z) * logdet(P, D / (0.5 * len(P))) for P in parts)
        return {"rate": total, "compressed_rate": compressed, "reduction": total - compressed}

    for split, H, labels, kind in (
        ("train", features[0], TRAIN.labels, "noisy"),
        ("train", features[0], TRAIN.clean_labels, "clean"),
        ("test", features[2], TEST.labels, "clean"),
    ):
        expected = rates(H.double().numpy(), labels.numpy())
        got = {m: evaluation.get(m, split=split, labels=kind, readout="-") for m in expected}
        assert got == pytest.approx(expected, rel=1e-4)
    assert not [k for k in evaluation.measures if k.startswith("features/test/noisy")]


def test_rank_measures_are_of_the_centred_features(evaluation, features):
    for split, H in (("train", features[0]), ("test", features[2])):
        H = H.double().numpy()
        energies = np.linalg.svd(H - H.mean(0), compute_uv=False) ** 2
        p = np.sqrt(energies) / np.sqrt(energies).sum()
        expected = {
            "participation_ratio": energies.sum() ** 2 / (energies**2).sum(),
            "effective_rank": np.exp(-(p * np.log(p)).sum()),
        }
        got = {m: evaluation.get(m, split=split) for m in expected}
        assert got == pytest.approx(expected, rel=1e-4)


def test_a_short_evaluation_is_a_part_of_the_full_one(encoder, evaluation):
    short = evaluate(
        encoder,
        TRAIN,
        TEST,
        VALIDATION,
        num_classes=K,
        readout="head",
        readouts=tuple(READERS),
        full=False,
    )
    assert short.measures.items() <= evaluation.measures.items()
    assert not short.profiles
    assert "features/train/noisy/ridge/nc3" in short.measures
    left = evaluation.measures.keys() - short.measures.keys()
    assert {"features/train/clean/-/nc1", "features/train/noisy/-/smallest_angle"} & left
    assert not [k for k in left if k.endswith(("fit_noisy", "fit_corrupted", "recovered"))]


def test_every_key_names_layer_split_labels_readout_and_measure(evaluation):
    for key in evaluation.measures:
        layer, split, labels, readout, measure = key.split("/")
        assert layer == "features"
        assert split in {"train", "train_wrong", "train_correct", "validation", "test"}
        assert labels in {"noisy", "clean", "-"}
        assert readout.removesuffix("+clean") in {"head", *READERS, "-"}
        assert measure_key(measure, split=split, labels=labels, readout=readout) == key


def test_evaluating_changes_nothing_and_repeats(encoder, evaluation):
    before = copy.deepcopy(encoder.state_dict())
    random = torch.get_rng_state()
    encoder.train()
    again = evaluate(encoder, TRAIN, TEST, VALIDATION, num_classes=K, readout="head")
    assert again.measures.items() <= evaluation.measures.items()
    assert encoder.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


# ------------------------------------------------------------------------------------------ layers


class Staged(Oracle):
    """The oracle with two stages, which counts what passes through it."""

    passed = 0

    def layer_names(self):
        return ("wide", "narrow")

    def layer_features(self, images, names):
        self.passed += len(images)
        whole = {
            "features": images.flatten(1),
            "wide": torch.cat([images.flatten(1), 1 + images.flatten(1).square()], 1),
            "narrow": images.flatten(1)[:, :2],
        }
        return {name: whole[name] for name in names}


def staged_splits():
    guess = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    clean = [0, 1, 2, 0, 1, 2, 0, 1, 1, 2]
    noisy = [0, 1, 2, 0, 1, 2, 1, 1, 1, 2]
    return predicted_as(guess, noisy, clean), predicted_as(guess, clean, clean)


@pytest.mark.parametrize("full", [True, False])
def test_layers_are_measured_under_their_names_in_one_pass(full):
    train_split, test = staged_splits()
    encoder, names = Staged(), ("nearest_subspace@2", "class_mean")
    arguments = {"num_classes": K, "readout": "head", "readouts": names, "full": full}
    evaluation = evaluate(encoder, train_split, test, layers=("wide", "narrow"), **arguments)
    assert encoder.passed == len(train_split) + len(test)
    alone = evaluate(Oracle(), train_split, test, **arguments)
    keys = [Key.parse(key) for key in evaluation.measures]
    assert alone.measures == {
        str(key): evaluation.measures[str(key)] for key in keys if key.layer == "features"
    }
    of_train, of_test = (
        encode_layers(encoder, split.images, ("wide",))["wide"] for split in (train_split, test)
    )
    expected = evaluate_features(
        Labelled(of_train, train_split.labels, train_split.clean_labels),
        Labelled(of_test, test.labels),
        num_classes=K,
        readouts=names,
        full=full,
        layer="wide",
    )
    got = {str(key): evaluation.measures[str(key)] for key in keys if key.layer == "wide"}
    assert got == expected.measures
    # No stage has a head; what does not fit one's width is a note.
    assert {key.readout for key in keys if key.layer == "narrow"} >= {"ridge", "class_mean"}
    assert not [key for key in keys if key.layer != "features" and key.readout == "head"]
    assert evaluation.get("accuracy", split="test", labels="clean", layer="narrow") is not None
    where = {"split": "test", "labels": "clean", "readout": names[0], "layer": "narrow"}
    assert evaluation.get("accuracy", **where) is None
    assert evaluation.notes[0].startswith(f"narrow: {names[0]} could not be fitted")


def test_encoding_layers_keeps_the_features_and_refuses_what_is_not_there():
    images = staged_splits()[0].images
    found = encode_layers(Staged(), images, ("narrow",), batch_size=3)
    assert list(found) == ["features", "narrow"]
    assert torch.equal(found["features"], encode(Oracle(), images))
    with pytest.raises(
        ValueError, match="unknown layer 'stem'; choose from features, wide, narrow"
    ):
        encode_layers(Staged(), images, ("stem",))
    with pytest.raises(ValueError, match="unknown layer 'stem'; choose from features"):
        encode_layers(Oracle(), images, ("stem",))


# ------------------------------------------------------------------------------------------ errors


def test_an_encoder_without_a_head_cannot_be_read_by_it():
    with pytest.raises(ValueError, match="'head' needs the objective's own classifier"):
        evaluate(trained(RateReduction(K)), TRAIN, TEST, num_classes=K, readout="head")


@pytest.mark.parametrize("name", ["knn", "nearest_subspace", "ridge@3"])
def test_an_unknown_readout_is_named(encoder, name):
    with pytest.raises(ValueError, match=name):
        evaluate(encoder, TRAIN, TEST, num_classes=K, readout="head", readouts=(name,))


def test_a_measure_that_was_not_taken_is_answered_with_those_that_were():
    evaluation = Evaluation("ridge", {"features/test/clean/head/accuracy": 0.5})
    with pytest.raises(KeyError, match=r"test/clean/ridge/accuracy was not .*test/clean/head"):
        evaluation.get("accuracy", split="test", labels="clean")
    assert evaluation.get("accuracy", split="test", labels="clean", readout="head") == 0.5
