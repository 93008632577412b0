"""Report of `calibration.overlap_mixup`: trainings before and after temperature scaling, against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special
from workbench import Line, Metric, ReliabilityDiagram, Report, Result, Table
from workbench.toolkit import mean_interval

SHOWN = ("negative_log_likelihood", "kl_to_posterior", "ece_width_l1")
DESCRIPTIONS = {
    "negative_log_likelihood": "mean -log p of the label, nats",
    "kl_to_posterior": "mean KL(true probabilities || predicted), nats",
    "ece_width_l1": "top-label calibration error, bins of equal width",
}
STAGE_TEXT = {"raw": "raw", "ts": "temperature", "ts_paper_code": "temperature as in the paper's code"}

INTERPOLATES = 0.99
"""Training accuracy from which a network counts as interpolating its labels."""


def report(result: Result) -> Report:
    """The whole report; figures are means over seeds, judged by the labels that follow the training's distribution."""
    value = result["value"].isel(target=-1)
    modes = [str(mode) for mode in value["mode"].values]
    return Report(
        summary=_summary(result, value, modes),
        metrics=_metrics(result, value, modes),
        tables=(*_score_tables(result, modes), _reference_table(result)),
        views=(*_diagrams(result), *_lines()["logit_gap" not in result :]),
        notes=_notes(result, value, modes),
    )


def difference(value: Any, mode: str, metric: str) -> tuple[float, tuple[float, float] | None]:
    """`metric` of raw `mode` less that of plain training with converged temperature; interval over paired seeds."""
    own = value.sel({"mode": mode, "stage": "raw", "metric": metric}).values
    interval = mean_interval(own - value.sel({"mode": "erm", "stage": "ts", "metric": metric}).values)
    return interval.value, None if np.isnan(interval.lower) else (interval.lower, interval.upper)


def given_difference(result: Result) -> tuple[float, tuple[float, float] | None]:
    """The same of the likelihood of given logits; interval over paired samples, the temperature held fixed."""
    label, rows = result["label"].values, np.arange(result["label"].size)
    losses = [
        -special.log_softmax(result["logit"].isel(mode=mode, seed=0).values.astype(np.float64) / t, axis=1)[rows, label]
        for mode, t in ((1, 1.0), (0, float(result["temperature"].values[0, 0])))
    ]
    interval = mean_interval(losses[0] - losses[1])
    return interval.value, (interval.lower, interval.upper)


def _likelihood_difference(result: Result, value: Any, mode: str) -> tuple[float, tuple[float, float] | None]:
    return given_difference(result) if _given(result) else difference(value, mode, "negative_log_likelihood")


def _given(result: Result) -> bool:
    """Whether logits were given and nothing was trained."""
    return "train_accuracy" not in result


def _mean(value: Any, mode: str, stage: str, metric: str) -> float:
    return float(value.sel({"mode": mode, "stage": stage, "metric": metric}).mean())


def _problem(result: Result) -> str:
    params = result.params
    if _given(result):
        return f"{result['label'].size} samples whose logits were given"
    if "noise_map" in result:
        return (
            f"images of which a share of {params.label_noise:g} of the training labels is mistaken for one other class"
        )
    if params.problem == "gaussians":
        return f"two Gaussians that lie {params.separation:g} apart per coordinate"
    return f"{params.classes} classes in pairs that overlap in {params.overlap:.0%} of the samples"


def _summary(result: Result, value: Any, modes: list[str]) -> str:
    nll = {stage: _mean(value, "erm", stage, "negative_log_likelihood") for stage in ("raw", "ts")}
    mixed = ", ".join(f"{m} {_mean(value, m, 'raw', 'negative_log_likelihood'):.3f}" for m in modes[1:])
    change, interval = _likelihood_difference(result, value, modes[1])
    best = f"; the true probabilities reach {float(result['best_likelihood'].values[-1]):.3f}" if not _given(result) else ""
    # A single training has no interval; then a difference this small is no finding.
    clear = abs(change) >= 0.02 if interval is None else interval[0] > 0 or interval[1] < 0
    place = "In a single training of each kind" if interval is None else "Here"
    if not clear:
        verdict = f"{place} plain training with a converged temperature and {modes[1]} cannot be told apart"
    elif change < 0:
        verdict = f"{place} the training must mix: {modes[1]} beats plain training with a converged temperature"
    else:
        verdict = f"{place} a temperature is enough: it beats {modes[1]}"
    return (
        f"{verdict} (NLL difference {change:+.3f}). On {_problem(result)}, plain training has an NLL of {nll['raw']:.3f}, "
        f"{nll['ts']:.3f} after temperature scaling; mixed without scaling: {mixed}{best}."
    )


def _metrics(result: Result, value: Any, modes: list[str]) -> list[Metric]:
    metrics = []
    for metric in SHOWN:
        for mode in modes:
            for stage in ("raw", "ts"):
                interval = mean_interval(value.sel({"mode": mode, "stage": stage, "metric": metric}).values)
                span = None if np.isnan(interval.lower) else (interval.lower, interval.upper)
                metrics.append(
                    Metric(name=f"{metric}_{mode}_{stage}", value=interval.value, direction="lower", interval=span,
                           unit="" if metric == "ece_width_l1" else "nats",
                           description=f"{DESCRIPTIONS[metric]}; {mode}, {STAGE_TEXT[stage]}; interval over seeds")
                )  # fmt: skip
    for mode in modes[1:]:
        change, span = _likelihood_difference(result, value, mode)
        metrics.append(
            Metric(name=f"negative_log_likelihood_{mode}_less_erm_ts", value=change, direction="lower", unit="nats",
                   interval=span, description=f"raw {mode} less plain training with temperature, seed by seed")
        )  # fmt: skip
    if _given(result):
        return metrics
    metrics.append(
        Metric(name="best_negative_log_likelihood", value=float(result["best_likelihood"].values[-1]), unit="nats",
               description="of the true probabilities: no prediction can be expected to do better")
    )  # fmt: skip
    return metrics


def _score_tables(result: Result, modes: list[str]) -> list[Table]:
    tables = []
    names = [str(name) for name in result["value"]["metric"].values]
    for target in [str(name) for name in result["value"]["target"].values]:
        value = result["value"].sel({"target": target})
        rows = []
        for mode in modes:
            for stage, text in STAGE_TEXT.items():
                fitted = {"ts": "temperature", "ts_paper_code": "temperature_paper_code"}.get(stage)
                t = 1.0 if fitted is None else float(result[fitted].sel({"mode": mode}).mean())
                means = [round(_mean(value, mode, stage, name), 4) for name in names]
                rows.append((mode, text, round(t, 3), *means))
        tables.append(
            Table(
                title=f"Scores against {target} labels",
                columns=("training", "scaling", "T", *names),
                rows=tuple(rows),
                caption="Means over seeds. ace_unweighted: plain mean gap of the non-empty bins (not the adaptive ECE of "
                "other papers). "
                + (
                    "The divergence is from certain labels."
                    if target in ("clean", "given")
                    else "The divergence is from the truth."
                ),
            )
        )
    return tables


def _reference_table(result: Result) -> Table:
    curve = result["reference_kl"]
    rows = tuple(
        (int(k), *(round(float(x), 3) for x in curve.sel({"class_count": k}).values))
        for k in curve["class_count"].values
    )
    return Table(
        title="Untrained predictors on pairs of disks: KL to the truth (nats)",
        columns=("classes", *(str(name) for name in curve["predictor"].values)),
        rows=rows,
        caption="Mean of 3 draws. The nearest label's best temperature spreads the doubt over all classes, so its error "
        "grows with their number; averaging neighbouring labels keeps it between the two that overlap.",
    )


def _diagrams(result: Result) -> list[ReliabilityDiagram]:
    titles = {"raw": "Reliability as trained", "ts": "Reliability after converged temperature scaling"}
    return [
        ReliabilityDiagram(
            title=title,
            caption="Test samples of all seeds, bins of equal width. Below the diagonal: overconfident.",
            confidence="reliability_confidence",
            accuracy="reliability_accuracy",
            count="reliability_count",
            by="mode",
            select={"stage": stage},
        )
        for stage, title in titles.items()
    ]


def _lines() -> list[Line]:
    return [
        Line(
            title="Certainty around training points",
            caption="Own logit less the largest other, mean over points of a sphere around training points (seed 0). The "
            "theory assumes that an interpolating network stays certain some way out: a curve that starts high and falls "
            "slowly.",
            y=("logit_gap",),
            x="radius",
            by="mode",
            x_label="radius of the sphere",
            y_label="logit gap",
        ),
        Line(
            title="The theory: error after scaling grows with the number of classes",
            caption="Pairs of disks, no training. One temperature for a classifier that returns its nearest label; 0.5 log k is "
            "the rate of the theory, for complete overlap.",
            y=("reference_kl",),
            x="class_count",
            by="predictor",
            log_x=True,
            markers=True,
            x_label="classes",
            y_label="KL(truth || prediction), nats",
        ),
    ]


def _notes(result: Result, value: Any, modes: list[str]) -> list[str]:
    notes = []
    seeds = value.sizes["seed"]
    notes.append(
        "Logits were given: the interval of the difference covers the samples judged, not the trainings. Neither model may have "
        "seen these samples."
        if _given(result)
        else "One seed: nothing says how far the figures move with the initial weights."
        if seeds == 1
        else f"Intervals cover {seeds} trainings on one draw of the data, not the draw itself."
    )
    fitted = [float(result[name].sel({"mode": "erm"}).mean()) for name in ("temperature", "temperature_paper_code")]
    text = f"The temperature of plain training is {fitted[0]:.2f}; the steps of the paper's code end at {fitted[1]:.2f}"
    short = abs(np.log(fitted[1])) < abs(np.log(fitted[0])) / 2
    notes.append(f"{text}: comparisons with it are nearly comparisons with no scaling." if short else f"{text}.")
    learnt = 1.0 if _given(result) else float(result["train_accuracy"].sel({"mode": "erm"}).mean())
    if learnt < INTERPOLATES:
        notes.append(
            f"Plain training gets {100 * learnt:.1f} % of its training labels right: it does not interpolate them, which is "
            "what the theory is about. Its likelihood gets worse with every epoch until it does; train longer, or with smaller "
            "batches, to see the case of the paper."
        )
    cold = [mode for mode in modes[1:] if float(result["temperature"].sel({"mode": mode}).mean()) < 0.95]
    if cold:
        notes.append(
            f"{', '.join(cold)}: underconfident (T below 1), as mixing makes classifiers where classes do not overlap."
        )
    if "noise_map" in result:
        notes.append("Temperatures are fitted on noisy labels, as they would be in practice; the table of clean labels "
                     "judges by labels that follow another distribution than the training's.")  # fmt: skip
    return notes
