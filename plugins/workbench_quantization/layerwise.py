"""Which transformer blocks of a language model may go to fewer bits, judged by one pass over a text, or by the weights alone.

Dumitru, Yadav, Maheshwary, Clotan, Madhusudhan and Surdeanu (2024), Layer-Wise Quantization: A Pragmatic and Effective Method
for Quantizing LLMs Beyond Integer Bit-Levels. Blocks are ordered by a score; the important ones keep the high width, the
others go to the low one, so that any average width in between can be had from any quantiser. Two scores:

    LIM_i = - cos(h_in, h_out), mean over tokens: how much a block turns the residual stream. High = important.
    ZD_i  = share of a block's weights with z = (w - mean) / std above 1. Low = important. Needs no data.

Scores come from the model as it came; nothing is scored again after quantisation. Only matrices inside the blocks are
quantised: embeddings, norms and the head stay, also where the head is tied to the embedding. Quantisers: rounding to nearest
on an asymmetric grid, and GPTQ with inputs from the blocks before, already quantised (see `gptq_solver`). Not offered:
quantisers of one's own, and vision transformers, which have blocks too but are judged otherwise.

What to know: the equations were taken from the abstract, summaries and independent implementations, not from the paper's text.
They do not agree whether z is one-sided, as taken here, or |z|: that is an option. The paper calibrates on books
and judges by tasks as well; here text is what you give, and a model is judged by perplexity (windows without overlap, no cache),
next-token accuracy and divergence from the full-precision model. `measured` is the oracle: the rise of the calibration loss
with one block alone at the low width. Sizes count scales (32 bits) and zero-points. That a score orders blocks better than chance
is the paper's finding on large models. On a small one (GPT of 8 blocks trained here on source code, 4 and 2 bits, one seed) LIM
is better than 10 of 10 random orders; ZD is worse than their mean, and its reverse as good as LIM. The first block alone makes
the difference there, so that "last to first" does as well as LIM. Hence every run is measured beside random orders.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator
from workbench import DataRole, Inputs, Method, ModelRole, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams

from workbench_quantization.affine_weights import WIDEST
from workbench_quantization.layerwise_report import report
from workbench_quantization.layerwise_run import run

Score = Literal["lim", "zd", "measured"]
Order = Literal["lim", "zd", "measured", "reversed lim", "reversed zd", "first to last", "last to first"]


class Params(BaseParams):
    """Parameters of a layer-wise run."""

    widths: tuple[int, ...] = Field((4, 2), min_length=2, description="Widths, highest first: (high, low) or a ladder")
    score: Score = Field("lim", description="Order of the model that is stored")
    average_bits: float | None = Field(
        None, description="Average width of the stored model (scales apart); None is half-way between the extremes"
    )
    orders: tuple[Order, ...] = Field(
        ("lim", "zd", "measured", "reversed lim", "first to last", "last to first"),
        min_length=1,
        description="Orders to compare",
    )
    random_orders: int = Field(5, ge=2, le=1_000, description="Random orders to compare with")
    points: tuple[int, ...] | None = Field(
        None,
        description="Steps down to measure between none and all (one step lowers one block); None measures every one",
    )
    blocks: tuple[str, ...] = Field(
        (),
        description="Names of the residual blocks, or of the one list that holds them; empty finds those of decoders",
    )
    backend: Literal["rtn", "gptq"] = Field("rtn", description="Rounding to nearest, or GPTQ on the calibration text")
    sharing: Literal["channel", "group"] = Field("group", description="One scale per output channel or group of inputs")
    group_size: int = Field(128, ge=2, le=65_536, description="Inputs of a group")
    damping: float = Field(0.01, gt=0, le=1, description="GPTQ: share of the mean diagonal of H added to it")
    by_activation: bool = Field(False, description="GPTQ: columns with large inputs first")
    calibration_tokens: int = Field(
        4096,
        ge=16,
        le=10_000_000,
        description="Tokens for LIM, GPTQ and single-block losses (paper, as quoted: about 100,000)",
    )
    skip_first_token: bool = Field(False, description="Leave the first token of a window, often an outlier, out of LIM")
    zd_threshold: float = Field(1.0, ge=0.5, le=3.0, description="z above which a weight counts")
    zd_sided: Literal["one", "two"] = Field("one", description="Count z above the threshold, or |z|")
    divergence_tokens: int = Field(
        2048, ge=0, le=100_000, description="Tokens for the divergence of logits; 0 skips it"
    )
    batch: int = Field(8, ge=1, le=4096, description="Windows per pass")
    report_fraction: float = Field(0.2, gt=0, lt=1, description="Share of `data` to report on when there is no `test`")

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if (
            any(not 2 <= width <= WIDEST for width in self.widths)
            or list(self.widths) != sorted(set(self.widths))[::-1]
        ):
            raise ValueError(f"widths: from {WIDEST} to 2 in descending order, got {self.widths}")
        if len(set(self.orders)) != len(self.orders) or self.score not in self.orders:
            raise ValueError(f"orders: each once, {self.score!r} (score) among them, got {self.orders}")
        if self.average_bits is not None and not self.widths[-1] <= self.average_bits <= self.widths[0]:
            raise ValueError(f"average_bits: {self.widths[-1]} to {self.widths[0]}, got {self.average_bits}")
        if self.points is not None and (
            list(self.points) != sorted(set(self.points)) or min(self.points, default=0) < 0
        ):
            raise ValueError(f"points: numbers of steps in ascending order, got {self.points}")
        return self


def _array(name: str, dims: tuple[str, ...], dtype: str, description: str, **more: Any) -> Output:
    return Output(name, dims, dtype, description, **more)


WALK = ("order_name", "point")
"""Dims of what is measured at every point of every order."""


class Layerwise(Method):
    """Score blocks, lower them along every order, measure perplexity, store one model."""

    id = "quantization.layerwise"
    title = "Which transformer blocks of a language model may go to fewer bits, from one pass over a text or none"
    paper = Paper(
        title="Layer-Wise Quantization: A Pragmatic and Effective Method for Quantizing LLMs Beyond Integer Bit-Levels",
        authors="Dumitru, Yadav, Maheshwary, Clotan, Madhusudhan, Surdeanu",
        year=2024,
        arxiv="2406.17415",
        code="RazvanDu/LayerwiseQuant",
    )
    Params = Params
    inputs = {
        "model": ModelRole("language model to quantise", task="language"),
        "data": DataRole(
            "text to calibrate on, in windows; its end is kept for the report when `test` is left out",
            variables={"token_id": ("sample", "token")},
        ),
        "test": DataRole(
            "text to report on, none of it in `data`", variables={"token_id": ("sample", "token")}, optional=True
        ),
        "bits": DataRole(
            "width of every layer, found by another run, to be judged and stored",
            variables={"bits": ("layer",)},
            optional=True,
        ),
    }
    outputs = (
        _array("parameter_count", ("layer",), "int64", "weights of the layer"),
        _array("block_of_layer", ("layer",), "int16", "position of the residual block that has the layer"),
        _array("block_parameter_count", ("block",), "int64", "weights of the block's matrices"),
        _array("unquantised_reason", ("parameter",), "str", "why a weight stays in full precision", optional=True),
        _array("lim", ("block",), "float64", "layer input modification, high = important"),
        _array("lim_standard_error", ("block",), "float64", "over windows of text"),
        _array("lim_token", ("block", "bin"), "int64", "tokens by the cosine of the stream before and after the block"),
        _array("zd", ("block",), "float64", "z-score distribution, low = important"),
        _array("zd_mean_of_matrices", ("block",), "float64", "mean over matrices, each with its own z-scores"),
        _array("zd_matrix", ("block", "matrix"), "float64", "of one matrix; NaN where a block has none of that name"),
        _array("weight_z_hist", ("block", "z_bin"), "float64", "share of the block's weights by z; the ends are open"),
        _array(
            "damage", ("block",), "float64", "rise of the calibration loss with the block alone at the lowest width"
        ),
        _array("order", ("order_name", "block"), "int16", "positions of blocks, least important first"),
        _array("block_bits", (*WALK, "block"), "int8", "widths", unit="bit"),
        _array("average_bits_blocks", WALK, "float64", "mean width of the blocks", unit="bit"),
        _array("average_bits", WALK, "float64", "size of matrices and scales, per weight", unit="bit"),
        _array("size_mb", WALK, "float64", "of the blocks' matrices and their scales", unit="MB"),
        _array(
            "loss", (*WALK, "sample"), "float64", "mean negative log-likelihood of a window's next tokens", unit="nat"
        ),
        _array("perplexity", WALK, "float64", "on the report text"),
        _array("accuracy", WALK, "float64", "share of next tokens that are the most probable one"),
        _array("logit_kl", WALK, "float64", "divergence from full precision, per token", unit="nat", optional=True),
        _array(
            "perplexity_curve", ("curve", "point"), "float64", "perplexity of the named orders and of the random ones"
        ),
        _array(
            "perplexity_pruned", ("cut",), "float64", "with so many blocks cut out, the others at the highest width"
        ),
        _array("size_mb_pruned", ("cut",), "float64", "of the matrices that are left", unit="MB"),
        _array("perplexity_uniform", ("width",), "float64", "with all blocks at one width"),
        _array("loss_full_precision", ("sample",), "float64", "of the model as it came", unit="nat"),
        _array("perplexity_full_precision", (), "float64", "of the model as it came"),
        _array("accuracy_full_precision", (), "float64", "of the model as it came"),
        _array("kept_mb", (), "float64", "everything else, as it came: embeddings, norms, biases, head", unit="MB"),
        _array("loss_stored", ("sample",), "float64", "of the stored model", unit="nat"),
        _array("perplexity_stored", (), "float64", "of the stored model"),
        _array("accuracy_stored", (), "float64", "of the stored model"),
        _array(
            "damping_stored",
            ("layer",),
            "float64",
            "GPTQ: share of the mean diagonal of H that was added to it; more than asked for where H was singular",
            optional=True,
        ),
        _array("average_bits_stored", (), "float64", "of the stored model: size per weight, with scales", unit="bit"),
        _array("size_mb_stored", (), "float64", "of its matrices and scales", unit="MB"),
        _array("sample_index", ("sample",), "int64", "position of the report windows in `test`, or in `data`"),
        _array("bits", ("layer",), "int8", "widths of the stored model", unit="bit"),
        _array("input_bits", ("layer",), "int8", "widths of the layers' inputs: 32, they are left alone", unit="bit"),
        _array("integer_weight", ("weight",), "uint8", "integers of the stored model, layer after layer"),
        _array("weight_start", ("layer",), "int64", "where a layer's integers start"),
        _array("scale", ("range",), "float32", "scales of the stored model, layer after layer"),
        _array("zero", ("range",), "uint8", "integers that stand for 0"),
        _array("range_start", ("layer",), "int64", "where a layer's scales and zeros start"),
    )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Score, order, walk along every order, judge and store (see `layerwise_run`)."""
        run(inputs, params, out)

    def report(self, result: Result) -> Report:
        """Scores, curves, knee and areas (see `layerwise_report`)."""
        return report(result)
