"""Features, labels and a linear head from anywhere, measured by every metric and readout.

A *full* evaluation takes every measure of :data:`~mcr2.evaluation.catalogue.MEASURES`; one for a
history, along training, those that cost little beside encoding the images.

Labels are ``noisy`` where they are those trained on and ``clean`` where they are true; a test
split's own are clean, and where the truth is unknown, nothing that needs it is measured. Clean
labels may be −1, for none of the classes: such samples are labelled wrong, and nothing else is
measured of them by true labels. The split ``train_wrong`` holds the training samples whose two
labels differ, ``train_correct`` the others. Readouts are fitted on the training features with the
noisy labels, as a user would have them; ``NAME+clean`` on the clean ones, as a diagnostic. Measures
of a linear classifier stand under ``head`` and under ``ridge``, which is fitted alike whatever made
the features. Collapse is that of the classes that are present. What is undefined is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels, describe
from mcr2.evaluation.catalogue import MEASURES, QUANTILES, Value, View
from mcr2.evaluation.results import (
    COMMON_READOUT,
    FEATURES,
    FITTED_CLEAN,
    Evaluation,
    Key,
    Profile,
)
from mcr2.metrics.accuracy import accuracy
from mcr2.metrics.coding import coding_measures
from mcr2.metrics.collapse import neural_collapse
from mcr2.metrics.margins import alignment, margins
from mcr2.metrics.memorization import confusion, memorization
from mcr2.metrics.moments import first_moments, unit
from mcr2.metrics.rank import between_classes, class_geometry, coherence, rank_and_spectrum
from mcr2.readouts import (
    NUMBERED,
    READOUTS,
    WITH_COMPONENTS,
    LinearClassifier,
    Readout,
    class_bases,
    fit_readout,
    parse_readout,
)

Head: TypeAlias = tuple[Array, Array | None]

#: Components of the subspace readouts in every full evaluation, and neighbours of k-NN.
COMPONENTS, NEIGHBOURS = (1, 2, 3, 5, 10), 5

#: Profiles: where margins are taken; cosines of so many samples a class, and not more than so many
#: in all; spectra of so many classes at most, the first ones.
MARGIN_GRID = tuple(i / 40 for i in range(41))
COSINES, MOST_COSINES, MOST_SPECTRA = 12, 240, 100

#: Profile of the default readout on the training samples, of so many classes at most; see
#: :func:`mcr2.metrics.memorization.confusion`.
CONFUSION, MOST_CONFUSED = "confusion", 100


@dataclass(frozen=True, eq=False)
class Labelled:
    """The features of a split and their labels, as tensors or NumPy arrays.

    Args:
        features: ``(N, d)``, floating.
        labels: ``(N,)``, integers: as trained on; of a test split the true ones.
        clean_labels: the true labels ``(N,)``, −1 for none of the classes; None where they are
            unknown, and of a test split.
    """

    features: Array
    labels: Labels
    clean_labels: Labels | None = None


def standard_readouts(dim: int, *components: int) -> tuple[str, ...]:
    """Return the names of the readouts that a full evaluation has: every kind.

    Those by subspaces stand at several numbers of components, for that choice matters.

    Args:
        dim: d; numbers of components from d on are left out.
        components: further numbers of components.

    Example:
        >>> [name for name in standard_readouts(4) if "subspace@" in name]
        ['nearest_subspace@1', 'nearest_subspace@2', 'nearest_subspace@3']
    """
    counts = sorted(n for n in {*COMPONENTS, *components} if n < dim)
    subspaces = [f"{kind}@{n}" for kind in WITH_COMPONENTS for n in counts]
    kinds = [kind for kind in READOUTS if kind not in NUMBERED]
    return (*kinds, *subspaces, f"knn@{NEIGHBOURS}")


def evaluate_features(
    train: Labelled,
    test: Labelled | None = None,
    validation: Labelled | None = None,
    *,
    num_classes: int,
    readout: str = COMMON_READOUT,
    readouts: Sequence[str] = (),
    head: Head | None = None,
    full: bool = True,
    layer: str = FEATURES,
) -> Evaluation:
    """Measure features: accuracy, memorization, rank, collapse, rates, margins.

    Args:
        train: the samples that readouts are fitted on.
        test, validation: samples to measure; those held out have labels as noisy as the training's.
        num_classes: K, at least 2; classes may be absent, which a note then says.
        readout: the classifier to report by default, a name of :mod:`mcr2.readouts`.
        readouts: further ones, beside ``ridge``. Of one that cannot be fitted a note says why.
        head: the linear classifier W ``(K, d)``, b ``(K,)`` or None that came with the features.
        full: False takes the measures of a history only.
        layer: what the features are called in keys.

    Raises:
        TypeError, ValueError: as :func:`mcr2.checks.samples`; a split that is not ``Labelled``,
            fewer than two classes, an unknown readout, or a default readout that cannot be fitted
            (``head`` without a head).

    Example:
        >>> corners = torch.eye(3).repeat(4, 1)
        >>> evaluation = evaluate_features(Labelled(corners, torch.arange(12) % 3), num_classes=3)
        >>> abs(round(evaluation.get("nc1", split="train", labels="noisy"), 6))
        0.0
    """
    K = checks.classes(num_classes, 2)
    own = () if head is None else ("head",)
    names = tuple(dict.fromkeys((readout, COMMON_READOUT, *readouts, *own)))
    for name in names:
        parse_readout(name)
    given = {"train": train, "validation": validation, "test": test}
    for split, each in given.items():
        if not isinstance(each, Labelled) and (each is not None or split == "train"):
            raise TypeError(f"{split} must be Labelled(features, labels), not {describe(each)}")
    splits = {name: _by_labels(name, split, K) for name, split in given.items() if split}
    widths = {views["-"].features.shape[1] for views in splits.values()}
    if len(widths) > 1:
        raise ValueError(f"features must all be of one width; they have {sorted(widths)}")

    truths = {name: _truth(name, split, K) for name, split in given.items() if split}
    found = _Evaluator(splits, truths, head, full, layer, readout)
    found.measure_readouts(names, needed=(readout, COMMON_READOUT, "head"))
    for split in [name for name in splits if name != "validation"]:
        found.measure_dimension(splits[split]["-"])
    for view in found.labelled():
        found.measure_collapse(view)
        if view.split in ("train", "test"):
            found.measure_classes(view)
            if full or view.split == "train":
                found.measure_margins(view)
    found.fill_in_unfitted()
    return Evaluation(readout, found.measures, found.profiles, tuple(found.notes))


def _by_labels(split: str, given: Labelled, num_classes: int) -> dict[str, View]:
    """Check a split, and return its views by kind of labels, ``-`` where these do not matter."""
    H, y = checks.samples(given.features, given.labels, num_classes, name=f"{split} labels")
    checks.moderate("features", H)
    kinds = {"-": y, ("clean" if split == "test" else "noisy"): y}
    views = {kind: View(split, (kind,), H, labels, num_classes) for kind, labels in kinds.items()}
    if (clean := _truth(split, given, num_classes)) is not None:
        known = (clean := clean.to(H.device)) >= 0
        if bool(known.any()):
            views["clean"] = _part(View(split, ("clean",), H, clean, num_classes), split, known)
    return views


def _truth(split: str, given: Labelled, num_classes: int) -> Tensor | None:
    """Return the true labels of a split that is trained or selected on, None where unknown."""
    if split == "test" or given.clean_labels is None:
        return None
    name, count = f"clean {split} labels", len(given.features)
    return checks.labels(given.clean_labels, num_classes, count=count, name=name, least=-1)


def _few_samples(view: View) -> Iterator[str]:
    """Say which classes have no sample, and which one only."""
    for count, what in enumerate(("no sample", "one sample only, hence no variance,")):
        classes = (view.counts == count).nonzero().flatten().tolist()
        if classes:
            listed = ", ".join(map(str, classes[:10])) + ", ..." * (len(classes) > 10)
            where = f"{view.split}, {' and '.join(view.kinds)} labels"
            yield f"{where}: {what} of {len(classes)} of {view.num_classes} classes ({listed})"


def _part(view: View, split: str, kept: Tensor) -> View:
    """Return some samples of a view, bool ``(N,)``, as a split of their own."""
    if bool(kept.all()):
        return replace(view, split=split)
    return replace(view, split=split, features=view.features[kept], labels=view.labels[kept])


class _Evaluator:
    """Takes the measures of one layer, and collects them."""

    def __init__(
        self,
        splits: dict[str, dict[str, View]],
        truths: dict[str, Tensor | None],
        head: Head | None,
        full: bool,
        layer: str,
        readout: str,
    ) -> None:
        self.splits, self.head, self.full, self.layer = splits, head, full, layer
        self.readout = readout
        self.train, self.truth = splits["train"]["noisy"], splits["train"].get("clean")
        device = self.train.features.device
        self.K = self.train.num_classes
        self.truths = {n: None if t is None else t.to(device) for n, t in truths.items()}
        known = self.truths["train"]
        self.wrong = self.train.labels != (self.train.labels if known is None else known)
        self.moments = first_moments(self.train.features, self.train.labels, num_classes=self.K)
        self.classifiers: dict[str, LinearClassifier] = {}
        self.unfitted: list[tuple[str, str]] = []
        self.measures: dict[str, Value] = {}
        self.profiles: dict[str, Profile] = {}
        self.notes: list[str] = []

    def put(self, view: View, values: Mapping[str, Any], *families: str, by: str = "-") -> None:
        """Note measures, those of the families that the catalogue computes, and profiles."""
        taken = {m.name: m for m in MEASURES.values() if self.full or m.history}
        own = [m for m in taken.values() if m.family in families]
        computed = {m.name: m.compute(view) for m in own if m.compute}
        for name, value in {**values, **computed}.items():
            void = name in taken and taken[name].per in ("features", "classes")
            for kind in view.kinds:
                key = str(Key(self.layer, view.split, kind, "-" if void else by, name))
                if isinstance(value, Tensor) and self.full:
                    self.profiles[key] = _rounded(value.tolist())
                elif name in taken:
                    self.measures[key] = int(value) if isinstance(value, bool) else value

    def labelled(self) -> Iterator[View]:
        """Yield what is measured by labels; equal labels are one view of two kinds."""
        noisy, clean, wrong = self.train, self.truth, self.wrong
        both, known = replace(noisy, kinds=("noisy", "clean")), self.truths["train"]
        if not self.full or known is None:
            yield noisy
        elif not bool(wrong.any()):
            yield both
        else:
            yield noisy
            if clean is not None:
                yield clean
            yield _part(noisy, "train_wrong", wrong)
            if clean is not None and bool((able := wrong[known >= 0]).any()):
                yield _part(clean, "train_wrong", able)
            if not bool(wrong.all()):
                yield _part(both, "train_correct", ~wrong)
        if "test" in self.splits:
            yield self.splits["test"]["clean"]

    def fit(
        self, names: Sequence[str], on: View, needed: Sequence[str] = (), suffix: str = ""
    ) -> dict[str, Readout]:
        """Fit readouts; one that fails is left out, with a note, unless it is needed."""
        H, y, K = on.features, on.labels, self.K
        # All numbers of components of a kind are slices of one decomposition.
        bases = cache(lambda centred: class_bases(H, y, num_classes=K, centred=centred))
        fits: dict[str, Readout] = {}
        for name in names:
            kind, number = parse_readout(name)
            try:
                if kind in WITH_COMPONENTS and number is not None:
                    fits[name] = bases(kind == "nearest_subspace_centred").leading(number)
                else:
                    fits[name] = fit_readout(name, H, y, num_classes=K, head=self.head)
            # Whatever a solver raises: a run that took hours is not lost to one of its readouts.
            except Exception as error:
                if name in needed:
                    raise
                self.unfitted.append((name, suffix))
                where = "" if self.layer == FEATURES else f"{self.layer}: "
                reason = " ".join(str(error).split()) or type(error).__name__
                self.notes.append(f"{where}{name}{suffix} could not be fitted: {reason}")
        return fits

    def measure_readouts(self, names: Sequence[str], *, needed: Sequence[str]) -> None:
        """Note accuracies and memorization by readouts, and keep the linear classifiers.

        Those fitted on clean labels predict the test split, where some labels are wrong.
        """
        fits = self.fit(names, self.train, needed)
        for name, fitted in fits.items():
            if name in ("head", COMMON_READOUT) and isinstance(fitted, LinearClassifier):
                self.classifiers[name] = fitted
            for split in self.splits:
                self.measure_predictions(split, fitted, name)
        if self.full and "linear_svm" in names:
            svm = fits.get("linear_svm")
            for name, linear in self.classifiers.items():
                value = None
                if isinstance(svm, LinearClassifier):
                    value = alignment(linear.weight, svm.weight)
                self.put(self.train, {"svm_alignment": value}, by=name)
        if self.full and self.truth and "test" in self.splits and bool(self.wrong.any()):
            rest = [name for name in names if name != "head"]
            for name, fitted in self.fit(rest, self.truth, suffix=FITTED_CLEAN).items():
                self.measure_predictions("test", fitted, name + FITTED_CLEAN)

    def measure_predictions(self, split: str, fitted: Readout, name: str) -> None:
        """Note the accuracy of a readout, and of the labels trained on what became of them."""
        H, truth = self.splits[split]["-"].features, self.truths[split]
        guesses = fitted.predict_training(H) if split == "train" else fitted.predict(H)
        for kind, view in self.splits[split].items():
            own = guesses[truth >= 0] if kind == "clean" and truth is not None else guesses
            if (split, kind) == ("train", "noisy"):
                values: dict[str, Any] = asdict(memorization(own, view.labels, truth))
                if truth is not None and name == self.readout and self.K <= MOST_CONFUSED:
                    values[CONFUSION] = confusion(own, view.labels, truth, self.K)
            elif kind != "-":
                values = {"accuracy": accuracy(own, view.labels)}
            else:
                continue
            self.put(replace(view, predictions=own), values, "accuracy", by=name)

    def fill_in_unfitted(self) -> None:
        """Give readouts that were not fitted the keys of ``ridge``, and no value."""
        for key in map(Key.parse, list(self.measures)):
            for name, suffix in self.unfitted:
                by_readout = MEASURES[key.measure].per == "readout"
                if by_readout and key.readout == COMMON_READOUT + suffix:
                    self.measures[str(key._replace(readout=name + suffix))] = None

    def measure_dimension(self, view: View) -> None:
        """Note rank and spectrum of all samples."""
        ranks, energies = rank_and_spectrum(view.features)
        profile = {"spectrum": energies / energies.sum()} if ranks.dim95 else {}
        self.put(view, asdict(ranks) | profile, "rank")

    def measure_collapse(self, view: View) -> None:
        """Note NC1 to NC4, and in full those about the class means of the labels trained on."""
        for readout, head in self.classifiers.items():
            collapse = partial(neural_collapse, view.features, view.labels, num_classes=self.K)
            values = asdict(collapse(weight=head.weight, bias=head.bias))
            values["classes_present"] = values["classes"]
            if self.full and view.split != "train":
                about = collapse(weight=head.weight, bias=head.bias, means=self.moments)
                values |= {f"{name}_about_train": value for name, value in asdict(about).items()}
            self.put(replace(view, classifier=head), values, "collapse", "classifier", by=readout)

    def measure_classes(self, view: View) -> None:
        """Note the rank of classes, how they lie to each other, coding rates, and cosines."""
        self.notes += _few_samples(view)
        geometry = class_geometry(view.features, view.labels, num_classes=self.K)
        ranks = [asdict(rank) for rank in geometry.ranks if rank is not None]
        means = {f"class_{name}": sum(r[name] for r in ranks) / len(ranks) for name in ranks[0]}
        rates = asdict(coding_measures(view.features, view.labels, num_classes=self.K))
        rates["class_rates"] = torch.tensor(rates["class_rates"], dtype=torch.float64)
        between: dict[str, Any] = {"coherence": coherence(geometry.bases)}
        if self.full:
            between = asdict(between_classes(geometry.bases))
            spectra = geometry.spectra[:MOST_SPECTRA]
            totals = spectra.sum(1, keepdim=True)
            between["class_spectra"] = spectra / torch.where(totals > 0, totals, 1.0)
            if view.split == "test":
                between |= _cosines(view)
        self.put(view, means | between | rates, "classes", "rates")

    def measure_margins(self, view: View) -> None:
        """Note margins among the classes that a classifier ever predicts.

        They are None where it never predicts the class of some sample.
        """
        names = [m.name for m in MEASURES.values() if m.name.startswith("margin_")]
        for name, head in self.classifiers.items():
            able, values = torch.isfinite(head.bias), dict[str, Any].fromkeys(names)
            if bool(able[view.labels].all()) and int(able.sum()) > 1:
                y, W, b = (able.cumsum(0) - 1)[view.labels], head.weight[able], head.bias[able]
                levels = (*QUANTILES.values(), *MARGIN_GRID)
                found = margins(view.features, y, W, b, quantiles=levels)
                values |= {"margin_positive": found.positive, "margin_mean": found.mean}
                values["margin_normalised_mean"] = found.normalised_mean
                values |= {f"margin_{q}": v for q, v in zip(QUANTILES, found.raw, strict=False)}
                normalised = found.normalised or ()
                for q, value in zip(QUANTILES, normalised, strict=False):
                    values[f"margin_normalised_{q}"] = value
                if normalised and "noisy" in view.kinds:
                    grid = torch.tensor(normalised[len(QUANTILES) :], dtype=torch.float64)
                    self.put(replace(view, kinds=("noisy",)), {"margin_quantiles": grid}, by=name)
            self.put(replace(view, classifier=head), values, "margins", by=name)


def _cosines(test: View) -> dict[str, Tensor]:
    """Return |cosine| between the first samples of each class, sorted by class, and the labels."""
    most = min(COSINES, max(1, MOST_COSINES // test.num_classes))
    places = [(test.labels == k).nonzero().flatten()[:most] for k in range(test.num_classes)]
    chosen = torch.cat(places)[:MOST_COSINES]
    H = unit(test.features[chosen].double())
    cosines = (H @ H.T).abs().round(decimals=3)
    return {"abs_cosine": cosines, "abs_cosine_labels": test.labels[chosen]}


def _rounded(value: Any) -> Any:
    """Round the numbers of nested lists to six significant digits."""
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value if isinstance(value, int) else float(f"{value:.6g}")
