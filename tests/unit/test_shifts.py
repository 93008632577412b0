"""Shifts: what each does to an image, that strengths order them, and that 8 bits hide which image was shifted."""

import numpy as np
import pytest
from scipy import ndimage

from workbench_detection import shifts

SHAPE = (4, 3, 24, 24)


def images(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), (0, 0, 2, 2))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return np.rint(smooth * 255).astype(np.uint8)


def shifted(kind, strength, pictures=None, indices=(0, 1, 2, 3), seed=0):
    return shifts.apply_shift(images() if pictures is None else pictures, kind, strength, indices=indices, seed=seed)


def difference(kind, strength):
    return np.abs(shifted(kind, strength) - shifted(None, 0)).mean()


@pytest.mark.parametrize("kind", shifts.SHIFTS)
def test_a_shifted_image_is_a_saved_and_loaded_one(kind):
    result = shifted(kind, shifts.STRENGTHS[kind][2])
    assert result.dtype == np.float32
    assert result.shape == SHAPE
    assert (result.min(), result.max()) >= (0, 0)
    assert result.max() <= 1
    assert np.array_equal(np.rint(result * 255).astype(np.float32) / np.float32(255), result)


@pytest.mark.parametrize("kind", shifts.SHIFTS)
def test_strength_grows_with_severity(kind):
    change = [difference(kind, strength) for strength in shifts.STRENGTHS[kind]]
    assert len(change) == 5
    assert change[0] > 0
    assert np.all(np.diff(change) > 0)


def test_no_shift_only_rounds_to_eight_bits():
    pictures = images()
    assert np.array_equal(shifted(None, 0), pictures.astype(np.float32) / np.float32(255))
    floats = np.array([[[[0.5, 0.50195, -0.2, 1.7]]]], dtype=np.float32)
    assert np.array_equal(np.rint(shifts.eight_bit(floats) * 255), [[[[128, 128, 0, 255]]]])


def test_uint8_and_the_same_image_as_float_are_shifted_alike():
    for kind in shifts.SHIFTS:
        strength = shifts.STRENGTHS[kind][2]
        as_float = shifted(kind, strength, images().astype(np.float32) / 255)
        assert np.array_equal(as_float, shifted(kind, strength))


def test_blur_is_a_convolution_with_a_gaussian_per_channel():
    point = np.zeros((3, 31, 31), dtype=np.float32)
    point[1, 15, 15] = 1
    result = shifts.blur(point, 1.5)
    offset = np.arange(-15, 16)
    kernel = np.where(np.abs(offset) <= 6, np.exp(-(offset**2) / (2 * 1.5**2)), 0)  # scipy truncates at 4 sigma
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    assert np.abs(result[1] - kernel).max() < 1e-6
    assert not result[[0, 2]].any()


def test_noise_has_the_asked_deviation_and_depends_on_seed_and_index_only():
    grey = np.full((2, 1, 200, 200), 128, dtype=np.uint8)
    noisy = shifted("noise", 0.1, grey, indices=(3, 8), seed=5)
    deviation = (noisy - 128 / 255).std(axis=(1, 2, 3))
    assert deviation == pytest.approx([0.1, 0.1], rel=0.02)
    assert not np.array_equal(noisy[0], noisy[1])
    alone = shifted("noise", 0.1, grey[:1], indices=(8,), seed=5)
    assert np.array_equal(alone[0], noisy[1])
    assert not np.array_equal(shifted("noise", 0.1, grey[:1], indices=(8,), seed=6)[0], noisy[1])


def test_contrast_keeps_the_mean_and_scales_the_deviation():
    image = shifts.eight_bit(images())[0]
    result = shifts.contrast(image, 0.4)
    assert result.mean() == pytest.approx(image.mean(), abs=1e-6)
    assert result.std() == pytest.approx(0.4 * image.std(), rel=1e-4)


def test_jpeg_is_pillows_file_read_back(tmp_path):
    from PIL import Image

    picture = images()[0]
    path = tmp_path / "picture.jpg"
    Image.fromarray(picture.transpose(1, 2, 0)).save(path, quality=30, subsampling="4:2:0")
    with Image.open(path) as stored:
        expected = np.asarray(stored).transpose(2, 0, 1)
    assert np.array_equal(np.rint(shifts.jpeg(picture / np.float32(255), 30) * 255), expected)


def test_jpeg_takes_grey_images():
    grey = images(shape=(2, 1, 24, 24))
    result = shifted("jpeg", 30, grey, indices=(0, 1))
    assert result.shape == grey.shape
    assert 0 < np.abs(result - grey / 255).mean() < 0.05
