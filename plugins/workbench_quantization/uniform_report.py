"""The report of a round-to-nearest run: the narrowest width that keeps the accuracy, and whether a given table beats it."""

from __future__ import annotations

import numpy as np
from workbench import Bar, HeatMap, Histogram, Line, Metric, Report, Result, Table
from workbench.report import View

from workbench_quantization.report_parts import accuracy_metric, kept_note, resolution, values

TOLERATED = 0.01
"""Loss of accuracy up to which a width is said to keep the accuracy."""


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=_tables(result),
        views=_views(result),
        notes=_notes(result),
    )


def _given(result: Result) -> bool:
    return "accuracy_given" in result


def _stored_place(result: Result) -> tuple[int, int]:
    params = result.params
    return params.sharings.index(params.store_sharing), params.widths.index(params.store_width)


def _stored(result: Result, name: str) -> float:
    row, column = _stored_place(result)
    if _given(result):
        return float(values(result, f"{name}_given")[row])
    return float(values(result, name)[row, column])


def narrowest(accuracy: np.ndarray, widths: tuple[int, ...], full: float) -> int | None:
    """The smallest width from which on every wider one keeps the accuracy to within `TOLERATED`; None if there is none."""
    keeps = accuracy >= full - TOLERATED - 1e-12
    from_here = np.logical_and.accumulate(keeps[::-1])[::-1]
    return widths[int(np.argmax(from_here))] if from_here.any() else None


def nearest_width(result: Result) -> int:
    """Column of the uniform width whose size is nearest to that of the given table, under the stored sharing."""
    row, _ = _stored_place(result)
    return int(np.argmin(np.abs(values(result, "size_mb")[row] - values(result, "size_mb_given")[row])))


def _summary(result: Result) -> str:
    params, full = result.params, float(result["accuracy_full_precision"])
    accuracy = values(result, "accuracy")
    phrases = []
    for row, sharing in enumerate(params.sharings):
        width = narrowest(accuracy[row], params.widths, full)
        phrases.append(f"{'none' if width is None else f'{width} bit'} with one range per {sharing}")
    text = f"Narrowest width that keeps accuracy within {TOLERATED:.0%} of {full:.1%}: {', '.join(phrases)}."
    if _given(result):
        row, _ = _stored_place(result)
        column = nearest_width(result)
        text += (
            f" The given widths reach {_stored(result, 'accuracy'):.1%} at {_stored(result, 'average_bits'):.2f} bits per "
            f"weight; uniform {params.widths[column]} bit, the nearest in size, {accuracy[row, column]:.1%} at "
            f"{values(result, 'average_bits')[row, column]:.2f}."
        )
    return text


def _metrics(result: Result) -> tuple[Metric, ...]:
    count = result["label"].sizes["sample"]
    full, stored = float(result["accuracy_full_precision"]), _stored(result, "accuracy")

    metrics = [
        accuracy_metric(
            "accuracy", stored, count, "of the stored quantised model on the report images (Wilson interval)"
        ),
        accuracy_metric("accuracy_full_precision", full, count, "of the model as it came"),
        Metric(name="accuracy_drop", value=full - stored, direction="lower"),
        accuracy_metric(
            "agreement", _stored(result, "agreement"), count, "predictions equal to those of the full-precision model"
        ),
        Metric(name="negative_log_likelihood", value=_stored(result, "negative_log_likelihood"), direction="lower"),
        Metric(
            name="average_bits",
            value=_stored(result, "average_bits"),
            unit="bit",
            direction="lower",
            description="per quantised weight, scales and first and last layer included",
        ),
        Metric(name="size", value=_stored(result, "size_mb"), unit="MB", direction="lower", description="with scales"),
    ]
    for row, sharing in enumerate(result.params.sharings):
        width = narrowest(values(result, "accuracy")[row], result.params.widths, full)
        if width is not None:
            metrics.append(
                Metric(
                    name=f"narrowest_width_{sharing}",
                    value=float(width),
                    unit="bit",
                    direction="lower",
                    description=f"that keeps accuracy within {TOLERATED:.0%}",
                )
            )
    if _given(result):
        row, _ = _stored_place(result)
        gain = stored - float(values(result, "accuracy")[row, nearest_width(result)])
        metrics.append(
            Metric(
                name="gain_over_uniform",
                value=gain,
                direction="higher",
                description="accuracy of the given widths minus that of the uniform width nearest in size",
            )
        )
    return tuple(metrics)


def _tables(result: Result) -> tuple[Table, ...]:
    params = result.params
    names = ("accuracy", "agreement", "negative_log_likelihood", "average_bits", "size_mb")
    rows: list[tuple[str | float, ...]] = []
    for row, sharing in enumerate(params.sharings):
        for column, width in enumerate(params.widths):
            figures = [round(float(values(result, name)[row, column]), 4) for name in names]
            rows.append((f"uniform {width} bit", sharing, *figures))
        if _given(result):
            figures = [round(float(values(result, f"{name}_given")[row]), 4) for name in names]
            rows.append(("given widths", sharing, *figures))
    row, _ = _stored_place(result)
    error = values(result, "relative_error")[:, row]
    layers = tuple(
        (
            str(name),
            str(shape),
            int(count),
            int(bits),
            *(round(float(-10 * np.log10(value)), 1) if value > 0 else None for value in error[place]),
        )
        for place, (name, shape, count, bits) in enumerate(
            zip(
                result["bits"]["layer"].values,
                values(result, "weight_shape"),
                values(result, "parameter_count"),
                values(result, "bits"),
                strict=True,
            )
        )
    )
    return (
        Table(
            title="Solutions",
            columns=("widths", "one range per", "accuracy", "agreement", "log-likelihood", "bits/weight", "size (MB)"),
            rows=tuple(rows),
            caption="Sizes count scales at 32 bits. Log-likelihood is negative: lower is better.",
        ),
        Table(
            title="Layers",
            columns=(
                "layer",
                "shape",
                "weights",
                "stored bits",
                *(f"SNR at {width} bit (dB)" for width in params.widths),
            ),
            rows=layers,
            caption=f"Signal-to-noise ratio ||W||^2 / ||Q(W) - W||^2 with one range per {params.store_sharing}.",
        ),
    )


def _views(result: Result) -> tuple[View, ...]:
    widest = result.params.store_sharing
    return (
        Line(
            title="Accuracy against width",
            y=("accuracy",),
            x="bit",
            by="sharing",
            x_label="bits",
            markers=True,
            caption=f"Full precision: {float(result['accuracy_full_precision']):.1%}.",
        ),
        Line(
            title="Agreement with full precision",
            y=("agreement",),
            x="bit",
            by="sharing",
            x_label="bits",
            markers=True,
            caption="Share of equal predictions: finer than accuracy, and free of label noise.",
        ),
        HeatMap(
            title="Relative rounding error by layer",
            z="relative_error",
            x="bit",
            y="layer",
            log=True,
            select={"sharing": widest},
            caption=f"||Q(W) - W||^2 / ||W||^2 with one range per {widest}.",
        ),
        Bar(title="Size against width", y=("size_mb",), x="bit", by="sharing", y_label="MB with scales"),
        Bar(title="Widths of the stored model", y=("bits",), x="layer", y_label="bits"),
        Histogram(title="Integers of the stored model", values=("integer_weight",), log_y=True, x_label="level"),
    )


def _notes(result: Result) -> tuple[str, ...]:
    params, count = result.params, result["label"].sizes["sample"]
    notes = [
        f"Accuracies are of {count:,} images"
        + ("." if "test" in result.inputs else " (a share of `data` that showed no ranges)."),
        f"At an accuracy of {float(result['accuracy_full_precision']):.1%} differences below "
        f"{resolution(float(result['accuracy_full_precision']), count):.1%} are within sampling error.",
    ]
    if params.first_last_bits is not None:
        notes.append(f"First and last layer are kept at {params.first_last_bits} bits in the uniform solutions.")
    if "group" in params.sharings:
        notes.append(
            f"Groups of {params.group_size} weights add {32 / params.group_size:.2g} bits per weight for their scales."
        )
    if params.act_bits != 32:
        notes.append(
            "The stored model has quantised weights only; the ranges of its inputs are in `input_range`, and `logit` was "
            "computed with quantised inputs."
        )
    return (*notes, *kept_note(result))
