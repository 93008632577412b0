"""What every run of the family reached: tables of widths and their accuracy, method by method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from workbench import Run

from workbench_quantization.quantizer import FULL_PRECISION

ROUNDING = "rounding, one width"
GIVEN = "rounding, found widths"
RANDOM = "random widths"
RIVALS = {"random": RANDOM, "uniform": ROUNDING, "reversed": "reversed order"}
"""Series of what methods are compared with, by the kind of HAWQ's solutions."""


@dataclass(frozen=True)
class Reached:
    """What one table of widths reached in one run.

    Attributes:
        series: what is drawn in one colour: a method, or what the methods are compared with.
        solution: name of the table within the run; tables of one name are drawn as one point, at their mean.
        bits: width of every layer, (layer,).
        accuracy: on the report images.
        input_bits: width of every layer's input, (layer,); None where `act_bits` of the run says it.
        given: whether the table of widths came from another run.
    """

    series: str
    solution: str
    bits: np.ndarray
    accuracy: float
    input_bits: np.ndarray | None = None
    given: bool = False


def _one_width(count: int, width: int, fixed: int | None) -> np.ndarray:
    bits = np.full(count, width)
    if fixed is not None:
        bits[[0, -1]] = fixed
    return bits


def _uniform(run: Run) -> Iterator[Reached]:
    params, accuracy = run.record.params, run["accuracy"].values
    for row, sharing in enumerate(params["sharings"]):
        for column, width in enumerate(params["widths"]):
            bits = _one_width(run["parameter_count"].size, width, params["first_last_bits"])
            yield Reached(ROUNDING, f"{width} bit, range per {sharing}", bits, float(accuracy[row, column]))
    if "accuracy_given" in run:
        given, bits = run["accuracy_given"].values, run["bits"].values
        for row, sharing in enumerate(params["sharings"]):
            yield Reached(GIVEN, f"range per {sharing}", bits, float(given[row]), given=True)


def _gptq(run: Run) -> Iterator[Reached]:
    params, accuracy = run.record.params, run["accuracy"].values
    count = run["parameter_count"].size
    untouched = np.full(count, FULL_PRECISION)
    for row, series in enumerate((ROUNDING, "gptq")):
        for column, width in enumerate(params["widths"]):
            bits = _one_width(count, width, params["first_last_bits"])
            solution = f"{width} bit" if row else f"{width} bit, nearest"
            yield Reached(series, solution, bits, float(accuracy[row, column]), untouched)
        if "accuracy_given" in run:
            solution = "gptq" if row else "nearest"
            series = series if row else GIVEN
            yield Reached(
                series, solution, run["bits"].values, float(run["accuracy_given"].values[row]), untouched, given=True
            )


def _hawq(run: Run) -> Iterator[Reached]:
    accuracy = run["accuracy"].to_series()
    tables = dict(zip(accuracy.index, run["solution_bits"].values, strict=True))
    for kind, (name, reached) in zip(run["solution_kind"].values, accuracy.items(), strict=True):
        series = "hawq" if kind in ("chosen", "other", "sweep") else RIVALS.get(str(kind), "baselines")
        yield Reached(series, "random orders" if series == RANDOM else str(name), tables[name], float(reached))
    if "finetuned_accuracy" in run:
        for name, reached in run["finetuned_accuracy"].to_series().items():
            yield Reached("hawq, fine-tuned", f"{name}, fine-tuned", tables[name], float(reached))


def _adaquant(run: Run) -> Iterator[Reached]:
    accuracy, tables = run["accuracy"].load(), run["solution_bits"].values
    for row, (kind, name) in enumerate(zip(run["solution_kind"].values, accuracy["solution"].values, strict=True)):
        given = kind == "given"
        solution = "repaired" if given else str(name)
        yield Reached("adaquant", solution, tables[row], float(accuracy[row, -1]), given=given)
        if kind == "uniform":
            yield Reached(ROUNDING, f"{name}, before repair", tables[row], float(accuracy[row, 0]))


def _interlayer(run: Run) -> Iterator[Reached]:
    accuracy, tables = run["accuracy"].load(), run["solution_bits"].values
    for row, name in enumerate(map(str, accuracy["solution"].values)):
        series = RANDOM if name.startswith("random") else "interlayer" if row == 0 else "interlayer, other orders"
        for column, target in enumerate(accuracy["target"].values):
            solution = f"{'random orders' if series == RANDOM else name}, target {target:g}"
            yield Reached(series, solution, tables[row, column], float(accuracy[row, column]))


def _double_rounding(run: Run) -> Iterator[Reached]:
    accuracy, quantised = run["accuracy"].load(), run["quantised"].values
    for variant in map(str, accuracy["variant"].values):
        for width in map(int, accuracy["bit"].values):
            bits = np.where(quantised, width, FULL_PRECISION)
            reached = float(accuracy.sel(variant=variant, bit=width))
            yield Reached("double rounding", f"{variant}, {width} bit", bits, reached, _switched_inputs(run, bits))
    if "subnet_accuracy" in run:
        main = run["subnet_accuracy"][0].load()
        for row, (kind, bits) in enumerate(zip(run["subnet_kind"].values, run["subnet_bits"].values, strict=True)):
            series = RANDOM if kind == "random" else "double rounding, mixed"
            name = "random widths" if kind == "random" else str(main["subnet"].values[row])
            yield Reached(series, name, bits, float(main[row]), _switched_inputs(run, bits), given=kind == "given")


def _switched_inputs(run: Run, bits: np.ndarray) -> np.ndarray:
    return bits if run.record.params["quantise_inputs"] else np.full(len(bits), FULL_PRECISION)


def short_name(method: str) -> str:
    """`double rounding` of `quantization.double_rounding`."""
    return method.partition(".")[2].replace("_", " ")


def stored(run: Run) -> Iterator[Reached]:
    """The stored model of any other method, by its logits."""
    accuracy = float((run["logit"].values.argmax(1) == run["label"].values).mean())
    yield Reached(short_name(run.method), "stored model", run["bits"].values, accuracy, run["input_bits"].values)


READERS: Mapping[str, Callable[[Run], Iterator[Reached]]] = {
    "quantization.uniform": _uniform,
    "quantization.gptq": _gptq,
    "quantization.hawq": _hawq,
    "quantization.adaquant": _adaquant,
    "quantization.interlayer": _interlayer,
    "quantization.double_rounding": _double_rounding,
}
"""How to read a method's solutions; of others the stored model is read."""

MEASURED_AND_STORED = {
    "quantization.uniform": ("widths", "sharings", "store_width", "store_sharing"),
    "quantization.gptq": ("widths", "store_width"),
}
"""Parameters that say which solutions a run has, not what they reach."""

NEEDED = ("parameter_count", "macs", "bits", "input_bits", "logit", "label", "sample_index")


def input_widths(bits: np.ndarray, act_bits: int | str, fixed: int | None) -> np.ndarray:
    """Width of every layer's input, (layer,), as `Costs.input_bits` has it.

    Args:
        bits: width of every layer, (layer,).
        act_bits: width of the inputs, or "weight" for that of the weights.
        fixed: width of the first and last layer where it is given; their inputs are not narrower than that.
    """
    if act_bits == "weight":
        return bits
    inputs = np.full(len(bits), int(act_bits))
    if fixed is not None:
        inputs[[0, -1]] = max(fixed, int(act_bits))
    return inputs
