"""Claims of BiPer on digits and on CIFAR-10 (minutes; CIFAR-10 needs the shared data folder)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import workbench
from workbench.toolkit import mean_interval

from unit.biper_cases import digit_model, split_digits
from unit.recording_out import check_report, record
from workbench_quantization.biper import BiPer

pytestmark = pytest.mark.slow


def test_two_stages_on_digits_beside_plain_signs_of_tuned_rates() -> None:
    """Five seeds, 30 + 15 epochs, 1200 images to train on and 597 to judge by; signs with the best of three rates.

    Measured: 94.6 % after stage 2, 88.9 % merely binarised, 95.1 % after stage 1 (not binary); 92.5 % with the clipped
    and 94.4 % with the polynomial gradient. The gain over the latter (0.2 points, 95 % interval -1.8 to 2.2) is no finding,
    and none is claimed.
    """
    data, test = split_digits()
    out, result = record(
        BiPer,
        {"model": digit_model(), "data": data, "test": test},
        epochs1=30,
        epochs2=15,
        batch=64,
        augmentation="none",
        baselines=("sign_clipped", "sign_polynomial"),
        baseline_rates=(0.3, 1.0, 3.0),
        seeds=5,
    )
    accuracy = dict(zip(out.data["mode"].values.tolist(), out.data["accuracy"].values, strict=True))
    assert accuracy["biper"].mean() > accuracy["sign_clipped"].mean() + 0.005
    assert accuracy["biper"].mean() > accuracy["sign_polynomial"].mean() - 0.015
    assert accuracy["biper_binarised"].max() < accuracy["biper"].min()
    assert accuracy["biper"].min() > 0.91
    low, high = next(m.interval for m in check_report(BiPer, result).metrics if m.name == "gain_over_sign") or (0, 0)
    assert low < accuracy["biper"].mean() - accuracy["sign_polynomial"].mean() < high


def test_two_stages_on_cifar10_from_a_pretrained_network(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user runs it: 1,350 images to train on, 4 + 3 epochs, plain signs at three rates, 1,017 test images, seed 0.

    Measured: 31.4 % after stage 2, 22.3 % merely binarised (9.0 points, image by image 6.0 to 12.1), 29.6 % after stage 1 (not
    binary); 33.6 % with plain signs, 2.3 points more (-0.7 to 5.2): no gain of the sine is shown, and none is claimed. With all
    of `cifar10(split=train)`, epochs1=8, epochs2=4, batch=64 and no baselines: 47.0, 24.9, 43.9 %.
    """
    monkeypatch.setenv("WORKBENCH_DATA", str(shared_data))
    run = workbench.open(tmp_path).run(
        "quantization.biper",
        model="cifar10-resnet20",
        data="cifar10(split=train)[:1500]",
        test="cifar10(split=test)",
        initialization="given",
        epochs1=4,
        epochs2=3,
        batch=32,
        warmup=1,
        baselines=("sign_polynomial",),
        baseline_rates=(1.0, 3.0, 10.0),
    )
    assert set(np.unique(run["bit"].values)) == {-1, 1}
    assert run["bit"].sizes["weight"] == 267_264  # 18 convolutions, all but the first layer and the last
    loss = run["training_loss"].sel(seed=0)
    first, second = loss.sel(mode="biper_stage1").values[:4], loss.sel(mode="biper").values[4:]
    assert (np.diff(first) < 0).all()
    assert second[-1] < second[0]
    correct = run["correct"].sel(seed=0).astype(float)
    gain = mean_interval(correct.sel(mode="biper").values - correct.sel(mode="biper_binarised").values)
    assert gain.lower > 0
    assert run.metrics["accuracy"] > 0.2
