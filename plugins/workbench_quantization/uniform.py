"""What a trained classifier loses when its weights are simply rounded: every width, every way to share a range.

The baseline that any other quantisation method must beat, as set out by Krishnamoorthi (2018), Quantizing deep
convolutional networks for efficient inference: a whitepaper, arXiv:1806.08342. Each weight goes to the nearest of evenly
spaced levels (round-to-nearest) between plus and minus the largest weight that shares its range:

    s = max|w| / (2^(b-1) - 1),    Q_b(w) = s * clamp(round(w / s), -2^(b-1), 2^(b-1) - 1).

A range is shared by a whole layer, by an output channel, or by a group of consecutive weights of one channel, as is usual
for language models. Nothing is trained; images serve to measure, and to find the ranges of the layers' inputs where those
are quantised too. A table of widths per layer found by another run is judged on the same images: `bits=run["bits"]`.

What differs from the whitepaper: ranges are symmetric for weights (its section 2.2), inputs use the zero-point 0; batch
norms are not folded into the weights. Groups are an addition. Sizes count the scales at 32 bits each, which makes small
groups honest: 32 weights a group cost one more bit per weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_quantization.bit_table import (
    STORED,
    WIDEST,
    Subject,
    cost_of,
    rounding_errors,
    score,
    table_of_widths,
    write_stored,
)
from workbench_quantization.hawq_images import Images, check_labels, split_roles
from workbench_quantization.hawq_solutions import Costs
from workbench_quantization.integer_weights import (
    Sharing,
)
from workbench_quantization.layers import Block, find_blocks, multiply_accumulates
from workbench_quantization.quantizer import (
    FULL_PRECISION,
    InputQuantisers,
    RangeRule,
)
from workbench_quantization.uniform_report import report


class Params(BaseParams):
    """Parameters of a round-to-nearest run."""

    widths: tuple[int, ...] = Field((2, 3, 4, 6, 8), min_length=1, description="Widths to try, the same for all layers")
    sharings: tuple[Sharing, ...] = Field(
        ("layer", "channel", "group"), min_length=1, description="What shares a range: layer, output channel, group"
    )
    group_size: int = Field(32, ge=2, le=4096, description="Consecutive weights of a channel that make a group")
    act_bits: int | Literal["weight"] = Field(
        32,
        description="Width of the layers' inputs (one range a tensor); 32 leaves them alone, 'weight' follows the weights",
    )
    activation_range: RangeRule = Field(
        "extremes", description="Ranges of inputs: minimum and maximum, or 0.1 and 99.9 %"
    )
    calibration_samples: int = Field(256, ge=1, le=100_000, description="Images that show the ranges of the inputs")
    first_last_bits: int | None = Field(
        8, ge=2, le=32, description="Width of the first and last layer (usual: 8); None treats them as the others"
    )
    store_width: int = Field(4, description="Width of the model that is stored, unless a table of widths is given")
    store_sharing: Sharing = Field("channel", description="Ranges of the model that is stored")
    report_fraction: float = Field(0.5, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if any(not 2 <= width <= WIDEST for width in self.widths) or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(f"widths: from 2 to {WIDEST} in ascending order, got {self.widths}")
        if len(set(self.sharings)) != len(self.sharings):
            raise ValueError(f"sharings: each at most once, got {self.sharings}")
        if self.act_bits != "weight" and not 2 <= self.act_bits <= 32:
            raise ValueError(f"act_bits: 2 to 32 or 'weight', got {self.act_bits}")
        if self.first_last_bits is not None and WIDEST < self.first_last_bits < FULL_PRECISION:
            raise ValueError(f"first_last_bits: 2 to {WIDEST}, or 32, got {self.first_last_bits}")
        if self.store_width not in self.widths:
            raise ValueError(f"store_width: one of widths {self.widths}, got {self.store_width}")
        if self.store_sharing not in self.sharings:
            raise ValueError(f"store_sharing: one of sharings {self.sharings}, got {self.store_sharing!r}")
        return self


def _fixed(blocks: Sequence[Block], params: Params) -> np.ndarray:
    fixed = np.zeros(len(blocks), dtype=np.int64)
    if params.first_last_bits is not None:
        fixed[[0, -1]] = params.first_last_bits
    return fixed


def _judge(
    subject: Subject, bits: np.ndarray, sharing: Sharing, full: Tensor, held_out: Images, out: Out
) -> dict[str, float]:
    logit = subject.quantised_logits(bits, sharing, held_out.image, out)
    return score(logit, full, held_out.label) | cost_of(subject, bits, sharing)


def _array(name: str, dims: tuple[str, ...], dtype: str, description: str, **more: Any) -> Output:
    return Output(name, dims, dtype, description, **more)


GRID: Mapping[str, tuple[str, str]] = {
    "accuracy": ("on the report images", ""),
    "negative_log_likelihood": ("on the report images", ""),
    "agreement": ("share of predictions equal to those of the full-precision model", ""),
    "size_mb": ("quantised weights and their scales", "MB"),
    "average_bits": ("size of weights and scales, per weight", "bit"),
}
"""What is measured of every solution: description and unit."""


class Uniform(Method):
    """Round to nearest at every width and sharing, judge a given table of widths, store one quantised model."""

    id = "quantization.uniform"
    title = "What plain rounding of the weights costs, at every width; and what a table of widths is worth"
    paper = Paper(
        title="Quantizing deep convolutional networks for efficient inference: a whitepaper",
        authors="Krishnamoorthi",
        year=2018,
        arxiv="1806.08342",
    )
    Params = Params
    inputs = {
        "model": ModelRole("trained classifier to quantise"),
        "data": DataRole(
            "images that show the ranges of the inputs; a share is kept for the report when `test` is left out",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
        ),
        "test": DataRole(
            "images to report on, none of them in `data`",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
        "bits": DataRole("width of every layer, found by another run, to be judged and stored",
                         variables={"bits": ("layer",)}, optional=True),
    }  # fmt: skip
    outputs = (
        _array("parameter_count", ("layer",), "int64", "weights of the layer"),
        _array("weight_shape", ("layer",), "str", "shape of the weight"),
        _array("macs", ("layer",), "int64", "multiply-accumulates of one sample"),
        _array("weight_error", ("layer", "sharing", "bit"), "float64", "||Q_b(W_i) - W_i||^2 at this width"),
        _array("relative_error", ("layer", "sharing", "bit"), "float64", "the same over ||W_i||^2"),
        *(_array(name, ("sharing", "bit"), "float64", text, unit=unit) for name, (text, unit) in GRID.items()),
        *(
            _array(f"{name}_given", ("sharing",), "float64", f"of the given table: {text}", unit=unit, optional=True)
            for name, (text, unit) in GRID.items()
        ),
        _array("accuracy_full_precision", (), "float64", "of the model as it came, on the report images"),
        _array("negative_log_likelihood_full_precision", (), "float64", "of the model as it came"),
        _array("input_range", ("layer", "bound"), "float32", "lowest and highest input seen", optional=True),
        _array("unquantised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        *STORED,
    )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Round at every width and sharing, measure, judge the given table, store one model."""
        model = inputs["model"]
        parts = split_roles(
            inputs, out, report_fraction=params.report_fraction, calibration_samples=params.calibration_samples
        )
        check_labels(model, parts, out.device)
        _, channel, y, x = parts.calibration.image.shape
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        blocks, reasons = find_blocks(model, torch.zeros(1, channel, y, x, device=out.device, dtype=dtype))
        if not blocks:
            out.skip("the model has no convolution or linear layer with a weight of its own")
        names = [block.name for block in blocks]
        given = table_of_widths(inputs["bits"], names) if inputs.get("bits") is not None else None
        costs = Costs(
            np.array([block.size for block in blocks], dtype=np.int64),
            multiply_accumulates(model, blocks, (channel, y, x)),
            np.array(params.widths),
            _fixed(blocks, params),
            None if params.act_bits == "weight" else params.act_bits,
        )
        if not len(costs.free):
            out.skip("first and last layer are all there is to quantise; first_last_bits=None lets them in")
        layers = [block.layers[0] for block in blocks]
        half = out.dtype if out.dtype in (torch.float16, torch.bfloat16) else None
        subject = Subject(
            model, blocks, InputQuantisers(layers, params.activation_range), costs, params.group_size, half
        )
        out.coordinate("layer", names)
        out.coordinate("sharing", list(params.sharings))
        out.coordinate("bit", np.array(params.widths))
        out.write("parameter_count", costs.sizes)
        out.write("weight_shape", [block.shape for block in blocks])
        out.write("macs", costs.macs)
        if reasons:
            out.coordinate("parameter", list(reasons))
            out.write("unquantised_reason", list(reasons.values()))
        if params.act_bits != FULL_PRECISION:
            with subject.inputs.observing():
                subject.logits(parts.calibration.image, out)
            out.write("input_range", subject.inputs.ranges)

        full = subject.logits(parts.held_out.image, out)
        reference = score(full, full, parts.held_out.label)
        out.write("accuracy_full_precision", np.float64(reference["accuracy"]))
        out.write("negative_log_likelihood_full_precision", np.float64(reference["negative_log_likelihood"]))
        self._write_grid(subject, full, parts.held_out, params, out)
        if given is not None:
            rows = [_judge(subject, given, sharing, full, parts.held_out, out) for sharing in params.sharings]
            for name in GRID:
                out.write(f"{name}_given", np.array([row[name] for row in rows]))
        same = costs.complete(np.full(len(costs.free), params.widths.index(params.store_width)))
        write_stored(subject, same if given is None else given, params.store_sharing, parts.held_out, out)
        subject.inputs.remove()

    def _write_grid(self, subject: Subject, full: Tensor, held_out: Images, params: Params, out: Out) -> None:
        shape = (len(params.sharings), len(params.widths))
        error = np.zeros((len(subject.blocks), *shape))
        measured = {name: np.zeros(shape) for name in GRID}
        for row, column in out.track(list(np.ndindex(*shape)), "rounding"):
            sharing, width = params.sharings[row], params.widths[column]
            # Errors are those of the width itself also for the first and the last layer.
            error[:, row, column] = rounding_errors(subject, np.full(len(subject.blocks), width), sharing)
            bits = subject.costs.complete(np.full(len(subject.costs.free), column))
            for name, value in _judge(subject, bits, sharing, full, held_out, out).items():
                measured[name][row, column] = value
        norm = np.array([float(block.weights[0].detach().double().square().sum()) for block in subject.blocks])
        out.write("weight_error", error)
        out.write("relative_error", error / np.where(norm > 0, norm, 1.0)[:, None, None])
        for name, values in measured.items():
            out.write(name, values)

    def report(self, result: Result) -> Report:
        """Accuracy against width and size, error by layer, and how the given table compares (see `uniform_report`)."""
        return report(result)
