"""Crops and flips: each picture moves as brute force says, every move is equally likely, seeds fix all of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from workbench.errors import InputError
from workbench.toolkit import flip_crop, random_crop, random_flip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, dtype=torch.float32):
    image = torch.randint(1, 255, (count, 2, 5, 7), generator=seeded(3))
    return image.to(dtype)


def shift_of(before, after, padding):
    """(dy, dx) of the one crop of the padded picture that gives `after`."""
    padded = F.pad(before, (padding,) * 4)
    found = [
        (dy, dx)
        for dy in range(2 * padding + 1)
        for dx in range(2 * padding + 1)
        if torch.equal(padded[:, dy : dy + 5, dx : dx + 7], after)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_crop_is_one_of_the_padded_picture_and_all_are_equally_likely(dtype):
    image = pictures(900, dtype)
    moved = random_crop(image, 1, seeded())
    assert moved.dtype == dtype
    assert moved.is_contiguous()
    counts = np.zeros((3, 3))
    for before, after in zip(image, moved, strict=True):
        counts[shift_of(before, after, 1)] += 1
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_no_padding_changes_nothing():
    image = pictures(4)
    assert torch.equal(random_crop(image, 0, seeded()), image)


def test_flips_mirror_left_and_right_with_the_probability_asked_for():
    image = pictures(1000)
    flipped = random_flip(image, seeded(), 0.3)
    same, mirrored = [(flipped == other).flatten(1).all(1) for other in (image, image.flip(-1))]
    assert (same ^ mirrored).all()
    assert stats.binomtest(int(mirrored.sum()), 1000, 0.3).pvalue > 1e-3
    assert torch.equal(random_flip(image, seeded(), 0.0), image)
    assert torch.equal(random_flip(image, seeded(), 1.0), image.flip(-1))


def test_the_transform_is_crop_then_flip_and_a_seed_fixes_it():
    image, label = pictures(20), torch.arange(20)
    moved, kept = flip_crop(2)(image, label, seeded(5))
    generator = seeded(5)
    assert torch.equal(moved, random_flip(random_crop(image, 2, generator), generator))
    assert kept is label
    assert torch.equal(flip_crop(2, flip=False)(image, label, seeded(5))[0], random_crop(image, 2, seeded(5)))
    assert not torch.equal(moved, flip_crop(2)(image, label, seeded(6))[0])


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: random_crop(torch.zeros(2, 3, 4), 1, seeded()), "image"),
        (lambda: random_crop(torch.zeros(2, 3, 4, 4), -1, seeded()), "padding"),
        (lambda: random_flip(torch.zeros(3, 4, 4), seeded()), "image"),
        (lambda: random_flip(torch.zeros(2, 3, 4, 4), seeded(), 1.5), "probability"),
    ],
)
def test_bad_input_is_named(call, argument):
    with pytest.raises(InputError) as failure:
        call()
    assert failure.value.argument == argument
