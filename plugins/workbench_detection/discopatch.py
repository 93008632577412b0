"""Notices blur and other subtle drift of images without labels: a discriminator judges many patches of one image as one batch.

Caetano et al. (2025), DisCoPatch: Taming Adversarially-driven Batch Statistics for Improved Out-of-Distribution
Detection. A VAE and a discriminator are trained against each other on patches of in-distribution images. When an image
is scored, its patches form one normalisation group in every batch-norm layer, so that D sees the statistics of exactly
this image; the score is 1 - mean D.

Faithful to the paper and its official code: networks, losses and their order, separate batches for real and made-up
patches, batch statistics in training and scoring, one image per normalisation group. Different: each step draws its
images at random instead of going through epochs; training crops reach the last row and column; the positions of the
test patches are drawn from a seed per image and stored; MS-SSIM, the paper's other reconstruction loss, has the usual
Gaussian window and exponents (the official code has the sign of the window's exponent reversed) and as many scales as
fit the patch; below 192 px networks and training shrink (`preset`), because patches of 64 px do not fit.

Half of the test images are the reference. The other half is scored as it is (the control: nothing to find) and blurred,
made noisy, compressed and flattened, so that the report shows what this detector would and would not notice; images
given as `ood` are judged beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from workbench import DataRole, InputError, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_detection.discopatch_networks import Negatives, Norm, ReconstructionLoss
from workbench_detection.discopatch_report import report
from workbench_detection.discopatch_scoring import (
    INTERVALS,
    image_kinds,
    score_kinds,
    split_roles,
    write_pictures,
    write_scores,
)
from workbench_detection.discopatch_training import Settings, Trainer, fit
from workbench_detection.metrics import DETECTION_METRICS
from workbench_detection.shifts import SHIFTS, Shift

SMALL_IMAGE = 192
"""Below this side preset `auto` is `small`, from it on `paper` (made for 256 px)."""


class Parameters(BaseParams):
    """Parameters. What is left at None comes from `preset`; see `PRESETS` for the values."""

    preset: Literal["auto", "paper", "small", "fast"] = Field(
        "auto",
        description="Sizes to start from: the paper's (256 px images), small ones (32 px), fast ones for a first look; "
        "auto takes small below 192 px and the paper's from there on",
    )
    patch: int | None = Field(None, ge=4, le=128, description="Side of a patch in pixels (paper 64; small 16)")
    patches_train: int | None = Field(
        None, ge=1, le=256, description="Patches per image in training (paper 48; small 16)"
    )
    patches_test: int | None = Field(None, ge=1, le=1024, description="Patches per scored image (paper 64; small 16)")
    patch_counts: tuple[int, ...] = Field(
        (1, 4, 16),
        description="Also score from only so many patches per image, to show what their number is worth; counts of "
        "`patches_test` and more are left out",
    )
    widths: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        max_length=6,
        description="Channels of both networks (paper 128, 256, 512, 1024; small 32, 64, 128)",
    )
    latent: int | None = Field(None, ge=1, le=8192, description="Length of the VAE's code (paper 1024; small 64)")
    images_per_batch: int | None = Field(None, ge=1, le=1024, description="Images per step (paper 67; small 12)")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="Training steps (paper about 4,600; small 800)")
    learning_rate: float | None = Field(
        None, gt=0, le=0.1, description="Adam's, both networks (paper 8.5e-5; small 3e-4)"
    )
    kl_weight: float = Field(1e-4, ge=0, le=1, description="Weight of the KL divergence (paper 1e-4)")
    reconstruction_weight: float = Field(
        1e-3, ge=0, le=1, description="Weight of fooling D with reconstructions (paper 1e-3)"
    )
    generation_weight: float = Field(1e-3, ge=0, le=1, description="Weight of fooling D with generations (paper 1e-3)")
    reconstruction_loss: ReconstructionLoss = Field(
        "mse", description="What the VAE minimises (paper: mse; or ms_ssim)"
    )
    norm: Norm = Field("batch", description="Normalisation in D: the paper's batch statistics, or one of its ablations")
    negatives: Negatives = Field("both", description="What D learns to reject (paper: both)")
    mixed_test_batches: bool = Field(
        False,
        description="Ablation: score images in batches that mix images of all kinds, without grouping (paper: off)",
    )
    shifts: tuple[Shift, ...] = Field(SHIFTS, description="Shifts to put half of the test images under; may be empty")
    severities: tuple[int, ...] = Field(
        (1, 3, 5), min_length=1, description="Severities of each shift, 1 to 5 (see `shifts.STRENGTHS`)"
    )
    test_images: int = Field(600, ge=4, le=1_000_000, description="At most so many test images, half of them reference")
    test_fraction: float = Field(
        0.25, gt=0, lt=1, description="Share of the data kept for testing when no test images are given"
    )
    bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples for the confidence intervals")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "paper": {
        "patch": 64,
        "patches_train": 48,
        "patches_test": 64,
        "widths": (128, 256, 512, 1024),
        "latent": 1024,
        "images_per_batch": 67,
        "steps": 4600,
        "learning_rate": 8.5e-5,
    },
    "small": {
        "patch": 16,
        "patches_train": 16,
        "patches_test": 16,
        "widths": (32, 64, 128),
        "latent": 64,
        "images_per_batch": 12,
        "steps": 800,
        "learning_rate": 3e-4,
    },
    "fast": {
        "patch": 16,
        "patches_train": 8,
        "patches_test": 16,
        "widths": (32, 64, 128),
        "latent": 64,
        "images_per_batch": 8,
        "steps": 250,
        "learning_rate": 3e-4,
    },
}
"""What each preset stands for; `steps` of the paper: 80 epochs of about 57 steps."""


def resolve(params: Parameters, height: int, width: int) -> Settings:
    """Fill in what was left at None from the size of the images.

    Raises:
        InputError: the patch does not fit the images, or the networks do not fit the patch.
    """
    size = "small" if min(height, width) < SMALL_IMAGE else "paper"
    preset = PRESETS[size if params.preset == "auto" else params.preset]
    chosen: dict[str, Any] = {
        name: value if getattr(params, name) is None else getattr(params, name) for name, value in preset.items()
    }
    for name in (
        "kl_weight", "reconstruction_weight", "generation_weight", "reconstruction_loss", "norm", "negatives"
    ):  # fmt: skip
        chosen[name] = getattr(params, name)
    patch, factor = chosen["patch"], 2 ** len(chosen["widths"])
    if patch >= min(height, width):
        raise InputError(
            "patch",
            expected=f"less than the images' smaller side ({min(height, width)} px)",
            got=str(patch),
            hint="Patches must be able to lie at different places.",
        )
    if patch % factor or patch < 2 * factor:
        raise InputError(
            "widths",
            expected=f"networks whose {len(chosen['widths'])} halvings leave a {patch} px patch at least 2 px wide",
            got=f"{chosen['widths']}",
            hint="The patch must be a multiple of 2 ** len(widths), at least twice it.",
        )
    if any(width < 1 for width in chosen["widths"]):
        raise InputError("widths", expected="at least 1 channel per block", got=f"{chosen['widths']}")
    if params.norm == "group" and any(width > 32 and width % 32 for width in chosen["widths"]):
        raise InputError("widths", expected="multiples of 32 with norm 'group'", got=f"{chosen['widths']}")
    if params.reconstruction_loss == "ms_ssim" and patch < 8:
        raise InputError("patch", expected="at least 8 px for reconstruction_loss 'ms_ssim'", got=str(patch))
    return Settings(**chosen)


def check_lists(params: Parameters) -> None:
    """Raise InputError for repeated or impossible entries of `patch_counts`, `shifts` and `severities`."""
    lists: Mapping[str, tuple[object, ...]] = {
        "patch_counts": params.patch_counts,
        "severities": params.severities,
        "shifts": params.shifts,
    }
    for name, values in lists.items():
        if len(set(values)) != len(values):
            raise InputError(name, expected="each entry once", got=str(values))
    for name, numbers, most in (("patch_counts", params.patch_counts, 1024), ("severities", params.severities, 5)):
        if any(not 1 <= number <= most for number in numbers):
            raise InputError(name, expected=f"entries from 1 to {most}", got=str(numbers))


class DisCoPatch(Method):
    """Train on in-distribution images, then score test images and shifted or anomalous ones from their patches."""

    id = "detection.discopatch"
    title = "Notices blur and other subtle drift of images without labels: a discriminator reads patch statistics"
    version = "2"
    paper = Paper(
        title="DisCoPatch: Taming Adversarially-driven Batch Statistics for Improved Out-of-Distribution Detection",
        authors="Caetano et al.",
        year=2025,
        arxiv="2501.08005",
        venue="ICCV 2025",
        code="caetas/DisCoPatch (MIT)",
    )
    Params = Parameters
    inputs = {
        "data": DataRole(
            "in-distribution images to train on; a share is kept for testing when role `test` is left out",
            variables={"image": ("sample", "channel", "y", "x")},
        ),
        "test": DataRole(
            "in-distribution images to report on, none of them in `data`",
            variables={"image": ("sample", "channel", "y", "x")},
            optional=True,
        ),
        "ood": DataRole(
            "images to detect, resized and encoded in the same way as `data`; judged beside the shifted test images",
            variables={"image": ("sample", "channel", "y", "x")},
            optional=True,
        ),
        "model": ModelRole("classifier whose MSP and energy scores are shown beside", optional=True),
    }
    outputs = (
        Output("score", ("sample",), "float32", "1 - mean D over the patches; larger = more anomalous"),
        Output(
            "anomalous", ("sample",), "bool", "True for shifted or anomalous images, False for reference and control"
        ),
        Output("source", ("sample",), "str", "`id` (reference), `control`, `ood`, or shift and strength"),
        Output("shift_kind", ("sample",), "str", "the same without the strength"),
        Output(
            "score_by_shift",
            ("shift", "shifted_sample"),
            "float32",
            "the scores of each shift, in order of `sample`; NaN beyond their number",
        ),
        Output("source_index", ("sample",), "int64", "index of the image in its data set"),
        Output("patch_score", ("sample", "patch"), "float32", "1 - D of each patch"),
        Output("patch_xy", ("sample", "patch", "axis"), "int16", "upper left corner of each patch", unit="px"),
        *(Output(name, ("shift",), "float64", f"{name} against the reference images") for name in DETECTION_METRICS),
        *(
            Output(f"{name}_{bound}", ("shift",), "float64", f"{bound} end of the 95 % bootstrap interval of {name}")
            for name in INTERVALS
            for bound in ("low", "high")
        ),
        Output("auroc_by_patches", ("shift", "patch_count"), "float64", "AUROC from the first patches of each image"),
        Output("auroc_by_severity", ("kind", "severity"), "float64", "AUROC; severity 0 is the control", optional=True),
        Output(
            "bn_mean",
            ("layer", "sample", "feature"),
            "float32",
            "mean of each image in each batch norm; NaN beyond a layer's channels",
            optional=True,
        ),
        Output("bn_var", ("layer", "sample", "feature"), "float32", "biased variance, likewise", optional=True),
        Output("statistic_1", ("sample",), "float32", "first principal component of `bn_mean`", optional=True),
        Output("statistic_2", ("sample",), "float32", "second principal component of `bn_mean`", optional=True),
        Output("example_image", ("shift", "channel", "y", "x"), "float32", "the first image of each shift"),
        Output("example_heat", ("shift", "y", "x"), "float32", "mean score of the patches that cover a pixel"),
        Output("original", ("picture", "channel", "patch_y", "patch_x"), "float32", "test patches in 0..1"),
        Output("recon", ("picture", "channel", "patch_y", "patch_x"), "float32", "the VAE's reconstructions"),
        Output("generated", ("picture", "channel", "patch_y", "patch_x"), "float32", "the VAE's generations"),
        Output("parameter_count", ("network",), "int64", "parameters of VAE and discriminator"),
        Output("baseline_score", ("detector", "sample"), "float32", "MSP and energy of role `model`", optional=True),
        Output("baseline_auroc", ("detector", "shift"), "float64", "their AUROC", optional=True),
        Output("baseline_fpr95_id", ("detector", "shift"), "float64", "their FPR95", optional=True),
    )

    def run(self, inputs: Inputs, params: Parameters, out: Out) -> None:
        """Train, score the reference half and every kind of other images, judge, and keep what the report shows."""
        if out.dtype not in (torch.float32, torch.float64):
            raise InputError("precision", expected="float32 or float64 (training)", got=str(out.dtype))
        check_lists(params)
        train, test, ood = split_roles(inputs, params.test_fraction, out.seed)
        settings = resolve(params, train.sizes["y"], train.sizes["x"])
        severities = sorted(params.severities)
        kinds = image_kinds(test, ood, params.shifts, severities, params.test_images, out)
        counts = sorted({count for count in params.patch_counts if count < settings.patches_test})
        trainer = Trainer(train.sizes["channel"], settings, out.device, out.dtype)
        fit(trainer, train, out)
        out.model(trainer.discriminator, name="discriminator")
        networks = {"vae": trainer.vae, "discriminator": trainer.discriminator}
        out.coordinate("network", list(networks))
        out.write("parameter_count", [sum(p.numel() for p in network.parameters()) for network in networks.values()])
        scored = score_kinds(
            trainer,
            kinds,
            [*counts, settings.patches_test],
            out,
            mixed=params.mixed_test_batches,
            classifier=inputs.get("model"),
        )
        # A time is no result: it goes to the series, so that two runs of one seed store the same arrays.
        out.log(settings.steps, seconds_per_image=scored.seconds_per_image)
        write_scores(scored, kinds, params.bootstrap, out)
        write_pictures(trainer, kinds, scored, out)

    def report(self, result: Result) -> Report:
        """Tables by shift, curves over patches and severity, heat maps, batch-norm statistics, training curves."""
        return report(result)
