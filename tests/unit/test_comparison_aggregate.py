"""Repetitions with several seeds as one: who belongs together, and the numbers against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from workbench import Workbench
from workbench.errors import InputError
from workbench.host import Host

from unit.store_cases import add, new_store


@pytest.fixture
def bench(tmp_path):
    return Workbench(new_store(tmp_path), Host(found=[]))


def finished(bench: Workbench, seed: int = 0, metrics: dict[str, float] | None = None, **changes) -> str:
    """A complete run that found these metrics."""
    listed = [
        {"name": name, "value": value, "direction": "higher", "unit": "%"}
        for name, value in (metrics or {"accuracy": 0.5}).items()
    ]
    report = {"summary": "", "metrics": listed, "tables": [], "views": [], "notes": []}
    values = {"inputs": {"data": {"kind": "data", "label": "digits", "digest": "d" * 8}}, "params": {"bits": 4}}
    return add(bench.store, seed=seed, report=report, **values | changes)


def of_run(run: str, variable: str = "logit", **changes) -> dict:
    return {"kind": "data", "label": f"{run}[{variable}]", "digest": f"of {run}", "runs": [run]} | changes


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_mean_deviation_and_interval_are_those_of_scipy(bench, level, count):
    values = np.random.default_rng(count).normal(0.9, 0.02, count)
    runs = [finished(bench, seed, {"accuracy": float(value), "size": 3.0}) for seed, value in enumerate(values)]
    found = bench.aggregate(runs, level=level)
    assert dict(found.sizes) == {"group": 1}
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(level)
    got = [found[f"accuracy{part}"].item() for part in ("", "_std", "_lower", "_upper")]
    np.testing.assert_allclose(got, [values.mean(), stats.tstd(values), *expected], rtol=1e-12)
    assert found["accuracy_n"].item() == count
    assert [found[f"size{part}"].item() for part in ("", "_std", "_lower", "_upper")] == [3.0, 0.0, 3.0, 3.0]
    assert found["accuracy"].attrs == {"unit": "%", "direction": "higher"}
    assert found.attrs["level"] == level


def test_the_interval_covers_the_truth_as_often_as_it_says(bench):
    from workbench.comparison import _summary

    generator = np.random.default_rng(0)
    samples = generator.normal(0.7, 0.1, (4000, 4))
    inside = sum(low <= 0.7 <= high for _, _, low, high in (_summary(sample, 0.9) for sample in samples))
    low, high = stats.binomtest(3600, 4000, 0.9).proportion_ci(0.999)
    assert low <= inside / 4000 <= high


def test_runs_that_differ_in_anything_but_the_seed_are_other_groups(bench):
    runs = [finished(bench, seed, params={"bits": bits}) for bits in (4, 8) for seed in (1, 0, 2)]
    others = [
        finished(bench, method_version="2"),
        finished(bench, precision="float64"),
        finished(bench, method_code="c0de"),
        finished(bench, inputs={"data": {"kind": "data", "label": "photos", "digest": "other"}}),
    ]
    found = bench.aggregate([bench[run] for run in runs + others])
    assert found["accuracy_n"].values.tolist() == [3, 3, 1, 1, 1, 1]
    assert found["params.bits"].values.tolist() == [4, 8, 4, 4, 4, 4]
    assert found["inputs.data"].values.tolist() == ["digits"] * 5 + ["photos"]
    assert found["group"].values.tolist() == [
        "sample.test bits=4 data=digits",
        "sample.test bits=8 data=digits",
        *(f"sample.test bits=4 data=digits #{number}" for number in (2, 3, 4)),
        "sample.test bits=4 data=photos",
    ]
    assert found["seeds"].values.tolist() == ["0 1 2", "0 1 2", "0", "0", "0", "0"]
    assert found["runs"].values[0].split() == [runs[1], runs[0], runs[2]]


def test_one_run_has_a_mean_and_nothing_else(bench):
    found = bench.aggregate([finished(bench)])
    assert (found["accuracy"].item(), found["accuracy_n"].item()) == (0.5, 1)
    assert all(math.isnan(found[f"accuracy_{part}"].item()) for part in ("std", "lower", "upper"))


def test_evaluations_of_models_trained_with_several_seeds_are_repetitions(bench):
    trained = {(bits, seed): finished(bench, seed, params={"bits": bits}) for bits in (4, 8) for seed in range(3)}
    evaluations = [
        finished(bench, 0, {"accuracy": 0.1 * bits + 0.01 * seed}, params={}, inputs={"data": of_run(run)})
        for (bits, seed), run in trained.items()
    ]
    other_variable = finished(bench, params={}, inputs={"data": of_run(trained[4, 0], "score")})
    found = bench.aggregate([*evaluations, other_variable])
    assert found["accuracy_n"].values.tolist() == [3, 3, 1]
    np.testing.assert_allclose(found["accuracy"].values[:2], [0.41, 0.81])
    assert found["inputs.data"].values.tolist() == [
        "sample.test(bits=4)[logit]",
        "sample.test(bits=8)[logit]",
        "sample.test(bits=4)[score]",
    ]
    assert found["seeds"].values.tolist()[:2] == ["0/0 0/1 0/2"] * 2


def test_evaluations_of_one_trained_model_are_one_repetition_of_its_training(bench):
    generator = np.random.default_rng(0)
    trained = [finished(bench, seed, params={"bits": 4}) for seed in range(3)]
    values = generator.random((3, 5))
    values[:, 0] += 10.0  # an unbalanced group shows the order of averaging
    evaluations = [
        [
            finished(bench, seed, {"accuracy": float(value)}, params={}, inputs={"data": of_run(run)})
            for seed, value in enumerate(row[: 5 - number])
        ]
        for number, (run, row) in enumerate(zip(trained, values, strict=True))
    ]
    found = bench.aggregate([run for row in evaluations for run in row])
    means = [row[: 5 - number].mean() for number, row in enumerate(values)]
    expected = stats.ttest_1samp(means, 0.0).confidence_interval(0.95)
    got = [found[f"accuracy{part}"].item() for part in ("", "_std", "_lower", "_upper")]
    np.testing.assert_allclose(got, [np.mean(means), stats.tstd(means), *expected], rtol=1e-12)
    assert (found["accuracy_n"].item(), found["replicates"].item()) == (3, "data")
    assert len(found["runs"].item().split()) == 12
    one = bench.aggregate(evaluations[0])
    assert (one["accuracy_n"].item(), one["replicates"].item()) == (5, "seed")
    np.testing.assert_allclose(one["accuracy_std"].item(), stats.tstd(values[0]), rtol=1e-12)


def test_the_earliest_runs_that_differ_are_the_repetitions(bench):
    """Train twice, quantise each with two seeds, evaluate each with two: two independent repetitions, not eight."""
    evaluations = []
    for train in range(2):
        trained = finished(bench, train, method="sample.train")
        for quantise in range(2):
            quantised = finished(bench, quantise, method="sample.quantise", inputs={"model": of_run(trained)})
            evaluations += [finished(bench, seed, inputs={"model": of_run(quantised)}) for seed in range(2)]
    found = bench.aggregate(evaluations)
    assert (found["accuracy_n"].item(), found["replicates"].item()) == (2, "model/model")


def test_of_earlier_runs_that_differ_independently_the_fewest_count(bench):
    networks = [finished(bench, seed, method="sample.train") for seed in range(2)]
    samples = [finished(bench, seed, method="sample.data") for seed in range(3)]

    def evaluated(pairs):
        runs = [finished(bench, inputs={"model": of_run(a), "data": of_run(b)}) for a, b in pairs]
        found = bench.aggregate(runs)
        return found["accuracy_n"].item(), found["replicates"].item()

    assert evaluated([(a, b) for a in networks for b in samples]) == (2, "model")
    assert evaluated(zip(networks, samples[:2], strict=True)) == (2, "data")
    assert evaluated([(networks[0], b) for b in samples]) == (3, "data")


def test_what_was_derived_by_hand_or_whose_maker_is_gone_counts_by_content(bench):
    makers = [finished(bench, seed) for seed in range(2)]
    derived = [finished(bench, seed, inputs={"data": of_run(run, label="2 arrays")}) for seed, run in enumerate(makers)]
    assert bench.aggregate(derived)["accuracy_n"].values.tolist() == [1, 1]
    same = [finished(bench, seed, inputs={"data": of_run("gone", digest="same")}) for seed in range(3)]
    assert bench.aggregate(same)["accuracy_n"].values.tolist() == [3]
    unknown = [
        finished(bench, seed, inputs={"data": {"kind": "model", "label": "", "digest": None}}) for seed in range(2)
    ]
    assert bench.aggregate(unknown)["accuracy_n"].values.tolist() == [1, 1]


def test_the_same_computed_again_is_no_repetition(bench):
    first, again = finished(bench, 0, {"accuracy": 0.25}), finished(bench, 0, {"accuracy": 0.5})
    other = finished(bench, 1, {"accuracy": 0.75})
    bench.store.index.put(bench[first].record.replace(started="2020-01-01T00:00:00.000Z"))
    found = bench.aggregate([again, first, other])
    assert (found["accuracy"].item(), found["accuracy_n"].item()) == (0.625, 2)
    assert found["runs"].item().split() == [again, other]


def test_missing_and_infinite_metrics_are_not_hidden(bench):
    reported = [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": "__nan__"}, {"b": 2.0}]
    runs = [finished(bench, seed, metrics) for seed, metrics in enumerate(reported)]
    found = bench.aggregate(runs)
    assert (found["a"].item(), found["a_n"].item()) == (2.0, 2)
    assert math.isnan(found["b"].item())
    assert found["b_n"].item() == 3


def test_only_complete_runs_count(bench):
    from unit.store_cases import record

    failed = bench.store.begin(record()).fail()
    bench.store.index.put(failed)
    running = bench.store.begin(record()).record
    bench.store.index.put(running)
    with pytest.raises(InputError, match="at least one complete run, got 2 runs, none of them complete"):
        bench.aggregate([failed.id, running.id])
    assert bench.aggregate([failed.id, finished(bench)])["accuracy_n"].values.tolist() == [1]
    with pytest.raises(InputError, match="level"):
        bench.aggregate([finished(bench)], level=95)


def test_runs_forged_to_be_their_own_inputs_end(bench):
    first = finished(bench)
    second = finished(bench, inputs={"data": of_run(first)})
    record = bench[first].record
    bench.store.index.put(record.replace(inputs={"data": of_run(second)}))
    assert bench.aggregate([first, second])["accuracy_n"].sum().item() == 2


def test_over_the_seeds_of_a_real_method(tmp_path, images):
    import workbench

    from unit import sample_methods

    host = Host(found=[])
    host.register(sample_methods.MeanImage)
    bench = workbench.open(tmp_path / "real", host=host)

    def mean(**options):
        return bench.run("sample.mean_image", progress=False, **options)

    found = bench.aggregate([mean(data=images, scale=scale, seed=seed) for scale in (0.5, 1.0) for seed in (0, 1, 2)])
    assert found["brightness_n"].values.tolist() == [3, 3]
    np.testing.assert_allclose(found["brightness"].values, [0.5 * images.mean(), images.mean()], rtol=1e-6)
    assert found["params.scale"].values.tolist() == [0.5, 1.0]
