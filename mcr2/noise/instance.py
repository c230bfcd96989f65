"""Noise that depends on the image."""

import numpy as np
import torch
from scipy.special import ndtr, ndtri, softmax
from torch import Tensor

from mcr2.noise.base import FloatArray, Given, IntArray, Noise

#: Images that are turned into floating numbers at a time.
CHUNK = 4096

#: Deviation of the probabilities to flip, as published.
SIGMA = 0.1


class Instance(Noise):
    """Part-dependent noise: an image's pixels say what it is taken for.

    Sample i flips with a probability q_i from the normal distribution about the ratio with
    deviation 0.1, truncated to [0, 1]. What it becomes is drawn from softmax(x_i W_y) over the
    other classes, x_i being its standardised pixels, W_y (d, K) standard normal, one matrix a
    class. Truncation makes the mean of q 0.129 at ratio 0.1, 0.206 at 0.2 and 0.300 at 0.3; ratio 0
    flips none.

    Reference:
        Xia et al., "Part-dependent Label Noise: Towards Instance-dependent Label Noise", NeurIPS
        2020, algorithm 2.
    """

    def _choose(self, rs: np.random.RandomState, given: Given) -> IntArray:
        given.pixels(self)
        place, decides = rs.random_sample((2, len(given.labels)))
        return np.flatnonzero(decides < flip_probabilities(place, self.ratio))

    def _redraw(self, rs: np.random.RandomState, given: Given, indices: IntArray) -> IntArray:
        images, best = given.pixels(self), given.best
        K, drawn = given.num_classes, rs.random_sample(len(best))
        mean, scale = _moments(images)
        noisy = best.copy()
        for k in range(K):
            # Drawn for every class, present or not, so that the others' do not depend on it.
            W = rs.standard_normal((len(mean), K))
            members = indices[best[indices] == k]
            for part in np.array_split(members, -(-len(members) // CHUNK)) if len(members) else ():
                scores = ((_flat(images, part) - mean) / scale) @ W
                scores[:, k] = -np.inf
                bounds = softmax(scores, axis=1).cumsum(axis=1)
                # The bound of its own class is the one before it, hence never the first above.
                noisy[part] = (drawn[part, None] * bounds[:, -1:] >= bounds).sum(axis=1)
        return noisy[indices]


def flip_probabilities(place: FloatArray, ratio: float) -> FloatArray:
    """Return the quantiles at ``place`` of the normal about the ratio, truncated to [0, 1].

    They rise with the ratio: what flips at one flips at every larger one. At ratio 0 they are 0.
    """
    if ratio == 0:
        return np.zeros_like(place)
    low, high = ndtr(-ratio / SIGMA), ndtr((1 - ratio) / SIGMA)
    found: FloatArray = ratio + SIGMA * ndtri(low + place * (high - low))
    return found.clip(0, 1)


def _flat(images: Tensor, indices: IntArray) -> FloatArray:
    """Return images as floating rows in [0, 1], (n, d)."""
    pixels = images[torch.from_numpy(indices).to(images.device)].cpu()
    rows: FloatArray = pixels.reshape(len(pixels), -1).double().numpy()
    return rows / 255


def _moments(images: Tensor) -> tuple[FloatArray, FloatArray]:
    """Return the mean and deviation (d,) of every pixel; 1 where it never changes."""
    N, d = len(images), images[0].numel()
    sums = np.zeros((2, d))
    for part in np.array_split(np.arange(N), -(-N // CHUNK)):
        x = _flat(images, part)
        sums += np.stack([x.sum(axis=0), (x**2).sum(axis=0)])
    mean = sums[0] / N
    variance = sums[1] / N - mean**2
    return mean, np.sqrt(np.where(variance > 1e-10, variance, 1.0))
