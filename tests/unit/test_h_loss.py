"""The h-calibration loss against a naive one, its slope against automatic differentiation, clusters against exact ones."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.cluster import KMeans

from unit.h_cases import overconfident
from workbench_calibration.h_clusters import NOTHING, cluster_centres, kmeans_1d, kmeans_without
from workbench_calibration.h_loss import event_gap, event_weight, h_calibration_loss, sorted_events, stable_order


def naive_loss(p, label, window, epsilon, clusters, leave_out):
    """The official computation, word for word: two sequences, zero padding, a convolution, one-hot cluster means."""
    total = []
    for left in range(p.shape[1]) if leave_out else [None]:
        kept = np.ones(len(label), bool) if left is None else label != left
        events = p[kept].ravel()
        occurred = np.eye(p.shape[1])[label[kept]].ravel()
        order = np.argsort(np.log(events + 1e-20), kind="stable")
        events, occurred = events[order], occurred[order]
        kernel = np.ones(window + 1) / (window + 1)
        missed = np.convolve(np.pad(events * (1 - occurred), window // 2), kernel, mode="valid")
        found = np.convolve(np.pad((1 - events) * occurred, window // 2), kernel, mode="valid")
        gap = np.maximum(np.abs(missed - found) - epsilon, 0)
        if clusters is None:
            total.append(gap.mean())
            continue
        fitted = KMeans(clusters, n_init=30, random_state=0, tol=0, max_iter=1000).fit(events[:, None])
        member = np.eye(clusters)[fitted.labels_].T
        total.append(((member * gap).sum(1) / (member.sum(1) + 1e-5)).mean())
    return np.mean(total) * 1e5


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("epsilon", [1e-20, 0.01])
def test_the_unweighted_loss_is_that_of_the_official_steps(leave_out, epsilon):
    logit, label = overconfident(150, 4)
    p = torch.softmax(torch.as_tensor(logit), 1)
    ours = h_calibration_loss(p, torch.as_tensor(label), window=40, epsilon=epsilon, leave_one_class_out=leave_out,
                              weighting="unweighted")
    assert float(ours) == pytest.approx(naive_loss(p.numpy(), label, 40, epsilon, None, leave_out), rel=1e-9)


def lloyd(value, centres):
    """Plain k-means of written-out numbers: members of each cluster, (event,)."""
    while True:
        member = np.abs(value[:, None] - centres).argmin(axis=1)
        moved = np.array([value[member == k].mean() for k in np.unique(member)])
        if np.array_equal(moved, centres):
            return member
        centres = moved


def differentiable_loss(p, label, window, epsilon, clusters, leave_out):
    """The same sets, windows and clusters written out for automatic differentiation: a mask, a convolution and a mean each."""
    everything = np.sort(p.detach().numpy().ravel())
    centres = cluster_centres(everything, kmeans_1d(everything, clusters)) if clusters else None
    total = []
    for left in range(p.shape[1]) if leave_out else [None]:
        kept = torch.ones(len(label), dtype=torch.bool) if left is None else label != left
        events = p[kept].reshape(-1)
        excess = events - torch.nn.functional.one_hot(label[kept], p.shape[1]).reshape(-1)
        order = torch.argsort(events.detach(), stable=True)
        kernel = torch.ones(1, 1, window + 1, dtype=p.dtype)
        mean = torch.nn.functional.conv1d(excess[order][None, None], kernel, padding=window // 2)[0, 0] / (window + 1)
        gap = torch.relu(mean.abs() - epsilon)
        if clusters is None:
            total.append(gap.mean())
            continue
        member = lloyd(events.detach()[order].numpy(), centres)
        means = [gap[torch.as_tensor(member == k)].sum() / ((member == k).sum() + 1e-5) for k in np.unique(member)]
        total.append(torch.stack(means).sum() / clusters)
    return torch.stack(total).mean() * 1e5


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize(("clusters", "epsilon"), [(8, 1e-20), (8, 0.02), (None, 0.01)])
@pytest.mark.parametrize("absent", [False, True])
def test_loss_and_slope_are_those_of_the_written_out_sets(leave_out, clusters, epsilon, absent):
    logit, label = overconfident(300, 5, seed=1)
    y = torch.as_tensor(label).clamp_max(3) if absent else torch.as_tensor(label)
    p = torch.softmax(torch.as_tensor(logit), 1).requires_grad_()
    expected = differentiable_loss(p, y, 60, epsilon, clusters, leave_out)
    slope = torch.autograd.grad(expected, p)[0]
    found = h_calibration_loss(p, y, window=60, epsilon=epsilon, n_clusters=clusters or 15, leave_one_class_out=leave_out,
                               weighting="cluster" if clusters else "unweighted")  # fmt: skip
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-11)
    assert torch.allclose(torch.autograd.grad(found, p)[0], slope, rtol=1e-9, atol=1e-9 * float(slope.abs().max()))


@pytest.mark.parametrize("seed", range(3))
def test_the_clustered_loss_is_that_of_the_official_steps_with_many_restarts_of_k_means(seed):
    logit, label = overconfident(300, 5, seed=seed)
    p = torch.softmax(torch.as_tensor(logit), 1)
    ours = h_calibration_loss(p, torch.as_tensor(label), window=60, leave_one_class_out=False, n_clusters=8)
    assert float(ours) == pytest.approx(naive_loss(p.numpy(), label, 60, 1e-20, 8, False), rel=0.02)


def test_leaving_classes_out_with_warm_clusters_is_the_loss_of_each_set_on_its_own():
    logit, label = overconfident(300, 5)
    p, y = torch.softmax(torch.as_tensor(logit), 1), torch.as_tensor(label)
    alone = [float(h_calibration_loss(p[y != k], y[y != k], window=60, leave_one_class_out=False)) for k in range(5)]
    together = float(h_calibration_loss(p, y, window=60, leave_one_class_out=True))
    assert together == pytest.approx(np.mean(alone), rel=0.02)


def test_a_class_without_samples_leaves_nothing_out():
    logit, label = overconfident(300, 5)
    p, y = torch.softmax(torch.as_tensor(logit), 1), torch.as_tensor(label).clamp_max(3)
    alone = [float(h_calibration_loss(p[y != k], y[y != k], window=60, leave_one_class_out=False)) for k in range(5)]
    assert float(h_calibration_loss(p, y, window=60)) == pytest.approx(np.mean(alone), rel=0.02)


def test_the_gradient_is_the_slope_of_the_loss():
    """Order and clusters do not move within the small step, so the loss is smooth there."""
    logit, label = overconfident(80, 3)
    z, y = torch.as_tensor(logit), torch.as_tensor(label)

    def at(scale):
        return h_calibration_loss(torch.softmax(z * scale, 1), y, window=20, n_clusters=5)

    scale = torch.tensor(1.1, dtype=torch.float64, requires_grad=True)
    at(scale).backward()
    step = 1e-7
    slope = (at(scale.detach() + step) - at(scale.detach() - step)) / (2 * step)
    assert float(scale.grad) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize("weighting", ["cluster", "unweighted"])
def test_a_batch_of_one_class_adds_nothing_where_that_class_is_left_out(weighting):
    """Nothing is left of the one set, the others hold everything: two thirds of the loss of all events."""
    p = torch.softmax(torch.as_tensor(overconfident(100, 3)[0]), 1).requires_grad_()
    y = torch.zeros(100, dtype=torch.int64)
    whole, left = (
        h_calibration_loss(p, y, window=20, leave_one_class_out=out, weighting=weighting) for out in (False, True)
    )
    assert float(left.detach()) == pytest.approx(2 / 3 * float(whole.detach()))
    assert torch.isfinite(torch.autograd.grad(left, p)[0]).all()


def test_the_gap_is_a_windowed_mean_that_counts_missing_events_as_zero():
    excess = torch.arange(1.0, 8.0, dtype=torch.float64)
    gap = event_gap(excess, window=2, epsilon=0.5)
    expected = [(1 + 2) / 3, 2, 3, 4, 5, 6, (6 + 7) / 3]
    assert gap.tolist() == pytest.approx([value - 0.5 for value in expected])


def test_events_are_all_pairs_in_ascending_order_with_their_outcomes():
    p = torch.tensor([[0.7, 0.3], [0.1, 0.9]], dtype=torch.float64)
    _, value, excess = sorted_events(p, torch.tensor([0, 1]))
    assert value.tolist() == [0.1, 0.3, 0.7, 0.9]
    assert excess.tolist() == pytest.approx([0.1, 0.3, -0.3, -0.1])


@pytest.mark.parametrize("distinct", [1, 7, 5000])
def test_equal_probabilities_keep_their_order(distinct):
    key = torch.as_tensor(np.random.default_rng(0).integers(distinct, size=2000) / 7.0)
    assert stable_order(key).tolist() == np.argsort(key.numpy(), kind="stable").tolist()


def test_the_loss_vanishes_as_samples_grow_for_true_probabilities_and_not_for_sharpened_ones():
    logit, label = overconfident(20_000, 3, sharpness=1.0)
    z, y = torch.as_tensor(logit), torch.as_tensor(label)
    true, sharp = (
        float(h_calibration_loss(torch.softmax(z * s, 1), y, window=2000, leave_one_class_out=False)) for s in (1, 2)
    )
    assert true < 0.2 * sharp


# ------------------------------------------------------------------------------------------------------------ k-means


def within(value, starts):
    parts = np.split(value, starts[1:])
    return sum(((part - part.mean()) ** 2).sum() for part in parts if len(part))


def exact_partition_cost(value, clusters):
    """Optimal 1-D k-means by dynamic programming over all cuts."""
    prefix, squares = np.concatenate([[0], np.cumsum(value)]), np.concatenate([[0], np.cumsum(value**2)])
    n = len(value)
    best = np.array([math.inf] + [squares[j] - prefix[j] ** 2 / j for j in range(1, n + 1)])
    for _ in range(clusters - 1):
        best = np.array([math.inf] + [
            min(best[i] + squares[j] - squares[i] - (prefix[j] - prefix[i]) ** 2 / (j - i) for i in range(1, j))
            if j > 1 else math.inf
            for j in range(1, n + 1)
        ])
    return best[n]


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_within_a_percent_of_the_optimum(seed):
    value = np.sort(np.random.default_rng(seed).beta(0.15, 0.6, 150))
    assert within(value, kmeans_1d(value, 5)) <= 1.01 * exact_partition_cost(value, 5) + 1e-12


def test_many_events_are_clustered_as_well_as_by_restarted_scikit_learn():
    logit, _ = overconfident(3000, 10)
    value = np.sort(np.exp(log_softmax(logit, axis=1)).ravel())
    reference = KMeans(15, n_init=10, random_state=0).fit(value[:, None]).inertia_
    starts = kmeans_1d(value, 15)
    assert len(starts) == 15
    assert within(value, starts) <= 1.001 * reference


def test_fewer_distinct_values_than_clusters_leave_clusters_empty():
    value = np.repeat([0.0, 0.5, 1.0], 10)
    starts = kmeans_1d(value, 6)
    assert within(value, starts) == pytest.approx(0, abs=1e-12)
    weight = event_weight(30, starts, 6, torch.device("cpu"))
    assert float(weight.sum()) == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_clusters_of_many_sets_at_once_are_those_of_each_set_written_out(seed):
    """Also of a set that keeps everything, and of one in which some clusters are empty from the start."""
    rng = np.random.default_rng(seed)
    value = np.sort(rng.beta(0.2, 0.6, 800))
    centres = cluster_centres(value, kmeans_1d(value, 7))
    owner = rng.integers(3, size=800)
    high = np.flatnonzero((value > 0.3) & (value < 0.7))
    removed = [*(np.flatnonzero(owner == k) for k in range(3)), NOTHING, high]
    found = kmeans_without(value, removed, centres)
    for positions, starts in zip(removed, found, strict=True):
        kept = np.delete(value, positions)
        member = lloyd(kept, centres)
        expected = np.flatnonzero(np.diff(member, prepend=-1))
        assert starts[: len(expected)].tolist() == expected.tolist()
        assert (starts[len(expected) :] == len(kept)).all()
