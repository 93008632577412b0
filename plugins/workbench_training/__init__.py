"""Training: a trained model is a run too, and so is what a model says about a data set."""

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """Methods of this family; nothing heavy is imported until one is used."""
    return [
        MethodReference(
            "training.classifier",
            "workbench_training.classifier:ClassifierTraining",
            "Trains or fine-tunes a classifier, judges it on held-out samples and stores it for the next method",
        ),
        MethodReference(
            "training.evaluation",
            "workbench_training.evaluation:ClassifierEvaluation",
            "What a classifier says about a data set: logits, features, mistakes, accuracy and calibration",
        ),
    ]
