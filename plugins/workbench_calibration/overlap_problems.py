"""Classification problems whose classes overlap, with the true probability of every class at every point.

Where classes overlap no classifier can be certain, and the best probabilities are known: so a prediction can be judged
against the truth and not only against labels. The two reference predictors need no training. Sources: Chidambaram and Ge
(2023, arXiv 2306.00740); `pairs_*` are the plugin's own, made after the paper's theorem.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.spatial import cKDTree

Float = NDArray[np.float64]
Int = NDArray[np.int64]

GAUSSIAN_DIMENSIONS = 300
PAIR_DIMENSIONS = 50
PAIR_DISTANCE = 12.0
"""Between the centres of neighbouring pairs of disks."""
OWN_OFFSET = 3.0
"""From the centre of a pair of disks to the regions that belong to one class alone."""
NEIGHBOURS = 15
SMOOTHING = 0.01


@dataclass(frozen=True)
class Drawn:
    """Samples of a problem: `point` (sample, dimension), `label` (sample,), `posterior` (sample, class), true P(class | x)."""

    point: Float
    label: Int
    posterior: Float


@dataclass(frozen=True)
class PairDisks:
    """Classes in pairs, on disks of radius 1 in the plane that do not touch: one shared by the pair, one for each class.

    A sample lies in the shared disk with probability `overlap`. There the posterior is 1/2 for both classes of the pair,
    elsewhere 1 for one class.
    """

    classes: int
    overlap: float

    def draw(self, per_class: int, rng: np.random.Generator) -> Drawn:
        """`per_class` samples of each class."""
        label = np.repeat(np.arange(self.classes), per_class)
        shared = rng.random(len(label)) < self.overlap
        side = np.where(label % 2 == 0, -OWN_OFFSET, OWN_OFFSET) * ~shared
        centre = np.stack([PAIR_DISTANCE * (label // 2) + side, np.zeros(len(label))], axis=1)
        angle, radius = 2 * np.pi * rng.random(len(label)), np.sqrt(rng.random(len(label)))
        point = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return Drawn(point, label, self.posterior(point))

    def posterior(self, point: Float) -> Float:
        """P(class | x), (sample, class), for points on the disks."""
        pair = np.rint(point[:, 0] / PAIR_DISTANCE).astype(np.int64)
        along = point[:, 0] - PAIR_DISTANCE * pair
        first = np.where(np.abs(along) < OWN_OFFSET / 2, 0.5, along < 0)
        return _pairwise(pair, first, self.classes)


class PairGaussians:
    """Classes in pairs in 50 dimensions: standard normal clouds around the pair's centre (shared) and around own ones.

    Centres are 1.5 N(0, I), own clouds are shifted from there by + and - N(0, I) of the pair; both are drawn once.
    """

    def __init__(self, classes: int, overlap: float, rng: np.random.Generator) -> None:
        self.classes, self.overlap = classes, overlap
        pairs = (classes + 1) // 2
        self.centre = 1.5 * rng.standard_normal((pairs, PAIR_DIMENSIONS))
        self.shift = rng.standard_normal((pairs, PAIR_DIMENSIONS))

    def draw(self, per_class: int, rng: np.random.Generator) -> Drawn:
        """`per_class` samples of each class."""
        label = np.repeat(np.arange(self.classes), per_class)
        own = rng.random(len(label)) >= self.overlap
        sign = np.where(label % 2 == 0, 1.0, -1.0) * own
        point = self.centre[label // 2] + sign[:, None] * self.shift[label // 2]
        point = point + rng.standard_normal(point.shape)
        return Drawn(point, label, self.posterior(point))

    def posterior(self, point: Float) -> Float:
        """Bayes' rule on the density of each class: overlap N(x; centre) + (1 - overlap) N(x; centre +- shift)."""
        density = np.empty((len(point), self.classes))
        with np.errstate(divide="ignore"):
            shared, own = np.log(self.overlap), np.log1p(-self.overlap)
        for k in range(self.classes):
            pair, sign = k // 2, 1.0 if k % 2 == 0 else -1.0
            square = [
                ((point - c) ** 2).sum(1) for c in (self.centre[pair], self.centre[pair] + sign * self.shift[pair])
            ]
            density[:, k] = np.logaddexp(shared - square[0] / 2, own - square[1] / 2)
        return np.asarray(special.softmax(density, axis=1))


@dataclass(frozen=True)
class TwoGaussians:
    """The paper's: N(0, I) and N(mu 1, I) in 300 dimensions. Bayes accuracy Phi(mu sqrt(300) / 2)."""

    separation: float
    classes: int = 2

    def draw(self, per_class: int, rng: np.random.Generator) -> Drawn:
        """`per_class` samples of each class."""
        label = np.repeat([0, 1], per_class)
        point = rng.standard_normal((len(label), GAUSSIAN_DIMENSIONS)) + self.separation * label[:, None]
        return Drawn(point, label, self.posterior(point))

    def posterior(self, point: Float) -> Float:
        """Logit of class 1: mu sum(x) - 150 mu^2."""
        logit = self.separation * point.sum(1) - GAUSSIAN_DIMENSIONS * self.separation**2 / 2
        second = special.expit(logit)
        return np.stack([1 - second, second], axis=1)


Problem = PairDisks | PairGaussians | TwoGaussians


def draw_noise_map(classes: int, rng: np.random.Generator) -> Int:
    """For every class one other class that its samples may be mistaken for, (class,)."""
    return (np.arange(classes) + rng.integers(1, classes, size=classes)) % classes


def add_label_noise(label: Int, noise_map: Int, rate: float, rng: np.random.Generator) -> Int:
    """Each label turns into `noise_map[label]` with probability `rate`."""
    return np.where(rng.random(len(label)) < rate, noise_map[label], label)


def noisy_posterior(label: Int, noise_map: Int, rate: float, classes: int) -> Float:
    """Probabilities of the noisy label of samples whose clean one is certain: 1 - rate and rate, (sample, class)."""
    return (1 - rate) * np.eye(classes)[label] + rate * np.eye(classes)[noise_map[label]]


def nearest_label_logits(train: Drawn, point: Float, classes: int) -> Float:
    """One-hot logits of the nearest training label: an interpolating classifier, (sample, class)."""
    _, nearest = cKDTree(train.point).query(point)
    return np.eye(classes)[train.label[nearest]]


def local_average(train: Drawn, point: Float, classes: int) -> Float:
    """Mean label of the 15 nearest training points, smoothed by 0.01 / class in each class, (sample, class)."""
    _, nearest = cKDTree(train.point).query(point, k=min(NEIGHBOURS, len(train.label)))
    mean = np.eye(classes)[train.label[nearest]].mean(axis=1)
    return np.asarray((mean + SMOOTHING / classes) / (1 + SMOOTHING))


def mean_divergence(posterior: Float, probability: Float) -> float:
    """Mean KL(posterior || probability) over samples, nats; probabilities below 1e-12 count as that."""
    return float(special.rel_entr(posterior, np.maximum(probability, 1e-12)).sum(axis=1).mean())


def nearest_divergence(classes: int, overlap: float) -> float:
    """KL of the nearest training label with the best temperature on `PairDisks`, in the limit of many samples.

    It is right with probability q = 1 - overlap / 2, so the best it can say is q for its class and (1 - q) / (k - 1) for
    each other one: an error inside the overlap is spread over all classes, not given to the one partner. Fully
    overlapping: log(k - 1) / 2.
    """
    right = 1 - overlap / 2
    own = -(1 - overlap) * np.log(right)
    if overlap == 0:
        return float(own)
    wrong = np.log(0.5 * (classes - 1) / (1 - right))
    return float(own + overlap / 2 * (np.log(0.5 / right) + wrong))


def _pairwise(pair: Int, first: Float, classes: int) -> Float:
    posterior = np.zeros((len(pair), classes))
    rows = np.arange(len(pair))
    posterior[rows, 2 * pair] = first
    posterior[rows, 2 * pair + 1] = 1 - first
    return posterior
