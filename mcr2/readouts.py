"""Classifiers on frozen features, fitted once on ``(features, labels)``.

A readout turns features ``(N, d)``, tensors or NumPy arrays, into class scores ``(N, K)``.
:data:`READOUTS` maps a name to its fit function; :func:`fit_readout` fits by name, with the number
that some kinds need behind an ``@`` (``nearest_subspace@3`` components, ``knn@5`` neighbours), and
also knows ``head``, the objective's own linear classifier. Fit on the *noisy* training labels, as a
user would have them; on clean labels only as a named diagnostic.

All of it is computed in float64, on the features' device (of MPS, which has none, on the CPU):
features of a collapsed network differ from their class mean by less than float32 resolves. A class
without a training sample scores -inf and is never predicted.

Arguments and errors of all fit functions:

    features      (N, d), floating
    labels        (N,), integers in 0 ... num_classes - 1
    num_classes   K; some may be absent
    TypeError     features that are not floating, labels that are not integers
    ValueError    shapes that do not fit, labels out of range, features that are not finite
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from mcr2 import checks
from mcr2.checks import Array, Labels
from mcr2.metrics.moments import average, exact, unit

#: The penalty of the linear classifiers in units of the features' mean variance.
RIDGE = 1e-3

#: Cosines with training samples are computed for about this many numbers at a time.
_CHUNK = 1 << 22


class Readout(ABC):
    """What every readout offers: ``scores`` and the class that scores highest."""

    @abstractmethod
    def scores(self, features: Array) -> Tensor:
        """Map features ``(N, d)`` to float64 scores ``(N, K)``; higher is better."""

    def predict(self, features: Array) -> Tensor:
        """Return the best-scoring class of each sample, int64 ``(N,)`` on the features' device."""
        return _best(self.scores(features), features)

    def predict_training(self, features: Array) -> Tensor:
        """Return the classes of the very samples fitted on; neighbours leave each sample out."""
        return self.predict(features)


@dataclass(frozen=True, eq=False)
class LinearClassifier(Readout):
    """Scores ``W h + b``: a fit, or the objective's own head.

    W is ``(K, d)``, b ``(K,)``, -inf for a class never to be predicted.

    Example:
        >>> head = LinearClassifier(torch.eye(2), torch.tensor([0.0, 3.0]))
        >>> head.predict(torch.tensor([[5.0, 1.0], [1.0, 0.0]]))
        tensor([0, 1])
    """

    weight: Tensor
    bias: Tensor

    def scores(self, features: Array) -> Tensor:
        """Return ``H Wᵀ + b``."""
        H = _exact(features, self.weight.shape[1])
        return H @ self.weight.to(H).T + self.bias.to(H)


@dataclass(frozen=True, eq=False)
class ClassSubspaces(Readout):
    """Scores ``-‖(I - U_k U_kᵀ)(h - μ_k)‖²``: the nearest class subspace, or class mean.

    Args:
        means: the points μ_k the subspaces pass through, ``(K, d)``; zero where uncentred.
        bases: U_k, ``(K, d, n)``; columns are orthonormal, or zero where the class has fewer
            than n directions. With n = 0 a class is its mean.
        present: bool ``(K,)``; False for a class without training samples.

    Example:
        >>> axes = torch.eye(2)[:, :, None]
        >>> lines = ClassSubspaces(torch.zeros(2, 2), axes, torch.tensor([True, True]))
        >>> lines.scores(torch.tensor([[3.0, 1.0], [-1.0, -2.0]]))
        tensor([[-1., -9.], [-4., -1.]], dtype=torch.float64)
    """

    means: Tensor
    bases: Tensor
    present: Tensor

    def scores(self, features: Array) -> Tensor:
        """Return minus the squared residuals ``‖h - μ_k‖² - ‖U_kᵀ(h - μ_k)‖²``."""
        H = _exact(features, self.means.shape[1])
        residuals = H.new_full((len(H), len(self.means)), torch.inf)
        for k in self.present.nonzero().flatten().tolist():
            x = H - self.means[k].to(H)
            inside = (x @ self.bases[k].to(H)).square().sum(dim=1)
            residuals[:, k] = (x.square().sum(dim=1) - inside).clamp(min=0)
        return -residuals

    def leading(self, n_components: int) -> ClassSubspaces:
        """Return the subspaces of the first directions; a class of lower rank keeps what it has.

        ``n_components`` is below d: with d of them every class fits every sample.
        """
        checks.integer("n_components", n_components, 1, self.bases.shape[1] - 1)
        # A copy, so that a kept readout does not keep all directions alive.
        return ClassSubspaces(self.means, self.bases[:, :, :n_components].clone(), self.present)


@dataclass(frozen=True, eq=False)
class NearestNeighbours(Readout):
    """Scores are votes of the k training samples of largest cosine with h.

    Between classes of as many votes the larger sum of cosines decides: it is added, scaled to
    less than half a vote. A zero feature has cosine 0 with everything.

    Args:
        directions, labels: training samples at unit norm, float64 ``(N, d)``; their classes.
        present: bool ``(K,)``; False for a class without training samples.
        k: number of neighbours, below N.
    """

    directions: Tensor
    labels: Tensor
    present: Tensor
    k: int

    def predict_training(self, features: Array) -> Tensor:
        """Return the classes of the samples fitted on, none being its own neighbour."""
        if len(features) != len(self.labels):
            raise ValueError(f"fitted on {len(self.labels)} samples, not on {len(features)}")
        return _best(self.scores(features, leave_one_out=True), features)

    def scores(self, features: Array, *, leave_one_out: bool = False) -> Tensor:
        """Return the votes of the neighbours, and less than half a vote for their cosines."""
        H = unit(_exact(features, self.directions.shape[1]))
        directions, labels = self.directions.to(H), self.labels.to(H.device)
        votes = H.new_zeros(len(H), len(self.present))
        every = torch.arange(len(H), device=H.device)
        for rows in torch.split(every, max(1, _CHUNK // len(labels))):
            cosines = H[rows] @ directions.T
            if leave_one_out:
                cosines[rows - rows[0], rows] = -torch.inf
            nearest, samples = cosines.topk(self.k, dim=1)
            added = torch.zeros_like(votes[rows])
            votes[rows] = added.scatter_add_(1, labels[samples], 1 + nearest / (4 * self.k))
        return votes.masked_fill_(~self.present.to(H.device), -torch.inf)


def class_bases(
    features: Array, labels: Labels, *, num_classes: int, centred: bool = False
) -> ClassSubspaces:
    """Diagonalise the second moment of every class, ``S_k = (1/n_k) Σ (h - μ_k)(h - μ_k)ᵀ``.

    About class means where ``centred`` (PCA); otherwise about the origin, μ_k = 0. Returned are all
    directions of every class, by falling energy, zero past its rank, so that one decomposition
    serves every number of components that :meth:`ClassSubspaces.leading` takes.

    Example:
        >>> H = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [1.0, 1.0]])
        >>> bases = class_bases(H, torch.tensor([0, 0, 1]), num_classes=2)
        >>> bases.leading(1).predict(torch.tensor([[-3.0, 0.1], [-1.0, -1.2]]))
        tensor([0, 1])
    """
    H, y = _training_set(features, labels, num_classes)
    d = H.shape[1]
    counts, means, _ = average(H, y, num_classes)
    if centred:
        # Before the products, not S - μμᵀ after them: that cancels where the mean is large.
        H = H - means[y]
    else:
        means = torch.zeros_like(means)
    by_class = torch.split(H[torch.argsort(y)], counts.tolist())
    sizes = counts.clamp(min=1).unsqueeze(1)
    if int(counts.max()) < d:  # a few shots: most of the second moment is null
        blocks = torch.nn.utils.rnn.pad_sequence(list(by_class), batch_first=True)
        _, sigma, rows = torch.linalg.svd(blocks, full_matrices=False)
        energies, bases = sigma.square() / sizes, rows.mT
    else:
        moments = torch.stack([block.T @ block for block in by_class])
        rising, bases = torch.linalg.eigh(moments / sizes.unsqueeze(2))
        energies, bases = rising.flip(1).clamp_(min=0), bases.flip(2)
    # Past the rank of a class the eigenvectors are arbitrary and would absorb test samples.
    floor = d * torch.finfo(energies.dtype).eps * energies[:, :1]
    rank = (counts - int(centred)).view(-1, 1)
    real = (energies > floor) & (torch.arange(energies.shape[1], device=H.device) < rank)
    return ClassSubspaces(means, bases * real.unsqueeze(1), counts > 0)


def fit_nearest_subspace(
    features: Array, labels: Labels, *, num_classes: int, n_components: int, centred: bool = False
) -> ClassSubspaces:
    """Fit a subspace a class: its leading right singular vectors, or principal components.

    ``score_k(h) = -‖(I - U_k U_kᵀ) h‖²`` through the origin as in Yu et al. (2020), "Learning
    Diverse and Discriminative Representations via the Principle of Maximal Coding Rate
    Reduction"; where ``centred``, of ``h - μ_k``, the variant with PCA. ``n_components`` is from 1
    to d - 1.

    Example:
        >>> H = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0]])
        >>> y = torch.tensor([0, 0, 1])
        >>> readout = fit_nearest_subspace(H, y, num_classes=2, n_components=1)
        >>> readout.predict(torch.tensor([[-5.0, 1.0], [1.0, -5.0]]))
        tensor([0, 1])
    """
    bases = class_bases(features, labels, num_classes=num_classes, centred=centred)
    return bases.leading(n_components)


def fit_class_mean(features: Array, labels: Labels, *, num_classes: int) -> ClassSubspaces:
    """Fit the nearest-class-mean classifier, ``score_k(h) = -‖h - μ_k‖²``.

    Example:
        >>> H = torch.tensor([[0.0], [2.0], [9.0]])
        >>> fit_class_mean(H, torch.tensor([0, 0, 2]), num_classes=3).means.flatten()
        tensor([1., 0., 9.], dtype=torch.float64)
    """
    H, y = _training_set(features, labels, num_classes)
    counts, means, _ = average(H, y, num_classes)
    return ClassSubspaces(means, means.new_zeros(*means.shape, 0), counts > 0)


def fit_ridge(features: Array, labels: Labels, *, num_classes: int) -> LinearClassifier:
    """Fit ridge regression on one-hot labels, bias unpenalised.

    ``min_{W,b} (1/N) ‖H Wᵀ + 1 bᵀ - Y‖_F² + λ ‖W‖_F²`` with ``λ = 1e-3 · tr(H̄ᵀH̄)/(N d)``: the
    penalty is a thousandth of the features' mean variance, so that scaling the features changes
    no prediction and copying the data set changes nothing. Solved by
    ``(H̄ᵀH̄/N + λI) Wᵀ = H̄ᵀȲ/N``, ``b = ȳ - W h̄``, bars for "minus the mean over samples".
    (scikit-learn's ``Ridge(alpha)`` has ``alpha = λ N``.)

    Example:
        >>> H = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> readout = fit_ridge(H, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> readout.predict(torch.tensor([[2.4], [2.6]]))
        tensor([0, 1])
    """
    H, y = _training_set(features, labels, num_classes)
    N, d = H.shape
    Y = torch.nn.functional.one_hot(y, num_classes).to(H)
    mean, share = H.mean(dim=0), Y.mean(dim=0)
    H = H - mean
    gram = H.T @ H / N
    penalty = RIDGE * gram.trace() / d
    # Features without spread carry nothing: any positive penalty then gives W = 0.
    penalty = torch.where(penalty > 0, penalty, torch.ones_like(penalty))
    gram.diagonal().add_(penalty)
    # H is centred, so H̄ᵀY = H̄ᵀȲ.
    weight = torch.linalg.solve(gram, H.T @ Y / N).T.contiguous()
    bias = (share - weight @ mean).masked_fill(share == 0, -torch.inf)
    return LinearClassifier(weight, bias)


def fit_logistic_regression(
    features: Array, labels: Labels, *, num_classes: int
) -> LinearClassifier:
    """Fit multinomial logistic regression with scikit-learn, bias unpenalised.

    ``min_{W,b} (1/N) Σ_i -log softmax(W h_i + b)_{y_i} + λ/2 ‖W‖_F²``, ``λ = 1e-3 s²`` with s² the
    features' mean variance, as for ridge: the fit is made on ``(h - h̄)/s`` with penalty 1e-3, so
    that neither scaling nor shifting the features changes a prediction.

    Example:
        >>> H = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> readout = fit_logistic_regression(H, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> readout.predict(torch.tensor([[2.4], [2.6]]))
        tensor([0, 1])
    """
    from sklearn.linear_model import LogisticRegression

    def solve(H: Any, y: Any, C: float) -> tuple[Any, Any]:
        # Two classes have one row w, which stands for the rows -w/2 and w/2, half as long.
        rows = 2 if int(y.max()) == 1 else 1
        model = LogisticRegression(C=rows * C, tol=1e-6, max_iter=5000).fit(H, y)
        return model.coef_ / rows, model.intercept_ / rows

    return _fit_standardised(solve, features, labels, num_classes)


def fit_linear_svm(features: Array, labels: Labels, *, num_classes: int) -> LinearClassifier:
    """Fit a linear support vector machine a class, against the others, with scikit-learn.

    For each class ``min_{w,b} (1/N) Σ_i max(0, 1 - t_i (wᵀh_i + b))² + λ/2 (‖w‖² + (b/10)²)``,
    t_i = 1 in the class and -1 outside, on ``(h - h̄)/s`` with λ = 1e-3 as for
    :func:`fit_logistic_regression`. (liblinear penalises the bias; at a tenth of its size that
    is slight.) Solved by Newton's method, so that nothing is random.

    Example:
        >>> H = torch.tensor([[0.0], [1.0], [4.0], [5.0]])
        >>> readout = fit_linear_svm(H, torch.tensor([0, 0, 1, 1]), num_classes=2)
        >>> readout.predict(torch.tensor([[2.4], [2.6]]))
        tensor([0, 1])
    """
    from sklearn.svm import LinearSVC

    def solve(H: Any, y: Any, C: float) -> tuple[Any, Any]:
        model = LinearSVC(C=C, dual=False, intercept_scaling=10, tol=1e-6, max_iter=5000).fit(H, y)
        return model.coef_, model.intercept_

    return _fit_standardised(solve, features, labels, num_classes)


def fit_knn(features: Array, labels: Labels, *, num_classes: int, k: int) -> NearestNeighbours:
    """Keep the training samples as neighbours by cosine; ``k`` is from 1 to N - 1.

    A training sample has no more neighbours than that.

    Example:
        >>> H = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> neighbours = fit_knn(H, [0, 0, 1, 1], num_classes=2, k=1)
        >>> neighbours.predict(-H), neighbours.predict_training(H)
        (tensor([1, 1, 0, 0]), tensor([0, 0, 1, 1]))
    """
    H, y = _training_set(features, labels, num_classes)
    checks.integer(f"k of {len(H)} samples", k, 1, len(H) - 1)
    return NearestNeighbours(unit(H), y, torch.bincount(y, minlength=num_classes) > 0, k)


#: Fit functions by name: ``fit(features, labels, *, num_classes)``, perhaps with a number more.
READOUTS: dict[str, Callable[..., Readout]] = {
    "nearest_subspace": fit_nearest_subspace,
    "nearest_subspace_centred": partial(fit_nearest_subspace, centred=True),
    "class_mean": fit_class_mean,
    "ridge": fit_ridge,
    "logistic_regression": fit_logistic_regression,
    "linear_svm": fit_linear_svm,
    "knn": fit_knn,
}

#: The members of :data:`READOUTS` that need a number behind an ``@``, and what it is a number of.
NUMBERED = {
    kind: name
    for kind, fit in READOUTS.items()
    for name, given in inspect.signature(fit).parameters.items()
    if name not in ("features", "labels", "num_classes") and given.default is given.empty
}

#: Those whose number is one of components.
WITH_COMPONENTS = tuple(kind for kind, of in NUMBERED.items() if of == "n_components")


def parse_readout(name: str) -> tuple[str, int | None]:
    """Split a readout's name into its kind and its number, of components or neighbours.

    It is ``head``, a member of :data:`READOUTS`, or ``kind@n`` of those in :data:`NUMBERED`.

    Raises:
        TypeError, ValueError: not a string; an unknown kind; a number that is missing, unwanted,
            or not a positive integer. That it is not too large is checked at the fit.

    Example:
        >>> parse_readout("nearest_subspace@3"), parse_readout("head")
        (('nearest_subspace', 3), ('head', None))
    """
    if not isinstance(name, str):
        raise TypeError(f"a readout's name must be a string, not {checks.describe(name)}")
    kind, at, number = name.partition("@")
    if kind not in READOUTS and kind != "head":
        checks.choice("readout", name, ["head", *(k + "@n" * (k in NUMBERED) for k in READOUTS)])
    if kind not in NUMBERED:
        if at:
            raise ValueError(f"readout {name!r}: {kind} takes no number")
        return kind, None
    # One spelling for one readout, since names are keys in records: no sign, no leading zero.
    if not (number.isascii() and number.isdigit() and number[0] != "0"):
        wanted = f"needs a number from 1 ({NUMBERED[kind]}), as in {kind}@3"
        raise ValueError(f"readout {name!r}: {kind} {wanted}")
    return kind, int(number)


def fit_readout(
    name: str,
    features: Array,
    labels: Labels,
    *,
    num_classes: int,
    head: tuple[Array, Array | None] | None = None,
) -> Readout:
    """Fit the named readout.

    ``"head"`` takes the objective's own ``(W, b)``, ``(K, d)`` and ``(K,)`` or None for no bias.

    Raises:
        TypeError, ValueError: as :func:`parse_readout` and the fit functions; ``"head"`` without
            a head, or with one of other than K classes and d features.

    Example:
        >>> H = torch.tensor([[1.0, 0.0], [2.0, 0.1], [0.0, -1.0]])
        >>> y = torch.tensor([0, 0, 1])
        >>> fit_readout("nearest_subspace@1", H, y, num_classes=2).predict(H)
        tensor([0, 0, 1])
    """
    kind, number = parse_readout(name)
    if kind != "head":
        numbers = {} if number is None else {NUMBERED[kind]: number}
        return READOUTS[kind](features, labels, num_classes=num_classes, **numbers)
    if head is None:
        raise ValueError("readout 'head' needs the objective's own classifier (W, b); it has none")
    H, _ = _training_set(features, labels, num_classes)
    weight = checks.floating("the head's weight", head[0], num_classes, H.shape[1])
    bias = weight.new_zeros(num_classes)
    if head[1] is not None:
        bias = checks.floating("the head's bias", head[1], num_classes, finite=False)
    # Cloned: a readout keeps its answer when training goes on.
    return LinearClassifier(weight.detach().clone(), bias.detach().clone())


def _best(scores: Tensor, features: Array) -> Tensor:
    """Return the best-scoring class, on the features' device."""
    guesses = scores.argmax(dim=1)
    return guesses.to(features.device) if isinstance(features, Tensor) else guesses


def _exact(features: Array, width: int) -> Tensor:
    """Check features ``(N, d)`` and return them in float64."""
    return exact(checks.floating("features", features, "N", width))


def _training_set(features: Array, labels: Labels, num_classes: int) -> tuple[Tensor, Tensor]:
    """Check a training set and return float64 features and int64 labels on one device."""
    H, y = checks.samples(features, labels, checks.classes(num_classes))
    return checks.moderate("features", H).double(), y


def _fit_standardised(
    solve: Callable[[Any, Any, float], tuple[Any, Any]],
    features: Array,
    labels: Labels,
    num_classes: int,
) -> LinearClassifier:
    """Fit a linear model on centred features of mean variance 1.

    ``solve(H, y, C)`` returns a row and an offset a class (of two classes those of the second), y
    counting the present classes and C being scikit-learn's weight of the summed loss against
    ½ ‖W‖². A class without samples has W = 0, b = -inf; one class alone is always predicted.
    """
    H, y = _training_set(features, labels, num_classes)
    mean = H.mean(dim=0)
    H = H - mean
    scale = H.square().mean().sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    counts = torch.bincount(y, minlength=num_classes)
    present = counts.nonzero().squeeze(1)
    weight, bias = H.new_zeros(num_classes, H.shape[1]), H.new_zeros(num_classes)
    if len(present) > 1:
        ranks = torch.searchsorted(present, y)
        # scikit-learn's BLAS has threads of its own, and takes all for products too small for two.
        C = 1 / (RIDGE * len(H))
        with threadpool_limits(torch.get_num_threads()):
            rows, offsets = solve((H / scale).cpu().numpy(), ranks.cpu().numpy(), C)
        if len(rows) == 1:
            rows, offsets = np.concatenate([-rows, rows]), np.concatenate([-offsets, offsets])
        weight[present] = torch.as_tensor(rows).to(H) / scale
        bias[present] = torch.as_tensor(offsets).to(H)
    return LinearClassifier(weight, (bias - weight @ mean).masked_fill(counts == 0, -torch.inf))
