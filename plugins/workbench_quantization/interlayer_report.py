"""The report of an inter-layer run: whether layers interact, what the augmented order saves, and at which accuracy."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from workbench import Bar, HeatMap, Line, Metric, Report, Result, Scatter, Table
from workbench.report import View
from workbench.toolkit import wilson_interval

from workbench_quantization.report_parts import kept_note

RECONSTRUCTED = (
    "The paper's equations were not accessible: interactions and score are a reconstruction after CLADO "
    "(arXiv:2307.05657), sound in themselves but perhaps not the authors' exact augmentation."
)


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=(_solutions(result), _layers(result)),
        views=_views(result),
        notes=_notes(result),
    )


def _values(result: Result, name: str) -> np.ndarray:
    return np.asarray(result[name].values)


def _names(result: Result) -> list[str]:
    return [str(name) for name in result["accuracy"]["solution"].values]


def additivity(result: Result) -> dict[str, tuple[float, float]]:
    """Per damage model: Spearman correlation with the measured damage of random subsets, and the root mean square error."""
    true, predicted = _values(result, "subset_damage"), _values(result, "subset_prediction")
    names = [str(name) for name in result["subset_prediction"]["damage_model"].values]
    return {
        name: (float(spearmanr(row, true).statistic), float(np.sqrt(np.mean((row - true) ** 2))))
        for name, row in zip(names, predicted, strict=True)
    }


def unreachable(result: Result) -> list[float]:
    """Targets that the model misses on the search images before any layer is lowered; no order can meet them."""
    full, start = float(result["search_accuracy_full_precision"]), float(result["search_accuracy_highest"])
    return [target for target in result.params.targets if start < target * full]


def _random(result: Result) -> np.ndarray:
    return np.array([name.startswith("random") for name in _names(result)])


def _summary(result: Result) -> str:
    target, names = result.params.targets[0], _names(result)
    cost, accuracy = _values(result, "cost")[:, 0], _values(result, "accuracy")[:, 0]
    hessian, random = names.index("hessian"), _random(result)
    found = additivity(result)
    missed = (
        f"The target of {target:.2%} is missed with every layer at {result.params.widths[0]} bits already, so nothing was "
        "lowered. "
        if target in unreachable(result)
        else ""
    )
    return (
        f"{missed}At a target of {target:.2%} of the full-precision accuracy the augmented order costs {cost[0]:.1%} of all "
        f"layers at {result.params.widths[0]} bits ({result.params.cost}), curvature alone {cost[hessian]:.1%}, random orders "
        f"{np.median(cost[random]):.1%} in the median; accuracy on the report images {accuracy[0]:.1%} against "
        f"{float(result['accuracy_full_precision']):.1%}. Counting pairs, the damage of random subsets is predicted with a "
        f"rank correlation of {found['with pairs'][0]:.2f}, without {found['single layers'][0]:.2f}."
    )


def _metrics(result: Result) -> tuple[Metric, ...]:
    count = result["label"].sizes["sample"]
    accuracy, full = float(_values(result, "accuracy")[0, 0]), float(result["accuracy_full_precision"])
    cost, names, found = _values(result, "cost")[:, 0], _names(result), additivity(result)
    interaction = _values(result, "interaction")[..., -1]
    single = _values(result, "loss_single")[:, -1]
    pairs = np.abs(interaction[np.triu_indices(len(interaction), 1)])

    def share(name: str, value: float, description: str) -> Metric:
        low, high = wilson_interval(round(value * count), count)
        return Metric(
            name=name, value=value, direction="higher", interval=(float(low), float(high)), description=description
        )

    return (
        share("accuracy", accuracy, "augmented order, first target, on the report images (Wilson interval)"),
        share("accuracy_full_precision", full, "of the model as it came"),
        Metric(
            name="relative_cost", value=float(cost[0]), direction="lower", description="augmented order, first target"
        ),
        Metric(name="relative_cost_hessian", value=float(cost[names.index("hessian")]), direction="lower"),
        Metric(
            name="relative_cost_random",
            value=float(np.median(cost[_random(result)])),
            direction="lower",
            description=f"median of {int(_random(result).sum())} random orders",
        ),
        Metric(
            name="evaluations",
            value=float(_values(result, "evaluations")[0, 0]),
            direction="lower",
            description="accuracies measured by the augmented order's search",
        ),
        Metric(name="rank_correlation_with_pairs", value=found["with pairs"][0], direction="higher"),
        Metric(name="rank_correlation_single_layers", value=found["single layers"][0], direction="higher"),
        Metric(
            name="interaction_share",
            value=float(pairs.mean() / max(np.abs(single).mean(), 1e-12)),
            description="mean |J_ij| over mean |single-layer damage|, at the lowest width",
        ),
    )


def _solutions(result: Result) -> Table:
    names, targets = _names(result), result.params.targets
    cost, accuracy = _values(result, "cost"), _values(result, "accuracy")
    spent = _values(result, "evaluations")
    random = _random(result)
    rows: list[tuple[str | float | int | None, ...]] = []
    for column, target in enumerate(targets):
        for place, name in enumerate(names):
            if not random[place]:
                measured = int(spent[place, column]) if place < len(spent) else None
                rows.append((target, name, round(cost[place, column], 4), round(accuracy[place, column], 4), measured))
        middle = np.median(cost[random, column]), np.median(accuracy[random, column])
        rows.append(
            (target, f"random, median of {int(random.sum())}", round(middle[0], 4), round(middle[1], 4),
             int(np.median(spent[random[: len(spent)], column])))
        )  # fmt: skip
    return Table(
        title="Solutions",
        columns=("target", "order", "relative cost", "accuracy", "evaluations"),
        rows=tuple(rows),
        caption="Cost over that of all layers at the highest width; accuracy on the report images, which no search saw.",
    )


def _layers(result: Result) -> Table:
    names = [str(name) for name in result["bits"]["layer"].values]
    bits, score = _values(result, "solution_bits")[0, 0], _values(result, "layer_score")[:, -1]
    scaled = _values(result, "hessian_sensitivity")[:, -1]
    if result.params.fit_scale:
        scaled = scaled * _values(result, "hessian_scale")[-1]
    single = _values(result, "loss_single")[:, -1]
    # Not the ranks of the scores: `sequential` orders layers otherwise.
    ranks = np.argsort(_values(result, "order")[0, -1]), np.argsort(np.argsort(scaled, kind="stable"))
    return Table(
        title=f"Layers at {result.params.widths[-1]} bits",
        columns=("layer", "bits", "h", "score", "measured alone", "place in the order", "place by h"),
        rows=tuple(
            (name, int(bits[i]), float(f"{scaled[i]:.3g}"), float(f"{score[i]:.3g}"), float(f"{single[i]:.3g}"),
             int(ranks[0][i]) + 1, int(ranks[1][i]) + 1)
            for i, name in enumerate(names)
        ),
        caption="Place 1 is lowered first. Bits are those of the augmented order at the first target.",
    )  # fmt: skip


def _views(result: Result) -> tuple[View, ...]:
    lowest = result.params.widths[-1]
    views: list[View] = [
        HeatMap(
            title=f"How rounding errors of two layers at {lowest} bits interact (J)",
            z="interaction",
            x="layer",
            y="layer_2",
            diverging=True,
            select={"bit": lowest},
            z_label="rise of the loss",
            caption="Red: the two together cost more than the sum of both alone; blue: less.",
        ),
        Scatter(
            title="Damage of random subsets: single layers added up",
            x="subset_prediction",
            y="subset_damage",
            select={"damage_model": "single layers"},
            identity=True,
            x_label="predicted rise of the loss",
            y_label="measured",
        ),
        Scatter(
            title="The same with pairs",
            x="subset_prediction",
            y="subset_damage",
            select={"damage_model": "with pairs"},
            identity=True,
            x_label="predicted rise of the loss",
            y_label="measured",
        ),
        Bar(
            title=f"Score and single-layer damage at {lowest} bits",
            y=("layer_score", "loss_single"),
            x="layer",
            select={"bit": lowest},
            y_label="rise of the loss",
        ),
        Bar(title="Widths of the stored model", y=("bits",), x="layer", y_label="bits"),
        Line(
            title="Search: accuracy of everything tried",
            y=("step_accuracy",),
            x="step",
            markers=True,
            y_label="accuracy on the search images",
            caption="All orders and targets one after the other; the dips are what did not pass.",
        ),
        Scatter(
            title="Accuracy against cost",
            x="cost",
            y="accuracy",
            label="solution",
            select={"target": result.params.targets[0]},
            x_label=f"relative {result.params.cost}",
            y_label="accuracy on the report images",
        ),
    ]
    return tuple(views)


def _notes(result: Result) -> tuple[str, ...]:
    notes = [RECONSTRUCTED]
    count, samples = int(result["search_samples"]), result["label"].sizes["sample"]
    strict = max(result.params.targets)
    if 1 / count > (1 - strict) / 2:
        notes.append(
            f"One of {count} search images is {1 / count:.2%} of the accuracy; a target of {strict:.2%} cannot be told apart "
            "from the next coarser one with so few."
        )
    notes.append(
        f"Orders and widths were chosen on {count} search images; accuracies are those of {samples} others. A guarantee on the "
        "search images is not one on new images: see the interval."
    )
    if missed := unreachable(result):
        inputs = "" if result.params.act_bits in ("weight", 32) else f" and inputs at {result.params.act_bits}"
        notes.append(
            f"With every layer at {result.params.widths[0]} bits{inputs} the accuracy on the search images is "
            f"{float(result['search_accuracy_highest']):.1%} against {float(result['search_accuracy_full_precision']):.1%} in "
            f"full precision: {', '.join(f'{target:.2%}' for target in missed)} cannot be met, and its solutions do not meet it."
        )
    flat = _values(result, "hessian_scale") == 0
    if result.params.fit_scale and flat.any():
        widths = " and ".join(str(width) for width, none in zip(result.params.widths[1:], flat, strict=True) if none)
        notes.append(
            f"At {widths} bits curvature does not go along with the damages of single layers (they are no more than noise, "
            "perhaps): it counts nothing in the score there, which rests on interactions alone."
        )
    if result.params.act_bits != 32:
        notes.append(
            "The stored model has quantised weights only; the ranges of its inputs are in `input_range`, and `logit` and "
            "accuracies were computed with quantised inputs (`workbench_quantization.deployed_model(run)` has both)."
        )
    single = _values(result, "loss_single")[:, -1]
    if (single < 0).any():
        notes.append(
            f"{int((single < 0).sum())} of {len(single)} layers lower the calibration loss when rounded alone; they count as "
            "they are, with their sign."
        )
    if "subset_proven" in result and not result["subset_proven"].values.all():
        notes.append(
            "`exact pairs` is the best subset found within the time limit for at least one target, not proven to be the best; "
            "a faster machine may find a better one."
        )
    if result.params.cost == "latency":
        notes.append(
            f"Latency is a roofline (throughput doubles with each halving of the width, {result.params.intensity:g} "
            "multiply-accumulates at 16 bit per byte), not a measurement."
        )
    return (*notes, *kept_note(result))
