"""The part of `augmentation.fmix` that needs no data: draw masks, analyse both spectra, show lambda and delta side by side."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from workbench import Out
from workbench.toolkit import mix

from workbench_augmentation.masks import (
    Spectrum,
    binarise,
    boundary_length,
    count_components,
    power_spectrum,
    radial_mean,
    spectral_slope,
)
from workbench_augmentation.mixing_modes import MaskSource, MixSettings

SPECTRA: tuple[Spectrum, ...] = ("isotropic", "official_code")
ROUNDING = (64 * np.finfo(np.float64).eps) ** 2
"""Power below this share of the largest is rounding of the FFT, not a frequency of the masks, and counts as 0."""


@dataclass(frozen=True)
class Layout:
    """Names and lengths of the spatial dims."""

    dims: tuple[str, ...]
    space: tuple[int, ...]


def write_masks(layout: Layout, count: int, settings: MixSettings, out: Out) -> None:
    """Steps 1 to 3, `count` times. With `official_code` in the very order of a repository seeded with the run's seed."""
    source = MaskSource.seeded(out.rng("masks"), out.seed)
    grey = out.array("grey", (count, *layout.space), dims=("mask", *layout.dims))
    mask = out.array("mask", (count, *layout.space), dims=("mask", *layout.dims))
    lam, mean = np.empty(count), np.empty(count)
    for index in out.track(range(count), "drawing masks"):
        draw = source.draw(layout.space, settings)
        grey[index], mask[index] = draw.grey, draw.mask
        lam[index], mean[index] = draw.lam, draw.mask.mean()
    out.write("lam", lam)
    out.write("mask_mean", mean)


def analyse_masks(layout: Layout, decays: tuple[float, ...], decay: float, count: int, out: Out) -> None:
    """Mean power of grey images, its slope, and components and boundary of masks at lambda = 1/2, by spectrum and delta.

    Power is stored for delta = `decay`, one of `decays`; everything is a mean over (or listed for) `count` masks.
    """
    dims, space = layout.dims, layout.space
    shape = (len(SPECTRA), len(decays), count)
    components, boundary = np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.int32)
    slope, power, radial = np.empty(shape[:2]), np.empty((len(SPECTRA), *space)), {}
    cells = [(row, column) for row in range(len(SPECTRA)) for column in range(len(decays))]
    for row, column in out.track(cells, "analysing masks"):
        settings = MixSettings(decay=decays[column], spectrum=SPECTRA[row])
        source = MaskSource.seeded(out.rng(f"analysis {SPECTRA[row]} {decays[column]}"))
        mean = np.zeros(space)
        for draw in range(count):
            if out.cancelled():
                out.progress(0, 1)  # raises
            _, grey, mask = source.draw(space, settings, lam=0.5)
            mean += power_spectrum(grey[None]) / count
            components[row, column, draw], boundary[row, column, draw] = count_components(mask), boundary_length(mask)
        frequency, ring = radial_mean(mean)
        slope[row, column] = spectral_slope(frequency, ring, 2 / max(space), 0.35)
        if decays[column] == decay:
            power[row], radial[SPECTRA[row]] = mean, ring
    out.coordinate("spectrum", list(SPECTRA))
    out.coordinate("decay", list(decays))
    out.write("slope", slope)
    out.write("component_count", components)
    out.write("boundary_length", boundary)
    for dim, side in zip(dims, space, strict=True):
        out.coordinate(f"frequency_{dim}", np.fft.fftshift(np.fft.fftfreq(side)))
    power[power < ROUNDING * power.max()] = 0.0
    out.write("power", power, dims=("spectrum", *(f"frequency_{dim}" for dim in dims)))
    kept = np.isfinite(frequency)
    out.coordinate("frequency", frequency[kept])
    law = frequency ** (-2 * decay)
    fitted = kept & (frequency >= 2 / max(space)) & (frequency <= 0.35)
    fitted = fitted if fitted.any() else kept
    law *= np.exp(np.mean(np.log(radial["isotropic"][fitted] / law[fitted])))
    for name, ring in (*radial.items(), ("law", law)):
        out.write(f"radial_power_{name}", ring[kept])


def write_grid(
    layout: Layout,
    decays: tuple[float, ...],
    shares: tuple[float, ...],
    settings: MixSettings,
    images: torch.Tensor | None,
    out: Out,
) -> None:
    """The same random numbers seen through every delta and thresholded at every lambda, and one pair mixed so."""
    dims, space = layout.dims, layout.space
    out.coordinate("share", list(shares))
    grey = out.array("grid_grey", (len(decays), *space), dims=("decay", *dims))
    size = (len(decays), len(shares))
    mask = out.array("grid_mask", (*size, *space), dims=("decay", "share", *dims))
    mixed = None
    if images is not None:
        mixed = out.array("grid_mixed", (*size, images.shape[1], *space), dims=("decay", "share", "channel", *dims))
    for row, decay in enumerate(decays):
        noise = MaskSource.seeded(out.rng("grid")).draw(space, replace(settings, decay=decay), lam=0.5).grey
        grey[row] = noise
        for column, share in enumerate(shares):
            values = binarise(noise, share, True, settings.max_soft)
            mask[row, column] = values
            if mixed is not None and images is not None:
                partner = torch.tensor([1, 0])
                mixed[row, column] = mix(images[:2], partner, torch.from_numpy(values)[None, None])[0]
