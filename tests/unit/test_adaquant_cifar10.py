"""Claims of AdaQuant on a pretrained ResNet-20 and CIFAR-10 (many minutes; needs the shared data folder)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor, nn
from workbench import Inputs
from workbench.toolkit import Interval, mean_interval, predict_all

from unit.recording_out import RecordingOut, record
from unit.test_hawq_cifar10 import IMAGES, WEIGHTS, subjects
from workbench_quantization.adaquant import AdaQuant, Params
from workbench_quantization.adaquant_end_to_end import fine_tune
from workbench_quantization.adaquant_layers import Student, initial
from workbench_quantization.adaquant_optimisation import Calibration
from workbench_quantization.adaquant_run import STAGES, prepare
from workbench_quantization.folding import find_units, fold
from workbench_quantization.hawq_images import split_roles
from workbench_quantization.layers import find_blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (IMAGES.exists() and WEIGHTS.exists()), reason=f"CIFAR-10 and weights are not beside {IMAGES}"
    ),
]

Subjects = tuple[nn.Module, xr.Dataset, xr.Dataset]
NORM_PASSES = 5


@pytest.fixture(scope="module")
def resnet() -> Subjects:
    return subjects()


def stages_of(resnet: Subjects, *, seed: int, **options: object) -> np.ndarray:
    """Right or wrong, (stage, test image), for one width everywhere but in the first and last layer, which have 8 bits.

    The seed draws the calibration images and the batches.
    """
    model, data, test = resnet
    inputs = {"model": copy.deepcopy(model), "data": data, "test": test}
    out, result = record(
        AdaQuant, inputs, seed=seed, mode="sequential", norm_passes=NORM_PASSES, bias_steps=0, **options
    )
    print(f"\nseed {seed}: {AdaQuant().report(result).summary}")
    assert out.coordinates["stage"][1].tolist() == list(STAGES[:-1])
    error = out.arrays["layer_error"][:, 0]
    print(f"{(error[:, 1] < error[:, 0]).sum()} of {len(error)} layers fit better on held-out images")
    correct: np.ndarray = out.arrays["correct"]
    np.testing.assert_array_equal(correct[-1], out.arrays["logit"].argmax(1) == test["label"].values)
    np.testing.assert_allclose(correct.mean(1), out.arrays["accuracy"][0])
    return correct


def finetuned(
    resnet: Subjects, *, seed: int, bits: int, samples: int, batch: int, steps: int, rate: float
) -> np.ndarray:
    """The same for all weights and biases fine-tuned end to end on the labels: (as trained, with norms re-estimated; test image).

    Same images, same naive ranges throughout, Adam, straight-through gradients; norms are folded.
    """
    model, data, test = resnet
    model = copy.deepcopy(model)
    params = Params(bits=(bits,), calibration_samples=samples, batch_size=batch)
    out = RecordingOut(AdaQuant, seed=seed)
    parts = split_roles(Inputs({"data": data, "test": test}), out, report_fraction=0.5, calibration_samples=samples)
    calibration: Calibration = prepare(parts.calibration, model, params, out)
    blocks, _ = find_blocks(model, calibration.image[:1])
    units = find_units(model, blocks, calibration.image[:1])
    fold(model, units, calibration.image[:batch])
    student = Student(model, units)
    widths = [8, *[bits] * (len(units) - 2), 8]
    states = [
        initial(unit, student.collect(place, calibration.fit)[0], width, width)
        for place, (unit, width) in enumerate(zip(units, widths, strict=True))
    ]
    losses: list[float] = []
    fine_tune(
        student, states, calibration.image, calibration.label, steps=steps, batch=batch, rate=rate,
        generator=torch.Generator().manual_seed(seed), on_step=lambda _step, loss: losses.append(loss),
    )  # fmt: skip
    print(f"seed {seed}: fine-tuned to a loss of {losses[-1]:.3f} on its own images")

    def correct() -> Tensor:
        return predict_all(model, test["image"])[0].argmax(1) == torch.from_numpy(test["label"].values)

    before = correct()
    student.tune_norms(calibration.batches, passes=NORM_PASSES, momentum=params.norm_momentum)
    return torch.stack([before, correct()]).numpy()


def gain(after: np.ndarray, before: np.ndarray) -> Interval:
    """Of accuracy, over the images, which are the same in both."""
    return mean_interval(after.astype(float) - before.astype(float))


@pytest.mark.parametrize("seed", [0, 1])
def test_three_bits_gain_by_norms_and_more_by_adaquant(resnet: Subjects, seed: int) -> None:
    """Claim A at W3A3: at least 5 points over naive quantisation by AdaQuant, and something by re-estimated norms.

    200 calibration images, another draw for each seed, 100 steps a layer. Norms re-estimated after AdaQuant take a part of its
    gain away here: the report of such a run says so.
    """
    naive, with_norms, adaquant, both = stages_of(
        resnet, seed=seed, bits=(3,), act_bits=3, calibration_samples=200, batch_size=50, iterations=100
    )
    print(f"naive {naive.mean():.3f}")
    pairs = ((with_norms, naive), (adaquant, naive), (both, naive), (both, with_norms))
    gains = [gain(*pair) for pair in pairs]
    for name, found in zip(("norms", "AdaQuant", "both", "AdaQuant on top of norms"), gains, strict=True):
        print(f"{name}: {found}", flush=True)
    norms, own, together, _ = gains
    assert own.value >= 0.05
    assert own.lower > 0
    assert norms.lower > 0
    assert together.lower > 0


def test_layer_by_layer_beats_end_to_end_on_a_hundred_images(resnet: Subjects) -> None:
    """Claim C at W3A3, one draw of the images: AdaQuant (100 steps a layer) against 300 steps of Adam at 1e-4 on all weights.

    Only as trained: with norms re-estimated in both the two are not told apart.
    """
    _, _, adaquant, both = stages_of(
        resnet, seed=0, bits=(3,), act_bits=3, calibration_samples=100, batch_size=32, iterations=100
    )
    end_to_end, with_its_norms = finetuned(resnet, seed=0, bits=3, samples=100, batch=32, steps=300, rate=1e-4)
    print(f"end to end {end_to_end.mean():.3f}, norms re-estimated {with_its_norms.mean():.3f}")
    print(f"AdaQuant over it {gain(adaquant, end_to_end)}\nnorms in both {gain(both, with_its_norms)}")
    assert gain(adaquant, end_to_end).lower > 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_adaquants_own_part_at_two_bits_and_inputs_of_four(resnet: Subjects, seed: int) -> None:
    """Claim A: naive << naive + norms < AdaQuant + norms, the last step at least 4 points; 200 images, 1,000 to judge by.

    300 steps a layer, another draw of the images for each seed. With 100 the last step was 1.6 points (95 % -1.6 to 4.8;
    seed 0): few steps show nothing.
    """
    naive, with_norms, _, both = stages_of(
        resnet, seed=seed, bits=(2,), act_bits=4, calibration_samples=200, batch_size=50, iterations=300
    )
    repaired, own = gain(with_norms, naive), gain(both, with_norms)
    print(f"norms {repaired}\nAdaQuant {own}")
    assert repaired.lower > 0.2
    assert own.value >= 0.04
    assert own.lower > 0
