"""Every method that comes with the workbench keeps the contract, on small inputs and with the smallest sensible parameters.

A method that is added to a plugin is tested with its defaults until it has an entry in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from workbench.host import Host
from workbench.testing import RULES, MethodContract, check_declarations, sample_dataset

PICTURE = ("sample", "channel", "y", "x")
HOST = Host()


@dataclass(frozen=True)
class Case:
    """How to try one method."""

    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[], Mapping[str, Any]] = dict
    deviations: Mapping[str, str] = field(default_factory=dict)


def pictures(count: int) -> Any:
    return sample_dataset({"image": PICTURE, "label": ("sample",)}, samples=count)


TORCHVISION = {"dask": "beside a CPU build of torch, torchvision imports only where conftest.py declares its operators"}
CALIBRATION = {"resamples": 100, "chance_draws": 20, "n_bins": 5}
CASES: Mapping[str, Case] = {
    "attribution.integrated_gradients": Case({"n_steps": 8, "steps": 4}),
    "augmentation.fmix": Case(
        {
            "masks": 2,
            "analysed_masks": 4,
            "pairs": 2,
            "decays": (1.0, 3.0),
            "shares": (0.3, 0.6),
            "modes": ("none", "fmix"),
            "seeds": 1,
            "epochs": 2,
            "curve_points": 2,
            "noise_strengths": (0.2,),
            "batch_size": 16,
        }
    ),
    "calibration.bang": Case(
        {"theory_draws": 200, "theory_spurious": 4, "theory_invariant": 2, "alphas": (0.5,), "epochs": 1}
    ),
    "calibration.ccvr": Case(
        {
            "clients": 2,
            "concentrations": (5.0,),
            "rounds": 2,
            "local_epochs": 1,
            "batch_size": 16,
            "draws": 10,
            "head_epochs": 1,
            "draw_curve": (5,),
        },
        inputs=lambda: {"statistics": None},
    ),
    "calibration.h_calibration": Case(
        {**CALIBRATION, "maps": ("pwlinear-10", "linear-16"), "epochs": 5, "window": 10, "baselines": ("vector_scaling",)}
    ),
    "calibration.overlap_mixup": Case(
        {
            "epochs": 2,
            "batch_size": 16,
            "seeds": 1,
            "mix_sizes": (2,),
            "n_bins": 5,
            "gap_points": 2,
            "gap_directions": 3,
            "class_counts": (2,),
        },
        inputs=lambda: {"erm": None, "mixup": None},
    ),
    "calibration.tcm": Case(
        {
            "synthetic_classes": 6,
            "synthetic_samples": 6,
            "epochs": 1,
            "batch_size": 16,
            "samples_per_class": 4,
            "seeds": 1,
            "embedding_size": 4,
            "n_grid": 10,
            "sweep": (),
        }
    ),
    "detection.covariate_shift": Case({"shift": "noise", "severity": 4}),
    "detection.discopatch": Case(
        {
            "preset": "fast",
            "steps": 3,
            "patch": 8,
            "patches_train": 2,
            "patches_test": 2,
            "widths": (4, 8),
            "latent": 4,
            "images_per_batch": 4,
            "severities": (2,),
            "shifts": ("blur", "noise"),
            "bootstrap": 100,
        }
    ),
    "detection.logit_scores": Case({"bootstrap": 100}),
    "detection.ood_knn": Case({"bootstrap": 100, "k": 3}, deviations=TORCHVISION),
    "quantization.adaquant": Case({"iterations": 3, "bias_steps": 2, "batch_size": 16, "calibration_samples": 20}),
    "quantization.biper": Case(
        {"epochs1": 1, "epochs2": 1, "batch": 16, "baselines": ("sign_clipped",), "baseline_rates": (1.0,)},
        inputs=lambda: {"stage1": None},
    ),
    "quantization.double_rounding": Case(
        {
            "mode": "mixed",
            "widths": (8, 4, 2),
            "epochs": 1,
            "mixed_epochs": 1,
            "batch_size": 16,
            "compare": ("floor",),
            "hess_samples": 16,
            "probes": 2,
            "search_points": 2,
            "random_subnets": 2,
        }
    ),
    "quantization.hawq": Case(
        {
            "hess_samples": 16,
            "probes": 4,
            "power_iterations": 3,
            "landscape_points": 3,
            "sweep": 2,
            "random_orders": 2,
            "bits": (2, 4, 8),
            "batch_size": 16,
        }
    ),
    "quantization.gptq": Case({"widths": (2, 4), "calibration_samples": 20, "batch": 16}),
    "quantization.layerwise": Case({"calibration_tokens": 120, "random_orders": 2}, inputs=lambda: {"bits": None}),
    "restoration.deepinv_tv": Case(
        {"blur_sigma": 0.8, "iterations": 5, "batch_size": 16},
        inputs=lambda: {"data": pictures(20)},
        deviations=TORCHVISION,
    ),
    "restoration.ms_ssim": Case(
        {
            "losses": ("mse", "ssim"),
            "epochs": 1,
            "code": 4,
            "window": 5,
            "scales": 1,
            "pictures": 2,
            "crop": 16,
            "pair_trials": 2,
            "batch_size": 16,
        }
    ),
    "training.classifier": Case({"epochs": 2, "batch_size": 16}),
}
"""Method id -> parameters with which it runs about a second."""


def case_of(method_id: str) -> Case:
    default = Case(CALIBRATION) if method_id.startswith("calibration.") else Case()
    return CASES.get(method_id, default)


def test_there_are_methods_and_every_case_is_one_of_them() -> None:
    assert HOST.methods
    assert set(CASES) <= set(HOST.methods)
    for case in CASES.values():
        assert set(case.deviations) <= set(RULES)


@pytest.mark.parametrize("method_id", HOST.methods)
def test_its_reference_says_what_the_class_says(method_id: str) -> None:
    assert check_declarations(HOST.method(method_id), HOST.methods[method_id]) == []


def _contract(method_id: str) -> type[MethodContract]:
    case = case_of(method_id)
    name = f"Test_{method_id.replace('.', '_')}"
    body = {
        "method": HOST.method(method_id),
        "params": case.params,
        "inputs": case.inputs(),
        "deviations": case.deviations,
        "__doc__": f"The contract, for {method_id}.",
        "__module__": __name__,
    }
    return type(name, (MethodContract,), body)


# One class per method, so that each is a test class of its own in the report of pytest.
globals().update({cls.__name__: cls for cls in map(_contract, HOST.methods)})
