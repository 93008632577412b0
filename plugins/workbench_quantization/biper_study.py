"""What a BiPer run trains: both stages and the ways that compete with them, with every seed, from equal beginnings."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from workbench import InputError, Out
from workbench.toolkit import Recipe, Stages, reinitialise

from workbench_quantization.biper_layers import WeightMode, binarise, binary_layers, set_weights, with_hardtanh
from workbench_quantization.biper_selection import Selection
from workbench_quantization.biper_training import Training, state_of

if TYPE_CHECKING:
    from workbench_quantization.biper import Params

FULL, ONE_STAGE, STAGE_ONE, BINARISED, MAIN = (
    "full_precision",
    "biper_one_stage",
    "biper_stage1",
    "biper_binarised",
    "biper",
)
AS_GIVEN = "as_given"
"""The model before anything is done to it; judged where trainings begin with its weights."""
WEIGHTS: dict[str, WeightMode] = {
    "sign_clipped": "sign_clipped",
    "sign_polynomial": "sign_polynomial",
    ONE_STAGE: "square",
}
"""Trainings of one stage with binary layers: how their weights are made."""
HISTORY = ("loss", "accuracy", "validation_loss", "validation_accuracy")


@dataclass
class Study:
    """The model under study (a `workbench.Model` or any module), what of it becomes binary, and the data."""

    model: nn.Module
    selection: Selection
    training: Training

    def network(self, seed: int, params: Params, out: Out) -> nn.Module:
        """The full-precision model with the initial weights of this seed."""
        model = copy.deepcopy(self.model)
        if params.initialization == "fresh":
            reinitialise(model, _drawn(out.generator(f"initial weights {seed}")))
            generator = out.generator(f"latent weights {seed}")
            for name in self.selection.names:
                weight = model.get_submodule(name).get_parameter("weight")
                drawn = nn.init.kaiming_normal_(torch.empty(weight.shape), generator=generator)
                with torch.no_grad():
                    weight.copy_(drawn)
        return model.requires_grad_(True)

    def binary(self, seed: int, weights: WeightMode, omega: float, params: Params, out: Out) -> nn.Module:
        """The same with binary layers, whose scales are drawn uniformly from 0 to 1."""
        network = self.network(seed, params, out)
        if params.act_bits == 1:
            with_hardtanh(network)
        inputs = params.act_grad if params.act_bits == 1 else "real"
        binarise(
            network,
            self.selection.names,
            omega=omega,
            weights=weights,
            inputs=inputs,
            pad_value=float(params.pad_value),
        )
        generator = out.generator(f"scales {seed}")
        with torch.no_grad():
            for layer in binary_layers(network).values():
                layer.alpha.copy_(torch.rand(layer.alpha.shape, generator=generator))
        return network


def _drawn(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=generator))


def recipe_of(params: Params, stage: int, factor: float = 1.0) -> Recipe:
    """The recipe of stage 1 or 2; stage 0 is a training of one stage: as long as both, at the rates of the first."""
    first = stage != 2
    epochs = {0: params.epochs1 + params.epochs2, 1: params.epochs1, 2: params.epochs2}[stage]
    return Recipe(
        epochs=epochs,
        batch_size=params.batch,
        learning_rate=factor * (params.lr1 if first else params.lr2),
        weight_decay=params.wd1 if first else params.wd2,
        warmup_epochs=min(params.warmup, epochs - 1),
    )


@dataclass
class Trained:
    """Per mode and seed what a training left; rates tried; accuracies of other frequencies."""

    results: dict[tuple[str, int], dict[str, Any]]
    rate_accuracy: np.ndarray
    rates: dict[str, float]
    omega_logit: dict[float, np.ndarray]


def train_all(study: Study, given: nn.Module | None, params: Params, out: Out) -> Trained:
    """Every training of the run, one after another; a killed run goes on with the one it was at.

    Args:
        study: model, layers and data.
        given: the network of an earlier run after stage 1, which then takes the place of a training.
        params: of the run.
        out: seeds the trainings and keeps their checkpoints.

    Raises:
        InputError: `given` does not fit, or a training diverged; of a baseline on the first seed: at every rate.
    """
    tuned = [mode for mode in params.baselines if mode != ONE_STAGE]
    factors = params.baseline_rates
    seeds = range(params.seeds)
    one = ONE_STAGE in params.baselines
    sweep = [omega for omega in params.omega_sweep if omega != params.omega]
    count = len(tuned) * (len(factors) + params.seeds - 1) + params.seeds * (2 + one) + 2 * len(sweep)
    earlier = None
    if given is not None:
        earlier = _given_stage(given, study, study.binary(0, "sine", params.omega, params, out), params)
        count -= 1
    stages = Stages(out, count)
    tau1, tau2 = _pair(params.tau1), _pair(params.tau2)

    def train(
        name: str, build: Any, seed: int, recipe: Recipe, tau: tuple[float, float] | None = None
    ) -> dict[str, Any]:
        if (result := stages.result(name)) is None:
            result = study.training(
                build(),
                recipe,
                generator=out.generator(f"training {seed}" + (" stage 2" if name.startswith("stage2") else "")),
                out=stages.begin(name),
                name=name,
                penalty="off" if tau is None else params.reg,
                tau=tau or (0.0, 0.0),
            )
            if not name.startswith("stage"):
                del result["state"]  # checkpoints stay small
            stages.finish(name, result)
        return result

    def baseline(mode: str, seed: int, factor: float) -> dict[str, Any]:
        build = partial(study.network, seed, params, out)
        if mode != FULL:
            build = partial(study.binary, seed, WEIGHTS[mode], params.omega, params, out)
        return train(_name(mode, seed, f"x{factor:g}"), build, seed, recipe_of(params, 0, factor))

    def candidate(mode: str, factor: float) -> dict[str, Any]:
        """A rate that is too large for a baseline is a rate not to choose, not the end of the run."""
        try:
            return baseline(mode, 0, factor)
        except InputError as error:
            if error.argument != "recipe.learning_rate":
                raise
            diverged = {"validation_accuracy": np.nan}
            stages.finish(_name(mode, 0, f"x{factor:g}"), diverged)
            return diverged

    def two_stages(seed: int, omega: float) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        build = partial(study.binary, seed, "sine", omega, params, out)
        first = earlier
        if first is None:
            first = train(_name("stage1", seed, f"omega{omega:g}"), build, seed, recipe_of(params, 1), tau1)

        def binarised() -> nn.Module:
            network = set_weights(build(), "square")
            network.load_state_dict(state_of(first))
            return network

        merely = {"logit": study.training.logits(binarised().eval())}
        second = train(_name("stage2", seed, f"omega{omega:g}"), binarised, seed, recipe_of(params, 2), tau2)
        return first, merely, second

    results: dict[tuple[str, int], dict[str, Any]] = {}
    rate_accuracy, rates = np.full((len(tuned), len(factors)), np.nan), {}
    for row, mode in enumerate(tuned):
        tried = [candidate(mode, factor) for factor in factors]
        rate_accuracy[row] = [result["validation_accuracy"] for result in tried]
        if np.isnan(rate_accuracy[row]).all():
            raise InputError(
                "baseline_rates",
                expected=f"a rate at which {mode} stays finite",
                got=", ".join(f"{factor:g} times {params.lr1:g}" for factor in factors),
            )
        best = int(np.nanargmax(rate_accuracy[row]))
        rates[mode] = factors[best]
        results[mode, 0] = tried[best]
        for seed in seeds[1:]:
            results[mode, seed] = baseline(mode, seed, factors[best])
    for seed in seeds:
        if one:
            build = partial(study.binary, seed, "square", params.omega, params, out)
            results[ONE_STAGE, seed] = train(_name("one_stage", seed), build, seed, recipe_of(params, 0), tau1)
        for mode, result in zip((STAGE_ONE, BINARISED, MAIN), two_stages(seed, params.omega), strict=True):
            results[mode, seed] = result
    if params.initialization == "given":
        untouched = {"logit": study.training.logits(study.model)}
        results |= {(AS_GIVEN, seed): untouched for seed in seeds}
    omega_logit = {omega: two_stages(0, omega)[2]["logit"] for omega in sweep}
    return Trained(results, rate_accuracy, rates, omega_logit)


def _name(*parts: object) -> str:
    """Of a training, and of its logged series."""
    return "_".join(str(part) for part in parts).replace(".", "p")


def _pair(tau: float | tuple[float, float]) -> tuple[float, float]:
    return tau if isinstance(tau, tuple) else (tau, tau)


def _check_params(params: Params) -> None:
    """What one stage 1 cannot serve."""
    if any(omega != params.omega for omega in params.omega_sweep):
        raise InputError("omega_sweep", expected="none with `stage1`, which fixes omega", got=str(params.omega_sweep))
    if params.seeds > 1:
        raise InputError(
            "seeds",
            expected="1 with `stage1`, which is one training",
            got=str(params.seeds),
            hint="An interval over seeds would leave out the chance of stage 1.",
        )


def _given_stage(given: nn.Module, study: Study, build: nn.Module, params: Params) -> dict[str, Any]:
    """The stage-1 network of an earlier run in place of a training of one's own."""
    _check_params(params)
    layers, own = binary_layers(given), binary_layers(build)
    fits = list(layers) == list(own) and all(layer.weights == "sine" for layer in layers.values())
    state = {key: value.detach().cpu() for key, value in given.state_dict().items()}
    shapes = {key: value.shape for key, value in build.state_dict().items()}
    if not fits or {key: value.shape for key, value in state.items()} != shapes:
        raise InputError(
            "stage1",
            expected=f"the network after stage 1 of this model, with layers {', '.join(own)}",
            got=f"{type(given).__name__} with {len(layers)} layers of sine weights",
            hint="Take it from an earlier run of this method: stage1=run.model('stage1').",
        )
    for argument, known in (
        ("omega", lambda layer: layer.omega),
        ("pad_value", lambda layer: layer.operation.pad_value),
        ("act_bits", lambda layer: 32 if layer.inputs == "real" else 1),
    ):
        trained = {known(layer) for layer in layers.values()}
        if trained != {float(getattr(params, argument))}:
            expected = f"{min(trained):g}, which stage 1 was trained with"
            raise InputError(argument, expected=expected, got=f"{getattr(params, argument):g}")
    nothing = np.full(params.epochs1, np.nan)
    blank = np.full((params.epochs1, len(layers)), np.nan)
    return {
        "state": state,
        "logit": study.training.logits(given),
        "validation_accuracy": np.nan,
        "history": dict.fromkeys(HISTORY, nothing),
        "flip_rate": blank,
        "scale": blank,
    }
