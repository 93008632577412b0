"""What is measured on held-out images once networks are trained: metrics, SSIM maps, a probe of the codes, a pair sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional
from workbench import InputError
from workbench.toolkit import Interval, mean_interval, wilson_interval

from workbench_restoration import metrics
from workbench_restoration.reconstruction import ImageLoss, LossName

__all__ = [
    "CRITERIA",
    "LOWER_IS_BETTER",
    "METRICS",
    "MOST_PSNR",
    "PairSheet",
    "draw_pairs",
    "excess_loss",
    "image_metrics",
    "linear_probe",
    "preference",
    "probe_interval",
    "ssim_image",
]

METRICS = ("mse", "mae", "psnr", "ssim", "ms_ssim")
LOWER_IS_BETTER = ("mse", "mae")
MOST_PSNR = 100.0
"""dB that an image restored exactly counts as: infinite, it would make every mean and interval useless."""
CRITERIA: tuple[LossName, ...] = ("mse", "mae", "ssim", "ms_ssim")
"""Metrics that are also losses: those a network can be expected to win when it was trained by them."""

_PIXEL_LOSSES: tuple[LossName, ...] = ("mse", "mae")
_STRUCTURAL_LOSSES: tuple[LossName, ...] = ("ms_ssim", "ssim", "mix")


def image_metrics(restored: Tensor, clean: Tensor, settings: ImageLoss) -> Tensor:
    """Every metric of `METRICS` for every image: (sample, channel, y, x) twice to (metric, sample), all finite.

    PSNR is cut off at `MOST_PSNR`.

    Args:
        restored: images in 0..1.
        clean: what they should have been.
        settings: window, stabilisers and scales; its `name` does not matter.
    """
    window = {"window": settings.window, "sigma": settings.sigma, "k1": settings.k1, "k2": settings.k2}
    return torch.stack(
        [
            metrics.mean_squared_error(restored, clean),
            metrics.mean_absolute_error(restored, clean),
            metrics.psnr(restored, clean).clamp(max=MOST_PSNR),
            metrics.ssim(restored, clean, **window),
            metrics.ms_ssim(restored, clean, scales=settings.scales, **window),
        ]
    )


def ssim_image(restored: Tensor, clean: Tensor, settings: ImageLoss, *, border: int = 0) -> Tensor:
    """SSIM around every pixel, mean over channels: (sample, channel, y, x) twice to (sample, y, x).

    NaN in the frame of `border` + window // 2 pixels where no whole window fits, so that a pixel of the map is a pixel
    of the image.
    """
    luminance, contrast_structure = metrics.ssim_maps(
        metrics.crop_border(restored, border),
        metrics.crop_border(clean, border),
        window=settings.window,
        sigma=settings.sigma,
        k1=settings.k1,
        k2=settings.k2,
    )
    frame = border + settings.window // 2
    return functional.pad((luminance * contrast_structure).mean(1), (frame,) * 4, value=float("nan"))


def excess_loss(mean: np.ndarray) -> np.ndarray:
    """How much worse each network is than the best one, per criterion: means (loss, metric) to (loss, criterion).

    loss / smallest loss - 1, where the loss of a similarity is 1 - similarity: 0 marks the best network, 0.5 one that
    leaves half as much again undone. Columns in the order of `CRITERIA`.
    """
    columns = []
    for name in CRITERIA:
        value = mean[:, METRICS.index(name)]
        undone = value if name in LOWER_IS_BETTER else 1 - value
        columns.append(undone / max(float(undone.min()), 1e-12) - 1)
    return np.stack(columns, axis=1)


def linear_probe(code: np.ndarray, label: np.ndarray, test_code: np.ndarray, test_label: np.ndarray) -> float:
    """Accuracy on held-out codes of a logistic regression fitted to the training images' codes (the encoder is frozen).

    Codes are standardised by the training codes, because their scale differs from loss to loss and the penalty
    (C = 1) would otherwise act differently on each.

    Args:
        code: (sample, latent) of the training images.
        label: (sample,) of the training images.
        test_code: (sample, latent) of the held-out images.
        test_label: (sample,) of the held-out images.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(code, label).score(test_code, test_label))


def probe_interval(accuracy: np.ndarray, count: int) -> Interval:
    """Mean accuracy of one loss's trainings (seed,) and its 95 % interval.

    Over trainings (Student's t) where there are several, else over the `count` held-out images (Wilson).
    """
    if len(accuracy) > 1:
        return mean_interval(accuracy)
    lower, upper = wilson_interval(round(float(accuracy[0]) * count), count)
    return Interval(float(accuracy[0]), float(lower), float(upper))


@dataclass(frozen=True)
class PairSheet:
    """A blind two-alternative test: which of two reconstructions looks more like the original?"""

    sample: np.ndarray
    """(trial,) held-out image of each trial."""
    left: tuple[LossName, ...]
    """Training loss behind the left picture: the key, not for the person who answers."""
    right: tuple[LossName, ...]


def draw_pairs(losses: Sequence[LossName], samples: int, trials: int, rng: np.random.Generator) -> PairSheet | None:
    """Draw trials that set a structural loss against each pixel loss in turn, with sides and images by lot.

    The structural loss is MS-SSIM where it was trained, else SSIM, else the mix. Each comparison has the structural
    picture on the left in half of its trials (rounded by lot), and no image is shown twice before all were shown.

    Returns:
        The sheet, or None where there is no structural or no pixel loss to compare.
    """
    structural = next((name for name in _STRUCTURAL_LOSSES if name in losses), None)
    pixel = [name for name in _PIXEL_LOSSES if name in losses]
    if structural is None or not pixel or trials < 1:
        return None
    left: list[LossName] = []
    right: list[LossName] = []
    for index, name in enumerate(pixel):
        share = len(range(index, trials, len(pixel)))
        sides = np.arange(share) + rng.integers(2)
        for side in sides % 2:
            left.append(structural if side else name)
            right.append(name if side else structural)
    order = rng.permutation(trials)
    rounds = [rng.permutation(samples) for _ in range(-(-trials // samples))]
    return PairSheet(
        np.concatenate(rounds)[:trials].astype(np.int64),
        tuple(left[position] for position in order),
        tuple(right[position] for position in order),
    )


def preference(
    choice: np.ndarray, left: Sequence[str], right: Sequence[str], chosen: str, *, against: str | None = None
) -> Interval:
    """Share of answered trials in which the network trained by `chosen` was preferred, with Wilson's 95 % interval.

    Args:
        choice: (trial,) 0 = left, 1 = right, -1 = not answered.
        left: training loss of the left picture, (trial,): the key of the sheet.
        right: training loss of the right picture, (trial,).
        chosen: the loss whose share is wanted.
        against: only trials against this loss; all trials with `chosen` in them unless given.

    Raises:
        InputError: the answers are not -1, 0 or 1, one per trial, or none counts.
    """
    answer, sides = np.asarray(choice), (np.asarray(left, dtype=str), np.asarray(right, dtype=str))
    if answer.shape != sides[0].shape or not np.isin(answer, (-1, 0, 1)).all():
        raise InputError(
            "choice",
            expected=f"-1, 0 or 1 for each of {len(sides[0])} trials",
            got=f"shape {answer.shape} with values {np.unique(answer)[:5].tolist()}",
        )
    taken = (answer >= 0) & ((sides[0] == chosen) | (sides[1] == chosen))
    if against is not None:
        taken &= (sides[0] == against) | (sides[1] == against)
    if not taken.any():
        raise InputError("choice", expected=f"at least one answered trial with {chosen!r}", got="none")
    won = int((np.where(answer == 0, sides[0], sides[1])[taken] == chosen).sum())
    lower, upper = wilson_interval(won, int(taken.sum()))
    return Interval(won / int(taken.sum()), float(lower), float(upper))
