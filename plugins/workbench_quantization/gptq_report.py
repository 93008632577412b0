"""The report of a GPTQ run: what each width costs under both roundings, and which layers profit."""

from __future__ import annotations

import numpy as np
from workbench import Bar, HeatMap, Line, Metric, Report, Result, Table
from workbench.report import View

from workbench_quantization.report_parts import accuracy_metric, damping_note, kept_note, values


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=_tables(result),
        views=_views(result),
        notes=_notes(result),
    )


def _stored(result: Result, name: str) -> np.ndarray:
    """(rounding,) of the table of widths that is stored."""
    if f"{name}_given" in result:
        return values(result, f"{name}_given")
    return np.asarray(values(result, name)[:, result.params.widths.index(result.params.store_width)])


def _summary(result: Result) -> str:
    nearest, solved = _stored(result, "accuracy")
    what = "the given widths" if "accuracy_given" in result else f"{result.params.store_width} bits"
    return (
        f"At {what} GPTQ keeps {solved:.1%} of the report images right and rounding to nearest {nearest:.1%}, "
        f"of {float(result['accuracy_full_precision']):.1%} in full precision."
    )


def _metrics(result: Result) -> tuple[Metric, ...]:
    count = result["label"].sizes["sample"]
    full = float(result["accuracy_full_precision"])

    nearest, solved = map(float, _stored(result, "accuracy"))
    metrics = [
        accuracy_metric("accuracy", solved, count, "of the stored model on the report images (Wilson interval)"),
        accuracy_metric("accuracy_full_precision", full, count, "of the model as it came"),
        Metric(name="accuracy_drop", value=full - solved, direction="lower"),
        Metric(
            name="gain_over_nearest",
            value=solved - nearest,
            direction="higher",
            description="accuracy of GPTQ minus that of rounding to nearest, same widths and grids",
        ),
        Metric(name="agreement", value=float(_stored(result, "agreement")[1]), direction="higher"),
        Metric(
            name="average_bits",
            value=float(result["average_bits_stored"]),
            unit="bit",
            direction="lower",
            description="per weight, scales, zero-points, first and last layer included",
        ),
        Metric(name="size", value=float(result["size_mb_stored"]), unit="MB", direction="lower"),
    ]
    return tuple(metrics)


def _tables(result: Result) -> tuple[Table, ...]:
    names = ("accuracy", "agreement", "negative_log_likelihood")
    rows: list[tuple[str | float, ...]] = []
    for row, rounding in enumerate(("nearest", "gptq")):
        for column, width in enumerate(result.params.widths):
            figures = [round(float(values(result, name)[row, column]), 4) for name in names]
            sizes = [round(float(values(result, name)[column]), 4) for name in ("average_bits", "size_mb")]
            rows.append((f"{width} bit", rounding, *figures, *sizes))
        if "accuracy_given" in result:
            figures = [round(float(values(result, f"{name}_given")[row]), 4) for name in names]
            sizes = [round(float(result[f"{name}_stored"]), 4) for name in ("average_bits", "size_mb")]
            rows.append(("given widths", rounding, *figures, *sizes))
    error = values(result, "output_error")
    layers = tuple(
        (
            str(name),
            str(shape),
            int(bits),
            *(_digits(value) for value in np.moveaxis(error[place], 0, 1).ravel()),
        )
        for place, (name, shape, bits) in enumerate(
            zip(result["bits"]["layer"].values, values(result, "weight_shape"), values(result, "bits"), strict=True)
        )
    )
    heads = [f"{rounding} {width} bit" for width in result.params.widths for rounding in ("nearest", "gptq")]
    return (
        Table(
            title="Solutions",
            columns=("widths", "rounding", "accuracy", "agreement", "log-likelihood", "bits/weight", "size (MB)"),
            rows=tuple(rows),
            caption="Sizes count scales at 32 bits and zero-points. Log-likelihood is negative: lower is better.",
        ),
        Table(
            title="Share of a layer's output that is lost",
            columns=("layer", "shape", "stored bits", *heads),
            rows=layers,
            caption="||W X - Q X||^2 / ||W X||^2 on the shown images, inputs from the layers before as quantised by GPTQ.",
        ),
    )


def _digits(value: float) -> float | None:
    return float(f"{value:.3g}") if np.isfinite(value) else None


def _views(result: Result) -> tuple[View, ...]:
    return (
        Line(
            title="Accuracy against width",
            y=("accuracy",),
            x="bit",
            by="rounding",
            x_label="bits",
            markers=True,
            caption=f"Full precision: {float(result['accuracy_full_precision']):.1%}.",
        ),
        Line(
            title="Agreement with full precision",
            y=("agreement",),
            x="bit",
            by="rounding",
            x_label="bits",
            markers=True,
            caption="Share of equal predictions: finer than accuracy, and free of label noise.",
        ),
        HeatMap(
            title="Share of the output lost under GPTQ",
            z="output_error",
            x="bit",
            y="layer",
            log=True,
            select={"rounding": "gptq"},
        ),
        HeatMap(
            title="Share of the output lost under rounding to nearest",
            z="output_error",
            x="bit",
            y="layer",
            log=True,
            select={"rounding": "nearest"},
        ),
        Bar(title="Widths of the stored model", y=("bits",), x="layer", y_label="bits"),
    )


def _notes(result: Result) -> tuple[str, ...]:
    params, count = result.params, result["label"].sizes["sample"]
    shown = min(params.calibration_samples, int(result.inputs["data"]["sizes"]["sample"]))
    notes = [
        f"Accuracies are of {count:,} images"
        + ("." if "test" in result.inputs else " (a share of `data` that the layers were not shown).")
        + f" GPTQ was shown at most {shown:,}; their labels were not used.",
        "Only weights are quantised. Batch norms are not tuned afterwards: quantization.adaquant does that.",
    ]
    if params.first_last_bits is not None:
        notes.append(f"First and last layer are kept at {params.first_last_bits} bits in the uniform solutions.")
    rounded = [
        str(name)
        for name, done in zip(result["bits"]["layer"].values, values(result, "solved"), strict=True)
        if not done
    ]
    if rounded:
        notes.append(f"Rounded to nearest, as they are no matrix over their inputs: {', '.join(rounded)}.")
    notes += damping_note(result, params.damping, "damping_used", "damping_stored")
    return (*notes, *kept_note(result))
