"""How differently one match threshold behaves from class to class: OPIS, and retrieval scores to read it beside.

Zhang, Xu et al. (2023), arXiv 2307.04047. Two items match when the cosine similarity of their embeddings reaches a threshold.
For class i the positive pairs have both members in it, the negative ones exactly one; pairs are unordered and never of an item
with itself. Everything streams over blocks of rows, so that the n x n similarities never exist at once.

Retrieval: Musgrave et al. 2020 (arXiv 2003.08505) for MAP@R.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from workbench import InputError

Float = NDArray[np.float64]
Spacing = Literal["cosine", "distance"]
BLOCK = 4_000_000
"""Similarities in memory at once."""
FINE_BINS = 2**20
"""Bins of [-1, 1] from which the calibration range is read: its ends are exact to 2e-6."""


@dataclass(frozen=True)
class Acceptance:
    """Pairs accepted at each threshold, exact counts.

    Attributes:
        names: (class,) labels of the classes, ascending.
        threshold: (t,) cosine similarities, ascending; a pair is accepted when its similarity is at least this.
        positive, negative: (class,) numbers of pairs.
        accepted_positive, accepted_negative: (class, t).
    """

    names: NDArray[np.int64]
    threshold: Float
    positive: NDArray[np.int64]
    negative: NDArray[np.int64]
    accepted_positive: NDArray[np.int64]
    accepted_negative: NDArray[np.int64]

    @property
    def far(self) -> Float:
        """False accept rate, (class, t)."""
        return self.accepted_negative / self.negative[:, None]

    @property
    def frr(self) -> Float:
        """False reject rate, (class, t)."""
        return 1 - self.accepted_positive / self.positive[:, None]

    @property
    def pooled_far(self) -> Float:
        """Share of all negative pairs that is accepted, (t,). Each is a negative of two classes, in both sums."""
        pooled: Float = self.accepted_negative.sum(0) / self.negative.sum()
        return pooled

    def take(self, index: NDArray[np.int64]) -> Acceptance:
        """The same pairs at some of the thresholds."""
        return Acceptance(self.names, self.threshold[index], self.positive, self.negative,
                          self.accepted_positive[:, index], self.accepted_negative[:, index])  # fmt: skip


def normalised(embedding: Tensor) -> Tensor:
    """Rows of unit length in float64.

    Raises:
        InputError: a row is zero or not finite: it has no direction.
    """
    rows = embedding.double()
    length = rows.norm(dim=1, keepdim=True)
    if not bool((torch.isfinite(length) & (length > 0)).all()):
        bad = int((~(torch.isfinite(length) & (length > 0))).sum())
        raise InputError("feature", expected="finite embeddings other than zero", got=f"{bad} that are not")
    return rows / length


def with_partners(label: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Positions of the samples whose class has at least two, and the number of classes left out.

    Raises:
        InputError: fewer than two such classes: there are no positive or no negative pairs.
    """
    names, inverse, count = np.unique(label, return_inverse=True, return_counts=True)
    if (count >= 2).sum() < 2:
        raise InputError(
            "label",
            expected="at least two classes of at least two samples",
            got=f"{int((count >= 2).sum())} of {len(names)}",
        )
    return np.flatnonzero(count[inverse] >= 2), int((count < 2).sum())


def _rows(embedding: Tensor, index: Tensor) -> Iterator[Tensor]:
    size = max(1, BLOCK // len(embedding))
    return iter(index.split(size))


def acceptance(embedding: Tensor, label: Tensor, threshold: Float) -> Acceptance:
    """Count the accepted pairs of every class.

    Args:
        embedding: (sample, feature), unit rows.
        label: (sample,) int64; every class has at least two samples.
        threshold: (t,) ascending.
    """
    device, grid = embedding.device, torch.from_numpy(threshold).to(embedding)
    names, count = torch.unique(label, return_counts=True)
    bins = len(threshold) + 1
    tally = torch.zeros((2, len(names), bins), dtype=torch.int64, device=device)
    for k, name in enumerate(names):
        own = label == name
        for rows in _rows(embedding, torch.nonzero(own)[:, 0]):
            similarity = (embedding[rows] @ embedding.T).clamp_(-1, 1)
            # A pair belongs to as many bins from the left as there are thresholds that it reaches.
            reached = torch.searchsorted(grid, similarity, right=True)
            tally[1, k] += torch.bincount(reached[:, ~own].flatten(), minlength=bins)
            later = torch.arange(len(label), device=device)[None] > rows[:, None]  # each pair once, no self pairs
            tally[0, k] += torch.bincount(reached[later & own[None]], minlength=bins)
    accepted = (tally.sum(2, keepdim=True) - tally.cumsum(2))[..., :-1].cpu().numpy()
    n = count.cpu().numpy()
    return Acceptance(names.cpu().numpy(), threshold, n * (n - 1) // 2, n * (len(label) - n), accepted[0], accepted[1])


def thresholds_at(embedding: Tensor, label: Tensor, rates: Sequence[float]) -> list[float]:
    """For each rate the threshold at which the pooled false accept rate has fallen to it.

    They come from the negatives of the set that is judged and are the same for all classes: the smallest multiples of
    2 / FINE_BINS at which the rate is at most the wanted one.

    Args:
        embedding: (sample, feature), unit rows.
        label: (sample,).
        rates: wanted false accept rates.
    """
    tally = torch.zeros(FINE_BINS, dtype=torch.int64, device=embedding.device)
    for rows in _rows(embedding, torch.arange(len(embedding), device=embedding.device)):
        similarity = embedding[rows] @ embedding.T
        other = similarity[label[rows][:, None] != label[None]]
        tally += torch.bincount(((other + 1) * (FINE_BINS / 2)).long().clamp_(0, FINE_BINS - 1), minlength=FINE_BINS)
    counts = tally.cpu().numpy()
    share = np.append(counts[::-1].cumsum()[::-1], 0) / counts.sum()  # of the pairs in this bin or above
    return [int(np.argmax(share <= rate)) * 2 / FINE_BINS - 1 for rate in rates]


def grid(low: float, high: float, points: int, spacing: Spacing) -> Float:
    """Ascending similarities from `low` to `high`: equally spaced in cosine, or in the distance sqrt(2 - 2 s)."""
    if spacing == "cosine":
        return np.linspace(low, high, points)
    distance = np.linspace(math.sqrt(2 - 2 * min(low, 1.0)), math.sqrt(2 - 2 * min(high, 1.0)), points)
    return 1 - distance**2 / 2


def utility(far: Float, frr: Float, c: float = 1.0) -> Float:
    """U = (1 + c^2) phi psi / (c^2 phi + psi), phi = 1 - FAR the specificity, psi = 1 - FRR the sensitivity; 0 / 0 is 0."""
    phi, psi = 1 - far, 1 - frr
    below = c**2 * phi + psi
    return np.divide((1 + c**2) * phi * psi, below, out=np.zeros_like(below), where=below > 0)


def opis_by_class(value: Float) -> Float:
    """Mean over the thresholds of (U_i - mean over classes)^2, (class,); `value` is U (class, t). Their mean is OPIS."""
    contribution: Float = ((value - value.mean(0)) ** 2).mean(1)
    return contribution


def opis(value: Float) -> float:
    """Operating-point inconsistency score of utilities (class, t) on a uniform grid: the mean variance between classes."""
    return float(opis_by_class(value).mean())


def tail_opis(value: Float, share: float) -> float:
    """eps-OPIS: squared gap between the mean utilities of the best and the worst classes, mean over the thresholds.

    Args:
        value: U (class, t).
        share: of the classes in each group, rounded up to whole classes; the groups are formed anew at each threshold.
    """
    ordered, size = np.sort(value, axis=0), math.ceil(share * len(value) - 1e-9)
    return float(((ordered[-size:].mean(0) - ordered[:size].mean(0)) ** 2).mean())


def utility_with_own_thresholds(counted: Acceptance, wanted: Float, c: float = 1.0) -> Float:
    """U (class, t) if every class had a threshold of its own with false accept rate at most `wanted` (t,).

    What classes accept by mistake no longer differs then, only what they still reject. It needs labels of the class, so it
    cannot be shipped; and it is no bound: OPIS can be larger than with one threshold.

    Args:
        counted: on a fine grid over [-1, 1].
        wanted: false accept rates, e.g. the pooled ones on the calibration range.
        c: weight of the two rates.
    """
    far, frr = counted.far, counted.frr
    # The rate falls with the threshold: as many thresholds are too lenient as have a rate above the wanted one.
    lenient = np.stack([len(own) - np.searchsorted(own[::-1], wanted, side="right") for own in far])
    chosen = np.minimum(lenient, far.shape[1] - 1)
    rows = np.arange(len(far))[:, None]
    return utility(far[rows, chosen], frr[rows, chosen], c)


def quantiles(accepted: NDArray[np.int64], total: NDArray[np.int64], threshold: Float, at: Sequence[float]) -> Float:
    """Similarity quantiles from counts on a fine grid, (class, q): the last threshold that a share 1 - q still reaches."""
    share = accepted / total[:, None]
    steps = [len(threshold) - 1 - np.argmax(share[:, ::-1] >= 1 - q - 1e-12, axis=1) for q in at]
    return threshold[np.stack(steps, axis=1)]


def retrieval(embedding: Tensor, label: Tensor, ranks: Sequence[int]) -> tuple[dict[int, float], float]:
    """Recall at `ranks` and MAP@R, every sample searching all the others.

    Recall@k: share of the queries with an item of their class among the k nearest. MAP@R: per query, with R the number of
    other items of its class, sum over the ranks j <= R of [item j is of the class] * precision at j, over R.

    Args:
        embedding: (sample, feature), unit rows.
        label: (sample,), every class has at least two samples.
        ranks: k, ascending.
    """
    count = torch.bincount(label)[label] - 1
    depth = min(max(int(count.max()), *ranks), len(label) - 1)
    place = torch.arange(1, depth + 1, device=label.device)
    first, precision = [], []
    for rows in _rows(embedding, torch.arange(len(label), device=label.device)):
        similarity = embedding[rows] @ embedding.T
        similarity[torch.arange(len(rows), device=label.device), rows] = -torch.inf  # the query is not its own answer
        hit = label[similarity.topk(depth, dim=1).indices] == label[rows][:, None]
        first.append(torch.stack([hit[:, :k].any(1) for k in ranks], dim=1))
        wanted = count[rows][:, None]
        value = hit * hit.cumsum(1) / place * (place[None] <= wanted)
        precision.append(value.sum(1) / wanted[:, 0])
    recall = torch.cat(first).double().mean(0).tolist()
    return dict(zip(ranks, recall, strict=True)), float(torch.cat(precision).double().mean())


def hardest_pairs(
    embedding: Tensor, label: Tensor, name: int, pairs: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the least similar positives and of the most similar negatives of a class, (pair, 2) each."""
    own = torch.nonzero(label == name)[:, 0]
    other = torch.nonzero(label != name)[:, 0]
    inside = embedding[own] @ embedding[own].T
    at = torch.triu_indices(len(own), len(own), 1, device=own.device)
    chosen = at[:, inside[at[0], at[1]].argsort(stable=True)[:pairs]]
    positive = own[chosen].T
    best: list[tuple[float, int, int]] = []
    for rows in _rows(embedding, own):
        similarity = embedding[rows] @ embedding[other].T
        value, place = similarity.flatten().topk(min(pairs, similarity.numel()))
        found = zip(value.tolist(), rows[place // len(other)].tolist(), other[place % len(other)].tolist(), strict=True)
        best = sorted([*best, *found], key=lambda entry: (-entry[0], entry[1], entry[2]))[:pairs]
    negative = np.array([entry[1:] for entry in best], dtype=np.int64)
    return positive.cpu().numpy(), negative
