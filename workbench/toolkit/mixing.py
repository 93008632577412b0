"""One mixing routine for every mixed-sample augmentation: blends (Mixup), boxes (CutMix) and arbitrary masks (FMix).

One convention throughout, the one of the papers: a *share* (lambda) is the share of the FIRST image, and the weight of
the first label; the partner has the rest. Draws come from a seeded numpy Generator (`out.rng("mixing")`).

Sources: Mixup, Zhang et al. 2018 (arXiv 1710.09412); CutMix, Yun et al. 2019 (arXiv 1905.04899); d-point Mixup, as in
Chidambaram & Ge 2024; masks, FMix, Harris et al. 2020 (arXiv 2002.12047).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.errors import InputError

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Mixed",
    "box_mask",
    "cutmix_batch",
    "draw_box",
    "draw_share",
    "mask_batch",
    "mix",
    "mix_points",
    "mixup_batch",
    "soft_labels",
]

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Mixed:
    """A mixed batch.

    Attributes:
        image: (sample, channel, *space), the mixed images.
        partner: (sample,) int64, the index in the batch of each sample's partner.
        image_share: (sample,) share of the first image in the mixed one (mean of its mask, or the blending weight).
        label_share: (sample,) weight of the first label. Equal to `image_share` for Mixup and CutMix; for FMix it is
            the drawn lambda; 1 where only the first label is used (the reformulated variant).
    """

    image: torch.Tensor
    partner: torch.Tensor
    image_share: torch.Tensor
    label_share: torch.Tensor


def mix(image: torch.Tensor, partner: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """Mix every image with its partner: `share * image + (1 - share) * image[partner]`.

    Args:
        image: (sample, channel, *space) floats.
        partner: (sample,) int64 indices into the batch.
        share: the share of the first image, in [0, 1]: one number; (sample,) numbers, one a sample; or a mask with as
            many dims as `image`, broadcast over its dims of length 1, e.g. (1, 1, y, x) for one mask a batch.

    Returns:
        (sample, channel, *space), same dtype and device as `image`.

    Raises:
        InputError: shapes do not fit, or a share lies outside [0, 1].
    """
    _check_partner(image, partner)
    weight = torch.as_tensor(share, dtype=image.dtype, device=image.device)
    if weight.ndim == 1 and len(weight) == len(image):
        weight = weight.reshape(-1, *[1] * (image.ndim - 1))
    fits = weight.ndim in (0, image.ndim) and all(
        length in (1, expected) for length, expected in zip(weight.shape, image.shape, strict=False)
    )
    if not fits:
        raise InputError(
            "share",
            expected=f"a number, ({len(image)},) numbers, or a mask that broadcasts to {tuple(image.shape)}",
            got=f"shape {tuple(weight.shape)}",
            hint="Give a mask of the spatial shape as mask[None, None].",
        )
    _check_unit("share", weight)
    return weight * image + (1 - weight) * image[partner]


def mix_points(image: torch.Tensor, partner: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Convex combination of d + 1 images (d-Mixup).

    `weight[:, 0] * image + sum_j weight[:, j] * image[partner[:, j - 1]]`, j from 1 to d.

    Args:
        image: (sample, channel, *space) floats.
        partner: (sample, d) int64 indices into the batch.
        weight: (d + 1,) or (sample, d + 1), non-negative, summing to one; the first is the weight of the image itself.

    Returns:
        (sample, channel, *space).

    Raises:
        InputError: shapes do not fit, or weights are not a convex combination.
    """
    if partner.ndim != 2 or len(partner) != len(image):
        raise InputError(
            "partner", expected=f"shape ({len(image)}, d)", got=f"shape {tuple(partner.shape)}", hint="d = 1 is `mix`."
        )
    weight = _convex_weights(weight, len(image), partner.shape[1]).to(image)
    points = torch.cat([torch.arange(len(image), device=partner.device)[:, None], partner], dim=1)
    return torch.einsum("sd,sd...->s...", weight, image[points.to(image.device)])


def soft_labels(
    label: torch.Tensor, partner_label: torch.Tensor, share: float | torch.Tensor, n_classes: int
) -> torch.Tensor:
    """Class weights of mixed samples: `share` on the first label, the rest on the partner's.

    Cross entropy against these equals `share * CE(label) + (1 - share) * CE(partner_label)`, sample by sample.

    Args:
        label: (sample,) int64 classes, or (sample, class) floats (multi-hot or already soft).
        partner_label: the partners' labels, like `label`; or (sample, d) int64 for d partners.
        share: weight of the first label: a number or (sample,); for d partners (d + 1,) or (sample, d + 1) weights.
        n_classes: number of classes.

    Returns:
        (sample, class) float32; rows sum to one for integer labels.

    Raises:
        InputError: shapes do not fit, a label is outside 0..n_classes-1, or a share outside [0, 1].
    """
    first = _class_weights("label", label, n_classes)
    if partner_label.ndim == 2 and not partner_label.is_floating_point():
        weight = _convex_weights(torch.as_tensor(share), len(first), partner_label.shape[1]).to(first)
        rest = [
            _class_weights("partner_label", partner_label[:, j], n_classes) for j in range(partner_label.shape[1])
        ]
        return torch.einsum("sd,dsc->sc", weight, torch.stack([first, *rest]))
    second = _class_weights("partner_label", partner_label, n_classes)
    if first.shape != second.shape:
        raise InputError(
            "partner_label", expected=f"as many labels as `label` ({len(first)})", got=f"{tuple(partner_label.shape)}"
        )
    weight = torch.as_tensor(share, dtype=first.dtype, device=first.device)
    if weight.ndim > 1 or (weight.ndim == 1 and len(weight) != len(first)):
        raise InputError("share", expected=f"a number or shape ({len(first)},)", got=f"shape {tuple(weight.shape)}")
    _check_unit("share", weight)
    weight = weight[..., None]
    return weight * first + (1 - weight) * second


def draw_share(alpha: float, rng: np.random.Generator) -> float:
    """One lambda from Beta(alpha, alpha).

    Raises:
        InputError: alpha is not positive.
    """
    if not alpha > 0:
        raise InputError("alpha", expected="a positive number", got=repr(alpha))
    return float(rng.beta(alpha, alpha))


def draw_box(space: Sequence[int], share: float, rng: np.random.Generator) -> Box:
    """CutMix's box of nominal volume `1 - share`, centre uniform over the pixels, clipped at the borders.

    Sides are `int(length * (1 - share)^(1/d))`, the box runs from `centre - side // 2` to `centre + side // 2`, as in
    the official CutMix code (there d = 2). So odd sides lose one pixel and boxes near a border are smaller: recompute
    the share from what was pasted (`cutmix_batch` does).

    Args:
        space: spatial shape, 1 to 3 lengths.
        share: share of the first image, in [0, 1].
        rng: seeded Generator.
    """
    ratio = (1.0 - share) ** (1.0 / len(space))
    # The official code draws x (columns) before y (rows); both are uniform, so any order has the same law.
    centres = [int(rng.integers(length)) for length in space]
    sides = [int(length * ratio) for length in space]
    return tuple(
        slice(max(0, centre - side // 2), min(length, centre + side // 2))
        for centre, side, length in zip(centres, sides, space, strict=True)
    )


def box_mask(space: Sequence[int], box: Box) -> torch.Tensor:
    """(*space) float32 mask: 0 inside the box (the partner is pasted there), 1 elsewhere."""
    mask = torch.ones(tuple(space))
    mask[box] = 0.0
    return mask


def mixup_batch(
    image: torch.Tensor, alpha: float, rng: np.random.Generator, *, per_sample: bool = False, share: float | None = None
) -> Mixed:
    """Mixup: blend with a random partner, one lambda a batch (the official code's way) or one a sample.

    Args:
        image: (sample, channel, *space).
        alpha: of the Beta(alpha, alpha) distribution.
        rng: seeded Generator.
        per_sample: draw a lambda for each sample.
        share: use this lambda instead of drawing (for other distributions).
    """
    count = len(image)
    drawn = [share if share is not None else draw_share(alpha, rng) for _ in range(count if per_sample else 1)]
    shares = torch.tensor(drawn, dtype=torch.float64).expand(count).to(image)
    partner = torch.from_numpy(rng.permutation(count)).to(image.device)
    return Mixed(mix(image, partner, shares), partner, shares, shares)


def cutmix_batch(
    image: torch.Tensor, alpha: float, rng: np.random.Generator, *, per_sample: bool = False
) -> Mixed:
    """CutMix: paste a box of a random partner; both shares are recomputed from the pasted volume.

    Args:
        image: (sample, channel, *space).
        alpha: of the Beta(alpha, alpha) distribution.
        rng: seeded Generator.
        per_sample: draw a lambda and a box for each sample.
    """
    space = image.shape[2:]
    masks = torch.stack(
        [box_mask(space, draw_box(space, draw_share(alpha, rng), rng)) for _ in range(len(image) if per_sample else 1)]
    )
    return mask_batch(image, masks, None, rng)


def mask_batch(
    image: torch.Tensor, mask: torch.Tensor, label_share: float | torch.Tensor | None, rng: np.random.Generator
) -> Mixed:
    """Mix with given masks and random partners.

    Args:
        image: (sample, channel, *space).
        mask: (1, *space) for the whole batch, or (sample, *space); 1 keeps the image, 0 shows its partner.
        label_share: weight of the first label, a number or (sample,): FMix gives the drawn lambda. None takes the
            mean of the mask, which is CutMix's rule.
        rng: seeded Generator; draws the permutation.

    Raises:
        InputError: the mask does not fit the images.
    """
    if mask.ndim != image.ndim - 1:
        raise InputError(
            "mask", expected=f"shape (1 or {len(image)}, *{tuple(image.shape[2:])})", got=f"shape {tuple(mask.shape)}"
        )
    mask = mask.to(image)
    partner = torch.from_numpy(rng.permutation(len(image))).to(image.device)
    mixed = mix(image, partner, mask[:, None])
    # In float64: a float32 mean over many pixels is off by more than one pixel's share would allow to see.
    image_share = mask.double().flatten(1).mean(1).expand(len(image)).to(image)
    shares = image_share if label_share is None else torch.as_tensor(label_share).expand(len(image)).to(image)
    return Mixed(mixed, partner, image_share, shares)


def _check_partner(image: torch.Tensor, partner: torch.Tensor) -> None:
    if partner.shape != image.shape[:1] or partner.is_floating_point():
        raise InputError(
            "partner",
            expected=f"({len(image)},) integer indices, one for each sample",
            got=f"shape {tuple(partner.shape)}, {partner.dtype}",
            hint="Several partners a sample are mixed by `mix_points`.",
        )


def _check_unit(argument: str, values: torch.Tensor) -> None:
    if values.numel() and not bool(((values >= 0) & (values <= 1)).all()):
        low, high = float(values.min()), float(values.max())
        raise InputError(argument, expected="values in [0, 1]", got=f"values from {low:.6g} to {high:.6g}")


def _convex_weights(weight: torch.Tensor, count: int, partners: int) -> torch.Tensor:
    if weight.ndim == 1:
        weight = weight.expand(count, -1)
    if weight.shape != (count, partners + 1):
        raise InputError(
            "weight", expected=f"shape ({partners + 1},) or ({count}, {partners + 1})", got=f"{tuple(weight.shape)}"
        )
    _check_unit("weight", weight)
    total = weight.double().sum(1)
    if not bool(torch.isclose(total, torch.ones_like(total), rtol=0, atol=1e-5).all()):
        worst = float(total[(total - 1).abs().argmax()])
        raise InputError("weight", expected="weights that sum to one", got=f"a sum of {worst:.6g}")
    return weight


def _class_weights(argument: str, label: torch.Tensor, n_classes: int) -> torch.Tensor:
    if label.is_floating_point():
        if label.ndim != 2 or label.shape[1] != n_classes:
            raise InputError(argument, expected=f"shape (sample, {n_classes})", got=f"{tuple(label.shape)}")
        return label.float()
    if label.ndim != 1:
        raise InputError(argument, expected="shape (sample,) for integer labels", got=f"{tuple(label.shape)}")
    low, high = (int(label.min()), int(label.max())) if label.numel() else (0, 0)
    if low < 0 or high >= n_classes:
        raise InputError(argument, expected=f"classes 0..{n_classes - 1}", got=f"values from {low} to {high}")
    return torch.nn.functional.one_hot(label.long(), n_classes).float()
