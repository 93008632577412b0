"""The TCM regulariser and the base losses: closed forms, finite differences, brute force, and the metric-learning library."""

import itertools
import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses
from sklearn.metrics import average_precision_score

from workbench_calibration.tcm_losses import bases, contrastive, normalised_softmax, proxy_anchor, smooth_ap, tcm_loss


def batch(seed=0, label=(0, 1, 2, 1, 0, 2, 2, 0, 1), dims=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((len(label), dims), generator=generator, dtype=torch.float64), torch.tensor(label)


MARGINS = {"m_plus": 0.6, "m_minus": 0.1, "lam_plus": 0.7, "lam_minus": 1.3}


def by_hand(x, y, reference, reference_label, itself, m_plus, m_minus, lam_plus, lam_minus):
    unit, other = (z / z.norm(dim=1, keepdim=True) for z in (x, reference))
    hard = {True: [], False: []}
    for i, j in itertools.product(range(len(y)), range(len(reference_label))):
        s, same = float(unit[i] @ other[j]), bool(y[i] == reference_label[j])
        if same and not (itself and i == j) and s <= m_plus:
            hard[True].append(m_plus - s)
        if not same and s >= m_minus:
            hard[False].append(s - m_minus)
    return sum(weight * (np.mean(v) if v else 0.0) for weight, v in ((lam_plus, hard[True]), (lam_minus, hard[False])))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_formula_over_all_pairs(seed):
    x, y = batch(seed)
    assert float(tcm_loss(x, y, **MARGINS)) == pytest.approx(by_hand(x, y, x, y, True, **MARGINS))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_it_is_what_the_library_computes(scale):
    x, y = batch(4)
    library = losses.ThresholdConsistentMarginLoss()
    assert float(tcm_loss(scale * x, y)) == pytest.approx(float(library(scale * x, y)), rel=1e-9)


def test_pairs_with_a_memory_are_formed_with_the_memory():
    """Where pytorch-metric-learning 2.9.0 takes both members from the batch, whatever the reference set holds."""
    x, y = batch(1)
    memory, label = batch(2, (0, 1, 2, 0, 1, 2))
    ours = float(tcm_loss(x, y, reference=(memory, label), **MARGINS))
    assert ours == pytest.approx(by_hand(x, y, memory, label, False, **MARGINS))
    library = losses.ThresholdConsistentMarginLoss(
        MARGINS["lam_plus"], MARGINS["lam_minus"], MARGINS["m_plus"], MARGINS["m_minus"]
    )
    theirs = float(library(x, y, ref_emb=memory, ref_labels=label))
    wrong = by_hand(x, y, x[: len(memory)], label, False, **MARGINS)  # embeddings of the batch in the memory's place
    assert theirs == pytest.approx(wrong) or theirs == pytest.approx(ours)  # the latter once the library is mended


def test_the_gradient_on_a_circle_in_closed_form():
    """Unit vectors at angles: the term of a positive pair is m+ - cos(a - b), whose derivative by a is sin(a - b)."""
    angle = torch.tensor([0.0, 0.8, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    label = torch.tensor([0, 0, 1, 1])
    embedding = 2.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    tcm_loss(embedding, label, m_plus=0.9, m_minus=-0.9, lam_plus=1.0, lam_minus=2.0).backward()
    a = angle.detach().numpy()
    expected = np.zeros(4)
    hard_positive = [(0, 1), (2, 3)]  # cos 0.8 = 0.70, cos 1 = 0.54: both below 0.9
    hard_negative = [(0, 2), (1, 2), (1, 3)]  # (0, 3) has cos 3 = -0.99, which is no hard negative
    for chosen, weight, sign in ((hard_positive, 1.0, 1), (hard_negative, 2.0, -1)):
        for i, j in chosen:
            expected[i] += sign * weight * math.sin(a[i] - a[j]) / len(chosen)
            expected[j] += sign * weight * math.sin(a[j] - a[i]) / len(chosen)
    assert angle.grad.numpy() == pytest.approx(expected)


def test_gradients_are_those_of_finite_differences():
    x, y = batch(5)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: tcm_loss(z, y, **MARGINS), (x,))
    proxy = torch.randn((3, 4), generator=torch.Generator().manual_seed(9), dtype=torch.float64, requires_grad=True)
    for name, base in bases(3).items():
        strength = 30.0 if name == "smooth_ap" else 1.0  # its sigmoids are nearly steps otherwise
        assert torch.autograd.gradcheck(lambda z, p, loss=base.loss, s=strength: loss(z, y, p, s), (x, proxy)), name


def test_only_pairs_beyond_the_margin_are_counted():
    """Adding a class far from everything changes neither term."""
    x, y = batch(6, dims=5)
    x[:, 4] = 0
    far = torch.zeros((2, 5), dtype=torch.float64)
    far[:, 4] = 1.0
    more = torch.cat([x, far]), torch.cat([y, torch.tensor([7, 7])])
    assert float(tcm_loss(*more, **MARGINS)) == pytest.approx(float(tcm_loss(x, y, **MARGINS)))


def test_it_vanishes_smoothly_where_nothing_is_hard():
    x = torch.eye(3, dtype=torch.float64).repeat_interleave(2, dim=0).requires_grad_()
    loss = tcm_loss(x, torch.arange(3).repeat_interleave(2))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_positives_are_pulled_and_negatives_pushed():
    for weights in ({"lam_minus": 0.0}, {"lam_plus": 0.0}):
        x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]], dtype=torch.float64, requires_grad=True)
        tcm_loss(x, torch.tensor([0, 0, 1]), **weights).backward()
        after = x.detach() - 0.05 * x.grad
        before, moved = (z @ z.T for z in (torch.nn.functional.normalize(w) for w in (x.detach(), after)))
        if "lam_minus" in weights:
            assert moved[0, 1] > before[0, 1]
        else:
            assert moved[0, 2] + moved[1, 2] < before[0, 2] + before[1, 2]


@pytest.mark.parametrize("strength", [1.0, 2.0])
def test_base_losses_with_proxies_are_the_librarys(strength):
    x, y = batch(7)
    proxy = torch.randn((3, 4), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    softmax = losses.NormalizedSoftmaxLoss(3, 4, temperature=0.05 * strength)
    softmax.W.data = proxy.T.clone()
    assert float(normalised_softmax(x, y, proxy, strength)) == pytest.approx(float(softmax(x, y)))
    anchor = losses.ProxyAnchorLoss(3, 4, margin=0.1 * strength)
    anchor.proxies.data = proxy.clone()
    assert float(proxy_anchor(x, y, proxy, strength)) == pytest.approx(float(anchor(x, y)))
    few = torch.tensor([0, 0, 2, 2])  # a class that is not in the batch
    assert float(proxy_anchor(x[:4], few, proxy, strength)) == pytest.approx(float(anchor(x[:4], few)))


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_the_contrastive_loss_is_the_librarys(strength):
    x, y = batch(8)
    library = losses.ContrastiveLoss(neg_margin=strength)
    assert float(contrastive(x, y, x, strength)) == pytest.approx(float(library(x, y)))


def test_smooth_ap_is_the_librarys_where_that_is_right():
    """As many samples of a class as classes; otherwise pytorch-metric-learning 2.9.0 cuts the batch into wrong groups."""
    x, y = batch(9, (0, 0, 0, 1, 1, 1, 2, 2, 2))
    assert float(smooth_ap(x, y, x, 20.0)) == pytest.approx(float(losses.SmoothAPLoss(temperature=0.2)(x, y)), rel=1e-5)


def test_smooth_ap_becomes_average_precision_when_its_sigmoids_become_steps():
    x, y = batch(10, (0, 1, 2, 1, 0, 2, 2, 0, 1, 2, 2))  # unequal classes
    unit = x / x.norm(dim=1, keepdim=True)
    score = (unit @ unit.T).numpy()
    expected = np.mean([average_precision_score((y == y[i]).numpy(), score[i]) for i in range(len(y))])
    assert float(smooth_ap(x, y, x, 1e-4)) == pytest.approx(1 - expected, abs=1e-6)
