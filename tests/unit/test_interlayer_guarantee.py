"""What an inter-layer run says of its target: relative to the model as it came, and missed where nothing can meet it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from workbench import Model
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit, predict_all

from unit.recording_out import record
from unit.stored_model_cases import first_digits
from workbench_quantization.interlayer import Interlayer
from workbench_quantization.interlayer_measure import Sensitivity
from workbench_quantization.interlayer_report import report
from workbench_quantization.interlayer_run import rank
from workbench_quantization.interlayer_scores import fit_scale

QUICK: dict[str, Any] = {"probes": 2, "random_orders": 1, "subsets": 4, "calibration_samples": 32, "search_samples": 100,
                         "estimator": "products"}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return first_digits(400)


@pytest.fixture(scope="module")
def model(data: xr.Dataset) -> Model:
    torch.manual_seed(0)
    network = Model(SmallCNN(channels=1, n_classes=10), input_shape=(1, 8, 8))
    image, label = (torch.from_numpy(data[name].values) for name in ("image", "label"))
    fit(network, image, label, Recipe(epochs=6, batch_size=32), generator=torch.Generator().manual_seed(0))
    return network.eval()


def test_the_reference_of_a_target_has_neither_weights_nor_inputs_rounded(data: xr.Dataset, model: Model) -> None:
    inputs = {"model": model, "data": data, "test": data}
    full = [
        float(record(Interlayer, inputs, widths=(16, 8), act_bits=bits, **QUICK)[1]["search_accuracy_full_precision"])
        for bits in (32, 2)
    ]
    assert full[0] == full[1]


def test_a_target_that_the_highest_width_misses_is_said_to_be_missed(data: xr.Dataset, model: Model) -> None:
    _, run = record(
        Interlayer,
        {"model": model, "data": data, "test": data},
        widths=(3, 2),
        granularity="layer",
        act_bits=2,
        targets=(1.0, 0.5),
        **QUICK,
    )
    full, start = float(run["search_accuracy_full_precision"]), float(run["search_accuracy_highest"])
    found = report(run)
    assert 0.5 * full < start < full
    assert found.summary.startswith("The target of 100.00% is missed with every layer at 3 bits")
    assert any("full precision: 100.00% cannot be met" in note for note in found.notes)


def test_curvature_alone_keeps_its_order_where_damages_are_noise() -> None:
    class Recorder:
        written: dict[str, Any] = {}

        def rng(self, _name: str) -> np.random.Generator:
            return np.random.default_rng(0)

        def write(self, name: str, values: Any) -> None:
            self.written[name] = values

        coordinate = write

    params = SimpleNamespace(interaction_weight=1.0, pair_mode="signed", random_orders=1)
    study = SimpleNamespace(params=params, out=Recorder(), lower=(8,), count=3, free=np.ones(3, dtype=bool))
    curvature, noise = np.array([[3.0], [1.0], [2.0]]), np.array([[-1e-6], [-1e-6], [0.0]])
    scale = fit_scale(curvature[:, 0], noise[:, 0])
    assert scale == 0
    orders = rank(study, Sensitivity(curvature * scale, curvature, curvature, noise, np.zeros((3, 3, 1))))  # type: ignore[arg-type]
    assert orders["hessian"].tolist() == [[1, 2, 0]]


def test_a_target_that_is_met_is_not_said_to_be_missed(data: xr.Dataset, model: Model) -> None:
    inputs = {"model": model, "data": data, "test": data}
    _, run = record(Interlayer, inputs, widths=(16, 8), act_bits=32, pair_mode="sequential", **QUICK)
    found = report(run)
    image = torch.from_numpy(data["image"].values)
    right = predict_all(model, image)[0].argmax(1).numpy() == data["label"].values
    assert float(run["accuracy_full_precision"]) == pytest.approx(right.mean())
    assert found.summary.startswith("At a target")
    assert not any("cannot be met" in note for note in found.notes)
    # Where the order is built layer by layer the table's places are that order's.
    layers = next(table for table in found.tables if table.title.startswith("Layers at"))
    place = [row[layers.columns.index("place in the order")] for row in layers.rows]
    assert [place[layer] for layer in run["order"].values[0, -1]] == list(range(1, len(place) + 1))
