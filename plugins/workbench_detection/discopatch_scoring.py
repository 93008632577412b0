"""Which images DisCoPatch is judged on, and their scores: reference, control, shifted and out-of-distribution images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from workbench import InputError, Inputs, Out
from workbench.toolkit import evaluating, split_indices

from workbench_detection.discopatch_training import (
    Trainer,
    crop_patches,
    heat_map,
    image_score,
    network_input,
    patch_positions,
    patch_probabilities,
)
from workbench_detection.logit_scores import SCORES
from workbench_detection.metrics import DETECTION_METRICS, auroc, bootstrap_intervals, detection_metrics, fpr95_id
from workbench_detection.shifts import STRENGTHS, Shift, apply_shift

BASELINES = ("msp", "energy")
INTERVALS = ("auroc", "fpr95_id")
"""Metrics that get a bootstrap interval."""
PICTURES = 12
IMAGES_PER_READ = 64

Statistics = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class ImageKind:
    """Images that are scored under one name, read and shifted when they are needed."""

    name: str
    """`id` (reference), `control`, `ood`, or shift and strength: `blur 1.5`."""
    group: str
    """The same without the strength."""
    images: xr.DataArray
    """(sample, channel, y, x)"""
    indices: np.ndarray
    """Which of `images` belong here."""
    seed: int
    shift: Shift | None = None
    severity: int = 0

    def read(self, part: Sequence[int] | slice) -> np.ndarray:
        """Float32 in 0..1, rounded to 8 bits; (image, channel, y, x) of the given places in `indices`."""
        chosen = self.indices[part]
        strength = STRENGTHS[self.shift][self.severity - 1] if self.shift else 0.0
        images = self.images.isel(sample=chosen).to_numpy()
        return apply_shift(images, self.shift, strength, indices=chosen, seed=self.seed)


def split_roles(
    inputs: Inputs, test_fraction: float, seed: int
) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray | None]:
    """Images to train on, in-distribution images to test on, and out-of-distribution images if there are any.

    Raises:
        InputError: the images of the roles differ in channels or size.
    """
    train = inputs["data"]["image"]
    others = {role: inputs[role]["image"] for role in ("test", "ood") if inputs.get(role) is not None}
    for role, images in others.items():
        if images.shape[1:] != train.shape[1:]:
            raise InputError(
                f"{role}['image']",
                expected=f"(channel, y, x) of {train.shape[1:]} as in role 'data'",
                got=str(images.shape[1:]),
                hint="Crop or resize all roles in the same way: a detector notices a difference in resizing first.",
            )
    if "test" in others:
        return train, others["test"], others.get("ood")
    parts = split_indices(train.sizes["sample"], {"train": 1 - test_fraction, "test": test_fraction}, seed)
    return train.isel(sample=parts["train"]), train.isel(sample=parts["test"]), others.get("ood")


def image_kinds(
    test: xr.DataArray,
    ood: xr.DataArray | None,
    shifts: Sequence[Shift],
    severities: Sequence[int],
    most: int,
    out: Out,
) -> list[ImageKind]:
    """Half of the test images as the reference, the other half as control and under every shift, then the `ood` images.

    Args:
        test: in-distribution images, none of them trained on.
        ood: out-of-distribution images.
        shifts: to apply.
        severities: of each shift.
        most: test images to use; half as many of `ood`.
        out: the run.

    Raises:
        InputError: fewer than 4 test images, or a shift that these images cannot undergo.
    """
    if test.sizes["sample"] < 4:
        raise InputError("test", expected="at least 4 images", got=str(test.sizes["sample"]))
    if "jpeg" in shifts and test.sizes["channel"] not in (1, 3):
        raise InputError(
            "shifts",
            expected="no 'jpeg' for images that are neither grey nor RGB",
            got=f"{test.sizes['channel']} channels",
            hint="Name the shifts to try, e.g. shifts=('blur', 'noise').",
        )
    chosen = out.rng("test images").permutation(test.sizes["sample"])[:most]
    half = len(chosen) // 2
    reference, others = np.sort(chosen[:half]), np.sort(chosen[half:])
    kinds = [ImageKind("id", "id", test, reference, out.seed), ImageKind("control", "control", test, others, out.seed)]
    kinds += [
        ImageKind(f"{shift} {STRENGTHS[shift][severity - 1]:g}", shift, test, others, out.seed, shift, severity)
        for shift in shifts
        for severity in severities
    ]
    if ood is not None:
        chosen = out.rng("ood images").permutation(ood.sizes["sample"])[: max(2, most // 2)]
        kinds.append(ImageKind("ood", "ood", ood, np.sort(chosen), out.seed))
    return kinds


@dataclass(frozen=True)
class Scored:
    """Scores of all images of all kinds, kind after kind."""

    kind: np.ndarray
    """Which kind each image belongs to, (sample,)."""
    score: Mapping[int, np.ndarray]
    """Number of patches -> score from that many, (sample,)."""
    patch_score: np.ndarray
    """(sample, patch)"""
    positions: np.ndarray
    """(sample, patch, 2)"""
    statistics: Statistics
    """Per layer means and variances (sample, channel); empty unless grouped batch norm."""
    seconds_per_image: float
    baselines: Mapping[str, np.ndarray]
    """Score of the classifier by name, (sample,); empty without one."""


def score_kinds(
    trainer: Trainer,
    kinds: Sequence[ImageKind],
    counts: Sequence[int],
    out: Out,
    *,
    mixed: bool = False,
    classifier: torch.nn.Module | None = None,
) -> Scored:
    """Score every image from its first k patches, for each k in `counts` (the largest is the detector's own).

    The positions of an image's patches depend on the run's seed, its data set and its index only, so that an image and
    its shifted versions are compared at the same places.

    Args:
        trainer: trained networks.
        kinds: the images.
        counts: numbers of patches, increasing.
        out: the run.
        mixed: put images of all kinds into common normalisation batches, as many images as in a training batch.
        classifier: a model to take MSP and energy from as well.
    """
    kind = np.repeat(np.arange(len(kinds)), [len(entry.indices) for entry in kinds])
    place = np.concatenate([np.arange(len(entry.indices)) for entry in kinds])
    size = trainer.settings.images_per_batch if mixed else IMAGES_PER_READ
    order = out.rng("mixed batches").permutation(len(kind)) if mixed else np.arange(len(kind))
    batches = np.array_split(order, -(-len(order) // size))
    height, width = kinds[0].images.sizes["y"], kinds[0].images.sizes["x"]
    patch, most = trainer.settings.patch, counts[-1]
    positions = np.stack(
        [
            patch_positions((most,), height, width, patch, out.rng(f"patches {kinds[k].group == 'ood'} {index}"))
            for k, index in zip(kind, np.concatenate([entry.indices for entry in kinds]), strict=True)
        ]
    )
    scores = {count: np.empty(len(kind), dtype=np.float32) for count in counts}
    patch_score = np.empty((len(kind), most), dtype=np.float32)
    baselines = {name: np.empty(len(kind), dtype=np.float32) for name in BASELINES} if classifier is not None else {}
    statistics: list[Statistics] = []
    seconds = 0.0
    for rows in out.track(batches, "scoring"):
        pictures = _read(kinds, kind[rows], place[rows])
        images = network_input(pictures, trainer)
        for count in counts:
            started = time.perf_counter()
            probability, layers = patch_probabilities(
                trainer.discriminator, images, positions[rows, :count], group=not mixed
            )
            scores[count][rows] = image_score(probability).cpu().numpy()
            if count == most:
                seconds += time.perf_counter() - started
                patch_score[rows] = 1 - probability.cpu().numpy()
                statistics.append([(mean.cpu(), variance.cpu()) for mean, variance in layers])
        if classifier is not None:
            with evaluating(classifier):
                logit = classifier(torch.as_tensor(pictures).to(out.device)).double()
            for name in BASELINES:
                baselines[name][rows] = SCORES[name](logit, 1.0).cpu().numpy()
    joined = [
        (torch.cat([mean for mean, _ in layer]), torch.cat([variance for _, variance in layer]))
        for layer in zip(*statistics, strict=True)
    ]
    return Scored(kind, scores, patch_score, positions, joined, seconds / len(kind), baselines)


def _read(kinds: Sequence[ImageKind], kind: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The images of the given kinds and places, in this order."""
    parts = np.empty((len(kind), *kinds[0].images.shape[1:]), dtype=np.float32)
    for number in np.unique(kind):
        rows = np.flatnonzero(kind == number)
        parts[rows] = kinds[number].read(place[rows])
    return parts


def write_scores(scored: Scored, kinds: Sequence[ImageKind], resamples: int, out: Out) -> None:
    """Scores, what they belong to, metrics of each kind against the reference, and what the batch norms saw."""
    counts = list(scored.score)
    names = [kind.name for kind in kinds[1:]]
    out.coordinate("shift", names)
    out.coordinate("patch_count", counts)
    out.write("score", scored.score[counts[-1]])
    out.write("anomalous", scored.kind > 1)
    out.write("source", [kinds[number].name for number in scored.kind])
    out.write("shift_kind", [kinds[number].group for number in scored.kind])
    out.write("source_index", np.concatenate([kind.indices for kind in kinds]).astype(np.int64))
    out.write("patch_score", scored.patch_score)
    out.write("patch_xy", scored.positions)
    by_shift = np.full((len(names), max(len(kind.indices) for kind in kinds[1:])), np.nan, dtype=np.float32)
    for row in range(len(names)):
        values = scored.score[counts[-1]][scored.kind == row + 1]
        by_shift[row, : len(values)] = values
    out.write("score_by_shift", by_shift)

    def against_reference(score: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = (scored.kind == 0) | (scored.kind == number)
        return score[chosen], scored.kind[chosen] == number

    numbers = range(1, len(kinds))
    table = [detection_metrics(*against_reference(scored.score[counts[-1]], number)) for number in numbers]
    for metric in DETECTION_METRICS:
        out.write(metric, np.array([row[metric] for row in table]))
    bounds = [
        bootstrap_intervals(
            *against_reference(scored.score[counts[-1]], number), out.rng(f"bootstrap {number}"), resamples=resamples
        )
        for number in out.track(numbers, "confidence intervals")
    ]
    for metric in INTERVALS:
        out.write(f"{metric}_low", np.array([row[metric][0] for row in bounds]))
        out.write(f"{metric}_high", np.array([row[metric][1] for row in bounds]))
    by_count = [[auroc(*against_reference(scored.score[count], number)) for count in counts] for number in numbers]
    out.write("auroc_by_patches", np.array(by_count))
    _write_severities(kinds, [row["auroc"] for row in table], out)
    _write_statistics(scored, out)
    if scored.baselines:
        out.coordinate("detector", list(scored.baselines))
        out.write("baseline_score", np.stack(list(scored.baselines.values())))
        for name, metric in (("baseline_auroc", auroc), ("baseline_fpr95_id", fpr95_id)):
            values = [
                [metric(*against_reference(score, number)) for number in numbers] for score in scored.baselines.values()
            ]
            out.write(name, np.array(values))


def _write_severities(kinds: Sequence[ImageKind], aurocs: Sequence[float], out: Out) -> None:
    shifts = list(dict.fromkeys(kind.shift for kind in kinds if kind.shift))
    if not shifts:
        return
    severities = sorted({kind.severity for kind in kinds if kind.shift})
    out.coordinate("kind", shifts)
    out.coordinate("severity", [0, *severities])
    found = {(kind.shift, kind.severity): value for kind, value in zip(kinds[1:], aurocs, strict=True)}
    # kinds[1] is the control: the same images at severity 0
    table = [[aurocs[0], *(found[shift, severity] for severity in severities)] for shift in shifts]
    out.write("auroc_by_severity", np.array(table))


def _write_statistics(scored: Scored, out: Out) -> None:
    """Batch-norm statistics padded to the widest layer, and the two main directions in which images differ in them."""
    if not scored.statistics:
        return
    widest = max(mean.shape[1] for mean, _ in scored.statistics)
    for position, name in enumerate(("bn_mean", "bn_var")):
        padded = np.full((len(scored.statistics), len(scored.kind), widest), np.nan, dtype=np.float32)
        for layer, pair in enumerate(scored.statistics):
            padded[layer, :, : pair[position].shape[1]] = pair[position].numpy()
        out.write(name, padded)
    means = np.concatenate([mean.double().numpy() for mean, _ in scored.statistics], axis=1)
    components = principal_components(means, scored.kind == 0)
    out.write("statistic_1", components[:, 0].astype(np.float32))
    out.write("statistic_2", components[:, 1].astype(np.float32))


def principal_components(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(sample, feature) to (sample, 2): coordinates along the two main directions of the reference samples.

    Directions come from the reference alone, so that nothing in the picture was chosen to separate the others. The
    largest entry of a direction is positive.
    """
    centre = values[reference].mean(0)
    directions = np.linalg.svd(values[reference] - centre, full_matrices=False)[2][:2]
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    return (values - centre) @ directions.T


def write_pictures(trainer: Trainer, kinds: Sequence[ImageKind], scored: Scored, out: Out) -> None:
    """The first image of each kind with its heat map, and patches beside what the VAE makes of and without them."""
    first = [int(np.argmax(scored.kind == number)) for number in range(1, len(kinds))]
    examples = np.concatenate([kind.read(slice(0, 1)) for kind in kinds[1:]])
    height, width = examples.shape[2:]
    patch = trainer.settings.patch
    heats = [heat_map(scored.patch_score[row], scored.positions[row], patch, height, width) for row in first]
    out.write("example_image", examples)
    out.write("example_heat", np.stack(heats).astype(np.float32))
    pictures = kinds[0].read(slice(0, PICTURES))
    generator = out.generator("pictures")
    patches = crop_patches(network_input(pictures, trainer), scored.positions[: len(pictures), :1], patch)
    noise, code = torch.randn(2, len(patches), trainer.settings.latent, generator=generator).to(patches)
    with evaluating(trainer.vae):
        reconstruction = trainer.vae(patches, noise)[0]
        generation = trainer.vae.decode(code)
    for name, values in (("original", patches), ("recon", reconstruction), ("generated", generation)):
        out.write(name, (values * 0.5 + 0.5).clamp(0, 1).float())
