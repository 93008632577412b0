"""Calibration: are a classifier's probabilities frequencies, and if not, which map of its logits makes them so?

The recalibrators work on stored logits (or probabilities) and labels alone; other methods of the family train models.
"""

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """Methods of this family; nothing heavy is imported until one is used."""
    return [
        MethodReference(
            "calibration.bang",
            "workbench_calibration.bang:BalancedAveraging",
            "Averaging a pretrained and a fine-tuned model: what it gains on shifted data, at which share, after which loss",
        ),
        MethodReference(
            "calibration.baselines",
            "workbench_calibration.baselines:Baselines",
            "Compares the standard recalibrators of a classifier on the same samples, ranked and with intervals",
        ),
        MethodReference(
            "calibration.bbq",
            "workbench_calibration.bbq:BayesianBinning",
            "Histogram binning without choosing a number of bins: a Bayesian average over all of them",
        ),
        MethodReference(
            "calibration.beta",
            "workbench_calibration.beta:BetaCalibration",
            "Calibrates each class against the rest with a curve of three parameters that may leave it as it is",
        ),
        MethodReference(
            "calibration.ccvr",
            "workbench_calibration.ccvr:CCVR",
            "Repairs the head of a classifier trained on skewed clients from class statistics, without their data",
        ),
        MethodReference(
            "calibration.dirichlet",
            "workbench_calibration.matrix_scaling:DirichletCalibration",
            "Dirichlet calibration: a full linear map of log-probabilities with a chosen penalty",
        ),
        MethodReference(
            "calibration.ensemble_temperature",
            "workbench_calibration.ensemble_temperature:EnsembleTemperatureScaling",
            "Temperature scaling mixed with original and uniform probabilities, where one temperature is too little",
        ),
        MethodReference(
            "calibration.h_calibration",
            "workbench_calibration.h_calibration:HCalibration",
            "Calibrates every class's probability, at unchanged accuracy, with an error-bounded objective",
        ),
        MethodReference(
            "calibration.histogram_binning",
            "workbench_calibration.histogram_binning:HistogramBinning",
            "Calibrates by replacing probabilities with the class frequencies seen in their bin",
        ),
        MethodReference(
            "calibration.isotonic",
            "workbench_calibration.isotonic:Isotonic",
            "Calibrates with monotone curves of any shape, per class or one for all classes",
        ),
        MethodReference(
            "calibration.matrix_scaling",
            "workbench_calibration.matrix_scaling:MatrixScaling",
            "Calibrates by a full linear map of the logits, kept from overfitting by a chosen penalty",
        ),
        MethodReference(
            "calibration.overlap_mixup",
            "workbench_calibration.overlap_mixup:OverlapMixup",
            "Where classes overlap: is temperature scaling enough, or must the training mix samples?",
        ),
        MethodReference(
            "calibration.platt",
            "workbench_calibration.platt:PlattScaling",
            "Calibrates each class against the rest with a sigmoid of its log odds",
        ),
        MethodReference(
            "calibration.spline",
            "workbench_calibration.spline:SplineCalibration",
            "Calibrates the top score with a smooth curve and no bins",
        ),
        MethodReference(
            "calibration.tcm",
            "workbench_calibration.tcm:ThresholdConsistency",
            "One match threshold for all classes: for which does it fail, and does a margin in training help?",
        ),
        MethodReference(
            "calibration.temperature",
            "workbench_calibration.temperature:TemperatureScaling",
            "How overconfident a classifier is, and the one temperature that mends it",
        ),
        MethodReference(
            "calibration.vector_scaling",
            "workbench_calibration.vector_scaling:VectorScaling",
            "Calibrates classes that are off by different amounts: one scale and shift per class",
        ),
    ]
