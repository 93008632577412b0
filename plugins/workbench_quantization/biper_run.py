"""A BiPer run: choose layers, train every mode with every seed, judge them on held-out images, store the packed network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import (
    Recipe,
    Stages,
    Transform,
    random_crop,
    random_flip,
    reinitialise,
    split_indices,
    to_tensor,
)

from workbench_quantization.biper_layers import (
    WeightMode,
    binarise,
    binary_layers,
    packed_network,
    set_weights,
    with_hardtanh,
)
from workbench_quantization.biper_selection import PROBED, Selection, select_layers
from workbench_quantization.biper_store import stage_one_model, stored_model, write_layers
from workbench_quantization.biper_training import Training, measured_errors, state_of
from workbench_quantization.hawq_images import Images, check_labels, split_roles

if TYPE_CHECKING:
    from workbench_quantization.biper import Params

FULL, ONE_STAGE, STAGE_ONE, BINARISED, MAIN = (
    "full_precision",
    "biper_one_stage",
    "biper_stage1",
    "biper_binarised",
    "biper",
)
WEIGHTS: dict[str, WeightMode] = {
    "sign_clipped": "sign_clipped",
    "sign_polynomial": "sign_polynomial",
    ONE_STAGE: "square",
}
"""Trainings of one stage with binary layers: how their weights are made."""
HISTORY = ("loss", "accuracy", "validation_loss", "validation_accuracy")


def run(inputs: Inputs, params: Params, out: Out) -> None:
    """The whole run (see the module)."""
    parts = split_roles(inputs, out, report_fraction=params.report_fraction, calibration_samples=PROBED, training=True)
    check_labels(inputs["model"], parts, out.device)
    model = copy.deepcopy(inputs["model"]).float()  # latent weights move by less than half precision can hold
    assert parts.training is not None
    shares = {"train": 1 - params.validation_fraction, "validation": params.validation_fraction}
    split = split_indices(parts.training.label, shares, out.seed)
    study = _study(model, parts.training, split, parts.held_out, params, out)
    trained = _train_all(study, inputs.get("stage1"), params, out)
    _write(study, trained, parts.held_out, params, out)


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


def _study(
    model: nn.Module, images: Images, split: dict[str, np.ndarray], held_out: Images, params: Params, out: Out
) -> Study:
    chosen = {name: (images.image[torch.from_numpy(index)], images.label[torch.from_numpy(index)])
              for name, index in split.items()}  # fmt: skip
    probe = to_tensor(chosen["train"][0][:PROBED], device=out.device)
    selection = select_layers(model, probe, keep=params.keep, binary_inputs=params.act_bits == 1)
    if not selection.blocks:
        told = (
            "; ".join(f"{name}: {why}" for name, why in selection.reasons.items())
            or "it has no convolution or linear layer"
        )
        out.skip(f"no layer of the model can be binary ({told})")
    training = Training(
        image=chosen["train"][0].to(out.device),
        label=chosen["train"][1].to(out.device),
        validation=(chosen["validation"][0].to(out.device), chosen["validation"][1].to(out.device)),
        report_image=held_out.image,
        transform=_augmentation(params.augmentation),
        amp=out.dtype == torch.bfloat16,
    )
    return Study(model, selection, training)


def _augmentation(kind: str) -> Transform | None:
    if kind == "none":
        return None

    def transform(image: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if "crop" in kind:
            image = random_crop(image, 4, generator)
        return (random_flip(image, generator) if "flip" in kind else image), label

    return transform


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


def _train_all(study: Study, given: nn.Module | None, params: Params, out: Out) -> Trained:
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
        tried = [baseline(mode, 0, factor) for factor in factors]
        rate_accuracy[row] = [result["validation_accuracy"] for result in tried]
        best = int(np.argmax(rate_accuracy[row]))
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


# ----------------------------------------------------------------------------------------------------------------- writing


def _write(study: Study, trained: Trained, held_out: Images, params: Params, out: Out) -> None:
    modes = [*params.baselines, STAGE_ONE, BINARISED, MAIN]
    out.coordinate("mode", modes)
    out.coordinate("seed", np.arange(params.seeds))
    label = held_out.label
    scores = np.array(
        [[score(trained.results[mode, seed]["logit"], label) for seed in range(params.seeds)] for mode in modes]
    )
    out.write("accuracy", scores[..., 0])
    out.write("negative_log_likelihood", scores[..., 1])
    _write_curves(trained, modes, params, out)
    tuned = [mode for mode in modes if mode in trained.rates]
    if tuned:
        out.coordinate("baseline", tuned)
        out.coordinate("rate", np.array(params.baseline_rates) * params.lr1)
        out.write("rate_accuracy", trained.rate_accuracy)
        out.write("chosen_rate", np.array([trained.rates[mode] * params.lr1 for mode in tuned]))
    if params.omega_sweep:
        logits = {**trained.omega_logit, params.omega: trained.results[MAIN, 0]["logit"]}
        out.coordinate("omega", np.array(sorted(logits), dtype=np.float64))
        out.write("omega_accuracy", np.array([score(logits[omega], label)[0] for omega in sorted(logits)]))
    if study.selection.reasons:
        out.coordinate("parameter", list(study.selection.reasons))
        out.write("unbinarised_reason", list(study.selection.reasons.values()))
    networks = {}
    for mode, weights in ((STAGE_ONE, "sine"), (MAIN, "square")):
        network = study.binary(0, weights, params.omega, params, out)  # type: ignore[arg-type]
        network.load_state_dict(state_of(trained.results[mode, 0]))
        networks[mode] = network.eval()
    out.coordinate("layer", list(study.selection.names))
    out.coordinate("stage", [1, 2])
    errors = [measured_errors(networks[mode]) for mode in (STAGE_ONE, MAIN)]
    for name in errors[0]:
        out.write(name, np.stack([error[name] for error in errors], axis=1))
    write_layers(study.model, study.selection, binary_layers(networks[MAIN]), params, out)
    packed = stored_model(study.model, packed_network(networks[MAIN]), study.selection.names, params)
    out.model(packed)
    out.model(stage_one_model(study.model, networks[STAGE_ONE], study.selection.names, params), name="stage1")
    out.coordinate("form", ["full precision", "packed"])
    out.write("size", np.array(_sizes(study.model, packed)))
    out.write("logit", study.training.logits(packed))
    out.write("label", label)
    out.write("sample_index", held_out.index)


def _write_curves(trained: Trained, modes: Sequence[str], params: Params, out: Out) -> None:
    """Curves over the epochs of both stages; the two-stage training is `biper_stage1`, then `biper`."""
    total = params.epochs1 + params.epochs2
    out.coordinate("epoch", np.arange(1, total + 1))
    begins = {MAIN: params.epochs1}
    for name in HISTORY:
        curve = np.full((len(modes), params.seeds, total), np.nan)
        for row, mode in enumerate(modes):
            for seed in range(params.seeds):
                values = trained.results[mode, seed].get("history", {}).get(name, ())
                start = begins.get(mode, 0)
                curve[row, seed, start : start + len(values)] = values
        out.write(f"training_{name}" if name in ("loss", "accuracy") else name, curve)
    for name in ("flip_rate", "scale"):
        stages = [np.asarray(trained.results[mode, 0][name]) for mode in (STAGE_ONE, MAIN)]
        out.write(name, np.concatenate(stages))


def score(logit: np.ndarray, label: Tensor) -> tuple[float, float]:
    """Accuracy and negative log-likelihood."""
    values = torch.from_numpy(np.asarray(logit))
    return float((values.argmax(1) == label).double().mean()), float(F.cross_entropy(values.double(), label))


def _sizes(model: nn.Module, packed: nn.Module) -> tuple[int, int]:
    """Bytes of parameters and buffers: as the model came, and with packed layers."""
    return tuple(  # type: ignore[return-value]
        sum(value.numel() * value.element_size() for value in module.state_dict().values())
        for module in (model, packed)
    )
