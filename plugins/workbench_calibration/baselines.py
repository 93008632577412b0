"""Which standard recalibrator suits this classifier: all of them on the same samples, ranked, with intervals.

Temperature (Guo et al. 2017), vector and matrix scaling (the same), Dirichlet calibration (Kull et al. 2019), isotonic
regression (Zadrozny and Elkan 2002; Zhang et al. 2020), histogram binning (Zadrozny and Elkan 2001), BBQ (Naeini et al.
2015), ensemble temperature scaling (Zhang et al. 2020), splines (Gupta et al. 2021), beta calibration (Kull et al. 2017) and
Platt scaling (Platt 1999) one class against the rest, each as in its own file of this family, with the defaults there.

Fitted on the fit samples and judged on others; the methods are ranked on the latter, which describes and must not be used
to choose: with many methods the best of them looks better than it is. `suggested` therefore rests on held-out folds of the fit
samples: the method with the fewest fitted numbers among those that are as good, which may be none at all: the probabilities are
kept as they are unless something is better beyond noise (`choice` states the rule).

Intervals keep the fitted maps as they are. With `fit_draws` there are others beside them that cover the noise of the fit, too
(`refitting`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from pydantic import Field
from workbench import Bar, InputError, Inputs, Method, Metric, Out, Output, Paper, Report, Result, Table

from workbench_calibration.affine import fit_diagonal
from workbench_calibration.bbq import fit_bbq
from workbench_calibration.beta import fit_beta
from workbench_calibration.choice import HeldOut, judge, suggestion
from workbench_calibration.curves import CURVES, curves_view, write_curves
from workbench_calibration.ensemble_temperature import fit_ensemble
from workbench_calibration.evaluation import OUTPUTS, UNCALIBRATED, Calibrator, EvaluationParams, evaluate
from workbench_calibration.evaluation_report import Scores, evaluation_report, top_five
from workbench_calibration.histogram_binning import fit_histogram
from workbench_calibration.isotonic import fit_isotonic
from workbench_calibration.matrix_scaling import Kind, MatrixFit, fit_matrix
from workbench_calibration.platt import fit_platt
from workbench_calibration.ranking import RANKED, rank_methods
from workbench_calibration.recalibration import Fit
from workbench_calibration.refitting import REFIT_OUTPUTS, refit_table, refitted_metrics, write_refits
from workbench_calibration.resampling import CLIP
from workbench_calibration.samples import INPUTS, Samples, cross_validation_folds, read_parts
from workbench_calibration.spline import fit_spline
from workbench_calibration.temperature import fit_temperature

FOLDS = 3
VERDICTS = {
    "cross_validated": "likelihood",
    "behind": "behind",
    "behind_error": "behind_error",
    "held_out_ece": "calibration_error",
    "held_out_p_value": "p_value",
    "accuracy_change": "accuracy_change",
    "accuracy_error": "accuracy_error",
    "fitted_numbers": "numbers",
    "reason": "reason",
}
"""Stored array -> field of a verdict."""
BEFORE_AFTER = (
    ("negative_log_likelihood", "Negative log likelihood"),
    ("ece_width_l1", "Calibration error (ECE)"),
    ("classwise_ece_width_mean", "Classwise calibration error"),
)
HISTOGRAM_BINS = 15
SPLINE_KNOTS = 6


def recalibrators(seed: int) -> dict[str, Fit]:
    """Every recalibrator with its defaults; `seed` is that of the folds by which matrix penalties are chosen."""

    def matrix(kind: Kind) -> Fit:
        return lambda samples: fit_matrix(samples, kind=kind, off_diagonal=None, intercept=None, seed=seed)

    return {
        "temperature": fit_temperature,
        "ensemble_temperature": lambda samples: fit_ensemble(samples, loss="mse"),
        "vector_scaling": fit_diagonal,
        "matrix_scaling": matrix("matrix"),
        "dirichlet": matrix("dirichlet"),
        "isotonic_one_vs_rest": lambda samples: fit_isotonic(samples, "one_vs_rest"),
        "isotonic_multi_class": lambda samples: fit_isotonic(samples, "multi_class"),
        "histogram_binning": lambda samples: fit_histogram(samples, n_bins=HISTOGRAM_BINS, binning="width"),
        "bbq": lambda samples: fit_bbq(samples, score="bdeu"),
        "spline": lambda samples: fit_spline(samples, knots=SPLINE_KNOTS),
        "beta": lambda samples: fit_beta(samples, variant="abm"),
        "platt": lambda samples: fit_platt(samples, targets="smoothed"),
    }


FAST = ("temperature", "ensemble_temperature", "vector_scaling", "isotonic_one_vs_rest", "isotonic_multi_class",
        "histogram_binning", "bbq", "spline", "beta", "platt")


def held_out(fit: Fit, samples: Samples, seed: int) -> HeldOut:
    """What a recalibrator gives each fold of the fit samples when it is fitted on the others."""
    found = np.empty((3, len(samples.label)))
    for rest, fold in cross_validation_folds(samples, FOLDS, seed):
        found[:, fold] = judged(fit(samples.subset(rest)), samples.subset(fold))
    return HeldOut(*found, 0)


def judged(calibrate: Calibrator, samples: Samples) -> np.ndarray:
    """Likelihood, confidence and hit of each sample, (3, sample); p of the label is clipped as in the reports."""
    found = []
    for logit, label in samples.labelled_blocks():
        probability = calibrate(logit)
        own = probability.gather(1, label[:, None])[:, 0].clamp_min(CLIP)
        confidence, best = probability.max(dim=1)
        found.append(torch.stack([-torch.log(own), confidence, (best == label).double()]).cpu().numpy())
    return np.concatenate(found, axis=1)


class Baselines(Method):
    """All standard recalibrators side by side."""

    id = "calibration.baselines"
    title = "Compares the standard recalibrators of a classifier on the same samples, ranked and with intervals"
    version = "5"
    paper = Paper(
        title="On Calibration of Modern Neural Networks",
        authors="Guo, Pleiss, Sun, Weinberger",
        year=2017,
        arxiv="1706.04599",
        venue="ICML 2017",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("method_probability", ("recalibrator", "sample", "class"), "float32", "probabilities of every method"),
        Output("cross_validated", ("recalibrator",), "float64", "negative log likelihood of held-out folds of the fit samples; "
               "of the uncalibrated probabilities that of all of them, nothing being fitted"),
        Output("behind", ("recalibrator",), "float64", "the same less the lowest"),
        Output("behind_error", ("recalibrator",), "float64", "standard error of that, paired over samples"),
        Output("held_out_ece", ("recalibrator",), "float64", "top-label calibration error of the held-out folds, equal width"),
        Output("held_out_p_value", ("recalibrator",), "float64", "chance of so large an error if calibrated"),
        Output("accuracy_change", ("recalibrator",), "float64", "accuracy of the held-out folds less that of the uncalibrated"),
        Output("accuracy_error", ("recalibrator",), "float64", "standard error of that, paired over samples"),
        Output("fitted_numbers", ("recalibrator",), "int64", "numbers that the method fits"),
        Output("reason", ("recalibrator",), "str", "why it is suggested or not"),
        Output("suggested", (), "str", "method that the rule of `choice` names, or uncalibrated; `probability` is its"),
        Output("temperature", (), "float64", "fitted temperature", optional=True),
        *CURVES,
        *REFIT_OUTPUTS,
        Output("metric_rank", ("recalibrator", "ranked_metric"), "float64", "rank on the report samples; 1 is best"),
        Output("metric_rank_best", ("recalibrator", "ranked_metric"), "float64", "1 + number of methods clearly better"),
        Output("metric_rank_worst", ("recalibrator", "ranked_metric"), "float64", "methods less those clearly worse"),
        Output("rank", ("recalibrator",), "float64", "mean of `metric_rank` over the metrics"),
        Output("rank_best", ("recalibrator",), "float64", "mean of `metric_rank_best` over the metrics"),
        Output("rank_worst", ("recalibrator",), "float64", "mean of `metric_rank_worst` over the metrics"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        methods: tuple[str, ...] = Field(
            FAST, min_length=1,
            description="Recalibrators; matrix_scaling and dirichlet, which take minutes for many classes, can be added",
        )
        fit_draws: int = Field(
            0, ge=0, le=10_000,
            description="Draws of fit and report samples, each fitted anew, for intervals that cover the noise of the fit (100 "
            "are sensible); 0: none",
        )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit every method on the fit rows, suggest one by cross-validation there, and judge all on the others."""
        fits = recalibrators(out.seed)
        unknown = [name for name in params.methods if name not in fits]
        if unknown or len(set(params.methods)) != len(params.methods):
            raise InputError("methods", expected=f"distinct names out of {tuple(fits)}", got=str(params.methods))
        parts = read_parts(inputs, fit_fraction=params.fit_fraction, seed=out.seed, device=out.device)
        cross_validation_folds(parts.fit, FOLDS, out.seed)  # too few samples are refused before anything is fitted
        # Nothing is fitted for the uncalibrated probabilities, so all fit samples are held out.
        held = {UNCALIBRATED: HeldOut(*judged(lambda logit: torch.softmax(logit, dim=1), parts.fit), 0)}
        fitted: dict[str, Any] = {}
        for name in out.track(params.methods, "fitting"):
            fitted[name] = fits[name](parts.fit)
            held[name] = replace(held_out(fits[name], parts.fit, out.seed), numbers=fitted[name].numbers)
        verdicts = judge(held, uncalibrated=UNCALIBRATED, n_bins=params.n_bins, rng=out.rng("choice"))
        suggested = suggestion({name: one.reason for name, one in verdicts.items()})
        evaluated = evaluate(out, parts, fitted, main=suggested, params=params, keep_all=True)
        if "temperature" in fitted:
            out.write("temperature", fitted["temperature"].temperature)
        write_curves(out, fitted, parts.fit.classes)
        if params.fit_draws:
            again = {name: _refit(fits[name], fitted[name]) for name in params.methods}
            drawn = refitted_metrics(
                parts, again, uncalibrated=UNCALIBRATED, n_bins=params.n_bins, draws=params.fit_draws, rng=out.rng("refits"),
                track=lambda draws: out.track(draws, "fitting anew"),
            )
            write_refits(out, evaluated.metrics, drawn, uncalibrated=UNCALIBRATED)
        ranked = rank_methods(evaluated.metrics, evaluated.resampled)
        for array, field in VERDICTS.items():
            out.write(array, [getattr(one, field) for one in verdicts.values()])
        out.write("suggested", suggested)
        out.coordinate("ranked_metric", list(RANKED))
        for suffix, table in (("", ranked.rank), ("_best", ranked.best), ("_worst", ranked.worst)):
            out.write(f"metric_rank{suffix}", table)
            out.write(f"rank{suffix}", table.mean(axis=1))

    def report(self, result: Result) -> Report:
        """The suggestion, the ranking, and every method's figures."""
        suggested, scores = str(result["suggested"].values), Scores(result)
        held = {name: float(value) for name, value in zip(scores.methods, result["cross_validated"].values, strict=True)}
        best = min((name for name in scores.methods if name != UNCALIBRATED), key=lambda name: held[name])
        shown = list(dict.fromkeys([UNCALIBRATED, suggested, "temperature", best]))[:3]
        behind, error = (float(result[name].sel(recalibrator=suggested)) for name in ("behind", "behind_error"))
        return evaluation_report(
            result,
            main=suggested,
            summary=why_suggested(suggested, held, near=behind <= error),
            metrics=[*([Metric(name="temperature", value=float(result["temperature"]), description="of temperature scaling")]
                       if "temperature" in result else []),
                     *(Metric(name=f"ece_width_l1_{name}", value=scores("value", name, "ece_width_l1"), direction="lower",
                            interval=scores.span("value", name, "ece_width_l1"))
                     for name in scores.methods if name not in (suggested, UNCALIBRATED))],
            first=(choice_table(result, scores), rank_table(result, scores)),
            tables=(comparison_table(result, scores), *([refit_table(result, scores)] if "refit_lower" in result else [])),
            views=(
                *(before_after(metric, title) for metric, title in BEFORE_AFTER),
                Bar(title="Average rank on the report samples", y=("rank",), x="recalibrator", lower="rank_best",
                    upper="rank_worst", y_label="average rank (1 = best)",
                    caption=f"Over {len(RANKED)} metrics; whiskers: means of the best and worst ranks that chance leaves."),
                *([curves_view(result, scores.methods)] if "fitted_curve" in result else []),
            ),
            notes=("The ranking on the report samples describes; choosing by it would be selecting on them.",),
            shown=[name for name in shown if name in scores.methods],
        )


def _refit(fit: Fit, fitted: Any) -> Fit:
    """How a method is fitted on resampled samples: what it chose by cross-validation is kept."""
    if not isinstance(fitted, MatrixFit):
        return fit
    return lambda samples: fit_matrix(
        samples, kind=fitted.kind, off_diagonal=fitted.off_diagonal, intercept=fitted.intercept, seed=0
    )


def why_suggested(suggested: str, held: Mapping[str, float], *, near: bool) -> str:
    """What led to the suggestion, in a sentence that holds for every branch of the rule.

    Args:
        suggested: the method that the rule named.
        held: held-out negative log likelihood of every method, of the uncalibrated probabilities too.
        near: whether that of `suggested` is within a standard error of the lowest.
    """
    what = "cross-validated negative log likelihood of the fit samples"
    tried = len(held) - 1
    lowest = min(held, key=lambda name: held[name])
    if suggested == UNCALIBRATED:
        best = min((name for name in held if name != UNCALIBRATED), key=lambda name: held[name])
        reason = (
            f"nothing of the {tried} recalibrators tried is better beyond noise"
            if near
            else f"those of the {tried} recalibrators that are better lose accuracy"
        )
        return (
            f"Keep the uncalibrated probabilities: {reason} (negative log likelihood {held[suggested]:.4f} on the fit samples; "
            f"the best recalibrator, {best}, has {held[best]:.4f} on held-out folds of them)."
        )
    if suggested == lowest:
        return f"Of {tried} recalibrators {suggested} has the lowest {what}: {held[suggested]:.4f}."
    if near:
        return (
            f"Of {tried} recalibrators {suggested} fits the fewest numbers of those that the rule leaves: it keeps the accuracy, "
            f"and its {what}, {held[suggested]:.4f}, is within a standard error of the lowest ({lowest}, {held[lowest]:.4f})."
        )
    return (
        f"Of {tried} recalibrators {suggested} has the lowest {what} of those that keep the accuracy: {held[suggested]:.4f} "
        f"(lowest of all: {lowest}, {held[lowest]:.4f})."
    )


def choice_table(result: Result, scores: Scores) -> Table:
    """What the choice rests on, best likelihood first."""
    column = {name: result[name].values for name in VERDICTS}
    rows = tuple(
        (
            scores.methods[m],
            round(float(column["cross_validated"][m]), 4),
            f"{column['behind'][m]:.4f} +- {column['behind_error'][m]:.4f}",
            round(float(column["held_out_ece"][m]), 4),
            round(float(column["held_out_p_value"][m]), 3),
            f"{column['accuracy_change'][m]:+.4f} +- {column['accuracy_error'][m]:.4f}",
            int(column["fitted_numbers"][m]),
            str(column["reason"][m]),
        )
        for m in np.argsort(column["cross_validated"], kind="stable")
    )
    return Table(
        title="Which should I use?",
        columns=("method", "NLL", "behind the best", "ECE", "p", "accuracy change", "numbers fitted", "verdict"),
        rows=rows,
        caption=f"Held-out folds of the {result['fit_index'].size} fit samples only; the uncalibrated probabilities take part as "
        "the method that fits nothing. Kept are methods whose negative log "
        "likelihood is within one standard error of the lowest and that lose no accuracy beyond one standard error; of these, "
        "those whose calibration error chance explains (p of 0.05 or more, if any); of these the one that fits the fewest "
        "numbers, since it needs the fewest samples.",
    )


def rank_table(result: Result, scores: Scores) -> Table:
    """Ranks on the report samples with the range that chance leaves, best on average first."""
    column = {name: result[name].values for name in ("metric_rank", "metric_rank_best", "metric_rank_worst")}
    average = result["rank"].values

    def cell(method: int, metric: int) -> str:
        rank, low, high = (float(values[method, metric]) for values in column.values())
        return f"{rank:g} ({low:g} to {high:g})"

    rows = tuple(
        (scores.methods[m], round(float(average[m]), 2), *(cell(m, metric) for metric in range(len(RANKED))))
        for m in np.argsort(average, kind="stable")
    )
    return Table(
        title="Ranking",
        columns=("method", "average rank", "NLL", "Brier score", "ECE", "ECE, equal mass", "KS", "classwise ECE"),
        rows=rows,
        caption="Report samples; 1 is best. In brackets the ranks that chance leaves: a method counts as better or worse only "
        "if the 95 % interval of the paired difference leaves out 0. The calibration errors measure nearly the same thing.",
    )


def comparison_table(result: Result, scores: Scores) -> Table:
    """The headline metrics of all methods on the report samples, with intervals; top-5 accuracy of more than five classes."""
    wide = "top5_accuracy" in result
    metrics = ("negative_log_likelihood", "brier_score", "ece_width_l1", "ks_error", "classwise_ece_width_mean", "accuracy")

    def row(name: str) -> tuple[str, ...]:
        spans = [(scores("value", name, metric), *scores.span("value", name, metric)) for metric in metrics]
        spans += [top_five(result, name)] if wide else []
        return (name, *(f"{value:.4f} ({low:.4f} to {high:.4f})" for value, low, high in spans))

    return Table(
        title="Recalibrators",
        columns=("method", "NLL", "Brier score", "ECE", "KS", "classwise ECE", "accuracy", *(["top-5 accuracy"] if wide else [])),
        rows=tuple(row(name) for name in scores.methods),
        caption=f"Report samples, with 95 % bootstrap intervals{' (Wilson intervals of the top-5 accuracy)' if wide else ''}.",
    )


def before_after(metric: str, title: str) -> Bar:
    """One metric before and after all methods, with intervals."""
    return Bar(title=title, y=("value",), x="recalibrator", lower="lower", upper="upper", select={"metric": metric},
               y_label=title, caption="Report samples, 95 % bootstrap intervals.")
