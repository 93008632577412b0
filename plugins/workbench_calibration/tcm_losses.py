"""The threshold-consistent margin loss, and the losses of metric learning that it is added to: pure functions of a batch.

Every loss takes embeddings of any length and works on their directions. `strength` scales the one number that trades accuracy
against spread (temperature or margin), for comparisons with simply tuning the base loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, relu
from workbench.toolkit import soft_cross_entropy

BaseLoss = Literal["normalised_softmax", "proxy_anchor", "contrastive", "smooth_ap"]


def tcm_loss(
    embedding: Tensor,
    label: Tensor,
    *,
    m_plus: float = 0.9,
    m_minus: float = 0.5,
    lam_plus: float = 1.0,
    lam_minus: float = 1.0,
    reference: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Threshold-consistent margin regulariser (Zhang, Xu et al. 2023): a scalar.

    lam+ * mean of (m+ - s) over the positive pairs with s <= m+, plus lam- * mean of (s - m-) over the negative pairs with
    s >= m-, s the cosine similarity. The means are over the pairs beyond the margin only; an empty one counts 0.

    Args:
        embedding: (sample, feature).
        label: (sample,) int64.
        m_plus: cosine similarity that positives are pulled up to.
        m_minus: cosine similarity that negatives are pushed down to.
        lam_plus: weight of the positives.
        lam_minus: weight of the negatives.
        reference: embeddings and labels to form pairs with instead of the batch itself (a memory of earlier batches); then
            no pair is taken for a pair of an item with itself.
    """
    unit = normalize(embedding, dim=1)
    other, other_label = (unit, label) if reference is None else (normalize(reference[0], dim=1), reference[1])
    similarity = unit @ other.T
    same = label[:, None] == other_label[None]
    positive = same & ~torch.eye(len(label), dtype=torch.bool, device=label.device) if reference is None else same
    hard_positive, hard_negative = positive & (similarity <= m_plus), ~same & (similarity >= m_minus)
    return lam_plus * _mean_over(m_plus - similarity, hard_positive) + lam_minus * _mean_over(
        similarity - m_minus, hard_negative
    )


def _mean_over(value: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen entries, 0 if there are none (with a gradient of zeros, so that nothing special happens)."""
    return (value * chosen).sum() / chosen.sum().clamp_min(1)


Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(embedding (sample, feature), label (sample,), proxies (class, feature), strength) -> scalar."""


def normalised_softmax(embedding: Tensor, label: Tensor, proxy: Tensor, strength: float = 1.0) -> Tensor:
    """Cross entropy of cosine similarities to one proxy per class over temperature 0.05 (Zhai and Wu 2019, arXiv 1811.12649)."""
    cosine = normalize(embedding, dim=1) @ normalize(proxy, dim=1).T
    return soft_cross_entropy(cosine / (0.05 * strength), label)


def proxy_anchor(embedding: Tensor, label: Tensor, proxy: Tensor, strength: float = 1.0) -> Tensor:
    """Proxies as anchors of a soft maximum over the batch, alpha 32, margin 0.1 (Kim et al. 2020, arXiv 2003.13911, eq. 4)."""
    alpha, margin = 32.0, 0.1 * strength
    cosine = normalize(embedding, dim=1) @ normalize(proxy, dim=1).T
    own = label[:, None] == torch.arange(len(proxy), device=label.device)[None]
    zero = cosine.new_zeros((1, len(proxy)))

    def softplus_sum(exponent: Tensor, chosen: Tensor) -> Tensor:  # log(1 + sum of exp over the chosen rows)
        return torch.logsumexp(torch.cat([exponent.masked_fill(~chosen, -torch.inf), zero]), dim=0)

    pull = softplus_sum(-alpha * (cosine - margin), own).sum() / own.any(0).sum()
    push = softplus_sum(alpha * (cosine + margin), ~own).sum() / len(proxy)
    return pull + push


def contrastive(embedding: Tensor, label: Tensor, proxy: Tensor, strength: float = 1.0) -> Tensor:
    """Euclidean distances of positives and hinges 1 - d of negatives, means over those above 0 (Hadsell et al. 2006).

    Distances are of unit vectors and not squared, as in pytorch-metric-learning. No proxies.
    """
    unit = normalize(embedding, dim=1)
    squared = (2 - 2 * unit @ unit.T).clamp_min(1e-12)  # the square root has no gradient at 0
    distance = squared.sqrt()
    same = label[:, None] == label[None]
    positive = same & ~torch.eye(len(label), dtype=torch.bool, device=label.device)
    hinge = relu(strength - distance)
    return _mean_over(distance, positive & (distance > 1e-5)) + _mean_over(hinge, ~same & (hinge > 0))


def smooth_ap(embedding: Tensor, label: Tensor, proxy: Tensor, strength: float = 1.0) -> Tensor:
    """1 - average precision with sigmoids of temperature 0.01 for the comparisons of ranks (Brown et al. 2020, arXiv 2007.12163).

    As in the authors' code the query is one of its own positives. Classes may have different numbers of samples. No proxies.
    """
    unit = normalize(embedding, dim=1)
    similarity = unit @ unit.T
    # above[i, j, k]: for query i, does k rank above j? An item is not compared with itself.
    above = torch.sigmoid((similarity[:, None, :] - similarity[:, :, None]) / (0.01 * strength))
    above = above * ~torch.eye(len(label), dtype=torch.bool, device=label.device)[None]
    same = label[:, None] == label[None]
    rank = 1 + above.sum(2)
    positive_rank = 1 + (above * same[:, None, :]).sum(2)
    precision = (positive_rank / rank * same).sum(1) / same.sum(1)
    return 1 - precision.mean()


@dataclass(frozen=True)
class Base:
    """A base loss with the standard deviation of its proxies' initial normal distribution; 0: it has none."""

    loss: Loss
    proxy_std: float


def bases(classes: int) -> Mapping[str, Base]:
    """The base losses by name; proxies start as in pytorch-metric-learning."""
    return {
        "normalised_softmax": Base(normalised_softmax, 1.0),
        "proxy_anchor": Base(proxy_anchor, math.sqrt(2 / classes)),
        "contrastive": Base(contrastive, 0.0),
        "smooth_ap": Base(smooth_ap, 0.0),
    }
