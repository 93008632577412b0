"""Trains one set of integer weights that can be switched between widths at run time, by a shift, without the float model.

Huang, Chen, Fang, Zhou and Xu (2025), Nearly Lossless Adaptive Bit Switching, arXiv:2502.01199. For people who serve one
model at several precisions (device classes, battery states) and want to know what each switch costs. Three parts:

- Double Rounding: only the integers of the highest width are stored; those of width l are clip((q + 2^(D-1)) >> D), with
  the scale 2^D s. Floor instead of the second rounding, as in earlier work, costs several times the error in untrained
  switching; training makes up for much of it (`compare=("floor",)`);
- ALRS: in training every batch passes at every width and the optimiser steps after each; the scales of narrow widths, whose
  gradients are far larger, learn more slowly;
- HASB (`mode="mixed"`): a supernet with a width per layer, where layers with a large Hessian trace draw high widths more
  often; an integer program then picks widths for a mean width, and the network is judged at them without further training.

**"Nearly lossless" is about switching, not about 2 bits:** see the table of widths. Batch norms and the scales of the
layers' inputs belong to a width each; evaluating one width with those of another is the commonest mistake.

Measured here: ResNet-20 on CIFAR-10 (91.6 % on 1,017 report images; 3 epochs of 5,085 images, seed 1, full precision as the
only teacher, `distillation=1`) keeps 91.2, 90.9, 91.0 and 79.5 % at 8, 6, 4 and 2 bits, that is less by 0.5 (-0.8 to +1.8), 0.8
(-0.5 to +2.1), 0.7 (-0.8 to +2.2) and 12.1 (+9.7 to +14.5) points (95 % intervals image by image). With labels for half of the
loss it is less by 1.1, 1.1, 1.7 and 14.5: few labels, which the network knows by heart, cost what it had learnt from more. The
paper has 92.3, 92.3, 92.1 and 90.2 of 92.3 after 200 epochs of 50,000 images: **2 bits take more training than that.** On
digits, over five seeds of split, network and training, 2 bits are 2.0 points (1.3 to 2.8) better than with floor trained the
same way and 1.1 (0.3 to 1.9) below full precision. (In one seed with LSQ's first input scales and the gradient by the stored
step floor was the better one.) Not shown: a gain over floor at wider weights, over one update per batch or of ALRS. HASB has
none over a uniform roulette on digits: -0.04 points (-0.15 to 0.07), mean of 22 networks.

What differs from the paper, read as its NeurIPS 2024 submission (the official repository holds no code):

- Equation 6 taken literally gives negative learning rates, because gradients of scales are above the rate. Default is
  `alrs="multiplicative"`, eta lambda (1 - mean gradient); `paper` cuts eq. 6 off at 0.
- Scales are learned relative to their first value (`scale_steps="relative"`): a weight scale of 1e-3 cannot take Adam steps
  of 5e-4. `absolute` takes the paper's steps.
- Halves are rounded up in training and storage, as a shift does it; `torch.round` (`rounding="half_even"`) differs for one
  stored level in 2^D.
- Algorithm 2 as printed gives the fewest bits to the most sensitive layers. The program minimises trace times squared
  rounding error instead; `search="paper_max"` maximises what the paper minimises. Mean widths count weights, not layers.
- Not known from the text and chosen here: the redraw threshold sigma, which rate a layer's scale has in a pass of mixed widths
  (that of its own width), the share of distillation, and the first scales. These matter, because at narrow widths ALRS makes
  scales move by less than 1 % in a thousand steps. Weights start where LSQ would put the lowest width, which suffers most from
  the shared scale; inputs at the step of least squared error, which for ResNet-20 at 2 bits is up to five times that of LSQ.
  Before any training 4 bits then keep 85 % of 1,017 training images of CIFAR-10 that no scale was chosen on, 68 % with LSQ's
  formula for inputs; with LSQ's weight scale of the stored width 6, 4 and 2 bits are near chance.
- By which number the shared scale is differentiated is not said. The paper's figures 7 to 10 show gradients of one magnitude at
  8, 6 and 4 bits and a larger one at 2. The derivative by the width's own step 2^D s, times LSQ's factor 1 / sqrt(N Q) (the
  default), behaves so: medians over ResNet-20's layers of 2.4e-3, 1.9e-3, 1.8e-3 and 1.7e-2 on CIFAR-10
  (untrained, with LSQ's first input scales; in two trainings with the default ones 2 bits had 1.2 and 1.5 times those of 8, on
  digits 17 to 25 times). Without the factor they are 3.0, 1.4, 0.5 and 1.8, and by s itself 3, 6, 7 and 114: ALRS then has
  rates near 0, and the scales stand still. The report says at which widths and how often that was.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_quantization.double_rounding_report import report
from workbench_quantization.double_rounding_run import run
from workbench_quantization.nested_rounding import InputStart, RateRule, Rounding, ScaleGradient, ScaleStart

Comparison = Literal["floor", "constant rate", "accumulated", "independent scales", "separate", "uniform roulette"]


class Params(BaseParams):
    """Parameters; defaults are the paper's (ImageNet) unless a description says otherwise."""

    widths: tuple[int, ...] = Field(
        (8, 6, 4, 2), min_length=2, max_length=7, description="Widths, the stored one first"
    )
    mode: Literal["multi", "mixed", "ptq"] = Field(
        "multi", description="One width for all layers; also a width per layer; or no training at all"
    )
    epochs: int = Field(90, ge=1, le=1000, description="Of the multi-precision training")
    learning_rate: float = Field(5e-4, gt=0, le=0.1, description="Adam, cosine without warm-up")
    weight_decay: float = Field(5e-5, ge=0, le=0.1, description="Of weights and norms; scales have none")
    batch_size: int = Field(256, ge=2, le=4096, description="Images per step (CIFAR-10: 128)")
    augmentation: Literal["none", "crop", "flip", "flip_crop"] = Field("none", description="flip is wrong for digits")
    alrs: RateRule = Field("multiplicative", description="Pace of the scales; `paper` is eq. 6, cut off at 0")
    clip_grad: float = Field(1.0, gt=0, le=100, description="Bound of a scale's gradient in the pace")
    scale_steps: Literal["relative", "absolute"] = Field(
        "relative", description="Whether a step of a scale is a share of its first value, or as it is (paper)"
    )
    scale_gradient: ScaleGradient = Field(
        "lsq",
        description="Derivative that moves a weight scale: by the step of the width; that times LSQ's factor; by the stored one",
    )
    scale_init: ScaleStart = Field(
        "lsq_lowest",
        description="First weight scales: largest weight; LSQ's formula; that of the lowest width (not in the paper)",
    )
    rounding: Rounding = Field("half_up", description="Where halves go; half_up is what a shift computes")
    input_init: InputStart = Field(
        "least error",
        description="First scales of the inputs: least squared error, or LSQ's formula (not in the paper)",
    )
    quantise_inputs: bool = Field(True, description="Quantise the layers' inputs to the same width")
    first_last: Literal["full precision", "quantised"] = Field("full precision", description="First and last layer")
    teacher: Literal["none", "full precision", "highest width"] = Field(
        "none", description="Distil from the model as it came, or from the highest width's pass on the same batch"
    )
    distillation: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of the teacher in the loss of the widths it teaches (not known from the paper)",
    )
    compare: tuple[Comparison, ...] = Field((), description="Further trainings of the same length to compare with")
    mixed_epochs: int = Field(90, ge=1, le=1000, description="mixed: of the supernet, after the first training")
    sigma: float = Field(
        0.5, ge=0, le=1, description="mixed: share of redrawn widths in the last epoch (not in the paper)"
    )
    average_bits: float = Field(
        4.0, ge=2, le=8, description="mixed: mean width of the stored network, over its weights"
    )
    search: Literal["perturbation", "paper_max"] = Field(
        "perturbation", description="mixed: least trace times squared error; or most trace times width"
    )
    search_points: int = Field(9, ge=1, le=100, description="mixed: mean widths to solve for, besides that")
    random_subnets: int = Field(8, ge=0, le=1000, description="mixed: networks of random widths to judge")
    hess_samples: int = Field(1000, ge=2, le=100_000, description="Images for the traces and the first input scales")
    hess_batch: int = Field(128, ge=1, le=4096, description="Images per batch of them")
    probes: int = Field(50, ge=2, le=10_000, description="mixed: Hutchinson probes")
    watch_samples: int = Field(1000, ge=1, le=1_000_000, description="Report images to watch after every epoch")
    store_width: int | None = Field(
        None, ge=2, le=8, description="Width of the model called `model`; None: the highest"
    )
    report_fraction: float = Field(0.3, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if any(not 2 <= width <= 8 for width in self.widths) or list(self.widths) != sorted(
            set(self.widths), reverse=True
        ):
            raise ValueError(f"widths: from 2 to 8 in descending order, got {self.widths}")
        if self.store_width is not None and self.store_width not in self.widths:
            raise ValueError(f"store_width: one of widths {self.widths}, got {self.store_width}")
        if len(set(self.compare)) != len(self.compare):
            raise ValueError(f"compare: each at most once, got {self.compare}")
        if self.mode == "ptq" and self.compare:
            raise ValueError("compare: nothing is trained in mode 'ptq'; use 'multi'")
        if self.mode != "mixed" and "uniform roulette" in self.compare:
            raise ValueError("compare: 'uniform roulette' needs mode 'mixed'")
        if self.mode == "mixed" and not self.widths[-1] <= self.average_bits <= self.widths[0]:
            raise ValueError(f"average_bits: {self.widths[-1]} to {self.widths[0]}, got {self.average_bits}")
        return self


class DoubleRounding(Method):
    """Train one set of weights for all widths, judge every width and every rival, store the integers once."""

    id = "quantization.double_rounding"
    title = "One stored integer model that switches between 8, 6, 4 and 2 bits, and what each switch costs"
    paper = Paper(
        title="Nearly Lossless Adaptive Bit Switching",
        authors="Huang, Chen, Fang, Zhou and Xu",
        year=2025,
        arxiv="2502.01199",
        code="haiduo/Double-Rounding (no code in it)",
    )
    Params = Params
    inputs = {
        "model": ModelRole("trained classifier"),
        "data": DataRole(
            "images to train on; a share is kept for the report when role `test` is left out",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
        ),
        "test": DataRole(
            "images to report on, none of them in `data`",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
        "bits": DataRole(
            "width of every layer, found by another run, to be judged and stored",
            variables={"bits": ("layer",)},
            optional=True,
        ),
    }
    outputs = (
        Output("parameter_count", ("layer",), "int64", "weights of the layer"),
        Output("weight_shape", ("layer",), "str", "shape of the weight"),
        Output("macs", ("layer",), "int64", "multiply-accumulates of one sample"),
        Output("quantised", ("layer",), "bool", "whether the layer switches; the others stay in full precision"),
        Output("unquantised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        Output("transfer", ("curve", "bit", "value"), "float64", "what comes out for a weight from -1 to 1"),
        Output("switch_error", ("rule", "layer", "bit"), "float64",
               "||switched - direct||^2 / ||direct||^2 of the stored weights; direct: rounded at the width itself"),
        Output("error_ratio", ("rule", "layer", "bit"), "float64", "||switched - W||^2 / ||direct - W||^2"),
        Output("mean_error", ("rule", "layer", "bit"), "float64", "mean of switched - direct", unit="step"),
        Output("level_count", ("layer", "bit", "level"), "int64", "how often each integer occurs"),
        Output("accuracy", ("variant", "bit"), "float64", "on the report images"),
        Output("negative_log_likelihood", ("variant", "bit"), "float64", "on the report images"),
        Output("agreement", ("variant", "bit"), "float64", "share of predictions equal to full precision"),
        Output("accuracy_full_precision", (), "float64", "of the model as it came, on the report images"),
        Output("accuracy_given", (), "float64", "of the given table of widths", optional=True),
        Output("accuracy_epoch", ("variant", "epoch", "bit"), "float32", "on the watched images", optional=True),
        Output("loss_epoch", ("variant", "epoch", "bit"), "float32", "mean training loss", optional=True),
        Output("lr_scale", ("step", "bit"), "float32", "learning rate of the scales, lambda_b", optional=True),
        Output("grad_scale_absmax", ("step", "layer", "bit"), "float32",
               "absolute gradient of the layer's weight scale", optional=True),
        Output("trace", ("layer",), "float64", "mean Hessian trace per weight of the model as it came", optional=True),
        Output("trace_standard_error", ("layer",), "float64", "of it", optional=True),
        Output("width_probability", ("layer", "bit"), "float64", "of the roulette", optional=True),
        Output("mixed_loss", ("mixed_epoch", "pass_name"), "float32", "of the sandwich passes", optional=True),
        Output("subnet_kind", ("subnet",), "str", "program, uniform, random or given", optional=True),
        Output("subnet_bits", ("subnet", "layer"), "int8", "widths", unit="bit", optional=True),
        Output("subnet_average_bits", ("subnet",), "float64", "mean width over quantised weights", optional=True),
        Output("subnet_accuracy", ("roulette", "subnet"), "float64", "on the report images", optional=True),
        Output("subnet_pareto", ("subnet",), "bool", "not beaten in mean width and accuracy (HASB)", optional=True),
        Output("width_bytes", ("bit",), "int64", "packed integers, scales, one set of norms and all else", unit="B"),
        Output("stored_bytes", (), "int64", "of the one switchable model with all its norms", unit="B"),
        Output("full_precision_bytes", (), "int64", "of the model as it came, in float32 where that was half", unit="B"),
        Output("switch_seconds", ("bit",), "float64", "to shift all integers to this width, best of 5", unit="s"),
        Output("norm_mean", ("norm", "bit", "channel"), "float32", "running means by width", optional=True),
        Output("norm_variance", ("norm", "bit", "channel"), "float32", "running variances by width", optional=True),
        Output("bits", ("layer",), "int8", "widths of the stored model called `model`", unit="bit"),
        Output("input_bits", ("layer",), "int8", "widths of the layers' inputs in it", unit="bit"),
        Output("integer_weight", ("weight",), "int8", "integers of the highest width, layer after layer"),
        Output("weight_start", ("layer",), "int64", "where a layer's integers start"),
        Output("scale", ("range",), "float32", "scale of the highest width, one for each quantised layer"),
        Output("scale_start", ("layer",), "int64", "where a layer's scale is"),
        Output("input_scale", ("layer", "bit"), "float32", "scale of the input; NaN where it is not quantised"),
        Output("input_signed", ("layer",), "bool", "whether the input's levels are signed"),
        Output("logit", ("sample", "class"), "float32", "of `model` with quantised inputs on the report images"),
        Output("label", ("sample",), "int64", "labels of the report images"),
        Output("sample_index", ("sample",), "int64", "position of the report images in `test`, or in `data`"),
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Train, judge, compare, search and store (see `double_rounding_run`)."""
        run(inputs, params, out)

    def report(self, result: Result) -> Report:
        """What each width keeps and weighs, how training went, which layers matter (see `double_rounding_report`)."""
        return report(result)
