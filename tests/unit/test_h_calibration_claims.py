"""h-calibration against temperature scaling on real classifiers: CIFAR-10 ResNets and stored outputs of others.

With one piecewise-linear map, no class left out, and a schedule that watches the loss, but for one test of the paper's setting.
Intervals are paired bootstraps over the samples judged.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file
from workbench.subjects import networks, open_data
from workbench.subjects.builtin import DATASETS, IMAGENET_MEAN, IMAGENET_STD

from unit.recording_out import record
from workbench_calibration.h_calibration import HCalibration

pytestmark = pytest.mark.slow
JPEG = 4000
"""Of the 10,000 compressed test images."""


def compared(name, values, label, seed, **params):
    """Half of the samples to fit on, half to judge by.

    Returns:
        h-calibration less temperature, {metric: (value, lower, upper)}; and the top-label error of each, {method: error}.
    """
    rows = np.random.default_rng(seed).permutation(len(label))
    half = len(label) // 2
    parts = {
        role: xr.Dataset({name: (("sample", "class"), values[some]), "label": ("sample", label[some])})
        for role, some in (("fit", rows[:half]), ("data", rows[half:]))
    }
    params = {"maps": ("pwlinear-100",), "epochs": 600, "watch": "loss", "leave_one_class_out": False, "baselines": ()} | params
    _, result = record(HCalibration, parts, chance_draws=20, **params)
    assert (result["changed_predictions"].values == 0).all()
    errors = result["value"].sel(metric="ece_width_l1").to_series().to_dict()
    return {
        str(metric): tuple(
            float(result[f"difference{end}"].sel(recalibrator="temperature", ranked_metric=metric))
            for end in ("", "_lower", "_upper")
        )
        for metric in result["difference"]["ranked_metric"].values
    }, errors


def shown(name, found, errors):
    print(name, {metric: tuple(round(number, 5) for number in row) for metric, row in found.items()})
    print(f"    top-label errors: { {method: round(error, 4) for method, error in errors.items()} }")


def logits(shared_data, depth, images):
    """Logits (sample, class) of a published ResNet for CIFAR-10."""
    network = getattr(networks, f"resnet{depth}")()
    network.load_state_dict(load_file(shared_data / "weights" / f"cifar10_resnet{depth}.safetensors"))
    network.eval()
    mean, deviation = (torch.tensor(three)[:, None, None] for three in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        return torch.cat([network((part.float() / 255 - mean) / deviation) for part in images.split(100)]).numpy()


def test_in_the_papers_setting_it_beats_temperature_in_likelihood_on_a_stored_vgg16(shared_data):
    """Each class left out, the official schedule, up to 2,000 epochs, selection on the fit samples; two of the twelve maps.

    All twelve select the same one, nonlinear-20 (each map has its own seeded start): likelihood lower by 0.0082 (0.0051 to
    0.0115), ECE 0.0111 against 0.0153, KS error 0.0087 against 0.0099; of the errors the difference is not clear.
    """
    with np.load(shared_data / "classifier_outputs" / "vgg16-cifar-10.npz") as stored:
        p, y = stored["predictions"], stored["ground_truth"].reshape(-1).astype(np.int64)
    found, errors = compared("probability", p, y, 0, maps=("pwlinear-500", "nonlinear-20"), watch="top_error", epochs=2000,
                             leave_one_class_out=True)  # fmt: skip
    shown("VGG-16, the paper's setting", found, errors)
    assert found["negative_log_likelihood"][2] < 0
    assert errors["h_calibration"] < errors["temperature"]
    assert found["ks_error"][1] < 0


@pytest.mark.parametrize("depth", [20, 56])
def test_fitted_on_two_thousand_samples_its_likelihood_is_that_of_temperature(shared_data, depth):
    """CIFAR-10 ResNets on 4,000 test images as JPEG, on which they are far too sure: one temperature is enough for that."""
    data = open_data(f"{shared_data / 'cifar10' / 'jpeg_test.parquet'}[:{JPEG}]", datasets=DATASETS)
    logit = logits(shared_data, depth, torch.as_tensor(data["image"].values))
    found, errors = compared("logit", logit, data["label"].values, 0)
    shown(f"ResNet-{depth}, JPEG", found, errors)
    assert abs(found["negative_log_likelihood"][0]) < 0.005
    assert errors["h_calibration"] < errors["uncalibrated"] / 3


def test_fitted_on_five_hundred_samples_it_can_be_clearly_worse_than_temperature(shared_data):
    """ResNet-56 on the 1,017 test images in their original bits: few events tell it anything, a temperature needs less.

    Measured on three splits: negative log likelihood 0.002 below, 0.057 and 0.045 above that of temperature.
    """
    with np.load(shared_data / "cifar10" / "original_subset.npz") as stored:
        image, label = torch.as_tensor(stored["x_test"]), stored["y_test"].astype(np.int64)
    logit = logits(shared_data, 56, image)
    lower = []
    for seed in range(3):
        found, errors = compared("logit", logit, label, seed)
        shown(f"ResNet-56, original, split {seed}", found, errors)
        lower.append(found["negative_log_likelihood"][1])
    assert max(lower) > 0
    assert min(lower) < 0


def test_on_a_stored_lenet_its_likelihood_is_that_of_temperature(shared_data):
    """5,000 samples to fit, 5,000 to judge. Of other stored outputs more is claimed, in the tests of the method."""
    with np.load(shared_data / "classifier_outputs" / "lenet-5-cifar-10.npz") as stored:
        p, y = stored["predictions"], stored["ground_truth"].reshape(-1).astype(np.int64)
    found, errors = compared("probability", p, y, 0)
    shown("LeNet-5", found, errors)
    assert abs(found["negative_log_likelihood"][0]) < 0.01
    assert errors["h_calibration"] < errors["uncalibrated"] / 3
