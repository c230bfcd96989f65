"""Noise where a network is unsure."""

import functools

import numpy as np
import torch
from torch import Tensor

from mcr2.noise.base import FloatArray, Given, IntArray, Noise

#: The quick network of :class:`Margin`: pixels a side that it sees, width, epochs, batch, rate.
SIDE, WIDTH, EPOCHS, BATCH, RATE = 16, 64, 5, 100, 0.05


class Margin(Noise):
    """What a quickly trained network confuses most is labelled as what it is confused with.

    The network's softmax outputs are averaged over the epochs of a short training on the true
    labels. The highest of a sample's other classes is what it would be labelled, and the
    int(N·ratio) samples for which that output is highest are. The network has one hidden layer and
    sees images reduced to 16 pixels a side.

    Reference:
        Chen, Ye, Chen, Zhao & Heng, "Beyond Class-Conditional Assumption: A Primary Attempt to
        Combat Instance-Dependent Label Noise", AAAI 2021 (arXiv 2012.05458), algorithm 1.
    """

    def _choose(self, rs: np.random.RandomState, given: Given) -> IntArray:
        score, _ = self._confusion(given)
        # Rounded, so that the last digits, which depend on threads, do not order them.
        return np.argsort(-score.round(9), kind="stable")[: int(len(score) * self.ratio)]

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        return self._confusion(given)[1][indices]

    def _confusion(self, given: Given) -> tuple[FloatArray, IntArray]:
        labels = given.best.tobytes()
        return _confusion(given.pixels(self), labels, given.num_classes, given.seed)


@functools.lru_cache(maxsize=4)  # the same at every ratio
def _confusion(
    images: Tensor, labels: bytes, num_classes: int, seed: int
) -> tuple[FloatArray, IntArray]:
    """Return the highest average output of another class (N,), and which class that is."""
    rs = np.random.RandomState(seed)
    y = torch.from_numpy(np.frombuffer(labels, np.int64).copy())
    x = torch.cat([_reduced(part) for part in torch.split(images, 4096)])
    N, d = x.shape
    layers = [rs.standard_normal(s) / s[0] ** 0.5 for s in ((d, WIDTH), (WIDTH, num_classes))]
    weights = [torch.from_numpy(w).requires_grad_() for w in layers]
    biases = [torch.zeros(w.shape[1], dtype=x.dtype, requires_grad=True) for w in weights]
    optimizer = torch.optim.SGD([*weights, *biases], lr=RATE, momentum=0.9)

    def outputs(x: Tensor) -> Tensor:
        hidden = torch.relu(x @ weights[0] + biases[0])
        return hidden @ weights[1] + biases[1]

    average = torch.zeros(N, num_classes, dtype=x.dtype)
    for _ in range(EPOCHS):
        for part in torch.split(torch.from_numpy(rs.permutation(N)), BATCH):
            with torch.enable_grad():
                loss = torch.nn.functional.cross_entropy(outputs(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            average += outputs(x).softmax(dim=1) / EPOCHS
    score, other = average.scatter(1, y[:, None], -1.0).max(dim=1)
    return score.numpy(), other.numpy()


def _reduced(images: Tensor) -> Tensor:
    """Return images of at most SIDE pixels a side as rows (N, d) of mean 0 and deviation 1."""
    pixels = images.cpu().double() / 255
    H, W = pixels.shape[2:]
    pixels = torch.nn.functional.adaptive_avg_pool2d(pixels, (min(H, SIDE), min(W, SIDE)))
    rows = pixels.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    return rows / rows.std(dim=1, keepdim=True, unbiased=False).clamp(min=1e-3)
