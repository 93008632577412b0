"""Notices blur and other subtle drift of images without labels: a discriminator judges many patches of one image as one batch.

Caetano et al. (2025), DisCoPatch: Taming Adversarially-driven Batch Statistics for Improved Out-of-Distribution
Detection. A VAE and a discriminator are trained against each other on patches of in-distribution images. When an image
is scored, its patches form one normalisation group in every batch-norm layer, so that D sees the statistics of exactly
this image; the score is 1 - mean D.

Faithful to the paper and its official code: networks, losses and their order, separate batches for real and made-up
patches, batch statistics in training and scoring, one image per normalisation group. Different: the positions of the
test patches are drawn from a seed per image and stored; training crops reach the last row and column; the paper's
MS-SSIM variant of the reconstruction loss is not offered; for images below 192 px the networks and the training shrink
(`patch`, `widths`, ... left at None), because patches of 64 px do not fit.

Where no anomalous images are given, the other half of the test images is blurred, made noisy, compressed and flattened,
so that the report shows what this detector would and would not notice, beside a control (the other half as it is).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from sklearn.decomposition import PCA
from workbench_detection.discopatch_networks import Negatives, Norm
from workbench_detection.discopatch_report import report
from workbench_detection.discopatch_training import (
    Settings,
    Trainer,
    blocks,
    crop_patches,
    heat_map,
    image_score,
    patch_positions,
    patch_probabilities,
)
from workbench_detection.logit_scores import SCORES
from workbench_detection.metrics import DETECTION_METRICS, auroc, bootstrap_intervals, detection_metrics
from workbench_detection.shifts import SHIFTS, STRENGTHS, Shift, apply_shift, eight_bit

from workbench import (
    DataRole,
    InputError,
    Inputs,
    Method,
    ModelRole,
    Out,
    Output,
    Paper,
    Report,
    Result,
)
from workbench import Params as BaseParams

SMALL_IMAGE = 192
"""Below this side the small networks are the default, from it on the paper's (made for 256 px)."""
PICTURES = 12
IN_MEMORY = 2 << 30
BASELINES = ("msp", "energy")


class Params(BaseParams):
    """Parameters. None means: the paper's value from 192 px on, a smaller one for smaller images."""

    patch: int | None = Field(None, ge=4, le=128, description="Side of a patch in pixels (paper 64; small images 16)")
    patches_train: int | None = Field(None, ge=1, le=256, description="Patches per image in training (paper 48; 16)")
    patches_test: int | None = Field(None, ge=1, le=1024, description="Patches per scored image (paper 64; 16)")
    patch_counts: tuple[int, ...] = Field(
        (1, 4), description="Fewer patches per image to score with as well, to show what their number is worth"
    )
    widths: tuple[int, ...] | None = Field(
        None, min_length=1, max_length=6, description="Channels of both networks (paper 128, 256, 512, 1024; 32, 64, 128)"
    )
    latent: int | None = Field(None, ge=1, le=8192, description="Length of the VAE's code (paper 1024; 64)")
    images_per_batch: int | None = Field(None, ge=1, le=1024, description="Images per step (paper 67; 12)")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="Training steps (paper about 4,600; 800)")
    learning_rate: float | None = Field(None, gt=0, le=0.1, description="Adam's, both networks (paper 8.5e-5; 3e-4)")
    kl_weight: float = Field(1e-4, ge=0, le=1, description="Weight of the KL divergence (paper 1e-4)")
    reconstruction_weight: float = Field(
        1e-3, ge=0, le=1, description="Weight of fooling D with reconstructions (paper 1e-3)"
    )
    generation_weight: float = Field(1e-3, ge=0, le=1, description="Weight of fooling D with generations (paper 1e-3)")
    norm: Norm = Field("batch", description="Normalisation in D: the paper's batch statistics, or one of its ablations")
    negatives: Negatives = Field("both", description="What D learns to reject (paper: both)")
    mixed_test_batches: bool = Field(
        False, description="Ablation: score images in batches that mix images of all kinds, without grouping (paper: off)"
    )
    shifts: tuple[Shift, ...] = Field(SHIFTS, description="Shifts to try when no anomalous images are given")
    severities: tuple[int, ...] = Field((1, 3), description="Severities of the shifts, 1 to 5 (see `shifts.STRENGTHS`)")
    test_images: int = Field(600, ge=4, le=1_000_000, description="At most so many test images, half of them reference")
    test_fraction: float = Field(
        0.25, gt=0, lt=1, description="Share of the data kept for testing when no test images are given"
    )
    bootstrap: int = Field(1000, ge=100, le=100_000, description="Resamples for the confidence intervals")


PAPER_SETTINGS = {
    "patch": 64,
    "patches_train": 48,
    "patches_test": 64,
    "widths": (128, 256, 512, 1024),
    "latent": 1024,
    "images_per_batch": 67,
    "steps": 4600,
    "learning_rate": 8.5e-5,
}
SMALL_SETTINGS = {
    "patch": 16,
    "patches_train": 16,
    "patches_test": 16,
    "widths": (32, 64, 128),
    "latent": 64,
    "images_per_batch": 12,
    "steps": 800,
    "learning_rate": 3e-4,
}


def resolve(params: Params, height: int, width: int) -> Settings:
    """Fill in what was left at None from the size of the images.

    Raises:
        InputError: the patch does not fit the images, or the networks do not fit the patch.
    """
    automatic = SMALL_SETTINGS if min(height, width) < SMALL_IMAGE else PAPER_SETTINGS
    chosen: dict[str, Any] = {
        name: value if getattr(params, name) is None else getattr(params, name) for name, value in automatic.items()
    }
    for name in ("kl_weight", "reconstruction_weight", "generation_weight", "norm", "negatives"):
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
    if params.norm == "group" and any(width > 32 and width % 32 for width in chosen["widths"]):
        raise InputError("widths", expected="multiples of 32 with norm 'group'", got=f"{chosen['widths']}")
    return Settings(**chosen)


class DisCoPatch(Method):
    """Train on in-distribution images, then score test images and shifted or anomalous ones from their patches."""

    id = "detection.discopatch"
    title = "Notices blur and other subtle drift of images without labels: a discriminator reads patch statistics"
    paper = Paper(
        title="DisCoPatch: Taming Adversarially-driven Batch Statistics for Improved Out-of-Distribution Detection",
        authors="Caetano et al.",
        year=2025,
        arxiv="2501.08005",
        venue="ICCV 2025",
        code="caetas/DisCoPatch (MIT)",
    )
    Params = Params
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
        "anomalous": DataRole(
            "images to detect, resized and encoded in the same way as `data`; left out, test images are shifted",
            variables={"image": ("sample", "channel", "y", "x")},
            optional=True,
        ),
        "model": ModelRole("classifier whose MSP and energy scores are shown beside", optional=True),
    }
    outputs = (
        Output("score", ("sample",), "float32", "1 - mean D over the patches; larger = more anomalous"),
        Output("anomalous", ("sample",), "bool", "True for shifted or anomalous images, False for reference and control"),
        Output("source", ("sample",), "str", "`id` (reference), `control`, `anomalous`, or shift and strength"),
        Output("source_index", ("sample",), "int64", "index of the image in its data set"),
        Output("patch_score", ("sample", "patch"), "float32", "1 - D of each patch"),
        Output("patch_xy", ("sample", "patch", "axis"), "int16", "upper left corner of each patch", unit="px"),
        *(Output(name, ("shift",), "float64", f"{name} against the reference images") for name in DETECTION_METRICS),
        *(
            Output(f"{name}_{bound}", ("shift",), "float64", f"{bound} end of the 95 % bootstrap interval of {name}")
            for name in ("auroc", "fpr95_id")
            for bound in ("low", "high")
        ),
        Output("auroc_by_patches", ("shift", "patch_count"), "float64", "AUROC from the first patches of each image"),
        Output(
            "auroc_by_severity", ("kind", "severity"), "float64", "AUROC; severity 0 is the control", optional=True
        ),
        Output("bn_mean", ("layer", "sample", "feature"), "float32",
               "mean of each image in each batch norm; NaN beyond a layer's channels", optional=True),
        Output("bn_var", ("layer", "sample", "feature"), "float32", "biased variance, likewise", optional=True),
        Output("statistic_1", ("sample",), "float32", "first principal component of `bn_mean`", optional=True),
        Output("statistic_2", ("sample",), "float32", "second principal component of `bn_mean`", optional=True),
        Output("example_image", ("shift", "channel", "y", "x"), "float32", "the first image of each kind"),
        Output("example_heat", ("shift", "y", "x"), "float32", "mean score of the patches that cover a pixel"),
        Output("original", ("picture", "channel", "patch_y", "patch_x"), "float32", "test patches in 0..1"),
        Output("recon", ("picture", "channel", "patch_y", "patch_x"), "float32", "the VAE's reconstructions"),
        Output("generated", ("picture", "channel", "patch_y", "patch_x"), "float32", "the VAE's generations"),
        Output("parameter_count", ("network",), "int64", "parameters of VAE and discriminator"),
        Output("baseline_score", ("method", "sample"), "float32", "MSP and energy of role `model`", optional=True),
        Output("baseline_auroc", ("method", "shift"), "float64", "their AUROC", optional=True),
        Output("baseline_fpr95_id", ("method", "shift"), "float64", "their FPR95", optional=True),
    )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Train, score the reference half and every kind of other images, judge, and keep what the report shows."""
        train, test, anomalous = split_roles(inputs, params, out.seed)
        height, width = train.sizes["y"], train.sizes["x"]
        settings = resolve(params, height, width)
        kinds = image_kinds(params, test, anomalous)
        trainer = Trainer(train.sizes["channel"], settings, out.device)
        fit(trainer, train, out)
        out.coordinate("network", ["vae", "discriminator"])
        networks = (trainer.vae, trainer.discriminator)
        out.write("parameter_count", np.array([sum(p.numel() for p in net.parameters()) for net in networks]))
        scored = score_kinds(trainer, kinds, params, out, inputs.get("model"))
        write_scores(scored, kinds, params, settings, out)
        write_pictures(trainer, kinds, scored, out)

    def report(self, result: Result) -> Report:
        """Tables by shift, curves over patches and severity, heat maps, batch-norm statistics, training curves."""
        return report(result)
