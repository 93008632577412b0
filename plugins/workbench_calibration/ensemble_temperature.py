"""Temperature scaling with a safety net: a mixture of scaled, original and uniform probabilities (ETS).

Zhang, Kailkhura, Han (2020), Mix-n-Match: Ensemble and Compositional Methods for Uncertainty Calibration in Deep Learning,
ICML, arXiv 2003.07329: p = w1 softmax(z / T) + w2 softmax(z) + w3 / K with w on the simplex. T is that of temperature
scaling and stays fixed; w minimises the squared error (as the authors' code) or the likelihood of the fit samples by SLSQP
from (1, 0, 0). Both are convex in w. The order of classes is kept: w1 stays at least 1e-6, where the paper's w may become all
uniform (for logits that say nothing of the labels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy import optimize
from torch import Tensor
from workbench import Bar, Inputs, Method, Metric, Out, Output, Paper, Report, Result

from workbench_calibration.evaluation import OUTPUTS, EvaluationParams
from workbench_calibration.evaluation_report import evaluation_report
from workbench_calibration.recalibration import recalibrate
from workbench_calibration.samples import INPUTS, Samples
from workbench_calibration.temperature import fit_temperature

NAME = "ensemble_temperature"
COMPONENTS = ("scaled", "original", "uniform")
LEAST = np.array([1e-6, 0.0, 0.0])
"""Lower bounds of the weights; without the first the mixture can be the same for all classes."""
TINY = 1e-300


@dataclass(frozen=True)
class EnsembleMap:
    """Fitted mixture: `weight` of the scaled, the original and the uniform probabilities."""

    temperature: float
    weight: np.ndarray

    @property
    def numbers(self) -> int:
        """How many numbers were fitted: the temperature and two of three weights."""
        return 3

    def __call__(self, logit: Tensor) -> Tensor:
        """Calibrated probabilities, (sample, class)."""
        weight = torch.as_tensor(self.weight, dtype=logit.dtype, device=logit.device)
        return (components(logit, self.temperature) * weight[:, None, None]).sum(0)


def components(logit: Tensor, temperature: float) -> Tensor:
    """softmax(z / T), softmax(z) and 1 / K, (3, sample, class)."""
    original = torch.softmax(logit, dim=1)
    return torch.stack(
        [torch.softmax(logit / temperature, dim=1), original, torch.full_like(original, 1 / logit.shape[1])]
    )


def fit_ensemble(samples: Samples, *, loss: Literal["mse", "nll"]) -> EnsembleMap:
    """Temperature first, then the weights.

    Args:
        samples: logits and labels.
        loss: mean squared error of all probabilities, or negative log likelihood.
    """
    temperature, classes = fit_temperature(samples).temperature, samples.classes
    # the squared error is quadratic in w: w' A w - 2 b' w + 1, per sample
    square, own = np.zeros((3, 3)), []
    for logit, label in samples.labelled_blocks():
        parts = components(logit, temperature)
        flat = parts.reshape(3, -1)
        square += (flat @ flat.T).cpu().numpy() / len(samples.label)
        own.append(parts.gather(2, label.expand(3, -1)[..., None])[..., 0].cpu().numpy())
    at_label = np.concatenate(own, axis=1)
    cross = at_label.mean(axis=1)

    def mse(w: np.ndarray) -> tuple[float, np.ndarray]:
        return float(w @ square @ w - 2 * cross @ w + 1) / classes, 2 * (square @ w - cross) / classes

    def nll(w: np.ndarray) -> tuple[float, np.ndarray]:
        p = np.maximum(w @ at_label, TINY)
        return float(-np.log(p).mean()), -(at_label / p).mean(axis=1)

    found = optimize.minimize(
        mse if loss == "mse" else nll,
        np.array([1.0, 0.0, 0.0]),
        jac=True,
        method="SLSQP",
        bounds=[(least, 1.0) for least in LEAST],
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(3)},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weight = np.clip(found.x, LEAST, 1.0)
    return EnsembleMap(temperature, weight / weight.sum())


class EnsembleTemperatureScaling(Method):
    """Mixture of scaled, original and uniform probabilities."""

    id = "calibration.ensemble_temperature"
    title = "Temperature scaling mixed with original and uniform probabilities, where one temperature is too little"
    version = "3"
    paper = Paper(
        title="Mix-n-Match: Ensemble and Compositional Methods for Uncertainty Calibration in Deep Learning",
        authors="Zhang, Kailkhura, Han",
        year=2020,
        arxiv="2003.07329",
        venue="ICML 2020",
        code="zhang64-llnl/Mix-n-Match-Calibration (MIT)",
    )
    inputs = INPUTS
    outputs = (
        *OUTPUTS,
        Output("temperature", (), "float64", "fitted temperature"),
        Output("weight", ("component",), "float64", "weights of scaled, original and uniform probabilities"),
    )

    class Params(EvaluationParams):
        """Parameters."""

        loss: Literal["mse", "nll"] = Field("mse", description="What the weights minimise: squared error or likelihood")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Fit on the fit rows and judge on the others."""
        _, fitted = recalibrate(
            inputs, params, out, name=NAME, fit=lambda samples: fit_ensemble(samples, loss=params.loss),
            keeps_predictions=True,
        )
        assert isinstance(fitted, EnsembleMap)
        out.write("temperature", fitted.temperature)
        out.coordinate("component", list(COMPONENTS))
        out.write("weight", fitted.weight)

    def report(self, result: Result) -> Report:
        """The weights and what they change."""
        weight, temperature = result["weight"].values, float(result["temperature"])
        return evaluation_report(
            result,
            main=NAME,
            summary=f"The mixture gives {weight[0]:.3f} to probabilities at T = {temperature:.3f}, {weight[1]:.3f} to the "
            f"original and {weight[2]:.3f} to uniform ones.",
            metrics=(Metric(name="temperature", value=temperature),),
            views=(Bar(title="Weights", y=("weight",), x="component"),),
        )
