"""Federated training in one process: who owns which samples, local training, averaging (FedAvg, FedProx, FedAvgM)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from workbench import InputError
from workbench.toolkit import Recipe, fit, soft_cross_entropy

Base = Literal["fedavg", "fedprox", "fedavgm"]
State = dict[str, Tensor]
LEAST = 10
"""Samples that every client must have."""
TRIALS = 20_000


@dataclass(frozen=True)
class Federation:
    """How clients train and the server averages."""

    recipe: Recipe
    base: Base = "fedavg"
    proximal: float = 0.01
    """fedprox: weight mu of mu / 2 |w - w_global|^2."""
    server_momentum: float = 0.9
    """fedavgm: momentum of the server."""
    head_penalty: float = 0.0
    """Weight of the same penalty on the head alone, with any base."""


def dirichlet_owner(
    label: NDArray[np.int64], clients: int, concentration: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Owner of every sample, (sample,): each class is split over the clients by proportions from Dirichlet(concentration).

    Drawn again until every client has at least 10 samples.

    Raises:
        InputError: that never happens.
    """
    classes = np.unique(label)
    size = np.array([(label == k).sum() for k in classes])
    for _ in range(TRIALS):
        cut = np.cumsum(rng.dirichlet(np.full(clients, concentration), size=len(classes)), axis=1)
        bound = np.floor(cut * size[:, None] + 1e-9).astype(np.int64)
        bound[:, -1] = size
        count = np.diff(bound, axis=1, prepend=0)
        if count.sum(axis=0).min() >= LEAST:
            owner = np.empty(len(label), dtype=np.int64)
            for k, parts in zip(classes, count, strict=True):
                owner[rng.permutation(np.flatnonzero(label == k))] = np.repeat(np.arange(clients), parts)
            return owner
    raise InputError(
        "concentrations",
        expected=f"a partition that leaves each of {clients} clients {LEAST} samples",
        got=f"none in {TRIALS} draws at {concentration:g}",
        hint="Take fewer clients, more samples, or a larger concentration.",
    )


def average(states: list[State], share: NDArray[np.float64]) -> State:
    """Mean of every float entry weighted by `share` (sums to 1), in float64; integer buffers are those of the first."""
    merged = {}
    for key, first in states[0].items():
        if first.is_floating_point():
            total = sum(float(w) * state[key].double() for w, state in zip(share, states, strict=True))
            merged[key] = torch.as_tensor(total).to(first.dtype)
        else:
            merged[key] = first.clone()
    return merged


def penalised(model: nn.Module, names: Mapping[str, float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy plus weight / 2 |w - w_now|^2 for the named parameters; w_now is kept from when this is called."""
    parameters = dict(model.named_parameters())
    anchors = {name: (parameters[name], parameters[name].detach().clone(), weight) for name, weight in names.items()}

    def loss(output: Tensor, target: Tensor) -> Tensor:
        value = soft_cross_entropy(output, target)
        for own, anchor, weight in anchors.values():
            value = value + weight / 2 * ((own - anchor) ** 2).sum()
        return value

    return loss


def train_locally(
    model: nn.Module,
    state: State,
    image: Tensor,
    label: Tensor,
    settings: Federation,
    head: str,
    generator: torch.Generator,
) -> State:
    """One client's epochs from the global state; its new state."""
    local = copy.deepcopy(model)
    local.load_state_dict(state)
    weights = {name: settings.proximal for name, _ in local.named_parameters()} if settings.base == "fedprox" else {}
    if settings.head_penalty > 0:
        for name, _ in local.named_parameters():
            if name.startswith(f"{head}."):
                weights[name] = weights.get(name, 0.0) + settings.head_penalty
    loss = penalised(local, weights) if weights else None
    fit(local, image, label, settings.recipe, generator=generator, loss=loss)
    return {key: value.detach().clone() for key, value in local.state_dict().items()}


def serve(state: State, averaged: State, velocity: State, settings: Federation) -> tuple[State, State]:
    """The next global state and the server's velocity (fedavgm: v = beta v + (w - average), w = w - v)."""
    if settings.base != "fedavgm":
        return averaged, velocity
    fresh: dict[str, Any] = dict(averaged)
    velocity = dict(velocity)
    for key, value in averaged.items():
        if value.is_floating_point():
            velocity[key] = settings.server_momentum * velocity.get(key, torch.zeros_like(value)) + state[key] - value
            fresh[key] = state[key] - velocity[key]
    return fresh, velocity
