"""Federated training in one process: who owns which samples, local training, averaging (FedAvg, FedProx, FedAvgM, MOON)."""

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

Base = Literal["fedavg", "fedprox", "fedavgm", "moon"]
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
    contrast: float = 1.0
    """moon: weight mu of the model-contrastive loss."""
    contrast_temperature: float = 0.5
    """moon: tau of its cosine similarities."""


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


def contrastive_loss(local: Tensor, now: Tensor, before: Tensor, temperature: float) -> Tensor:
    """MOON's loss (Li, He, Song 2021, equation 3), mean over samples: near the global features, away from the last local.

    Args:
        local: features of the model in training, (sample, feature).
        now: of the global model that the round began with.
        before: of the same client's model of the last round.
        temperature: tau.
    """
    similar = torch.stack([nn.functional.cosine_similarity(local, other, dim=1) for other in (now, before)], dim=1)
    return -torch.log_softmax(similar / temperature, dim=1)[:, 0].mean()


class Contrast:
    """MOON's term during one client's epochs: what the head receives of the batch, from three models."""

    def __init__(self, local: nn.Module, head: str, now: State, before: State) -> None:
        """Watch `local`, which `fit` is about to train.

        Args:
            local: model in training.
            head: name of its last linear layer.
            now: the global state.
            before: the client's state of the last round.
        """
        self.head = head
        self.kept: dict[str, Tensor] = {}
        self.fixed = [copy.deepcopy(local).eval().requires_grad_(False) for _ in range(2)]
        for model, state in zip(self.fixed, (now, before), strict=True):
            model.load_state_dict(state)
        self.hooks = [
            local.register_forward_pre_hook(lambda _, given: self.kept.update(image=given[0])),
            local.get_submodule(head).register_forward_pre_hook(lambda _, given: self.kept.update(feature=given[0])),
        ]

    def __call__(self, temperature: float) -> Tensor:
        """The loss of the batch that went through `local` last."""
        now, before = (self.features(model) for model in self.fixed)
        return contrastive_loss(self.kept["feature"], now, before, temperature)

    def features(self, model: nn.Module) -> Tensor:
        """What the head of a fixed model receives of that batch."""
        found: list[Tensor] = []
        hook = model.get_submodule(self.head).register_forward_pre_hook(lambda _, given: found.append(given[0]))
        with torch.no_grad():
            model(self.kept["image"])
        hook.remove()
        return found[0]

    def close(self) -> None:
        """Stop watching."""
        for hook in self.hooks:
            hook.remove()


def train_locally(
    model: nn.Module,
    state: State,
    image: Tensor,
    label: Tensor,
    settings: Federation,
    head: str,
    generator: torch.Generator,
    previous: State | None = None,
) -> State:
    """One client's epochs from the global state; its new state. `previous` is its state of the last round (moon)."""
    local = copy.deepcopy(model)
    local.load_state_dict(state)
    weights = {name: settings.proximal for name, _ in local.named_parameters()} if settings.base == "fedprox" else {}
    if settings.head_penalty > 0:
        for name, _ in local.named_parameters():
            if name.startswith(f"{head}."):
                weights[name] = weights.get(name, 0.0) + settings.head_penalty
    loss = penalised(local, weights) if weights else soft_cross_entropy
    # In the first round there is no model to stay away from, and the term is constant.
    contrast = Contrast(local, head, state, previous) if settings.base == "moon" and previous is not None else None

    def with_contrast(output: Tensor, target: Tensor) -> Tensor:
        value = loss(output, target)
        return value if contrast is None else value + settings.contrast * contrast(settings.contrast_temperature)

    fit(local, image, label, settings.recipe, generator=generator, loss=with_contrast)
    if contrast is not None:
        contrast.close()
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
