"""Tables and views of the report of a HAWQ run."""

from __future__ import annotations

import numpy as np
from workbench import Bar, HeatMap, Line, Scatter, Table
from workbench.report import View

from workbench_quantization.hawq_facts import Facts


def layer_table(facts: Facts) -> Table:
    """What was measured of every layer, and what was decided."""
    value, residual = facts.read("eigenvalue")[:, 0], facts.read("eigenvalue_residual")[:, 0]
    trace, error = facts.read("trace"), facts.read("trace_standard_error")
    columns = (
        "layer",
        "shape",
        "weights",
        "eigenvalue",
        "residual",
        "trace",
        "± standard error",
        "S",
        "bits",
        "fine-tuning order",
    )
    rows = zip(
        facts.layers,
        facts.read("weight_shape"),
        facts.read("parameter_count"),
        value,
        residual,
        trace,
        error,
        facts.read("sensitivity"),
        facts.read("bits"),
        facts.read("order"),
        strict=True,
    )
    return Table(
        title="Layers, in order of execution",
        columns=columns,
        rows=tuple(
            (name, str(shape), int(n), _short(v), _short(r), _short(t), _short(e), _short(s), int(b), int(o))
            for name, shape, n, v, r, t, e, s, b, o in rows
        ),
        caption="S is the curvature per weight that ranks the layers: |eigenvalue| / weights for criterion eig, average "
        "trace or Fisher trace otherwise.",
    )


def solution_table(facts: Facts) -> Table:
    """Every solution but the random ones, which are summed up."""
    rows: list[tuple[str | float | None, ...]] = []
    likelihood, omega = facts.read("negative_log_likelihood"), facts.read("omega_total")
    for position, (name, kind) in enumerate(zip(facts.names, facts.kinds, strict=True)):
        if kind != "random":
            rows.append(
                (
                    name,
                    kind,
                    _short(facts.average[position]),
                    _short(omega[position]),
                    float(facts.accuracy[position]),
                    _short(likelihood[position]),
                )
            )
    drawn = facts.kinds == "random"
    if drawn.any():
        for label, pick in (("worst", np.min), ("median", np.median), ("best", np.max)):
            rows.append(
                (
                    f"random orders, {label}",
                    f"of {drawn.sum()}",
                    _short(float(np.median(facts.average[drawn]))),
                    _short(float(np.median(omega[drawn]))),
                    float(pick(facts.accuracy[drawn])),
                    None,
                )
            )
    return Table(
        title="Solutions before fine-tuning",
        columns=("solution", "kind", "average bits", "Omega", "accuracy", "negative log-likelihood"),
        rows=tuple(rows),
        caption="Uniform and sweep solutions are not bound to the budget. Random orders: Omega and bits are medians.",
    )


def further_tables(facts: Facts) -> tuple[Table, ...]:
    """Fine-tuning and what stays in full precision, where there is any."""
    tables = []
    if "finetuned_accuracy" in facts.result:
        after, before = facts.read("finetuned_accuracy"), facts.read("accuracy_before")
        names = facts.result["finetuned_accuracy"]["finetuned_solution"].values
        tables.append(
            Table(
                title="Fine-tuning",
                columns=("solution", "accuracy before", "accuracy after"),
                rows=tuple((str(n), float(b), float(a)) for n, b, a in zip(names, before, after, strict=True)),
            )
        )
    if "unquantised_reason" in facts.result:
        reasons = facts.result["unquantised_reason"]
        tables.append(
            Table(
                title="Weights that stay in full precision",
                columns=("parameter", "why"),
                rows=tuple((str(n), str(r)) for n, r in zip(reasons["parameter"].values, reasons.values, strict=True)),
            )
        )
    return tuple(tables)


def views(facts: Facts) -> tuple[View, ...]:
    """Bits and curvature by depth, size against accuracy and Omega, landscapes, and what was asked for besides."""
    sharpness = np.abs(facts.read("eigenvalue")[:, 0]) / facts.read("parameter_count")
    ends = list(dict.fromkeys([facts.layers[int(sharpness.argmax())], facts.layers[int(sharpness.argmin())]]))
    views: list[View] = [
        Bar(title="Bits per layer", y=("bits",), x="layer", y_label="bits"),
        Bar(title="Sensitivity by depth", y=("sensitivity",), x="layer", log_y=True, y_label="S"),
        Scatter(
            title="Size against accuracy",
            x="size_mb",
            y="accuracy",
            color="solution_kind",
            label="solution",
            x_label="MB of quantised weights",
            caption="Before fine-tuning. Right and low is worse.",
        ),
        Scatter(
            title="Size against Omega",
            x="size_mb",
            y="omega_total",
            color="solution_kind",
            label="solution",
            highlight="pareto",
            log_y=True,
            x_label="MB of quantised weights",
            y_label="Omega",
            caption="Large points are on the Pareto front.",
        ),
        Scatter(
            title="Does Omega predict accuracy?",
            x="omega_total",
            y="accuracy",
            color="solution_kind",
            label="solution",
            log_x=True,
            x_label="Omega",
        ),
        Bar(
            title="Average trace by depth",
            y=("average_trace",),
            x="layer",
            error="average_trace_error",
            y_label="trace / weights",
            caption="Bars: one standard error.",
        ),
        Bar(title="Largest eigenvalue by depth", y=("eigenvalue",), x="layer", select={"rank": 1}, log_y=True),
        Line(
            title="Convergence of the power iteration",
            y=("eigenvalue_history",),
            x="iteration",
            by="layer",
            select={"layer": ends},
            y_label="Rayleigh quotient",
            caption="The sharpest and the flattest layer for their size.",
        ),
        HeatMap(title="Measured loss increase of single layers", z="loss_increase", x="bit", y="layer"),
        HeatMap(title="Widths of every solution", z="solution_bits", x="layer", y="solution"),
    ]
    if "landscape" in facts.result:
        views.insert(
            3,
            Line(
                title="Loss along the top eigenvector",
                y=("landscape",),
                x="epsilon",
                by="layer",
                select={"layer": ends},
                markers=True,
                y_label="loss",
                x_label="displacement",
                caption="The sharpest and the flattest layer for their size; unit eigenvectors.",
            ),
        )
    if "landscape_plane" in facts.result:
        views.append(
            HeatMap(
                title=f"Loss of {ends[0]} along its top two eigenvectors",
                z="landscape_plane",
                x="epsilon",
                y="epsilon_2",
            )
        )
    if "density" in facts.result:
        views += [
            Scatter(
                title=f"Eigenvalue density of {name}", x="density_grid", y="density", select={"layer": name}, log_y=True
            )
            for name in ends
        ]
    if "activation_trace" in facts.result:
        views.append(
            Bar(
                title="Traces of the layers' outputs",
                y=("activation_trace",),
                x="layer",
                error="activation_trace_standard_error",
            )
        )
    if "finetuned_accuracy" in facts.result:
        compared = ("chosen", "uniform") if len(facts.read("finetuned_accuracy")) > 1 else ("chosen",)
        names = tuple("series/loss" if kind == "chosen" else "series/uniform_loss" for kind in compared)
        views.append(Line(title="Fine-tuning loss", y=names, x="step", x_label="epoch"))
    return tuple(views)


def _short(value: float) -> float | None:
    """Four significant digits; None for NaN."""
    return None if np.isnan(value) else float(f"{value:.4g}")
