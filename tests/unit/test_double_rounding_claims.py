"""What Double Rounding keeps of a trained network: ResNet-20 on CIFAR-10 (needs the shared data folder; six minutes of one core).

With a folder in $SLOW_TEST_STORE the runs are kept there, and a test that was stopped goes on from the last epoch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from workbench.subjects.networks import resnet20
from workbench.toolkit import mean_interval, predict_all

from workbench_quantization import deployed_model

DATA = Path(__file__).parents[2].parent / "shared" / "data"
IMAGES, WEIGHTS = DATA / "cifar10" / "original_subset.npz", DATA / "weights" / "cifar10_resnet20.safetensors"
WIDTHS = (8, 6, 4, 2)

pytestmark = pytest.mark.slow
needs_data = pytest.mark.skipif(
    not (IMAGES.exists() and WEIGHTS.exists()), reason=f"CIFAR-10 and weights are not in {DATA}"
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return workbench.open(os.environ.get("SLOW_TEST_STORE") or tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def cifar() -> dict[str, Any]:
    """ResNet-20 as published, all 5,085 training and 1,017 test images."""
    from safetensors.torch import load_file

    network = resnet20()
    network.load_state_dict(load_file(WEIGHTS))
    with np.load(IMAGES) as arrays:
        parts = {
            role: xr.Dataset(
                {
                    "image": (("sample", "channel", "y", "x"), arrays[f"x_{part}"]),
                    "label": ("sample", arrays[f"y_{part}"].astype(np.int64)),
                }
            )
            for role, part in (("data", "train"), ("test", "test"))
        }
    model = workbench.Model(
        network.eval(),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        input_shape=(3, 32, 32),
        factory="resnet20",
    )
    return {"model": model, **parts}


OPTIONS = {"augmentation": "flip_crop", "hess_samples": 512, "watch_samples": 300, "progress": False}


@needs_data
def test_one_stored_resnet20_on_cifar10(bench: Any, cifar: dict[str, Any]) -> None:
    """2,560 images, three epochs, full precision as the teacher, seed 0; 1,017 test images, differences image by image.

    Measured: 91.7, 91.8, 90.9 and 75.1 % at 8, 6, 4 and 2 bits, of 91.6 %; that is less by
    -0.1 (-1.4 to +1.2); -0.2 (-1.6 to +1.2); 0.8 (-0.8 to +2.4); 16.5 (+13.9 to +19.1) points.
    The paper's 200 epochs of 50,000 images have 90.2 % at 2 bits, of 92.3.
    """
    some = {**cifar, "data": cifar["data"].isel(sample=slice(0, 2560))}
    run = bench.run(
        "quantization.double_rounding", **some, widths=WIDTHS, epochs=3, batch_size=64, teacher="full precision", seed=0,
        **OPTIONS,
    )  # fmt: skip
    image, label = torch.from_numpy(cifar["test"]["image"].values), cifar["test"]["label"].values
    right = predict_all(cifar["model"], image)[0].argmax(1).numpy() == label
    gaps = {}
    for bits in WIDTHS:
        found = predict_all(deployed_model(run, bits), image)[0].argmax(1).numpy() == label
        interval = mean_interval(right.astype(float) - found)
        gaps[bits] = float(right.mean() - found.mean())
        print(f"{bits} bits {found.mean():.4f}, gap {gaps[bits]:.4f} ({interval.lower:.4f} to {interval.upper:.4f})")
    print("epochs", run["accuracy_epoch"].values.round(3).tolist(), run["loss_epoch"].values.round(3).tolist())
    gradient = run["grad_scale_absmax"].mean(("step", "layer")).values
    print("gradients", gradient, "rates", run["lr_scale"].mean("step").values)
    print("bytes", run["width_bytes"].values, int(run["stored_bytes"]), int(run["full_precision_bytes"]))
    assert right.mean() == pytest.approx(0.9164, abs=0.002)
    assert max(gaps[bits] for bits in (8, 6, 4)) < 0.01
    assert gaps[2] < 0.3  # rounding alone leaves 15 %
    # 1.5 times those at 8 bits, as in the paper's figure 7; the text says an order of magnitude.
    assert gradient.argmax() == 3
    assert int(run["stored_bytes"]) < 0.6 * run["width_bytes"].values.sum()
