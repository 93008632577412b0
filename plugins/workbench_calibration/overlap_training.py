"""Training the same network by plain and by d-Mixup objectives, and what is measured of each: shared by seeds and modes.

d-Mixup (Chidambaram and Ge 2023, section 5): d + 1 points of a batch are averaged with weights from a Dirichlet
distribution, drawn once per batch, and the loss is the weighted sum of their cross entropies. d = 1 is Mixup.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workbench import Out
from workbench.toolkit import (
    Recipe,
    Stages,
    Transform,
    fit,
    mix_points,
    numpy_generator,
    predict_all,
    reinitialise,
    soft_labels,
)

CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Split:
    """Points (sample, ...) and labels (sample,) on the device: to train on, to fit a temperature on, to judge by."""

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def mixup_points(size: int, alpha: float, classes: int) -> Transform:
    """The d-Mixup transform of a batch, d = size - 1.

    Weights ~ Dirichlet(alpha, ..., alpha), one draw per batch; partner j is the batch under a permutation of its own. The
    cross entropy of the mixed label is the weighted sum of the cross entropies of the paper's objective. Of size 1 it
    leaves the batch as it is.
    """

    def transform(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rng = numpy_generator(generator)  # one draw in every mode, so that all see the same batches
        if size == 1:
            return image, label
        weight = torch.from_numpy(rng.dirichlet(np.full(size, alpha)))
        orders = np.stack([rng.permutation(len(image)) for _ in range(size - 1)], axis=1)
        partner = torch.from_numpy(orders).to(label.device)
        return mix_points(image, partner, weight), soft_labels(label, label[partner], weight, classes)

    return transform


def multilayer_perceptron(inputs: int, classes: int, width: int) -> nn.Module:
    """Two hidden layers of ReLU units: the network for the synthetic problems."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


def paper_code_temperature(logit: Tensor, label: Tensor) -> float:
    """The temperature as the paper's repository fits it: 20 iterations of L-BFGS of step 0.01 from T = 1, no line search.

    It stops long before the optimum; kept to show what the published comparisons with temperature scaling contain.
    """
    temperature = torch.ones((), dtype=logit.dtype, device=logit.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([temperature], lr=0.01)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logit / temperature, label)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(temperature.detach())


def logit_gap(
    model: nn.Module, point: Tensor, label: Tensor, radii: np.ndarray, directions: int, generator: torch.Generator
) -> np.ndarray:
    """Mean of (logit of the own class less the largest other one) on spheres around training points, (radius,).

    Args:
        model: in eval mode.
        point: (sample, ...), centres of the spheres.
        label: (sample,), their training labels.
        radii: of the spheres, Euclidean.
        directions: points drawn uniformly on each sphere.
        generator: CPU generator of the directions; every radius has the same ones.
    """
    drawn = torch.randn((len(point), directions, *point.shape[1:]), generator=generator)
    unit = drawn / drawn.flatten(2).norm(dim=2).reshape(len(point), directions, *[1] * (point.ndim - 1))
    own = label.repeat_interleave(directions)
    gaps = []
    for radius in radii:
        around = (point[:, None] + float(radius) * unit.to(point)).flatten(0, 1)
        logit = predict_all(model, around, batch_size=1024)[0].double()
        true = logit.gather(1, own[:, None])[:, 0]
        other = logit.scatter(1, own[:, None], -torch.inf).amax(1)
        gaps.append(float((true - other).mean()))
    return np.array(gaps)


def train_every_mode(
    network: nn.Module,
    split: Split,
    mix_sizes: Mapping[str, int],
    seeds: int,
    recipe: Recipe,
    *,
    alpha: float,
    classes: int,
    out: Out,
) -> dict[str, dict[str, Any]]:
    """Train a copy of the network with every mode and seed; alike in initial weights, batches and data for one seed.

    Args:
        network: whose architecture is trained, from new weights.
        split: the data, the same for all.
        mix_sizes: mode -> number of points mixed; 1 is plain training.
        seeds: trainings per mode.
        recipe: of each of them.
        alpha: of the Dirichlet distribution.
        classes: number of outputs.
        out: of the run; keeps checkpoints from which a stopped run goes on.

    Returns:
        By `<mode>_<seed>`: `logit`, `calibration_logit`, `train_logit` (sample, class) arrays and `state` of the network.
    """
    stages = Stages(out, len(mix_sizes) * seeds, checkpoint_seconds=CHECKPOINT_SECONDS)
    for seed, (mode, size) in ((s, m) for s in range(seeds) for m in mix_sizes.items()):
        name = f"{mode}_{seed}"
        if stages.result(name) is not None:
            continue
        model = copy.deepcopy(network).to(out.device)
        reinitialise(model, int(torch.randint(2**31, (), generator=out.generator(f"initial weights {seed}"))))
        fit(
            model,
            *split.train,
            recipe,
            generator=out.generator(f"training {seed}"),
            transform=mixup_points(size, alpha, classes),
            out=stages.begin(name, series=("loss",)),
            amp=out.dtype == torch.bfloat16,
            name=name,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        parts = {"logit": split.test, "calibration_logit": split.calibration, "train_logit": split.train}
        logits = {key: predict_all(model, part[0], keep_on="cpu")[0].numpy() for key, part in parts.items()}
        stages.finish(
            name, logits | {"state": {key: value.detach().cpu() for key, value in model.state_dict().items()}}
        )
    return dict(stages.results)
