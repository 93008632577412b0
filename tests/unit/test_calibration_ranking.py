"""Ranks, and claims about all recalibrators on stored outputs of published classifiers: fit on even rows, judged on odd ones."""

import functools

import numpy as np
import pytest
import xarray as xr
from workbench.toolkit import calibration_metrics

from unit.recording_out import check_report, record
from workbench_calibration.baselines import Baselines, recalibrators
from workbench_calibration.choice import suggestion
from workbench_calibration.h_calibration import HCalibration
from workbench_calibration.ranking import RANKED, rank_methods
from workbench_calibration.resampling import ResampleCounts, ResampledScores, resampled_metrics

FILES = ("lenet-5-cifar-10", "vgg16-cifar-10", "densenet-bc-100-cifar-100", "wideresnet-16-4-cifar-100")


def parts(shared_data, file):
    """Even rows as `fit`, odd rows as `data`."""
    with np.load(shared_data / "classifier_outputs" / f"{file}.npz") as stored:
        p, y = stored["predictions"], stored["ground_truth"].reshape(-1).astype(np.int64)
    return {
        role: xr.Dataset({"probability": (("sample", "class"), p[rows]), "label": ("sample", y[rows])})
        for role, rows in (("fit", slice(0, None, 2)), ("data", slice(1, None, 2)))
    }


def test_ranks_come_with_the_range_that_paired_comparisons_leave():
    """One method clearly better than two that differ by noise, which the same resamples hold."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(500)
    noise = {"best": 0.001, "one": 0.1, "other": 0.1}
    value = {"best": 0.5, "one": 0.6, "other": 0.61}
    resampled = {
        name: {metric: value[name] + shared + noise[name] * rng.standard_normal(500) for metric in RANKED} for name in value
    }  # fmt: skip
    # a shift that all methods share cancels in differences of the same resamples
    for name in ("one", "other"):
        assert np.quantile(resampled[name]["ks_error"], 0.025) < value["best"]
    found = rank_methods({name: dict.fromkeys(RANKED, x) for name, x in value.items()}, resampled)
    assert found.rank[:, 0].tolist() == [1, 2, 3]
    ranges = list(zip(found.best[:, 0].tolist(), found.worst[:, 0].tolist(), strict=True))
    assert ranges == [(1, 3), (1, 3), (1, 3)]  # 0.1 away at a noise of 0.1: open
    sharper = {n: {m: value[n] + 0.2 * (d - value[n]) for m, d in row.items()} for n, row in resampled.items()}
    found = rank_methods({name: dict.fromkeys(RANKED, x) for name, x in value.items()}, sharper)
    ranges = list(zip(found.best[:, 0].tolist(), found.worst[:, 0].tolist(), strict=True))
    assert ranges == [(1, 1), (2, 3), (2, 3)]
    # equal methods share their rank and leave each other open
    twice = {"a": dict.fromkeys(RANKED, 0.5), "b": dict.fromkeys(RANKED, 0.5)}
    found = rank_methods(twice, dict.fromkeys(twice, resampled["one"]))
    assert (found.rank[0, 0], found.best[0, 0], found.worst[0, 0]) == (1.5, 1, 2)


@functools.cache
def everyone(folder, file):
    """Probabilities of all recalibrators and of h-calibration on the odd rows, their labels, and the comparison's result.

    h-calibration with one piecewise-linear map, no class left out, a schedule that watches the loss.
    """
    inputs = parts(folder, file)
    out, compared = record(Baselines, inputs, methods=tuple(recalibrators(0)))
    own, _ = record(HCalibration, inputs, maps=("pwlinear-100",), watch="loss", leave_one_class_out=False, baselines=(),
                    epochs=600 if "cifar-10." in f"{file}." else 200, chance_draws=20, resamples=100)  # fmt: skip
    names = [str(name) for name in compared["value"]["recalibrator"].values]
    p = {name: one.astype(np.float64) for name, one in zip(names, out.arrays["method_probability"], strict=True)}
    return p | {"h_calibration": own.arrays["probability"].astype(np.float64)}, out.arrays["label"], compared


def ranks_of(probability, label):
    """Ranks of methods over `RANKED` and their ranges, and each method's metrics."""
    counts = ResampleCounts(len(label), 1000, np.random.default_rng(0))
    scores = []
    for p in probability.values():
        scores.append(ResampledScores(*p.shape, 15, counts, 0, np.random.default_rng(0)))
        scores[-1].add(p, label)
    resampled = dict(zip(probability, resampled_metrics(scores), strict=True))
    metrics = {name: calibration_metrics(p, label) for name, p in probability.items()}
    return rank_methods(metrics, resampled), metrics


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_all_methods_are_ranked_with_intervals_on_stored_outputs(shared_data, file):
    """Every recalibrator, matrix scaling and Dirichlet calibration with ODIR included, and h-calibration among them."""
    probability, label, _ = everyone(shared_data, file)
    assert len(probability) == len(recalibrators(0)) + 2
    found, metrics = ranks_of(probability, label)
    names = list(probability)
    print(f"\n{file}\n| method | NLL | ECE | average rank |", *(f"{metric} |" for metric in RANKED))
    for row in np.argsort(found.rank.mean(axis=1), kind="stable"):
        cells = [f"{r:g} ({low:g} to {high:g})" for r, low, high in zip(found.rank[row], found.best[row], found.worst[row],
                                                                      strict=True)]  # fmt: skip
        one, mean = metrics[names[row]], [table[row].mean() for table in (found.rank, found.best, found.worst)]
        print(f"| {names[row]} | {one['negative_log_likelihood']:.4f} | {one['ece_width_l1']:.4f} |",
              "{:.1f} ({:.1f} to {:.1f}) | ".format(*mean) + " | ".join(cells) + " |")  # fmt: skip
    assert (found.best <= found.rank).all()
    assert (found.rank <= found.worst).all()
    # in likelihood these clearly beat the probabilities as they are; of the others some do not on some file
    column, last = RANKED.index("negative_log_likelihood"), names.index("uncalibrated")
    for name in ("temperature", "vector_scaling", "matrix_scaling", "dirichlet"):
        assert found.worst[names.index(name), column] < found.best[last, column], name
    # ODIR keeps a full matrix from overfitting: in likelihood it is not far behind one temperature, also with 100 classes
    for name in ("matrix_scaling", "dirichlet"):
        assert metrics[name]["negative_log_likelihood"] < metrics["temperature"]["negative_log_likelihood"] + 0.01
    assert abs(metrics["h_calibration"]["negative_log_likelihood"] - metrics["temperature"]["negative_log_likelihood"]) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_rule_names_one_of_the_best_of_all_recalibrators(shared_data, file):
    """The rule sees the fit rows only; what it names is nearly the best on the rows that it has not seen."""
    _, _, result = everyone(shared_data, file)
    check_report(Baselines, result)
    value, change = (
        {str(m): {str(n): float(x) for n, x in zip(result[a]["metric"].values, row.values, strict=True)}
         for m, row in zip(result[a]["recalibrator"].values, result[a], strict=True)}
        for a in ("value", "change_upper")
    )  # fmt: skip
    # what the reference runs say of these files
    assert value["temperature"]["ks_error"] < 0.5 * value["uncalibrated"]["ks_error"]
    assert change["temperature"]["negative_log_likelihood"] < 0
    zeros = value["isotonic_one_vs_rest"]["negative_log_likelihood"]
    assert zeros > value["temperature"]["negative_log_likelihood"]
    # the rule against the ranking
    suggested = str(result["suggested"].values)
    print(f"\n{file}: {suggested}", {name: round(row["negative_log_likelihood"], 4) for name, row in value.items()})
    assert suggested == suggestion(dict(zip(value, map(str, result["reason"].values), strict=True)))
    likelihood = {name: row["negative_log_likelihood"] for name, row in value.items()}
    assert likelihood[suggested] <= min(likelihood.values()) + 0.01
    assert value[suggested]["accuracy"] >= value["uncalibrated"]["accuracy"] - 0.005
    rank = dict(zip(value, result["rank"].values, strict=True))
    assert rank[suggested] <= np.median(list(rank.values()))
    assert rank[suggested] < rank["uncalibrated"]
    # intervals of the ranks: temperature scaling clearly beats the probabilities as they are in likelihood
    best, worst = (result[f"metric_rank_{end}"].sel(ranked_metric="negative_log_likelihood") for end in ("best", "worst"))
    assert int(best.sel(recalibrator="uncalibrated")) > 1
    assert int(worst.sel(recalibrator="temperature")) < len(recalibrators(0)) + 1
    assert (result["metric_rank_best"] <= result["metric_rank"]).all()
    assert (result["metric_rank"] <= result["metric_rank_worst"]).all()
