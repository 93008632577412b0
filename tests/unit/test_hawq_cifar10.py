"""Claims of HAWQ on a pretrained ResNet-20 and CIFAR-10 (minutes; needs the shared data folder)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor, nn
from workbench.subjects.networks import resnet20
from workbench.toolkit import mean_interval, predict_all, to_tensor

from unit.recording_out import RecordedResult, RecordingOut, check_report, record
from workbench_quantization.allocator import allocate_program, allocate_walk
from workbench_quantization.gauss_newton import gauss_newton_traces
from workbench_quantization.hawq import Hawq
from workbench_quantization.hawq_curvature import weight_errors
from workbench_quantization.layers import Block, find_blocks
from workbench_quantization.quantizer import quantise_weight, weights_replaced

DATA = Path(__file__).parents[2].parent / "shared" / "data"
IMAGES, WEIGHTS = DATA / "cifar10" / "original_subset.npz", DATA / "weights" / "cifar10_resnet20.safetensors"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (IMAGES.exists() and WEIGHTS.exists()), reason=f"CIFAR-10 and weights are not in {DATA}"),
]


class Normalised(nn.Module):
    """A network behind ImageNet's mean and standard deviation, as the checkpoint was trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image - self.mean) / self.std)


def subjects() -> tuple[nn.Module, xr.Dataset, xr.Dataset]:
    """The model, 1000 training and 1000 test images."""
    from safetensors.torch import load_file

    network = resnet20()
    network.load_state_dict(load_file(WEIGHTS))
    with np.load(IMAGES) as arrays:
        parts = [
            xr.Dataset(
                {
                    "image": (("sample", "channel", "y", "x"), arrays[f"x_{part}"][:1000]),
                    "label": ("sample", arrays[f"y_{part}"][:1000].astype(np.int64)),
                }
            )
            for part in ("train", "test")
        ]
    return Normalised(network).eval(), parts[0], parts[1]


@pytest.fixture(scope="module")
def measured() -> Iterator[tuple[RecordingOut, RecordedResult]]:
    """64 images, 20 power steps, 20 joint probes, per-channel ranges, seed 0, 3 bits."""
    model, data, test = subjects()
    return record(
        Hawq,
        {"model": model, "data": data, "test": test},
        hess_samples=64,
        hess_batch=64,
        probes=20,
        probe_mode="joint",
        trace_tolerance=0.0,
        landscape_points=0,
        sweep=0,
        budget_value=3.0,
    )


def test_full_precision_accuracy_is_that_of_the_checkpoint(measured: tuple[RecordingOut, RecordedResult]) -> None:
    """91.64 % on 1017 test images; anything much lower is another image encoding and drowns every claim."""
    assert float(measured[0].arrays["accuracy_full_precision"]) == pytest.approx(0.916, abs=0.005)


def test_curvature_separates_layers_by_more_than_an_order_of_magnitude(
    measured: tuple[RecordingOut, RecordedResult],
) -> None:
    """Claim A: an earlier measurement on a JPEG copy of the images found a factor of 88 and a rank correlation of 0.72."""
    data = measured[0].data
    sensitivity = data["sensitivity"].values
    assert sensitivity.max() / sensitivity.min() > 10
    assert sensitivity.argmin() in (17, 18)  # the last 3x3 convolutions are the flattest for their size
    average = data["average_trace"].values
    stages = [average[1:7].mean(), average[7:13].mean(), average[13:19].mean()]
    assert stages[0] > stages[1] > stages[2]
    assert spearmanr(sensitivity, average).statistic > 0.4


def test_the_order_matters_at_three_bits(measured: tuple[RecordingOut, RecordedResult]) -> None:
    """Claim B: above the median of 20 random orders, and 10 points above the reversed order."""
    out, result = measured
    data = out.data
    kinds, accuracy = data["solution_kind"].values, data["accuracy"].values
    assert (kinds == "random").sum() == 20
    assert accuracy[0] > np.median(accuracy[kinds == "random"])
    assert accuracy[0] > accuracy[kinds == "reversed"][0] + 0.10
    # The report states that 2-bit layers do not pay without fine-tuning, where the numbers say so.
    uniform = accuracy[data["solution"].values == "uniform 3 bit"][0]
    notes = " ".join(check_report(Hawq, result).notes)
    assert ("does not pay" in notes) == (accuracy[0] < uniform)


def test_the_order_matters_at_two_and_a_half_bits(measured: tuple[RecordingOut, RecordedResult]) -> None:
    """Claim B at a tighter budget, from the stored sensitivities alone."""
    data = measured[0].data
    model, _, test = subjects()
    names = data["layer"].values.tolist()
    layers = [model.get_submodule(name) for name in names]
    sizes, widths = data["parameter_count"].values, data["bit"].values
    free = np.flatnonzero(~data["fixed"].values)
    cost = sizes[free, None] * widths[None] / sizes.sum()
    budget = 2.5 - 8 * sizes[~np.isin(np.arange(len(sizes)), free)].sum() / sizes.sum()

    def accuracy(order: np.ndarray) -> float:
        bits = np.full(len(sizes), 8)
        bits[free] = widths[allocate_walk(order, cost, budget)]
        weights = {
            layer: quantise_weight(layer.get_parameter("weight").detach(), int(width))
            for layer, width in zip(layers, bits, strict=True)
        }
        with weights_replaced(weights):
            logit = predict_all(model, test["image"])[0]
        return float((logit.argmax(1).numpy() == test["label"].values).mean())

    ascending = np.argsort(data["sensitivity"].values[free])
    rng = np.random.default_rng(0)
    drawn = [accuracy(rng.permutation(len(free))) for _ in range(20)]
    by_curvature, backwards = accuracy(ascending), accuracy(ascending[::-1])
    print(f"2.5 bits: eigenvalue order {by_curvature:.3f}, reversed {backwards:.3f}, random {np.sort(drawn)}")
    assert by_curvature > np.median(drawn)
    assert by_curvature > backwards + 0.10


def reestimate_norms(model: nn.Module, images: Tensor) -> None:
    """Statistics of the batch norms from scratch: the plain mean over batches of 64."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in images.split(64):
            model(batch)
    model.eval()


def reached(
    model: nn.Module, blocks: Sequence[Block], bits: np.ndarray, test: xr.Dataset, images: Tensor | None = None
) -> np.ndarray:
    """Image by image (2, sample): right or wrong, and negative log-likelihood, with weights of these widths.

    Norms are re-estimated on `images` if there are any.
    """
    student, target = copy.deepcopy(model), torch.from_numpy(test["label"].values)
    with torch.no_grad():
        for block, width in zip(blocks, bits, strict=True):
            weight = student.get_submodule(block.name).get_parameter("weight")
            weight.copy_(quantise_weight(weight, int(width)))
    if images is not None:
        reestimate_norms(student, images)
    logit = predict_all(student, test["image"])[0]
    return np.stack([(logit.argmax(1) == target).double(), F.cross_entropy(logit.double(), target, reduction="none")])


def test_mixed_widths_beat_one_width_of_equal_size_at_three_bits() -> None:
    """V3's program on exact traces of 128 images against 3 bits everywhere, both with batch norms re-estimated on them.

    Five draws of the images, 1000 test images; widths 2, 3, 4, 8 per channel, first and last layer at 8 in both. The draws are
    judged on the same test images: what other test images would give is a second interval, pair by pair.
    """
    pristine, data, test = subjects()
    widths, gains = np.array([2, 3, 4, 8]), []
    for seed in range(5):
        model = copy.deepcopy(pristine)
        drawn = np.random.default_rng(seed).permutation(data.sizes["sample"])[:128]
        images = to_tensor(data["image"].values[drawn])
        label = torch.from_numpy(data["label"].values[drawn])
        blocks, _ = find_blocks(model, images[:1])
        traces = gauss_newton_traces(model, blocks, [(images, label)], torch.Generator())
        assert traces.exact
        assert all(traces.told)
        sizes, free = np.array([block.size for block in blocks]), np.arange(1, len(blocks) - 1)
        omega = traces.trace.numpy()[:, None] / sizes[:, None] * weight_errors(blocks, widths.tolist(), "channel")
        cost = sizes[free, None] * widths[None].astype(float)
        uniform, mixed = np.full(len(blocks), 8), np.full(len(blocks), 8)
        uniform[free] = 3
        mixed[free] = widths[allocate_program(omega[free], cost, 3.0 * sizes[free].sum())]
        assert (sizes * mixed).sum() <= (sizes * uniform).sum()

        with_norms = np.stack([reached(model, blocks, bits, test, images) for bits in (mixed, uniform)])
        print(f"seed {seed}: {mixed.tolist()}; mixed and uniform: {with_norms.mean(-1).tolist()}")
        if seed < 2:
            as_they_were = [reached(model, blocks, bits, test).mean(-1).tolist() for bits in (mixed, uniform)]
            print(f"norms as they were: {as_they_were}")
        gains.append((with_norms[0] - with_norms[1]) * [[1], [-1]])
    gained = np.stack(gains)  # (draw, accuracy or likelihood, image)
    gain, fall = (mean_interval(part) for part in gained.mean(2).T)
    print(f"over draws: accuracy gained {gain}, negative log-likelihood saved {fall}")
    assert gain.lower > 0
    assert fall.lower > 0
    gain, fall = (mean_interval(part) for part in gained.mean(0))
    print(f"over test images: accuracy gained {gain}, negative log-likelihood saved {fall}")
    assert gain.value > 0
    assert fall.lower > 0
