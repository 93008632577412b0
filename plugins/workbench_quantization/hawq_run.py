"""The steps of a HAWQ run in the papers' order: measure curvature, allocate widths, measure accuracies, fine-tune."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import Recipe, predict_all, to_tensor

from workbench_quantization.allocator import pareto_front
from workbench_quantization.bit_table import Subject, write_stored
from workbench_quantization.finetuning import EpochHook, Plan, checkpoint_of, finetune
from workbench_quantization.hawq_curvature import weight_errors
from workbench_quantization.hawq_images import Images, Parts, calibration_batches, check_labels, split_roles
from workbench_quantization.hawq_measure import Curvature, measure_curvature, measure_rounding
from workbench_quantization.hawq_solutions import (
    Costs,
    Solution,
    free_budget,
    latency_table,
    make_solutions,
    nearest_uniform,
)
from workbench_quantization.layers import Block, find_blocks, multiply_accumulates
from workbench_quantization.quantizer import FULL_PRECISION, InputQuantisers

if TYPE_CHECKING:
    from workbench_quantization.hawq import Params

NO_GROUPS = 1
"""Weights of a group, where ranges belong to channels or layers."""


def run(inputs: Inputs, params: Params, out: Out) -> None:
    """Do everything and write every output."""
    model = inputs["model"]
    parts = split_roles(
        inputs,
        out,
        report_fraction=params.report_fraction,
        calibration_samples=params.hess_samples,
        training=params.finetune != "none",
    )
    check_labels(model, parts, out.device)
    batches = calibration_batches(parts.calibration, params.hess_batch, out.device, _model_dtype(model))
    blocks, reasons = find_blocks(model, batches[0][0][:1], params.blocks)
    if not blocks:
        out.skip("the model has no convolution or linear layer with a weight of its own")
    ties, costs = plan_costs(model, blocks, params, parts.calibration.image.shape[1:], out)
    budget = free_budget(costs, params.budget, params.budget_value, params.budget_fraction)
    pristine = copy.deepcopy(model) if params.finetune != "none" else model

    write_blocks(blocks, reasons, costs, model, params, out)
    limit = budget + costs.fixed_cost(params.budget)
    out.write("budget_limit", np.float64(limit))
    curvature = measure_curvature(model, blocks, batches, params, out)
    evidence = measure_rounding(model, blocks, batches, curvature, costs, params, out)
    solutions = make_solutions(
        evidence,
        costs,
        params.budget,
        budget,
        ties,
        criterion=params.criterion,
        allocator=params.allocation,
        random_orders=params.random_orders,
        sweep=params.sweep,
        rng=out.rng("random orders"),
    )

    layers = [layer for block in blocks for layer in block.layers]
    # Half precisions are for inference; second derivatives are always taken in the model's own precision.
    half = out.dtype if out.dtype in (torch.float16, torch.bfloat16) else None
    subject = Subject(model, blocks, InputQuantisers(layers, params.activation_range), costs, NO_GROUPS, half)
    if params.activation_bits != FULL_PRECISION:
        with subject.inputs.observing():
            subject.logits(torch.cat([image for image, _ in batches]), out)
    accuracy = write_accuracies(subject, solutions, curvature, parts, params, out)
    chosen = solutions[0].bits
    stages = finetuning_order(curvature, blocks, chosen, params)
    place = np.empty(len(blocks), dtype=np.int16)
    place[np.argsort(-stages, kind="stable")] = np.arange(1, len(blocks) + 1)
    out.write("order", place)
    out.write("order_omega", stages)
    if params.finetune == "none":
        finish(subject, chosen, parts.held_out, params, out)
        return
    subject.inputs.remove()
    compared = [0]
    if params.finetune_uniform:
        compared.append(nearest_uniform(solutions, costs, params.budget, limit))
    out.write("accuracy_before", accuracy[compared])
    finetune_solutions(pristine, subject, [solutions[i] for i in compared], curvature, parts, params, out)


def _model_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def plan_costs(
    model: nn.Module, blocks: Sequence[Block], params: Params, input_shape: Sequence[int], out: Out
) -> tuple[list[list[int]], Costs]:
    """Ties as positions among the free blocks, and what every block costs.

    Raises:
        InputError: a tie names an unknown or a fixed layer, or the latency table does not fit.
        SkippedError: only first and last layer can be quantised.
    """
    fixed = np.zeros(len(blocks), dtype=np.int64)
    if params.first_last_bits is not None:
        # With layers grouped into blocks the last layer need not be in the last block.
        fixed[[int(np.argmin([block.first for block in blocks])), int(np.argmax([block.last for block in blocks]))]] = (
            params.first_last_bits
        )
    free = np.flatnonzero(fixed == 0)
    if not len(free):
        out.skip(
            f"only {', '.join(block.name for block in blocks)} can be quantised, and first and last layer are kept out of "
            "the program; first_last_bits=None lets them in"
        )
    place = {
        name: row
        for row, position in enumerate(free)
        for name in (*blocks[position].layer_names, blocks[position].name)
    }
    for tie in params.ties:
        for name in tie:
            if name not in place:
                raise InputError(
                    "ties",
                    expected=f"layers whose width is free: {', '.join(blocks[i].name for i in free)}",
                    got=repr(name),
                )
    widths = np.array(params.bits)
    latency = None
    if params.latency is not None:
        latency = latency_table(params.latency, [block.name for block in blocks], free.tolist(), params.bits)
    costs = Costs(
        np.array([block.size for block in blocks], dtype=np.int64),
        multiply_accumulates(model, blocks, input_shape),
        widths,
        fixed,
        params.activation_bits,
        latency,
    )
    return [[place[name] for name in tie] for tie in params.ties], costs


def write_blocks(
    blocks: Sequence[Block], reasons: dict[str, str], costs: Costs, model: nn.Module, params: Params, out: Out
) -> None:
    """Coordinates, and what does not depend on data."""
    out.coordinate("layer", [block.name for block in blocks])
    out.coordinate("bit", np.array(params.bits))
    out.coordinate("rank", np.arange(1, params.eigenvalues + 1))
    out.write("parameter_count", costs.sizes)
    out.write("weight_shape", [block.shape for block in blocks])
    out.write("macs", costs.macs)
    out.write("fixed", costs.fixed > 0)
    total = sum(parameter.numel() for parameter in model.parameters())
    out.write("other_parameter_count", np.int64(total - int(costs.sizes.sum())))
    if reasons:
        out.coordinate("parameter", list(reasons))
        out.write("unquantised_reason", list(reasons.values()))


def write_accuracies(
    subject: Subject,
    solutions: Sequence[Solution],
    curvature: Curvature,
    parts: Parts,
    params: Params,
    out: Out,
) -> np.ndarray:
    """Cost, Omega, accuracy and likelihood of every solution; solutions with equal widths are measured once.

    Returns the accuracies.
    """
    costs, free = subject.costs, subject.costs.free
    error = weight_errors(subject.blocks, params.bits, params.granularity)
    omega = (curvature.objective[:, None] / costs.sizes[:, None] * error)[free]
    measured: dict[bytes, tuple[float, float]] = {}
    rows: dict[str, list[Any]] = {name: [] for name in ("average_bits", "size_mb", "bops", "omega_total", "cost")}
    scores = []
    for solution in out.track(solutions, "measuring accuracies"):
        key = solution.bits.tobytes()
        if key not in measured:
            logit = subject.quantised_logits(solution.bits, params.granularity, parts.held_out.image, out)
            measured[key] = score(logit, parts.held_out.label)
        scores.append(measured[key])
        column = np.searchsorted(costs.widths, solution.bits[free])
        rows["average_bits"].append(costs.average_bits(solution.bits))
        rows["size_mb"].append(costs.size_mb(solution.bits))
        rows["bops"].append(costs.bops(solution.bits))
        rows["omega_total"].append(float(omega[np.arange(len(free)), column].sum()))
        rows["cost"].append(costs.total(params.budget, solution.bits))
    accuracy, likelihood = np.array(scores).T
    kinds = np.array([solution.kind for solution in solutions])
    out.coordinate("solution", [solution.name for solution in solutions])
    out.write("solution_kind", kinds.tolist())
    out.write("within_budget", ~np.isin(kinds, ["uniform", "sweep"]))
    out.write("solution_bits", np.stack([solution.bits for solution in solutions]).astype(np.int8))
    for name, values in rows.items():
        out.write(name, np.array(values))
    out.write("pareto", pareto_front(np.array(rows["size_mb"]), np.array(rows["omega_total"])))
    out.write("accuracy", accuracy)
    out.write("negative_log_likelihood", likelihood)
    out.write("accuracy_uniform", accuracy[kinds == "uniform"])
    for name, part in (("full_precision", parts.held_out), ("calibration", parts.calibration)):
        out.write(f"accuracy_{name}", np.float64(score(subject.logits(part.image, out), part.label)[0]))
    return accuracy


def score(logit: Tensor, label: Tensor) -> tuple[float, float]:
    """Accuracy and negative log-likelihood."""
    return (
        float((logit.argmax(1) == label).double().mean()),
        float(F.cross_entropy(logit.double(), label)),
    )


def finetuning_order(curvature: Curvature, blocks: Sequence[Block], bits: np.ndarray, params: Params) -> np.ndarray:
    """Omega_i of the order, (block,): lambda_i * ||Q(W_i) - W_i||^2 (V1), or the average trace in place of lambda_i (V2)."""
    error = np.array(
        [
            weight_errors([block], [int(width)], params.granularity)[0, 0]
            for block, width in zip(blocks, bits, strict=True)
        ]
    )
    if params.criterion == "eig":
        return curvature.criterion * error
    return curvature.criterion / np.array([block.size for block in blocks]) * error


def finish(subject: Subject, bits: np.ndarray, held_out: Images, params: Params, out: Out) -> Tensor:
    """Store the widths, the integers, the model that computes with them, and its logits, which are returned."""
    if params.activation_bits != FULL_PRECISION:
        out.write("input_range", _ranges(subject.inputs, subject.blocks))
    for parameter in subject.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    logit = write_stored(subject, bits, params.granularity, held_out, out)
    subject.inputs.remove()
    return logit


def _ranges(inputs: InputQuantisers, blocks: Sequence[Block]) -> Tensor:
    """(block, 2): the widest range over the layers of a block."""
    parts = inputs.ranges.split([len(block.layers) for block in blocks])
    return torch.stack([torch.stack([part[:, 0].amin(), part[:, 1].amax()]) for part in parts])


def finetune_solutions(
    pristine: nn.Module,
    subject: Subject,
    solutions: Sequence[Solution],
    curvature: Curvature,
    parts: Parts,
    params: Params,
    out: Out,
) -> None:
    """Fine-tune the first solution and those to compare it with by the same recipe; store the first one's model."""
    blocks = subject.blocks
    recipe = Recipe(
        epochs=params.epochs,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        momentum=params.momentum,
        weight_decay=params.weight_decay,
        schedule="constant",
    )
    assert parts.training is not None
    kept, image, dtype = out.restore(), parts.training.image, _model_dtype(pristine)
    if dtype != torch.float32:
        image = to_tensor(image).to(dtype)
    after = []
    for solution in solutions:
        name = solution.kind
        omega = finetuning_order(curvature, blocks, solution.bits, params)
        order = np.argsort(-omega, kind="stable")
        order = order[::-1] if params.finetune_order == "reversed" else order
        generator = out.generator(f"fine-tuning {name}")
        for stage in finetune(
            pristine,
            Plan(
                [block.layer_names for block in blocks],
                solution.bits.tolist(),
                subject.costs.input_bits(solution.bits).tolist(),
                params.granularity,
                params.activation_range,
            ),
            order.tolist() if params.finetune == "sequential" else None,
            image,
            parts.training.label,
            recipe,
            generator=generator,
            distillation=params.distillation,
            temperature=params.temperature,
            on_epoch=_epoch_hook(name, out),
            resume=kept if kept is not None and kept.get("name") == name else None,
        ):
            out.checkpoint({"name": name, **checkpoint_of(stage, generator)})
        network = stage.network.eval()
        if name == "chosen":
            tuned = [
                replace(block, layers=tuple(network.model.get_submodule(layer) for layer in block.layer_names))
                for block in blocks
            ]
            # Rounding a second time changes nothing: the values are levels already.
            student = replace(subject, model=network.model, blocks=tuned, inputs=network.inputs)
            logit = finish(student, solution.bits, parts.held_out, params, out)
        else:
            logit, _ = predict_all(
                network, parts.held_out.image, device=out.device, dtype=subject.autocast, keep_on="cpu"
            )
        after.append(score(logit, parts.held_out.label)[0])
    out.coordinate("finetuned_solution", [solution.name for solution in solutions])
    out.write("finetuned_accuracy", np.array(after))


def _epoch_hook(name: str, out: Out) -> EpochHook:
    """Progress, cancellation and the training curves; those of a comparison carry its name."""
    prefix = "" if name == "chosen" else f"{name}_"

    def hook(epoch: int, total: int, row: Mapping[str, float]) -> None:
        out.progress(epoch, total, f"fine-tuning {name}")
        shown = {key: value for key, value in row.items() if key in ("loss", "accuracy")}
        out.log(epoch, **{f"{prefix}{key}": value for key, value in shown.items()})

    return hook
