"""A BiPer run: choose layers, train every mode with every seed, judge them on held-out images, store the packed network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import Inputs, Out
from workbench.toolkit import Transform, random_crop, random_flip, split_indices, to_tensor

from workbench_quantization.biper_layers import binary_layers, packed_network
from workbench_quantization.biper_selection import PROBED, select_layers
from workbench_quantization.biper_store import stage_one_model, stored_model, write_layers
from workbench_quantization.biper_study import AS_GIVEN, BINARISED, HISTORY, MAIN, STAGE_ONE, Study, Trained, train_all
from workbench_quantization.biper_training import Training, measured_errors, state_of
from workbench_quantization.hawq_images import Images, check_labels, split_roles

if TYPE_CHECKING:
    from workbench_quantization.biper import Params


def run(inputs: Inputs, params: Params, out: Out) -> None:
    """The whole run (see the module)."""
    parts = split_roles(inputs, out, report_fraction=params.report_fraction, calibration_samples=PROBED, training=True)
    check_labels(inputs["model"], parts, out.device)
    model = copy.deepcopy(inputs["model"]).float()  # latent weights move by less than half precision can hold
    assert parts.training is not None
    shares = {"train": 1 - params.validation_fraction, "validation": params.validation_fraction}
    split = split_indices(parts.training.label, shares, out.seed)
    study = _study(model, parts.training, split, parts.held_out, params, out)
    trained = train_all(study, inputs.get("stage1"), params, out)
    _write(study, trained, parts.held_out, params, out)


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


# ----------------------------------------------------------------------------------------------------------------- writing


def _write(study: Study, trained: Trained, held_out: Images, params: Params, out: Out) -> None:
    given = [AS_GIVEN] if params.initialization == "given" else []
    modes = [*given, *params.baselines, STAGE_ONE, BINARISED, MAIN]
    out.coordinate("mode", modes)
    out.coordinate("seed", np.arange(params.seeds))
    label = held_out.label
    scores = np.array(
        [[score(trained.results[mode, seed]["logit"], label) for seed in range(params.seeds)] for mode in modes]
    )
    out.write("accuracy", scores[..., 0])
    out.write("negative_log_likelihood", scores[..., 1])
    predicted = np.array(
        [[np.asarray(trained.results[mode, seed]["logit"]).argmax(1) for seed in range(params.seeds)] for mode in modes]
    )
    out.write("correct", predicted == label.numpy())
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
