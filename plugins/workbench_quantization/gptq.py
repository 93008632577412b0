"""What few-bit weights cost when every layer makes good for its own rounding: GPTQ beside rounding to nearest.

Frantar, Ashkboos, Hoefler and Alistarh (2023), GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers. A layer's columns are rounded one after the other, and after each the columns still to come take over its error
as far as the layer's inputs on some images allow. Nothing is trained; labels are not needed. A baseline that any
post-training method has to beat, for convolutions as well as linear layers; language models have it in
`quantization.layerwise` (backend="gptq"). A table of widths that another run found is judged too: `bits=run["bits"]`.

Faithful are the objective, order, Cholesky form and lazy updates of algorithm 1, damping of 1 % and inputs from the layers
before as they are quantised. What differs: layers are taken one by one in order of execution, where the paper takes a
transformer block at a time; convolutions, one matrix per group of channels over patches, are an addition. Only weights are
quantised, on an asymmetric grid with 0 as a level; sizes count scales at 32 bits and zero-points at the width.

Why it is written here and not taken from a library (tried beside torch 2.13 for CPUs on Python 3.11, November 2026): gptqmodel
does not build; auto-gptq ended with 0.7.1; torchao 0.18 has it as a prototype for CUDA only, at 4 and 8 bits; llm-compressor 0.14
(which wants an older transformers) and auto-round 0.16 (another algorithm) install, but are for language models of
transformers; aimet-torch 2.42 has AdaRound, but does not import without bokeh, holoviews and several convex solvers; nncf and
optimum-quanto have no GPTQ for torch. neural-compressor 3.10 has it for linear layers on the CPU, not for convolutions: the tests
compare with it where it is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import predict_all

from workbench_quantization.affine_weights import (
    WIDEST,
    AffineWeight,
    affine_size,
    narrow_widths,
    restore_affine,
    round_affine,
    write_affine,
)
from workbench_quantization.bit_table import score, table_of_widths
from workbench_quantization.gptq_report import report
from workbench_quantization.gptq_solver import Settings, as_matrices, output_error, solvable, solve_in_turn
from workbench_quantization.hawq_images import Images, calibration_batches, check_labels, split_roles
from workbench_quantization.hawq_solutions import MEGABYTE
from workbench_quantization.layers import Block, find_blocks, multiply_accumulates
from workbench_quantization.quantizer import FULL_PRECISION, channel_axis

ROUNDINGS = ("nearest", "gptq")


class Params(BaseParams):
    """Parameters of a GPTQ run."""

    widths: tuple[int, ...] = Field((2, 3, 4, 8), min_length=1, description="Widths to try, the same for all layers")
    sharing: Literal["channel", "group"] = Field(
        "channel", description="One scale per output channel or group of inputs"
    )
    group_size: int = Field(128, ge=2, le=65_536, description="Inputs of a group")
    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Share of the mean diagonal of H that is added to it; raised tenfold while H is singular",
    )
    by_activation: bool = Field(False, description="Columns with large inputs first (act-order of the official code)")
    calibration_samples: int = Field(
        256, ge=1, le=100_000, description="Images that the layers are shown (paper: 128 texts)"
    )
    batch: int = Field(64, ge=1, le=4096, description="Images per pass")
    first_last_bits: int | None = Field(
        8, ge=2, le=32, description="Width of the first and last layer (usual: 8); None treats them as the others"
    )
    store_width: int = Field(4, description="Width of the model that is stored, unless a table of widths is given")
    report_fraction: float = Field(0.5, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if any(not 2 <= width <= WIDEST for width in self.widths) or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths: from 2 to {WIDEST} in ascending order, got {self.widths}")
        if self.first_last_bits is not None and WIDEST < self.first_last_bits < FULL_PRECISION:
            raise ValueError(f"first_last_bits: 2 to {WIDEST}, or 32, got {self.first_last_bits}")
        if self.store_width not in self.widths:
            raise ValueError(f"store_width: one of widths {self.widths}, got {self.store_width}")
        return self


@dataclass
class _Subject:
    """The model, its layers and their weights as they came, and the images that the layers are shown."""

    model: nn.Module
    blocks: list[Block]
    originals: dict[nn.Module, Tensor]
    batches: list[Tensor]
    settings: Settings
    device: torch.device

    @torch.no_grad()
    def quantise(self, bits: np.ndarray, rounding: str) -> tuple[dict[nn.Module, AffineWeight], np.ndarray, np.ndarray]:
        """Replace the weights.

        Both roundings are judged on the inputs that GPTQ's layers see.

        Returns:
            Integers, and under GPTQ (NaN elsewhere) the share of a layer's output that is lost, (layer, rounding), and what
            the layer's H was damped with, (layer,).
        """
        error = np.full((len(self.blocks), len(ROUNDINGS)), np.nan)
        damping = np.full(len(self.blocks), np.nan)
        place = {block.layers[0]: index for index, block in enumerate(self.blocks)}
        for layer, weight in self.originals.items():
            layer.get_parameter("weight").copy_(weight)
        share, size = self.settings.sharing, self.settings.group_size
        stored: dict[nn.Module, AffineWeight] = {}

        def note(layer: nn.Module, curvature: Tensor, found: AffineWeight, damped: float) -> None:
            damping[place[layer]] = damped
            whole = as_matrices(layer, self.originals[layer])
            plain = round_affine(layer, int(bits[place[layer]]), share, size)
            for column, weight in enumerate((plain, found)):
                lost, norm = output_error(
                    whole, as_matrices(layer, restore_affine(weight, layer, share, size)), curvature
                )
                error[place[layer], column] = lost / norm if norm > 0 else 0.0

        solved = [layer for layer in place if rounding == "gptq" and solvable(layer)]
        for layer, index in place.items():
            if layer not in solved and bits[index] < FULL_PRECISION:
                stored[layer] = round_affine(layer, int(bits[index]), share, size)
                layer.get_parameter("weight").copy_(restore_affine(stored[layer], layer, share, size))
        stored |= solve_in_turn(
            self.model,
            [[layer] for layer in solved],
            [[int(bits[place[layer]])] for layer in solved],
            self.batches,
            lambda model, batch: model(batch),
            self.settings,
            note,
        )
        return stored, error, damping

    def logits(self, images: Images) -> Tensor:
        """(sample, class) on the CPU."""
        return predict_all(self.model, images.image, device=self.device, keep_on="cpu")[0].float()

    def size(self, bits: np.ndarray) -> float:
        """Bits of all layers with their scales and zero-points."""
        return float(
            sum(
                affine_size(tuple(block.weights[0].shape), int(width), self.settings.sharing,
                            channel_axis(block.layers[0]), self.settings.group_size)
                for block, width in zip(self.blocks, bits, strict=True)
            )
        )  # fmt: skip


def _array(name: str, dims: tuple[str, ...], dtype: str, description: str, **more: Any) -> Output:
    return Output(name, dims, dtype, description, **more)


SCORES: Mapping[str, str] = {
    "accuracy": "on the report images",
    "negative_log_likelihood": "on the report images",
    "agreement": "share of predictions equal to those of the full-precision model",
}
_IMAGES = {"image": ("sample", "channel", "y", "x"), "label": ("sample",)}


class Gptq(Method):
    """GPTQ and rounding to nearest at every width, judge a given table of widths, store one GPTQ model."""

    id = "quantization.gptq"
    title = "What few-bit weights cost when every layer makes good for its own rounding (GPTQ)"
    paper = Paper(
        title="GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
        authors="Frantar, Ashkboos, Hoefler, Alistarh",
        year=2023,
        arxiv="2210.17323",
        venue="ICLR 2023",
        code="IST-DASLab/gptq (Apache-2.0)",
    )
    Params = Params
    inputs = {
        "model": ModelRole("trained classifier to quantise"),
        "data": DataRole(
            "images that the layers are shown; a share is kept for the report when `test` is left out", variables=_IMAGES
        ),
        "test": DataRole("images to report on, none of them in `data`", variables=_IMAGES, optional=True),
        "bits": DataRole("width of every layer, found by another run, to be judged and stored",
                         variables={"bits": ("layer",)}, optional=True),
    }  # fmt: skip
    outputs = (
        _array("parameter_count", ("layer",), "int64", "weights of the layer"),
        _array("macs", ("layer",), "int64", "multiply-accumulates of one sample"),
        _array("weight_shape", ("layer",), "str", "shape of the weight"),
        _array("solved", ("layer",), "bool", "False where a layer is rounded to nearest: no matrix over its inputs"),
        _array(
            "output_error", ("layer", "rounding", "bit"), "float64", "||W X - Q X||^2 / ||W X||^2 on the shown images"
        ),
        _array(
            "damping_used",
            ("layer", "bit"),
            "float64",
            "share of the mean diagonal of H that was added to it; more than asked for where H was singular",
        ),
        _array("damping_stored", ("layer",), "float64", "the same, of the stored model"),
        *(_array(name, ("rounding", "bit"), "float64", text) for name, text in SCORES.items()),
        *(
            _array(f"{name}_given", ("rounding",), "float64", f"of the given table: {text}", optional=True)
            for name, text in SCORES.items()
        ),
        _array("average_bits", ("bit",), "float64", "size of weights, scales and zero-points, per weight", unit="bit"),
        _array("size_mb", ("bit",), "float64", "of weights, scales and zero-points", unit="MB"),
        _array("average_bits_stored", (), "float64", "of the stored model", unit="bit"),
        _array("size_mb_stored", (), "float64", "of the stored model", unit="MB"),
        _array("accuracy_full_precision", (), "float64", "of the model as it came, on the report images"),
        _array("unquantised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        _array("bits", ("layer",), "int8", "widths of the stored model", unit="bit"),
        _array("input_bits", ("layer",), "int8", "widths of the layers' inputs: 32, they are left alone", unit="bit"),
        _array("integer_weight", ("weight",), "uint8", "integers of the stored model, layer after layer"),
        _array("weight_start", ("layer",), "int64", "where a layer's integers start"),
        _array("scale", ("range",), "float32", "scales of the stored model, layer after layer"),
        _array("zero", ("range",), "uint8", "integers that stand for 0"),
        _array("range_start", ("layer",), "int64", "where a layer's scales and zeros start"),
        _array("logit", ("sample", "class"), "float32", "of the stored model on the report images"),
        _array("label", ("sample",), "int64", "labels of the report images"),
        _array("sample_index", ("sample",), "int64", "position of the report images in `test`, or in `data`"),
    )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Quantise at every width by both roundings, measure, judge the given table, store one model."""
        model = inputs["model"]
        parts = split_roles(
            inputs, out, report_fraction=params.report_fraction, calibration_samples=params.calibration_samples
        )
        check_labels(model, parts, out.device)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        batches = [image for image, _ in calibration_batches(parts.calibration, params.batch, out.device, dtype)]
        blocks, reasons = find_blocks(model, batches[0][:1])
        if not blocks:
            out.skip("the model has no convolution or linear layer with a weight of its own")
        names = [block.name for block in blocks]
        given = narrow_widths(table_of_widths(inputs["bits"], names)) if inputs.get("bits") is not None else None
        settings = Settings(params.sharing, params.group_size, params.damping, params.by_activation)
        originals = {block.layers[0]: block.weights[0].detach().clone() for block in blocks}
        subject = _Subject(model, blocks, originals, batches, settings, out.device)
        weights = np.array([block.size for block in blocks], dtype=np.int64)
        out.coordinate("layer", names)
        out.coordinate("rounding", list(ROUNDINGS))
        out.coordinate("bit", np.array(params.widths))
        out.write("parameter_count", weights)
        out.write("macs", multiply_accumulates(model, blocks, parts.calibration.image.shape[1:]))
        out.write("weight_shape", [block.shape for block in blocks])
        out.write("solved", np.array([solvable(block.layers[0]) for block in blocks]))
        if reasons:
            out.coordinate("parameter", list(reasons))
            out.write("unquantised_reason", list(reasons.values()))
        full = subject.logits(parts.held_out)
        label = parts.held_out.label
        out.write("accuracy_full_precision", np.float64(score(full, full, label)["accuracy"]))

        tables = [self._widths(len(blocks), width, params) for width in params.widths]
        found = {name: np.zeros((len(ROUNDINGS), len(tables))) for name in SCORES}
        error, damping = np.zeros((len(blocks), len(ROUNDINGS), len(tables))), np.zeros((len(blocks), len(tables)))
        for row, column in out.track(list(np.ndindex(len(ROUNDINGS), len(tables))), "rounding"):
            _, error[:, :, column], damping[:, column] = subject.quantise(tables[column], ROUNDINGS[row])
            for name, value in score(subject.logits(parts.held_out), full, label).items():
                found[name][row, column] = value
        size = np.array([subject.size(bits) for bits in tables])
        out.write("output_error", error)
        out.write("damping_used", damping)
        out.write("average_bits", size / weights.sum())
        out.write("size_mb", size / 8 / MEGABYTE)
        for name, values in found.items():
            out.write(name, values)
        if given is not None:
            rows = []
            for rounding in ROUNDINGS:
                subject.quantise(given, rounding)
                rows.append(score(subject.logits(parts.held_out), full, label))
            for name in SCORES:
                out.write(f"{name}_given", np.array([row[name] for row in rows]))
        bits = self._widths(len(blocks), params.store_width, params) if given is None else given
        _store(subject, bits, parts.held_out, out)

    @staticmethod
    def _widths(count: int, width: int, params: Params) -> np.ndarray:
        bits = np.full(count, width, dtype=np.int64)
        if params.first_last_bits is not None:
            bits[[0, -1]] = params.first_last_bits
        return bits

    def report(self, result: Result) -> Report:
        """Accuracy by width and rounding, errors by layer (see `gptq_report`)."""
        return report(result)


def _store(subject: _Subject, bits: np.ndarray, held_out: Images, out: Out) -> None:
    parts, _, damping = subject.quantise(bits, "gptq")
    write_affine([parts.get(block.layers[0]) for block in subject.blocks], out)
    out.write("bits", bits.astype(np.int8))
    out.write("damping_stored", damping)
    out.write("input_bits", np.full(len(bits), FULL_PRECISION, dtype=np.int8))
    size = subject.size(bits)
    out.write("average_bits_stored", np.float64(size / sum(block.size for block in subject.blocks)))
    out.write("size_mb_stored", np.float64(size / 8 / MEGABYTE))
    out.write("logit", subject.logits(held_out))
    out.write("label", held_out.label)
    out.write("sample_index", held_out.index)
    out.model(subject.model)
