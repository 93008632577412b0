"""Which standard recalibrator suits this classifier: all of them on the same samples, ranked, with intervals.

Temperature (Guo et al. 2017), vector and matrix scaling (the same), Dirichlet calibration (Kull et al. 2019), isotonic
regression (Zadrozny and Elkan 2002; Zhang et al. 2020), histogram binning (Zadrozny and Elkan 2001), BBQ (Naeini et al.
2015), ensemble temperature scaling (Zhang et al. 2020) and splines (Gupta et al. 2021), each as in its own file of this
family, with the defaults there.

Fitted on the fit samples and judged on others; the methods are ranked on the latter, which describes and must not be used
to choose: with many methods the best of them looks better than it is. `suggested` therefore names the method with the
lowest cross-validated negative log likelihood of the fit samples; the report says so where the probabilities as they are
do as well there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from workbench import Bar, InputError, Inputs, Line, Method, Metric, Out, Output, Paper, Report, Result, Table
from workbench.toolkit import kfold_indices, negative_log_likelihood

from workbench_calibration.affine import fit_diagonal
from workbench_calibration.bbq import fit_bbq
from workbench_calibration.ensemble_temperature import fit_ensemble
from workbench_calibration.evaluation import OUTPUTS, UNCALIBRATED, EvaluationParams, evaluate
from workbench_calibration.evaluation_report import Scores, evaluation_report, rank_table, ranks
from workbench_calibration.histogram_binning import fit_histogram
from workbench_calibration.isotonic import fit_isotonic
from workbench_calibration.matrix_scaling import Kind, fit_matrix
from workbench_calibration.recalibration import Fit
from workbench_calibration.resampling import CLIP
from workbench_calibration.samples import INPUTS, read_parts
from workbench_calibration.spline import fit_spline
from workbench_calibration.temperature import fit_temperature

FOLDS = 3
HISTOGRAM_BINS = 15
SPLINE_KNOTS = 6


def recalibrators(seed: int) -> dict[str, Fit]:
    """Every recalibrator with its defaults; `seed` is that of the folds by which matrix penalties are chosen."""

    def matrix(kind: Kind) -> Fit:
        return lambda logit, label: fit_matrix(logit, label, kind=kind, off_diagonal=None, intercept=None, seed=seed)

    return {
        "temperature": fit_temperature,
        "ensemble_temperature": lambda logit, label: fit_ensemble(logit, label, loss="mse"),
        "vector_scaling": fit_diagonal,
        "matrix_scaling": matrix("matrix"),
        "dirichlet": matrix("dirichlet"),
        "isotonic_one_vs_rest": lambda logit, label: fit_isotonic(logit, label, "one_vs_rest"),
        "isotonic_multi_class": lambda logit, label: fit_isotonic(logit, label, "multi_class"),
        "histogram_binning": lambda logit, label: fit_histogram(logit, label, n_bins=HISTOGRAM_BINS, binning="width"),
        "bbq": lambda logit, label: fit_bbq(logit, label, score="bdeu"),
        "spline": lambda logit, label: fit_spline(logit, label, knots=SPLINE_KNOTS),
    }


FAST = ("temperature", "ensemble_temperature", "vector_scaling", "isotonic_one_vs_rest", "isotonic_multi_class",
        "histogram_binning", "bbq", "spline")


def cross_validated_likelihood(fit: Fit, logit: Tensor, label: Tensor, seed: int) -> float:
    """Negative log likelihood of held-out folds of the fit samples."""
    total = 0.0
    for rest, held in kfold_indices(label.cpu().numpy(), FOLDS, seed=seed):
        p = fit(logit[rest], label[rest])(logit[held]).cpu().numpy()
        total += negative_log_likelihood(p, label[held].cpu().numpy(), clip=CLIP) * len(held)
    return total / len(label)


class Baselines(Method):
    """All standard recalibrators side by side."""

    id = "calibration.baselines"
    title = "Compares the standard recalibrators of a classifier on the same samples, ranked and with intervals"
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
        Output("method_probability", ("method", "sample", "class"), "float32", "probabilities of every method"),
        Output("cross_validated", ("method",), "float64", "negative log likelihood of held-out folds of the fit samples; "
               "of the uncalibrated probabilities that of all of them, nothing being fitted"),
        Output("suggested", (), "str", "method with the lowest cross-validated likelihood; `probability` is its"),
        Output("rank", ("method",), "float64", "average rank over the metrics of the report samples"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        methods: tuple[str, ...] = Field(
            FAST, min_length=1,
            description="Recalibrators; matrix_scaling and dirichlet, which take minutes for many classes, can be added",
        )

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit every method on the fit rows, suggest one by cross-validation there, and judge all on the others."""
        fits = recalibrators(out.seed)
        unknown = [name for name in params.methods if name not in fits]
        if unknown or len(set(params.methods)) != len(params.methods):
            raise InputError("methods", expected=f"distinct names out of {tuple(fits)}", got=str(params.methods))
        parts = read_parts(inputs, fit_fraction=params.fit_fraction, seed=out.seed, device=out.device)
        # Nothing is fitted for the uncalibrated probabilities, so all fit samples are held out.
        untouched = torch.softmax(parts.fit.logit, dim=1).cpu().numpy()
        held = {UNCALIBRATED: negative_log_likelihood(untouched, parts.fit.label.cpu().numpy(), clip=CLIP)}
        fitted: dict[str, Any] = {}
        for name in out.track(params.methods, "fitting"):
            held[name] = cross_validated_likelihood(fits[name], parts.fit.logit, parts.fit.label, out.seed)
            fitted[name] = fits[name](parts.fit.logit, parts.fit.label)
        suggested = min(fitted, key=lambda name: held[name])
        values = evaluate(out, parts, fitted, main=suggested, params=params, keep_all=True).metrics
        out.write("cross_validated", np.array(list(held.values())))
        out.write("suggested", suggested)
        out.write("rank", ranks(values).mean(axis=1))

    def report(self, result: Result) -> Report:
        """The suggestion, the ranking, and every method's figures."""
        suggested, scores = str(result["suggested"].values), Scores(result)
        held = dict(zip(scores.methods, result["cross_validated"].values, strict=True))
        rows = tuple(
            (name, round(float(held[name]), 4), round(scores("value", name, "negative_log_likelihood"), 4),
             round(scores("value", name, "ece_width_l1"), 4), round(scores("value", name, "ks_error"), 4),
             round(scores("value", name, "classwise_ece_width_mean"), 4), round(scores("value", name, "accuracy"), 4))
            for name in sorted(scores.methods, key=lambda name: float(held[name]))
        )
        needless = (
            f" The uncalibrated probabilities are no worse there ({held[UNCALIBRATED]:.4f}): none is needed."
            if held[UNCALIBRATED] <= held[suggested]
            else ""
        )
        return evaluation_report(
            result,
            main=suggested,
            summary=f"Of {len(scores.methods) - 1} recalibrators {suggested} has the lowest cross-validated negative log "
            f"likelihood of the fit samples ({held[suggested]:.4f}).{needless}",
            metrics=[Metric(name=f"ece_width_l1_{name}", value=scores("value", name, "ece_width_l1"), direction="lower",
                            interval=scores.span("value", name, "ece_width_l1"))
                     for name in scores.methods if name not in (suggested, UNCALIBRATED)],
            tables=(
                Table(title="Recalibrators", columns=("method", "cross-validated NLL (fit samples)", "NLL", "ECE", "KS",
                                                      "classwise ECE", "accuracy"), rows=rows,
                      caption="Sorted by the cross-validated likelihood, the only column a choice may rest on."),
                rank_table(scores),
            ),
            views=(
                Bar(title="Average rank on the report samples", y=("rank",), x="method", y_label="average rank (1 = best)"),
                Line(title="Metrics of every method", y=("value",), x="method", by="metric", markers=True,
                     select={"metric": ["ece_width_l1", "ece_mass_l1", "ks_error"]}),
            ),
            notes=("The ranking on the report samples describes; choosing by it would be selecting on them.",),
        )
