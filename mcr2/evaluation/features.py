"""Features, labels and a linear head from anywhere, read by every metric and readout.

A *full* reading takes everything; the one that is not, for every evaluation of a training run,
takes what costs little beside encoding the images. Every key of the latter is one of the former.
docs/evaluation.md lists the keys.

Conventions: labels are ``noisy`` where they are those trained on and ``clean`` where they are
true; a test split's own are clean. The split ``train_wrong`` holds the training samples whose two
labels differ, ``train_untouched`` the others. Readouts are fitted on the training features with
the noisy labels, as a user would have them; one that is called ``NAME+clean`` was fitted on the
clean ones, as a diagnostic. Measures that need a linear classifier stand under ``head`` and under
``ridge``, which is fitted alike whatever made the features. What is undefined is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.evaluation.results import Evaluation, Profile, Value, measure_key
from mcr2.metrics.accuracy import accuracy
from mcr2.metrics.coding import coding_measures
from mcr2.metrics.collapse import neural_collapse
from mcr2.metrics.margins import alignment, margins
from mcr2.metrics.memorization import memorization
from mcr2.metrics.moments import first_moments
from mcr2.metrics.rank import (
    FeatureRank,
    between_classes,
    class_geometry,
    coherence,
    rank_and_spectrum,
)
from mcr2.readouts import (
    WITH_COMPONENTS,
    ClassBases,
    LinearClassifier,
    Readout,
    class_bases,
    fit_readout,
    parse_readout,
)

#: The readout by which everything is read, fitted identically for all.
COMMON_READOUT = "ridge"

#: The linear classifiers that collapse and margins are measured with.
CLASSIFIERS = ("head", COMMON_READOUT)

#: Measures of class means, of those about the training class means, and of a classifier.
OF_MEANS = (
    *("nc1", "nc1_ratio", "cdnv"),
    *("nc2_equinorm", "nc2_equiangular", "nc2_maxangle", "nc2_etf"),
    *("mean_energy", "means_reliable", "smallest_class"),
)
ABOUT_TRAIN = ("nc1", "nc1_ratio", "cdnv")
OF_CLASSIFIER = (
    *("nc2_equinorm_w", "nc2_equiangular_w", "nc2_maxangle_w"),
    *("nc3", "nc3_etf", "nc4"),
)

#: Quantiles of margins that are measures, by name, and those that make a profile.
QUANTILES = {f"q{round(100 * q):02d}": q for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)}
MARGIN_GRID = tuple(i / 40 for i in range(41))

#: The subset of margins that is cheap to keep along a run.
OF_HISTORY = ("margin_normalised_mean", *(f"margin_normalised_q{q}" for q in ("05", "50", "95")))

#: A profile of cosines holds so many samples a class, and not more than so many in all.
COSINES, MOST_COSINES = 12, 240

#: Components of the subspace readouts that stand in every full reading, and neighbours of k-NN.
COMPONENTS, NEIGHBOURS = (1, 2, 3, 5, 10), 5

#: A profile of class spectra holds so many classes at most, the first ones.
MOST_SPECTRA = 100


@dataclass(frozen=True, eq=False)
class Labelled:
    """The features of a split and their labels.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers: as trained on; of a test split the true ones.
        clean_labels: the true labels ``(N,)``, or None where they are unknown.
    """

    features: Tensor
    labels: Tensor
    clean_labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _View:
    """A set of samples by one set of labels, which may be of more than one kind."""

    split: str
    kinds: tuple[str, ...]
    features: Tensor
    labels: Tensor


class _Board:
    """Where measures and profiles are noted."""

    def __init__(self) -> None:
        self.measures: dict[str, Value] = {}
        self.profiles: dict[str, Profile] = {}

    def put(
        self,
        values: Mapping[str, Value],
        *,
        split: str,
        kinds: Sequence[str] = ("-",),
        readout: str = "-",
    ) -> None:
        for kind in kinds:
            for name, value in values.items():
                key = measure_key(name, split=split, labels=kind, readout=readout)
                self.measures[key] = int(value) if isinstance(value, bool) else value

    def put_profile(
        self,
        name: str,
        values: Tensor,
        *,
        split: str,
        kinds: Sequence[str] = ("-",),
        readout: str = "-",
        digits: int | None = None,
    ) -> None:
        for kind in kinds:
            key = measure_key(name, split=split, labels=kind, readout=readout)
            self.profiles[key] = _rounded(values.tolist(), digits)


def standard_readouts(dim: int, *components: int) -> tuple[str, ...]:
    """Return the names of the readouts that a full reading has.

    The subspace readouts stand at several numbers of components, so that every reading shows
    how much that choice matters.

    Args:
        dim: d; numbers of components from d on are left out.
        components: further numbers of components.

    Example:
        >>> [name for name in standard_readouts(4) if "subspace@" in name]
        ['nearest_subspace@1', 'nearest_subspace@2', 'nearest_subspace@3']
    """
    counts = sorted(n for n in {*COMPONENTS, *components} if n < dim)
    return (
        COMMON_READOUT,
        "class_mean",
        *(f"nearest_subspace@{n}" for n in counts),
        *(f"nearest_subspace_centred@{n}" for n in counts),
        f"knn@{NEIGHBOURS}",
        "logistic_regression",
        "linear_svm",
    )


def evaluate_features(
    train: Labelled,
    test: Labelled | None = None,
    validation: Labelled | None = None,
    *,
    num_classes: int,
    readout: str = COMMON_READOUT,
    readouts: Sequence[str] = (),
    head: tuple[Tensor, Tensor | None] | None = None,
    full: bool = True,
) -> Evaluation:
    """Read features: accuracy, memorization, rank, collapse, rates, margins.

    Args:
        train: the samples that readouts are fitted on.
        test: samples to measure, whose ``labels`` are the true ones.
        validation: samples held out, with labels as noisy as the training ones.
        num_classes: K, at least 2.
        readout: the classifier to report by default, a name of :mod:`mcr2.readouts`.
        readouts: further classifiers to read by, beside ``ridge``. Where one of them cannot be
            fitted, what it would have read is None.
        head: the linear classifier W ``(K, d)``, b ``(K,)`` or None that came with the features.
        full: False takes the cheap subset.

    Returns:
        :class:`Evaluation`.

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, labels out of range, entries that are not finite,
            fewer than two classes, an unknown readout, or a default readout that cannot be
            fitted (``head`` without a head).

    Example:
        >>> corners = torch.eye(3).repeat(4, 1)
        >>> reading = evaluate_features(Labelled(corners, torch.arange(12) % 3), num_classes=3)
        >>> abs(round(reading.get("nc1", split="train", labels="noisy", readout="-"), 6))
        0.0
        >>> reading.get("accuracy", split="train", labels="noisy", readout="ridge")
        Traceback (most recent call last):
        ...
        KeyError: 'features/train/noisy/ridge/accuracy was not measured; ...
        >>> reading.get("fit_noisy", split="train", labels="noisy")
        1.0
    """
    if num_classes < 2:
        raise ValueError(f"an evaluation needs at least two classes; got num_classes={num_classes}")
    train = _checked(train, num_classes)
    test = None if test is None else _checked(test, num_classes)
    validation = None if validation is None else _checked(validation, num_classes)
    for other in (test, validation):
        if other is not None and other.features.shape[1] != train.features.shape[1]:
            raise ValueError(
                f"features must all be of one width; the training ones have "
                f"{train.features.shape[1]} dimensions and others {other.features.shape[1]}"
            )
    names = tuple(dict.fromkeys((readout, COMMON_READOUT, *readouts)))
    for name in names:
        parse_readout(name)

    board = _Board()
    fits = _fit(names, train, train.labels, num_classes, head, needed=(readout, COMMON_READOUT))
    for name, fitted in fits.items():
        _read_predictions(board, name, fitted, train, test, validation)
    if head is not None and "head" not in fits:
        fits["head"] = fit_readout(
            "head", train.features, train.labels, num_classes=num_classes, head=head
        )
    classifiers = {
        name: fitted
        for name in CLASSIFIERS
        if isinstance(fitted := fits.get(name), LinearClassifier)
    }
    views = _views(train, test)
    wide = [v for v in views if v.split in ("train", "test")]
    if not full:
        wide = [v for v in wide if (v.split, v.kinds[0]) in (("train", "noisy"), ("test", "clean"))]
        wide = [_View(v.split, v.kinds[:1], v.features, v.labels) for v in wide]

    for split, labelled in (("train", train), ("test", test)):
        if labelled is not None:
            ranks, values = rank_and_spectrum(labelled.features)
            board.put(asdict(ranks), split=split)
            if full and float(values.sum()) > 0:
                board.put_profile("spectrum", values / values.sum(), split=split)
    for view in wide:
        _read_collapse(board, view, classifiers, num_classes)
        _read_geometry(board, view, num_classes, full)
        rates = coding_measures(view.features, view.labels, num_classes=num_classes)
        totals = asdict(rates)
        class_rates = torch.tensor(totals.pop("class_rates"), dtype=torch.float64)
        board.put(totals, split=view.split, kinds=view.kinds)
        if full:
            board.put_profile("class_rates", class_rates, split=view.split, kinds=view.kinds)
        if full or view.split == "train":
            _read_margins(board, view, classifiers, full)
    if not full:
        return Evaluation(readout, board.measures)

    for view in views:
        if view not in wide:
            _read_collapse(board, view, classifiers, num_classes)
    _read_about_train(board, views, train, classifiers, num_classes)
    if test is not None:
        _read_cosines(board, test, num_classes)
    if "linear_svm" in fits:
        svm = fits["linear_svm"]
        for name, fitted in classifiers.items():
            value = None
            if isinstance(svm, LinearClassifier):
                value = alignment(fitted.weight, svm.weight)
            board.put({"svm_alignment": value}, split="train", kinds=("noisy",), readout=name)
    if test is not None and train.clean_labels is not None and _differ(train):
        rest = tuple(name for name in names if name != "head")
        for name, fitted in _fit(rest, train, train.clean_labels, num_classes).items():
            value = None if fitted is None else accuracy(fitted.predict(test.features), test.labels)
            kinds, by = ("clean",), f"{name}+clean"
            board.put({"accuracy": value}, split="test", kinds=kinds, readout=by)
    return Evaluation(readout, board.measures, board.profiles)


def _checked(given: Labelled, num_classes: int) -> Labelled:
    """Check features and labels, and return them detached and on one device."""
    H, y = checks.samples(given.features, given.labels, num_classes)
    clean = given.clean_labels
    if clean is not None:
        try:
            _, clean = checks.samples(H, clean, num_classes)
        except (ValueError, TypeError) as error:
            raise type(error)(f"clean {error}") from None
    return Labelled(H, y, clean)


def _differ(labelled: Labelled) -> bool:
    return labelled.clean_labels is not None and not torch.equal(
        labelled.labels, labelled.clean_labels
    )


def _views(train: Labelled, test: Labelled | None) -> list[_View]:
    """Return the sets of samples and labels to measure; equal labels are one view of two kinds."""
    H, noisy, clean = train.features, train.labels, train.clean_labels
    views = []
    if clean is None:
        views.append(_View("train", ("noisy",), H, noisy))
    elif not _differ(train):
        views.append(_View("train", ("noisy", "clean"), H, noisy))
    else:
        wrong = noisy != clean
        views += [
            _View("train", ("noisy",), H, noisy),
            _View("train", ("clean",), H, clean),
            _View("train_wrong", ("noisy",), H[wrong], noisy[wrong]),
            _View("train_wrong", ("clean",), H[wrong], clean[wrong]),
        ]
        if not bool(wrong.all()):
            kept = ~wrong
            views.append(_View("train_untouched", ("noisy", "clean"), H[kept], noisy[kept]))
    if test is not None:
        views.append(_View("test", ("clean",), test.features, test.labels))
    return views


def _fit(
    names: Sequence[str],
    train: Labelled,
    labels: Tensor,
    num_classes: int,
    head: tuple[Tensor, Tensor | None] | None = None,
    needed: Sequence[str] = (),
) -> dict[str, Readout | None]:
    """Fit readouts by name; None for one that fails, unless it is needed.

    All numbers of components of a kind are slices of one decomposition.
    """
    bases: dict[str, ClassBases] = {}

    def fit(name: str) -> Readout:
        kind, number = parse_readout(name)
        if kind not in WITH_COMPONENTS or number is None:
            return fit_readout(name, train.features, labels, num_classes=num_classes, head=head)
        if kind not in bases:
            bases[kind] = class_bases(
                train.features,
                labels,
                num_classes=num_classes,
                centred=kind == "nearest_subspace_centred",
            )
        return bases[kind].subspaces(number)

    fits: dict[str, Readout | None] = {}
    for name in names:
        try:
            fits[name] = fit(name)
        # Whatever a solver raises: a run that took hours is not lost to one of its readouts.
        except Exception:
            if name in needed or name == "head":
                raise
            fits[name] = None
    return fits


def _read_predictions(
    board: _Board,
    name: str,
    fitted: Readout | None,
    train: Labelled,
    test: Labelled | None,
    validation: Labelled | None,
) -> None:
    """Note accuracies and memorization by one readout."""

    def put(measure: str, split: str, kind: str, value: Value) -> None:
        board.put({measure: value}, split=split, kinds=(kind,), readout=name)

    def share(guesses: Tensor | None, labels: Tensor) -> float | None:
        return None if guesses is None else accuracy(guesses, labels)

    if test is not None:
        guesses = None if fitted is None else fitted.predict(test.features)
        put("accuracy", "test", "clean", share(guesses, test.labels))
    if validation is not None:
        guesses = None if fitted is None else fitted.predict(validation.features)
        put("accuracy", "validation", "noisy", share(guesses, validation.labels))
        if validation.clean_labels is not None:
            put("accuracy", "validation", "clean", share(guesses, validation.clean_labels))
    guesses = None if fitted is None else fitted.predict_training(train.features)
    if train.clean_labels is not None:
        put("accuracy", "train", "clean", share(guesses, train.clean_labels))
    learnt: dict[str, Value] = dict.fromkeys(("fit_noisy", "fit_corrupted", "recovered"))
    if guesses is not None:
        learnt = asdict(memorization(guesses, train.labels, train.clean_labels))
    board.put(learnt, split="train", kinds=("noisy",), readout=name)


def _collapse(
    view: _View,
    classifier: LinearClassifier | None,
    num_classes: int,
    means: Tensor | None = None,
) -> dict[str, Value]:
    return asdict(
        neural_collapse(
            view.features,
            view.labels,
            num_classes=num_classes,
            weight=None if classifier is None else classifier.weight,
            bias=None if classifier is None else classifier.bias,
            means=means,
        )
    )


def _read_collapse(
    board: _Board, view: _View, classifiers: Mapping[str, LinearClassifier], num_classes: int
) -> None:
    """Note NC1 to NC4 of a view; all None where a class has no sample, and so no mean."""
    counts = torch.bincount(view.labels, minlength=num_classes)
    defined = bool((counts > 0).all())
    of_means: dict[str, Value] = dict.fromkeys(OF_MEANS)
    of_means["smallest_class"] = int(counts.min())

    if defined and not classifiers:
        of_means = _part(_collapse(view, None, num_classes), OF_MEANS)
    for name, classifier in classifiers.items():
        of_classifier: dict[str, Value] = dict.fromkeys(OF_CLASSIFIER)
        if defined:
            found = _collapse(view, classifier, num_classes)
            of_means, of_classifier = _part(found, OF_MEANS), _part(found, OF_CLASSIFIER)
        board.put(of_classifier, split=view.split, kinds=view.kinds, readout=name)
    board.put(of_means, split=view.split, kinds=view.kinds)


def _read_about_train(
    board: _Board,
    views: Sequence[_View],
    train: Labelled,
    classifiers: Mapping[str, LinearClassifier],
    num_classes: int,
) -> None:
    """Note the collapse about the class means of the training labels, as they were trained on."""
    counts, means, _ = first_moments(train.features, train.labels, num_classes=num_classes)
    defined = bool((counts > 0).all())
    for view in views:
        if view.split == "train":
            continue
        about: dict[str, Value] = dict.fromkeys(ABOUT_TRAIN)
        by: Mapping[str, LinearClassifier | None] = classifiers or {"-": None}
        for name, classifier in by.items():
            found: dict[str, Value] = dict.fromkeys(("nc4", *ABOUT_TRAIN))
            if defined:
                found = _collapse(view, classifier, num_classes, means)
            about = _part(found, ABOUT_TRAIN)
            if classifier is not None:
                board.put(
                    {"nc4_about_train": found["nc4"]},
                    split=view.split,
                    kinds=view.kinds,
                    readout=name,
                )
        named = {f"{name}_about_train": value for name, value in about.items()}
        board.put(named, split=view.split, kinds=view.kinds)


def _read_geometry(board: _Board, view: _View, num_classes: int, full: bool) -> None:
    """Note the mean rank of classes and how their subspaces lie to each other."""
    geometry = class_geometry(view.features, view.labels, num_classes=num_classes)
    ranks = [asdict(rank) for rank in geometry.ranks if rank is not None]
    means = {
        f"class_{name}": sum(rank[name] for rank in ranks) / len(ranks)
        for name in FeatureRank.__dataclass_fields__
    }
    board.put(means, split=view.split, kinds=view.kinds)
    if not full:
        between: dict[str, Value] = {"coherence": coherence(geometry.bases)}
        board.put(between, split=view.split, kinds=view.kinds)
    else:
        board.put(asdict(between_classes(geometry.bases)), split=view.split, kinds=view.kinds)
        spectra = geometry.spectra[:MOST_SPECTRA]
        totals = spectra.sum(1, keepdim=True)
        shares = spectra / torch.where(totals > 0, totals, torch.ones_like(totals))
        board.put_profile("class_spectra", shares, split=view.split, kinds=view.kinds)


def _read_margins(
    board: _Board, view: _View, classifiers: Mapping[str, LinearClassifier], full: bool
) -> None:
    """Note the margins of a view by each classifier; None where one never predicts some class."""
    for name, classifier in classifiers.items():
        shown: dict[str, Value] = dict.fromkeys(
            f"{kind}_{what}"
            for kind in ("margin", "margin_normalised")
            for what in ("mean", *QUANTILES)
        )
        shown["margin_positive"] = None
        if bool(torch.isfinite(classifier.bias).all()):
            found = margins(
                view.features,
                view.labels,
                classifier.weight,
                classifier.bias,
                quantiles=(*QUANTILES.values(), *MARGIN_GRID),
            )
            shown = {
                "margin_mean": found.mean,
                "margin_positive": found.positive,
                "margin_normalised_mean": found.normalised_mean,
            }
            for place, quantile in enumerate(QUANTILES):
                shown[f"margin_{quantile}"] = found.raw[place]
                shown[f"margin_normalised_{quantile}"] = (
                    None if found.normalised is None else found.normalised[place]
                )
            if full and found.normalised is not None and "noisy" in view.kinds:
                grid = torch.tensor(found.normalised[len(QUANTILES) :], dtype=torch.float64)
                board.put_profile(
                    "margin_quantiles", grid, split=view.split, kinds=("noisy",), readout=name
                )
        if not full:
            shown = _part(shown, OF_HISTORY)
        board.put(shown, split=view.split, kinds=view.kinds, readout=name)


def _read_cosines(board: _Board, test: Labelled, num_classes: int) -> None:
    """Note |cosine| between the first test samples of each class, sorted by class."""
    most = min(COSINES, max(1, MOST_COSINES // num_classes))
    places = [(test.labels == k).nonzero().flatten()[:most] for k in range(num_classes)]
    chosen = torch.cat(places)[:MOST_COSINES]
    H = test.features[chosen].double()
    H = torch.nn.functional.normalize(H / H.abs().amax().clamp(min=1e-300), dim=1)
    board.put_profile("abs_cosine", (H @ H.T).abs(), split="test", kinds=("clean",), digits=3)
    board.put_profile(
        "abs_cosine_labels", test.labels[chosen], split="test", kinds=("clean",), digits=3
    )


def _part(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Value]:
    return {name: values[name] for name in names}


def _rounded(value: Any, digits: int | None) -> Any:
    """Round numbers in nested lists to decimals, or with None to six significant digits."""
    if isinstance(value, list):
        return [_rounded(part, digits) for part in value]
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if digits is None else round(value, digits)
