"""Quantises weights and activations of a trained classifier from a few hundred images, without retraining it.

Hubara, Nahshan, Hanani, Banner and Soudry (2020), Improving Post Training Neural Quantization: Layer-wise Calibration and
Integer Programming, arXiv:2006.10518. Three parts that can be judged one by one:

- AdaQuant: weights, bias and ranges of each layer are optimised until its quantised output matches the full-precision
  one, all layers for themselves (`parallel`) or each behind the quantised layers before it (`sequential`);
- the integer program: the width of each layer under a limit of size or bit operations, by the loss when that layer alone is
  narrow;
- statistics: batch norms, folded before, are put in once more and re-estimated on the quantised model; then the biases
  are tuned on the distance to the full-precision logits.

**Read the column naive + batch norm first.** Re-estimating batch norms alone repairs most of what 2 bits break; what
AdaQuant adds is the difference to that column, not to naive quantisation. Then look whether AdaQuant's model is better
without re-estimated norms, as it can be at 3 bits; the stored model has them, and the report says so.

What differs from the paper and its code (itayhubara/CalibTIP): zero-points are rounded everywhere (the code rounds them
only while ranges are trained); biases are not quantised, as accumulators are wide; tuned batch norms are folded into the
scales of the weights, which leaves the integers as they are; `sequential` optimises each candidate width behind layers
of that same width; batches are drawn with replacement; bias tuning minimises the KL per sample (the code: per sample and
class, which makes its rates smaller by the number of classes). The program needs labels, because it measures the loss. Not
offered: several policies from noisy losses; accuracy against the number of calibration images, which a sweep over
`calibration_samples` gives.

`end_to_end_steps` adds the comparison with fine-tuning all weights at once on the same images and their labels, on report and
on calibration images, where it shows how far each is fitted to these.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_quantization.adaquant_layers import PARTS, Part
from workbench_quantization.adaquant_report import report
from workbench_quantization.adaquant_run import run


class Params(BaseParams):
    """Parameters; defaults are those of the official code unless a description says otherwise."""

    bits: tuple[int, ...] = Field((4, 8), min_length=1, description="Candidate widths; the last is the base (code 8)")
    act_bits: int | Literal["weight"] = Field(
        "weight", description="Width of the inputs; 'weight': that of the weights"
    )
    first_last_bits: int | None = Field(
        8, ge=2, le=8, description="Width of first and last layer, outside the program; None lets them in (code)"
    )
    budget: Literal["size", "bops"] = Field("size", description="What `compression` limits: weights or bit operations")
    compression: tuple[float, ...] | None = Field(
        None,
        description="Costs to reach, as a share of that of 32-bit weights (paper 0.13 to 0.24; bit operations: with inputs of "
        "the base width). None: a quarter, a half and three quarters of the way from the smallest to the largest possible. The "
        "smallest is stored, unless there is a `table`",
    )
    objective: Literal["loss", "accuracy"] = Field(
        "loss", description="What the program keeps small: loss or error rate"
    )
    mode: Literal["parallel", "sequential"] = Field(
        "parallel", description="Layers for themselves, or one after the other"
    )
    parts: tuple[Part, ...] = Field(PARTS, description="What AdaQuant optimises; fewer parts are ablations")
    iterations: int = Field(1000, ge=1, le=100_000, description="Adam steps per layer and width")
    batch_size: int = Field(
        50,
        ge=2,
        le=4096,
        description="Images per step, and per update of the batch norms, where a single last image joins the batch before",
    )
    rate_mode: Literal["absolute", "relative"] = Field(
        "absolute",
        description="absolute: rates as given (code); relative: weights 5e-3 of their standard deviation, weight ranges "
        "2e-3 and input ranges 1e-2 of their length",
    )
    weight_rate: float = Field(1e-5, gt=0, le=1, description="Adam, weights (absolute mode)")
    bias_rate: float = Field(1e-3, gt=0, le=1, description="Adam, bias")
    weight_range_rate: float = Field(1e-3, gt=0, le=1, description="Adam, ranges of weights (absolute mode)")
    input_range_rate: float = Field(1e-1, gt=0, le=1, description="Adam, ranges of inputs (absolute mode)")
    relu_aware: bool = Field(True, description="Compare outputs behind the ReLU that takes them")
    calibration_samples: int = Field(1000, ge=20, le=100_000, description="Images to calibrate on (paper 1000)")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of them that shows each layer's error and is not optimised on"
    )
    norm_passes: int = Field(1, ge=1, le=100, description="Passes over the images that re-estimate the batch norms")
    norm_momentum: float = Field(0.1, gt=0, le=1, description="Share of a batch in the running statistics")
    bias_steps: int = Field(
        200, ge=0, le=100_000, description="SGD steps of bias tuning (code 800, 10 epochs of 80); 0 leaves it out"
    )
    bias_tuning_rate: float = Field(
        0.1,
        gt=0,
        le=10,
        description="SGD rate of bias tuning, on the KL per sample. The code's 0.1 is on the KL per sample and class: 0.1 "
        "divided by the number of classes takes its steps",
    )
    end_to_end_steps: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Adam steps on all weights and biases together over the labels, at the stored widths, as a comparison that "
        "stores no model; 0 leaves it out",
    )
    end_to_end_rate: float = Field(1e-4, gt=0, le=1, description="Adam, end to end")
    report_fraction: float = Field(0.5, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if any(not 2 <= width <= 8 for width in self.bits) or list(self.bits) != sorted(set(self.bits)):
            raise ValueError(f"bits: widths from 2 to 8 in ascending order, got {self.bits}")
        if self.act_bits != "weight" and not (2 <= self.act_bits <= 8 or self.act_bits == 32):
            raise ValueError(f"act_bits: 2 to 8, 32 or 'weight', got {self.act_bits}")
        if self.compression is not None and not (self.compression and all(0 < c <= 1 for c in self.compression)):
            raise ValueError(f"compression: shares in (0, 1], got {self.compression}")
        if len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts: each at most once, got {self.parts}")
        return self


def _array(name: str, dims: tuple[str, ...], dtype: str, description: str, **more: Any) -> Output:
    return Output(name, dims, dtype, description, **more)


class AdaQuant(Method):
    """Fold, optimise every layer at every width, measure each, allocate, then judge all stages of all solutions."""

    id = "quantization.adaquant"
    title = "4-bit weights and activations from a few hundred images, without retraining"
    paper = Paper(
        title="Improving Post Training Neural Quantization: Layer-wise Calibration and Integer Programming",
        authors="Hubara, Nahshan, Hanani, Banner and Soudry",
        year=2020,
        arxiv="2006.10518",
        code="itayhubara/CalibTIP (MIT)",
    )
    Params = Params
    inputs = {
        "model": ModelRole("trained classifier to quantise, with batch norms if they are to be tuned"),
        "data": DataRole(
            "images to calibrate on; a share is kept for the report when role `test` is left out",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
        ),
        "test": DataRole(
            "images to report on, none of them in `data`",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
        "table": DataRole(
            "`bits` of another run, the width of every layer, to be judged and stored; its widths join the candidates",
            variables={"bits": ("layer",)},
            optional=True,
        ),
    }
    outputs = (
        _array("parameter_count", ("layer",), "int64", "weights of the layer"),
        _array("macs", ("layer",), "int64", "multiply-accumulates of one sample"),
        _array("fixed", ("layer",), "bool", "first and last layer, whose width is given"),
        _array("normalised", ("layer",), "bool", "whether a batch norm was folded into the layer"),
        _array("rectified", ("layer",), "bool", "whether a ReLU takes the output"),
        _array("unquantised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        _array("layer_error", ("layer", "bit", "state"), "float64", "mean squared error of the output on held-out images"),
        _array("signal_to_noise", ("layer", "bit", "state"), "float64", "of the output, same images", unit="dB"),
        _array("layer_loss", ("layer", "bit", "iteration"), "float32", "mean squared error of each training batch"),
        _array("base_loss", (), "float64", "calibration loss with every layer at the base width"),
        _array("loss_increase", ("layer", "bit"), "float64", "rise of it with this layer alone at another width"),
        _array("error_increase", ("layer", "bit"), "float64", "rise of the error rate, likewise"),
        _array("solution_kind", ("solution",), "str", "given, program, greedy or uniform"),
        _array("solution_bits", ("solution", "layer"), "int8", "widths of every solution", unit="bit"),
        _array("size_share", ("solution",), "float64", "size of the weights over their size at 32 bits"),
        _array("bops", ("solution",), "float64", "bit operations of one sample", optional=True),
        _array("target_share", ("solution",), "float64", "share that was asked for, of the size or of bit operations; NaN for "
               "uniform solutions"),
        _array("predicted_increase", ("solution",), "float64", "sum of the program's objective over the layers"),
        _array("accuracy", ("solution", "stage"), "float64", "on the report images"),
        _array("negative_log_likelihood", ("solution", "stage"), "float64", "on the report images"),
        _array("correct", ("stage", "sample"), "bool", "whether the solution that is stored in the end was right, image by "
               "image of the report; what stages differ in is judged on it", optional=True),
        _array("accuracy_full_precision", (), "float64", "of the model as it came, on the report images"),
        _array("accuracy_calibration", (), "float64", "of the model as it came, on the calibration images"),
        _array("norm_mean_shift", ("layer",), "float64", "root mean square shift of the channel means by tuning, in "
               "standard deviations; NaN without norm"),
        _array("norm_deviation_shift", ("layer",), "float64", "root mean square relative change of the channels' "
               "standard deviations; NaN without norm"),
        _array("norm_mean_shift_channel", ("layer", "channel"), "float32", "shift of a channel's mean before tuning, in standard "
               "deviations; NaN without norm and beyond a layer's channels", optional=True),
        _array("norm_deviation_shift_channel", ("layer", "channel"), "float32", "relative change of its standard deviation",
               optional=True),
        _array("fit_accuracy", ("fit", "split"), "float64", "of AdaQuant and of all weights fine-tuned end to end, at the stored "
               "widths, on report and calibration images", optional=True),
        _array("fit_correct", ("fit", "sample"), "bool", "the same image by image of the report", optional=True),
        _array("bits", ("layer",), "int8", "widths of the stored model", unit="bit"),
        _array("chosen", ("layer", "bit"), "bool", "the width of the layer in the stored model", optional=True),
        _array("input_bits", ("layer",), "int8", "widths of the layers' inputs in it", unit="bit"),
        _array("integer_weight", ("weight",), "uint8", "integers of the stored model, layer after layer"),
        _array("weight_start", ("layer",), "int64", "where a layer's integers start"),
        _array("scale", ("range",), "float32", "step of each output channel, layer after layer"),
        _array("zero", ("range",), "uint8", "integer that stands for 0"),
        _array("range_start", ("layer",), "int64", "where a layer's scales and zeros start"),
        _array("input_range", ("layer", "bound"), "float32", "lowest value and length of the input's range"),
        _array("logit", ("sample", "class"), "float32", "of the stored model, inputs quantised, on the report images"),
        _array("label", ("sample",), "int64", "labels of the report images"),
        _array("sample_index", ("sample",), "int64", "position of the report images in `test`, or in `data`"),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """The paper's pipeline and its controls (see `adaquant_run`)."""
        run(inputs, params, out)

    def report(self, result: Result) -> Report:
        """What each stage brings, widths, errors by layer (see `adaquant_report`)."""
        return report(result)
