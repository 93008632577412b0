"""Report of `calibration.ccvr`."""

from __future__ import annotations

import numpy as np
from scipy import special
from workbench import Bar, HeatMap, Line, Metric, Report, Result, Scatter, Table
from workbench.toolkit import expected_calibration_error, mean_interval, negative_log_likelihood, wilson_interval

STAGES = {
    "before": "federated head",
    "ccvr": "CCVR",
    "ccvr_diagonal": "CCVR with variances only (a shortcut)",
    "class_mean": "nearest class mean",
    "tau_normalised": "tau-normalised federated head",
    "ccvr_tukey": "CCVR after ReLU and Tukey's power",
    "oracle": "head trained on all real features",
}


def report(result: Result) -> Report:
    """The calibrated head, and with test data what it is worth."""
    stages = [str(stage) for stage in result["head_weight"]["stage"].values]
    if "accuracy" not in result:
        return _statistics_report(result, stages)
    return Report(
        summary=_summary(result),
        metrics=_metrics(result, stages),
        tables=(_accuracy_table(result, stages), _probability_table(result, stages), _class_table(result)),
        views=_views(result),
        notes=_notes(result),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _means(result: Result, concentration: float) -> dict[str, float]:
    chosen = result["accuracy"].sel({"concentration": concentration})
    return {str(s): float(chosen.sel({"stage": s}).mean()) for s in chosen["stage"].values}


def _summary(result: Result) -> str:
    concentration = float(result["accuracy"]["concentration"].values[-1])
    mean = _means(result, concentration)
    gain, room = mean["ccvr"] - mean["before"], mean["oracle"] - mean["before"]
    text = (
        f"At concentration {concentration:g} the federated classifier reaches {_percent(mean['before'])}; with the head "
        f"calibrated on virtual features {_percent(mean['ccvr'])} ({100 * gain:+.1f} points), against "
        f"{_percent(mean['oracle'])} with a head trained on all real features."
    )
    if room < 0.005:
        return f"{text} Little is lost in the head here."
    return f"{text} So {_percent(min(max(gain / room, 0.0), 1.0))} of what the head loses is repaired without any data."


def _metrics(result: Result, stages: list[str]) -> list[Metric]:
    metrics, accuracy = [], result["accuracy"]
    for a in accuracy["concentration"].values:
        chosen = accuracy.sel({"concentration": a})
        for stage in stages:
            values = chosen.sel({"stage": stage}).values
            interval = mean_interval(values)
            span = (interval.lower, interval.upper)
            over = "Student's t over seeds"
            if len(values) == 1:
                total = result["label"].size
                low, high = wilson_interval(round(values[0] * total), total)
                span, over = (float(low), float(high)), "Wilson, over test samples"
            span = (max(span[0], 0.0), min(span[1], 1.0))
            metrics.append(Metric(name=f"accuracy_{stage}_{a:g}", value=interval.value, direction="higher", interval=span,
                                  description=f"{STAGES[stage]}, concentration {a:g}; interval: {over}"))  # fmt: skip
        gain = mean_interval(chosen.sel({"stage": "ccvr"}).values - chosen.sel({"stage": "before"}).values)
        metrics.append(Metric(name=f"gain_{a:g}", value=gain.value, direction="higher",
                              interval=None if np.isnan(gain.lower) else (gain.lower, gain.upper),
                              description="accuracy of CCVR less that of the federated head, seed by seed"))  # fmt: skip
    return metrics


def _accuracy_table(result: Result, stages: list[str]) -> Table:
    concentrations = [float(a) for a in result["accuracy"]["concentration"].values]
    means = {a: _means(result, a) for a in concentrations}
    return Table(
        title="Test accuracy by concentration",
        columns=("head", *(f"{a:g}" for a in concentrations)),
        rows=tuple((STAGES[stage], *(round(means[a][stage], 4) for a in concentrations)) for stage in stages),
        caption=f"Means over {result['accuracy'].sizes['seed']} seeds. The smaller the concentration of the Dirichlet "
        "partition, the fewer clients hold a class.",
    )


def _probability_table(result: Result, stages: list[str]) -> Table:
    label = result["label"].values
    rows = []
    for stage in stages:
        p = special.softmax(result["logit"].sel({"stage": stage}).values.astype(np.float64), axis=1)
        rows.append((STAGES[stage], round(negative_log_likelihood(p, label), 4),
                     round(expected_calibration_error(p, label), 4)))  # fmt: skip
    return Table(
        title="Side product: probabilities",
        columns=("head", "negative log likelihood (nats)", "ECE, 15 bins of equal width"),
        rows=tuple(rows),
        caption="Last concentration, seed 0. CCVR calibrates the balance of classes; confidence is another matter.",
    )


def _class_table(result: Result) -> Table:
    count = result["partition"].values
    rows = []
    for k in range(count.shape[1]):
        accuracy = (
            [round(float(result["class_accuracy"].sel({"stage": s}).values[k]), 4) for s in ("before", "ccvr")]
            if "class_accuracy" in result
            else []
        )
        between, jitter = (float(result[name].values[k]) for name in ("between_share", "jitter"))
        rows.append((k, int(count[:, k].sum()), int((count[:, k] > 0).sum()), round(between, 3), jitter, *accuracy))
    extra = ("accuracy before", "accuracy CCVR") if "class_accuracy" in result else ()
    return Table(
        title="Classes",
        columns=("class", "samples", "clients", "variance between clients", "jitter", *extra),
        rows=tuple(rows),
        caption="Variance between clients: part of the pooled variance that averaging the clients' covariances would lose. "
        "Jitter: added to the variances so that features can be drawn.",
    )


def _views(result: Result) -> list[object]:
    layers = [str(name) for name in result["cka"]["layer"].values]
    views: list[object] = [
        Bar(title="Accuracy by head and concentration", y=("accuracy",), x="concentration", by="stage",
            y_label="test accuracy", select={"seed": 0}, caption="Seed 0."),
        Bar(title="Accuracy by class, before and after", y=("class_accuracy",), x="class", by="stage",
            y_label="test accuracy", select={"stage": ["before", "ccvr", "oracle"]}, caption="Last concentration, seed 0."),
        HeatMap(title="Who owns what", z="partition", x="class", y="client", annotate=True, z_label="samples"),
        HeatMap(title="Heads of the clients", z="head_norm", x="class", y="client", z_label="norm of the row",
                caption="Clients' heads after the last round: rows of the classes a client holds grow."),
        *(HeatMap(title=f"Likeness of local features: {layer}", z="cka", x="client", y="client_other",
                  select={"layer": layer}, z_label="linear CKA",
                  caption="Local models after the last round, on the same test images.")
          for layer in dict.fromkeys((layers[0], layers[-1]))),
        Scatter(title="Real and virtual features", x="projection_x", y="projection_y", color="projection_group",
                x_label="first principal component", y_label="second",
                caption="Three classes. Virtual features are useful as far as the clouds agree."),
        Line(title="Federated training", y=("round_accuracy",), x="round", by="concentration", select={"seed": 0},
             y_label="test accuracy", caption="Before calibration, seed 0."),
    ]  # fmt: skip
    if "draw_accuracy" in result:
        views.append(Line(title="How many draws are enough", y=("draw_accuracy",), x="draw_count", log_x=True, markers=True,
                          x_label="virtual features of each class", y_label="test accuracy"))  # fmt: skip
    return views


def _notes(result: Result) -> list[str]:
    cka = result["cka"].values
    pairs = ~np.eye(cka.shape[1], dtype=bool)
    layers = [str(name) for name in result["cka"]["layer"].values]
    means = ", ".join(f"{name} {np.nanmean(one[pairs]):.3f}" for name, one in zip(layers, cka, strict=True))
    notes = [f"Mean linear CKA between local models by layer: {means}. The paper finds the head the least alike.",
             "The oracle needs all clients' features and cannot be had in practice."]  # fmt: skip
    return notes + _statistics_notes(result)


def _statistics_notes(result: Result) -> list[str]:
    count, width = result["partition"].values, result["class_mean"].shape[1]
    notes = []
    few = [str(k) for k in np.flatnonzero((count.sum(0) <= width) & (count.sum(0) > 0))]
    if few:
        notes.append(f"Classes {', '.join(few)} have no more samples than features ({width}): their covariance is singular "
                     "and features were drawn with jitter on its diagonal; consider `shrinkage`.")  # fmt: skip
    missing = [str(k) for k in np.flatnonzero(count.sum(0) == 0)]
    if missing:
        notes.append(f"Classes {', '.join(missing)} were seen by no client and are not drawn.")
    small = int(((count > 0) & (count < 5)).sum())
    if small:
        notes.append(f"{small} statistics come from fewer than 5 samples of a client, and reveal them; `least_count` "
                     "withholds such.")  # fmt: skip
    return notes


def _statistics_report(result: Result, stages: list[str]) -> Report:
    value = {stage: float(result["virtual_accuracy"].sel({"stage": stage})) for stage in stages}
    clients, classes = result["partition"].shape
    metrics = [
        Metric(name=f"virtual_accuracy_{stage}", value=value[stage], direction="higher",
               description=f"{STAGES[stage]}, on fresh virtual features, classes balanced")
        for stage in stages
    ]  # fmt: skip
    return Report(
        summary=f"From the statistics of {clients} clients and {classes} classes the head was calibrated: on virtual features "
        f"it has not seen its accuracy goes from {_percent(value['before'])} to {_percent(value['ccvr'])}.",
        metrics=metrics,
        tables=(_class_table(result),),
        views=(HeatMap(title="Who owns what", z="partition", x="class", y="client", annotate=True, z_label="samples"),),
        notes=["Accuracy on virtual features assumes that features are Gaussian in each class and classes are equally "
               "frequent; only real test samples show what the head is worth.", *_statistics_notes(result)],
    )  # fmt: skip
