"""How many layers may go to fewer bits before accuracy leaves a band you set, counting how layers' errors interact.

Schaefer, Lambert-Shirzad, Zhang, Chou, Jablin, Li, Guo, Stanton, Joshi and Wang (2023), Augmenting Hessians with
Inter-Layer Dependencies for Mixed-Precision Post-Training Quantization. Layers are ordered by a curvature term plus
how their rounding errors interact with those of other layers; bisection along the order finds how many may take the next
lower width while the accuracy on a search set stays above `target` times that of the full-precision model.

The paper's equations were not accessible. What is a reconstruction here (and marked so in the report): the interaction

    J_ij = L({i,j}) - L({i}) - L({j}) + L({})     (differences), or     dW_i' H_ij dW_j     (Hessian-vector products),

L(S) the calibration loss with the layers in S at the low width, as in CLADO (arXiv:2307.05657), and the score

    s_i = h_i + (lambda / 2) sum_j J_ij,      h_i = Tr(H_ii) / (2 n_i) * ||Q_b(W_i) - W_i||^2,

layer i's Shapley value in the damage D(S) = sum_i h_i + sum_{i<j} J_ij. Where the input of a layer goes down with its weights,
h_i also has half the squared gradient by that input times its squared rounding error; Hessian-vector products see the weights
alone. h is put on the scale of the measured single-layer damages by least squares, so that both terms add up. Search and orders
follow the abstract and the same group's arXiv:2302.01382; its tuning of scales is left out, and ranges of inputs are those of
the full-precision model throughout, where the search as described calibrates anew at each step. From 16 bits on a layer stays
as it is.

Baselines on the same search: curvature alone, measured single-layer losses, rounding errors, random orders; the augmented order
walked one layer at a time instead of halved; and the subset of least D at the augmented solution's cost by integer programming,
which shows what an order costs.

Whether pairs help is a matter of enough images: J_ij is a difference of four losses. On ResNet-20 for CIFAR-10 at 4 bits (a range
per layer) they raise the rank correlation with the damage of random subsets on the images that they were measured on (64 images,
three draws: by 0.087). On other images nothing is shown with 64, where next to none of the interactions is beyond two standard
errors; with 200 the error is halved (one draw). Read the figures "on other images" of the report, and `interactions_told`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_quantization.bit_table import STORED
from workbench_quantization.interlayer_report import report
from workbench_quantization.interlayer_run import run
from workbench_quantization.interlayer_scores import PairMode
from workbench_quantization.quantizer import Granularity, RangeRule


class Params(BaseParams):
    """Parameters of an inter-layer run."""

    widths: tuple[int, ...] = Field(
        (16, 8, 4), min_length=2, description="Widths, highest first; 16 leaves a layer alone"
    )
    targets: tuple[float, ...] = Field(
        (0.99,), min_length=1, description="Shares of the full-precision accuracy to keep, each 0.5 to 1"
    )
    estimator: Literal["auto", "differences", "products"] = Field(
        "auto",
        description="Interactions from losses of all pairs, or from one Hessian-vector product a layer; auto: pairs up to "
        "30 layers. The products are stored in any case",
    )
    interaction_weight: float = Field(1.0, ge=0, le=2, description="lambda, the weight of interactions in the score")
    pair_mode: PairMode = Field(
        "signed", description="Interactions with sign, by magnitude, or the order built layer by layer"
    )
    fit_scale: bool = Field(True, description="Put curvature on the scale of measured single-layer damages")
    probes: int = Field(100, ge=2, le=10_000, description="Random vectors for the traces")
    calibration_samples: int = Field(
        256, ge=2, le=100_000, description="Images for losses, curvature and ranges; at most half"
    )
    search_samples: int = Field(
        1_000, ge=10, le=1_000_000, description="Images that decide the search, none of the others"
    )
    batch: int = Field(128, ge=1, le=4096, description="Images per pass through the calibration images")
    act_bits: int | Literal["weight"] = Field(
        "weight", description="Width of the layers' inputs: that of the weights, or one for all; 32 leaves them alone"
    )
    granularity: Granularity = Field("channel", description="One weight range per output channel or per layer")
    activation_range: RangeRule = Field(
        "extremes", description="Ranges of inputs: minimum and maximum, or 0.1 and 99.9 %"
    )
    cost: Literal["latency", "bops", "size"] = Field(
        "latency",
        description="What is saved: time (of `latency`, else of a roofline), bit operations, or bytes of weights",
    )
    latency: dict[str, tuple[float, ...]] | None = Field(
        None, description="Measured time of each layer (by name), one per width in the order of `widths`, in any unit"
    )
    intensity: float = Field(
        100.0,
        gt=0,
        description="Multiply-accumulates at 16 bit that take as long as moving one byte (about 100 on a data-centre GPU)",
    )
    first_last: Literal["searched", "highest"] = Field(
        "searched",
        description="First and last layer: lowered where their scores allow it, or kept at the highest width",
    )
    random_orders: int = Field(10, ge=1, le=1_000, description="Random orders to compare with")
    subsets: int = Field(40, ge=4, le=10_000, description="Random subsets of layers that test additivity")
    report_fraction: float = Field(0.3, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if any(not 2 <= width <= 16 for width in self.widths) or list(self.widths) != sorted(set(self.widths))[::-1]:
            raise ValueError(f"widths: from 16 to 2 in descending order, got {self.widths}")
        if any(not 0.5 <= target <= 1 for target in self.targets) or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets: different shares from 0.5 to 1, got {self.targets}")
        if self.act_bits != "weight" and not 2 <= self.act_bits <= 32:
            raise ValueError(f"act_bits: 2 to 32 or 'weight', got {self.act_bits}")
        if self.latency is not None and self.cost != "latency":
            raise ValueError(f"latency: a table counts only where cost is 'latency', got cost {self.cost!r}")
        return self


def _array(name: str, dims: tuple[str, ...], dtype: str, description: str, **more: Any) -> Output:
    return Output(name, dims, dtype, description, **more)


class Interlayer(Method):
    """Order layers by curvature and interactions, bisect along the orders, judge and store."""

    id = "quantization.interlayer"
    title = "How many layers may go to fewer bits at a guaranteed accuracy, counting how their errors interact"
    version = "2"
    paper = Paper(
        title="Augmenting Hessians with Inter-Layer Dependencies for Mixed-Precision Post-Training Quantization",
        authors="Schaefer, Lambert-Shirzad, Zhang, Chou, Jablin, Li, Guo, Stanton, Joshi, Wang",
        year=2023,
        arxiv="2306.04879",
    )
    Params = Params
    inputs = {
        "model": ModelRole("trained classifier to quantise"),
        "data": DataRole(
            "images to calibrate on and to search with; a share is kept for the report when `test` is left out",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
        ),
        "test": DataRole(
            "images to report on, none of them in `data`",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
    }
    outputs = (
        _array("parameter_count", ("layer",), "int64", "weights of the layer (n_i)"),
        _array("macs", ("layer",), "int64", "multiply-accumulates of one sample"),
        _array("layer_cost", ("layer", "width"), "float64", "cost over that of all layers at the highest width"),
        _array("input_range", ("layer", "bound"), "float32", "lowest and highest input seen", optional=True),
        _array("unquantised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        _array("base_loss", (), "float64", "calibration loss with every layer at the highest width"),
        _array("trace", ("layer",), "float64", "Hutchinson estimate of Tr(H_ii)"),
        _array("trace_standard_error", ("layer",), "float64", "its standard error"),
        _array("weight_error", ("layer", "bit"), "float64", "||Q_b(W_i) - W_i||^2"),
        _array("input_gradient", ("layer",), "float64", "squared norm of the gradient of an image's loss by the layer's input, "
               "mean over images", optional=True),
        _array("input_error", ("layer", "bit"), "float64", "mean squared rounding error of an entry of the input", optional=True),
        _array("hessian_sensitivity", ("layer", "bit"), "float64", "h_i before scaling"),
        _array("hessian_scale", ("bit",), "float64", "least-squares factor from h_i to single-layer damages"),
        _array("layer_curvature", ("layer", "bit"), "float64", "h_i as it enters the score"),
        _array("loss_single", ("layer", "bit"), "float64", "rise of the loss with this layer alone at the width"),
        _array("curved_single", ("layer", "bit"), "float64", "dW_i' H_ii dW_i / 2"),
        _array("interaction", ("layer", "layer_2", "bit"), "float64", "J_ij of the estimator in use"),
        _array("interaction_error", ("layer", "layer_2", "bit"), "float64", "standard error of J_ij over images, where it is "
               "measured by differences", optional=True),
        _array("pair_products", ("pair", "bit"), "float64", "J of pairs of layers that are lowered, by Hessian-vector products, "
               "where differences are measured too", optional=True),
        _array("pair_differences", ("pair", "bit"), "float64", "the same by differences of losses", optional=True),
        _array("interaction_products", ("layer", "layer_2", "bit"), "float64", "J_ij by Hessian-vector products"),
        _array("layer_score", ("layer", "bit"), "float64", "s_i, the Shapley value (or with |J_ij|)"),
        _array("order", ("order_name", "bit", "layer"), "int16", "positions of layers, least sensitive first"),
        _array("place", ("order_name", "bit", "layer"), "int16", "place of each layer in the order, 1 is lowered first"),
        _array("damage_all", ("bit",), "float64", "rise of the loss with all layers at the width, but those that stay"),
        _array("subset_layer", ("subset", "layer"), "bool", "random subsets of layers at the lowest width"),
        _array("subset_damage", ("subset",), "float64", "rise of the loss, measured on the calibration images"),
        _array("subset_damage_elsewhere", ("subset",), "float64", "the same on search images, whose noise no prediction shares",
               optional=True),
        _array(
            "subset_prediction", ("damage_model", "subset"), "float64", "as sums of measured singles, and with pairs"
        ),
        _array("search_accuracy_full_precision", (), "float64", "of the model as it came, on the search images"),
        _array("search_accuracy_highest", (), "float64", "of the model with every layer at the highest width, there"),
        _array("search_samples", (), "int64", "number of search images"),
        _array("evaluations", ("order_name", "target"), "int64", "accuracies measured by the search"),
        _array("step_order", ("step",), "int16", "position of the order that a search step belongs to"),
        _array("step_target", ("step",), "int16", "position of its target"),
        _array("step_width", ("step",), "int8", "width it gave", unit="bit"),
        _array("step_tried", ("step",), "int16", "number of layers it gave the width to"),
        _array("step_accuracy", ("step",), "float64", "on the search images"),
        _array("step_passed", ("step",), "bool", "whether the accuracy was high enough"),
        _array("solution_bits", ("solution", "target", "layer"), "int8", "widths of every solution", unit="bit"),
        _array(
            "subset_proven", ("target",), "bool", "whether `exact pairs` is proven to be the best subset", optional=True
        ),
        _array("accuracy", ("solution", "target"), "float64", "on the report images"),
        _array("negative_log_likelihood", ("solution", "target"), "float64", "on the report images"),
        _array("cost", ("solution", "target"), "float64", "over that of all layers at the highest width"),
        _array("accuracy_full_precision", (), "float64", "of the model as it came, on the report images"),
        *STORED,
    )  # fmt: skip

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Measure, order, search, judge, store (see `interlayer_run`)."""
        run(inputs, params, out)

    def report(self, result: Result) -> Report:
        """Interactions, scores, additivity, searches and solutions (see `interlayer_report`)."""
        return report(result)
