"""Torch helpers for method authors; import every name from here: `from workbench.toolkit import predict`.

Data and inference (`tensors`, `inference`, `features`, `splits`), training (`training`, `stages`, `recipe`, `initialise`,
`augment`, `mixing`), curvature and cost (`curvature`, `traces`, `counting`), probabilities and statistics
(`probability`, `scoring`, `classwise`, `reliability`, `kernels`, `unbinned`, `statistics`). A module is imported when one of
its names is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.toolkit.augment import flip_crop, random_crop, random_flip
    from workbench.toolkit.classwise import ClassBins
    from workbench.toolkit.counting import LayerCount, count_operations, total_count
    from workbench.toolkit.curvature import (
        Eigenpairs,
        Hessian,
        SpectralDensity,
        lanczos,
        spectral_density,
        top_eigenpairs,
    )
    from workbench.toolkit.features import Pool, capture, find_layer, last_linear, layer_names
    from workbench.toolkit.inference import evaluating, model_device, predict, predict_all
    from workbench.toolkit.initialise import reinitialise
    from workbench.toolkit.kernels import (
        CalibrationTest,
        canonical_calibration_error,
        consistency_test,
        kernel_calibration_error,
        kernel_calibration_test,
    )
    from workbench.toolkit.mixing import (
        Mixed,
        box_mask,
        cutmix_batch,
        draw_box,
        draw_share,
        mask_batch,
        mix,
        mix_points,
        mixup_batch,
        soft_labels,
    )
    from workbench.toolkit.probability import (
        accuracy,
        area_under_risk_coverage_curve,
        average_calibration_error,
        brier_parts,
        brier_score,
        classwise_calibration_error,
        clipped_probability_count,
        confidence_auroc,
        debiased_calibration_error,
        debiased_squared_calibration_error,
        expected_calibration_error,
        ks_calibration_error,
        maximum_calibration_error,
        mean_entropy,
        negative_log_likelihood,
        overconfidence,
        reliability_diagram,
        top_label,
    )
    from workbench.toolkit.recipe import Recipe, learning_rate, make_optimizer
    from workbench.toolkit.reliability import (
        Binning,
        CalibrationBand,
        MurphyParts,
        Norm,
        ReliabilityBins,
        area_under_risk_coverage,
        area_under_roc,
        binned_calibration_error,
        consistency_band,
        debiased_error,
        debiased_squared_error,
        expected_under_calibration,
        kolmogorov_smirnov_error,
        murphy_parts,
        reliability_bins,
    )
    from workbench.toolkit.scoring import CalibrationScores, calibration_metrics
    from workbench.toolkit.splits import kfold_indices, split_indices
    from workbench.toolkit.stages import Stages
    from workbench.toolkit.statistics import Interval, bootstrap_interval, mean_interval, wilson_interval
    from workbench.toolkit.tensors import ArrayLike, image_batches, to_tensor
    from workbench.toolkit.traces import (
        TraceEstimate,
        activation_trace_probes,
        block_trace_probes,
        empirical_fisher_samples,
        trace_estimate,
        trace_probes,
    )
    from workbench.toolkit.training import FitResult, Loss, Step, Transform, fit, numpy_generator, soft_cross_entropy
    from workbench.toolkit.unbinned import (
        density_calibration_error,
        maximum_mean_calibration_error,
        sweep_calibration_error,
    )

_HOME = {
    "augment": ("flip_crop", "random_crop", "random_flip"),
    "classwise": ("ClassBins",),
    "counting": ("LayerCount", "count_operations", "total_count"),
    "curvature": ("Eigenpairs", "Hessian", "SpectralDensity", "lanczos", "spectral_density", "top_eigenpairs"),
    "features": ("Pool", "capture", "find_layer", "last_linear", "layer_names"),
    "inference": ("evaluating", "model_device", "predict", "predict_all"),
    "initialise": ("reinitialise",),
    "kernels": (
        "CalibrationTest",
        "canonical_calibration_error",
        "consistency_test",
        "kernel_calibration_error",
        "kernel_calibration_test",
    ),
    "mixing": (
        "Mixed",
        "box_mask",
        "cutmix_batch",
        "draw_box",
        "draw_share",
        "mask_batch",
        "mix",
        "mix_points",
        "mixup_batch",
        "soft_labels",
    ),
    "probability": (
        "accuracy",
        "area_under_risk_coverage_curve",
        "average_calibration_error",
        "brier_parts",
        "brier_score",
        "classwise_calibration_error",
        "clipped_probability_count",
        "confidence_auroc",
        "debiased_calibration_error",
        "debiased_squared_calibration_error",
        "expected_calibration_error",
        "ks_calibration_error",
        "maximum_calibration_error",
        "mean_entropy",
        "negative_log_likelihood",
        "overconfidence",
        "reliability_diagram",
        "top_label",
    ),
    "recipe": ("Recipe", "learning_rate", "make_optimizer"),
    "reliability": (
        "Binning",
        "CalibrationBand",
        "MurphyParts",
        "Norm",
        "ReliabilityBins",
        "area_under_risk_coverage",
        "area_under_roc",
        "binned_calibration_error",
        "consistency_band",
        "debiased_error",
        "debiased_squared_error",
        "expected_under_calibration",
        "kolmogorov_smirnov_error",
        "murphy_parts",
        "reliability_bins",
    ),
    "scoring": ("CalibrationScores", "calibration_metrics"),
    "splits": ("kfold_indices", "split_indices"),
    "tensors": ("ArrayLike", "image_batches", "to_tensor"),
    "traces": (
        "TraceEstimate",
        "activation_trace_probes",
        "block_trace_probes",
        "empirical_fisher_samples",
        "trace_estimate",
        "trace_probes",
    ),
    "training": ("FitResult", "Loss", "Step", "Transform", "fit", "numpy_generator", "soft_cross_entropy"),
    "stages": ("Stages",),
    "statistics": ("Interval", "bootstrap_interval", "mean_interval", "wilson_interval"),
    "unbinned": (
        "density_calibration_error",
        "maximum_mean_calibration_error",
        "sweep_calibration_error",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ArrayLike",
    "Binning",
    "CalibrationBand",
    "CalibrationScores",
    "CalibrationTest",
    "ClassBins",
    "Eigenpairs",
    "FitResult",
    "Hessian",
    "Interval",
    "LayerCount",
    "Loss",
    "Mixed",
    "MurphyParts",
    "Norm",
    "Pool",
    "Recipe",
    "ReliabilityBins",
    "SpectralDensity",
    "Stages",
    "Step",
    "TraceEstimate",
    "Transform",
    "accuracy",
    "activation_trace_probes",
    "area_under_risk_coverage",
    "area_under_risk_coverage_curve",
    "area_under_roc",
    "average_calibration_error",
    "binned_calibration_error",
    "block_trace_probes",
    "bootstrap_interval",
    "box_mask",
    "brier_parts",
    "brier_score",
    "calibration_metrics",
    "canonical_calibration_error",
    "capture",
    "classwise_calibration_error",
    "clipped_probability_count",
    "confidence_auroc",
    "consistency_band",
    "consistency_test",
    "count_operations",
    "cutmix_batch",
    "debiased_calibration_error",
    "debiased_error",
    "debiased_squared_calibration_error",
    "debiased_squared_error",
    "density_calibration_error",
    "draw_box",
    "draw_share",
    "empirical_fisher_samples",
    "evaluating",
    "expected_calibration_error",
    "expected_under_calibration",
    "find_layer",
    "fit",
    "flip_crop",
    "image_batches",
    "kernel_calibration_error",
    "kernel_calibration_test",
    "kfold_indices",
    "kolmogorov_smirnov_error",
    "ks_calibration_error",
    "lanczos",
    "last_linear",
    "layer_names",
    "learning_rate",
    "make_optimizer",
    "mask_batch",
    "maximum_calibration_error",
    "maximum_mean_calibration_error",
    "mean_entropy",
    "mean_interval",
    "mix",
    "mix_points",
    "mixup_batch",
    "model_device",
    "murphy_parts",
    "negative_log_likelihood",
    "numpy_generator",
    "overconfidence",
    "predict",
    "predict_all",
    "random_crop",
    "random_flip",
    "reinitialise",
    "reliability_bins",
    "reliability_diagram",
    "soft_cross_entropy",
    "soft_labels",
    "spectral_density",
    "split_indices",
    "sweep_calibration_error",
    "to_tensor",
    "top_eigenpairs",
    "top_label",
    "total_count",
    "trace_estimate",
    "trace_probes",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
