"""MultiColorMNIST's spurious structure by counting and by linear probes, and the voting theory against enumeration."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from workbench import InputError
from workbench.subjects.builtin import digits

from workbench_calibration.bang_theory import KINDS, margin_moments, simulate, voting_accuracy
from workbench_calibration.multicolor import COLOURS, PALETTE, PATCHES, draw_frame, paint, prepare_digits, ring


def numbers(seed=0):
    return np.random.default_rng(seed)


def test_every_patch_has_its_own_permutation():
    frame = draw_frame(numbers())
    assert frame.permutation.shape == (PATCHES, COLOURS)
    assert all(sorted(row) == list(range(COLOURS)) for row in frame.permutation.tolist())
    assert len({tuple(row) for row in frame.permutation.tolist()}) == PATCHES
    label = np.arange(COLOURS)
    assert np.array_equal(frame.colours(label, 0.0, numbers()), frame.permutation.T)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.7, 1.0])
def test_a_patch_keeps_its_colour_as_often_as_it_should(p):
    """Colours are drawn with replacement, the right one included: 1 - p + p / 10. And patches are independent."""
    frame, label = draw_frame(numbers()), np.repeat(np.arange(10), 300)
    kept = frame.colours(label, p, numbers(1)) == frame.colours(label, 0.0, numbers())
    expected = 1 - p + p / 10
    assert kept.mean() == pytest.approx(expected, abs=0.01)
    assert kept.mean(0) == pytest.approx(np.full(PATCHES, expected), abs=0.05)
    if 0 < p < 1:
        correlation = np.corrcoef(kept.T)[np.triu_indices(PATCHES, 1)]
        assert np.abs(correlation).mean() < 0.03  # of chance: 0.8 / sqrt(3000) = 0.015
        wrong = frame.colours(label, p, numbers(1))[~kept]
        assert np.bincount(wrong, minlength=10) / len(wrong) == pytest.approx(np.full(10, 0.1), abs=0.01)


@pytest.mark.parametrize(("side", "inner", "cell"), [(8, 14, 2), (28, 28, 4), (14, 14, 2), (5, 14, 2)])
def test_patches_and_digit_are_where_they_belong(side, inner, cell):
    image = torch.rand((6, 1, side, side), generator=torch.Generator().manual_seed(0))
    digit = prepare_digits(image)
    assert digit.shape == (6, inner, inner)
    colour = numbers().integers(0, COLOURS, (6, PATCHES))
    picture = paint(digit, colour)
    assert picture.shape == (6, 3, 9 * cell, 9 * cell)
    rows, columns = ring()
    assert len(rows) == PATCHES
    for k, (y, x) in enumerate(zip(rows, columns, strict=True)):
        patch = picture[:, :, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell].numpy()
        assert np.array_equal(patch, np.broadcast_to(PALETTE[colour[:, k]][:, :, None, None], patch.shape))
    for channel in range(3):
        assert torch.equal(picture[:, channel, cell:-cell, cell:-cell], digit)
    if inner == side:
        assert torch.equal(digit, (image[:, 0] * 255).round().to(torch.uint8))


def test_what_is_no_grey_square_is_refused():
    for shape in ((2, 3, 8, 8), (2, 1, 8, 9)):
        with pytest.raises(InputError, match="square grey"):
            prepare_digits(torch.zeros(shape))


def test_linear_probes_find_the_spurious_features_and_only_these():
    """On the frame: perfect where colours are whole, as good as the votes of 32 patches at p = 0.8, chance at p = 1."""
    data = digits()
    digit, label = prepare_digits(torch.from_numpy(data["image"].values)), data["label"].values
    frame, train = draw_frame(numbers()), np.arange(len(label)) % 2 == 0

    def pixels(p, inside):
        picture = paint(digit, frame.colours(label, p, numbers(2))).numpy().astype(np.float32) / 255
        mask = np.zeros((18, 18), dtype=bool)
        mask[2:-2, 2:-2] = True
        return picture[:, :, mask if inside else ~mask].reshape(len(label), -1)

    border = LogisticRegression(max_iter=200).fit(pixels(0.0, False)[train], label[train])
    got = [border.score(pixels(p, False)[~train], label[~train]) for p in (0.0, 0.8, 1.0)]
    assert got[0] == 1.0
    assert 0.55 < got[1] < 0.999
    assert got[2] < 0.16
    centre = LogisticRegression(max_iter=200).fit(pixels(0.0, True)[train], label[train])
    inside = [centre.score(pixels(p, True)[~train], label[~train]) for p in (0.0, 1.0)]
    assert inside[0] == inside[1] > 0.9  # the digit does not change with the colours
    # one patch by itself: a classifier that knows its permutation is right 1 - p + p / 10 of the time
    shown = frame.colours(label, 0.8, numbers(3))
    inverse = np.argsort(frame.permutation, axis=1)
    right = inverse[np.arange(PATCHES), shown] == label[:, None]
    assert right.mean() == pytest.approx(0.28, abs=0.01)


# -------------------------------------------------------------------------------------------------------------- theory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [(0, 0), (2, 7), (5, 20)])
def test_margins_have_the_moments_of_the_formula(kind, shared):
    settings = (kind, 0.8, 10, 5, 20, *shared)
    votes = simulate(*settings, 200_000, numbers())
    margin = votes[:, 0] - votes[:, 3]
    mean, variance = margin_moments(*settings)
    assert margin.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / len(margin)))
    assert margin.var() == pytest.approx(variance, rel=0.02)


def test_moments_are_those_that_the_theory_states():
    """(1 - p)(n_s + n_s' [+ 2 n_so]) + n_v + n_v' [+ 2 n_vo]; variance as n_s + n_s' + 2 n_so [+ 14 instead of 2]."""
    p, classes, nv, ns, nvo, nso = 0.9, 10, 5, 20, 2, 7
    one = margin_moments("single", p, classes, 0, 1, 0, 0)[1]
    ose, wse = (margin_moments(kind, p, classes, nv, ns, nvo, nso) for kind in ("ose", "wse"))
    assert ose == pytest.approx(((1 - p) * 2 * ns + 2 * nv, one * (2 * ns + 2 * nso)))
    assert wse == pytest.approx(((1 - p) * (2 * ns + 2 * nso) + 2 * nv + 2 * nvo, one * (2 * ns + 14 * nso)))


def test_accuracy_by_enumeration_of_all_votes():
    p, classes = 0.6, 3
    chance = np.array([1 - p + p / classes, p / classes, p / classes])
    for kind, weights, certain in (("single", (1, 1), 1), ("ose", (1, 1, 2), 2), ("wse", (1, 1, 4), 2)):
        exact = 0.0
        for votes in itertools.product(range(classes), repeat=len(weights)):
            total = np.bincount(votes, weights=weights, minlength=classes)
            total[0] += certain
            best = total == total.max()
            exact += np.prod(chance[list(votes)]) * best[0] / best.sum()
        spurious, shared = (2, 0) if kind == "single" else (2, 1)
        drawn = simulate(kind, p, classes, 1, spurious, 0, shared, 200_000, numbers())
        assert voting_accuracy(drawn) == pytest.approx(exact, abs=0.005)


def test_figures_of_the_theory():
    """K = 10, p = 0.9, 5 invariant and 20 spurious features each."""

    def at(kind, shared):
        return voting_accuracy(simulate(kind, 0.9, 10, 5, 20, 0, shared, 50_000, numbers()))

    assert at("single", 0) == pytest.approx(0.99, abs=0.005)
    assert at("ose", 0) == pytest.approx(1.0, abs=0.002)
    assert at("wse", 0) == pytest.approx(1.0, abs=0.002)
    assert at("ose", 10) == pytest.approx(0.997, abs=0.003)
    assert at("wse", 10) == pytest.approx(0.918, abs=0.005)
    # shared invariant features instead: averaging weights is the better way
    gain = [voting_accuracy(simulate(k, 0.97, 10, 2, 20, 2, 0, 50_000, numbers())) for k in ("ose", "wse")]
    assert gain[1] > gain[0] + 0.01
