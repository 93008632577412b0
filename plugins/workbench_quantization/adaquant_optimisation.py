"""AdaQuant of all layers at all widths: each behind the layers before it, or all for themselves and several at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from workbench import Out

from workbench_quantization.adaquant_layers import Quantised, Rates, Student, error, initial, optimise, output
from workbench_quantization.folding import Unit
from workbench_quantization.hawq_solutions import Costs

if TYPE_CHECKING:
    from workbench_quantization.adaquant import Params

MEMORY = 2 * 2**30
"""Bytes of inputs and outputs that layers optimised at the same time may hold together."""


@dataclass
class Calibration:
    """Calibration images on the run's device: in batches to optimise on, and a part that only shows errors."""

    fit: list[Tensor]
    held: list[Tensor]
    image: Tensor
    label: Tensor
    batches: list[Tensor]


@dataclass(frozen=True)
class Candidates:
    """Every layer at every width: (width, layer) before and after AdaQuant."""

    naive: list[list[Quantised]]
    tuned: list[list[Quantised]]

    def pick(self, table: str, bits: np.ndarray, widths: np.ndarray) -> list[Quantised]:
        """The states of one solution; layers of a fixed width are alike in all columns."""
        columns = np.minimum(np.searchsorted(widths, bits), len(widths) - 1)
        chosen = self.naive if table == "naive" else self.tuned
        return [chosen[column][place] for place, column in enumerate(columns)]


@dataclass(frozen=True)
class Problem:
    """One layer at one width: where it starts, what it receives and should return, and the same of images not fitted on."""

    unit: Unit
    start: Quantised
    fit: Tensor
    target: Tensor
    shown: Tensor
    wanted: Tensor
    generator: torch.Generator


@dataclass(frozen=True)
class Solved:
    """The optimised layer; loss of every step, and before and after error and signal-to-noise ratio (dB) on held-out images."""

    state: Quantised
    curve: np.ndarray
    errors: tuple[float, float]
    ratios: tuple[float, float]


OnStep = Callable[[int], None]


def optimise_layers(
    teacher: Student, student: Student, calibration: Calibration, costs: Costs, params: Params, out: Out
) -> Candidates:
    """AdaQuant of every layer at every width; writes errors before and after on images that were not optimised on."""
    count, columns = len(student.units), len(costs.widths)
    errors, ratios = (np.zeros((count, columns, 2)) for _ in range(2))
    curve = np.zeros((count, columns, params.iterations), dtype=np.float32)
    naive: list[list[Quantised]] = []
    tuned: list[list[Quantised]] = []
    for column in range(columns):
        bits = costs.complete(np.full(len(costs.free), column))
        widths = costs.input_bits(bits)
        student.install_all([None] * count)

        def pose(place: int, bits: np.ndarray = bits, widths: np.ndarray = widths) -> Problem:
            return _problem(teacher, student, place, int(bits[place]), int(widths[place]), calibration, params, out)

        def report(step: int, of_column: int, column: int = column) -> None:
            total = of_column * params.iterations
            out.progress(column * total + step, columns * total, "optimising layers")

        if params.mode == "sequential":
            problems, solved = _one_by_one(pose, student, params, report)
        else:
            # A layer of a fixed width is the same in all columns.
            fresh = [place for place in range(count) if not (column and costs.fixed[place])]
            at_once = concurrent_layers(teacher, calibration)
            problems, solved = solve_several(pose, fresh, at_once, params, report)
        naive.append([problems[place] if place in problems else naive[0][place] for place in range(count)])
        tuned.append([solved[place].state if place in solved else tuned[0][place] for place in range(count)])
        for place in range(count):
            if place in solved:
                found = solved[place]
                errors[place, column], ratios[place, column] = found.errors, found.ratios
                curve[place, column] = found.curve
            else:
                for values in (errors, ratios, curve):
                    values[place, column] = values[place, 0]
    out.coordinate("state", ["naive", "adaquant"])
    out.write("layer_error", errors)
    out.write("signal_to_noise", ratios)
    out.write("layer_loss", curve)
    return Candidates(naive, tuned)


def concurrent_layers(teacher: Student, calibration: Calibration) -> int:
    """How many layers are optimised at the same time: as many as torch has threads, while what they hold fits `MEMORY`.

    One on a GPU, whose kernels are queued anyway.
    """
    image = calibration.image
    if image.device.type != "cpu":
        return 1
    held = [
        sum(tensor.numel() for tensor in teacher.collect(place, [image[:1]])) * image.element_size() * len(image)
        for place in range(len(teacher.units))
    ]
    return max(1, min(torch.get_num_threads(), len(held), MEMORY // max(held)))


def _problem(
    teacher: Student,
    student: Student,
    place: int,
    bits: int,
    width: int,
    calibration: Calibration,
    params: Params,
    out: Out,
) -> Problem:
    unit = student.units[place]
    fit, target = teacher.collect(place, calibration.fit)
    shown, wanted = teacher.collect(place, calibration.held)
    # Naive ranges are those of full-precision inputs in either mode.
    start = initial(unit, fit, bits, width)
    if params.mode == "sequential" and place:
        fit, shown = student.collect(place, calibration.fit)[0], student.collect(place, calibration.held)[0]
    return Problem(unit, start, fit, target, shown, wanted, out.generator(f"{unit.name} at {bits} bits"))


def _solve(problem: Problem, params: Params, on_step: OnStep) -> Solved:
    unit, start = problem.unit, problem.start
    curve = np.zeros(params.iterations, dtype=np.float32)

    def note(step: int, loss: float) -> None:
        curve[step] = loss
        on_step(step)

    end = optimise(
        unit,
        start,
        problem.fit,
        problem.target,
        rates=rates_of(start, params),
        parts=params.parts,
        iterations=params.iterations,
        batch=params.batch_size,
        rectify=params.relu_aware,
        generator=problem.generator,
        on_step=note,
    )
    errors, ratios = [], []
    with torch.no_grad():
        for state in (start, end):
            errors.append(float(error(unit, state, problem.shown, problem.wanted, rectify=params.relu_aware)))
            noise = (output(unit, state, problem.shown) - problem.wanted).double().square().mean()
            signal = problem.wanted.double().square().mean()
            ratios.append(10 * float(torch.log10(signal.clamp_min(1e-30) / noise.clamp_min(1e-30))))
    return Solved(end, curve, (errors[0], errors[1]), (ratios[0], ratios[1]))


def _one_by_one(
    pose: Callable[[int], Problem], student: Student, params: Params, report: Callable[[int, int], None]
) -> tuple[dict[int, Quantised], dict[int, Solved]]:
    """Every layer in turn, and the student quantised up to it."""
    starts: dict[int, Quantised] = {}
    solved: dict[int, Solved] = {}
    count = len(student.units)
    for place in range(count):
        problem = pose(place)

        def note(step: int, place: int = place) -> None:
            if step % 10 == 0:
                report(place * params.iterations + step, count)

        starts[place], solved[place] = problem.start, _solve(problem, params, note)
        student.install(place, solved[place].state)
    return starts, solved


class _StoppedError(Exception):
    """Ends a layer's optimisation because the run ends."""


def solve_several(
    pose: Callable[[int], Problem],
    places: Sequence[int],
    at_once: int,
    params: Params,
    report: Callable[[int, int], None],
    threads: int | None = None,
) -> tuple[dict[int, Quantised], dict[int, Solved]]:
    """Layers that do not depend on each other, `at_once` at a time, each in a thread with its share of torch's threads.

    What a layer becomes does not depend on the others, and on how many there are at a time only through `threads`, whose
    number decides in which order torch adds (the last bits). torch lets go of the interpreter while it computes, so that
    threads suffice.

    Args:
        pose: makes a layer's problem; called by this thread only, and no earlier than there is room.
        places: of the layers.
        at_once: layers at a time.
        params: of the run.
        report: called by this thread with steps done and the number of layers; what it raises ends the work.
        threads: torch's threads per layer, and of `pose`; None: an equal share of what torch has now.
    """
    before = torch.get_num_threads()
    each = threads or max(1, before // at_once)
    starts: dict[int, Quantised] = {}
    running: dict[Future[Solved], int] = {}
    solved: dict[int, Solved] = {}
    steps = dict.fromkeys(places, 0)
    stop = threading.Event()

    def counting(place: int) -> OnStep:
        def note(step: int) -> None:
            if stop.is_set():
                raise _StoppedError
            steps[place] = step

        return note

    def collect(room: int) -> None:
        while len(running) > room:
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                solved[running.pop(future)] = future.result()
            report(sum(steps.values()), len(places))

    try:
        # This thread collects inputs beside the layers: with more threads than cores, torch's wait for each other, spinning.
        torch.set_num_threads(each)
        with ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            try:
                for place in places:
                    collect(at_once - 1)
                    problem = pose(place)
                    starts[place] = problem.start
                    running[pool.submit(_solve, problem, params, counting(place))] = place
                collect(0)
            finally:
                stop.set()
    finally:
        torch.set_num_threads(before)
    return starts, solved


def rates_of(state: Quantised, params: Params) -> Rates:
    """Adam's rates for one layer."""
    if params.rate_mode == "absolute":
        return Rates(params.weight_rate, params.bias_rate, params.weight_range_rate, params.input_range_rate)
    return Rates(
        5e-3 * max(float(state.weight.std()), 1e-8),
        params.bias_rate,
        2e-3 * max(float(state.weight_span.mean()), 1e-8),
        1e-2 * max(float(state.input_span), 1e-8),
    )
