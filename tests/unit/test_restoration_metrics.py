"""Claims of the restoration metrics, against pytorch-msssim, scikit-image, torchmetrics and closed forms."""

import math

import numpy as np
import pytest
import pytorch_msssim
import skimage
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure
from workbench import InputError

from workbench_restoration import metrics

torch.set_num_threads(1)


def photo(name: str, top: int = 0, left: int = 0, size: int | None = None) -> torch.Tensor:
    """A bundled photograph as (1, channel, y, x) float64 in 0..1."""
    image = torch.from_numpy(np.atleast_3d(getattr(skimage.data, name)()) / 255.0).permute(2, 0, 1)[None]
    stop = (None, None) if size is None else (top + size, left + size)
    return image[..., top : stop[0], left : stop[1]].contiguous()


def noisy(image: torch.Tensor, sigma: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (image + sigma * torch.randn(image.shape, generator=generator, dtype=image.dtype)).clamp(0, 1)


def float64_window(channels: int, size: int = 11, sigma: float = 1.5) -> torch.Tensor:
    """pytorch-msssim's own window is rounded to float32 even for float64 images; it takes a better one."""
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-(offset**2) / (2 * sigma**2))
    return (weights / weights.sum()).expand(channels, 1, 1, size)


PAIRS = [("astronaut", 0.02), ("camera", 0.1), ("coffee", 0.25), ("chelsea", 0.5)]


@pytest.mark.parametrize(("name", "sigma"), PAIRS)
def test_ssim_is_that_of_scikit_image_with_its_published_settings(name: str, sigma: float) -> None:
    clean = photo(name)
    damaged = noisy(clean, sigma)
    # scikit-image averages the map over the valid region too, but reflects at the border to compute it.
    expected = structural_similarity(
        clean[0].numpy(),
        damaged[0].numpy(),
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
    )
    assert metrics.ssim(damaged, clean).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("name", "sigma"), PAIRS)
def test_ssim_and_ms_ssim_are_those_of_pytorch_msssim(name: str, sigma: float) -> None:
    clean = photo(name, 20, 30, 256)
    damaged = noisy(clean, sigma)
    options = {"data_range": 1.0, "size_average": False, "win": float64_window(clean.shape[1])}
    expected = pytorch_msssim.ssim(damaged, clean, **options)
    torch.testing.assert_close(metrics.ssim(damaged, clean), expected, atol=1e-10, rtol=0)
    expected = pytorch_msssim.ms_ssim(damaged, clean, **options)
    torch.testing.assert_close(metrics.ms_ssim(damaged, clean), expected, atol=1e-10, rtol=0)
    # float32, as in training, costs less than the fourth digit.
    torch.testing.assert_close(metrics.ms_ssim(damaged.float(), clean.float()).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scales", [1, 2, 3, 4])
def test_fewer_scales_take_the_first_weights_renormalised(scales: int) -> None:
    clean = photo("astronaut", 100, 100, 192)
    damaged = noisy(clean, 0.1)
    weights = [weight / sum(metrics.MS_SSIM_WEIGHTS[:scales]) for weight in metrics.MS_SSIM_WEIGHTS[:scales]]
    options = {"data_range": 1.0, "size_average": False, "win": float64_window(3), "weights": weights}
    expected = pytorch_msssim.ms_ssim(damaged, clean, **options)
    torch.testing.assert_close(metrics.ms_ssim(damaged, clean, scales=scales), expected, atol=1e-10, rtol=0)
    if scales == 1:
        torch.testing.assert_close(metrics.ms_ssim(damaged, clean, scales=1), metrics.ssim(damaged, clean))


def test_other_windows_and_constants_are_those_of_pytorch_msssim() -> None:
    clean = photo("coffee", 0, 0, 96) * 255
    damaged = noisy(clean / 255, 0.1) * 255
    expected = pytorch_msssim.ssim(
        damaged, clean, size_average=False, win=float64_window(3, 7, 1.0), K=(0.02, 0.05), data_range=255.0
    )
    ours = metrics.ssim(damaged, clean, window=7, sigma=1.0, k1=0.02, k2=0.05, data_range=255.0)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=0)


def test_torchmetrics_agrees_inside_and_only_its_padded_border_differs() -> None:
    clean = photo("camera", 0, 0, 64)
    damaged = noisy(clean, 0.1)
    mean, padded = structural_similarity_index_measure(damaged, clean, data_range=1.0, return_full_image=True)
    luminance, contrast_structure = metrics.ssim_maps(damaged, clean)
    torch.testing.assert_close(luminance * contrast_structure, padded[..., 5:-5, 5:-5], atol=1e-5, rtol=0)
    assert abs(mean - metrics.ssim(damaged, clean)) > 1e-3  # why its mean is no oracle


@pytest.mark.parametrize(("name", "sigma"), PAIRS)
def test_ssim_and_ms_ssim_are_those_of_piq_without_its_downsampling(name: str, sigma: float) -> None:
    piq = pytest.importorskip("piq", reason="piq is not installed")
    clean = photo(name, 20, 30, 176)
    damaged = noisy(clean, sigma)
    options = {"data_range": 1.0, "reduction": "none"}
    expected = piq.ssim(damaged, clean, downsample=False, **options)
    torch.testing.assert_close(metrics.ssim(damaged, clean), expected, atol=1e-6, rtol=0)
    expected = piq.multi_scale_ssim(damaged, clean, scale_weights=torch.tensor(metrics.MS_SSIM_WEIGHTS), **options)
    # piq normalises all sets of weights to sum 1; as published they sum to 1.0001.
    torch.testing.assert_close(metrics.ms_ssim(damaged, clean), expected, atol=2e-4, rtol=0)


def test_psnr_is_that_of_scikit_image() -> None:
    clean = photo("astronaut", 0, 0, 64)
    damaged = noisy(clean, 0.1)
    expected = peak_signal_noise_ratio(clean.numpy(), damaged.numpy(), data_range=1.0)
    assert metrics.psnr(damaged, clean).item() == pytest.approx(expected, abs=1e-10)
    assert metrics.psnr(damaged * 255, clean * 255, data_range=255).item() == pytest.approx(expected, abs=1e-10)
    assert metrics.psnr(clean, clean).item() == math.inf
    # An offset of a tenth has mse 0.01: 20 dB, and mean absolute error 0.1.
    grey = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    torch.testing.assert_close(metrics.psnr(grey + 0.1, grey), torch.full((2,), 20.0, dtype=torch.float64))
    torch.testing.assert_close(
        metrics.mean_absolute_error(grey + 0.1, grey), torch.full((2,), 0.1, dtype=torch.float64)
    )


def test_every_image_is_scored_by_itself() -> None:
    clean = torch.cat([photo("astronaut", 40 * i, 60 * i, 176) for i in range(3)])
    damaged = torch.cat([noisy(clean[i : i + 1], 0.1 * (i + 1), seed=i) for i in range(3)])
    for metric in (
        metrics.psnr,
        metrics.ssim,
        metrics.ms_ssim,
        metrics.mean_squared_error,
        metrics.mean_absolute_error,
    ):
        alone = torch.cat([metric(damaged[i : i + 1], clean[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(metric(damaged, clean), alone)


def test_similarity_of_an_image_to_itself_is_one_with_zero_gradient() -> None:
    clean = photo("chelsea", 0, 0, 176)
    for metric in (metrics.ssim, metrics.ms_ssim):
        image = clean.clone().requires_grad_()
        score = metric(image, clean)
        assert score.item() == pytest.approx(1.0, abs=1e-12)
        (1 - score).backward()
        assert image.grad is not None
        assert image.grad.abs().max() < 1e-10
        elsewhere = noisy(clean, 0.1).requires_grad_()
        metric(elsewhere, clean).backward()
        assert elsewhere.grad is not None
        assert elsewhere.grad.abs().max() > 1e-7  # the zero above is a property of x = y, not of a dead graph


def test_similarity_is_symmetric() -> None:
    clean = photo("astronaut", 50, 50, 176)
    damaged = noisy(clean, 0.2)
    torch.testing.assert_close(metrics.ssim(damaged, clean), metrics.ssim(clean, damaged), atol=1e-14, rtol=0)
    torch.testing.assert_close(metrics.ms_ssim(damaged, clean), metrics.ms_ssim(clean, damaged), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (0.2, 0.8), (0.5, 0.55)])
def test_constant_images_follow_the_luminance_formula(a: float, b: float) -> None:
    x = torch.full((1, 1, 176, 176), a, dtype=torch.float64)
    y = torch.full((1, 1, 176, 176), b, dtype=torch.float64)
    luminance = (2 * a * b + 1e-4) / (a * a + b * b + 1e-4)
    assert metrics.ssim(x, y).item() == pytest.approx(luminance, rel=1e-10)
    # Contrast and structure are perfect, so only the last scale's luminance counts, to the power 0.1333.
    assert metrics.ms_ssim(x, y).item() == pytest.approx(luminance ** metrics.MS_SSIM_WEIGHTS[-1], rel=1e-6)


def test_the_wrong_data_range_hides_every_difference() -> None:
    clean = photo("camera", 0, 0, 64)
    assert metrics.ssim(noisy(clean, 0.5), clean).item() < 0.3
    assert metrics.ssim(noisy(clean, 0.5), clean, data_range=255.0).item() > 0.99


def test_an_inverted_image_has_negative_structure_and_still_a_finite_gradient() -> None:
    clean = torch.rand((1, 1, 176, 176), generator=torch.Generator().manual_seed(4))
    image = (1 - clean).requires_grad_()
    _, contrast_structure = metrics.ssim_maps(image, clean)
    assert contrast_structure.max() < 0
    score = metrics.ms_ssim(image, clean)
    score.sum().backward()
    assert torch.isfinite(score).all()
    assert score.item() == pytest.approx(1e-6, rel=1e-2)  # every factor at its floor
    assert image.grad is not None
    assert torch.isfinite(image.grad).all()


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand((2, 2, 22, 23), generator=generator, dtype=torch.float64)
    image = (clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    for metric in (metrics.ssim, metrics.ms_ssim):
        torch.autograd.gradcheck(lambda x, metric=metric: metric(x, clean), (image,), fast_mode=True)


def test_scales_grow_with_the_image() -> None:
    starts = {11: 1, 22: 2, 44: 3, 88: 4, 176: 5}
    for side in range(11, 400):
        expected = max(scales for start, scales in starts.items() if side >= start)
        assert metrics.scales_that_fit(side, 1000) == expected
        assert metrics.scales_that_fit(1000, side) == expected
    assert metrics.scales_that_fit(10, 1000) == 0
    assert sum(metrics.scale_weights(3)) == pytest.approx(1)
    assert metrics.scale_weights(5) == pytest.approx(metrics.MS_SSIM_WEIGHTS)


def test_the_separable_filter_is_the_two_dimensional_window() -> None:
    image = torch.rand((2, 3, 19, 27), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    offset = torch.arange(11, dtype=torch.float64) - 5
    kernel = torch.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 11, 11)
    expected = torch.nn.functional.conv2d(image, kernel, groups=3)
    torch.testing.assert_close(metrics.gaussian_filter(image), expected, atol=1e-14, rtol=0)


def test_a_window_first_used_in_inference_mode_can_be_trained_through_later() -> None:
    with torch.inference_mode():
        metrics.ssim(torch.rand(1, 1, 37, 37), torch.rand(1, 1, 37, 37))
    image = torch.rand(1, 1, 37, 37, requires_grad=True)
    metrics.ssim(image, torch.rand(1, 1, 37, 37)).sum().backward()
    assert image.grad is not None


def test_luma_is_that_of_scikit_image_in_studio_range() -> None:
    image = photo("coffee", 0, 0, 64)
    expected = skimage.color.rgb2ycbcr(image[0].permute(1, 2, 0).numpy())[..., 0]
    np.testing.assert_allclose(metrics.luma(image)[0, 0].numpy() * 255, expected, atol=1e-9)
    rounded = metrics.luma(image, rounded=True)[0, 0].numpy() * 255
    np.testing.assert_allclose(rounded, np.round(expected), atol=1e-9)
    black_and_white = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    torch.testing.assert_close(metrics.luma(black_and_white)[:, 0, 0, 0] * 255, torch.tensor([16.0, 235.0]))
    grey = photo("camera", 0, 0, 16)
    assert metrics.luma(grey) is grey


def test_quantizing_clips_and_rounds_half_to_even() -> None:
    image = torch.tensor([-0.1, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.2], dtype=torch.float64)
    assert (metrics.quantize(image) * 255).round().tolist() == [0, 0, 2, 2, 255]


def test_wrong_input_is_named() -> None:
    image = torch.rand(1, 1, 32, 32)
    with pytest.raises(InputError, match=r"image: expected the target's shape .*\(1, 1, 16, 16\)"):
        metrics.ssim(image, image[..., :16, :16])
    with pytest.raises(InputError, match="at least 11 pixels a side"):
        metrics.ssim(image[..., :8, :8], image[..., :8, :8])
    with pytest.raises(InputError, match="scales: expected 1 to 2 for images of 32x32 pixels, got 3"):
        metrics.ms_ssim(image, image, scales=3)
    with pytest.raises(InputError, match=r"1 .grey. or 3 .RGB. channels"):
        metrics.luma(torch.rand(1, 2, 4, 4))
