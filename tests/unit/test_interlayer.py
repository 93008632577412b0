"""Inter-layer runs: interactions against a dense Hessian, whole runs on a small network, and claims on CIFAR-10."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import nn
from workbench import InputError, Model
from workbench.subjects.networks import SmallCNN
from workbench.toolkit import Recipe, fit

from unit.recording_out import check_report, record
from workbench_quantization.hawq_curvature import calibration_loss
from workbench_quantization.interlayer import Interlayer, Params
from workbench_quantization.interlayer_measure import _interactions_by_products
from workbench_quantization.interlayer_report import additivity


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    import xarray as xr

    found = load_digits()
    image = (found.images[:, None] / 16).astype(np.float32)
    rows = np.random.default_rng(0).permutation(len(image))
    parts = {"data": rows[:900], "test": rows[900:]}
    return {
        name: xr.Dataset(
            {
                "image": (("sample", "channel", "y", "x"), image[index]),
                "label": (("sample",), found.target[index].astype(np.int64)),
            }
        )
        for name, index in parts.items()
    }


@pytest.fixture(scope="module")
def model(digits: dict[str, Any]) -> Model:
    torch.manual_seed(0)
    network = Model(SmallCNN(channels=1, n_classes=10), input_shape=(1, 8, 8))
    image, label = (torch.from_numpy(digits["data"][name].values) for name in ("image", "label"))
    fit(network, image, label, Recipe(epochs=4, batch_size=64), generator=torch.Generator().manual_seed(0))
    return network.eval()


@pytest.fixture(scope="module")
def done(digits: dict[str, Any], model: Model) -> Any:
    return record(
        Interlayer, {"model": model, **digits},
        widths=(8, 3, 2), targets=(0.98, 0.9), probes=10, random_orders=3, subsets=12, calibration_samples=128,
    )[1]  # fmt: skip


def test_products_are_those_of_a_dense_hessian() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    image, label = torch.rand(20, 3, dtype=torch.float64), torch.randint(2, (20,))
    layers = [network[0], network[2], network[4]]
    rounded = {layer: (layer.weight.detach() * 4).round() / 4 for layer in layers}

    class Block:
        def __init__(self, layer: nn.Linear) -> None:
            self.layers, self.weights = (layer,), [layer.weight]

    class Out:
        def track(self, items: Any, *_: Any) -> Any:
            return items

    class Fake:
        count, lower, out, free = 3, (4,), Out(), np.ones(3, dtype=bool)
        loss, batches = staticmethod(calibration_loss(network)), [(image[:8], label[:8]), (image[8:], label[8:])]
        subject = type("Subject", (), {"blocks": [Block(layer) for layer in layers]})

        def all_at(self, width: int) -> int:
            return width

        def weights(self, _bits: int) -> Any:
            return rounded

    interaction, curved = _interactions_by_products(Fake())  # type: ignore[arg-type]

    sizes = [layer.weight.numel() for layer in layers]
    flat = torch.cat([layer.weight.detach().flatten() for layer in layers])

    def loss(weights: torch.Tensor) -> torch.Tensor:
        parts = weights.split(sizes)
        named = {
            f"{2 * i}.weight": part.view_as(layer.weight)
            for i, (part, layer) in enumerate(zip(parts, layers, strict=True))
        }
        return nn.functional.cross_entropy(torch.func.functional_call(network, named, (image,)), label)

    dense = torch.autograd.functional.hessian(loss, flat)
    step = torch.cat([(rounded[layer] - layer.weight.detach()).flatten() for layer in layers])
    ends = np.cumsum([0, *sizes])
    spans = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
    for i, j in itertools.product(range(3), repeat=2):
        expected = float(step[spans[i]] @ dense[spans[i], spans[j]] @ step[spans[j]])
        if i == j:
            assert curved[i, 0] == pytest.approx(expected / 2, rel=1e-6)
            assert interaction[i, i, 0] == 0
        else:
            assert interaction[i, j, 0] == pytest.approx(expected, rel=1e-6)


def test_every_solution_holds_its_target_on_the_search_images(done: Any) -> None:
    passed, tried = done["step_passed"].values, done["step_tried"].values
    order, target, width = (done[f"step_{name}"].values for name in ("order", "target", "width"))
    bits, full = done["solution_bits"].values, float(done["search_accuracy_full_precision"])
    targets = done["accuracy"]["target"].values
    widths = [8, 3, 2]
    for row, column in itertools.product(range(len(done["order"])), range(len(targets))):
        for step, lower in enumerate(widths[1:]):
            mine = (order == row) & (target == column) & (width == lower)
            kept = int((bits[row, column] <= lower).sum())
            assert kept == max([0, *tried[mine & passed]])
            # What was lowered is a prefix of the order among the layers that were lowered before.
            candidates = [i for i in done["order"].values[row, step] if bits[row, column][i] <= widths[step]]
            assert all(bits[row, column][i] <= lower for i in candidates[:kept])
        assert (
            done["step_accuracy"].values[(order == row) & (target == column) & passed] >= targets[column] * full
        ).all()
    stricter, looser = done["cost"].values[:, 0], done["cost"].values[:, 1]
    assert np.median(stricter) >= np.median(looser)


def test_the_exact_subset_costs_no_more_than_the_augmented_solution(done: Any) -> None:
    assert str(done["accuracy"]["solution"].values[-1]) == "exact pairs"
    assert (done["cost"].values[-1] <= done["cost"].values[0] + 1e-9).all()
    assert set(np.unique(done["solution_bits"].values[-1])) <= {8, 2}


def test_interactions_are_symmetric_and_scores_add_up_to_all_layers(done: Any) -> None:
    interaction = done["interaction"].values
    np.testing.assert_allclose(interaction, interaction.transpose(1, 0, 2))
    assert (np.einsum("iib->ib", interaction) == 0).all()
    scaled = done["hessian_sensitivity"].values * done["hessian_scale"].values
    np.testing.assert_allclose(done["layer_score"].values, scaled + 0.5 * interaction.sum(1))


def test_the_stored_model_is_the_augmented_solution(done: Any) -> None:
    assert np.array_equal(done["bits"].values, done["solution_bits"].values[0, 0])
    accuracy = float((done["logit"].values.argmax(1) == done["label"].values).mean())
    assert accuracy == pytest.approx(float(done["accuracy"].values[0, 0]))


def test_report(done: Any) -> None:
    report = check_report(Interlayer, done)
    assert "reconstruction" in report.notes[0]
    assert any("cannot be told apart" in note for note in report.notes) == (1 / int(done["search_samples"]) > 0.01)


@pytest.mark.parametrize("estimator", ["products", "differences"])
@pytest.mark.parametrize("pair_mode", ["abs", "sequential"])
def test_variants(digits: dict[str, Any], model: Model, estimator: Any, pair_mode: Any) -> None:
    _, found = record(
        Interlayer, {"model": model, **digits},
        widths=(16, 4), estimator=estimator, pair_mode=pair_mode, probes=4, random_orders=1, subsets=4,
        calibration_samples=64, search_samples=100, act_bits=32, cost="bops",
    )  # fmt: skip
    assert set(np.unique(found["solution_bits"].values)) <= {16, 4}
    assert set(np.unique(found["bits"].values)) <= {32, 4}
    same = found["interaction"].values - found["interaction_products"].values
    assert (np.abs(same).max() == 0) == (estimator == "products")


@pytest.mark.parametrize(
    "wrong",
    [
        {"widths": (4, 8)},
        {"widths": (8, 8)},
        {"widths": (32, 8)},
        {"targets": (0.3,)},
        {"targets": ()},
        {"act_bits": 1},
    ],
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError):
        Params(**wrong)


def test_images_must_be_left_to_search_with(digits: dict[str, Any], model: Model) -> None:
    few = {"data": digits["data"].isel(sample=slice(0, 15)), "test": digits["test"]}
    with pytest.raises(InputError, match="at least 20 images"):
        record(Interlayer, {"model": model, **few})


class Smooth(nn.Module):
    """Eight layers without kinks, whose loss has second derivatives everywhere."""

    def __init__(self) -> None:
        super().__init__()
        channels = [1, 8, 8, 16, 16, 16]
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, stride=2 if place in (1, 3) else 1)
            for place, (before, after) in enumerate(itertools.pairwise(channels))
        )
        self.linears = nn.ModuleList([nn.Linear(64, 32), nn.Linear(32, 32)])
        self.head = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            image = nn.functional.silu(conv(image))
        hidden = image.flatten(1)
        for linear in self.linears:
            hidden = nn.functional.silu(linear(hidden))
        return self.head(hidden)


def test_differences_and_products_agree_where_rounding_is_fine_and_part_where_it_is_coarse(
    digits: dict[str, Any],
) -> None:
    """Rank correlation and slope over the 28 pairs: 1 at 8 bits, none left at 2, where the loss is no longer quadratic."""
    torch.manual_seed(0)
    network, generator = Smooth(), torch.Generator().manual_seed(0)
    image, label = (torch.from_numpy(digits["data"][name].values) for name in ("image", "label"))
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(8):
        for rows in torch.randperm(len(image), generator=generator).split(32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(image[rows]), label[rows]).backward()
            optimiser.step()
    inputs = {"model": network.double().eval(), "data": digits["data"].isel(sample=slice(0, 180)),
              "test": digits["test"].isel(sample=slice(0, 100))}  # fmt: skip
    _, run = record(
        Interlayer, inputs, widths=(16, 8, 2), granularity="layer", act_bits=32, estimator="differences",
        calibration_samples=128, search_samples=50, probes=2, random_orders=1, subsets=4,
    )  # fmt: skip
    assert float(run["search_accuracy_full_precision"]) > 0.8
    pairs = np.triu_indices(run["bits"].size, 1)
    found = {}
    for column, width in enumerate(run["interaction"]["bit"].values.tolist()):
        measured, curved = (run[name].values[..., column][pairs] for name in ("interaction", "interaction_products"))
        found[width] = float(spearmanr(measured, curved).statistic), float(np.polyfit(curved, measured, 1)[0])
    assert found[8][0] > 0.95
    assert found[8][1] == pytest.approx(1, abs=0.1)
    assert found[2][0] < 0.8
    assert abs(found[2][1] - 1) > 0.3


@pytest.mark.slow
def test_pairs_predict_the_damage_of_random_subsets_better_on_cifar10(shared_data: Path) -> None:
    """Pretrained ResNet-20, weights at 8 and 4 bit with one range a layer, 200 images, 40 random subsets."""
    from unit.test_hawq_cifar10 import subjects

    model, data, test = subjects()
    _, run = record(
        Interlayer, {"model": model, "data": data.isel(sample=slice(0, 700)), "test": test.isel(sample=slice(0, 500))},
        widths=(16, 8, 4), granularity="layer", act_bits=32, calibration_samples=200, estimator="differences",
        targets=(0.98,), random_orders=3, probes=20, search_samples=300,
    )  # fmt: skip
    found = additivity(run)
    first, second = np.triu_indices(run["bits"].size, 1)
    by_width = {
        int(width): (
            run["interaction"].values[first, second, column],
            run["interaction_products"].values[first, second, column],
        )
        for column, width in enumerate(run["interaction"]["bit"].values)
    }
    correlation = {width: spearmanr(*pair).statistic for width, pair in by_width.items()}
    slope = np.polyfit(by_width[8][1], by_width[8][0], 1)[0]
    report = check_report(Interlayer, run)
    print(
        found,
        additivity(run, "subset_damage_elsewhere"),
        correlation,
        slope,
        report.summary,
        report.tables[0].rows,
        sep="\n",
    )
    assert found["with pairs"][0] > found["single layers"][0]
    assert found["with pairs"][1] < found["single layers"][1]
    # Measured: Spearman .69 and slope .96 at 8 bit, .41 at 4 bit, where the loss is no longer quadratic. The large ones of
    # the 190 interactions agree at 8 bit, as the slope says; the ranks of the many near zero do not, and not for want of
    # digits (32 images in double precision: .45 and 1.02). Without ReLUs they do: see the test on a smooth network above.
    assert correlation[8] > max(0.6, correlation[4])
    assert abs(slope - 1) < 0.3
