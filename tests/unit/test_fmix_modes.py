"""The compared augmentations: every share is the first image's, competitors by hand, the official order of draws."""

import random

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from workbench.errors import InputError

from workbench_augmentation.masks import radial_mean, random_erasing_box
from workbench_augmentation.mixing_modes import MaskSource, MixSettings, MixTransform, check_modes, mix_batch
from workbench_augmentation.patch_statistics import laplacian, patch_statistics

ALL = ("none", "mixup", "cutmix", "fmix", "mixup+fmix", "cutout", "random_erase")


def source(seed=0):
    return MaskSource.seeded(np.random.default_rng(seed))


def constants(count=6, channels=2, space=(16, 15)):
    """Image i is constant (i + 1) / count, so the value of a mixed pixel tells where it comes from."""
    value = (torch.arange(count, dtype=torch.float64) + 1) / count
    return value.reshape(-1, 1, *[1] * len(space)).expand(-1, channels, *space).contiguous()


def from_first(mixed, image):
    """Share of pixels that show the first image, for samples that are not their own partner."""
    moved = mixed.partner != torch.arange(len(image))
    return moved, (mixed.image == image).all(1).double().flatten(1).mean(1)


@pytest.mark.parametrize("space", [(33,), (16, 15), (7, 9, 5), (8, 8, 8)])
@pytest.mark.parametrize("spectrum", ["isotropic", "official_code"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_fmix_shows_the_first_image_on_the_share_lambda(space, spectrum, per_sample):
    image, settings = constants(space=space), MixSettings(spectrum=spectrum, per_sample=per_sample)
    for seed in range(20):
        mixed = mix_batch("fmix", image, 0, settings, source(seed))
        moved, shown = from_first(mixed, image)
        partner = (mixed.image == image[mixed.partner]).all(1).double().flatten(1).mean(1)
        assert torch.allclose(shown[moved] + partner[moved], torch.ones(int(moved.sum()), dtype=torch.float64))
        assert (shown - mixed.label_share)[moved].abs().max() <= 1 / np.prod(space) + 1e-12
        assert mixed.label_share.unique().numel() == (len(image) if per_sample else 1)


def test_fmix_gives_the_labels_the_drawn_lambda_and_not_the_mean_of_the_mask():
    mixed = mix_batch("fmix", constants(space=(4, 4)), 0, MixSettings(), source())
    assert (mixed.image_share * 16).round().allclose(mixed.image_share * 16)
    assert not (mixed.label_share * 16).round().allclose(mixed.label_share * 16)


def test_official_code_draws_in_the_order_of_the_repository():
    """Written out: scipy beta, randn (1, h, w/2 + 1, 2), Python random, permutation; rows 0 and 1 as a complex row."""
    height, width, alpha, decay = 12, 10, 0.7, 2.5
    image = torch.rand(5, 3, height, width, dtype=torch.float64)
    for seed in range(30):
        settings = MixSettings(alpha=alpha, decay=decay, spectrum="official_code")
        mixed = mix_batch("fmix", image, 0, settings, MaskSource.seeded(np.random.default_rng(), seed))
        numpy_random, coin = np.random.RandomState(seed), random.Random(seed)
        lam = stats.beta.rvs(alpha, alpha, random_state=numpy_random)
        noise = numpy_random.randn(1, height, width // 2 + 1, 2)
        column = np.abs(np.fft.fftfreq(width)[: width // 2 + 1])
        for row in range(2):
            scale = np.hypot(column, np.fft.fftfreq(height)[row])
            noise[0, row] /= (np.maximum(scale, 1 / height) ** decay)[:, None]
        padded = np.zeros((height, width // 2 + 1), dtype=complex)
        padded[: width // 2 + 1, :2] = noise[0, 0] + 1j * noise[0, 1]
        grey = np.fft.irfft(np.fft.ifft(padded, axis=0), n=width, axis=1).ravel()
        ones = (np.ceil if coin.random() > 0.5 else np.floor)(lam * grey.size)
        mask = torch.zeros(grey.size, dtype=torch.float64)
        mask[torch.from_numpy(np.argsort(grey)[::-1][: int(ones)].copy())] = 1
        mask = mask.reshape(height, width)
        partner = torch.from_numpy(numpy_random.permutation(5))
        assert torch.equal(mixed.partner, partner)
        assert torch.equal(mixed.label_share, torch.full((5,), lam, dtype=torch.float64))
        assert torch.equal(mixed.image, mask * image + (1 - mask) * image[partner])


@pytest.mark.parametrize("mode", ["mixup", "fmix"])
@pytest.mark.parametrize("spectrum", ["isotropic", "official_code"])
def test_the_reformulated_variant_uses_the_first_label_and_shows_more_of_it(mode, spectrum):
    settings = MixSettings(reformulate=True, per_sample=True, spectrum=spectrum)
    mixed = mix_batch(mode, torch.rand(1500, 1, 8), 0, settings, source())
    assert (mixed.label_share == 1).all()
    # Beta(2, 1) has mean 2/3 and variance 1/18.
    assert float(mixed.image_share.mean()) == pytest.approx(2 / 3, abs=4 * (1 / 18 / 1500) ** 0.5)


def test_mixup_blends_by_hand():
    image = torch.rand(6, 3, 5, 5, dtype=torch.float64)
    mixed = mix_batch("mixup", image, 0, MixSettings(alpha=0.4), source(3))
    rng = np.random.default_rng(3)
    rng.integers(2**32)  # the source seeds its other generators first
    lam = rng.beta(0.4, 0.4, size=1)[0]
    partner = rng.permutation(6)
    for index in range(6):
        assert torch.allclose(mixed.image[index], lam * image[index] + (1 - lam) * image[partner[index]])
    assert torch.allclose(mixed.label_share, torch.full((6,), lam, dtype=torch.float64))


def test_cutmix_pastes_a_box_and_counts_it():
    image = constants()
    for seed in range(40):
        mixed = mix_batch("cutmix", image, 0, MixSettings(), source(seed))
        moved, shown = from_first(mixed, image)
        assert torch.allclose(shown[moved], mixed.label_share[moved])
        pasted = (mixed.image != image).any(1)[moved][0]
        if pasted.any():
            rows, columns = torch.nonzero(pasted.any(1)).ravel(), torch.nonzero(pasted.any(0)).ravel()
            assert pasted[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


@pytest.mark.slow  # the import takes seconds
@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_images_and_labels_mix_as_in_torchvision(name):
    """Its batches are rolled by one; its soft labels tell the share it used."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    from workbench.toolkit import mix, soft_labels

    image, label = torch.rand(5, 3, 8, 8, dtype=torch.float64), torch.arange(5)
    torch.manual_seed(1)
    theirs, target = getattr(v2, name)(num_classes=5, alpha=1.0)(image, label)
    partner, share = torch.arange(5).roll(1), float(target[0, 0])
    mask = share if name == "MixUp" else (theirs == image).all(1, keepdim=True).double()
    assert torch.allclose(mix(image, partner, mask), theirs)
    assert torch.allclose(soft_labels(label, label[partner], share, 5), target, atol=1e-6)
    if name == "CutMix":
        assert float(mask.mean()) == pytest.approx(share, abs=1e-6)


def test_the_alternation_blends_on_even_batches_and_masks_on_odd_ones():
    image = constants()
    for number in range(4):
        mixed = mix_batch("mixup+fmix", image, number, MixSettings(), source(number))
        moved = mixed.partner != torch.arange(len(image))
        whole = ((mixed.image == image) | (mixed.image == image[mixed.partner]))[moved].double().mean()
        assert whole == (1 if number % 2 else 0)


def test_cutout_fills_a_clipped_square_with_the_mean_colour():
    image = torch.rand(40, 3, 20, 20, dtype=torch.float64)
    mixed = mix_batch("cutout", image, 0, MixSettings(cutout_length=8), source())
    changed = (mixed.image != image).all(1)
    sizes = changed.flatten(1).sum(1)
    assert int(sizes.max()) == 64
    assert int(sizes.min()) >= 16
    mean = image.mean(dim=(0, 2, 3))
    for index in range(40):
        assert torch.allclose(mixed.image[index].permute(1, 2, 0)[changed[index]], mean.expand(int(sizes[index]), 3))
    assert torch.equal(mixed.partner, torch.arange(40))
    assert (mixed.label_share == 1).all()


def test_random_erasing_puts_uniform_noise_into_half_of_the_images():
    image = torch.full((400, 1, 24, 24), 2.0)
    mixed = mix_batch("random_erase", image, 0, MixSettings(), source())
    erased = mixed.image != 2
    assert 0.4 < float(erased.flatten(1).any(1).double().mean()) < 0.6
    assert stats.kstest(mixed.image[erased].numpy(), "uniform").pvalue > 1e-3
    assert torch.equal(image, torch.full_like(image, 2.0))  # the batch itself is left alone


def test_random_erasing_ends_on_pictures_too_narrow_for_its_rectangles():
    assert random_erasing_box((2, 4000), np.random.default_rng(0), probability=1.0) is None


@pytest.mark.parametrize("mode", ALL)
def test_a_seed_fixes_every_mode_and_values_stay_in_range(mode):
    image = torch.rand(6, 3, 9, 8)
    first, again, other = (mix_batch(mode, image, 1, MixSettings(), source(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.image, other.image) == (mode == "none")
    assert 0 <= float(first.image.min()) <= float(first.image.max()) <= 1


def test_all_modes_see_the_same_batches_and_give_class_weights():
    image, label = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    states = []
    for mode in ALL:
        generator = torch.Generator().manual_seed(0)
        transform = MixTransform(mode, MixSettings(), 3)
        mixed, target = transform(image, label, generator)
        states.append(generator.get_state())
        assert (mixed.shape, target.shape, transform.count) == (image.shape, (6, 3), 1)
        assert torch.allclose(target.sum(1), torch.ones(6))
    assert all(torch.equal(state, states[0]) for state in states)


def test_the_loss_is_the_sum_of_two_cross_entropies():
    image, label = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    _, target = MixTransform("fmix", MixSettings(), 3)(image, label, torch.Generator().manual_seed(5))
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5))))
    mixed = mix_batch("fmix", image, 0, MixSettings(), MaskSource.seeded(rng))
    logit, lam = torch.randn(6, 3), float(mixed.label_share[0])
    entropy = torch.nn.functional.cross_entropy
    expected = lam * entropy(logit, label) + (1 - lam) * entropy(logit, label[mixed.partner])
    assert 0 < lam < 1
    assert float(entropy(logit, target)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("space", [(12,), (9, 7), (6, 5, 7)])
def test_the_laplacian_is_scipys_inside_the_border(space):
    image = np.random.default_rng(0).random((2, 3, *space))
    inside = tuple(slice(1, -1) for _ in space)
    for sample in range(2):
        for channel in range(3):
            expected = ndimage.laplace(image[sample, channel])[inside]
            assert np.allclose(laplacian(image)[sample, channel], expected)


def test_patch_statistics_of_known_noise():
    rng = np.random.default_rng(0)
    gaussian = patch_statistics(rng.standard_normal((40, 1, 64, 64)))
    assert gaussian.kurtosis == pytest.approx(0, abs=0.05)
    # White noise times the Laplacian's transfer function, times the energy of the window.
    wave = 2 * np.cos(2 * np.pi * np.fft.fftshift(np.fft.fftfreq(62)))
    expected = radial_mean((wave[:, None] + wave - 4) ** 2, skip_edge_columns=False)[1]
    window = np.hanning(64)[1:-1]
    middle = gaussian.frequency > 0.1
    assert np.allclose(gaussian.power[middle], expected[middle] * (window**2).sum() ** 2, rtol=0.1)
    # Independent Laplace noise has excess kurtosis 3; cumulants add, so 3 * sum w^4 / (sum w^2)^2 for weights -4, 1, 1, 1, 1.
    laplace = patch_statistics(rng.laplace(size=(60, 1, 64, 64)))
    assert laplace.kurtosis == pytest.approx(3 * (4**4 + 4) / (4**2 + 4) ** 2, abs=0.1)


@pytest.mark.parametrize(
    ("modes", "space"), [(("fmix", "mixup", "fmix"), (8, 8)), (("random_erase",), (8,)), (("random_erase",), (4, 4, 4))]
)
def test_modes_that_cannot_be_are_refused(modes, space):
    with pytest.raises(InputError, match="modes"):
        check_modes(modes, space)
