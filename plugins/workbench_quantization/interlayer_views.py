"""Views of the report of an inter-layer run: interactions by both estimators, orders, searches and solutions."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from workbench import Bar, HeatMap, Line, Result, Scatter
from workbench.report import View

from workbench_quantization.report_parts import values

SHOWN_TARGETS = 4
"""Targets whose solutions are drawn; the table has all."""


def views(result: Result) -> tuple[View, ...]:
    """Everything that is drawn, the interactions first."""
    lowest = result.params.widths[-1]
    own = (
        ("layer_curvature", "layer_score", "loss_single")
        if "layer_curvature" in result
        else ("layer_score", "loss_single")
    )
    drawn: list[View] = [
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
        _predicted("Damage of random subsets: single layers added up", "single layers"),
        _predicted("The same with pairs", "with pairs"),
        *_elsewhere(result),
        *_compared(result),
        Bar(
            title=f"Curvature, score and single-layer damage at {lowest} bits",
            y=own,
            x="layer",
            select={"bit": lowest},
            y_label="rise of the loss",
        ),
        *_places(result),
        Bar(title="Widths of the stored model", y=("bits",), x="layer", y_label="bits"),
        *_path(result),
        Line(
            title="Search: accuracy of everything tried",
            y=("step_accuracy",),
            x="step",
            markers=True,
            y_label="accuracy on the search images",
            caption="All orders and targets one after the other; the dips are what did not pass.",
        ),
        *_paretos(result),
    ]
    return tuple(drawn)


def _predicted(title: str, model: str, measured: str = "subset_damage", caption: str = "") -> Scatter:
    """Damages of random subsets as a model of damages predicts them, against measured ones."""
    return Scatter(
        title=title,
        x="subset_prediction",
        y=measured,
        select={"damage_model": model},
        identity=True,
        x_label="predicted rise of the loss",
        y_label="measured",
        caption=caption,
    )


def _elsewhere(result: Result) -> tuple[View, ...]:
    """The prediction with pairs on images that nothing was measured on; none in runs of before it was."""
    if "subset_damage_elsewhere" not in result:
        return ()
    return (
        _predicted(
            "With pairs, on other images",
            "with pairs",
            "subset_damage_elsewhere",
            "On search images. The figures before are of the images that damages of layers and pairs were measured on.",
        ),
    )


def estimators(result: Result) -> list[tuple[float, float] | None]:
    """Per lower width how J by differences goes along with J by products: Spearman correlation and slope over pairs of layers.

    None where nothing was measured by differences, or a side is constant.
    """
    found: list[tuple[float, float] | None] = []
    for column in range(len(result.params.widths) - 1):
        if "pair_differences" not in result:
            found.append(None)
            continue
        left, right = (values(result, name)[:, column] for name in ("pair_products", "pair_differences"))
        told = len(left) > 2 and np.ptp(left) > 0 and np.ptp(right) > 0
        found.append((float(spearmanr(left, right).statistic), float(np.polyfit(left, right, 1)[0])) if told else None)
    return found


def _compared(result: Result) -> tuple[View, ...]:
    """J by both estimators, width by width; none where only one was used."""
    if "pair_differences" not in result:
        return ()
    drawn = []
    for width, agreed in zip(result.params.widths[1:], estimators(result), strict=True):
        told = "" if agreed is None else f" Rank correlation {agreed[0]:.2f}, slope {agreed[1]:.2f}."
        drawn.append(
            Scatter(
                title=f"Interactions at {width} bits by both estimators",
                x="pair_products",
                y="pair_differences",
                label="pair",
                select={"bit": width},
                identity=True,
                x_label="Hessian-vector products",
                y_label="differences of losses",
                caption=f"Each point a pair of layers.{told} They part where rounding is so coarse that the loss is no longer "
                "quadratic, and where inputs are rounded too, which products do not see.",
            )
        )
    return tuple(drawn)


def _places(result: Result) -> tuple[View, ...]:
    """Lines from the place of each layer by curvature to its place in the augmented order; none in runs of before."""
    if "place" not in result:
        return ()
    lowest = result.params.widths[-1]
    return (
        Line(
            title=f"Place in the order at {lowest} bits, by curvature alone and with interactions",
            y=("place",),
            x="order_name",
            by="layer",
            select={"order_name": ["hessian", "augmented"], "bit": lowest},
            markers=True,
            y_label="place (1 is lowered first)",
        ),
    )


def _path(result: Result) -> tuple[View, ...]:
    """The search along the augmented order for the first target, step by step."""
    mine = (values(result, "step_order") == 0) & (values(result, "step_target") == 0)
    widths = [str(width) for width in result.params.widths[1:]]
    if not mine.any():
        return ()
    return (
        Scatter(
            title="Search along the augmented order",
            x="step_tried",
            y="step_accuracy",
            color="step_passed",
            label="step",
            select={"step": np.flatnonzero(mine).tolist()},
            x_label="layers that were given the width",
            y_label="accuracy on the search images",
            caption=f"First target. Numbers: the order in which they were tried, at {' then '.join(widths)} bits; of each width "
            "the rightmost that passed is kept.",
        ),
    )


def _paretos(result: Result) -> tuple[View, ...]:
    """Cost and accuracy of all orders, target by target."""
    return tuple(
        Scatter(
            title="Accuracy against cost" + (f" at a target of {target:.2%}" if len(result.params.targets) > 1 else ""),
            x="cost",
            y="accuracy",
            label="solution",
            select={"target": target},
            x_label=f"relative {result.params.cost}",
            y_label="accuracy on the report images",
        )
        for target in result.params.targets[:SHOWN_TARGETS]
    )
