"""Libraries you already use, as methods: one adapter class per library, one registered example of each.

An adapter does everything around the library's own computation that a method of its family does: it reads the roles,
compares with the family's baselines, stores labelled arrays, and reports with intervals. What is left to write for
another detector, attribution, reconstructor, configuration or calibrator of that library is one short subclass:

    pytorch_ood.OodDetector            a detector of pytorch-ood on stored features or logits
    captum.CaptumAttribution           an attribution of captum
    deepinv.DeepinvReconstruction      a reconstructor of deepinv for a known degradation
    torchao.TorchaoQuantization        a configuration of torchao's `quantize_`
    scikit_learn.SklearnCalibrator     a calibrator (or any probabilistic classifier) of scikit-learn on stored logits

The libraries are imported when a run needs them; the version of the library is part of a run's identity.
"""

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """One example of each adapter; nothing heavy is imported until one is used."""
    return [
        MethodReference(
            "attribution.integrated_gradients",
            "workbench_adapters.captum:IntegratedGradients",
            "Which pixels made the classifier decide so: integrated gradients, judged beside chance and edges",
        ),
        MethodReference(
            "calibration.sklearn_sigmoid",
            "workbench_adapters.scikit_learn:SklearnSigmoid",
            "Platt scaling one class against the rest, as scikit-learn does it, beside temperature scaling",
        ),
        MethodReference(
            "detection.ood_knn",
            "workbench_adapters.pytorch_ood:OodKNN",
            "Foreign inputs lie far from all training features: pytorch-ood's kNN distance beside MSP and energy",
        ),
        MethodReference(
            "quantization.torchao",
            "workbench_adapters.torchao:TorchaoWeightOnly",
            "What torchao's weight-only quantisation of the linear layers costs and saves, measured",
        ),
        MethodReference(
            "restoration.deepinv_tv",
            "workbench_adapters.deepinv:TotalVariation",
            "Blurred or noisy pictures restored by total variation (deepinv), with the gain in dB and SSIM",
        ),
    ]
