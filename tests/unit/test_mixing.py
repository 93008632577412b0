"""The mixing routine: shares belong to the first image, labels follow, CutMix recomputes, d-point mixes are convex."""

import numpy as np
import pytest
import torch
from workbench.errors import InputError
from workbench.toolkit import mixing


def rng(seed=0):
    return np.random.default_rng(seed)


def constants(count=6, channels=2, space=(8, 8)):
    """Image i is constant i + 1, so a mixed value tells who contributed how much."""
    return (torch.arange(count) + 1.0).reshape(-1, 1, *[1] * len(space)).expand(-1, channels, *space).contiguous()


@pytest.mark.parametrize("space", [(9,), (8, 7), (4, 5, 3)])
def test_a_share_is_the_share_of_the_first_image(space):
    image, partner = constants(4, space=space), torch.tensor([1, 0, 3, 3])
    mixed = mixing.mix(image, partner, torch.tensor([1.0, 0.25, 0.0, 0.5]))
    assert torch.allclose(mixed.flatten(1)[:, 0], torch.tensor([1.0, 0.25 * 2 + 0.75 * 1, 4.0, 4.0]))
    assert torch.allclose(mixed, mixed.flatten(1)[:, :1].reshape(-1, 1, *[1] * len(space)).expand_as(mixed))


def test_a_mask_shows_the_first_image_where_it_is_one():
    image, partner = torch.rand(5, 3, 6, 4), torch.tensor([4, 3, 2, 1, 0])
    mask = (torch.rand(5, 1, 6, 4) > 0.5).float()
    mixed = mixing.mix(image, partner, mask)
    for i in range(5):
        for c in range(3):
            for y in range(6):
                for x in range(4):
                    source = i if mask[i, 0, y, x] == 1 else int(partner[i])
                    assert mixed[i, c, y, x] == image[source, c, y, x]


def test_mixup_has_the_same_share_for_inputs_and_labels():
    image = constants()
    mixed = mixing.mixup_batch(image, 1.0, rng())
    assert mixed.image_share.unique().numel() == 1
    assert torch.equal(mixed.image_share, mixed.label_share)
    first, second = image[:, 0, 0, 0], image[mixed.partner][:, 0, 0, 0]
    expected = mixed.image_share * first + (1 - mixed.image_share) * second
    assert torch.allclose(mixed.image[:, 1, 3, 2], expected)
    assert sorted(mixed.partner.tolist()) == list(range(6))
    assert mixing.mixup_batch(image, 1.0, rng(), per_sample=True).image_share.unique().numel() == 6
    assert torch.equal(mixing.mixup_batch(image, 1.0, rng(), share=0.3).label_share, torch.full((6,), 0.3))


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_recomputes_its_share_from_what_was_pasted(per_sample):
    image = constants(8, space=(15, 10))
    for seed in range(50):
        mixed = mixing.cutmix_batch(image, 1.0, rng(seed), per_sample=per_sample)
        own = (mixed.image == image).all(1).double().flatten(1).mean(1)
        moved = mixed.partner != torch.arange(8)  # a sample that is its own partner shows no paste
        assert torch.allclose(own[moved], mixed.label_share[moved].double(), atol=1e-6)
        assert torch.equal(mixed.image_share, mixed.label_share)


def test_boxes_of_cutmix_have_the_expected_clipped_area():
    # Side 16 of 32, half h = 8, uniform centre: E[clipped side] = 2h - h^2/32 = 14, and rows and columns are independent.
    source = rng()
    areas = []
    for _ in range(4000):
        rows, columns = mixing.draw_box((32, 32), 0.75, source)
        areas.append((rows.stop - rows.start) * (columns.stop - columns.start))
    assert np.mean(areas) == pytest.approx(14**2, abs=4 * np.std(areas) / np.sqrt(4000))
    assert max(areas) == 256


def test_the_nominal_volume_of_a_box_is_the_partner_share_in_any_dimension():
    source = rng()
    for space in [(1000,), (200, 200), (60, 60, 60)]:
        largest = max(1 - float(mixing.box_mask(space, mixing.draw_box(space, 0.7, source)).mean()) for _ in range(200))
        assert largest == pytest.approx(0.3, abs=0.03)


def test_a_mask_batch_keeps_the_drawn_lambda_for_the_labels():
    mask = torch.zeros(1, 8, 8)
    mask[0, :, :3] = 1
    mixed = mixing.mask_batch(constants(), mask, 0.4, rng())
    assert torch.equal(mixed.image_share, torch.full((6,), 3 / 8))
    assert torch.equal(mixed.label_share, torch.full((6,), 0.4))
    assert torch.equal(mixing.mask_batch(constants(), mask, None, rng()).label_share, torch.full((6,), 3 / 8))


def test_soft_labels_give_the_weighted_sum_of_two_cross_entropies():
    torch.manual_seed(0)
    logit, label, partner_label = torch.randn(7, 4), torch.randint(4, (7,)), torch.randint(4, (7,))
    share = torch.rand(7)
    target = mixing.soft_labels(label, partner_label, share, 4)
    loss = -(target * logit.log_softmax(1)).sum(1)
    entropy = torch.nn.functional.cross_entropy
    expected = share * entropy(logit, label, reduction="none") + (1 - share) * entropy(
        logit, partner_label, reduction="none"
    )
    assert torch.allclose(loss, expected, atol=1e-6)
    assert torch.allclose(target.sum(1), torch.ones(7))


def test_multi_hot_labels_are_blended():
    first, second = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert torch.allclose(mixing.soft_labels(first, second, 0.25, 3), torch.tensor([[0.25, 1.0, 0.75]]))


def test_several_partners_mix_as_convex_combinations():
    torch.manual_seed(0)
    image, partner = torch.rand(4, 2, 3, 3), torch.randint(4, (4, 2))
    weight = torch.tensor([0.5, 0.3, 0.2])
    mixed = mixing.mix_points(image, partner, weight)
    for i in range(4):
        expected = 0.5 * image[i] + 0.3 * image[partner[i, 0]] + 0.2 * image[partner[i, 1]]
        assert torch.allclose(mixed[i], expected)
    label = torch.tensor([0, 1, 2, 1])
    target = mixing.soft_labels(label, label[partner], weight, 3)
    expected = torch.zeros(4, 3)
    for i in range(4):
        for j, who in enumerate([i, *partner[i].tolist()]):
            expected[i, label[who]] += weight[j]
    assert torch.allclose(target, expected)


def test_one_partner_in_points_equals_mix():
    image, partner, share = torch.rand(5, 1, 4, 4), torch.tensor([1, 2, 3, 4, 0]), torch.rand(5)
    points = mixing.mix_points(image, partner[:, None], torch.stack([share, 1 - share], dim=1))
    assert torch.allclose(points, mixing.mix(image, partner, share), atol=1e-6)


def test_a_seed_fixes_every_draw():
    image = torch.rand(6, 1, 8, 8)
    for batch in (mixing.mixup_batch, mixing.cutmix_batch):
        assert torch.equal(batch(image, 0.5, rng(3)).image, batch(image, 0.5, rng(3)).image)
        assert not torch.equal(batch(image, 0.5, rng(3)).image, batch(image, 0.5, rng(4)).image)


def test_lambda_is_drawn_from_the_symmetric_beta_distribution():
    from scipy import stats

    draws = [mixing.draw_share(0.4, source) for source in [rng(1)] for _ in range(2000)]
    assert stats.kstest(draws, stats.beta(0.4, 0.4).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda x: mixing.mix(x, torch.zeros(3, dtype=torch.int64), 0.5), "partner"),
        (lambda x: mixing.mix(x, torch.arange(4), 1.5), "share"),
        (lambda x: mixing.mix(x, torch.arange(4), torch.ones(5, 5)), "share"),
        (lambda x: mixing.mix_points(x, torch.zeros(4, 2, dtype=torch.int64), torch.tensor([0.5, 0.2, 0.1])), "weight"),
        (lambda x: mixing.mask_batch(x, torch.ones(5, 5), None, rng()), "mask"),
        (lambda x: mixing.draw_share(0.0, rng()), "alpha"),
        (lambda x: mixing.soft_labels(torch.tensor([0, 5]), torch.tensor([0, 1]), 0.5, 3), "label"),
        (lambda x: mixing.soft_labels(torch.tensor([0, 1]), torch.tensor([0]), 0.5, 3), "partner_label"),
    ],
)
def test_bad_arguments_are_named(call, argument):
    with pytest.raises(InputError) as failure:
        call(torch.rand(4, 1, 5, 5))
    assert failure.value.argument == argument
