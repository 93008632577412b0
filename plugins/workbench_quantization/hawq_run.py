"""The steps of a HAWQ run in the papers' order: measure curvature, allocate widths, measure accuracies, fine-tune."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import Recipe, predict_all, to_tensor

from workbench_quantization.allocator import pareto_front
from workbench_quantization.finetuning import EpochHook, Plan, checkpoint_of, finetune
from workbench_quantization.hawq_curvature import quantised_weights, weight_errors
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
from workbench_quantization.quantizer import FULL_PRECISION, InputQuantisers, weights_replaced

if TYPE_CHECKING:
    from workbench_quantization.hawq import Params


@dataclass
class Subject:
    """The model under study with everything the steps share. `inputs` quantises the layers' inputs."""

    model: nn.Module
    blocks: list[Block]
    inputs: InputQuantisers
    costs: Costs
    params: Params
    device: torch.device
    autocast: torch.dtype | None

    def logits(self, images: Any) -> Tensor:
        """Logits (sample, class) on the CPU."""
        return predict_all(self.model, images, device=self.device, dtype=self.autocast, keep_on="cpu")[0].float()

    def quantised_logits(self, bits: np.ndarray, images: Any) -> Tensor:
        """The same with weights and inputs of every block quantised; the model is left as it was."""
        weights: dict[nn.Module, Tensor] = {}
        for block, width in zip(self.blocks, bits, strict=True):
            weights |= quantised_weights(block, int(width), self.params.granularity)
        widths = self.costs.input_bits(bits)
        self.inputs.set_bits([int(w) for w, block in zip(widths, self.blocks, strict=True) for _ in block.layers])
        try:
            with weights_replaced(weights):
                return self.logits(images)
        finally:
            self.inputs.set_bits([FULL_PRECISION] * sum(len(block.layers) for block in self.blocks))


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

    subject = Subject(
        model,
        blocks,
        InputQuantisers([layer for block in blocks for layer in block.layers], params.activation_range),
        costs,
        params,
        out.device,
        _autocast(out.dtype),
    )
    if params.activation_bits != FULL_PRECISION:
        with subject.inputs.observing():
            subject.logits(torch.cat([image for image, _ in batches]))
    accuracy = write_accuracies(subject, solutions, curvature, parts, out)
    chosen = solutions[0].bits
    stages = finetuning_order(curvature, blocks, chosen, params)
    place = np.empty(len(blocks), dtype=np.int16)
    place[np.argsort(-stages, kind="stable")] = np.arange(1, len(blocks) + 1)
    out.write("order", place)
    out.write("order_omega", stages)
    if params.finetune == "none":
        finish(subject, chosen, parts.held_out, out)
        return
    subject.inputs.remove()
    compared = [0]
    if params.finetune_uniform:
        compared.append(nearest_uniform(solutions, costs, params.budget, limit))
    out.write("accuracy_before", accuracy[compared])
    finetune_solutions(pristine, subject, [solutions[i] for i in compared], curvature, parts, out)


def _model_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _autocast(dtype: torch.dtype) -> torch.dtype | None:
    """Half precisions are for inference; second derivatives are always taken in the model's own precision."""
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


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
    out: Out,
) -> np.ndarray:
    """Cost, Omega, accuracy and likelihood of every solution; solutions with equal widths are measured once.

    Returns the accuracies.
    """
    costs, params, free = subject.costs, subject.params, subject.costs.free
    error = weight_errors(subject.blocks, params.bits, params.granularity)
    omega = (curvature.objective[:, None] / costs.sizes[:, None] * error)[free]
    measured: dict[bytes, tuple[float, float]] = {}
    rows: dict[str, list[Any]] = {name: [] for name in ("average_bits", "size_mb", "bops", "omega_total", "cost")}
    scores = []
    for solution in out.track(solutions, "measuring accuracies"):
        key = solution.bits.tobytes()
        if key not in measured:
            measured[key] = score(subject.quantised_logits(solution.bits, parts.held_out.image), parts.held_out.label)
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
    out.write(
        "accuracy_full_precision", np.float64(score(subject.logits(parts.held_out.image), parts.held_out.label)[0])
    )
    own = score(subject.logits(parts.calibration.image), parts.calibration.label)[0]
    out.write("accuracy_calibration", np.float64(own))
    out.write("bits", solutions[0].bits.astype(np.int8))
    out.write("input_bits", costs.input_bits(solutions[0].bits).astype(np.int8))
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


def finish(subject: Subject, bits: np.ndarray, held_out: Images, out: Out) -> None:
    """Store the model with its quantised weights, and its logits on the report images."""
    logit = subject.quantised_logits(bits, held_out.image)
    if subject.params.activation_bits != FULL_PRECISION:
        out.write("input_range", _ranges(subject.inputs, subject.blocks))
    subject.inputs.remove()
    with torch.no_grad():
        for block, width in zip(subject.blocks, bits, strict=True):
            for layer, values in quantised_weights(block, int(width), subject.params.granularity).items():
                layer.get_parameter("weight").copy_(values)
    _store(subject.model, logit, held_out, out)


def _store(model: nn.Module, logit: Tensor, held_out: Images, out: Out) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    out.model(model)
    out.write("logit", logit)
    out.write("label", held_out.label)
    out.write("sample_index", held_out.index)


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
    out: Out,
) -> None:
    """Fine-tune the first solution and those to compare it with by the same recipe; store the first one's model."""
    params, blocks = subject.params, subject.blocks
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
        logit, _ = predict_all(network, parts.held_out.image, device=out.device, dtype=subject.autocast, keep_on="cpu")
        after.append(score(logit, parts.held_out.label)[0])
        if name == "chosen":
            if params.activation_bits != FULL_PRECISION:
                out.write("input_range", _ranges(network.inputs, blocks))
            network.inputs.remove()
            _store(network.model, logit.float(), parts.held_out, out)
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
