"""The steps of an inter-layer run: measure, order, test additivity, search along every order, judge and store."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from workbench import Inputs, Out

from workbench_quantization.bit_table import score, write_stored
from workbench_quantization.interlayer_measure import Sensitivity, measure
from workbench_quantization.interlayer_scores import (
    Step,
    best_subset,
    bisect,
    predicted_damage,
    sequential_order,
    shapley_scores,
    step_down,
)
from workbench_quantization.interlayer_study import Study, prepare

if TYPE_CHECKING:
    from workbench_quantization.interlayer import Params

EXACT_LAYERS = 60
"""Number of layers up to which the best subset is found by integer programming, and an order is also walked one by one."""
AUGMENTED, ONE_BY_ONE, EXACT = "augmented", "augmented, one by one", "exact pairs"


def run(inputs: Inputs, params: Params, out: Out) -> None:
    """Do everything and write every output."""
    study = prepare(inputs, params, out)
    start = study.losses_at(study.all_at(params.widths[0]))
    sensitivity = measure(study, start)
    orders = rank(study, sensitivity)
    write_subsets(study, sensitivity, float(start.mean()))
    tables = search(study, orders, sensitivity)
    if not np.array_equal(study.losses_at(study.all_at(params.widths[0])), start):
        raise RuntimeError("the model is not what it was before the search")
    finish(study, list(orders), tables)


def rank(study: Study, found: Sensitivity) -> dict[str, np.ndarray]:
    """Orders from least to most sensitive, by name: (width, layer) positions. Scores and orders are written.

    Layers that are not lowered come last.
    """
    params, rng = study.params, study.out.rng("random orders")
    columns = range(len(study.lower))

    def lowered_first(order: np.ndarray) -> np.ndarray:
        return np.concatenate([order[study.free[order]], order[~study.free[order]]])

    def by(values: np.ndarray) -> np.ndarray:
        return np.stack([lowered_first(order) for order in np.argsort(values, axis=0, kind="stable").T])

    augmented = np.stack([
        shapley_scores(
            found.hessian[:, c], found.interaction[..., c], params.interaction_weight, absolute=params.pair_mode == "abs"
        )
        for c in columns
    ], axis=1)  # fmt: skip
    study.out.write("layer_score", augmented)
    orders = {AUGMENTED: by(augmented), "hessian": by(found.curvature), "single losses": by(found.single)}
    if params.pair_mode == "sequential":
        orders[AUGMENTED] = np.stack([
            lowered_first(sequential_order(found.hessian[:, c], found.interaction[..., c], params.interaction_weight))
            for c in columns
        ])  # fmt: skip
    orders["rounding error"] = by(found.weight_error)
    if study.count <= EXACT_LAYERS:
        orders[ONE_BY_ONE] = orders[AUGMENTED]
    for draw in range(params.random_orders):
        orders[f"random {draw + 1}"] = np.stack([lowered_first(rng.permutation(study.count)) for _ in columns])
    order = np.stack(list(orders.values()))
    study.out.coordinate("order_name", list(orders))
    study.out.write("order", order.astype(np.int16))
    study.out.write("place", (np.argsort(order, axis=2) + 1).astype(np.int16))
    return orders


def write_subsets(study: Study, found: Sensitivity, base: float) -> None:
    """Are damages additive? Random subsets at the lowest width: measured, and as both models predict them.

    Measured on the calibration images, whose noise the models share, and on others. And all layers that are lowered, at every
    width.
    """
    rng, lowered = study.out.rng("subsets"), np.flatnonzero(study.free)
    largest = max(2, round(0.8 * len(lowered)))
    member = np.zeros((study.params.subsets, study.count), dtype=bool)
    for row in member:
        row[lowered[rng.permutation(len(lowered))[: rng.integers(2, largest + 1)]]] = True
    elsewhere = study.losses_at(study.all_at(study.params.widths[0]), study.others).mean()
    true = np.zeros((2, len(member)))
    for place, row in enumerate(study.out.track(list(member), "random subsets of layers")):
        bits = study.only(np.flatnonzero(row), study.lower[-1])
        true[:, place] = study.loss_at(bits) - base, study.losses_at(bits, study.others).mean() - elsewhere
    single, interaction = found.single[:, -1], found.interaction[..., -1]
    whole = [study.loss_at(study.only(lowered, width)) - base for width in study.lower]
    study.out.write("damage_all", np.array(whole))
    study.out.coordinate("damage_model", ["single layers", "with pairs"])
    study.out.write("subset_layer", member)
    study.out.write("subset_damage", true[0])
    study.out.write("subset_damage_elsewhere", true[1])
    study.out.write(
        "subset_prediction",
        np.stack([predicted_damage(member, single), predicted_damage(member, single, interaction)]),
    )


def search(study: Study, orders: dict[str, np.ndarray], found: Sensitivity) -> np.ndarray:
    """Bisection along every order for every target: widths (order, target, layer). The log of all steps is written.

    The augmented order is also walked one layer at a time, where the model is small enough.

    The exact subset comes last, where the model is small enough: for the target's augmented solution, the cheapest
    predicted damage at no more than its cost, between the highest and the lowest width.
    """
    params, out = study.params, study.out
    full = study.full_search_accuracy()
    out.write("search_accuracy_full_precision", np.float64(full))
    out.write("search_accuracy_highest", np.float64(study.search_accuracy(study.all_at(params.widths[0]))))
    tables = np.zeros((len(orders), len(params.targets), study.count), dtype=np.int64)
    spent = np.zeros((len(orders), len(params.targets)), dtype=np.int64)
    log: list[tuple[int, int, int, Step]] = []
    places = [(row, column) for row in range(len(orders)) for column in range(len(params.targets))]
    for row, column in out.track(places, "searching along orders"):
        name, order = list(orders.items())[row]
        before = study.evaluations
        study.accuracies.clear()  # so that what an order costs does not depend on those before it
        bits = study.all_at(params.widths[0])
        for step, width in enumerate(study.lower):
            candidates = [
                int(layer) for layer in order[step] if bits[layer] == params.widths[step] and study.free[layer]
            ]
            find = step_down if name == ONE_BY_ONE else bisect
            bits, steps = _lower(study, bits, candidates, width, params.targets[column] * full, find)
            log += [(row, column, width, taken) for taken in steps]
        tables[row, column] = bits
        spent[row, column] = study.evaluations - before
    out.write("evaluations", spent)
    out.write("step_order", np.array([row for row, *_ in log], dtype=np.int16))
    out.write("step_target", np.array([column for _, column, *_ in log], dtype=np.int16))
    out.write("step_width", np.array([width for _, _, width, _ in log], dtype=np.int8))
    out.write("step_tried", np.array([step.tried for *_, step in log], dtype=np.int16))
    out.write("step_accuracy", np.array([step.metric for *_, step in log]))
    out.write("step_passed", np.array([step.passed for *_, step in log]))
    if study.count <= EXACT_LAYERS:
        chosen, proven = _exact(study, found, tables[0])
        tables = np.concatenate([tables, chosen[None]])
        out.write("subset_proven", proven)
    return tables


Find = Callable[[Callable[[int], float], int, float], tuple[int, list[Step]]]


def _lower(
    study: Study, bits: np.ndarray, candidates: list[int], width: int, threshold: float, find: Find
) -> tuple[np.ndarray, list[Step]]:
    """Give `width` to as many of the candidates, in order, as the threshold allows."""

    def table(number: int) -> np.ndarray:
        lowered = bits.copy()
        lowered[candidates[:number]] = width
        return lowered

    number, steps = find(lambda tried: study.search_accuracy(table(tried)), len(candidates), threshold)
    return table(number), steps


def _exact(study: Study, found: Sensitivity, augmented: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The subset at the lowest width of least predicted damage that costs no more than `augmented`.

    Returns:
        Widths (target, layer), and whether each is proven to be the best (target,).
    """
    lowered = np.flatnonzero(study.free)
    saving = (study.cost[:, 0] - study.cost[:, -1])[lowered]
    diagonal, pairs = found.hessian[lowered, -1], found.interaction[..., -1][np.ix_(lowered, lowered)]
    tables, proven = [], []
    for bits in study.out.track(list(augmented), "solving for the best subset"):
        required = (1 - study.total_cost(bits)) * study.cost[:, 0].sum()
        chosen, certain = best_subset(diagonal, pairs, saving, required)
        tables.append(study.only(lowered[chosen], study.lower[-1]))
        proven.append(certain)
    return np.stack(tables), np.array(proven)


def finish(study: Study, names: list[str], tables: np.ndarray) -> None:
    """Judge every table on the report images and store the augmented solution of the first target."""
    params, out, held = study.params, study.out, study.held_out
    names = names + [EXACT] * (len(tables) - len(names))
    full = study.subject.logits(held.image, out)
    accuracy, likelihood, cost = (np.zeros(tables.shape[:2]) for _ in range(3))
    judged: dict[bytes, dict[str, float]] = {}
    for place in out.track(list(np.ndindex(tables.shape[:2])), "judging"):
        bits = tables[place]
        if bits.tobytes() not in judged:
            logit = study.subject.quantised_logits(study.applied(bits), params.granularity, held.image, out)
            judged[bits.tobytes()] = score(logit, full, held.label)
        accuracy[place] = judged[bits.tobytes()]["accuracy"]
        likelihood[place] = judged[bits.tobytes()]["negative_log_likelihood"]
        cost[place] = study.total_cost(bits)
    out.coordinate("solution", names)
    out.coordinate("target", np.array(params.targets))
    out.write("solution_bits", tables.astype(np.int8))
    out.write("accuracy", accuracy)
    out.write("negative_log_likelihood", likelihood)
    out.write("cost", cost)
    out.write("accuracy_full_precision", np.float64(score(full, full, held.label)["accuracy"]))
    out.write("search_samples", np.int64(len(study.search.label)))
    write_stored(study.subject, study.applied(tables[0, 0]), params.granularity, held, out)
    study.subject.inputs.remove()
