"""FMix: masks of the drawn share, the paper's spectrum, the official code bit for bit, and what training shows."""

import random

import numpy as np
import pytest
from workbench.errors import InputError

from workbench_augmentation import masks

SHAPES = [(40,), (41,), (32, 32), (17, 25), (9, 7, 5), (8, 8, 8)]


def rng(seed=0):
    return np.random.default_rng(seed)


def greys(shape, decay, count, seed=0):
    source = rng(seed)
    return np.stack([masks.isotropic_grey(shape, decay, source) for _ in range(count)])


def test_the_mask_mean_is_lambda_within_one_pixel():
    source = rng()
    off = []
    for index in range(1000):
        shape = SHAPES[index % len(SHAPES)]
        draw = masks.sample_mask(shape, source)
        assert set(np.unique(draw.mask)) <= {0.0, 1.0}
        off.append((draw.mask.mean() - draw.lam) * draw.mask.size)
    assert np.max(np.abs(off)) <= 1
    assert min(off) < 0 < max(off)  # ceil and floor both occur


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_holds_the_largest_grey_values(shape):
    draw = masks.sample_mask(shape, rng(1), lam=0.3)
    assert draw.grey.shape == draw.mask.shape == shape
    assert (draw.grey.min(), draw.grey.max()) == (0, 1)
    assert draw.grey[draw.mask == 1].min() > draw.grey[draw.mask == 0].max()


@pytest.mark.parametrize("lam", [0.05, 0.4, 0.9])
def test_softening_is_linear_in_rank_and_keeps_the_mean(lam):
    grey, count = masks.isotropic_grey((20, 20), 3, rng()), 400
    mask = masks.binarise(grey, lam, round_up=True, max_soft=0.2)
    soft = int(count * min(0.2, lam, 1 - lam))
    by_rank = mask.ravel()[np.argsort(grey, axis=None)[::-1]]
    middle = round(lam * count)
    assert np.all(by_rank[: middle - soft] == 1)
    assert np.all(by_rank[middle + soft :] == 0)
    edge = by_rank[middle - soft : middle + soft]
    assert (edge[0], edge[-1]) == (1, 0)
    assert np.allclose(np.diff(edge), -1 / (2 * soft - 1))
    assert mask.mean() == pytest.approx(lam, abs=1 / count)


@pytest.mark.parametrize(("shape", "count"), [((64, 64), 300), ((33, 31), 400), ((64,), 800), ((24, 24, 24), 40)])
@pytest.mark.parametrize("decay", [1.0, 2.0, 3.0])
def test_the_power_of_isotropic_noise_falls_as_the_paper_says(shape, count, decay):
    frequency, power = masks.radial_mean(masks.power_spectrum(greys(shape, decay, count)))
    slope = masks.spectral_slope(frequency, power, 2 / max(shape), 0.35)
    # In 3-D the widest rings bend the low end, in 1-D a ring is one point: +-0.3 holds for all.
    assert slope == pytest.approx(-2 * decay, abs=0.3)


def test_the_columns_without_their_imaginary_part_have_half_the_power():
    power = np.zeros((32, 32))
    source = rng()
    for _ in range(800):
        noise = source.standard_normal((2, 32, 17))
        image = np.fft.irfftn(noise[0] + 1j * noise[1], s=(32, 32), axes=(0, 1))
        power += masks.power_spectrum(image[None])
    middle = power[1:16, 16]  # fx = 0, negative fy; a white spectrum
    assert middle.mean() / power[1:16, 20].mean() == pytest.approx(0.5, abs=0.03)
    assert power[1:16, 0].mean() / power[1:16, 20].mean() == pytest.approx(0.5, abs=0.03)


def test_masks_of_delta_3_are_a_few_blobs_and_of_delta_1_many():
    components = {
        decay: np.mean([masks.count_components(masks.binarise(grey, 0.5, True)) for grey in greys((32, 32), decay, 500)])
        for decay in (1.0, 3.0)
    }
    assert components[3.0] == pytest.approx(2.2, abs=0.25)
    assert components[1.0] > 10 * components[3.0]


def test_components_and_boundary_of_a_drawn_shape():
    mask = np.zeros((6, 6))
    mask[0:2, 0:2] = 1  # a corner square: 4 boundary pairs
    mask[3, 3] = 1  # a dot: 4
    mask[4, 4] = 1  # touches the dot by its corner only: another component, 4
    assert masks.count_components(mask) == 3
    assert masks.boundary_length(mask) == 12


# Written down from runs of the official repository's fmix.py (numpy and Python seeded with `seed`), after sample_mask
# with these arguments: lambda, sum of the mask, sum of mask * pixel index, four grey values, and the permutation of 8.
OFFICIAL = [
    (
        {"shape": (32, 32), "alpha": 1.0, "decay": 3, "max_soft": 0.0, "reformulate": False},
        0,
        (0.44912526447830964, 460.0, 213958.0, 581.841400804773),
        (0.868304972280124, 0.9046996201940178, 0.45873325054529296, 0.8394620869386348),
        [3, 6, 0, 4, 1, 5, 7, 2],
    ),
    (
        {"shape": (9, 7), "alpha": 0.5, "decay": 2, "max_soft": 0.2, "reformulate": False},
        1,
        (0.25103016220472346, 15.0, 451.21739130434787, 27.122084362216782),
        (0.03278318792418826, 1.0, 0.3761243970359115, 0.2615781504999394),
        [1, 6, 5, 7, 3, 2, 4, 0],
    ),
    (
        {"shape": (16,), "alpha": 1.0, "decay": 3, "max_soft": 0.0, "reformulate": True},
        2,
        (0.6745357067636081, 11.0, 99.0, 8.0),
        (0.015120675923021623, 0.18883338531870753, 0.9848793240769784, 0.10405983349474501),
        [3, 6, 0, 5, 2, 4, 7, 1],
    ),
    (
        {"shape": (6, 9, 12), "alpha": 1.0, "decay": 3, "max_soft": 0.3, "reformulate": False},
        3,
        (0.3628452076929192, 235.0, 77756.60465116278, 355.8879167113039),
        (0.0, 0.4873806154467488, 0.843260419657819, 0.44163666623882325),
        [4, 7, 2, 6, 0, 1, 5, 3],
    ),
    (
        {"shape": (5, 8), "alpha": 2.0, "decay": 1.5, "max_soft": 0.5, "reformulate": True},
        4,
        (0.5340919783384254, 21.0, 406.3142857142857, 19.289645744623716),
        (0.241898971756338, 0.4622300626777426, 0.03394780884307412, 0.6824769843204216),
        [2, 1, 6, 5, 0, 4, 7, 3],
    ),
]


@pytest.mark.parametrize(("arguments", "seed", "sums", "pixels", "permutation"), OFFICIAL)
def test_official_code_spectrum_repeats_the_repository(arguments, seed, sums, pixels, permutation):
    numpy_random = np.random.RandomState(seed)
    arguments = dict(arguments)
    lam, grey, mask = masks.official_mask(arguments.pop("shape"), numpy_random, random.Random(seed), **arguments)
    flat = grey.ravel()
    # Bit-exact on the machine that wrote the figures; other FFT builds may round the last bits otherwise.
    assert (lam, mask.sum(), (mask.ravel() * np.arange(mask.size)).sum(), flat.sum()) == pytest.approx(sums, rel=1e-12)
    assert flat[[0, 3, len(flat) // 2, -1]] == pytest.approx(pixels, rel=1e-9, abs=1e-12)
    assert numpy_random.permutation(8).tolist() == permutation


def test_official_code_has_only_three_horizontal_frequencies():
    source = np.random.RandomState(0)
    official = masks.power_spectrum(np.stack([masks.official_grey((32, 32), 3, source) for _ in range(300)]))
    isotropic = masks.power_spectrum(greys((32, 32), 3, 300))
    columns = np.abs(np.fft.fftshift(np.fft.fftfreq(32))) < 1.5 / 32
    assert official[:, columns].sum() / official.sum() == pytest.approx(1.0, abs=1e-12)
    # 0.976 before each image is scaled to [0, 1], 0.967 after.
    assert 0.95 < isotropic[:, columns].sum() / isotropic.sum() < 0.985


def test_official_code_masks_in_one_dimension_are_single_arcs():
    source, coin = np.random.RandomState(0), random.Random(0)
    for _ in range(200):
        mask = masks.official_mask((50,), source, coin).mask
        assert np.count_nonzero(np.diff(np.append(mask, mask[0]))) <= 2  # one arc on the circle
    changes = [np.count_nonzero(np.diff(masks.sample_mask((50,), rng(seed), decay=1).mask)) for seed in range(50)]
    assert max(changes) > 2


def test_the_reformulated_lambda_follows_its_beta_distribution():
    from scipy import stats

    source = rng()
    plain = [masks.sample_mask((4,), source, alpha=0.7).lam for _ in range(1500)]
    reformulated = [masks.sample_mask((4,), source, alpha=0.7, reformulate=True).lam for _ in range(1500)]
    assert stats.kstest(plain, stats.beta(0.7, 0.7).cdf).pvalue > 0.01
    assert stats.kstest(reformulated, stats.beta(1.7, 0.7).cdf).pvalue > 0.01


def test_cutout_removes_a_clipped_square():
    source = rng()
    areas = []
    for _ in range(3000):
        rows, columns = masks.cutout_box((32, 32), 16, source)
        areas.append((rows.stop - rows.start) * (columns.stop - columns.start))
    # As for CutMix's boxes of side 16: the mean clipped side is 14.
    assert np.mean(areas) == pytest.approx(14**2, abs=4 * np.std(areas) / np.sqrt(3000))


def test_random_erasing_stays_inside_and_within_its_area_and_aspect():
    source = rng()
    boxes = [masks.random_erasing_box((40, 60), source) for _ in range(2000)]
    kept = [box for box in boxes if box is not None]
    assert len(kept) / len(boxes) == pytest.approx(0.5, abs=0.05)
    for rows, columns in kept:
        assert 0 <= rows.start <= rows.stop <= 40
        assert 0 <= columns.start <= columns.stop <= 60
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        assert 0.02 * 2400 * 0.85 <= area <= 0.4 * 2400 * 1.05


@pytest.mark.parametrize("shape", [(), (1, 8), (4, 4, 4, 4)])
def test_shapes_without_a_spectrum_are_refused(shape):
    with pytest.raises(InputError, match="shape"):
        masks.check_shape(shape)
