"""Pixel loss or structural loss? Trains the same network by each and shows what changes: looks, scores and codes.

Snell, Ridgeway, Liao, Roads, Mozer, Zemel (2015; ICIP 2017), Learning to Generate Images with Perceptual Similarity
Metrics, arXiv:1511.06409. Autoencoders, expected-loss VAEs and super-resolution networks are trained by squared error,
absolute error or 1 - (MS-)SSIM and compared on images that none of them saw. The operator itself is in `metrics`:
`ssim` and `ms_ssim` compare any two stacks of images, for any data range.

Faithful to the paper: losses, tasks, linear probe of frozen codes, pairs for human judges. Every network of a
comparison starts from the same weights and sees the same batches, VAEs are compared at one divergence (their C is
tuned per loss). Different or not known from the paper: layer sizes of the fully connected network, optimiser and
budget; labels of the probe are those of the data; scales that do not fit small images are left out and the weights of
the others renormalised; odd sizes are cropped, not padded, between scales; scores that reach 0 are clamped at 1e-6.
Images are always in 0..1 here, so that L = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from workbench import DataRole, Inputs, Method, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import Recipe

from workbench_restoration.ms_ssim_report import report
from workbench_restoration.ms_ssim_study import Study
from workbench_restoration.networks import SRCNN, Architecture, build_autoencoder
from workbench_restoration.reconstruction import (
    Calibrated,
    ImageLoss,
    LossName,
    Trained,
    Trainings,
    train_at_best_rate,
    train_to_divergence,
    turn_and_flip,
)
from workbench_restoration.subject import Subject, check_sizes, enlarge_subject, split_subject, training_scales

IMAGE = ("sample", "channel", "y", "x")


class Params(BaseParams):
    """What to train, by which losses, and how to judge."""

    task: Literal["autoencoder", "vae", "superres"] = Field("autoencoder", description="What the network learns")
    losses: tuple[LossName, ...] = Field(
        ("mse", "mae", "ssim", "ms_ssim"), min_length=1, description="Training losses to compare"
    )
    architecture: Architecture = Field(
        "conv", description="Autoencoder: conv for 32x32, conv5 the paper's for 96x96, conv5_narrow, fully_connected"
    )
    code: int = Field(128, ge=1, le=8192, description="Entries of the code (paper 512 for 96x96 images)")
    grey: bool = Field(False, description="Turn colour images grey first")
    epochs: int = Field(20, ge=1, le=10_000, description="Passes over the training images")
    learning_rates: tuple[float, ...] = Field(
        (1e-3,), min_length=1, description="Adam's; of several, the one with the best validation loss, chosen per loss"
    )
    schedule: Literal["constant", "step", "cosine"] | None = Field(
        None,
        description="Of the learning rate; step divides it by 10 after two thirds. None: step for superres, else constant",
    )
    batch_size: int = Field(128, ge=1, le=4096, description="Images (superres: patches) per step")
    repetitions: int = Field(1, ge=1, le=20, description="Trainings per loss with other initial weights and batches")
    window: int = Field(11, ge=3, le=31, description="Side of the SSIM window in pixels, odd")
    sigma: float = Field(1.5, ge=0.3, le=10, description="Standard deviation of the SSIM window in pixels")
    k1: float = Field(0.01, gt=0, le=0.1, description="Stabiliser of the luminance term")
    k2: float = Field(0.03, gt=0, le=0.3, description="Stabiliser of the contrast-structure term")
    scales: int | None = Field(
        None,
        ge=1,
        le=5,
        description="Scales of MS-SSIM; None: as many as the images (superres: the training patches) have room for",
    )
    mix_weight: float = Field(0.84, ge=0, le=1, description="Loss mix: share of 1 - MS-SSIM; the rest is MAE")
    target_divergence: float = Field(30.0, gt=0, le=1000, description="vae: mean KL in nats that C is tuned to")
    weight_bracket: tuple[float, float] = Field((1.0, 100_000.0), description="vae: ends of the search for C")
    bisection_steps: int = Field(8, ge=1, le=30, description="vae: most trainings per loss in the search for C")
    divergence_tolerance: float = Field(0.1, gt=0, le=1, description="vae: relative deviation from the target allowed")
    factor: Literal[2, 3, 4] = Field(3, description="superres: enlargement")
    patch: int = Field(48, ge=24, le=512, description="superres: side of the training patches")
    patches_per_image: int = Field(16, ge=1, le=10_000, description="superres: random patches of each training image")
    train_images: int = Field(50_000, ge=1, le=10_000_000, description="Use at most so many training images")
    test_images: int = Field(500, ge=2, le=100_000, description="Judge on at most so many images")
    validation_fraction: float = Field(0.1, gt=0, lt=0.5, description="Share of the data that chooses rates and C")
    test_fraction: float = Field(
        0.2, gt=0, lt=0.8, description="Share of the data to judge on if role test is left out"
    )
    pictures: int = Field(8, ge=1, le=100, description="Held-out images to show side by side")
    crop: int = Field(64, ge=16, le=512, description="Side of the pictures shown, cut from larger images")
    pair_trials: int = Field(24, ge=0, le=1000, description="Trials on the sheet for human judges")

    @field_validator("losses", "learning_rates")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(value)) != len(value):
            raise ValueError("names an entry twice")
        return value

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < rate <= 1 for rate in value):
            raise ValueError("learning rates lie above 0 and at most at 1")
        return value

    @field_validator("window")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("the window has a middle pixel: its side is odd")
        return value

    @field_validator("weight_bracket")
    @classmethod
    def _bracket(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] < value[1]:
            raise ValueError("the lower end lies above 0 and below the upper end")
        return value


def initial_network(params: Params, shape: Sequence[int], generator: torch.Generator) -> nn.Module:
    """The untrained network of the task for images (channel, y, x); equal generators give equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        if params.task == "superres":
            return SRCNN()
        channels, height, width = shape
        return build_autoencoder(
            params.architecture,
            channels=channels,
            height=height,
            width=width,
            code=params.code,
            variational=params.task == "vae",
        )


def recipe(params: Params, rate: float) -> Recipe:
    """Adam at a learning rate for the run's budget."""
    schedule = params.schedule or ("step" if params.task == "superres" else "constant")
    schedule = "constant" if schedule == "step" and params.epochs == 1 else schedule
    return Recipe(
        epochs=params.epochs,
        batch_size=params.batch_size,
        optimizer="adam",
        learning_rate=rate,
        weight_decay=0.0,
        schedule=schedule,
        milestones=(max(1, 2 * params.epochs // 3),) if schedule == "step" else (),
    )


def train_by(loss: ImageLoss, network: nn.Module, subject: Subject, params: Params, trainings: Trainings, name: str,
             stream: str, device: torch.device) -> tuple[Trained, Calibrated | None]:  # fmt: skip
    """Train a copy of `network` by one loss; a VAE as often as it takes to find C."""

    def train(weight: float, step: int) -> Trained:
        return train_at_best_rate(
            network,
            loss,
            subject.train,
            subject.validation,
            lambda rate: recipe(params, rate),
            params.learning_rates,
            trainings,
            name=f"{name}_search_{step}" if params.task == "vae" else name,
            weight=weight,
            transform=turn_and_flip if params.task == "superres" else None,
            stream=stream,
        )

    if params.task != "vae":
        return train(1.0, 0), None
    calibrated = train_to_divergence(
        train,
        subject.validation,
        target=params.target_divergence,
        bracket=params.weight_bracket,
        steps=params.bisection_steps,
        tolerance=params.divergence_tolerance,
        device=device,
    )
    return calibrated.trained, calibrated


def image_loss(params: Params, name: LossName) -> ImageLoss:
    """The loss of this name with the run's window, constants and scales: what trains, and what judges."""
    scales = training_scales(params)
    return ImageLoss(name, params.window, params.sigma, params.k1, params.k2, scales, params.mix_weight)


class MSSSIM(Method):
    """Train one network per loss from the same start, judge all on held-out images, probe their codes."""

    id = "restoration.ms_ssim"
    title = "Pixel loss or structural loss: what (MS-)SSIM training changes in reconstructions, codes and upscaling"
    paper = Paper(
        title="Learning to Generate Images with Perceptual Similarity Metrics",
        authors="Snell et al.",
        year=2015,
        arxiv="1511.06409",
        venue="ICIP 2017",
    )
    Params = Params
    inputs = {
        "data": DataRole(
            "images to train on; shares are kept to choose by and, when role `test` is left out, to judge on",
            variables={"image": IMAGE},
            optional_variables={"label": ("sample",)},
        ),
        "test": DataRole(
            "images of the same size to judge on, none of them in `data`",
            variables={"image": IMAGE},
            optional_variables={"label": ("sample",)},
            optional=True,
        ),
    }
    outputs = (
        Output("clean", IMAGE, "float32", "held-out images as compared: 0..1, grey or Y where asked for"),
        Output("source_index", ("sample",), "int64", "index of the held-out image in its data set"),
        Output("recon", ("loss", *IMAGE), "float32", "reconstructions by the first training of each loss", optional=True),
        Output("sr", ("loss", *IMAGE), "float32", "enlarged Y images, clipped and rounded to 8 bits", optional=True),
        Output("bicubic", IMAGE, "float32", "what super-resolution starts from, clipped and rounded", optional=True),
        Output("code", ("loss", "sample", "latent"), "float32", "codes of the held-out images (VAE: means)", optional=True),
        Output("metric_value", ("loss", "metric", "sample"), "float32", "each metric of each held-out image; PSNR at most 100"),
        Output("metric_mean", ("loss", "metric", "seed"), "float64", "mean over the held-out images, per training"),
        Output("bicubic_value", ("metric", "sample"), "float32", "the metrics of bicubic enlargement", optional=True),
        Output("excess_loss", ("loss", "criterion"), "float64", "loss divided by that of the best network, minus 1"),
        Output("mean_error", ("loss", "sample", "channel"), "float32", "mean of restored - clean: drift in brightness"),
        Output("ssim_map", ("loss", "sample", "y", "x"), "float32", "SSIM around each pixel; NaN where no window fits"),
        Output("train_loss", ("loss", "epoch"), "float64", "training objective per epoch, first training"),
        Output("validation_loss", ("loss", "epoch"), "float64", "the same objective on the validation images"),
        Output("learning_rate", ("loss", "seed"), "float64", "the rate chosen on the validation images"),
        Output("candidate_loss", ("loss", "rate"), "float64", "final validation objective per rate, first training"),
        Output("psnr", ("point",), "float32", "PSNR of every held-out image and loss, at most 100", unit="dB"),
        Output("ssim", ("point",), "float32", "SSIM of every held-out image and loss"),
        Output("trained_by", ("point",), "str", "training loss behind each point"),
        Output("gallery", ("version", "picture", "channel", "picture_y", "picture_x"), "float32",
               "originals, what each loss makes of them, SSIM maps (negative or without a whole window: 0)"),
        Output("weight", ("loss", "seed"), "float64", "vae: C, nats per unit of loss", optional=True),
        Output("divergence", ("loss", "seed"), "float64", "vae: mean KL on validation images", unit="nat", optional=True),
        Output("search", ("loss", "trial_step", "quantity"), "float64", "vae: C and KL in the order tried", optional=True),
        Output("generated", ("loss", "picture", "channel", "y", "x"), "float32", "vae: decoded N(0, I)", optional=True),
        Output("probe_accuracy", ("loss", "seed"), "float64", "linear probe on held-out codes", optional=True),
        Output("probe_mean", ("loss",), "float64", "its mean over trainings", optional=True),
        Output("probe_error", ("loss",), "float64", "half the width of its 95 % interval", optional=True),
        Output("pair_sheet", ("trial", "side", "channel", "y", "x"), "float32",
               "original, left and right picture for a blind test", optional=True),
        Output("pair_left", ("trial",), "str", "key of the sheet: training loss of the left picture", optional=True),
        Output("pair_right", ("trial",), "str", "key of the sheet: training loss of the right picture", optional=True),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Split, train by every loss, judge; the first repetition's images, codes and networks are kept."""
        if out.dtype not in (torch.float32, torch.float64):
            out.skip(f"SSIM is a difference of nearly equal moments and needs float32, not {out.dtype}")
        check_sizes(params, *inputs["data"]["image"].shape[-2:])
        subject = split_subject(inputs, params, out)
        if params.task == "superres":
            subject = enlarge_subject(subject, params, out)
        study = Study(params, image_loss(params, "ssim"), subject, out)
        per_loss = len(params.learning_rates) * (params.bisection_steps if params.task == "vae" else 1)
        trainings = Trainings(out, per_loss * len(params.losses) * params.repetitions)
        for seed in range(params.repetitions):
            start = initial_network(params, subject.train.shape[1:], out.generator(f"weights/{seed}"))
            start = start.to(out.device, out.dtype)
            for index, name in enumerate(params.losses):
                trained, calibrated = train_by(
                    image_loss(params, name), start, subject, params, trainings,
                    name if seed == 0 else f"{name}_seed_{seed}", f"training/{seed}", out.device,
                )  # fmt: skip
                trainings.stages.done = per_loss * (seed * len(params.losses) + index + 1)
                study.judge(index, seed, trained, calibrated)
        study.finish()

    def report(self, result: Result) -> Report:
        """Loss by metric, side-by-side pictures with SSIM maps, curves, scatter, probe."""
        return report(result)
