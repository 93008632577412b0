"""What a run of h-calibration found, in words, tables and views: beside a temperature and beside cross-entropy."""

from __future__ import annotations

import numpy as np
from workbench import Line, Metric, Report, Result, Scatter, Table

from workbench_calibration.evaluation import UNCALIBRATED
from workbench_calibration.evaluation_report import Scores, evaluation_report, rank_table
from workbench_calibration.h_errors import FURTHER, QUADRATIC_SAMPLES
from workbench_calibration.h_loss import LOSS_SCALE
from workbench_calibration.h_training import SELECTORS
from workbench_calibration.ranking import RANKED

MAIN, BASELINE, TEMPERATURE = "h_calibration", "cross_entropy", "temperature"


def h_report(result: Result) -> Report:
    """What the objective changes beyond temperature and beyond cross-entropy."""
    best, goal = str(result["selected_map"].values), result.params.goal
    reached = {name: float(result["fit_h_loss"].sel(recalibrator=name)) for name in (MAIN, BASELINE)}
    notes = ["All fitting and selection used the fit samples only.",
             "`cross_entropy` is the selected map under the same schedule and selector: only the objective differs."]
    if reached[MAIN] > reached[BASELINE]:
        notes.append(f"On the fit samples the map trained with cross-entropy reaches a lower h-calibration loss "
                     f"({reached[BASELINE]:.4g}) than the one trained with it ({reached[MAIN]:.4g}): the schedule, "
                     "which follows the top-label error, stopped short of the objective's minimum. Try another map, "
                     "`watch=loss` or a larger lr before judging the objective.")
    behind, least, _ = _difference(result, TEMPERATURE, "negative_log_likelihood")
    if least > 0:
        notes.append(f"Its negative log likelihood is {behind:.4f} nats above temperature scaling's, which sampling alone "
                     "does not explain: use that, or fit on more samples.")
    scores = Scores(result)
    beyond_temperature = _versus(result, TEMPERATURE, "temperature scaling's")
    candidate = {"candidate": best}
    metrics = [
        Metric(name="fit_h_loss", value=reached[MAIN], direction="lower",
               description=f"h-calibration loss of the fit samples, times {LOSS_SCALE:g}"),
        *_compared(scores),
    ]
    curves = result["log_odds_curve"]
    drawn = [str(name) for name in curves["recalibrator"].values[np.isfinite(curves.values).all(axis=1)]]
    views = [
        Line(title="Selector during fitting", y=("selector_history",), x="epoch", by="candidate",
             y_label=SELECTORS[goal], caption="On the fit samples; the best epoch of the best map is used."),
        Line(title=f"Loss of {best}", y=("loss_history",), x="epoch", select=candidate,
             y_label=f"h-calibration loss (x {LOSS_SCALE:g})", log_y=True),
        Line(title="Learned maps", y=("log_odds_curve",), x="log_odds", by="recalibrator", select={"recalibrator": drawn},
             x_label="log-odds of two classes before", y_label="after",
             caption="The uncalibrated line is the identity; a smaller slope lowers confidence."),
        Scatter(title="Gap before calibration", x="event_probability_before", y="event_gap_before", log_x=True,
                x_label="probability of a class", y_label="windowed |p - frequency|"),
        Scatter(title="Gap after calibration", x="event_probability", y="event_gap", log_x=True,
                x_label="probability of a class", y_label="windowed |p - frequency|",
                caption="Fit samples, all classes: what the loss sees."),
    ]
    if "map_curve" in result:
        views.insert(2, Line(title=f"Map {best}", y=("map_curve",), x="log_probability",
                             x_label="log-probability before", y_label="after, before softmax"))
    return evaluation_report(
        result,
        main=MAIN,
        summary=(
            f"Of {result['selector'].size - 1} maps {best} has the best {SELECTORS[goal]} on the fit samples. Its "
            f"calibration error is {beyond_temperature} and "
            f"{_versus(result, BASELINE, 'that of the same map trained with cross-entropy')}."
        ),
        metrics=metrics,
        tables=(_difference_table(result), rank_table(scores), _further_table(result), _candidate_table(result)),
        views=views,
        shown=drawn,
        notes=notes,
    )


def _compared(scores: Scores) -> list[Metric]:
    return [
        Metric(name=f"ece_width_l1_{name}", value=scores("value", name, "ece_width_l1"), direction="lower",
               interval=scores.span("value", name, "ece_width_l1"))
        for name in scores.methods
        if name not in (MAIN, UNCALIBRATED)
    ]


def _versus(result: Result, other: str, whose: str) -> str:
    """How far the main calibration error lies from another method's, as printed, and whether that is sure."""
    value, low, high = _difference(result, other, "ece_width_l1")
    shown = f"{abs(value):.4f}"
    if float(shown) == 0:
        return f"equal to {whose}"
    unclear = " (which sampling alone can explain)" if low <= 0 <= high else ""
    return f"{shown} {'lower' if value < 0 else 'higher'} than {whose}{unclear}"


def _difference(result: Result, other: str, metric: str) -> tuple[float, float, float]:
    """A metric less that of another method, and its paired interval."""
    at = {"recalibrator": other, "ranked_metric": metric}
    value, low, high = (float(result[f"difference{end}"].sel(at)) for end in ("", "_lower", "_upper"))
    return value, low, high


def _difference_table(result: Result) -> Table:
    """What the method is worth beside each other one, on the same resamples."""

    def cell(other: str, metric: str) -> str:
        value, low, high = _difference(result, other, metric)
        return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"

    others = [str(name) for name in result["difference"]["recalibrator"].values if name != MAIN]
    return Table(
        title=f"{MAIN} less the others",
        columns=("compared with", "NLL", "Brier score", "ECE", "ECE, equal mass", "KS", "classwise ECE"),
        rows=tuple((other, *(cell(other, metric) for metric in RANKED)) for other in others),
        caption="Report samples; negative: h_calibration is better. In brackets 95 % intervals of the difference by paired "
        "bootstrap, the fitted maps fixed: where they hold 0 nothing is shown.",
    )


def _further_table(result: Result) -> Table:
    """Errors that only this method's evaluation asks for, as they are."""
    samples = min(result["label"].size, QUADRATIC_SAMPLES)
    return Table(
        title="Further errors",
        columns=("method", *FURTHER),
        rows=tuple(
            (str(name), *(float(f"{value:.4g}") for value in row.values))
            for name, row in zip(result["further_error"]["recalibrator"].values, result["further_error"], strict=True)
        ),
        caption=f"Report samples; lower is better, the kernel error may be negative. "
        f"{'; '.join(f'{name}: {text}' for name, text in FURTHER.items())}. Those of whole distributions see {samples} samples.",
    )


def _candidate_table(result: Result) -> Table:
    rows = tuple(
        (
            str(name),
            float(f"{float(result['selector'].sel({'candidate': name})):.5g}"),
            int(result["selected_epoch"].sel({"candidate": name})),
            int(np.isfinite(result["loss_history"].sel({"candidate": name}).values).sum()),
            int(result["changed_by_candidate"].sel({"candidate": name})),
        )
        for name in result["selector"]["candidate"].values
    )
    return Table(
        title="Candidates",
        columns=("map", SELECTORS[result.params.goal], "selected epoch", "epochs run", "report predictions changed"),
        rows=rows,
        caption="The selector is that of the fit samples. A map that changes a prediction is not eligible.",
    )
