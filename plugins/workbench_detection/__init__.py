"""Detection: does an image, or what a classifier says about it, belong to the data the system was built for?"""

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """Methods of this family; nothing heavy is imported until one is used."""
    return [
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
