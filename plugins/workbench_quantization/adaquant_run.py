"""The steps of an AdaQuant run: fold, optimise layers, measure them, allocate widths, judge every stage, store one model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from workbench import InputError, Inputs, Out
from workbench.toolkit import evaluating, predict_all, to_tensor

from workbench_quantization.adaquant_end_to_end import judge_fits, write_fits
from workbench_quantization.adaquant_layers import Student, integers
from workbench_quantization.adaquant_optimisation import Calibration, Candidates, optimise_layers
from workbench_quantization.affine_weights import AffineWeight, narrow_widths, write_affine
from workbench_quantization.allocator import allocate_greedy, allocate_program, fits, fraction_to_budget
from workbench_quantization.bit_table import table_of_widths
from workbench_quantization.folding import Unit, find_units, fold
from workbench_quantization.hawq_images import Images, check_labels, split_roles
from workbench_quantization.hawq_solutions import MEGABYTE, BudgetKind, Costs, Solution
from workbench_quantization.layers import find_blocks, multiply_accumulates
from workbench_quantization.quantizer import FULL_PRECISION

if TYPE_CHECKING:
    from workbench_quantization.adaquant import Params

Budget = Literal["size", "bops"]
STAGES = ("naive", "naive + norms", "adaquant", "adaquant + norms", "adaquant + norms + biases")
SMALLEST_INCREASE = 1e-6
"""Floor of the program's objective: a layer that was lucky on the calibration images shall not be free more than once."""


def run(inputs: Inputs, params: Params, out: Out) -> None:
    """Do everything and write every output."""
    model = inputs["model"]
    require_single_precision(model)
    parts = split_roles(
        inputs, out, report_fraction=params.report_fraction, calibration_samples=params.calibration_samples
    )
    check_labels(model, parts, out.device)
    calibration = prepare(parts.calibration, model, params, out)
    blocks, reasons = find_blocks(model, calibration.image[:1])
    if not blocks:
        out.skip("the model has no convolution or linear layer with a weight of its own")
    given = None
    if inputs.get("table") is not None:
        given = narrow_widths(table_of_widths(inputs["table"], [block.name for block in blocks]))
    fixed = np.zeros(len(blocks), dtype=np.int64)
    if params.first_last_bits is not None:
        fixed[[0, -1]] = params.first_last_bits if given is None else given[[0, -1]]
    free_widths = () if given is None else given[fixed == 0].tolist()
    costs = Costs(
        np.array([block.size for block in blocks], dtype=np.int64),
        multiply_accumulates(model, blocks, parts.calibration.image.shape[1:]),
        np.array(sorted({*params.bits, *free_widths})),
        fixed,
        None if params.act_bits == "weight" else params.act_bits,
    )
    if not len(costs.free):
        out.skip("first and last layer are all there is to quantise; first_last_bits=None lets them in")
    budgets = budgets_of(costs, params.compression, params.budget)

    full = predict_all(model, parts.held_out.image, device=out.device, keep_on="cpu")[0]
    own = predict_all(model, calibration.image, device=out.device)[0]
    out.write("accuracy_full_precision", np.float64(_score(full, parts.held_out.label)[0]))
    out.write("accuracy_calibration", np.float64(_score(own, calibration.label)[0]))
    units = find_units(model, blocks, calibration.image[:1])
    fold(model, units, calibration.image[: params.batch_size])
    out.coordinate("layer", [unit.name for unit in units])
    out.coordinate("bit", costs.widths)
    out.write("parameter_count", costs.sizes)
    out.write("macs", costs.macs)
    if reasons:
        out.coordinate("parameter", list(reasons))
        out.write("unquantised_reason", list(reasons.values()))
    out.write("fixed", fixed > 0)
    out.write("normalised", np.array([unit.norm is not None for unit in units]))
    out.write("rectified", np.array([unit.rectified for unit in units]))

    teacher, student = Student(*copied(model, units)), Student(model, units)
    candidates = optimise_layers(teacher, student, calibration, costs, params, out)
    teacher.close()
    increases = measure_increases(student, candidates, calibration, costs, out)
    solutions, targets = allocate(increases[params.objective], costs, budgets, params.budget, given)
    write_solutions(solutions, targets, increases[params.objective], costs, out)
    if params.end_to_end_steps:
        naive, tuned = (candidates.pick(table, solutions[0].bits, costs.widths) for table in ("naive", "tuned"))
        write_fits(judge_fits(student, naive, tuned, calibration, parts.held_out, params, out), out)
    judge(student, candidates, solutions, own, calibration, parts.held_out, costs, params, out)


def require_single_precision(model: nn.Module) -> None:
    """Raise InputError for a model in half precision: Adam's small steps and folded norms need more digits."""
    halves = {p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)}
    if halves:
        raise InputError(
            "model",
            expected="weights in float32 or float64, in which layers are optimised",
            got=" and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in halves)),
            hint="model.float() makes them so.",
        )


def prepare(images: Images, model: nn.Module, params: Params, out: Out) -> Calibration:
    """The calibration images, shuffled, in 0..1 and in the model's precision."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    order = torch.randperm(len(images.label), generator=out.generator("calibration order"))
    image = to_tensor(images.image[order], device=out.device).to(dtype)
    held = max(1, round(params.validation_fraction * len(image)))
    if len(image) - held < 1:
        raise InputError("data", expected="at least 2 calibration images", got=str(len(image)))
    size = params.batch_size
    batches = list(image.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        # One image alone has no variance over a vector of features, and would weigh as much as a whole batch.
        batches[-2:] = [torch.cat(batches[-2:])]
    return Calibration(
        list(image[held:].split(size)),
        list(image[:held].split(size)),
        image,
        images.label[order].to(out.device),
        batches,
    )


def copied(model: nn.Module, units: Sequence[Unit]) -> tuple[nn.Module, list[Unit]]:
    """A copy of the model with units that point into it."""
    other = copy.deepcopy(model)
    partner = {id(mine): theirs for mine, theirs in zip(model.modules(), other.modules(), strict=True)}
    return other, [
        replace(
            unit,
            layer=partner[id(unit.layer)],
            norm=None if unit.norm is None else partner[id(unit.norm)],  # type: ignore[arg-type]
        )
        for unit in units
    ]


UNITS: dict[Budget, BudgetKind] = {"size": "size_mb", "bops": "bops"}


def whole_cost(costs: Costs, budget: Budget) -> float:
    """What a share is a share of: MB of 32-bit weights; or bit operations with 32-bit weights and inputs of the base width.

    The official code's total * C * 32 / base is both times the share C of it.
    """
    if budget == "size":
        return float(costs.sizes.sum()) * FULL_PRECISION / 8 / MEGABYTE
    inputs = int(costs.widths[-1]) if costs.activation_bits is None else costs.activation_bits
    return float(costs.macs.sum()) * FULL_PRECISION * inputs


def budgets_of(costs: Costs, shares: Sequence[float] | None, budget: Budget) -> dict[float, float]:
    """Per target (share of `whole_cost`, ascending) what the free layers may take, in MB or bit operations.

    Raises:
        InputError: a target is smaller than all layers at the lowest width.
    """
    table, fixed = costs.table(UNITS[budget]), costs.fixed_cost(UNITS[budget])
    whole = whole_cost(costs, budget)
    if shares is None:
        limits = [fraction_to_budget(table, fraction) for fraction in (0.25, 0.5, 0.75)]
        return {(limit + fixed) / whole: limit for limit in dict.fromkeys(limits)}
    lowest = np.zeros(len(table), dtype=np.int64)
    for share in shares:
        if not fits(table, lowest, share * whole - fixed):
            least = (float(table[:, 0].sum()) + fixed) / whole
            raise InputError(
                "compression",
                expected=f"at least {least:.4f} (all at {costs.widths[0]} bits, first and last layer as they are fixed)",
                got=f"{share:.4g}",
            )
    return {share: share * whole - fixed for share in sorted(set(shares))}


def measure_increases(
    student: Student, candidates: Candidates, calibration: Calibration, costs: Costs, out: Out
) -> dict[str, np.ndarray]:
    """Rise of calibration loss and error rate when one layer alone leaves the base width: (layer, width) each."""
    base = costs.complete(np.full(len(costs.free), len(costs.widths) - 1))
    states = candidates.pick("tuned", base, costs.widths)
    student.install_all(states)

    def measured() -> tuple[float, float]:
        logit = torch.cat([_logits(student.model, batch) for batch in calibration.batches])
        accuracy, loss = _score(logit, calibration.label)
        return loss, 1 - accuracy

    loss, wrong = measured()
    increase = {name: np.zeros((len(student.units), len(costs.widths))) for name in ("loss", "accuracy")}
    for place in out.track(costs.free.tolist(), "measuring single layers"):
        for column in range(len(costs.widths) - 1):
            student.install(place, candidates.tuned[column][place])
            switched = measured()
            increase["loss"][place, column] = switched[0] - loss
            increase["accuracy"][place, column] = switched[1] - wrong
        student.install(place, states[place])
    out.write("base_loss", np.float64(loss))
    out.write("loss_increase", increase["loss"])
    out.write("error_increase", increase["accuracy"])
    return increase


def program_objective(increase: np.ndarray, costs: Costs) -> np.ndarray:
    """max(increase, 1e-6) of the free layers, 0 at the base width: (free, width)."""
    objective = np.maximum(increase[costs.free], SMALLEST_INCREASE)
    objective[:, -1] = 0.0
    return objective


def allocate(
    increase: np.ndarray, costs: Costs, budgets: dict[float, float], budget: Budget, given: np.ndarray | None
) -> tuple[list[Solution], list[float]]:
    """A given table of widths first, the program's and the greedy solution of every target, and one width for all.

    With the target of each, NaN where there is none.
    """
    objective, table = program_objective(increase, costs), costs.table(UNITS[budget])
    solutions, targets = [], []
    if given is not None:
        solutions.append(Solution("given widths", "given", given))
        targets.append(float("nan"))
    for share, limit in budgets.items():
        for kind, choice in (
            ("program", allocate_program(objective, table, limit)),
            ("greedy", allocate_greedy(objective, table, limit)),
        ):
            solutions.append(Solution(f"{kind} at {share:.3f}", kind, costs.complete(choice)))
            targets.append(share)
    for column, width in enumerate(costs.widths):
        same = costs.complete(np.full(len(costs.free), column))
        solutions.append(Solution(f"uniform {width} bit", "uniform", same))
        targets.append(float("nan"))
    return solutions, targets


def write_solutions(
    solutions: Sequence[Solution], targets: Sequence[float], increase: np.ndarray, costs: Costs, out: Out
) -> None:
    """Widths, sizes and the program's objective of every solution, and the cells of the first in the table of widths."""
    objective, free = program_objective(increase, costs), costs.free
    rows = np.arange(len(free))
    out.coordinate("solution", [solution.name for solution in solutions])
    out.write("chosen", solutions[0].bits[:, None] == costs.widths[None])
    out.write("solution_kind", [solution.kind for solution in solutions])
    out.write("solution_bits", np.stack([solution.bits for solution in solutions]).astype(np.int8))
    out.write("size_share", np.array([costs.average_bits(solution.bits) / 32 for solution in solutions]))
    out.write("bops", np.array([costs.bops(solution.bits) for solution in solutions]))
    out.write("target_share", np.array(targets))
    columns = [np.searchsorted(costs.widths, solution.bits[free]) for solution in solutions]
    out.write("predicted_increase", np.array([objective[rows, column].sum() for column in columns]))


def judge(
    student: Student,
    candidates: Candidates,
    solutions: Sequence[Solution],
    teacher: Tensor,
    calibration: Calibration,
    held_out: Images,
    costs: Costs,
    params: Params,
    out: Out,
) -> None:
    """Accuracy of every stage of every solution (equal widths once); the first solution is stored after its last stage."""
    stages = STAGES if params.bias_steps else STAGES[:-1]
    scores = np.zeros((len(solutions), len(stages), 2))
    correct = np.zeros((len(stages), len(held_out.label)), dtype=bool)
    alike: dict[bytes, int] = {}
    for place, solution in enumerate(solutions):
        alike.setdefault(solution.bits.tobytes(), place)
    # The first solution last, so that the student ends up as what is stored.
    for place in out.track(sorted(alike.values(), reverse=True), "judging solutions"):
        bits = solutions[place].bits

        def measure(stage: int, row: int = place) -> Tensor:
            logit = predict_all(student.model, held_out.image, device=out.device, keep_on="cpu")[0].float()
            scores[row, stage] = _score(logit, held_out.label)
            if row == 0:
                correct[stage] = (logit.argmax(1) == held_out.label).numpy()
            return logit

        for first, table in ((0, "naive"), (2, "tuned")):
            student.install_all(candidates.pick(table, bits, costs.widths))
            measure(first)
            shifts = student.tune_norms(calibration.batches, passes=params.norm_passes, momentum=params.norm_momentum)
            logit = measure(first + 1)
        if params.bias_steps:
            student.tune_biases(
                teacher,
                calibration.image,
                steps=params.bias_steps,
                batch=params.batch_size,
                rate=params.bias_tuning_rate,
                generator=out.generator(f"biases of {bits.tolist()}"),
                on_step=lambda step, _loss: out.progress(step, params.bias_steps, "tuning biases"),
            )
            logit = measure(4)
    scores = scores[[alike[solution.bits.tobytes()] for solution in solutions]]
    out.coordinate("stage", list(stages))
    out.write("accuracy", scores[..., 0])
    out.write("negative_log_likelihood", scores[..., 1])
    out.write("correct", correct)
    for name, whole, parts in zip(
        ("norm_mean_shift", "norm_deviation_shift"),
        shifts.root_mean_squares,
        (shifts.mean, shifts.deviation),
        strict=True,
    ):
        out.write(name, np.array(whole))
        out.write(f"{name}_channel", shifts.table(parts))
    _store(student, solutions[0].bits, logit, held_out, costs, out)


def _store(student: Student, bits: np.ndarray, logit: Tensor, held_out: Images, costs: Costs, out: Out) -> None:
    states = [state for state in student.states if state is not None]
    out.write("bits", bits.astype(np.int8))
    out.write("input_bits", costs.input_bits(bits).astype(np.int8))
    whole = [state.weight_bits < FULL_PRECISION for state in states]
    write_affine(
        [AffineWeight(*integers(s)) if is_whole else None for s, is_whole in zip(states, whole, strict=True)], out
    )
    out.write("input_range", torch.stack([torch.stack([s.input_low, s.input_span]) for s in states]).float())
    student.close()
    for parameter in student.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    out.model(student.model)
    out.write("logit", logit)
    out.write("label", held_out.label)
    out.write("sample_index", held_out.index)


def _logits(model: nn.Module, batch: Any) -> Tensor:
    with evaluating(model):
        return model(batch)


def _score(logit: Tensor, label: Tensor) -> tuple[float, float]:
    """Accuracy and negative log-likelihood."""
    return float((logit.argmax(1) == label).double().mean()), float(F.cross_entropy(logit.double(), label))
