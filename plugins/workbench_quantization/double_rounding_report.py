"""The report of a Double Rounding run: what every width keeps and weighs, and where the training or the search shows it."""

from __future__ import annotations

import math

import numpy as np
from workbench import Bar, HeatMap, Histogram, Line, Metric, Report, Result, Scatter, Table
from workbench.report import View

from workbench_quantization.nested_rounding import level_range
from workbench_quantization.report_parts import accuracy_metric, listed, reasons, resolution, share_interval, values

TOLERATED = 0.01
"""Loss of accuracy up to which a width is said to keep the accuracy."""

DERIVATIVES = {
    "own step": "By the step of the width.",
    "lsq": "By the step of the width, times LSQ's factor 1 / sqrt(N Q).",
    "stored step": "By the stored step, with which they grow by a power of two from width to width.",
}


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=_tables(result),
        views=_views(result),
        notes=_notes(result),
    )


def _widths(result: Result) -> list[int]:
    return [int(bits) for bits in result["accuracy"]["bit"].values]


def _full(result: Result) -> float:
    return float(result["accuracy_full_precision"])


def _summary(result: Result) -> str:
    widths, accuracy, full = _widths(result), values(result, "accuracy")[0], _full(result)
    kept = [str(bits) for bits, value in zip(widths, accuracy, strict=True) if value >= full - TOLERATED - 1e-12]
    share = float(result["stored_bytes"]) / float(values(result, "width_bytes").sum())
    told = f"{listed(kept)} bits" if kept else "no width"
    text = (
        f"One stored {widths[0]}-bit model keeps accuracy within {100 * TOLERATED:g} point of {full:.1%} at {told}; "
        f"at {widths[-1]} bits it reaches {accuracy[-1]:.1%}. It takes {share:.0%} of the bytes of {len(widths)} separate models."
    )
    if result.params.mode == "ptq":
        text += " Nothing was trained."
    if "subnet_accuracy" in result:
        average, best = values(result, "subnet_average_bits"), values(result, "subnet_accuracy")[0]
        text += f" Mixed widths: {best[0]:.1%} at {average[0]:.2f} bits per weight."
    return text


def _metrics(result: Result) -> tuple[Metric, ...]:
    count, full, widths = result["label"].sizes["sample"], _full(result), _widths(result)
    metrics: list[Metric] = []

    def share(name: str, value: float, description: str) -> None:
        metrics.append(accuracy_metric(name, value, count, description))

    stored = float((values(result, "logit").argmax(1) == values(result, "label")).mean())
    share(
        "accuracy", stored, "of the model stored as `model`, inputs quantised, on the report images (Wilson interval)"
    )
    share("accuracy_full_precision", full, "of the model as it came")
    for bits, value in zip(widths, values(result, "accuracy")[0], strict=True):
        share(f"accuracy_{bits}_bit", float(value), f"of the one stored model switched to {bits} bits")
    metrics.append(
        Metric(
            name="largest_gap",
            value=float(full - values(result, "accuracy")[0].min()),
            direction="lower",
            description="accuracy in full precision minus that of the worst width",
        )
    )
    sizes = values(result, "width_bytes")
    metrics += [
        Metric(
            name="stored_size",
            value=float(result["stored_bytes"]) / 1e6,
            unit="MB",
            direction="lower",
            description="integers of the highest width, scales, norms of all widths and what is not quantised",
        ),
        Metric(
            name="separate_size",
            value=float(sizes.sum()) / 1e6,
            unit="MB",
            description="of one model for each width",
        ),
        Metric(
            name="switch_time",
            value=float(values(result, "switch_seconds").max()) * 1e3,
            unit="ms",
            direction="lower",
            description="to shift all integers, slowest width, best of 5",
        ),
    ]
    ratio = float(np.nanmean(values(result, "error_ratio")[0, :, -1]))
    metrics.append(
        Metric(
            name="error_ratio_lowest",
            value=ratio,
            direction="lower",
            description=f"squared error of switched over directly rounded weights at {widths[-1]} bits, mean over layers",
        )
    )
    if "subnet_accuracy" in result:
        share("accuracy_mixed", float(values(result, "subnet_accuracy")[0, 0]), "of the program's network")
        metrics.append(
            Metric(
                name="average_bits",
                value=float(values(result, "subnet_average_bits")[0]),
                unit="bit",
                direction="lower",
                description="of that network, per quantised weight",
            )
        )
    return tuple(metric for metric in metrics if math.isfinite(metric.value))


def _tables(result: Result) -> tuple[Table, ...]:
    widths, full, count = _widths(result), _full(result), result["label"].sizes["sample"]
    names = [str(name) for name in result["accuracy"]["variant"].values]
    accuracy, loss = values(result, "accuracy"), values(result, "negative_log_likelihood")
    agreement, sizes = values(result, "agreement"), values(result, "width_bytes")
    rows: list[tuple[str | float | None, ...]] = []
    for row, name in enumerate(names):
        for column, bits in enumerate(widths):
            low, high = share_interval(float(accuracy[row, column]), count)
            rows.append(
                (
                    name,
                    bits,
                    f"{accuracy[row, column]:.1%} ({low:.1%} to {high:.1%})",
                    f"{100 * (accuracy[row, column] - full):+.1f}",
                    round(float(agreement[row, column]), 4),
                    round(float(loss[row, column]), 4),
                    int(sizes[column]),
                )
            )
    rows.append(("as it came", None, f"{full:.1%}", "", 1.0, None, int(result["full_precision_bytes"])))
    tables = [
        Table(
            title="Widths",
            columns=(
                "training",
                "bits",
                "accuracy",
                "points to full precision",
                "agreement",
                "negative log-likelihood",
                "bytes",
            ),
            rows=tuple(rows),
            caption=f"Bytes of a model of that width alone; the switchable one takes {int(result['stored_bytes']):,} for all.",
        )
    ]
    if "subnet_accuracy" in result:
        tables.append(_subnet_table(result))
    errors, means = values(result, "error_ratio"), values(result, "mean_error")
    tables.append(
        Table(
            title="Error of switching",
            columns=("second rounding", "bits", "error", "shift"),
            rows=tuple(
                (
                    "round (double rounding)" if str(rule) == "double" else str(rule),
                    bits,
                    _number(np.nanmean(errors[row, :, column])),
                    _number(np.nanmean(means[row, :, column])),
                )
                for row, rule in enumerate(result["error_ratio"]["rule"].values)
                for column, bits in enumerate(widths)
            ),
            caption="Squared error of switched weights over that of weights rounded directly at the width, and their mean "
            "difference in steps; means over layers. 1 and 0 are what cannot be beaten.",
        )
    )
    return tuple(tables)


def _number(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def _subnet_table(result: Result) -> Table:
    accuracy, average = values(result, "subnet_accuracy"), values(result, "subnet_average_bits")
    roulettes = [str(name) for name in result["subnet_accuracy"]["roulette"].values]
    names, pareto = result["subnet_accuracy"]["subnet"].values, values(result, "subnet_pareto")
    return Table(
        title="Networks of mixed widths",
        columns=("network", "mean bits", *roulettes, "not beaten"),
        rows=tuple(
            (
                str(names[place]),
                round(float(average[place]), 3),
                *(round(float(row[place]), 4) for row in accuracy),
                bool(pareto[place]),
            )
            for place in np.argsort(average, kind="stable")
        ),
        caption="Accuracy of the supernet at these widths, without further training.",
    )


def _views(result: Result) -> tuple[View, ...]:
    views: list[View] = []
    if "accuracy_epoch" in result:
        views += [
            Line(
                title=f"Accuracy while training: {name}",
                y=("accuracy_epoch",),
                x="epoch",
                by="bit",
                select={"variant": str(name)},
                markers=True,
                caption=f"On report images; full precision: {_full(result):.1%}. Nothing is decided by it.",
            )
            for name in result["accuracy_epoch"]["variant"].values
        ]
    if result["accuracy"].sizes["variant"] > 1:
        views.append(
            Line(
                title="Accuracy against width",
                y=("accuracy",),
                x="bit",
                by="variant",
                x_label="bits",
                markers=True,
                caption="What is compared: each training starts from the same model and sees the same batches.",
            )
        )
    if "subnet_accuracy" in result:
        views += _subnet_views(result)
    for curve in result["transfer"]["curve"].values:
        views.append(
            Line(
                title=f"Staircase: {curve}",
                y=("transfer",),
                x="value",
                by="bit",
                select={"curve": str(curve)},
                x_label="weight",
                y_label="what is computed with",
            )
        )
    if "grad_scale_absmax" in result:
        views += [
            Histogram(
                title="Gradients of weight scales",
                values=("grad_scale_absmax",),
                by="bit",
                log_x=True,
                x_label="absolute gradient, all layers and recorded steps",
                caption=f"{DERIVATIVES[result.params.scale_gradient]} The larger, the more slowly ALRS lets them learn.",
            ),
            Line(
                title="Learning rate of the scales",
                y=("lr_scale",),
                x="step",
                by="bit",
                log_y=result.params.alrs == "multiplicative",
                caption=f"ALRS: {result.params.alrs}.",
            ),
        ]
    views.append(
        HeatMap(
            title="Switched against directly rounded weights",
            z="error_ratio",
            x="bit",
            y="layer",
            select={"rule": "double"},
            caption="Ratio of squared errors; 1: switching costs nothing. Empty for layers in full precision.",
        )
    )
    for bits in _widths(result):
        low, high = level_range(bits)
        views.append(
            HeatMap(
                title=f"Integers at {bits} bits",
                z="level_count",
                x="level",
                y="layer",
                select={"bit": bits, "level": list(range(low, high + 1))},
                log=True,
                z_label="weights",
            )
        )
    return tuple(views)


def _subnet_views(result: Result) -> list[View]:
    views: list[View] = [
        Scatter(
            title=f"Mean width and accuracy: {name}",
            x="subnet_average_bits",
            y="subnet_accuracy",
            color="subnet_kind",
            highlight="subnet_pareto" if row == 0 else None,  # found under the first roulette
            select={"roulette": str(name)},
            x_label="mean bits per weight",
        )
        for row, name in enumerate(result["subnet_accuracy"]["roulette"].values)
    ]
    views += [
        Bar(
            title="Hessian trace of the layers",
            y=("trace",),
            x="layer",
            log_y=True,
            caption="Mean per weight. Layers above the mean of all quantised layers draw high widths more often.",
        ),
        Bar(title="Widths of the stored network", y=("bits",), x="layer", y_label="bits (32: full precision)"),
    ]
    return views


def _standstill(result: Result) -> list[str]:
    """A note on the widths whose scales ALRS kept from learning, if there are any."""
    if "lr_scale" not in result:
        return []
    share = (values(result, "lr_scale") <= 0).mean(0)
    told = [f"{bits} bits in {part:.0%}" for bits, part in zip(_widths(result), share, strict=True) if part > 0]
    if not told:
        return []
    return [
        f"ALRS let the scales stand still at {listed(told)} of the recorded steps: their gradients exceeded the bound in every "
        "layer (multiplicative) or the rate of the weights on average (paper). `alrs='off'` lets them learn at every step."
    ]


def _notes(result: Result) -> tuple[str, ...]:
    params, count = result.params, result["label"].sizes["sample"]
    full = _full(result)
    notes = [
        f"Accuracies are of {count:,} images"
        + ("." if "test" in result.inputs else " (a share of `data` that was not trained on)."),
        f"At an accuracy of {full:.1%} differences below {resolution(full, count):.1%} are within sampling error. One seed: "
        "what another seed gives is not shown here.",
        "`run.model()` and `run.model('model_4')` have quantised weights and the norms of their width; "
        "`workbench_quantization.deployed_model(run, 4)` quantises the layers' inputs as well, as every accuracy here does.",
    ]
    if params.mode != "ptq":
        notes.append(
            f"ALRS: {params.alrs}"
            + (" (eq. 6 of the paper, cut off at 0)" if params.alrs == "paper" else "")
            + f"; steps of scales: {params.scale_steps}; {params.epochs} epochs."
        )
    notes += _standstill(result)
    if params.first_last == "full precision":
        notes.append("First and last layer stay in full precision, and their bytes count as such.")
    if "accuracy_given" in result:
        notes.append(f"The given table of widths, which is the stored one: {float(result['accuracy_given']):.1%}.")
    if params.mode == "mixed":
        notes.append(
            "The stored network was chosen by its mean width and the program alone. Which networks are not beaten was "
            "found on the report images: their best accuracies are a little too good."
        )
    left = reasons(result, "unquantised_reason")
    if left:
        notes.append(f"Left in full precision: {', '.join(f'{name} ({why})' for name, why in left)}.")
    return tuple(notes)
