"""How overconfident is a classifier, in one number: temperature scaling of stored logits.

Guo, Pleiss, Sun, Weinberger (2017), On Calibration of Modern Neural Networks, ICML, arXiv 1706.04599: p = softmax(z / T)
with the T that minimises the negative log likelihood of samples not used for training. T > 1 cools an overconfident
classifier down, T < 1 sharpens an underconfident one. Predictions, and so accuracy, cannot change.

Differs from the authors' code in how T is found: the likelihood is convex in 1/T, so a bounded Brent search over log T
finds the optimum to 10 digits. (L-BFGS with a small step and an iteration limit, as widely copied, stops short of it.)
The interval of T is the sandwich interval of an M-estimator, computed for 1/T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from torch import Tensor
from workbench import Inputs, Line, Method, Metric, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams, evaluate, require_kept_predictions
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.samples import INPUTS, read_parts

LOG_BOUND = 3.0
"""T is sought in exp(-3)..exp(3), about 0.05 to 20."""
Z95 = 1.959963984540054
NAME = "temperature"


@dataclass(frozen=True)
class TemperatureFit:
    """The fitted temperature with its 95 % interval; `gradient` is the slope of the likelihood in log T there."""

    temperature: float
    lower: float
    upper: float
    gradient: float

    @property
    def at_bound(self) -> bool:
        """Whether the search ended at an end of its range, as for samples that are all predicted right."""
        return abs(abs(math.log(self.temperature)) - LOG_BOUND) < 1e-3

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        return torch.softmax(logit / self.temperature, dim=1)


def scaled_likelihood(logit: Tensor, label: Tensor, temperature: float) -> float:
    """Mean negative log likelihood of softmax(logit / temperature), nats."""
    return float(torch.nn.functional.cross_entropy(logit / temperature, label))


def fit_temperature(logit: Tensor, label: Tensor) -> TemperatureFit:
    """The temperature that minimises the negative log likelihood.

    Args:
        logit: float64 (sample, class).
        label: int64 (sample,).
    """
    found = optimize.minimize_scalar(
        lambda log_t: scaled_likelihood(logit, label, math.exp(log_t)),
        bounds=(-LOG_BOUND, LOG_BOUND),
        method="bounded",
        options={"xatol": 1e-10},
    )
    temperature = math.exp(float(found.x))
    # M-estimator in b = 1/T: score_i = E_p z - z_y, information = mean Var_p z
    p = torch.softmax(logit / temperature, dim=1)
    mean = (p * logit).sum(1)
    score = mean - logit.gather(1, label[:, None])[:, 0]
    information = float((p * (logit - mean[:, None]) ** 2).sum(1).mean())
    if information <= 0:  # equal logits everywhere: every temperature is as good
        return TemperatureFit(temperature, math.nan, math.nan, 0.0)
    deviation = math.sqrt(float((score**2).mean()) / len(label)) / information
    inverse = 1 / temperature
    low, high = inverse - Z95 * deviation, inverse + Z95 * deviation
    upper = 1 / low if low > 0 else math.inf
    return TemperatureFit(temperature, 1 / high, upper, -float(score.mean()) * inverse)


class TemperatureScaling(Method):
    """One temperature for all logits, fitted on one half and judged on the other."""

    id = "calibration.temperature"
    title = "How overconfident a classifier is, and the one temperature that mends it"
    paper = Paper(
        title="On Calibration of Modern Neural Networks",
        authors="Guo, Pleiss, Sun, Weinberger",
        year=2017,
        arxiv="1706.04599",
        venue="ICML 2017",
        code="gpleiss/temperature_scaling (MIT)",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("temperature", (), "float64", "fitted temperature"),
        Output("temperature_lower", (), "float64", "lower end of its 95 % interval"),
        Output("temperature_upper", (), "float64", "upper end of it"),
        Output("gradient", (), "float64", "slope of the fit likelihood in log T at the optimum; 0 when converged"),
        Output("fit_curve", ("trial_temperature",), "float64", "negative log likelihood of the fit samples", "nats"),
        Output("report_curve", ("trial_temperature",), "float64", "the same of the report samples", "nats"),
    )

    class Params(EvaluationParams):
        """Parameters."""

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit T on the fit rows and judge it on the others."""
        parts = read_parts(inputs, fit_fraction=params.fit_fraction, seed=out.seed, device=out.device)
        fitted = fit_temperature(parts.fit.logit, parts.fit.label)
        probability = evaluate(out, parts, {NAME: fitted}, main=NAME, params=params)
        require_kept_predictions(parts.report.logit, probability[NAME], "temperature scaling")
        out.write("temperature", fitted.temperature)
        out.write("temperature_lower", fitted.lower)
        out.write("temperature_upper", fitted.upper)
        out.write("gradient", fitted.gradient)
        trial = np.geomspace(0.25, 4.0, 33) * fitted.temperature
        out.coordinate("trial_temperature", trial)
        for name, samples in (("fit_curve", parts.fit), ("report_curve", parts.report)):
            out.write(name, np.array([scaled_likelihood(samples.logit, samples.label, float(t)) for t in trial]))

    def report(self, result: Result) -> Report:
        """T, and what it changes."""
        fitted = TemperatureFit(
            *(float(result[name]) for name in ("temperature", "temperature_lower", "temperature_upper", "gradient"))
        )
        temperature, low, high = fitted.temperature, fitted.lower, fitted.upper
        kind = "overconfident" if low > 1 else "underconfident" if high < 1 else "neither clearly over- nor underconfident"
        notes = []
        if fitted.at_bound:
            notes.append("T lies at the end of the range searched: the fit samples do not bound it (all right, or no "
                         "information in the logits).")
        return evaluation_report(
            result,
            main=NAME,
            summary=f"The classifier is {kind}: T = {temperature:.3f} (95 % interval {low:.3f} to {high:.3f}).",
            metrics=(Metric(name="temperature", value=temperature, interval=(low, high),
                            description="divides the logits; above 1 means overconfident"),),
            views=(
                Line(
                    title="Likelihood against temperature",
                    y=("fit_curve", "report_curve"),
                    x="trial_temperature",
                    log_x=True,
                    x_label="temperature",
                    y_label="negative log likelihood (nats)",
                    caption=f"Fitted minimum at T = {temperature:.3f}.",
                ),
            ),
            notes=notes,
        )
