"""Claims of the MATLAB-like bicubic resize: published figures, closed forms, an independent construction."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from workbench import InputError

from workbench_restoration import metrics
from workbench_restoration.resize import crop_to_multiple, downscale, extend_symmetric, upscale

torch.set_num_threads(1)
SHARED = Path(os.environ.get("WORKBENCH_SHARED", Path(__file__).resolve().parents[3] / "shared"))


def cubic(t: np.ndarray) -> np.ndarray:
    """Keys' kernel with a = -0.5."""
    t = np.abs(t)
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0))


def brute_force_matrix(length: int, out: int) -> np.ndarray:
    """The (out, length) weights of imresize, pixel by pixel: MATLAB's `contributions` with symmetric indices."""
    scale = out / length
    stretch = min(scale, 1)
    matrix = np.zeros((out, length))
    for row in range(out):
        centre = (row + 0.5) / scale - 0.5
        positions = np.arange(np.floor(centre - 2 / stretch) - 1, np.ceil(centre + 2 / stretch) + 2).astype(int)
        weights = cubic((centre - positions) * stretch)
        weights /= weights.sum()
        for position, weight in zip(positions, weights, strict=True):
            position %= 2 * length
            matrix[row, min(position, 2 * length - 1 - position)] += weight
    return matrix


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("size", [(12, 24), (48, 36)])
def test_both_directions_are_the_explicit_weight_matrices_borders_included(factor: int, size: tuple[int, int]) -> None:
    image = torch.rand((2, 3, *size), generator=torch.Generator().manual_seed(factor), dtype=torch.float64)
    for resized in (downscale(image, factor), upscale(image, factor)):
        rows = torch.from_numpy(brute_force_matrix(size[0], resized.shape[-2]))
        columns = torch.from_numpy(brute_force_matrix(size[1], resized.shape[-1]))
        torch.testing.assert_close(resized, rows @ image @ columns.T, atol=1e-12, rtol=0)


def test_plain_torch_resizing_is_wrong_at_the_border_which_is_why_images_are_extended() -> None:
    image = torch.rand((1, 1, 48, 48), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain = torch.nn.functional.interpolate(image, size=(12, 12), mode="bicubic", antialias=True)
    error = (plain - downscale(image, 4)).abs() * 255
    assert error[..., 2:-2, 2:-2].max() < 1e-6
    assert error.max() > 1


def test_constant_images_stay_constant_and_resizing_is_differentiable() -> None:
    image = torch.full((1, 1, 8, 12), 0.3, dtype=torch.float64)
    torch.testing.assert_close(downscale(image, 4), torch.full((1, 1, 2, 3), 0.3, dtype=torch.float64))
    torch.testing.assert_close(upscale(image, 3), torch.full((1, 1, 24, 36), 0.3, dtype=torch.float64))
    generator = torch.Generator().manual_seed(3)
    x = torch.rand((1, 2, 8, 12), generator=generator, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x: downscale(x, 4), (x,))
    torch.autograd.gradcheck(lambda x: upscale(x, 2), (x,))


def test_symmetric_extension_is_numpys_however_wide() -> None:
    image = torch.arange(15.0).view(1, 1, 3, 5)
    for border in (1, 3, 8):
        expected = np.pad(image.numpy(), ((0, 0), (0, 0), (border, border), (border, border)), mode="symmetric")
        np.testing.assert_array_equal(extend_symmetric(image, border).numpy(), expected)


def test_sizes_that_do_not_divide_are_named() -> None:
    image = torch.rand(1, 1, 13, 17)
    with pytest.raises(InputError, match="sides that are multiples of 3, got 13x17"):
        downscale(image, 3)
    assert crop_to_multiple(image, 3).shape == (1, 1, 12, 15)
    assert downscale(crop_to_multiple(image, 3), 3).shape == (1, 1, 4, 5)


@pytest.mark.skipif(not (SHARED / "data/restoration/set5").is_dir(), reason="Set5 is not beside the project")
@pytest.mark.parametrize(
    ("factor", "rounded", "psnr", "ssim"),
    [
        (2, True, 33.65, 0.9295),
        (3, True, 30.39, 0.8679),
        (4, True, 28.42, 0.8102),
        (2, False, 33.68, 0.9305),
        (3, False, 30.40, 0.8690),
        (4, False, 28.43, 0.8113),
    ],
)
def test_set5_reproduces_the_published_bicubic_rows(factor: int, rounded: bool, psnr: float, ssim: float) -> None:
    scores = []
    for path in sorted((SHARED / "data/restoration/set5").glob("*.bmp")):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) / 255
        clean = crop_to_multiple(torch.from_numpy(pixels).permute(2, 0, 1)[None], factor)
        restored = metrics.quantize(upscale(metrics.quantize(downscale(clean, factor)), factor))
        pair = [metrics.crop_border(metrics.luma(image, rounded=rounded), factor) for image in (restored, clean)]
        scores.append([metrics.psnr(*pair).item(), metrics.ssim(*pair).item()])
    mean = np.mean(scores, 0)
    print(factor, rounded, mean)
    assert len(scores) == 5
    assert mean[0] == pytest.approx(psnr, abs=0.01)
    assert mean[1] == pytest.approx(ssim, abs=0.0005)
