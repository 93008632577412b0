"""Detection metrics against brute force over pairs and thresholds, and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics
from workbench.errors import InputError

from workbench_detection import metrics


def samples(seed=0, normal=60, anomalous=45, ties=True):
    rng = np.random.default_rng(seed)
    score = np.concatenate([rng.normal(0, 1, normal), rng.normal(0.8, 1.2, anomalous)])
    score = np.round(score, 1) if ties else score
    order = rng.permutation(len(score))
    return score[order], np.repeat([False, True], [normal, anomalous])[order]


def brute_force_auroc(score, anomalous):
    pairs = [(a > n) + 0.5 * (a == n) for a in score[anomalous] for n in score[~anomalous]]
    return np.mean(pairs)


def brute_force_flagged(score, positive, rate):
    """Share of the others at or above the highest threshold that keeps `rate` of the positives."""
    for threshold in sorted(set(score), reverse=True):
        if np.count_nonzero(score[positive] >= threshold) >= rate * positive.sum() - 1e-9:
            return np.mean(score[~positive] >= threshold)
    raise AssertionError("some threshold keeps everything")


def brute_force_precision(score, positive):
    """Average precision: precision at each threshold weighted by the recall it adds."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        flagged = score >= threshold
        recall = np.mean(flagged[positive])
        total += (recall - before) * np.mean(positive[flagged])
        before = recall
    return total


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_all_metrics_equal_brute_force(seed, ties):
    score, anomalous = samples(seed, ties=ties)
    values = metrics.detection_metrics(score, anomalous)
    assert tuple(values) == metrics.DETECTION_METRICS
    assert values["auroc"] == pytest.approx(brute_force_auroc(score, anomalous))
    assert values["aupr_out"] == pytest.approx(brute_force_precision(score, anomalous))
    assert values["aupr_in"] == pytest.approx(brute_force_precision(-score, ~anomalous))
    assert values["fpr95_ood"] == pytest.approx(brute_force_flagged(score, anomalous, 0.95))
    assert values["fpr95_id"] == pytest.approx(brute_force_flagged(-score, ~anomalous, 0.95))


def test_the_two_conventions_of_fpr95_on_a_case_one_can_check_by_hand():
    # 20 of each. Keeping 19 normal ones means the threshold 18, which accepts the anomalous scores 10..18: 9 of 20.
    # Finding 19 anomalous ones means the threshold 11, which flags the normal scores 11..19: 9 of 20; one outlier moves
    # only the first of the two.
    normal, foreign = np.arange(20.0), np.arange(10.0, 30.0)
    score, anomalous = np.concatenate([normal, foreign]), np.repeat([False, True], 20)
    assert metrics.fpr95_id(score, anomalous) == 9 / 20
    assert metrics.fpr95_ood(score, anomalous) == 9 / 20
    score[[18, 19]] = 100  # two normal outliers: 95 % of the normal ones now need the threshold 100
    assert metrics.fpr95_id(score, anomalous) == 1
    assert metrics.fpr95_ood(score, anomalous) == 9 / 20


def test_nineteen_of_twenty_are_95_percent_whatever_the_rounding():
    for count in (20, 40, 60, 100, 140, 700):
        score = np.concatenate([np.full(count, -1.0), np.arange(count, dtype=float)])
        anomalous = np.repeat([False, True], count)
        score[0] = count // 20  # one normal sample exactly at the 95 % threshold
        assert metrics.fpr95_ood(score, anomalous) == 1 / count
        score[0] = count // 20 - 1
        assert metrics.fpr95_ood(score, anomalous) == 0


def test_a_perfect_a_useless_and_a_reversed_score():
    anomalous = np.repeat([False, True], [30, 10])
    perfect = metrics.detection_metrics(anomalous.astype(float), anomalous)
    assert perfect == {"auroc": 1, "aupr_in": 1, "aupr_out": 1, "fpr95_id": 0, "fpr95_ood": 0}
    constant = metrics.detection_metrics(np.zeros(40), anomalous)
    assert constant == {"auroc": 0.5, "aupr_in": 0.75, "aupr_out": 0.25, "fpr95_id": 1, "fpr95_ood": 1}
    reversed_score = metrics.detection_metrics(-anomalous.astype(float), anomalous)
    assert (reversed_score["auroc"], reversed_score["fpr95_id"], reversed_score["fpr95_ood"]) == (0, 1, 1)


def test_the_trapezoid_is_openoods_area_and_differs_from_average_precision():
    score, anomalous = samples(5)
    precision, recall, _ = sklearn_metrics.precision_recall_curve(~anomalous, -score)
    trapezoid = np.trapezoid(precision[::-1], recall[::-1])
    assert metrics.aupr_in(score, anomalous, "trapezoid") == pytest.approx(trapezoid)
    assert metrics.aupr_in(score, anomalous) != pytest.approx(trapezoid, abs=1e-4)


def test_counted_metrics_equal_the_point_values_on_every_resample():
    score, anomalous = samples(2, normal=25, anomalous=20)
    distinct, place = np.unique(score, return_inverse=True)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(20):
        normal = rng.choice(np.flatnonzero(~anomalous), (~anomalous).sum())
        foreign = rng.choice(np.flatnonzero(anomalous), anomalous.sum())
        rows.append((normal, foreign))
    counts = [np.stack([np.bincount(place[row[k]], minlength=distinct.size) for row in rows]) for k in (0, 1)]
    counted = metrics.metrics_of_counts(*counts)
    for index, (normal, foreign) in enumerate(rows):
        chosen = np.concatenate([normal, foreign])
        expected = metrics.detection_metrics(score[chosen], anomalous[chosen])
        assert {name: counted[name][index] for name in expected} == pytest.approx(expected)


def test_bootstrap_intervals_have_the_width_of_the_known_standard_error():
    # AUROC of two shifted normals: Hanley and McNeil's standard error, (Q1 from the exponential model) is within a tenth
    # of the truth for these; 1.96 of it on either side.
    score, anomalous = samples(3, normal=400, anomalous=400, ties=False)
    low, high = metrics.bootstrap_intervals(score, anomalous, np.random.default_rng(0), resamples=2000)["auroc"]
    area = metrics.auroc(score, anomalous)
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + 399 * (first - area**2) + 399 * (second - area**2)) / 400**2
    assert low < area < high
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.15)


def test_bootstrap_intervals_cover_the_true_area_about_as_often_as_they_say():
    truth, hits = 0.6914625, 0  # P(N(0.5 sqrt 2, 1) > N(0, 1)) = Phi(0.5)
    rng = np.random.default_rng(7)
    anomalous = np.repeat([False, True], 60)
    for _ in range(200):
        score = rng.normal(0, 1, 120) + anomalous * 0.5 * np.sqrt(2)
        low, high = metrics.bootstrap_intervals(score, anomalous, rng, resamples=200, level=0.9)["auroc"]
        hits += low <= truth <= high
    assert 0.83 <= hits / 200 <= 0.96


def test_bootstrap_is_reproducible():
    score, anomalous = samples(1)
    one = metrics.bootstrap_intervals(score, anomalous, np.random.default_rng(4), resamples=300)
    assert one == metrics.bootstrap_intervals(score, anomalous, np.random.default_rng(4), resamples=300)
    assert one != metrics.bootstrap_intervals(score, anomalous, np.random.default_rng(5), resamples=300)


def test_roc_points_lie_on_scikit_learns_curve():
    score, anomalous = samples(6, ties=False)
    fpr, tpr, _ = sklearn_metrics.roc_curve(anomalous, score, drop_intermediate=False)
    grid = np.linspace(0, 1, 4001)
    assert np.trapezoid(metrics.roc_at(score, anomalous, grid), grid) == pytest.approx(
        sklearn_metrics.roc_auc_score(anomalous, score), abs=1e-3
    )
    inner = (np.diff(fpr, prepend=-1) > 0) & (np.diff(fpr, append=2) > 0)  # points on no vertical stretch
    assert metrics.roc_at(score, anomalous, fpr[inner]) == pytest.approx(tpr[inner])


@pytest.mark.parametrize(
    ("score", "anomalous", "argument"),
    [
        (np.zeros(3), np.array([True, False]), "score"),
        (np.zeros((2, 2)), np.zeros((2, 2), dtype=bool), "score"),
        (np.array([0.0, np.nan]), np.array([True, False]), "score"),
        (np.array([0.0, np.inf]), np.array([True, False]), "score"),
        (np.zeros(3), np.ones(3, dtype=bool), "anomalous"),
        (np.zeros(3), np.zeros(3, dtype=bool), "anomalous"),
    ],
)
def test_input_that_cannot_be_judged_is_refused(score, anomalous, argument):
    with pytest.raises(InputError) as caught:
        metrics.detection_metrics(score, anomalous)
    assert caught.value.argument == argument
