"""How overconfident is a classifier, in one number: temperature scaling of stored logits.

Guo, Pleiss, Sun, Weinberger (2017), On Calibration of Modern Neural Networks, ICML, arXiv 1706.04599: p = softmax(z / T)
with the T that minimises the negative log likelihood of samples not used for training. T > 1 cools an overconfident
classifier down, T < 1 sharpens an underconfident one. Predictions, and so accuracy, cannot change.

Differs from the authors' code in how T is found: the likelihood is convex in 1/T, so Newton's method within a bracket finds
the optimum to 10 digits in a handful of passes over the logits, which may be larger than memory. (L-BFGS with a small step
and an iteration limit, as widely copied, stops short of it.) The interval of T is the sandwich interval of an M-estimator,
computed for 1/T.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from workbench import Inputs, Line, Method, Metric, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams, evaluate
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.samples import INPUTS, read_parts, row_blocks

LOG_BOUND = 3.0
"""T is sought in exp(-3)..exp(3), about 0.05 to 20."""
SKETCH_ENTRIES = 2_000_000
"""Logits from which the search begins where there are many more."""
TOLERANCE = 1e-8
"""Largest last step of log T; the error after it is about its square."""
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
    """The mean negative log likelihood of softmax(b z) and what Newton's method and the sandwich need, at one b = 1/T."""

    likelihood: float
    slope: float
    """Of the likelihood in b: mean of E_p z - z_y."""
    curvature: float
    """Mean of Var_p z."""
    square: float
    """Mean of (E_p z - z_y)^2."""
    samples: int


Blocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Goes once through all samples: logits (sample, class) and labels (sample,), block by block."""


def moments(blocks: Blocks, inverse: float) -> Moments:
    """One pass over all samples.

    Args:
        blocks: of logits and labels.
        inverse: b = 1/T.
    """
    total, samples = np.zeros(4), 0
    for logit, label in blocks():
        # logits relative to the largest of their row: nothing overflows, and a shift changes no result
        z = logit.double() - logit.amax(dim=1, keepdim=True)
        weight = torch.exp(z * inverse)
        norm = weight.sum(1)
        weighted = weight.mul_(z)
        mean = weighted.sum(1) / norm
        second = torch.linalg.vecdot(weighted, z) / norm
        own = z.gather(1, label[:, None])[:, 0]
        score = mean - own
        parts = (torch.log(norm) - inverse * own, score, second - mean**2, score**2)
        total += np.array([float(part.sum()) for part in parts])
        samples += len(label)
    return Moments(*(float(value) for value in total / samples), samples)


def in_blocks(logit: Tensor, label: Tensor) -> Blocks:
    """Blocks of tensors that lie in memory."""
    return lambda: ((logit[rows], label[rows]) for rows in row_blocks(*logit.shape))


def likelihood_curve(blocks: Blocks, temperature: np.ndarray) -> np.ndarray:
    """Mean negative log likelihood at each temperature, (temperature,), in one pass over the samples."""
    total, samples = np.zeros(len(temperature)), 0
    for logit, label in blocks():
        z = logit.double() - logit.amax(dim=1, keepdim=True)
        own = float(z.gather(1, label[:, None]).sum())
        total += [float(torch.logsumexp(z / float(t), dim=1).sum()) - own / float(t) for t in temperature]
        samples += len(label)
    return np.asarray(total / samples)


def scaled_likelihood(logit: Tensor, label: Tensor, temperature: float) -> float:
    """Mean negative log likelihood of softmax(logit / temperature), nats."""
    return moments(in_blocks(logit, label), 1 / temperature).likelihood


def fit_temperature(logit: Tensor, label: Tensor) -> TemperatureFit:
    """The temperature that minimises the negative log likelihood.

    Args:
        logit: float (sample, class).
        label: int64 (sample,).
    """
    start = 1.0
    if logit.numel() > 4 * SKETCH_ENTRIES:
        # every k-th row tells b to a few per cent, which saves passes over all of them
        step = logit.numel() // SKETCH_ENTRIES
        start = 1 / fit_blocks(in_blocks(logit[::step], label[::step])).temperature
    return fit_blocks(in_blocks(logit, label), start=start)


def fit_blocks(blocks: Blocks, *, start: float = 1.0) -> TemperatureFit:
    """The same for samples that are read block by block, a handful of times: Newton's method within a bracket.

    Args:
        blocks: of logits and labels.
        start: where to begin, b = 1/T.
    """
    low, high = math.exp(-LOG_BOUND), math.exp(LOG_BOUND)
    ends = (low, high)
    inverse = min(max(start, low), high)
    for _ in range(MOST_PASSES):
        found = moments(blocks, inverse)
        if found.curvature <= 0:  # equal logits everywhere: every temperature is as good
            return TemperatureFit(1 / inverse, math.nan, math.nan, 0.0)
        low, high = (low, inverse) if found.slope > 0 else (inverse, high)
        following = inverse - found.slope / found.curvature
        if not low <= following <= high:
            end = low if found.slope > 0 else high
            following = end if end in ends else math.sqrt(low * high)
        step, inverse = abs(math.log(following / inverse)), following
        if step < TOLERANCE:
            break
    # M-estimator in b: information = mean Var_p z, variance of the score = mean (E_p z - z_y)^2
    deviation = math.sqrt(found.square / found.samples) / found.curvature
    least, most = inverse - Z95 * deviation, inverse + Z95 * deviation
    return TemperatureFit(1 / inverse, 1 / most, 1 / least if least > 0 else math.inf, -found.slope * inverse)


class TemperatureScaling(Method):
    """One temperature for all logits, fitted on one half and judged on the other."""

    id = "calibration.temperature"
    title = "How overconfident a classifier is, and the one temperature that mends it"
    version = "2"
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
        fitted = fit_blocks(parts.fit.labelled_blocks)
        evaluate(out, parts, {NAME: fitted}, main=NAME, params=params).require_kept_predictions(NAME)
        out.write("temperature", fitted.temperature)
        out.write("temperature_lower", fitted.lower)
        out.write("temperature_upper", fitted.upper)
        out.write("gradient", fitted.gradient)
        trial = np.geomspace(0.25, 4.0, 17) * fitted.temperature
        out.coordinate("trial_temperature", trial)
        for name, samples in (("fit_curve", parts.fit), ("report_curve", parts.report)):
            out.write(name, likelihood_curve(samples.labelled_blocks, trial))

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
