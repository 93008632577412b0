"""Calibration: are a classifier's probabilities frequencies, and if not, which map of its logits makes them so?

Every method works on stored logits (or probabilities) and labels alone.
"""

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """Methods of this family; nothing heavy is imported until one is used."""
    return [
        MethodReference(
            "calibration.h_calibration",
            "workbench_calibration.h_calibration:HCalibration",
            "Calibrates every class's probability, at unchanged accuracy, with an error-bounded objective",
        ),
        MethodReference(
            "calibration.temperature",
            "workbench_calibration.temperature:TemperatureScaling",
            "How overconfident a classifier is, and the one temperature that mends it",
        ),
    ]
