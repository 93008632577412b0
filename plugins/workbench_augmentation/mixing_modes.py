"""The augmentations that are compared, behind one function: (mode, batch) -> mixed batch and label shares.

One lambda (and one mask) a batch unless `per_sample`; a share always is the share of the FIRST image and the weight of
the first label. Batches are (sample, channel, *space) floats in 0..1, mixed last of all, after crop and flip.

- `mixup` (Zhang et al. 2018), `cutmix` (Yun et al. 2019: the share is recomputed from the pasted box),
  `fmix` (Harris et al. 2020: the drawn lambda counts), `mixup+fmix`: Mixup on even, FMix on odd batches;
- `cutout` (DeVries & Taylor 2017): a box of side `cutout_length` becomes the mean colour, which is the zero of that
  paper's normalised images; `random_erase` (Zhong et al. 2020): a rectangle of uniform noise in half of the images.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from workbench import InputError
from workbench.toolkit import Mixed, Transform, cutmix_batch, flip_crop, mask_batch, mix, numpy_generator, soft_labels

from workbench_augmentation.masks import (
    MaskDraw,
    Spectrum,
    beta_parameters,
    cutout_box,
    official_mask,
    random_erasing_box,
    sample_mask,
)

Mode = Literal["none", "mixup", "cutmix", "fmix", "mixup+fmix", "cutout", "random_erase"]
PAIRING = ("mixup", "cutmix", "fmix", "mixup+fmix")
"""Modes that mix an image with a partner."""


@dataclass(frozen=True)
class MixSettings:
    """What the modes share; see the parameters of the method for meanings."""

    alpha: float = 1.0
    decay: float = 3.0
    max_soft: float = 0.0
    spectrum: Spectrum = "isotropic"
    reformulate: bool = False
    per_sample: bool = False
    cutout_length: int = 16


@dataclass
class MaskSource:
    """Random sources of one stream of FMix masks: numpy's for `isotropic`, the repository's two for `official_code`."""

    rng: np.random.Generator
    numpy_random: np.random.RandomState
    python_random: random.Random

    @classmethod
    def seeded(cls, rng: np.random.Generator, seed: int | None = None) -> MaskSource:
        """All three from one Generator; with `seed` the repository's two stand where its seeding would put them."""
        seed = int(rng.integers(2**32)) if seed is None else seed % 2**32
        return cls(rng, np.random.RandomState(seed), random.Random(seed))

    def draw(self, space: Sequence[int], settings: MixSettings, lam: float | None = None) -> MaskDraw:
        """Steps 1 to 3: lambda (unless given), grey image and mask of shape `space`."""
        chosen = {name: getattr(settings, name) for name in ("alpha", "decay", "max_soft", "reformulate")}
        if settings.spectrum == "official_code":
            return official_mask(space, self.numpy_random, self.python_random, lam=lam, **chosen)
        return sample_mask(space, self.rng, lam=lam, **chosen)


def check_modes(modes: Sequence[str], space: Sequence[int]) -> None:
    """Raise InputError for a mode named twice, and for one that these images do not allow."""
    if len(set(modes)) != len(modes):
        raise InputError("modes", expected="each mode once", got=", ".join(modes))
    if "random_erase" in modes and len(space) != 2:
        raise InputError("modes", expected="no random_erase, which is made for pictures", got=f"{len(space)} spatial dims")


def mix_batch(mode: Mode, image: Tensor, number: int, settings: MixSettings, source: MaskSource) -> Mixed:
    """Augment one batch.

    Args:
        mode: see the module.
        image: (sample, channel, *space), floats in 0..1.
        number: which batch of the training this is, from 0 (for the alternation).
        settings: of the modes.
        source: random sources; `none` draws nothing.
    """
    if mode == "mixup+fmix":
        mode = "fmix" if number % 2 else "mixup"
    if mode == "mixup":
        return _mixup(image, settings, source.rng)
    if mode == "cutmix":
        return cutmix_batch(image, settings.alpha, source.rng, per_sample=settings.per_sample)
    if mode == "fmix":
        return _fmix(image, settings, source)
    mixed = image.clone()
    if mode == "cutout":
        mean = image.mean(dim=(0, *range(2, image.ndim)))
        for index in range(len(image)):
            box = cutout_box(image.shape[2:], settings.cutout_length, source.rng)
            mixed[(index, slice(None), *box)] = mean.reshape(-1, *[1] * len(box))
    elif mode == "random_erase":
        for index in range(len(image)):
            box = random_erasing_box(image.shape[2:], source.rng)
            if box is not None:
                target = mixed[(index, slice(None), *box)]
                target.copy_(torch.from_numpy(source.rng.random(target.shape)))
    whole = torch.ones(len(image), dtype=image.dtype, device=image.device)
    return Mixed(mixed, torch.arange(len(image), device=image.device), whole, whole)


def _mixup(image: Tensor, settings: MixSettings, rng: np.random.Generator) -> Mixed:
    count = len(image)
    parameters = beta_parameters(settings.alpha, settings.reformulate)
    drawn = rng.beta(*parameters, size=count if settings.per_sample else 1)
    share = torch.from_numpy(drawn).expand(count).to(image)
    partner = torch.from_numpy(rng.permutation(count)).to(image.device)
    label_share = torch.ones_like(share) if settings.reformulate else share
    return Mixed(mix(image, partner, share), partner, share, label_share)


def _fmix(image: Tensor, settings: MixSettings, source: MaskSource) -> Mixed:
    """Step 4: x' = M x + (1 - M) x[perm]; the labels' weight is the drawn lambda, not the mean of the mask."""
    count, space = len(image), tuple(image.shape[2:])
    drawn = [source.draw(space, settings) for _ in range(count if settings.per_sample else 1)]
    masks = torch.from_numpy(np.stack([draw.mask for draw in drawn]))
    label_share = torch.tensor([1.0 if settings.reformulate else draw.lam for draw in drawn], dtype=torch.float64)
    # The repository draws the permutation last, from the generator of the grey image; both kinds can permute.
    rng = source.numpy_random if settings.spectrum == "official_code" else source.rng
    return mask_batch(image, masks, label_share, rng)


@dataclass
class MixTransform:
    """A `Transform` for `toolkit.fit`: crop and flip, then mix. `count` batches were made so far.

    It draws once from the training's generator whatever the mode, so that all modes see the same batches.
    """

    mode: Mode
    settings: MixSettings
    n_classes: int
    before: Transform | None = None
    count: int = field(default=0)

    def __call__(self, image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(image, label) -> (mixed image, class weights (sample, class))."""
        if self.before is not None:
            image, label = self.before(image, label, generator)
        source = MaskSource.seeded(numpy_generator(generator))
        mixed = mix_batch(self.mode, image, self.count, self.settings, source)
        self.count += 1
        return mixed.image, soft_labels(label, label[mixed.partner], mixed.label_share, self.n_classes)


def crop_and_flip(padding: int, flip: bool) -> Transform | None:
    """The usual augmentation before mixing, or None where nothing is asked for."""
    return flip_crop(padding, flip) if padding or flip else None
