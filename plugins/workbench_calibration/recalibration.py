"""What a recalibrator of stored logits does around its own mathematics: read, fit on the fit rows, judge beside temperature."""

from __future__ import annotations

from collections.abc import Callable

from workbench import Inputs, Out

from workbench_calibration.evaluation import Calibrator, EvaluationParams, evaluate
from workbench_calibration.samples import Parts, Samples, read_parts
from workbench_calibration.temperature import NAME as TEMPERATURE
from workbench_calibration.temperature import fit_temperature

Fit = Callable[[Samples], Calibrator]
"""Logits and labels of the fit rows, which may be larger than memory, to a calibrator."""


def recalibrate(
    inputs: Inputs, params: EvaluationParams, out: Out, *, name: str, fit: Fit, keeps_predictions: bool = False
) -> tuple[Parts, Calibrator]:
    """Fit one recalibrator and temperature scaling on the fit rows and write the evaluation of both.

    Args:
        inputs: of the run, the family's roles.
        params: of the run.
        out: of the run.
        name: label of the recalibrator on dim `recalibrator`.
        fit: of the recalibrator; it sees the fit rows only.
        keeps_predictions: whether it must not change any prediction, which is then checked.
    """
    parts = read_parts(inputs, fit_fraction=params.fit_fraction, seed=out.seed, device=out.device)
    out.progress(0, 2, f"fitting {name}")
    calibrator = fit(parts.fit)
    out.progress(1, 2, "scoring")
    reference = fit_temperature(parts.fit)
    evaluated = evaluate(out, parts, {TEMPERATURE: reference, name: calibrator}, main=name, params=params)
    if keeps_predictions:
        evaluated.require_kept_predictions(name)
    return parts, calibrator
