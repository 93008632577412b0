"""h-calibration: the loss against a naive one, clusters against exact ones, maps that keep order, and the whole method."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import integrate
from scipy.special import log_softmax
from sklearn.cluster import KMeans
from torch import nn
from workbench import CancelledError, InputError

from unit.recording_out import RecordedResult, RecordingOut, check_report, record
from workbench_calibration.h_calibration import HCalibration
from workbench_calibration.h_loss import event_gap, h_calibration_loss, kmeans_1d, sorted_events
from workbench_calibration.h_maps import CANDIDATES, MonotoneNetwork, PiecewiseLinear, clenshaw_curtis, make_map
from workbench_calibration.h_training import fit_map
from workbench_calibration.samples import Samples

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "classifier_outputs"


def overconfident(samples=600, classes=6, sharpness=2.5, seed=0):
    """Logits of a classifier that is calibrated at temperature `sharpness`, and labels drawn accordingly."""
    rng = np.random.default_rng(seed)
    true = 2.0 * rng.standard_normal((samples, classes))
    label = (rng.random((samples, 1)) > np.exp(log_softmax(true, axis=1)).cumsum(axis=1)).sum(axis=1)
    return sharpness * true, np.minimum(label, classes - 1)


def dataset(logit, label):
    return xr.Dataset({"logit": (("sample", "class"), logit), "label": ("sample", label)})


# --------------------------------------------------------------------------------------------------------------- loss


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
    gap = torch.ones(30, dtype=torch.float64)
    from workbench_calibration.h_loss import cluster_mean

    assert float(cluster_mean(gap, torch.as_tensor(value), 6)) == pytest.approx(0.5, rel=1e-4)


# --------------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_map_gives_probabilities_and_keeps_the_order_of_classes(name):
    logit, _ = overconfident(40, 6)
    z = torch.log_softmax(torch.as_tensor(logit), 1)
    map_ = make_map(name, torch.Generator().manual_seed(1), z)
    with torch.no_grad():
        for parameter in map_.parameters():  # as after training: anything
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
        p = map_(z)
    assert torch.allclose(p.exp().sum(1), torch.ones(40, dtype=torch.float64))
    order = z.argsort(1)
    assert (p.gather(1, order).diff(dim=1) >= -1e-9).all()
    assert (p.argmax(1) == z.argmax(1)).all()


def test_the_piecewise_linear_map_starts_as_the_identity_and_interpolates_its_knots():
    map_ = PiecewiseLinear(4)
    z = torch.linspace(-130, 0, 261, dtype=torch.float64)
    assert torch.allclose(map_.curve(z), z)
    with torch.no_grad():
        map_.slope.copy_(torch.tensor([2.0, -0.5, 1.0, 3.0]))
    knots = [-100, -75, -50, -25, 0]
    expected = np.interp(z[z >= -100], knots, [-(50 + 12.5 + 25 + 75), -(50 + 12.5 + 25), -(50 + 12.5), -50, 0])
    assert map_.curve(z[z >= -100]).detach().numpy() == pytest.approx(expected)
    assert float(map_.curve(torch.tensor(-110.0, dtype=torch.float64)).detach()) == pytest.approx(-162.5 - 30)


def test_the_official_piecewise_linear_map_is_not_monotone_and_ours_is():
    """Why it was rebuilt: the official formula measures within a segment from the knot's value, not its position."""
    slope = torch.tensor([2.0, 0.3, 1.5, 1.0, 1.0], dtype=torch.float64)
    steps, delta = torch.linspace(0, 100, 5, dtype=torch.float64), 25.0
    z = torch.linspace(-99, 0, 400, dtype=torch.float64)
    v1 = (((-z[:, None] >= steps) * slope).sum(1) - 1) * delta
    v2 = (((-z[:, None] + delta >= steps) * slope).sum(1) - 1) * delta
    official = -(v1 + (v2 - v1) / delta * (-z - v1))
    map_ = PiecewiseLinear(4)
    with torch.no_grad():
        map_.slope.copy_(slope[:4])
    assert (official.diff() < 0).any()
    assert (map_.curve(z).diff() > 0).all()


def test_quadrature_is_exact_for_polynomials_and_has_the_known_weights():
    weight, node = clenshaw_curtis(4)
    assert weight == pytest.approx([1 / 15, 8 / 15, 12 / 15, 8 / 15, 1 / 15])
    weight, node = clenshaw_curtis(50)
    for power in range(51):
        assert (weight * node**power).sum() == pytest.approx((1 + (-1) ** power) / (power + 1), abs=1e-13)


def test_the_network_is_the_integral_of_its_integrand():
    z = torch.log_softmax(torch.as_tensor(overconfident(50, 5)[0]), 1)
    map_ = MonotoneNetwork(10, torch.Generator().manual_seed(0), z)
    for x in (-3.0, -0.4, 1.2):
        value = torch.tensor(x, dtype=torch.float64) * map_.deviation + map_.mean
        grid = torch.linspace(0, x, 20_001, dtype=torch.float64)
        exact = integrate.simpson(map_.integrand(grid).detach().numpy(), grid.numpy())
        assert float(map_.curve(value).detach()) == pytest.approx(exact, abs=2e-3)


def test_the_mixture_with_equal_scales_is_temperature_scaling():
    z = torch.as_tensor(overconfident(30, 4)[0])
    map_ = make_map("linear-16", torch.Generator().manual_seed(0), z)
    with torch.no_grad():
        map_.scale.fill_(-0.4)
    expected = torch.log_softmax(0.4 * z, 1)
    assert torch.allclose(map_(torch.log_softmax(z, 1)), expected)


@pytest.mark.parametrize("name", ["cubic-3", "linear", "linear-0", "pwlinear-x"])
def test_unknown_maps_are_named(name):
    with pytest.raises(InputError, match=name):
        make_map(name, torch.Generator(), torch.zeros(2, 2, dtype=torch.float64))


# ----------------------------------------------------------------------------------------------------------- training


class Temperature(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, z):
        return torch.log_softmax(z * self.scale, 1)


def test_the_loop_finds_the_likelihood_optimum_and_returns_the_best_epoch():
    from workbench_calibration.temperature import fit_temperature

    logit, label = map(torch.as_tensor, overconfident(400, 5))
    trace = fit_map(
        Temperature(), logit, label, torch.nn.functional.nll_loss, goal="proper", epochs=150, lr=2e-2, batch=200,
        lr_patience=10, stop_patience=150, generator=torch.Generator().manual_seed(0),
    )
    assert 1 / float(trace.map.scale.detach()) == pytest.approx(fit_temperature(Samples.of(logit, label)).temperature, rel=1e-3)
    assert trace.selector == min(trace.selectors) == trace.selectors[trace.selected_epoch]
    p = trace(logit)
    assert float(-p[torch.arange(400), label].log().mean()) == pytest.approx(trace.selector)


def test_fitting_stops_when_the_calibration_error_no_longer_falls():
    logit, label = map(torch.as_tensor, overconfident(100, 3))
    trace = fit_map(
        Temperature(), logit, label, lambda z, y: 0 * z.sum(), goal="top", epochs=50, lr=1e-3, batch=64, lr_patience=2,
        stop_patience=7, generator=torch.Generator().manual_seed(0),
    )
    assert len(trace.loss) == 8
    assert trace.selected_epoch == 7  # the later of equal epochs


# ------------------------------------------------------------------------------------------------------------- method


@pytest.fixture(scope="module")
def run():
    logit, label = overconfident(900, 6)
    return record(HCalibration, {"data": dataset(logit, label)}, maps=("pwlinear-10", "linear-16"), epochs=30, lr=0.05,
                  resamples=100, chance_draws=20, window=100)


def test_it_calibrates_an_overconfident_classifier_without_touching_a_prediction(run):
    out, result = run
    value = result["value"]
    for metric in ("ece_width_l1", "ks_error", "negative_log_likelihood", "brier_score"):
        before, after = (float(value.sel(recalibrator=name, metric=metric)) for name in ("uncalibrated", "h_calibration"))
        assert after < (0.5 if metric == "ks_error" else 1) * before
    accuracy = value.sel(metric="accuracy").values
    assert (accuracy == accuracy[0]).all()
    assert (result["changed_predictions"].values == 0).all()
    fit, report = set(out.arrays["fit_index"]), set(out.arrays["sample_index"])
    assert not fit & report
    assert len(fit | report) == 900


def test_the_report_says_which_map_and_compares_the_objective_with_cross_entropy(run):
    _, result = run
    report = check_report(HCalibration, result)
    best = str(result["selected_map"].values)
    assert best in report.summary
    assert "cross-entropy" in report.summary
    candidates = next(table for table in report.tables if table.title == "Candidates")
    rows = {row[0]: row[1] for row in candidates.rows if "cross" not in row[0]}
    assert rows[best] == min(rows.values())
    ranks = next(table for table in report.tables if table.title == "Average rank")
    assert {row[0] for row in ranks.rows} >= {"uncalibrated", "temperature", "cross_entropy", "h_calibration"}


def test_differences_from_the_others_are_paired(run):
    """From the uncalibrated probabilities it is the change that every method of the family reports; from itself nothing."""
    _, result = run
    metrics = result["difference"]["ranked_metric"].values
    for end in ("", "_lower", "_upper"):
        from_uncalibrated = result[f"difference{end}"].sel(recalibrator="uncalibrated").values
        change = result[f"change{end}"].sel(recalibrator="h_calibration", metric=metrics).values
        assert from_uncalibrated == pytest.approx(change)
        assert (result[f"difference{end}"].sel(recalibrator="h_calibration") == 0).all()
    value = result["value"].sel(metric=metrics)
    expected = value.sel(recalibrator="h_calibration") - value.sel(recalibrator="temperature")
    assert result["difference"].sel(recalibrator="temperature").values == pytest.approx(expected.values)
    low, high = (result[f"difference_{end}"].sel(recalibrator="temperature").values for end in ("lower", "upper"))
    # what both methods share cancels: narrower than the interval of either
    spread = result["upper"].sel(recalibrator="temperature", metric=metrics) - result["lower"].sel(
        recalibrator="temperature", metric=metrics
    )
    likelihood = list(metrics).index("negative_log_likelihood")
    assert 0 < (high - low)[likelihood] < 0.5 * float(spread[likelihood])


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (-0.03, (-0.04, -0.02), "is 0.0300 lower than temperature scaling's and"),
        (-0.03, (-0.06, 0.01), "is 0.0300 lower than temperature scaling's (which sampling alone can explain)"),
        (0.01, (0.005, 0.012), "is 0.0100 higher than temperature scaling's and"),
        (0.01, (-0.005, 0.015), "is 0.0100 higher than temperature scaling's (which sampling alone can explain)"),
        (0.00003, (0.00001, 0.00005), "is equal to temperature scaling's"),
    ],
)
def test_the_summary_is_as_sure_of_a_difference_as_its_interval_allows(run, difference, interval, said):
    out, result = run
    changed = copy.deepcopy(out)
    row = list(result["difference"]["recalibrator"].values).index("temperature")
    column = list(result["difference"]["ranked_metric"].values).index("ece_width_l1")
    for end, number in zip(("", "_lower", "_upper"), (difference, *interval), strict=True):
        changed.arrays[f"difference{end}"][row, column] = number
    report = check_report(HCalibration, RecordedResult(changed, result.params, result.inputs))
    assert said in report.summary
    table = next(table for table in report.tables if table.title == "h_calibration less the others")
    cell = next(row for row in table.rows if row[0] == "temperature")[table.columns.index("ECE")]
    assert cell == f"{difference:+.4f} ({interval[0]:+.4f} to {interval[1]:+.4f})"


@pytest.mark.parametrize(("least", "said"), [(0.001, True), (-0.001, False)])
def test_a_likelihood_clearly_above_that_of_temperature_is_said(run, least, said):
    out, result = run
    changed = copy.deepcopy(out)
    row = list(result["difference"]["recalibrator"].values).index("temperature")
    column = list(result["difference"]["ranked_metric"].values).index("negative_log_likelihood")
    for end, number in zip(("", "_lower", "_upper"), (0.0123, least, 0.03), strict=True):
        changed.arrays[f"difference{end}"][row, column] = number
    notes = check_report(HCalibration, RecordedResult(changed, result.params, result.inputs)).notes
    assert any("likelihood is 0.0123 nats above temperature scaling's" in note for note in notes) == said


def test_the_same_seed_gives_the_same_run_and_a_checkpoint_resumes_to_it(run):
    out, _ = run
    inputs = {"data": dataset(*overconfident(900, 6))}
    params = {"maps": ("pwlinear-10", "linear-16"), "epochs": 30, "lr": 0.05, "resamples": 100, "chance_draws": 20,
              "window": 100}
    resumed = RecordingOut(HCalibration, restored=out.checkpoints[0])
    again, _ = record(HCalibration, inputs, out=resumed, **params)
    assert len(again.checkpoints) == 1  # the first map was not fitted again
    assert np.array_equal(again.arrays["probability"], out.arrays["probability"])
    assert np.array_equal(again.arrays["loss_history"], out.arrays["loss_history"], equal_nan=True)


def test_it_can_be_cancelled_within_a_map():
    out = RecordingOut(HCalibration, cancel_after=3)
    with pytest.raises(CancelledError):
        record(HCalibration, {"data": dataset(*overconfident(200, 4))}, out=out, maps=("linear-16",), epochs=10, window=20)


def test_a_window_that_holds_every_event_is_refused():
    with pytest.raises(InputError, match="window"):
        record(HCalibration, {"data": dataset(*overconfident(60, 3))}, maps=("linear-16",), epochs=1, window=100)


def test_the_schedule_follows_what_it_is_told_to_watch():
    """The top-label error rests (one parameter, no effect on it), the loss falls: only the first stops early."""
    logit, label = map(torch.as_tensor, overconfident(100, 3))
    epochs = {}
    for watch in ("top_error", "loss"):
        map_ = Temperature()
        map_.idle = nn.Parameter(torch.ones((), dtype=torch.float64))
        trace = fit_map(
            map_, logit, label, lambda z, y, m=map_: m.idle + 0 * z.sum(), goal="top", epochs=40, lr=1e-3, batch=100,
            lr_patience=2, stop_patience=7, generator=torch.Generator().manual_seed(0), watch=watch,
        )
        epochs[watch] = len(trace.loss)
    assert epochs == {"top_error": 8, "loss": 40}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the stored classifier outputs are not beside this repository")
@pytest.mark.parametrize("seed", range(3))
def test_on_vgg16_the_official_schedule_loses_to_temperature_and_one_that_watches_the_loss_does_not(seed):
    """The official schedule follows the top-label error, which rests while the loss falls: fitting ends unfinished.

    Measured with seeds 0, 1 and 2: ECE of temperature 0.0154, 0.0173, 0.0193; official schedule 0.0321, 0.0252, 0.0221; watching
    the loss 0.0147, 0.0119, 0.0144.
    """
    with np.load(DATA / "vgg16-cifar-10.npz") as stored:
        p, y = stored["predictions"], stored["ground_truth"].reshape(-1).astype(np.int64)
    rows = np.random.default_rng(seed).permutation(10_000)
    fit, report = (
        xr.Dataset({"probability": (("sample", "class"), p[part]), "label": ("sample", y[part])})
        for part in (rows[:5000], rows[5000:])
    )
    found = {}
    for watch in ("top_error", "loss"):
        _, result = record(HCalibration, {"data": report, "fit": fit}, maps=("pwlinear-100",), epochs=1000, watch=watch,
                           leave_one_class_out=False, resamples=100, chance_draws=20)  # fmt: skip
        table = result["value"]
        for metric in ("ece_width_l1", "negative_log_likelihood"):
            found[watch, metric] = float(table.sel(recalibrator="h_calibration", metric=metric))
            found["temperature", metric] = float(table.sel(recalibrator="temperature", metric=metric))
        found[watch, "fit loss"] = float(result["fit_h_loss"].sel(recalibrator="h_calibration"))
    assert found["loss", "fit loss"] < 0.9 * found["top_error", "fit loss"]
    assert found["loss", "ece_width_l1"] < found["temperature", "ece_width_l1"] < found["top_error", "ece_width_l1"]
    assert found["loss", "negative_log_likelihood"] < found["temperature", "negative_log_likelihood"]


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the stored classifier outputs are not beside this repository")
def test_on_a_stored_classifier_it_beats_temperature_and_the_same_map_trained_with_cross_entropy():
    with np.load(DATA / "wideresnet-16-4-cifar-100.npz") as stored:
        p, y = stored["predictions"], stored["ground_truth"].reshape(-1).astype(np.int64)
    rows = np.random.default_rng(0).permutation(10_000)
    fit, report = (
        xr.Dataset({"probability": (("sample", "class"), p[part]), "label": ("sample", y[part])})
        for part in (rows[:5000], rows[5000:])
    )
    _, result = record(HCalibration, {"data": report, "fit": fit}, maps=("pwlinear-100",), epochs=240,
                       leave_one_class_out=False, resamples=1000, chance_draws=20)
    # measured: -0.0238 (-0.0369 to -0.0182) and -0.0195 (-0.0298 to -0.0125); of the KS error nothing is shown
    for metric in ("ece_width_l1", "ece_mass_l1"):
        assert float(result["difference_upper"].sel(recalibrator="temperature", ranked_metric=metric)) < 0
    table = result["value"]
    error = table.sel(metric="ece_width_l1").to_series()
    assert error["h_calibration"] < 0.6 * min(error["temperature"], error["cross_entropy"])
    assert error["h_calibration"] < 0.4 * error["uncalibrated"]
    likelihood = table.sel({"metric": "negative_log_likelihood"})
    assert float(likelihood.sel(recalibrator="h_calibration")) < float(likelihood.sel(recalibrator="temperature")) + 0.01
    assert (result["changed_predictions"].values == 0).all()
