"""How overconfident is a classifier, in one number: temperature scaling of stored logits.

Guo, Pleiss, Sun, Weinberger (2017), On Calibration of Modern Neural Networks, ICML, arXiv 1706.04599: p = softmax(z / T)
with the T that minimises the negative log likelihood of samples not used for training. T > 1 cools an overconfident
classifier down, T < 1 sharpens an underconfident one. Predictions, and so accuracy, cannot change.

Differs from the authors' code in how T is found: the likelihood is convex in 1/T, so Halley's method within a bracket,
begun at the optimum of a few samples, finds the optimum in two or three passes over the logits, which may be larger than
memory. (L-BFGS with a small step and an iteration limit, as widely copied, stops short of it.) The precision is that of the
stored logits: about 1e-7 of T for single precision, far below its sampling error, and 1e-12 for double. The interval of T is
the sandwich interval of an M-estimator, computed for 1/T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from workbench import Inputs, Line, Method, Metric, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams, evaluate
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.samples import INPUTS, Samples, read_parts

LOG_BOUND = 3.0
"""T is sought in exp(-3)..exp(3), about 0.05 to 20."""
SKETCH_ENTRIES = 2_000_000
"""Logits from which the search begins where there are many more."""
SKETCH_RUNS = 20
"""Stretches of consecutive samples that these come from."""
TOLERANCE = 1e-4
"""Largest last step of log T; the error after it is about its cube."""
MOST_PASSES = 200
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

    @property
    def numbers(self) -> int:
        """How many numbers were fitted."""
        return 1

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        return torch.softmax(logit / self.temperature, dim=1)


@dataclass(frozen=True)
class Moments:
    """The mean negative log likelihood of softmax(b z) at one b = 1/T, its derivatives, and what the sandwich needs."""

    likelihood: float
    slope: float
    """Of the likelihood in b: mean of E_p z - z_y."""
    curvature: float
    """Mean of Var_p z, the second derivative."""
    third: float
    """Mean of the third central moment of z under p, the third derivative."""
    square: float
    """Mean of (E_p z - z_y)^2."""
    samples: int

    def step(self) -> float:
        """Halley's step of b to where the slope is 0; Newton's where the third derivative speaks against it.

        Endless where the likelihood has no curvature: probabilities of 0 and 1 as far as the precision goes.
        """
        if self.curvature <= 0:
            return math.inf if self.slope <= 0 else -math.inf
        denominator = 2 * self.curvature**2 - self.slope * self.third
        if denominator <= self.curvature**2:
            return -self.slope / self.curvature
        return -2 * self.slope * self.curvature / denominator

    def slope_after(self, step: float) -> float:
        """The slope in b that is left after a short step, to third order."""
        return self.slope + self.curvature * step + self.third * step**2 / 2


def moments(samples: Samples, inverse: float) -> Moments:
    """One pass over all samples, in the precision of their logits; sums over samples in float64.

    Args:
        samples: logits and labels.
        inverse: b = 1/T.
    """
    total = np.zeros(5)
    for logit, label in samples.stored_blocks():
        # logits relative to the largest of their row: nothing overflows, and a shift changes no result
        z = (logit - logit.amax(dim=1, keepdim=True)).mul_(inverse)
        own = z.gather(1, label[:, None])[:, 0].double()
        one = torch.ones(z.shape[1], dtype=z.dtype, device=z.device)
        power = torch.exp(z)  # exp(b z) (b z)^k of k = 0, 1, 2, 3 in turn; a product with ones is the fastest sum
        norm = power.mv(one).double()
        mean, second, third = (power.mul_(z).mv(one).double() / norm for _ in range(3))
        score = mean - own
        parts = (
            torch.log(norm) - own,
            score / inverse,
            (second - mean**2) / inverse**2,
            (third - 3 * mean * second + 2 * mean**3) / inverse**3,
            (score / inverse) ** 2,
        )
        total += torch.stack([part.sum() for part in parts]).cpu().numpy()
    return Moments(*(float(value) for value in total / len(samples.label)), len(samples.label))


def likelihood_curve(samples: Samples, temperature: np.ndarray) -> np.ndarray:
    """Mean negative log likelihood at each temperature, (temperature,), in one pass over the samples."""
    total = np.zeros(len(temperature))
    for logit, label in samples.stored_blocks():
        z = logit - logit.amax(dim=1, keepdim=True)
        own = float(z.gather(1, label[:, None]).double().sum())
        total += [float(torch.logsumexp(z / float(t), dim=1).double().sum()) - own / float(t) for t in temperature]
    return total / len(samples.label)


def scaled_likelihood(logit: Tensor, label: Tensor, temperature: float) -> float:
    """Mean negative log likelihood of softmax(logit / temperature), nats."""
    return moments(Samples.of(logit, label), 1 / temperature).likelihood


def fit_temperature(samples: Samples) -> TemperatureFit:
    """The temperature that minimises the negative log likelihood; the logits are read a handful of times, in blocks."""
    start = 1.0
    if len(samples.label) * samples.classes > 4 * SKETCH_ENTRIES:
        # a few samples tell b to a few per cent, which saves passes over all of them
        start = 1 / _minimise(sketch(samples), start).temperature
    return _minimise(samples, start)


def sketch(samples: Samples) -> Samples:
    """About `SKETCH_ENTRIES` logits: evenly spaced stretches of consecutive samples, read once."""
    rows = max(1, SKETCH_ENTRIES // samples.classes // SKETCH_RUNS)
    first = np.linspace(0, len(samples.label) - rows, SKETCH_RUNS).astype(np.int64)
    parts = [samples.subset(np.arange(start, start + rows)) for start in first]
    logit = torch.cat([block for part in parts for block, _ in part.stored_blocks()])
    return Samples.of(logit, torch.cat([part.label for part in parts]))


def _minimise(samples: Samples, start: float) -> TemperatureFit:
    """Halley's method within a bracket, begun at b = `start`."""
    low, high = math.exp(-LOG_BOUND), math.exp(LOG_BOUND)
    ends = (low, high)
    inverse = min(max(start, low), high)
    for _ in range(MOST_PASSES):
        found = moments(samples, inverse)
        if found.curvature <= 0 and math.isclose(found.likelihood, math.log(samples.classes)):
            # equal logits everywhere: every temperature is as good
            return TemperatureFit(1 / inverse, math.nan, math.nan, 0.0)
        low, high = (low, inverse) if found.slope > 0 else (inverse, high)
        following = inverse + found.step()
        if not low <= following <= high:
            end = low if found.slope > 0 else high
            following = end if end in ends else math.sqrt(low * high)
        moved, inverse = following - inverse, following
        if abs(moved) < TOLERANCE * inverse:
            break
    # M-estimator in b: information = mean Var_p z, variance of the score = mean (E_p z - z_y)^2
    deviation = math.sqrt(found.square / found.samples) / found.curvature if found.curvature > 0 else math.inf
    least, most = inverse - Z95 * deviation, inverse + Z95 * deviation
    gradient = -found.slope_after(moved) * inverse
    return TemperatureFit(1 / inverse, 1 / most, 1 / least if least > 0 else math.inf, gradient)


class TemperatureScaling(Method):
    """One temperature for all logits, fitted on one half and judged on the other."""

    id = "calibration.temperature"
    title = "How overconfident a classifier is, and the one temperature that mends it"
    version = "3"
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
        fitted = fit_temperature(parts.fit)
        evaluate(out, parts, {NAME: fitted}, main=NAME, params=params).require_kept_predictions(NAME)
        out.write("temperature", fitted.temperature)
        out.write("temperature_lower", fitted.lower)
        out.write("temperature_upper", fitted.upper)
        out.write("gradient", fitted.gradient)
        trial = np.geomspace(0.25, 4.0, 17) * fitted.temperature
        out.coordinate("trial_temperature", trial)
        for name, samples in (("fit_curve", parts.fit), ("report_curve", parts.report)):
            out.write(name, likelihood_curve(samples, trial))

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
