"""From class statistics of clients to a calibrated linear head: the server's side of CCVR, without any image.

Luo et al. (2021, arXiv 2106.05001), section 4. A client sends, per class, how many samples it has and the mean and
covariance of their features; the server pools them exactly, draws features from one Gaussian per class, as many for each
class, and goes on training the head on these. Everything here is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from workbench.toolkit import Recipe, fit

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Per class, or per client and class: `count` (..., class), `mean` (..., class, feature), `cov` (..., class, d, d).

    Where nothing was seen count, mean and covariance are 0; the covariance of one sample is 0.
    """

    count: NDArray[np.int64]
    mean: Float
    cov: Float


@dataclass(frozen=True)
class Head:
    """A linear classifier: `weight` (class, feature), `bias` (class,)."""

    weight: Float
    bias: Float

    def __call__(self, feature: Float) -> Float:
        """Logits, (sample, class)."""
        return np.asarray(feature @ self.weight.T + self.bias)


def tukey(feature: Float, power: float) -> Float:
    """ReLU, then Tukey's ladder z^power: makes skewed non-negative features more Gaussian."""
    return np.maximum(feature, 0.0) ** power


def class_statistics(feature: Float, label: NDArray[np.int64], classes: int) -> Statistics:
    """What one client sends: count, mean and unbiased covariance (divisor N - 1) of each class."""
    width = feature.shape[1]
    count = np.bincount(label, minlength=classes)
    mean, cov = np.zeros((classes, width)), np.zeros((classes, width, width))
    for k in np.flatnonzero(count):
        own = feature[label == k].astype(np.float64)
        mean[k] = own.mean(axis=0)
        if count[k] > 1:
            centred = own - mean[k]
            cov[k] = centred.T @ centred / (count[k] - 1)
    return Statistics(count, mean, cov)


def client_statistics(
    feature: Float, label: NDArray[np.int64], owner: NDArray[np.int64], clients: int, classes: int, least: int = 1
) -> Statistics:
    """The statistics of all clients; classes of which a client has fewer than `least` samples are withheld."""
    parts = [class_statistics(feature[owner == c], label[owner == c], classes) for c in range(clients)]
    count = np.stack([part.count for part in parts])
    kept = count >= least
    return Statistics(
        count * kept,
        np.stack([part.mean for part in parts]) * kept[..., None],
        np.stack([part.cov for part in parts]) * kept[..., None, None],
    )


def pool(parts: Statistics) -> Statistics:
    """The statistics of all samples together from those of the clients, exactly.

    mu_c = sum_k N_ck mu_ck / N_c, S_c = [sum_k (N_ck - 1) S_ck + sum_k N_ck (mu_ck - mu_c)(mu_ck - mu_c)^T] / (N_c - 1).
    (The paper writes the second sum as sum_k N_ck mu_ck mu_ck^T - N_c mu_c mu_c^T, which is equal but cancels digits.)
    """
    count = parts.count.sum(axis=0)
    share = parts.count / np.maximum(count, 1)
    mean = np.einsum("kc,kcd->cd", share, parts.mean)
    within = np.einsum("kc,kcde->cde", np.maximum(parts.count - 1, 0).astype(np.float64), parts.cov)
    apart = (parts.mean - mean) * (parts.count > 0)[..., None]
    between = np.einsum("kc,kcd,kce->cde", parts.count.astype(np.float64), apart, apart)
    return Statistics(count, mean, (within + between) / np.maximum(count - 1, 1)[:, None, None])


def shrink(statistics: Statistics, share: float) -> Statistics:
    """Move the covariance of classes with fewer than 2 d samples towards trace / d times the identity by `share`."""
    width = statistics.mean.shape[1]
    level = np.trace(statistics.cov, axis1=1, axis2=2) / width
    target = level[:, None, None] * np.eye(width)
    rare = (statistics.count < 2 * width)[:, None, None]
    cov = np.where(rare, (1 - share) * statistics.cov + share * target, statistics.cov)
    return Statistics(statistics.count, statistics.mean, cov)


def diagonal(statistics: Statistics) -> Statistics:
    """Variances only: a known shortcut, for comparison."""
    width = statistics.mean.shape[1]
    return Statistics(statistics.count, statistics.mean, statistics.cov * np.eye(width))


def cholesky(cov: Float) -> tuple[Float, float]:
    """Lower factor of cov + j I and j: 1e-6 trace / d, raised tenfold until the factorisation succeeds (0 for cov = 0)."""
    width = len(cov)
    jitter = 1e-6 * float(np.trace(cov)) / width
    if jitter <= 0:
        return np.zeros_like(cov), 0.0
    while True:
        try:
            return np.linalg.cholesky(cov + jitter * np.eye(width)), jitter
        except np.linalg.LinAlgError:
            jitter *= 10


def draw_virtual(statistics: Statistics, draws: int, rng: np.random.Generator) -> tuple[Float, Float]:
    """`draws` features from N(mu_c, S_c) for every class alike: (class, draw, feature); and the jitter of each class."""
    classes, width = statistics.mean.shape
    feature, jitter = np.empty((classes, draws, width)), np.empty(classes)
    for k in range(classes):
        factor, jitter[k] = cholesky(statistics.cov[k])
        feature[k] = statistics.mean[k] + rng.standard_normal((draws, width)) @ factor.T
    return feature, jitter


def train_head(
    head: Head, feature: Float, label: NDArray[np.int64], recipe: Recipe, generator: torch.Generator
) -> Head:
    """Go on training a linear head (weight and bias) on fixed features (sample, feature)."""
    layer = nn.Linear(feature.shape[1], len(head.bias))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(head.weight))
        layer.bias.copy_(torch.from_numpy(head.bias))
    fit(layer, torch.from_numpy(feature).float(), torch.from_numpy(label), recipe, generator=generator)
    return Head(layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())


def train_on_virtual(
    head: Head, statistics: Statistics, virtual: Float, recipe: Recipe, generator: torch.Generator
) -> Head:
    """`train_head` on the virtual features (class, draw, feature) of the classes that any client has seen."""
    seen = np.flatnonzero(statistics.count)
    label = np.repeat(seen, virtual.shape[1])
    return train_head(head, virtual[seen].reshape(-1, virtual.shape[2]), label, recipe, generator)


def class_mean_head(statistics: Statistics) -> Head:
    """Nearest class mean as a linear head: logit mu_c . z - |mu_c|^2 / 2; classes never seen are never predicted."""
    bias = -(statistics.mean**2).sum(axis=1) / 2
    return Head(statistics.mean, np.where(statistics.count > 0, bias, -1e30))


def normalised_head(head: Head, tau: float) -> Head:
    """W_c / |W_c|^tau without bias (tau-normalisation, Kang et al. 2020, arXiv 1910.09217)."""
    norm = np.linalg.norm(head.weight, axis=1, keepdims=True)
    return Head(head.weight / np.maximum(norm, 1e-12) ** tau, np.zeros_like(head.bias))


def linear_cka(features: list[Tensor]) -> Float:
    """Linear CKA of every pair of features (sample, d_i) of the same samples, (n, n).

    |Y^T X|_F^2 / (|X^T X|_F |Y^T Y|_F) for centred X, Y, computed from the Gram matrices: tr(X X^T Y Y^T) is the same.
    NaN where features do not vary.
    """
    centred = [(x.double().flatten(1) - x.double().flatten(1).mean(0)).numpy() for x in features]
    gram = np.stack([(x @ x.T).ravel() for x in centred])
    inner = gram @ gram.T
    norm = np.sqrt(np.diag(inner))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(inner / norm / norm[:, None])
