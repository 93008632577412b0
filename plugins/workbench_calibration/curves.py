"""What different recalibrators make of one probability, on the same axes.

A map of single probabilities is a curve for each class, or one for all. The curves are those that were fitted, before rows are
renormalised. Of maps of whole rows those with one temperature have a counterpart: what they give a class that a single other
class holds the rest against, the map of the two-class problem. Vector, matrix and Dirichlet scaling have none: what they make of
a probability depends on which other classes share the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from workbench import Line, Out, Output, Result

from workbench_calibration.bbq import BayesianBinningMap
from workbench_calibration.ensemble_temperature import EnsembleMap
from workbench_calibration.histogram_binning import HistogramMap
from workbench_calibration.isotonic import IsotonicMap
from workbench_calibration.logistic import GRID, LogisticMap
from workbench_calibration.spline import SplineMap
from workbench_calibration.temperature import TemperatureFit

CURVES = (
    Output(
        "fitted_curve",
        ("recalibrator", "class", "given_probability"),
        "float32",
        "what becomes of a probability of the class, before renormalising; NaN: the map is no curve",
        optional=True,
    ),
)
"""What `write_curves` writes."""


def scaled(probability: np.ndarray, temperature: float) -> np.ndarray:
    """Probability (...) of one of two classes after temperature scaling: its log odds divided by the temperature."""
    own, rest = probability ** (1 / temperature), (1 - probability) ** (1 / temperature)
    return np.asarray(own / (own + rest))


def fitted_curves(fitted: Any, probability: np.ndarray, classes: int) -> np.ndarray | None:
    """Values (class, probability) that a fitted map gives probabilities (probability,); None if it is no map of one number."""
    match fitted:
        case LogisticMap():
            return fitted.curve(probability)
        case IsotonicMap() | HistogramMap() | BayesianBinningMap():
            return fitted.values(np.repeat(probability[:, None], classes, axis=1)).T
        case SplineMap():
            single = fitted.calibrate(probability)
        case TemperatureFit():
            single = scaled(probability, fitted.temperature)
        case EnsembleMap():
            scale, keep, even = fitted.weight
            single = scale * scaled(probability, fitted.temperature) + keep * probability + even / classes
        case _:
            return None
    return np.tile(single, (classes, 1))


def write_curves(out: Out, fitted: Mapping[str, Any], classes: int) -> None:
    """Store the curves of all methods, those of the probabilities as they are first; nothing if no method has one."""
    found = [fitted_curves(one, GRID, classes) for one in fitted.values()]
    if all(curves is None for curves in found):
        return
    missing = np.full((classes, len(GRID)), np.nan)
    out.coordinate("given_probability", GRID)
    curves = [np.tile(GRID, (classes, 1)), *(missing if one is None else one for one in found)]
    out.write("fitted_curve", np.stack(curves).astype(np.float32))


def curves_view(result: Result, methods: Sequence[str]) -> Line:
    """The curves of all methods that have some, of the class with the most report samples."""
    known = np.isfinite(result["fitted_curve"].values).all(axis=(1, 2))
    shown = [name for name, one in zip(methods, known, strict=True) if one]
    label = int(np.argmax(result["class_count"].values))
    return Line(
        title=f"What becomes of a probability of class {label}",
        y=("fitted_curve",),
        x="given_probability",
        by="recalibrator",
        select={"recalibrator": shown, "class": label},
        x_label="probability before",
        y_label="after",
        caption="The fitted curves before rows are renormalised, of the class with the most report samples. Curves of a "
        "temperature are those of a class whose rest one other class holds; that of spline is of the top score. Maps of whole "
        "rows (vector, matrix and Dirichlet scaling) have no such curve.",
    )
