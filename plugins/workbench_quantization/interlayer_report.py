"""The report of an inter-layer run: whether layers interact, what the augmented order saves, and at which accuracy."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from workbench import Metric, Report, Result, Table
from workbench.toolkit import wilson_interval

from workbench_quantization.interlayer_views import estimators, views
from workbench_quantization.report_parts import kept_note, values

RECONSTRUCTED = (
    "The paper's equations were not accessible: interactions and score are a reconstruction after CLADO "
    "(arXiv:2307.05657), sound in themselves but perhaps not the authors' exact augmentation."
)

FEW_TOLD = 0.2
"""Share of interactions that stand out from the noise of the images below which the report warns."""


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=(_solutions(result), _layers(result), *_damages(result)),
        views=views(result),
        notes=_notes(result),
    )


def _names(result: Result) -> list[str]:
    return [str(name) for name in result["accuracy"]["solution"].values]


def additivity(result: Result, measured: str = "subset_damage") -> dict[str, tuple[float, float]]:
    """Per damage model: Spearman correlation with the measured damage of random subsets, and the root mean square error."""
    true, predicted = values(result, measured), values(result, "subset_prediction")
    names = [str(name) for name in result["subset_prediction"]["damage_model"].values]
    return {
        name: (float(spearmanr(row, true).statistic), float(np.sqrt(np.mean((row - true) ** 2))))
        for name, row in zip(names, predicted, strict=True)
    }


def _predicted(result: Result) -> str:
    """How well damages of random subsets are predicted, on images that nothing was measured on where there are some."""
    same = additivity(result)
    if "subset_damage_elsewhere" not in result:
        pairs, single = same["with pairs"][0], same["single layers"][0]
        return (
            f"Counting pairs, the damage of random subsets on the calibration images is predicted with a rank correlation of "
            f"{pairs:.2f}, without {single:.2f}."
        )
    other = additivity(result, "subset_damage_elsewhere")
    return (
        "Counting pairs, the damage of random subsets on other images is predicted with a rank correlation of "
        f"{other['with pairs'][0]:.2f} (without {other['single layers'][0]:.2f}) and an error of {other['with pairs'][1]:.2g} "
        f"(without {other['single layers'][1]:.2g})."
    )


def _judged(result: Result) -> list[tuple[dict[str, tuple[float, float]], str, str]]:
    """Where predictions of damage were judged: figures, ending of their metrics' names, and what images these were."""
    places = [(additivity(result), "", "on the calibration images, whose noise the prediction shares")]
    if "subset_damage_elsewhere" in result:
        places.append((additivity(result, "subset_damage_elsewhere"), "_elsewhere", "on other images"))
    return places


def unreachable(result: Result) -> list[float]:
    """Targets that the model misses on the search images before any layer is lowered; no order can meet them."""
    full, start = float(result["search_accuracy_full_precision"]), float(result["search_accuracy_highest"])
    return [target for target in result.params.targets if start < target * full]


def _random(result: Result) -> np.ndarray:
    return np.array([name.startswith("random") for name in _names(result)])


def _summary(result: Result) -> str:
    target, names = result.params.targets[0], _names(result)
    cost, accuracy = values(result, "cost")[:, 0], values(result, "accuracy")[:, 0]
    hessian, random = names.index("hessian"), _random(result)
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
        f"{float(result['accuracy_full_precision']):.1%}. {_predicted(result)}"
    )


def _metrics(result: Result) -> tuple[Metric, ...]:
    count = result["label"].sizes["sample"]
    accuracy, full = float(values(result, "accuracy")[0, 0]), float(result["accuracy_full_precision"])
    cost, names = values(result, "cost")[:, 0], _names(result)
    interaction = values(result, "interaction")[..., -1]
    single = values(result, "loss_single")[:, -1]
    pairs = np.abs(interaction[np.triu_indices(len(interaction), 1)])
    told = told_pairs(result)

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
            value=float(values(result, "evaluations")[0, 0]),
            direction="lower",
            description="accuracies measured by the augmented order's search",
        ),
        *(
            Metric(
                name=f"{kind}_{short}{where}",
                value=of[model][place],
                unit="nat" if place else "",
                direction="lower" if place else "higher",
                description=f"of the damage of random subsets, {told}",
            )
            for of, where, told in _judged(result)
            for model, short in (("with pairs", "with_pairs"), ("single layers", "single_layers"))
            for place, kind in enumerate(("rank_correlation", "prediction_error"))
        ),
        Metric(
            name="interaction_share",
            value=float(pairs.mean() / max(np.abs(single).mean(), 1e-12)),
            description="mean |J_ij| over mean |single-layer damage|, at the lowest width",
        ),
        *(
            ()
            if told is None
            else (
                Metric(
                    name="interactions_told",
                    value=told,
                    direction="higher",
                    description="share of J_ij beyond two standard errors of the calibration images, at the lowest width",
                ),
            )
        ),
    )


def _solutions(result: Result) -> Table:
    names, targets = _names(result), result.params.targets
    cost, accuracy = values(result, "cost"), values(result, "accuracy")
    spent = values(result, "evaluations")
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
    bits, score = values(result, "solution_bits")[0, 0], values(result, "layer_score")[:, -1]
    scaled = values(result, "hessian_sensitivity")[:, -1]
    if result.params.fit_scale:
        scaled = scaled * values(result, "hessian_scale")[-1]
    single = values(result, "loss_single")[:, -1]
    # Not the ranks of the scores: `sequential` orders layers otherwise.
    ranks = np.argsort(values(result, "order")[0, -1]), np.argsort(np.argsort(scaled, kind="stable"))
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


def told_pairs(result: Result) -> float | None:
    """Share of the interactions at the lowest width that are beyond two standard errors; None where errors are not known."""
    if "interaction_error" not in result:
        return None
    interaction, error = values(result, "interaction")[..., -1], values(result, "interaction_error")[..., -1]
    upper = np.triu(np.isfinite(error) & (error > 0), 1)
    return float((np.abs(interaction) > 2 * error)[upper].mean()) if upper.any() else None


def _damages(result: Result) -> tuple[Table, ...]:
    """All layers at once: what the models of damage say, and what was measured; none in runs of before it was."""
    if "damage_all" not in result:
        return ()
    single, score = values(result, "loss_single"), values(result, "layer_score")
    interaction = values(result, "interaction")
    lowered = _lowered(result)
    rows = []
    for column, width in enumerate(result.params.widths[1:]):
        alone = float(single[lowered, column].sum())
        pairs = float(interaction[..., column].sum() / 2)
        agreed = estimators(result)[column]
        rows.append(
            (width, *(_digits(value) for value in (
                float(values(result, "damage_all")[column]), alone, alone + pairs, float(score[lowered, column].sum()))),
             None if agreed is None else round(agreed[0], 2), None if agreed is None else round(agreed[1], 2))
        )  # fmt: skip
    return (
        Table(
            title="All layers at one width: rise of the loss, measured and as sums",
            columns=("bits", "measured", "single layers", "with pairs", "scores", "J: rank correlation", "J: slope"),
            rows=tuple(rows),
            caption="Where a sum with pairs is far off, more than two layers at a time interact. J: differences of losses "
            "against Hessian-vector products, pair by pair; 1 and 1 where the loss is quadratic and weights alone are rounded.",
        ),
    )


def _lowered(result: Result) -> np.ndarray:
    """(layer,) bool: which layers may be lowered."""
    lowered = np.ones(result["bits"].sizes["layer"], dtype=bool)
    if getattr(result.params, "first_last", "searched") == "highest":
        lowered[[0, -1]] = False
    return lowered


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


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
    flat = values(result, "hessian_scale") == 0
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
    single = values(result, "loss_single")[:, -1]
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
    if (told := told_pairs(result)) is not None and told < FEW_TOLD:
        notes.append(
            f"Only {told:.0%} of the interactions at {result.params.widths[-1]} bits are beyond two standard errors of the "
            "calibration images; 5 % would be by chance. More `calibration_samples` tell more."
        )
    if getattr(result.params, "first_last", "searched") == "highest":
        notes.append(f"First and last layer stay at {result.params.widths[0]} bits, outside the search.")
    if result.params.cost == "latency" and getattr(result.params, "latency", None) is not None:
        notes.append("Latency is the sum of the times given for the layers; what lies between layers is not in it.")
    elif result.params.cost == "latency":
        notes.append(
            f"Latency is a roofline (throughput doubles with each halving of the width, {result.params.intensity:g} "
            "multiply-accumulates at 16 bit per byte), not a measurement."
        )
    return (*notes, *kept_note(result))
