"""Says which layers of a trained classifier may go to few bits and which may not, from the curvature of its loss.

Dong, Yao, Gholami, Mahoney and Keutzer (2019), HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision.
A block whose loss is sharp (large Hessian eigenvalue for its number of weights) keeps many bits, a flat one gets few,
and blocks are fine-tuned in the order of curvature times rounding error. All three generations are here:

- V1 (`criterion="eig"`): top eigenvalue by power iteration on each diagonal block H_ii, S_i = lambda_i / n_i, and a walk
  along S_i under the budget; fine-tuning in the order Omega_i = lambda_i * ||Q(W_i) - W_i||^2;
- V2 (`criterion="trace"`, arXiv:1911.03852): average Hutchinson trace Tr(H_ii) / n_i in place of lambda_i;
- V3 (`criterion="trace"`, `allocator="program"`, arXiv:2011.10680): an integer program that minimises
  Omega = sum_i Tr(H_ii) / n_i * ||Q_b(W_i) - W_i||^2 under a budget of size, bit operations or latency.

What differs from the papers: traces are those of the Gauss-Newton part, with probes for what that leaves of the Hessian:
the expectation of Hutchinson's probes with next to none of their noise (`probe_mode`; theirs is there too). V1 chose its
cut points by hand, here a deterministic walk does (every pass lowers each layer by one step, flattest first, until the
budget holds). The program gets trace + 1 standard error, because it would exploit underestimated traces. Blocks are ranked
by |lambda|; the sign is stored. Batch norms are not folded into the weights: curvature is that of the unfolded weights with
batch norm in eval mode (folding changes lambda), and their statistics stay as they are: `quantization.adaquant` re-estimates
them for a given `table`. Activations share one width, or take that of their layer's weights (V3); V2's search over
activation widths is not offered, only its activation traces. Baselines on the same budget: random orders, the reversed
order, traces of 1, measured single-layer losses, uniform widths.

Names of the literature and of the stored arrays: lambda_i `eigenvalue` (with `eigenvalue_residual`, `_history`),
one estimate per probe `trace_probe`, Tr(H_ii) `trace` and `trace_standard_error`, n_i `parameter_count`, S_i `sensitivity`,
||Q_b(W_i) - W_i||^2 `weight_error`, Omega_i(b) `omega`, Omega(b) `omega_total`, b_i `bits` (chosen) and `solution_bits`
(all), order of fine-tuning `order`, spectrum `density` over `density_grid`, loss along the eigenvector `landscape`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_quantization.bit_table import STORED, WIDEST
from workbench_quantization.hawq_report import report
from workbench_quantization.hawq_run import run
from workbench_quantization.quantizer import FULL_PRECISION, Granularity, RangeRule

Budget = Literal["avg_bits", "size_mb", "bops", "latency_ms"]


class Params(BaseParams):
    """Parameters. Defaults are those of HAWQ-V1 for weights alone, without fine-tuning, on a CPU."""

    criterion: Literal["eig", "trace", "empirical_fisher"] = Field(
        "eig",
        description="Curvature that ranks the layers: top eigenvalue (V1), average trace (V2, V3), or the squared "
        "gradients of single samples, which need no second derivative",
    )
    allocator: Literal["auto", "walk", "program"] = Field(
        "auto",
        description="Walk along the order, or integer program; auto is the walk for eig and the program else. "
        "V1 defines an order but no objective, so eig has no program",
    )
    bits: tuple[int, ...] = Field((2, 3, 4, 8), min_length=1, description="Candidate widths (V1 2, 3, 4, 8; V3 4, 8)")
    budget: Budget = Field(
        "avg_bits",
        description="What is limited, first and last layer included: mean width of the weights, their size (10^6 bytes), "
        "bit operations of one sample; or the latency of the layers in `latency`",
    )
    budget_value: float | None = Field(
        None,
        gt=0,
        description="Limit in the budget's unit. None is 3 for avg_bits (or, where first and last layer make that "
        "impossible, a quarter of the way from the lowest to the highest width)",
    )
    budget_fraction: float | None = Field(
        None, ge=0, le=1, description="Limit as in V3: cost at the lowest width + fraction * (highest - lowest)"
    )
    latency: dict[str, tuple[float, ...]] | None = Field(
        None, description="Milliseconds of each layer (by name), one per candidate width"
    )
    first_last_bits: int | None = Field(
        8,
        ge=2,
        le=32,
        description="Width of the first and the last layer, outside the program (V3 8); None lets them in",
    )
    act_bits: int | Literal["weight"] = Field(
        32,
        description="Width of the layers' inputs (V1 4, with fine-tuning). 32 leaves them alone, because 4 bits "
        "without fine-tuning hide what the weights do; 'weight' gives them the width of the weights (V3)",
    )
    granularity: Granularity = Field("channel", description="One range per output channel (V3) or per layer (V1)")
    activation_range: RangeRule = Field(
        "extremes", description="Ranges of inputs: minimum and maximum, or 0.1 and 99.9 %"
    )
    blocks: tuple[tuple[str, ...], ...] = Field((), description="Layers to measure as one block with one width")
    ties: tuple[tuple[str, ...], ...] = Field(
        (), description="Layers that must share a width, such as those that read the same tensor (V3)"
    )
    hess_samples: int = Field(
        256,
        ge=2,
        le=100_000,
        description="Calibration images for curvature and losses (V2 512; half of it spares a CPU)",
    )
    hess_batch: int = Field(128, ge=1, le=4096, description="Images per forward pass of a Hessian-vector product")
    keep_graph: bool | None = Field(
        None,
        description="Keep the first derivative's graph between products: faster, more memory. None: for small data",
    )
    eigenvalues: int = Field(1, ge=1, le=20, description="Eigenvalues per layer")
    power_iterations: int = Field(
        20, ge=2, le=1000, description="Power iterations per eigenvalue at most (PyHessian 100)"
    )
    power_tolerance: float = Field(1e-2, gt=0, lt=1, description="Relative change that ends them (PyHessian 1e-3)")
    probes: int = Field(
        200, ge=2, le=10_000, description="Hutchinson probes at most (V2 50; joint probes are noisier and cheaper)"
    )
    trace_tolerance: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="Stop probing when every layer's relative standard error is below; 0 uses all probes",
    )
    probe_mode: Literal["gauss_newton", "joint", "per_layer"] = Field(
        "gauss_newton",
        description="Squared gradients of all classes, and probes of the rest alone, which is nothing in networks of ReLU and "
        "batch norm; or Hutchinson as published, with one product for all layers (adds variance, not bias) or one per layer",
    )
    mean_plus_error: bool = Field(
        True,
        description="Give the program trace + 1 standard error, so that it cannot bet on "
        "noise; negative traces count as 0 there either way",
    )
    activation_trace: bool = Field(False, description="Also estimate traces for the layers' outputs (V2)")
    landscape_points: int = Field(11, ge=0, le=201, description="Points along each top eigenvector; 0: no landscapes")
    landscape_radius: float = Field(0.5, gt=0, description="Largest displacement along the unit eigenvector")
    spectrum: bool = Field(False, description="Also estimate the eigenvalue density of every layer")
    lanczos_steps: int = Field(
        100, ge=2, le=1000, description="Products per start vector of the density (PyHessian 100)"
    )
    lanczos_starts: int = Field(1, ge=1, le=100, description="Start vectors of the density (PyHessian 1)")
    grid_points: int = Field(10_000, ge=10, le=100_000, description="Points of the density (PyHessian 10000)")
    random_orders: int = Field(20, ge=0, le=1000, description="Random orders to compare with")
    sweep: int = Field(6, ge=0, le=50, description="Further budgets for the size-accuracy curve")
    finetune: Literal["none", "joint", "sequential"] = Field(
        "none",
        description="Quantisation-aware fine-tuning of the chosen solution: all layers at once, or one after the "
        "other in the order of Omega (V1). None is the default because it takes no training",
    )
    finetune_order: Literal["omega", "reversed"] = Field("omega", description="Reversed is the paper's ablation")
    finetune_uniform: bool = Field(
        True, description="Fine-tune the uniform solution of the same budget too, to compare"
    )
    epochs: int = Field(5, ge=1, le=1000, description="Epochs, per stage if sequential (V3 code 90)")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="SGD (V3 code 1e-4)")
    momentum: float = Field(0.9, ge=0, lt=1, description="V3 code 0.9")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="V3 code 1e-4")
    batch_size: int = Field(128, ge=1, le=4096, description="V3 code 128")
    distillation: float = Field(
        0.0, ge=0, le=1, description="Share of the full-precision model in the loss (V3 0 or 0.95)"
    )
    temperature: float = Field(6.0, gt=0, le=100, description="Of the distillation (V3 code 6)")
    report_fraction: float = Field(0.5, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if any(not 2 <= width <= 16 for width in self.bits) or list(self.bits) != sorted(set(self.bits)):
            raise ValueError(f"bits: widths from 2 to 16 in ascending order, got {self.bits}")
        if self.act_bits != "weight" and not 2 <= self.act_bits <= 32:
            raise ValueError(f"act_bits: 2 to 32 or 'weight', got {self.act_bits}")
        if self.first_last_bits is not None and WIDEST < self.first_last_bits < FULL_PRECISION:
            raise ValueError(f"first_last_bits: 2 to {WIDEST}, or 32, got {self.first_last_bits}")
        if self.criterion == "eig" and self.allocator == "program":
            raise ValueError("allocator: eig defines an order but no objective; take criterion='trace' for the program")
        if self.budget_value is not None and self.budget_fraction is not None:
            raise ValueError("budget_value and budget_fraction: give one of them")
        if self.budget != "avg_bits" and self.budget_value is None and self.budget_fraction is None:
            raise ValueError(f"budget_value or budget_fraction: needed for budget {self.budget!r}")
        if (self.budget == "latency_ms") != (self.latency is not None):
            raise ValueError("latency: a table is needed for budget 'latency_ms', and only there")
        return self

    @property
    def allocation(self) -> Literal["walk", "program"]:
        """The allocator, decided."""
        if self.allocator != "auto":
            return self.allocator
        return "walk" if self.criterion == "eig" else "program"

    @property
    def activation_bits(self) -> int | None:
        """Width of inputs; None for that of the weights."""
        return None if self.act_bits == "weight" else self.act_bits

    def displacements(self) -> np.ndarray:
        """Positions along an eigenvector."""
        return np.linspace(-self.landscape_radius, self.landscape_radius, self.landscape_points)


def _array(name: str, dims: tuple[str, ...], dtype: str, description: str, **more: Any) -> Output:
    return Output(name, dims, dtype, description, **more)


class Hawq(Method):
    """Measure curvature per layer, allocate bits under the budget, compare with baselines, fine-tune if asked."""

    id = "quantization.hawq"
    title = "Which layers may go to 4 or 2 bits, judged by the curvature of the loss"
    version = "4"
    paper = Paper(
        title="HAWQ: Hessian AWare Quantization of Neural Networks with Mixed-Precision",
        authors="Dong, Yao, Gholami, Mahoney and Keutzer",
        year=2019,
        arxiv="1905.03696",
        venue="ICCV 2019",
        code="Zhen-Dong/HAWQ (MIT), amirgholami/PyHessian (MIT)",
    )
    Params = Params
    inputs = {
        "model": ModelRole("trained classifier to quantise"),
        "data": DataRole(
            "images to calibrate (and fine-tune) on; a share is kept for the report when role `test` is left out",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
        ),
        "test": DataRole(
            "images to report accuracies on, none of them in `data`",
            variables={"image": ("sample", "channel", "y", "x"), "label": ("sample",)},
            optional=True,
        ),
    }
    outputs = (
        _array("parameter_count", ("layer",), "int64", "weights of the layer (n_i)"),
        _array("weight_shape", ("layer",), "str", "shape of the weight"),
        _array("macs", ("layer",), "int64", "multiply-accumulates of one sample"),
        _array("fixed", ("layer",), "bool", "first and last layer, whose width is given"),
        _array("eigenvalue", ("layer", "rank"), "float64", "largest |eigenvalue| of the layer's Hessian block, signed"),
        _array("eigenvalue_residual", ("layer", "rank"), "float64", "||H v - lambda v|| / |lambda|"),
        _array("eigenvalue_converged", ("layer", "rank"), "bool", "whether the tolerance was met"),
        _array("eigenvalue_history", ("layer", "iteration"), "float64", "Rayleigh quotients of the first eigenvalue"),
        _array("trace", ("layer",), "float64", "estimate of Tr(H_ii), as `probe_mode` says"),
        _array("trace_standard_error", ("layer",), "float64", "its standard error"),
        _array("trace_probe", ("layer", "probe"), "float64", "one estimate of Tr(H_ii) per probe"),
        _array("average_trace", ("layer",), "float64", "Tr(H_ii) / n_i"),
        _array("average_trace_error", ("layer",), "float64", "standard error of Tr(H_ii) / n_i"),
        _array("fisher_trace", ("layer",), "float64", "mean squared gradient norm of single samples", optional=True),
        _array("fisher_standard_error", ("layer",), "float64", "its standard error", optional=True),
        _array("activation_trace", ("layer",), "float64", "trace for the layer's output, per sample", optional=True),
        _array("activation_trace_standard_error", ("layer",), "float64", "its standard error", optional=True),
        _array("sensitivity", ("layer",), "float64", "curvature of the criterion per weight (S_i)"),
        _array("weight_error", ("layer", "bit"), "float64", "||Q_b(W_i) - W_i||^2"),
        _array(
            "omega", ("layer", "bit"), "float64", "average trace (or Fisher) * weight_error, without the error margin"
        ),
        _array(
            "loss_increase", ("layer", "bit"), "float64", "rise of the calibration loss with this layer alone quantised"
        ),
        _array("input_range", ("layer", "bound"), "float32", "lowest and highest input", optional=True),
        _array("order", ("layer",), "int16", "place in the fine-tuning order, 1 first"),
        _array("order_omega", ("layer",), "float64", "Omega_i that decides the order"),
        _array("solution_bits", ("solution", "layer"), "int8", "widths of every solution", unit="bit"),
        _array(
            "solution_kind",
            ("solution",),
            "str",
            "chosen, other, reversed, random, uniform, magnitude, measured, sweep",
        ),
        _array("within_budget", ("solution",), "bool", "whether the solution was made to hold the budget"),
        _array("average_bits", ("solution",), "float64", "mean width of all quantised weights", unit="bit"),
        _array("size_mb", ("solution",), "float64", "size of the quantised weights", unit="MB"),
        _array("bops", ("solution",), "float64", "bit operations of one sample"),
        _array("cost", ("solution",), "float64", "cost in the unit of the budget"),
        _array("omega_total", ("solution",), "float64", "sum of omega over the layers that are not fixed"),
        _array("pareto", ("solution",), "bool", "no solution is both smaller and of smaller omega_total"),
        _array("accuracy", ("solution",), "float64", "on the report images, before any fine-tuning"),
        _array("negative_log_likelihood", ("solution",), "float64", "on the report images, before any fine-tuning"),
        _array("accuracy_uniform", ("bit",), "float64", "with one width for all layers that are not fixed"),
        _array("accuracy_full_precision", (), "float64", "of the model as it came, on the report images"),
        _array("accuracy_calibration", (), "float64", "of the model as it came, on the calibration images"),
        _array("budget_limit", (), "float64", "what a solution may cost, in the unit of the budget"),
        _array("other_parameter_count", (), "int64", "parameters that stay in full precision (biases, norms, ...)"),
        _array("hessian_products", (), "int64", "Hessian-vector products made, without squared gradients"),
        _array(
            "finetuned_accuracy",
            ("finetuned_solution",),
            "float64",
            "on the report images, after fine-tuning",
            optional=True,
        ),
        _array("accuracy_before", ("finetuned_solution",), "float64", "before fine-tuning", optional=True),
        _array("landscape", ("layer", "epsilon"), "float64", "loss along the top eigenvector", optional=True),
        _array(
            "landscape_plane",
            ("epsilon", "epsilon_2"),
            "float64",
            "loss of the sharpest layer along its top two eigenvectors",
            optional=True,
        ),
        _array("density", ("layer", "grid"), "float64", "eigenvalue density", optional=True),
        _array("density_grid", ("layer", "grid"), "float64", "eigenvalues at which it is given", optional=True),
        _array("unquantised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        *STORED,
    )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Curvature, widths, accuracies, fine-tuning (see `hawq_run`)."""
        run(inputs, params, out)

    def report(self, result: Result) -> Report:
        """Curvature by depth, staircase of bits, size against Omega and accuracy, baselines (see `hawq_report`)."""
        return report(result)
