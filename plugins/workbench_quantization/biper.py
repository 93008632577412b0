"""Networks with 1-bit weights and 1-bit activations, whose weight bit is the sign of a sine of the trained weight.

Vargas, Correa, Hinojosa and Arguello (2024), BiPer: Binary Neural Networks using a Periodic Function, CVPR, arXiv:2404.01278.
A latent weight w counts as sign(sin(omega w)), a square wave. It may cross the border between -1 and +1 many times, and the
gradient is the exact one of the sine, omega cos(omega w). The frequency omega trades how far the sine is from its sign
(`biper_theory`) against how well it trains. Two stages: first with the real sine and binary activations, then binary.

**The accuracy after stage 1 is not that of a binary network**: its weights are real. The result is `biper`, after stage 2;
`biper_binarised` is what stage 1 is worth when its weights are merely binarised. Compare with signs trained in the usual
ways (`sign_clipped`: gradient 1 where |w| <= 1; `sign_polynomial`: max(2 - 2|w|, 0)), whose learning rates are chosen on
validation images from several, because omega multiplies BiPer's gradient and one rate for all would compare rates. BiPer
itself has no such choice.

What differs from the official code (edmav4/BiPer): the sign of 0 is +1, so that weights and inputs have exactly two values
(the code has a third); results are those of the last epoch, and choices are made on validation images (the code takes the
epoch with the best test accuracy); where layers have a bias it is added after the scale. The regulariser,
tau * mean sin^2(omega w), is as in the code: it pulls weights towards the crossings, which lowers the error with the best
scale but also |sin| (`reg` turns it round or off). Weight decay shrinks omega * mean|w|, and below about 0.3 the square wave
is a plain sign: watch `scale`. Zero padding brings a third level into convolutions (`pad_value` 1 or -1 avoids it).

Any model of convolutions and linear layers: all become binary but the first and the last, shortcuts that reduce the
resolution, and what `keep` names; what is not binary is listed. ReLUs become Hardtanh. `binary-resnet20`, `binary-resnet18` and
`binary-vgg-small` are the paper's architectures. Training is in float32, whatever the model comes in. A later run with the
same data and seed can start from the stored stage 1: `stage1=run.model("stage1")`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_quantization.biper_report import report
from workbench_quantization.biper_run import run

Baseline = Literal["full_precision", "sign_clipped", "sign_polynomial", "biper_one_stage"]
BASELINES: tuple[Baseline, ...] = ("full_precision", "sign_clipped", "sign_polynomial", "biper_one_stage")


class Params(BaseParams):
    """Parameters; defaults are the official recipe for ResNet-18 on CIFAR-10 unless a description says otherwise."""

    omega: float = Field(
        20.0, ge=1, le=60, description="Frequency; omega times the deviation of weights best in 0.3 to 3"
    )
    epochs1: int = Field(600, ge=1, le=10_000, description="Epochs of stage 1, with real sine weights")
    epochs2: int = Field(300, ge=1, le=10_000, description="Epochs of stage 2, with binary weights")
    lr1: float = Field(0.021, gt=0, le=10, description="Peak learning rate of stage 1 and of trainings of one stage")
    lr2: float = Field(0.0037, gt=0, le=10, description="Peak learning rate of stage 2")
    wd1: float = Field(0.0016, ge=0, le=1, description="Weight decay of stage 1, on all parameters")
    wd2: float = Field(0.00016, ge=0, le=1, description="Weight decay of stage 2")
    tau1: float | tuple[float, float] = Field(
        0.037, description="Weight of the regulariser in stage 1, or where it begins and ends (ImageNet: 0.85, 0.99)"
    )
    tau2: float | tuple[float, float] = Field(0.0468, description="The same in stage 2 (ImageNet: 0)")
    reg: Literal["sin2", "cos2", "off"] = Field(
        "sin2", description="Regulariser: sin2 as in the code; cos2 pulls weights away from the crossings (ours)"
    )
    batch: int = Field(256, ge=2, le=65_536, description="Images per step")
    warmup: int = Field(4, ge=0, le=1000, description="Epochs of linear increase before the peak (the code's fifth)")
    augmentation: Literal["none", "flip", "crop", "flip_crop"] = Field(
        "flip_crop", description="Random shifts by up to 4 pixels, random mirror images"
    )
    act_bits: Literal[1, 32] = Field(1, description="1: binary inputs; 32: binary weights only, ReLUs stay (1w32a)")
    act_grad: Literal["polynomial", "clipped"] = Field(
        "polynomial", description="Surrogate of the inputs' sign: max(2 - 2|a|, 0), or 1 where |a| <= 1"
    )
    pad_value: Literal[0, 1, -1] = Field(0, description="What convolutions pad with; 0 is a third level")
    initialization: Literal["fresh", "given"] = Field(
        "fresh",
        description="fresh: new weights, latent ones from the normal distribution of He et al.; given: the model's",
    )
    keep: tuple[str, ...] = Field((), description="Names of further layers that stay in full precision")
    baselines: tuple[Baseline, ...] = Field(BASELINES, description="What is trained beside it, for as many epochs")
    baseline_rates: tuple[float, ...] = Field(
        (0.3, 1.0, 3.0, 10.0),
        min_length=1,
        description="Learning rates of the baselines, times lr1; the best on validation images of the first seed is used",
    )
    omega_sweep: tuple[float, ...] = Field(
        (), max_length=20, description="Also train with these frequencies, both stages, first seed (ours: 1, 5, 10, 40)"
    )
    seeds: int = Field(1, ge=1, le=100, description="Trainings of each kind; the first one's network is stored")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="Share of the training images to choose rates on")
    report_fraction: float = Field(0.3, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        for name in ("baselines", "baseline_rates", "omega_sweep", "keep"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name}: each at most once, got {values}")
        if any(not 0 < rate <= 1000 for rate in self.baseline_rates):
            raise ValueError(f"baseline_rates: factors in (0, 1000], got {self.baseline_rates}")
        if any(not 0 < omega <= 60 for omega in self.omega_sweep):
            raise ValueError(f"omega_sweep: frequencies in (0, 60], got {self.omega_sweep}")
        for name in ("tau1", "tau2"):
            tau = getattr(self, name)
            if any(not 0 <= value <= 1 for value in (tau if isinstance(tau, tuple) else (tau,))):
                raise ValueError(f"{name}: in 0..1, got {tau}")
        return self


def _images(description: str, optional: bool = False) -> DataRole:
    variables = {"image": ("sample", "channel", "y", "x"), "label": ("sample",)}
    return DataRole(description, variables=variables, optional=optional)


class BiPer(Method):
    """Train a binary network in two stages and the ways it competes with, judge all on held-out images, store the bits."""

    id = "quantization.biper"
    title = (
        "Trains a network with 1-bit weights and activations, and says what the bits cost beside plain binary training"
    )
    paper = Paper(
        title="BiPer: Binary Neural Networks using a Periodic Function",
        authors="Vargas, Correa, Hinojosa and Arguello",
        year=2024,
        arxiv="2404.01278",
        venue="CVPR",
        code="edmav4/BiPer (MIT)",
    )
    Params = Params
    inputs = {
        "model": ModelRole("classifier whose architecture is binarised and trained"),
        "data": _images("images to train on; shares are kept for choosing rates, and for the report without `test`"),
        "test": _images("images to report on, none of them in `data`", optional=True),
        "stage1": ModelRole("network of an earlier run after stage 1, which is then not repeated", optional=True),
    }
    outputs = (
        Output("accuracy", ("mode", "seed"), "float64", "on the report images, after the last epoch"),
        Output("correct", ("mode", "seed", "sample"), "bool", "whether the prediction is the label"),
        Output("negative_log_likelihood", ("mode", "seed"), "float64", "on the report images", unit="nat"),
        Output(
            "training_loss",
            ("mode", "seed", "epoch"),
            "float64",
            "regulariser included; NaN where not trained",
            unit="nat",
        ),
        Output("training_accuracy", ("mode", "seed", "epoch"), "float64", "mean over the epoch, of augmented images"),
        Output("validation_loss", ("mode", "seed", "epoch"), "float64", "regulariser included", unit="nat"),
        Output("validation_accuracy", ("mode", "seed", "epoch"), "float64", "on the images that choose rates"),
        Output(
            "rate_accuracy",
            ("baseline", "rate"),
            "float64",
            "validation accuracy by learning rate; NaN where training diverged",
            optional=True,
        ),
        Output("chosen_rate", ("baseline",), "float64", "learning rate used", optional=True),
        Output(
            "omega_accuracy", ("omega",), "float64", "after stage 2, on the report images, first seed", optional=True
        ),
        Output("flip_rate", ("epoch", "layer"), "float32", "share of weight bits that an epoch changed, first seed"),
        Output("scale", ("epoch", "layer"), "float32", "u = omega times mean magnitude of the weights, first seed"),
        Output(
            "quantisation_error", ("layer", "stage"), "float64", "mean sin^2 - (mean |sin|)^2 of the layer's weights"
        ),
        Output("sign_distance", ("layer", "stage"), "float64", "mean |sin - sign sin|, without a scale"),
        Output("laplace_scale", ("layer", "stage"), "float64", "b, mean magnitude of the latent weights"),
        Output("quantisation_error_curve", ("u",), "float64", "closed form for Laplace-distributed weights"),
        Output("waveform", ("wave", "weight_value"), "float64", "sign, square wave, sine and surrogate derivative"),
        Output("phase_count", ("phase",), "int64", "latent weights by omega w modulo 2 pi"),
        Output(
            "kernel", ("kernel_layer", "kernel_index", "y", "x"), "float32", "binary kernels, 1 for +1", optional=True
        ),
        Output("bits", ("layer",), "int8", "width of the weights", unit="bit"),
        Output("input_bits", ("layer",), "int8", "width of the inputs", unit="bit"),
        Output("bit", ("weight",), "int8", "weights of the stored model, +1 or -1, layer after layer"),
        Output("weight_start", ("layer",), "int64", "where a layer's weights start"),
        Output("alpha", ("layer", "channel"), "float32", "scale of each output channel; NaN beyond a layer's channels"),
        Output("latent_weight", ("weight",), "float32", "trained weights w"),
        Output("sine_weight", ("weight",), "float32", "sin(omega w)"),
        Output("parameter_count", ("layer",), "int64", "weights of the layer"),
        Output("weight_shape", ("layer",), "str", "shape of the weight"),
        Output("macs", ("layer",), "int64", "multiply-accumulates of one sample", optional=True),
        Output("unbinarised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        Output(
            "size", ("form",), "int64", "of parameters and buffers: in float32, and with packed layers", unit="byte"
        ),
        Output("logit", ("sample", "class"), "float32", "of the stored binary model on the report images"),
        Output("label", ("sample",), "int64", "labels of the report images"),
        Output("sample_index", ("sample",), "int64", "position of the report images in `test`, or in `data`"),
    )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Both stages and every baseline with every seed (see `biper_run`)."""
        run(inputs, params, out)

    def report(self, result: Result) -> Report:
        """What the bits cost, and whether the sine helped (see `biper_report`)."""
        return report(result)
