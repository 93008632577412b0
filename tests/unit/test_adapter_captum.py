"""Attributions of captum as methods: closed forms on linear networks, the trap of functional ReLUs, and the curves."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional
from workbench.errors import SkippedError
from workbench.host import Host

from workbench_adapters import heat_maps
from workbench_adapters.captum import CaptumAttribution, IntegratedGradients

pytest.importorskip("captum", reason="needs the extra captum")
SIDE = 4


class Guided(CaptumAttribution):
    id = "attribution.guided_backpropagation"
    title = "Guided backpropagation by captum"
    hooks_relu = True

    def attribute(self, model, image, target, params):
        from captum.attr import GuidedBackprop

        return GuidedBackprop(model).attribute(image, target=target)


class Functional(nn.Module):
    """Two layers around `F.relu`: nothing to hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIDE**2, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.relu(self.first(x.flatten(1))))


class Untraceable(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


@pytest.fixture
def bench(tmp_path):
    return workbench.open(tmp_path / "store", host=Host(found=[]))


@pytest.fixture
def pictures() -> xr.Dataset:
    rng = np.random.default_rng(0)
    return xr.Dataset(
        {
            "image": (("sample", "channel", "y", "x"), rng.random((9, 1, SIDE, SIDE), dtype=np.float32)),
            "label": ("sample", np.arange(9) % 3),
        }
    )


def image_of(data: xr.Dataset) -> Tensor:
    return torch.from_numpy(data["image"].values)


def test_integrated_gradients_of_a_linear_model_are_weight_times_change(bench, pictures):
    torch.manual_seed(0)
    layer = nn.Linear(SIDE**2, 3)
    run = bench.run(
        IntegratedGradients, model=nn.Sequential(nn.Flatten(), layer), data=pictures, n_steps=3, baseline=0.25,
        explained="label", progress=False,
    )  # fmt: skip
    image, label = pictures["image"].values, pictures["label"].values
    weight = layer.weight.detach().numpy()[label].reshape(9, SIDE, SIDE)
    assert np.allclose(run["attribution"], weight * (image[:, 0] - 0.25), atol=1e-6)
    assert np.allclose(run["completeness_error"], 0, atol=1e-5)
    assert np.array_equal(run["target"], label)


def test_it_is_the_library_and_adds_up_better_with_more_steps(bench, pictures):
    from captum.attr import IntegratedGradients as Library

    torch.manual_seed(1)
    model = Functional().eval()
    runs = {n: bench.run(IntegratedGradients, model=model, data=pictures, n_steps=n, progress=False) for n in (3, 200)}
    image = image_of(pictures)
    target = model(image).argmax(1)
    direct, delta = Library(model).attribute(
        image, baselines=0.0, target=target, n_steps=200, return_convergence_delta=True
    )
    assert np.allclose(runs[200]["attribution"], direct[:, 0].detach(), atol=1e-5)
    assert np.allclose(runs[200]["completeness_error"], delta.abs(), atol=1e-5)
    errors = [float(run["completeness_error"].mean()) for run in runs.values()]
    assert errors[1] < 0.25 * errors[0]


def test_guided_backpropagation_sees_functional_relus(bench, pictures):
    from captum.attr import GuidedBackprop

    torch.manual_seed(2)
    model = Functional().eval()
    image = image_of(pictures)
    target = model(image).argmax(1)
    run = bench.run(Guided, model=model, data=pictures, progress=False)
    # By hand: back through the second layer, then only where the unit is on and the gradient positive.
    on = (model.first(image.flatten(1)) > 0).float()
    guided = (on * model.second.weight[target].clamp(min=0)) @ model.first.weight
    assert np.allclose(run["attribution"], guided.detach().reshape(9, SIDE, SIDE), atol=1e-6)
    # What the rewriting saves from: on the model as it is the library returns the plain gradient.
    gradient = (on * model.second.weight[target]) @ model.first.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = GuidedBackprop(model).attribute(image, target=target)
    assert torch.allclose(plain.flatten(1), gradient, atol=1e-6)
    assert not np.allclose(run["attribution"], gradient.detach().reshape(9, SIDE, SIDE), atol=1e-3)


def test_every_relu_becomes_a_module_of_its_own():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.layer = nn.ReLU(inplace=True), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.layer(self.relu(x)))
            return torch.relu(self.layer(x)) + (x - 0.1).relu()

    torch.manual_seed(0)
    model, x = Mixed(), torch.randn(5, 4)
    rewritten = heat_maps.with_relu_modules(model)
    used = [node.target for node in rewritten.graph.nodes if "relu" in str(node.target)]
    assert len(used) == len(set(used)) == 4
    assert all(
        type(rewritten.get_submodule(name)) is nn.ReLU and not rewritten.get_submodule(name).inplace for name in used
    )
    assert torch.equal(rewritten(x.clone()), model(x.clone()))


def test_a_model_that_cannot_be_rewritten_is_declined_only_where_it_matters(bench, pictures):
    torch.manual_seed(3)
    model = Untraceable().eval()
    assert heat_maps.with_relu_modules(model) is None
    with pytest.raises(SkippedError, match="ReLU modules"):
        bench.run(Guided, model=model, data=pictures, progress=False)
    assert bench.run(IntegratedGradients, model=model, data=pictures, n_steps=5, progress=False).status == "complete"


def test_curves_and_areas_of_a_classifier_that_counts_pixels():
    """P = share of the picture's mass that is left: the curve of an order is the mass it has not yet removed."""
    image = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).reshape(1, 1, 2, 2) / 10

    def probability(x: Tensor) -> Tensor:
        left = x.sum((1, 2, 3))
        return torch.stack([left, 1 - left], dim=1)

    order = heat_maps.pixel_order(image[:, 0], torch.Generator().manual_seed(0))
    assert order.tolist() == [[0, 1, 2, 3]]
    curve = heat_maps.replacement_curve(probability, image, torch.zeros_like(image), order, torch.tensor([0]), 4)
    assert torch.allclose(curve, torch.tensor([[1.0, 0.6, 0.3, 0.1, 0.0]]), atol=1e-6)
    assert float(heat_maps.area_under(curve)[0]) == pytest.approx((0.5 + 0.6 + 0.3 + 0.1) / 4)
    back = heat_maps.replacement_curve(probability, torch.zeros_like(image), image, order, torch.tensor([0]), 2)
    assert torch.allclose(back, torch.tensor([[0.0, 0.7, 1.0]]), atol=1e-6)


def test_ties_fall_by_lot_and_every_pixel_comes_once():
    order = heat_maps.pixel_order(torch.zeros(400, 2, 3), torch.Generator().manual_seed(0))
    assert (order.sort(dim=1).values == torch.arange(6)).all()
    first = np.bincount(order[:, 0].numpy(), minlength=6)
    assert first.min() > 400 / 6 - 4 * np.sqrt(400 * 5 / 36)  # four standard deviations of a fair lot


def test_the_map_of_the_decisive_pixel_beats_both_controls(bench):
    """A classifier that looks at one pixel: the map has that pixel alone, one deletion is enough."""
    rng = np.random.default_rng(1)
    image = rng.uniform(0.3, 1, (40, 1, 8, 8)).astype(np.float32)
    layer = nn.Linear(64, 2, bias=True)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 19] = 40.0
        layer.bias.copy_(torch.tensor([-6.0, 0.0]))
    data = xr.Dataset({"image": (("sample", "channel", "y", "x"), image)})
    run = bench.run(IntegratedGradients, model=nn.Sequential(nn.Flatten(), layer), data=data, n_steps=5, progress=False)
    assert (np.flatnonzero(np.abs(run["attribution"].values).sum(0)) == [19]).all()
    curve = run["deletion_curve"].values[0]
    assert (curve[1:] < 0.01).all()
    assert run.metrics["deletion_gain_over_chance"] < -0.3
    assert run.metrics["completeness_error"] < 1e-4


def test_one_picture_has_figures_and_no_intervals(bench, pictures):
    torch.manual_seed(0)
    run = bench.run(
        IntegratedGradients, model=workbench.Model(Functional().eval()), data=pictures.isel(sample=[0]),
        progress=False,
    )  # fmt: skip
    report = run.record.report
    assert report["metrics"]
    assert all(metric["interval"] is None for metric in report["metrics"])
    assert not any("nan" in str(cell) for table in report["tables"] for row in table["rows"] for cell in row)
