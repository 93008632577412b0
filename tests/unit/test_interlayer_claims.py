"""Do interactions between layers help? Measured on a pretrained ResNet-20 and CIFAR-10 (needs the shared data folder)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from scipy.stats import spearmanr
from torch import nn
from workbench.toolkit import mean_interval

from unit.recording_out import RecordedResult, RecordingOut, check_report, record
from unit.test_hawq_cifar10 import DATA, IMAGES, WEIGHTS, subjects
from workbench_quantization.hawq_images import Images, split_roles
from workbench_quantization.interlayer import Interlayer
from workbench_quantization.interlayer_scores import predicted_damage
from workbench_quantization.quantizer import quantise_weight, weights_replaced

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (IMAGES.exists() and WEIGHTS.exists()), reason=f"CIFAR-10 and weights are not in {DATA}"),
]

SEEDS = (0, 1, 2)
CALIBRATION, SEARCH, REPORT = 64, 300, 200
SUBSETS = 40
HIGH, LOW = 8, 4


def damages(model: nn.Module, run: xr.Dataset, images: Any) -> np.ndarray:
    """(subset,) rise of the loss with the layers of a subset at 4 bits and the others at 8, without the method's own code."""
    layers = [model.get_submodule(str(name)) for name in run["bits"]["layer"].values]
    image, label = images.image.float() / (255 if images.image.dtype == torch.uint8 else 1), images.label

    def loss(bits: np.ndarray) -> float:
        weights = {
            layer: quantise_weight(layer.get_parameter("weight").detach(), int(width), granularity="layer")
            for layer, width in zip(layers, bits, strict=True)
        }
        with weights_replaced(weights), torch.no_grad():
            return float(F.cross_entropy(model(image).double(), label))

    base = np.full(len(layers), HIGH)
    start = loss(base)
    return np.array([loss(np.where(member, LOW, base)) - start for member in run["subset_layer"].values])


ELSEWHERE = 192


@pytest.fixture(scope="module")
def runs() -> list[tuple[RecordedResult, np.ndarray, np.ndarray]]:
    """Runs, and damages of their subsets on the calibration images and on others.

    Three draws of calibration images and of random subsets; widths 8, 4 and 3 with one range a layer, inputs as they are.
    """
    model, data, test = subjects()
    model = model.to(memory_format=torch.channels_last)  # with small batches a third faster on one core
    inputs = {"model": model, "data": data.isel(sample=slice(0, CALIBRATION + SEARCH)),
              "test": test.isel(sample=slice(0, REPORT))}  # fmt: skip
    found = []
    for seed in SEEDS:
        _, run = record(
            Interlayer, inputs, seed=seed, widths=(HIGH, LOW, 3), targets=(0.98,), granularity="layer", act_bits=32, batch=16,
            estimator="differences", calibration_samples=CALIBRATION, search_samples=SEARCH, probes=10, random_orders=1,
            subsets=SUBSETS,
        )  # fmt: skip
        drawn = split_roles(
            inputs, RecordingOut(Interlayer, seed=seed), report_fraction=0.3, calibration_samples=CALIBRATION
        )
        true = damages(model, run, drawn.calibration)
        rest = np.setdiff1d(np.arange(CALIBRATION + SEARCH), drawn.calibration.index)[:ELSEWHERE]
        part = inputs["data"].isel(sample=rest)
        others = Images(torch.from_numpy(part["image"].values), torch.from_numpy(part["label"].values), rest)
        elsewhere = damages(model, run, others)
        print(f"\nseed {seed}:", check_report(Interlayer, run).summary)
        found.append((run, true, elsewhere))
    return found


def predictions(run: RecordedResult) -> list[np.ndarray]:
    """Damage of each subset at 4 bits as the sum of single layers, and with pairs."""
    column = run["loss_single"]["bit"].values.tolist().index(LOW)
    single, pairs = run["loss_single"].values[:, column], run["interaction"].values[..., column]
    member = run["subset_layer"].values
    return [predicted_damage(member, single), predicted_damage(member, single, pairs)]


def gain(predicted: list[np.ndarray], true: np.ndarray, rows: np.ndarray | slice) -> float:
    """By how much pairs raise the rank correlation with the true damage."""
    alone, pairs = (float(spearmanr(one[rows], true[rows]).statistic) for one in predicted)
    return pairs - alone


def test_pairs_predict_the_damage_of_random_four_bit_subsets_better(runs: Any) -> None:
    """On the images that layers and pairs were measured on, whose noise the prediction shares.

    Rank correlations with pairs .850, .882 and .752, without .775, .792 and .655; at a mean damage of .048, .115 and .071.

    The gain is .087: .034 to .150 over subsets, .061 to .114 over the three draws. On 192 other images it is -.010, .040 and
    .117 (.775, .711 and .719 with pairs), .049 on average (-.11 to .21 over the draws), and errors are .041, .093 and .050
    against .063, .027 and .079: nothing is shown there, and nothing claimed. Of the 190 interactions 1 % at most are beyond two
    standard errors of 64 images.
    """
    rng = np.random.default_rng(0)
    predicted = [predictions(run) for run, *_ in runs]
    drawn = []
    for _ in range(2_000):  # subsets anew, the same for both models; the mean over the draws of images
        rows = rng.integers(SUBSETS, size=(len(runs), SUBSETS))
        drawn.append(
            np.mean([gain(one, true, row) for one, (_, true, _), row in zip(predicted, runs, rows, strict=True)])
        )
    low, high = np.quantile(drawn, [0.025, 0.975])
    gains = [gain(predictions(run), true, slice(None)) for run, true, _ in runs]
    elsewhere = [gain(predictions(run), other, slice(None)) for run, _, other in runs]
    errors = [[float(np.sqrt(np.mean((one - true) ** 2))) for one in predictions(run)] for run, true, _ in runs]
    for (run, true, other), error in zip(runs, errors, strict=True):
        alone, pairs = (float(spearmanr(one, true).statistic) for one in predictions(run))
        three = [
            float(spearmanr(one, run["subset_damage"].values).statistic) for one in run["subset_prediction"].values
        ]
        away = [float(spearmanr(one, other).statistic) for one in predictions(run)]
        off = [float(np.sqrt(np.mean((one - other) ** 2))) for one in predictions(run)]
        told = np.abs(run["interaction"].values) > 2 * run["interaction_error"].values
        print(
            f"on other images {away}, errors {off}; beyond two errors {told[..., 0][np.triu_indices(len(told), 1)].mean():.3f}"
        )
        assert min(away) > 0.5
        print(
            f"4 bits: {alone:.3f} alone, {pairs:.3f} with pairs, error {error}, mean damage {true.mean():.3f}; at 3 bits {three}"
        )
    print(
        f"gain {np.mean(gains):.3f}: {low:.3f} to {high:.3f} over subsets, over draws {mean_interval(np.array(gains))}; "
        f"on other images {elsewhere}, over draws {mean_interval(np.array(elsewhere))}"
    )
    assert low > 0
    assert min(gains) > 0
    assert all(pairs < alone for alone, pairs in errors)


def test_the_augmented_order_costs_no_more_than_curvature_alone(runs: Any) -> None:
    """Target 98 %, widths 8, 4 and 3, in at least two of three draws: .564, .730 and .800 against .619, .734 and .744.

    So few draws cannot tell the two orders apart; one random order each costs .785, .775 and .714.
    """
    costs = []
    for run, *_ in runs:
        names = [str(name) for name in run["accuracy"]["solution"].values]
        costs.append(
            {name: float(run["cost"][names.index(name), 0]) for name in ("augmented", "hessian", "single losses")}
        )
    print(*costs, sep="\n")
    assert sum(cost["augmented"] <= cost["hessian"] + 1e-12 for cost in costs) >= 2
