"""Should you train with mixed images, and with which kind? FMix masks beside Mixup, CutMix and others, on your data.

Harris et al. (2020), FMix: Enhancing Mixed Sample Data Augmentation, arXiv 2002.12047. Pairs of samples are mixed with a
binary mask of arbitrary shape: noise whose Fourier amplitude falls as f^-delta, thresholded so that a share lambda ~
Beta(alpha, alpha) of the pixels shows the first image. For signals, pictures and volumes.

What a run does: without inputs it draws masks and analyses them; with data it also mixes pairs in every mode and
measures what that does to local patches; with a model as well it trains the model's architecture from scratch in every
mode and reports accuracy, calibration, memorisation and robustness on images that were not trained on.

Faithful to the paper and its repository: steps 1 to 4, one mask and one lambda a batch, the drawn lambda as label weight,
the reformulated variant, softening, and with `spectrum="official_code"` what the repository computes in place of the
paper's spectrum, bit for bit: a run of seed s stores the masks that `sample_mask` returns after numpy and Python were
seeded with s. Different: `isotropic`, the paper's text, is the default; `per_sample` is not in the paper; its study of
mutual information with VAEs is replaced by patch statistics, memorisation and accuracy under noise. `budget="paper"` is
the CIFAR recipe (PreAct-ResNet18 there); `small` fits a few hundred small images on one core.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from workbench import DataRole, InputError, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import Recipe, split_indices, to_tensor

from workbench_augmentation.fmix_report import report
from workbench_augmentation.mask_study import Layout, analyse_masks, write_grid, write_masks
from workbench_augmentation.masks import Spectrum, check_shape
from workbench_augmentation.mixing_modes import PAIRING, MaskSource, MixSettings, Mode, check_modes, mix_batch
from workbench_augmentation.mixing_study import Samples, StudySettings, check_model, run_study
from workbench_augmentation.patch_statistics import patch_statistics

SPACE_DIMS = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}
DEFAULT_SHAPE = (32, 32)
PATCH_IMAGES = 256
BUDGETS: dict[str, dict[str, Any]] = {
    "small": {"epochs": 150, "batch_size": 50, "learning_rate": 0.05, "weight_decay": 5e-4, "schedule": "cosine",
              "milestones": (), "crop_padding": 0, "flip": False, "train_images": 200, "test_images": 1000},
    "paper": {"epochs": 200, "batch_size": 128, "learning_rate": 0.1, "weight_decay": 1e-4, "schedule": "step",
              "milestones": (100, 150), "crop_padding": 4, "flip": True, "train_images": None, "test_images": None},
}  # fmt: skip
"""Values of the parameters left at None."""


class Params(BaseParams):
    """Parameters. Those of the training that are None take the value of `budget`."""

    shape: tuple[int, ...] | None = Field(None, description="Shape of the masks; that of the data if given (else 32 x 32)")
    masks: int = Field(12, ge=1, le=10_000, description="Masks to draw and store")
    alpha: float = Field(1.0, gt=0, le=10, description="lambda ~ Beta(alpha, alpha) (paper 1)")
    decay: float = Field(3.0, ge=0, le=10, description="delta: the amplitude falls as f^-delta (paper 3)")
    max_soft: float = Field(0.0, ge=0, lt=0.5, description="Half-width of soft edges, as a share of the pixels (paper 0)")
    spectrum: Spectrum = Field(
        "isotropic", description="The paper's spectrum, or the one the official code computes (its published figures)"
    )
    reformulate: bool = Field(
        False, description="FMix and Mixup with lambda ~ Beta(alpha + 1, alpha) and the first label only (paper: off)"
    )
    per_sample: bool = Field(False, description="A lambda and a mask for each sample instead of each batch (paper: off)")
    modes: tuple[Mode, ...] = Field(
        ("none", "mixup", "cutmix", "fmix"), min_length=1, description="Augmentations to compare"
    )
    cutout_length: int = Field(16, ge=1, le=1024, description="Side of Cutout's box in pixels (paper 16, on 32 px)")
    pairs: int = Field(8, ge=2, le=10_000, description="Mixed pairs of images to store for each mode")
    decays: tuple[float, ...] = Field(
        (1.0, 2.0, 3.0, 4.0), min_length=1, max_length=12, description="Values of delta to show and analyse"
    )
    shares: tuple[float, ...] = Field(
        tuple(k / 10 for k in range(1, 10)), min_length=1, max_length=20, description="Values of lambda to show"
    )
    analysed_masks: int = Field(200, ge=2, le=100_000, description="Masks analysed for each spectrum and delta")
    budget: Literal["small", "paper"] = Field("small", description="Recipe of the training: small, or the paper's CIFAR's")
    seeds: int = Field(2, ge=1, le=100, description="Trainings for each mode, from other initial weights (paper 5)")
    epochs: int | None = Field(None, ge=1, le=10_000, description="Epochs (small 150, paper 200)")
    batch_size: int | None = Field(None, ge=2, le=65_536, description="Batch size (small 50, paper 128)")
    learning_rate: float | None = Field(None, gt=0, le=10, description="Of SGD with momentum 0.9 (small 0.05, paper 0.1)")
    weight_decay: float | None = Field(None, ge=0, le=1, description="L2 weight (small 5e-4, paper 1e-4)")
    schedule: Literal["cosine", "step"] | None = Field(None, description="Learning rate (small cosine, paper step)")
    milestones: tuple[int, ...] | None = Field(
        None, description="Epochs after which `step` divides the learning rate by 10 (paper 100, 150)"
    )
    crop_padding: int | None = Field(
        None, ge=0, le=64, description="Random shift in pixels before mixing, pictures only (small 0, paper 4)"
    )
    flip: bool | None = Field(None, description="Random horizontal flip before mixing, pictures only (paper on)")
    train_images: int | None = Field(None, ge=2, description="At most so many images to train on (small 200, paper all)")
    test_images: int | None = Field(None, ge=2, description="At most so many images to report on (small 1000, paper all)")
    test_fraction: float = Field(0.5, gt=0, lt=1, description="Share of the data to report on when role `test` is left out")
    curve_points: int = Field(8, ge=1, le=1000, description="Points of each accuracy curve")
    noise_strengths: tuple[float, ...] = Field(
        (0.1, 0.2, 0.4), min_length=1, description="Half-widths of the uniform noise on test images, in units of 0..1"
    )


def resolve(params: Params) -> dict[str, Any]:
    """The training's parameters, with what was left at None filled in from the budget."""
    automatic = dict(BUDGETS[params.budget])
    if params.schedule is not None and params.milestones is None:
        automatic["milestones"] = (100, 150) if params.schedule == "step" else ()
    return {name: value if getattr(params, name) is None else getattr(params, name) for name, value in automatic.items()}


class FMix(Method):
    """Draw and analyse masks; mix the data in every mode; train the model in every mode."""

    id = "augmentation.fmix"
    title = "FMix masks and mixed images, and what mixed-sample augmentations do to a classifier"
    paper = Paper(
        title="FMix: Enhancing Mixed Sample Data Augmentation",
        authors="Harris et al.",
        year=2020,
        arxiv="2002.12047",
        code="ecs-vlc/FMix (MIT)",
    )
    Params = Params
    inputs = {
        "data": DataRole(
            "images to mix (signals: dims sample, channel, x; volumes: sample, channel, z, y, x; all in 0..1), with labels "
            "(multi-hot ones: dims sample, class) if a model is to be trained",
            variables={"image": ("sample", "channel", "...")},
            optional_variables={"label": ("sample", "...")},
            optional=True,
        ),
        "test": DataRole(
            "images to report on, none of them in `data`; left out, a share of `data` is kept for it",
            variables={"image": ("sample", "channel", "..."), "label": ("sample", "...")},
            optional=True,
        ),
        "model": ModelRole(
            "classifier whose architecture is trained from new weights in each mode; its own weights do not matter",
            optional=True,
        ),
    }
    outputs = (
        Output("grey", ("mask", "..."), "float32", "low-frequency noise in 0..1, before thresholding"),
        Output("mask", ("mask", "..."), "float32", "FMix masks: 1 shows the first image, 0 its partner"),
        Output("lam", ("mask",), "float64", "drawn lambda, the share of the first image"),
        Output("mask_mean", ("mask",), "float64", "mean of the mask; within 1 / pixels of lambda"),
        Output("grid_grey", ("decay", "..."), "float32", "the same noise with the spectrum of each delta"),
        Output("grid_mask", ("decay", "share", "..."), "float32", "its masks for each lambda"),
        Output("grid_mixed", ("decay", "share", "channel", "..."), "float32", "one pair, mixed so", optional=True),
        Output("power", ("spectrum", "..."), "float64", "mean power spectrum of grey images, zero frequency in the centre"),
        Output("radial_power_isotropic", ("frequency",), "float64", "its mean over rings, spectrum `isotropic`"),
        Output("radial_power_official_code", ("frequency",), "float64", "its mean over rings, spectrum `official_code`"),
        Output("radial_power_law", ("frequency",), "float64", "f^(-2 delta), scaled to `isotropic`"),
        Output("slope", ("spectrum", "decay"), "float64", "slope of log power over log frequency, 2 / side to 0.35; -2 delta"),
        Output("component_count", ("spectrum", "decay", "draw"), "int32", "connected parts of the foreground at lambda 1/2"),
        Output("boundary_length", ("spectrum", "decay", "draw"), "int32", "neighbouring pixels on two sides of the edge",
               unit="px"),
        Output("mixed", ("mode", "pair", "channel", "..."), "float32", "mixed images, each as from a batch of its own",
               optional=True),
        Output("first", ("pair",), "int64", "index in `data` of the first image of each pair", optional=True),
        Output("partner", ("mode", "pair"), "int64", "index in `data` of its partner", optional=True),
        Output("image_share", ("mode", "pair"), "float64", "share of the first image in the mixed one", optional=True),
        Output("label_share", ("mode", "pair"), "float64", "weight of the first label", optional=True),
        Output("laplacian_kurtosis", ("mode",), "float64", "excess kurtosis of Laplacian responses", optional=True),
        Output("laplacian_power", ("mode", "image_frequency"), "float64", "power of Laplacian responses", optional=True),
        Output("accuracy", ("mode", "seed", "epoch"), "float64", "test accuracy in the course of training", optional=True),
        Output("train_accuracy", ("mode", "seed", "epoch"), "float64", "accuracy on clean training images", optional=True),
        Output("nll", ("mode", "seed"), "float64", "test NLL after training", unit="nat", optional=True),
        Output("ece", ("mode", "seed"), "float64", "test ECE, 15 bins", optional=True),
        Output("train_nll", ("mode", "seed"), "float64", "NLL of clean training images", unit="nat", optional=True),
        Output("noise_accuracy", ("mode", "seed", "severity"), "float64", "test accuracy under uniform noise", optional=True),
        Output("logit", ("mode", "seed", "sample", "class"), "float32", "logits of the test images", optional=True),
        Output("label", ("sample", "..."), "int64", "labels of the test images", optional=True),
        Output("sample_index", ("sample",), "int64", "their index in the data they come from", optional=True),
        Output("explained_image", ("example", "channel", "y", "x"), "float32", "images of the maps", optional=True),
        Output("grad_cam", ("mode", "example", "y", "x"), "float32", "Grad-CAM of the true class, seed 0", optional=True),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Masks, their analysis, mixed data, trainings: as far as the inputs allow."""
        data, model = inputs.get("data"), inputs.get("model")
        dims, space = _space(data, params)
        if data is not None:
            check_modes(params.modes, space)
        study = None if model is None else _study(inputs, params, space, out.seed)
        if study is not None:
            check_model(model, study[0])
        settings = MixSettings(
            **{name: getattr(params, name) for name in ("alpha", "decay", "max_soft", "spectrum", "reformulate",
                                                        "per_sample", "cutout_length")}
        )  # fmt: skip
        layout = Layout(dims, space)
        decays = tuple(sorted({*params.decays, params.decay}))
        write_masks(layout, params.masks, settings, out)
        analyse_masks(layout, decays, params.decay, params.analysed_masks, out)
        images = None if data is None else pictures(data, _spread(data.sizes["sample"], PATCH_IMAGES, out))
        write_grid(layout, decays, params.shares, settings, images, out)
        if data is not None:
            out.coordinate("mode", list(params.modes))
            write_pairs(data, dims, params, settings, out)
            write_patch_statistics(images, params, settings, out)
        if study is not None:
            train, test, index, recipe, crop_padding, flip = study
            out.write("sample_index", index)
            chosen = StudySettings(params.modes, params.seeds, recipe, settings, crop_padding, flip,
                                   params.curve_points, params.noise_strengths)  # fmt: skip
            move = [Samples(part.image.to(out.device), part.label.to(out.device)) for part in (train, test)]
            run_study(model, *move, chosen, out)

    def report(self, result: Result) -> Report:
        """Masks and mixed images over lambda and delta, spectra, components; accuracy, calibration, robustness by mode."""
        return report(result)


def write_pairs(data: Any, dims: tuple[str, ...], params: Params, settings: MixSettings, out: Out) -> None:
    """Pairs of images mixed in every mode; each pair has a draw of its own, as if it came from a batch of its own.

    In a batch some image may be its own partner; here, where pairs are looked at, such permutations are drawn again.
    """
    first = _spread(data.sizes["sample"], params.pairs, out)
    image = pictures(data, first)
    settings = replace(settings, per_sample=True)
    shape = (len(params.modes), len(first))
    mixed = out.array("mixed", (*shape, *image.shape[1:]), dims=("mode", "pair", "channel", *dims))
    partner, image_share, label_share = np.empty(shape, dtype=np.int64), np.empty(shape), np.empty(shape)
    for row, mode in enumerate(out.track(params.modes, "mixing pairs")):
        source = MaskSource.seeded(out.rng("pairs"))
        result = mix_batch(mode, image, 1, settings, source)
        while mode in PAIRING and bool((result.partner == torch.arange(len(first))).any()):
            result = mix_batch(mode, image, 1, settings, source)
        mixed[row] = result.image
        partner[row] = first[result.partner.numpy()]
        image_share[row], label_share[row] = result.image_share, result.label_share
    out.write("first", first)
    out.write("partner", partner)
    out.write("image_share", image_share)
    out.write("label_share", label_share)


def write_patch_statistics(image: torch.Tensor, params: Params, settings: MixSettings, out: Out) -> None:
    """Laplacian statistics of up to 256 images after each mode, mixed sample by sample to average over lambda."""
    settings = replace(settings, per_sample=True)
    if min(image.shape[2:]) < 5:
        out.write("laplacian_kurtosis", np.full(len(params.modes), np.nan))
        return
    found = []
    for mode in out.track(params.modes, "patch statistics"):
        mixed = mix_batch(mode, image, 1, settings, MaskSource.seeded(out.rng("patches")))
        found.append(patch_statistics(mixed.image.numpy()))
    kept = np.isfinite(found[0].frequency)
    out.coordinate("image_frequency", found[0].frequency[kept])
    out.write("laplacian_kurtosis", np.array([entry.kurtosis for entry in found]))
    out.write("laplacian_power", np.stack([entry.power[kept] for entry in found]))


def pictures(data: Any, index: np.ndarray) -> torch.Tensor:
    """Images of these samples as floats in 0..1; 8-bit signals and volumes count like pictures."""
    image = to_tensor(data["image"][index])
    return image if image.is_floating_point() else image.float() / 255


def _spread(count: int, most: int, out: Out) -> np.ndarray:
    """At most `most` sample indices, drawn without replacement, sorted."""
    return np.sort(out.rng("examples").permutation(count)[:most])


def _space(data: Any, params: Params) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and lengths of the spatial dims."""
    if data is None:
        space = _fitting(params.shape or DEFAULT_SHAPE)
        return SPACE_DIMS[len(space)], space
    dims = tuple(str(dim) for dim in data["image"].dims[2:])
    came = tuple(data["image"].dims[:2])
    if came != ("sample", "channel"):
        raise InputError("data['image']", expected="dims (sample, channel, ...)", got=f"({', '.join(map(str, came))}, ...)")
    space = _fitting(tuple(data.sizes[dim] for dim in dims))
    if params.shape not in (None, space):
        raise InputError("shape", expected=f"the shape of the data, {space}, or None", got=str(params.shape))
    if data.sizes["sample"] < 2:
        raise InputError("data", expected="at least 2 samples to mix", got=str(data.sizes["sample"]))
    return dims, space


def _fitting(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The checked shape; below 4 pixels there is no frequency to analyse."""
    space = check_shape(shape)
    if max(space) < 4:
        raise InputError("shape", expected="a side of at least 4 pixels", got=str(space))
    return space


def _study(
    inputs: Inputs, params: Params, space: tuple[int, ...], seed: int
) -> tuple[Samples, Samples, np.ndarray, Recipe, int, bool]:
    """Training and test samples, indices of the latter, and the recipe; raises before any work is done."""
    data, test = inputs.get("data"), inputs.get("test")
    if data is None or "label" not in data:
        raise InputError(
            "data" if data is None else "data['label']", expected="labelled images to train the model on", got="none",
            hint="Leave the model out to draw masks and mix images only.",
        )  # fmt: skip
    chosen = resolve(params)
    recipe = Recipe(
        **{name: chosen[name] for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "schedule")},
        milestones=tuple(chosen["milestones"]),
    )
    if len(space) != 2 and (chosen["crop_padding"] or chosen["flip"]):
        raise InputError("crop_padding", expected="0 and flip=False for signals and volumes", got=str(chosen["crop_padding"]))
    parts = {"report": 0.0}
    if test is None:
        parts = {"fit": 1 - params.test_fraction, "report": params.test_fraction}
        label = data["label"].to_numpy()
        parts = split_indices(label if label.ndim == 1 else len(label), parts, seed, stratify=label.ndim == 1)
        train, held = _samples(data, parts["fit"], chosen["train_images"], seed), parts["report"]
    else:
        if test["image"].shape[1:] != data["image"].shape[1:]:
            raise InputError("test", expected=f"images of shape {data['image'].shape[1:]}", got=str(test["image"].shape[1:]))
        train = _samples(data, np.arange(data.sizes["sample"]), chosen["train_images"], seed)
        held = np.arange(test.sizes["sample"])
    source = data if test is None else test
    index = _subset(source["label"].to_numpy(), held, chosen["test_images"], seed)
    return train, _samples(source, index, None, seed), index, recipe, chosen["crop_padding"], chosen["flip"]


def _subset(label: np.ndarray, index: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    """`most` of the indices, classes in their shares."""
    if most is None or most >= len(index):
        return index
    share = most / len(index)
    chosen = label[index] if label.ndim == 1 else len(index)
    return index[split_indices(chosen, {"kept": share, "left": 1 - share}, seed, stratify=label.ndim == 1)["kept"]]


def _samples(data: Any, index: np.ndarray, most: int | None, seed: int) -> Samples:
    index = _subset(data["label"].to_numpy(), index, most, seed)
    label = to_tensor(data["label"][index])
    return Samples(pictures(data, index), label.float() if label.ndim == 2 else label)
