"""Claims of what is measured on held-out images: excess loss, verdicts, linear probe, pair sheet, preference."""

import numpy as np
import pytest
import torch
from scipy import stats
from workbench import InputError

from workbench_restoration import metrics
from workbench_restoration.comparison import (
    METRICS,
    MOST_PSNR,
    draw_pairs,
    excess_loss,
    image_metrics,
    linear_probe,
    preference,
    ssim_image,
)
from workbench_restoration.ms_ssim_report import verdicts
from workbench_restoration.reconstruction import ImageLoss

torch.set_num_threads(1)


def test_metrics_come_in_the_order_of_their_names() -> None:
    generator = torch.Generator().manual_seed(0)
    image, target = torch.rand((2, 3, 1, 24, 24), generator=generator, dtype=torch.float64)
    value = image_metrics(image, target, ImageLoss("mse", window=7, sigma=1.0, scales=2))
    assert value.shape == (len(METRICS), 3)
    torch.testing.assert_close(value[METRICS.index("mse")], (image - target).square().mean((1, 2, 3)))
    torch.testing.assert_close(value[METRICS.index("mae")], (image - target).abs().mean((1, 2, 3)))
    torch.testing.assert_close(value[METRICS.index("psnr")], -10 * torch.log10(value[0]))
    torch.testing.assert_close(value[METRICS.index("ssim")], metrics.ssim(image, target, window=7, sigma=1.0))
    expected = metrics.ms_ssim(image, target, window=7, sigma=1.0, scales=2)
    torch.testing.assert_close(value[METRICS.index("ms_ssim")], expected)


def test_an_image_restored_exactly_has_finite_metrics() -> None:
    image = torch.rand((2, 1, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = image.clone()
    target[1] += 0.01
    value = image_metrics(image, target, ImageLoss("mse"))
    assert value[METRICS.index("psnr"), 0] == MOST_PSNR
    torch.testing.assert_close(value[:, 0], torch.tensor([0.0, 0.0, MOST_PSNR, 1.0, 1.0], dtype=torch.float64))
    assert value[METRICS.index("psnr"), 1] == pytest.approx(40.0)  # others are what they were


def test_a_pixel_of_the_ssim_image_is_the_window_around_it() -> None:
    generator = torch.Generator().manual_seed(0)
    image, target = torch.rand((2, 1, 3, 30, 26), generator=generator, dtype=torch.float64)
    whole = ssim_image(image, target, ImageLoss("ssim"))
    assert whole.shape == (1, 30, 26)
    window = (..., slice(12 - 5, 12 + 6), slice(9 - 5, 9 + 6))
    torch.testing.assert_close(whole[0, 12, 9], metrics.ssim(image[window], target[window])[0])
    torch.testing.assert_close(whole[0, 5:-5, 5:-5].mean(), metrics.ssim(image, target)[0])
    assert torch.isfinite(whole).sum() == 20 * 16
    bordered = ssim_image(image, target, ImageLoss("ssim"), border=3)
    torch.testing.assert_close(bordered[0, 8:-8, 8:-8], whole[0, 8:-8, 8:-8])
    assert torch.isfinite(bordered).sum() == 14 * 10


def test_excess_loss_is_relative_to_the_best_network() -> None:
    mean = np.array([[0.01, 0.10, 20.0, 0.6, 0.8], [0.02, 0.10, 17.0, 0.7, 0.9], [0.04, 0.05, 14.0, 0.4, 0.6]])
    expected = [[0, 1, 1 / 3, 1], [1, 1, 0, 0], [3, 0, 1, 3]]
    np.testing.assert_allclose(excess_loss(mean), expected, atol=1e-12)


def test_a_verdict_is_a_paired_t_interval_against_the_best_other_network() -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(0.5, 0.2, (3, len(METRICS), 50))
    ssim, mse, mae = METRICS.index("ssim"), METRICS.index("mse"), METRICS.index("mae")
    value[2, ssim] = value[:2, ssim].max(0) + 0.1  # wins in every image
    value[0, mse] = value[1:, mse].max(0) + 0.1  # a larger error: loses
    value[1, mae] = value[2, mae] + rng.normal(0, 1e-3, 50)  # nothing between the two
    value[0, mae] += 1
    found = {verdict.loss: verdict for verdict in verdicts(("mse", "mae", "ssim"), value)}
    assert [found[name].word for name in ("mse", "mae", "ssim")] == ["loses", "tie", "wins"]
    assert found["mae"].rival == "ssim"
    rival = ("mse", "mae").index(found["ssim"].rival)
    difference = value[2, ssim] - value[rival, ssim]
    interval = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert found["ssim"].gain.bounds == pytest.approx((interval.low, interval.high))
    assert verdicts(("ssim",), value[:1]) == []
    assert [verdict.loss for verdict in verdicts(("mse", "mix"), value[:2])] == ["mse"]


def test_the_probe_reads_what_is_linear_in_the_code_whatever_its_scale() -> None:
    rng = np.random.default_rng(1)
    code, test_code = rng.normal(size=(2, 400, 5))
    label, test_label = ((part @ [2, -1, 0, 0, 0] > 0).astype(int) for part in (code, test_code))
    assert linear_probe(code, label, test_code, test_label) > 0.95
    scale = np.array([1e-3, 1e3, 1, 1, 1])
    scaled = linear_probe(code * scale, label, test_code * scale, test_label)
    assert scaled == linear_probe(code, label, test_code, test_label)
    unrelated = linear_probe(code, rng.permutation(label), test_code, rng.permutation(test_label))
    assert 0.35 < unrelated < 0.65


def test_the_pair_sheet_is_balanced_shuffled_and_reproducible() -> None:
    sheet = draw_pairs(("mse", "mae", "ssim", "ms_ssim"), 10, 40, np.random.default_rng(0))
    assert sheet is not None
    pairs = list(zip(sheet.left, sheet.right, strict=True))
    for pixel in ("mse", "mae"):  # MS-SSIM against each, ten times on either side
        assert pairs.count(("ms_ssim", pixel)) == pairs.count((pixel, "ms_ssim")) == 10
    assert sorted(sheet.sample.tolist()) == sorted(4 * list(range(10)))  # every image four times
    assert len(set(sheet.sample[:10].tolist())) == 10  # and none twice before all were shown
    again = draw_pairs(("mse", "mae", "ssim", "ms_ssim"), 10, 40, np.random.default_rng(0))
    assert again is not None
    assert (again.left, again.sample.tolist()) == (sheet.left, sheet.sample.tolist())
    assert draw_pairs(("mse", "mae", "ssim", "ms_ssim"), 10, 40, np.random.default_rng(1)).left != sheet.left
    sides = [left == "ms_ssim" for left, _ in pairs]
    assert sides != sorted(sides)
    odd = [draw_pairs(("mse", "ssim"), 9, 5, np.random.default_rng(seed)).left.count("ssim") for seed in range(20)]
    assert set(odd) == {2, 3}
    assert draw_pairs(("mse", "mae"), 10, 4, np.random.default_rng(0)) is None
    assert draw_pairs(("ssim", "ms_ssim"), 10, 4, np.random.default_rng(0)) is None
    assert draw_pairs(("mse", "ssim"), 10, 0, np.random.default_rng(0)) is None


def test_a_preference_is_a_share_of_answers_with_wilsons_interval() -> None:
    left, right = ["ssim", "mse", "ssim", "mae", "ssim"], ["mse", "ssim", "mae", "ssim", "mse"]
    choice = np.array([0, 1, 1, 1, -1], dtype=np.int8)  # ssim, ssim, mae, ssim, unanswered
    found = preference(choice, left, right, "ssim")
    expected = stats.binomtest(3, 4).proportion_ci(0.95, method="wilson")
    assert found.value == 0.75
    assert found.bounds == pytest.approx((expected.low, expected.high))
    assert preference(choice, left, right, "ssim", against="mse").value == 1.0
    assert preference(choice, left, right, "ssim", against="mae").value == 0.5
    assert preference(choice, left, right, "mae").value == 0.5
    with pytest.raises(InputError, match="choice: expected -1, 0 or 1 for each of 5 trials"):
        preference(np.array([0, 2, 0, 0, 0]), left, right, "ssim")
    with pytest.raises(InputError, match="at least one answered trial with 'ssim'"):
        preference(np.full(5, -1), left, right, "ssim")
