"""The view over many quantization runs: points against the runs' own arrays, intervals by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from scipy import stats
from sklearn.datasets import load_digits
from torch import nn
from workbench import InputError, Model
from workbench.render import static
from workbench.render.resolve import resolve
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit

from workbench_quantization.frontier import NEAR, _near
from workbench_quantization.frontier_points import collect
from workbench_quantization.frontier_readers import GIVEN, RANDOM, ROUNDING, input_widths
from workbench_quantization.hawq_solutions import Costs

SEEDS = (0, 1, 2)


def digits(part: slice) -> xr.Dataset:
    found = load_digits()
    image = (found.images[part, None] / 16).astype(np.float32)
    return xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), image), "label": ("sample", found.target[part].astype(np.int64))}
    )


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    net = SmallCNN(10, width=4)
    data = digits(slice(0, 1000))
    image, label = (torch.from_numpy(data[name].values) for name in ("image", "label"))
    recipe = Recipe(epochs=8, batch_size=64, learning_rate=0.05)
    fit(net, image, label, recipe, generator=torch.Generator().manual_seed(0))
    return net


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> workbench.Workbench:
    return workbench.open(tmp_path_factory.mktemp("frontier"))


@pytest.fixture(scope="module")
def runs(bench: workbench.Workbench, network: nn.Module) -> list[workbench.Run]:
    roles = {
        "model": Model(network, mean=0.0, std=1.0), "data": digits(slice(0, 300)), "test": digits(slice(1000, 1400)),
        "progress": False,
    }  # fmt: skip
    made = [bench.run("quantization.uniform", **roles, widths=(2, 4, 8), sharings=("channel",), act_bits=32)]
    made += [
        bench.run(
            "quantization.hawq", **roles, seed=seed, random_orders=5, probes=4, power_iterations=5, hess_samples=100,
            act_bits=32, first_last_bits=None,
        )
        for seed in SEEDS
    ]  # fmt: skip
    made.append(
        bench.run("quantization.interlayer", **roles, probes=4, calibration_samples=100, search_samples=100, subsets=4)
    )
    made.append(bench.run("quantization.adaquant", **roles, iterations=5, bias_steps=0, calibration_samples=100))
    made.append(bench.run("quantization.gptq", **roles, widths=(3, 4), calibration_samples=100))
    made += [
        bench.run(
            "quantization.uniform", **roles, widths=(4,), sharings=("channel",), act_bits=32, store_width=4,
            bits=found["bits"],
        )
        for found in made[1:4]
    ]  # fmt: skip
    return made


def test_solutions_that_are_one_table_are_one_point_and_ties_go_to_the_more_accurate(bench, network):
    run = bench.run(
        "quantization.adaquant", model=Model(network, mean=0.0, std=1.0), data=digits(slice(0, 60)),
        test=digits(slice(1000, 1400)), progress=False, bits=(8,), iterations=1, bias_steps=0, calibration_samples=40,
    )  # fmt: skip
    assert run["accuracy"].sizes["solution"] > 1  # program, greedy and uniform: with one width all the same
    repaired, plain = sorted(collect([run]), key=lambda point: point.series)
    assert (repaired.series, plain.series) == ("adaquant", ROUNDING)
    assert repaired.size_mb == plain.size_mb
    best = max((plain, repaired), key=lambda point: point.accuracy)
    report = bench.compare([run]).report()
    assert f" is {best.name}: " in report.report.summary
    assert ("Plain rounding is as small" in report.report.summary) == (best is repaired)


def test_points_are_the_runs_own_figures_and_intervals_are_students(runs):
    points = {point.name: point for point in collect(runs)}
    uniform, hawq = runs[0], runs[1:4]
    assert points["uniform: 4 bit, range per channel"].accuracy == float(uniform["accuracy"].sel(bit=4).squeeze())
    chosen = str(hawq[0]["accuracy"]["solution"].values[0])
    point = points[f"hawq: {chosen}"]
    accuracies = np.array([float(run["accuracy"][0]) for run in hawq])
    assert point.seeds == len(SEEDS)
    assert point.accuracy == pytest.approx(accuracies.mean())
    half = stats.t.ppf(0.975, len(SEEDS) - 1) * accuracies.std(ddof=1) / np.sqrt(len(SEEDS))
    assert point.upper - point.accuracy == pytest.approx(half)
    for measured, stored in ((point.size_mb, "size_mb"), (point.bops, "bops"), (point.average_bits, "average_bits")):
        assert measured == pytest.approx(np.mean([float(run[stored][0]) for run in hawq]))
    random = [run["accuracy"].values[run["solution_kind"].values == "random"].mean() for run in hawq]
    assert points["hawq: random orders"].accuracy == pytest.approx(np.mean(random))
    assert {point.series for point in points.values()} >= {
        "hawq", "interlayer", "adaquant", ROUNDING, "random widths", "reversed order"
    }  # fmt: skip
    assert np.isnan(points["uniform: 4 bit, range per channel"].lower)
    gptq = runs[6]
    for name, rounding in (("gptq: 3 bit", "gptq"), ("gptq: 3 bit, nearest", "nearest")):
        assert points[name].accuracy == float(gptq["accuracy"].sel(rounding=rounding, bit=3))
        assert points[name].bops == (gptq["macs"].values * np.array([8, *[3] * (gptq["macs"].size - 2), 8]) * 32).sum()


def test_tables_of_several_seeds_are_repetitions_where_another_method_judges_them(runs):
    """And only those: what the same runs measured at one width is one figure, however often it was measured."""
    points = {point.name: point for point in collect(runs)}
    point = points["uniform: widths of hawq, range per channel"]
    accuracies = [float(run["accuracy_given"][0]) for run in runs[7:]]
    assert (point.series, point.seeds) == (GIVEN, len(SEEDS))
    assert point.accuracy == pytest.approx(np.mean(accuracies))
    half = stats.t.ppf(0.975, len(SEEDS) - 1) * np.std(accuracies, ddof=1) / np.sqrt(len(SEEDS))
    assert point.upper - point.lower == pytest.approx(2 * half)
    assert points["uniform: 4 bit, range per channel"].seeds == 1
    one = {point.name: point for point in collect([runs[0], runs[7]])}
    assert one["uniform: widths of hawq, range per channel"].accuracy == accuracies[0]


def test_parameters_are_told_where_solutions_of_one_name_differ_in_them(bench, runs, network):
    roles = {
        "model": Model(network, mean=0.0, std=1.0),
        "data": digits(slice(0, 300)),
        "test": digits(slice(1000, 1400)),
    }
    other = bench.run("quantization.gptq", **roles, widths=(4,), calibration_samples=100, damping=0.1, progress=False)
    names = {point.name for point in collect([runs[6], other])}
    assert {"gptq: 3 bit", "gptq (damping 0.01): 4 bit", "gptq (damping 0.1): 4 bit"} <= names


def test_runs_on_other_calibration_images_are_no_repetitions(bench, network):
    """Neither with one seed, where their mean would be a figure that no run has, nor with another."""
    roles = {
        "model": Model(network, mean=0.0, std=1.0), "test": digits(slice(1000, 1400)), "widths": (4,),
        "sharings": ("channel",), "act_bits": 4, "store_width": 4, "progress": False,
    }  # fmt: skip
    parts = [(slice(0, 300), 0), (slice(300, 308), 0), (slice(308, 316), 1)]
    found = [bench.run("quantization.uniform", **roles, data=digits(part), seed=seed) for part, seed in parts]
    points = collect(found)
    assert sorted(point.accuracy for point in points) == sorted(float(run["accuracy"][0, 0]) for run in found)
    assert [point.seeds for point in points] == [1, 1, 1]
    assert all(point.name.startswith("uniform (data Dataset (sample ") for point in points)
    assert len({point.name for point in points}) == 3


def test_layers_that_one_run_leaves_alone_count_at_full_precision(runs):
    """As BiPer leaves the first and last: a run that names three of five layers has the others at 32 bits."""

    class Fewer:
        method, seed, record = "quantization.biper", 0, runs[0].record

        def __contains__(self, name):
            return name in runs[0]

        def __getitem__(self, name):
            found = runs[0][name]
            return found.isel(layer=slice(1, -1)) if "layer" in found.dims else found

    whole, mine = runs[0]["parameter_count"].values, slice(1, -1)
    (point,) = [point for point in collect([runs[0], Fewer()]) if point.name == "biper: stored model"]
    bits = runs[0]["bits"].values.astype(float)
    bits[[0, -1]] = 32
    assert point.size_mb == pytest.approx((whole * bits).sum() / 8e6)
    assert point.average_bits == pytest.approx((whole * bits).sum() / whole.sum())
    inputs = np.where(np.arange(len(bits)) % (len(bits) - 1) == 0, 32, runs[0]["input_bits"].values)
    assert point.bops == pytest.approx((runs[0]["macs"].values * bits * inputs).sum())
    assert whole[mine].sum() < whole.sum()


@pytest.mark.parametrize("act_bits", [None, 4, 32])
@pytest.mark.parametrize("fixed", [None, 8])
def test_inputs_have_the_widths_that_the_methods_count_with(act_bits, fixed):
    bits = np.array([8, 2, 4, 8])
    places = np.zeros(4, dtype=np.int64)
    if fixed:
        places[[0, -1]] = fixed
    costs = Costs(np.ones(4, dtype=np.int64), np.ones(4, dtype=np.int64), np.array([2, 4, 8]), places, act_bits)
    found = input_widths(bits, "weight" if act_bits is None else act_bits, fixed)
    np.testing.assert_array_equal(found, costs.input_bits(bits))


def test_the_comparison_of_the_family_is_drawn_saved_and_says_what_matters(bench, runs, tmp_path: Path):
    shown = bench.compare(runs).report()
    data = shown.data
    front = data.where(data["pareto"], drop=True).sortby("size_mb")
    assert (np.diff(front["accuracy"]) > 0).all()
    for view in shown.report.views:
        assert static.svg(resolve(view, shown.result))
    assert [view.title for view in shown.report.views] == ["Accuracy against size", "Accuracy against bit operations"]
    page = shown.save(tmp_path / "frontier.html").read_text(encoding="utf-8")
    assert all(run.id in page for run in runs)
    assert "<svg" in page
    assert 'src="http' not in page
    assert "quantization, side by side" in shown._repr_html_()
    full = float(runs[0]["accuracy_full_precision"])
    keeping = data.where(data["accuracy"] >= full - 0.01, drop=True)
    smallest = str(keeping["solution"].values[int(keeping["size_mb"].values.argmin())])
    assert f" is {smallest}: " in shown.report.summary
    # Drawn are those near full precision; the front is numbered in order of size and its names are in the caption.
    view = shown.report.views[0]
    drawn = data.sel(**view.select) if view.select else data
    assert ((drawn["accuracy"] >= full - NEAR) | (drawn["series"] == RANDOM)).all() or not view.select
    assert (drawn["series"] == RANDOM).any()
    front = front.isel(solution=front["near"].values.astype(bool))
    numbered = front["pareto_number"].values.tolist()
    assert numbered == [str(place + 1) for place in range(len(numbered))]
    assert all(
        f"{number} {name}" in view.caption for number, name in zip(numbered, front["solution"].values, strict=True)
    )


def test_where_everything_has_collapsed_everything_is_drawn():
    """Not random widths alone, of which there is one point for every way to draw them."""
    accuracy, series = np.array([0.3, 0.2, 0.25, 0.28]), np.array(["interlayer", RANDOM, RANDOM, RANDOM])
    assert _near(accuracy, series, 0.9).all()
    assert _near(accuracy, series, 0.3).all()
    assert _near(np.array([0.9, 0.9, 0.9, 0.3, 0.3]), np.array(["hawq"] * 4 + [RANDOM]), 0.9).tolist() == [True] * 3 + [
        False, True
    ]  # fmt: skip


def test_runs_that_cannot_be_compared_are_refused(bench, network, runs):
    other = bench.run(
        "quantization.uniform", model=Model(network, mean=0.0, std=1.0), data=digits(slice(0, 300)), act_bits=32,
        widths=(4,), sharings=("channel",), progress=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="report on the same images"):
        bench.compare([runs[0], other]).report()
    changed = SmallCNN(10, width=4)
    third = bench.run(
        "quantization.uniform", model=Model(changed, mean=0.0, std=1.0), data=digits(slice(0, 300)), act_bits=32,
        test=digits(slice(1000, 1400)), widths=(4,), sharings=("channel",), progress=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="2 models"):
        bench.compare([runs[0], third]).report()


def test_families_without_a_comparison_and_mixed_families_are_named(bench, runs):
    scores = bench.run("calibration.temperature", data=runs[0], progress=False)
    with pytest.raises(InputError, match="'calibration'"):
        bench.compare([scores]).report()
    assert len(bench.compare([runs[0], scores]).report().runs) == 1
    with pytest.raises(InputError, match=r"what bench\.compare returned"):
        bench.compare(runs).isel(run=[0]).report()
