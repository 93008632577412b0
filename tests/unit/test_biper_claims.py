"""Claims of BiPer on digits and on CIFAR-10 (minutes; CIFAR-10 needs the shared data folder)."""

from __future__ import annotations

import pytest

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
