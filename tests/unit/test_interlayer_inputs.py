"""Inter-layer runs whose layers' inputs are rounded too, whose times were measured, and whose first and last layer stay."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from scipy.stats import spearmanr
from torch import nn
from workbench import InputError, Inputs, Model, SkippedError
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit

from unit.recording_out import RecordingOut, check_report, record
from unit.stored_model_cases import first_digits
from workbench_quantization.hawq_images import split_roles
from workbench_quantization.interlayer import Interlayer, Params
from workbench_quantization.interlayer_measure import input_sensitivity
from workbench_quantization.interlayer_report import report
from workbench_quantization.interlayer_scores import interaction_error, step_down
from workbench_quantization.interlayer_study import Study, layer_costs, prepare
from workbench_quantization.quantizer import quantise_weight, weights_replaced

QUICK: dict[str, Any] = {
    "probes": 2,
    "random_orders": 1,
    "subsets": 4,
    "calibration_samples": 64,
    "search_samples": 100,
}


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return first_digits(400)


@pytest.fixture(scope="module")
def model(data: xr.Dataset) -> Model:
    torch.manual_seed(0)
    network = Model(SmallCNN(channels=1, n_classes=10, width=4), input_shape=(1, 8, 8))
    image, label = (torch.from_numpy(data[name].values) for name in ("image", "label"))
    fit(network, image, label, Recipe(epochs=6, batch_size=32), generator=torch.Generator().manual_seed(0))
    return network.eval()


def study_of(network: nn.Module, data: xr.Dataset, **params: Any) -> Study:
    roles = Inputs({"model": network, "data": data, "test": data})
    return prepare(roles, Params(**QUICK | params), RecordingOut(Interlayer))


class Shared(nn.Module):
    """An input that two layers take and that is changed in place between them, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.sin(self.first(image.flatten(1)))
        late = torch.tanh(self.twice(hidden))
        hidden += 1.0
        return self.head(torch.tanh(self.twice(late)) + hidden)


def test_what_rounding_inputs_costs_is_summed_over_images_one_by_one(data: xr.Dataset) -> None:
    """Gradients image by image through leaves that stand for the inputs, errors by a rounding written out."""
    torch.manual_seed(0)
    network = Shared().double().eval()
    study = study_of(network, data, widths=(16, 4, 2), batch=24)
    gradient, lost = input_sensitivity(study)

    image, label = (torch.cat(parts) for parts in zip(*study.batches, strict=True))
    squares, errors, entries = np.zeros(3), np.zeros((3, 2)), np.zeros(3)
    ranges = study.subject.inputs.ranges.detach().numpy()
    for picture, target in zip(image, label, strict=True):
        first = picture.flatten()[None].requires_grad_(True)
        shown = torch.sin(network.first(first)).detach().requires_grad_(True)  # to the first call of `twice`
        beside = torch.sin(network.first(first)) + 1.0
        late = torch.tanh(network.twice(shown)).detach().requires_grad_(True)  # to the second
        middle = torch.tanh(network.twice(torch.tanh(network.twice(torch.sin(network.first(first))))))
        last = (middle + beside).detach().requires_grad_(True)

        def loss(logit: torch.Tensor, target: torch.Tensor = target) -> torch.Tensor:
            return F.cross_entropy(logit, target[None])

        whole = loss(network.head(middle + beside))
        by_first = torch.autograd.grad(whole, first, retain_graph=True)[0]
        of_shown = loss(network.head(torch.tanh(network.twice(torch.tanh(network.twice(shown)))) + beside.detach()))
        of_late = loss(network.head(torch.tanh(network.twice(late)) + beside.detach()))
        by_shown, by_late = torch.autograd.grad(of_shown, shown)[0], torch.autograd.grad(of_late, late)[0]
        by_last = torch.autograd.grad(loss(network.head(last)), last)[0]
        for place, taken, slope in ((0, first, by_first), (1, shown, by_shown), (1, late, by_late), (2, last, by_last)):
            squares[place] += float(slope.square().sum())
            entries[place] += taken.numel()
            for column, bits in enumerate((4, 2)):
                low, high = ranges[place]
                if low >= 0:
                    step, least, most = high / (2**bits - 1), 0, 2**bits - 1
                else:
                    step = max(-low, high) / (2 ** (bits - 1) - 1)
                    least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
                values = taken.detach().numpy()
                rounded = np.clip(np.round(values / step), least, most) * step
                errors[place, column] += float(((rounded - values) ** 2).sum())
    np.testing.assert_allclose(gradient, squares / len(image), rtol=1e-9)
    np.testing.assert_allclose(lost, errors / entries[:, None], rtol=1e-6)


@pytest.fixture(scope="module")
def done(data: xr.Dataset, model: Model) -> Any:
    return record(
        Interlayer, {"model": model, "data": data, "test": data}, widths=(8, 4, 2), granularity="layer",
        estimator="differences", first_last="highest", targets=(0.98, 0.8), **QUICK,
    )[1]  # fmt: skip


@pytest.fixture(scope="module")
def shown(done: Any) -> Any:
    return check_report(Interlayer, done)


def test_curvature_has_a_part_of_the_weights_and_one_of_the_inputs(done: Any, data: xr.Dataset, model: Model) -> None:
    size, trace = done["parameter_count"].values, done["trace"].values
    weights = trace[:, None] / (2 * size[:, None]) * done["weight_error"].values
    inputs = done["input_gradient"].values[:, None] * done["input_error"].values / 2
    np.testing.assert_allclose(done["hessian_sensitivity"].values, weights + inputs)
    assert (inputs > 0).all()
    np.testing.assert_allclose(
        done["layer_curvature"].values, done["hessian_sensitivity"].values * done["hessian_scale"].values
    )
    for alone in (32, 4):  # inputs that keep their width cost nothing when a layer goes down
        _, run = record(
            Interlayer, {"model": model, "data": data, "test": data}, widths=(8, 4), act_bits=alone, estimator="products",
            **QUICK,
        )  # fmt: skip
        assert "input_error" not in run
        weights = run["trace"].values[:, None] / (2 * size[:, None]) * run["weight_error"].values
        np.testing.assert_allclose(run["hessian_sensitivity"].values, weights)


def test_first_and_last_layer_stay_where_they_are_to_stay(done: Any, shown: Any) -> None:
    for bits in done["solution_bits"].values.reshape(-1, done["bits"].size):
        assert bits[[0, -1]].tolist() == [8, 8]
    assert (done["solution_bits"].values < 8).any()
    assert not done["subset_layer"].values[:, [0, -1]].any()
    for name in ("interaction", "interaction_products", "interaction_error"):
        assert not done[name].values[[0, -1]].any()
        assert not done[name].values[:, [0, -1]].any()
    count = done["bits"].size
    places = done["place"].values
    assert (np.sort(places, axis=2) == np.arange(1, count + 1)).all()
    assert (places[..., [0, -1]] >= count - 1).all()
    order = done["order"].values
    assert (np.take_along_axis(places, order.astype(int), axis=2) == np.arange(1, count + 1)).all()
    assert any("First and last layer stay at 8 bits" in note for note in shown.notes)


def test_interactions_and_their_errors_are_those_of_losses_image_by_image(data: xr.Dataset, model: Model) -> None:
    """J_ij and its standard error with weights rounded by hand; the whole network at the low width likewise."""
    _, run = record(
        Interlayer, {"model": model, "data": data, "test": data}, widths=(16, 3), granularity="layer", act_bits=32,
        estimator="differences", **QUICK,
    )  # fmt: skip
    study = study_of(model, data, widths=(16, 3), granularity="layer", act_bits=32)
    image, label = (torch.cat(parts) for parts in zip(*study.batches, strict=True))
    layers = [model.get_submodule(str(name)) for name in run["bits"]["layer"].values]

    def losses(*lowered: int) -> np.ndarray:
        weights = {layers[i]: quantise_weight(layers[i].weight.detach(), 3, granularity="layer") for i in lowered}
        with weights_replaced(weights), torch.no_grad():
            return F.cross_entropy(model(image).double(), label, reduction="none").numpy()

    base = losses()
    for i, j in itertools.combinations(range(len(layers)), 2):
        each = losses(i, j) - losses(i) - losses(j) + base
        assert float(run["interaction"][i, j, 0]) == pytest.approx(each.mean(), abs=1e-6)
        error = each.std(ddof=1) / np.sqrt(len(each))
        assert float(run["interaction_error"][i, j, 0]) == pytest.approx(error, rel=1e-3, abs=1e-7)
        assert interaction_error(losses(i, j), losses(i), losses(j), base) == pytest.approx(error)
    lost = losses(*np.flatnonzero(run["subset_layer"].values[0]))
    assert float(run["subset_damage"][0]) == pytest.approx((lost - base).mean(), abs=1e-6)
    image, label = (torch.cat(parts) for parts in zip(*study.others, strict=True))  # other images from here on
    lost = losses(*np.flatnonzero(run["subset_layer"].values[0]))
    assert float(run["subset_damage_elsewhere"][0]) == pytest.approx((lost - losses()).mean(), abs=1e-6)
    image, label = (torch.cat(parts) for parts in zip(*study.batches, strict=True))
    assert float(run["damage_all"][0]) == pytest.approx((losses(*range(len(layers))) - base).mean(), abs=1e-6)
    table = next(t for t in report(run).tables if t.title.startswith("All layers at one width"))
    (row,) = table.rows
    single, pairs = run["loss_single"].values[:, 0].sum(), run["interaction"].values[..., 0].sum() / 2
    assert row[:4] == (3, *(float(f"{v:.3g}") for v in (float(run["damage_all"][0]), single, single + pairs)))


def test_predictions_are_judged_on_images_that_nothing_was_measured_on(
    done: Any, data: xr.Dataset, model: Model
) -> None:
    study = study_of(model, data)
    shown, other = (torch.cat([image for image, _ in batches]) for batches in (study.batches, study.others))
    assert len(shown) == len(other) == 64
    positions = split_roles(
        Inputs({"data": data, "test": data}), RecordingOut(Interlayer), report_fraction=0.3, calibration_samples=64
    ).calibration.index
    assert not set(positions.tolist()) & set(study.search.index.tolist())
    found = report(done)
    metrics = {metric.name: metric.value for metric in found.metrics}
    for where in ("", "_elsewhere"):
        true = done[f"subset_damage{where}"].values
        for row, name in zip(done["subset_prediction"].values, ("single_layers", "with_pairs"), strict=True):
            assert metrics[f"rank_correlation_{name}{where}"] == pytest.approx(spearmanr(row, true).statistic)
            assert metrics[f"prediction_error_{name}{where}"] == pytest.approx(np.sqrt(((row - true) ** 2).mean()))
    assert (
        f"on other images is predicted with a rank correlation of {metrics['rank_correlation_with_pairs_elsewhere']:.2f}"
        in found.summary
    )


def test_walking_one_by_one_stops_at_the_first_that_fails(done: Any) -> None:
    metric = [1.0, 0.9, 0.4, 0.9]
    number, steps = step_down(lambda tried: metric[tried - 1], 4, 0.5)
    assert (number, [step.tried for step in steps], [step.passed for step in steps]) == (
        2,
        [1, 2, 3],
        [True, True, False],
    )
    assert step_down(lambda tried: 1.0, 3, 0.5)[0] == 3
    assert step_down(lambda tried: 1.0, 0, 0.5) == (0, [])

    names = done["order"]["order_name"].values.tolist()
    mine = done["step_order"].values == names.index("augmented, one by one")
    tried, passed = done["step_tried"].values[mine], done["step_passed"].values[mine]
    runs = np.split(np.arange(len(tried)), np.flatnonzero(tried == 1)[1:])
    for rows in runs:
        assert tried[rows].tolist() == list(range(1, len(rows) + 1))
        assert passed[rows[:-1]].all()
    np.testing.assert_array_equal(
        done["order"].values[names.index("augmented")], done["order"].values[names.index("augmented, one by one")]
    )


def test_measured_times_take_the_place_of_the_roofline(data: xr.Dataset, model: Model) -> None:
    names = [block.name for block in study_of(model, data).subject.blocks]
    rng = np.random.default_rng(0)
    times = {name: tuple(np.sort(rng.random(3))[::-1].tolist()) for name in names}
    _, run = record(
        Interlayer, {"model": model, "data": data, "test": data}, widths=(16, 8, 4), act_bits=32, estimator="products",
        latency=times, **QUICK,
    )  # fmt: skip
    table = np.array([times[name] for name in names])
    np.testing.assert_allclose(run["layer_cost"].values, table / table[:, 0].sum())
    bits = run["solution_bits"].values[0, 0]
    taken = sum(times[name][(16, 8, 4).index(width)] for name, width in zip(names, bits.tolist(), strict=True))
    assert float(run["cost"][0, 0]) == pytest.approx(taken / table[:, 0].sum())
    notes = report(run).notes
    assert any("sum of the times given" in note for note in notes)
    assert not any("roofline" in note for note in notes)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"a": (3.0, 2.0, 1.0)}, "'b'"),
        ({"a": (3.0, 2.0, 1.0), "b": (1.0, 2.0)}, "3 numbers for 'b'"),
        ({"a": (1.0, 2.0, 3.0), "b": (3.0, 2.0, 1.0)}, "do not fall"),
        ({"a": (3.0, 2.0, -1.0), "b": (3.0, 2.0, 1.0)}, "0 or more"),
        ({"a": (0.0, 0.0, 0.0), "b": (0.0, 0.0, 0.0)}, "above 0"),
    ],
)
def test_times_that_do_not_fit_are_refused(times: dict[str, Any], message: str) -> None:
    params = Params(widths=(16, 8, 4), latency=times)
    with pytest.raises(InputError, match=message):
        layer_costs(["a", "b"], np.ones(2), np.ones(2), params)


def test_times_count_only_where_time_is_saved() -> None:
    with pytest.raises(pydantic.ValidationError, match="latency"):
        Params(latency={"a": (2.0, 2.0, 1.0)}, cost="size")


def test_two_layers_between_the_first_and_the_last_are_needed(data: xr.Dataset) -> None:
    three = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 10)
    ).eval()
    with pytest.raises(SkippedError, match="first_last='searched'"):
        study_of(three, data, first_last="highest")


def test_the_report_shows_both_estimators_and_warns_of_noise(done: Any, shown: Any) -> None:
    titles = [view.title for view in shown.views]
    for title in (
        "Interactions at 2 bits by both estimators",
        "Search along the augmented order",
        "Accuracy against cost at a target of 80.00%",
    ):
        assert title in titles
    pairs = [tuple(str(pair).split(", ")) for pair in done["pair_products"]["pair"].values]
    inner = done["bits"]["layer"].values[1:-1].tolist()
    assert pairs == list(itertools.combinations(inner, 2))
    for name, flat in (("interaction", "pair_differences"), ("interaction_products", "pair_products")):
        found = [done[name].sel(layer=first, layer_2=second).values for first, second in pairs]
        np.testing.assert_array_equal(np.array(found), done[flat].values)
    told = next(metric.value for metric in shown.metrics if metric.name == "interactions_told")
    interaction, error = done["interaction"].values[1:-1, 1:-1, -1], done["interaction_error"].values[1:-1, 1:-1, -1]
    upper = np.triu_indices(len(error), 1)
    assert told == pytest.approx((np.abs(interaction) > 2 * error)[upper].mean())
    assert any("two standard errors" in note for note in shown.notes) == (told < 0.2)
