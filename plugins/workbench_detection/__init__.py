"""Detection: does an image, or what a classifier says about it, belong to the data the system was built for?"""

from collections.abc import Callable, Mapping
from typing import Any

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """Methods of this family; nothing heavy is imported until one is used."""
    return [
        MethodReference(
            "detection.covariate_shift",
            "workbench_detection.covariate_shift:CovariateShift",
            "Blurs, disturbs, compresses or flattens pictures, to see what notices and what suffers",
        ),
        MethodReference(
            "detection.discopatch",
            "workbench_detection.discopatch:DisCoPatch",
            "Notices blur and other subtle drift of images without labels: a discriminator reads patch statistics",
        ),
        MethodReference(
            "detection.logit_scores",
            "workbench_detection.logit_scores:LogitScores",
            "MSP, max-logit, energy, entropy and GradNorm: what a classifier's own outputs say about foreign inputs",
        ),
    ]


@hookimpl
def workbench_datasets() -> Mapping[str, Callable[..., Any]]:
    """Shifted data to detect or to suffer from."""
    return {"shifted-digits": shifted_digits}


def shifted_digits(shift: str = "noise", severity: int = 3, split: str = "test", seed: int = 0) -> Any:
    """See `workbench_detection.digit_shifts`, which is imported when it is used."""
    from workbench_detection import digit_shifts

    return digit_shifts.shifted_digits(shift, severity, split, seed)  # type: ignore[arg-type]
