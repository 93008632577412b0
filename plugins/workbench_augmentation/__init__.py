"""Augmentation family: what mixing samples does to pictures and to the classifiers trained on them."""

from collections.abc import Sequence

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> Sequence[MethodReference]:
    """Methods of the family, imported when first used."""
    return [
        MethodReference(
            "augmentation.fmix",
            "workbench_augmentation.fmix:FMix",
            "FMix masks and mixed images, and what mixed-sample augmentations do to a classifier",
        )
    ]
