"""The report of a layer-wise run: how far blocks can be lowered, whether the score beats chance, and what was stored."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr
from workbench import Bar, HeatMap, Line, Metric, Report, Result, Scatter, Table
from workbench.report import View
from workbench.toolkit import mean_interval

from workbench_quantization.layerwise_scores import knee
from workbench_quantization.report_parts import damping_note, kept_note

TOLERATED = 1.1
"""Perplexity up to which a point counts as close, in multiples of that of the highest width."""


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=(_walk_table(result), _orders_table(result), _cut_table(result), _blocks_table(result)),
        views=_views(result),
        notes=_notes(result),
    )


def _values(result: Result, name: str) -> np.ndarray:
    return np.asarray(result[name].values)


def _orders(result: Result) -> list[str]:
    return [str(name) for name in result["perplexity"]["order_name"].values]


def _has_inner_points(result: Result) -> bool:
    """Whether anything was measured between the ends, which all orders share."""
    return result["perplexity"].sizes["point"] > 2


def _is_random(name: str) -> bool:
    return name.startswith("random ")


def areas(result: Result) -> dict[str, float]:
    """Per order the mean loss over all points between the ends, which all orders share: smaller is better."""
    loss = _values(result, "loss").mean(2)
    inner = loss[:, 1:-1] if loss.shape[1] > 2 else loss
    return dict(zip(_orders(result), map(float, inner.mean(1)), strict=True))


def knees(result: Result) -> dict[str, float]:
    """Per order the share of steps down up to which perplexity stays within `TOLERATED` times that of the highest width."""
    points = result["perplexity"]["point"].values
    table = _values(result, "perplexity")
    return {
        name: float(points[knee(row, TOLERATED)] / points[-1]) for name, row in zip(_orders(result), table, strict=True)
    }


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one side is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def _summary(result: Result) -> str:
    params, area, turn = result.params, areas(result), knees(result)
    random = [value for name, value in area.items() if _is_random(name)]
    beaten = sum(area[params.score] < value for value in random)
    high, low = _values(result, "perplexity_uniform")[[0, -1]]
    verdict = (
        f"Ordered by {_title(params.score)}, {turn[params.score]:.0%} of the steps from {params.widths[0]} to "
        f"{params.widths[-1]} bits keep perplexity within {TOLERATED - 1:.0%} of {high:.4g} (all at {params.widths[0]} bits; "
        f"{low:.4g} at {params.widths[-1]}); random orders keep {_random_mean(turn):.0%} on average."
    )
    if not _has_inner_points(result):
        return f"{verdict} Nothing in between was measured, so that orders are not told apart."
    return f"{verdict} Over the whole walk it is better than {beaten} of {len(random)} random orders."


def _random_mean(values: dict[str, float]) -> float:
    return float(np.mean([value for name, value in values.items() if _is_random(name)]))


def _title(order: str) -> str:
    return order.replace("lim", "LIM").replace("zd", "ZD")


def _metrics(result: Result) -> tuple[Metric, ...]:
    params, area, turn = result.params, areas(result), knees(result)
    high, low = _values(result, "perplexity_uniform")[[0, -1]]

    def perplexity(name: str, losses: np.ndarray, description: str) -> Metric:
        found = mean_interval(losses)
        interval = (float(np.exp(found.lower)), float(np.exp(found.upper))) if len(losses) > 1 else None
        return Metric(
            name=name, value=float(np.exp(found.value)), direction="lower", interval=interval, description=description
        )

    metrics = [
        perplexity(
            "perplexity", _values(result, "loss_stored"), "of the stored model (t interval over windows of text)"
        ),
        perplexity(
            "perplexity_full_precision",
            _values(result, "loss_full_precision"),
            "of the model as it came (same interval)",
        ),
        Metric(
            name="perplexity_uniform_high", value=float(high), direction="lower", description="all at the highest width"
        ),
        Metric(
            name="perplexity_uniform_low", value=float(low), direction="lower", description="all at the lowest width"
        ),
        Metric(
            name="accuracy", value=float(result["accuracy_stored"]), direction="higher", description="of next tokens"
        ),
        Metric(
            name="average_bits",
            value=float(result["average_bits_stored"]),
            unit="bit",
            direction="lower",
            description="size of the stored matrices per weight, scales and zero-points included",
        ),
        Metric(name="size", value=float(result["size_mb_stored"]), unit="MB", direction="lower"),
        Metric(
            name="knee",
            value=turn[params.score],
            direction="higher",
            description=f"share of steps down within {TOLERATED:g} x the perplexity of the highest width",
        ),
        Metric(name="knee_random", value=_random_mean(turn), direction="higher", description="mean over random orders"),
    ]
    if _has_inner_points(result):
        saved = mean_interval(
            np.array([value - area[params.score] for name, value in area.items() if _is_random(name)])
        )
        metrics.append(
            Metric(
                name="loss_saved_over_random",
                value=saved.value,
                unit="nat",
                direction="higher",
                interval=saved.bounds,
                description="mean loss along random orders minus that along the score's (t interval over random orders)",
            )
        )
        if f"reversed {params.score}" in area:
            metrics.append(
                Metric(
                    name="loss_saved_over_reversed",
                    value=area[f"reversed {params.score}"] - area[params.score],
                    unit="nat",
                    direction="higher",
                )
            )
    damage = _values(result, "damage")
    for name, values in (("lim", _values(result, "lim")), ("zd", -_values(result, "zd"))):
        found = correlation(values, damage)
        if np.isfinite(found):
            metrics.append(
                Metric(
                    name=f"rank_correlation_{name}",
                    value=found,
                    direction="higher",
                    description=f"Spearman, importance by {_title(name)} and measured damage of single blocks",
                )
            )
    agreed = correlation(_values(result, "lim"), -_values(result, "zd"))
    if np.isfinite(agreed):
        metrics.append(
            Metric(
                name="rank_correlation_scores",
                value=agreed,
                description="Spearman, importance by LIM and by ZD: 1 where both order the blocks alike",
            )
        )
    return tuple(metrics)


def _walk_table(result: Result) -> Table:
    row = _orders(result).index(result.params.score)
    full = float(result["perplexity_full_precision"])
    names = ("average_bits_blocks", "average_bits", "size_mb", "perplexity", "accuracy")
    names += ("logit_kl",) if "logit_kl" in result else ()
    columns = {name: _values(result, name)[row] for name in names}
    rows = tuple(
        (
            int(point),
            *(_digits(columns[name][place]) for name in names),
            _digits(columns["perplexity"][place] / full),
        )
        for place, point in enumerate(result["perplexity"]["point"].values)
    )
    heads = ("steps down", "mean width", "bits/weight", "size (MB)", "perplexity", "accuracy")
    heads += ("divergence (nat)",) if "logit_kl" in result else ()
    return Table(
        title=f"Along the order by {_title(result.params.score)}",
        columns=(*heads, "over full precision"),
        rows=rows,
        caption="Mean width is that of the blocks; bits per weight and size count scales (32 bits) and zero-points.",
    )


def _orders_table(result: Result) -> Table:
    area, turn = areas(result), knees(result)
    table = _values(result, "perplexity")
    middle = table.shape[1] // 2
    rows = [
        (_title(name), _digits(area[name]), round(turn[name], 3), _digits(table[place, middle]))
        for place, name in enumerate(_orders(result))
    ]
    return Table(
        title="Orders",
        columns=("order", "mean loss (nat)", "knee", "perplexity half-way"),
        rows=tuple(sorted(rows, key=lambda row: row[1])),
        caption="Mean loss over all points between the ends; best first.",
    )


def _cut_table(result: Result) -> Table:
    row = _orders(result).index(result.params.score)
    size, perplexity = _values(result, "size_mb")[row], _values(result, "perplexity")[row]
    cut_size, cut = _values(result, "size_mb_pruned"), _values(result, "perplexity_pruned")
    rows = []
    for number in range(1, len(cut)):
        fitting = np.flatnonzero(size <= cut_size[number] * (1 + 1e-9))
        best = int(fitting[0]) if len(fitting) else None
        rows.append(
            (
                number,
                _digits(cut_size[number]),
                _digits(cut[number]),
                None if best is None else _digits(size[best]),
                None if best is None else _digits(perplexity[best]),
            )
        )
    return Table(
        title="Cut out or lowered",
        columns=("blocks cut out", "size (MB)", "perplexity", "size of lowered (MB)", "perplexity of lowered"),
        rows=tuple(rows),
        caption="The same order: blocks removed, beside the first point of the walk that is no larger. "
        "Empty where all blocks at the lowest width are still larger.",
    )


def _blocks_table(result: Result) -> Table:
    owner, bits = _values(result, "block_of_layer"), _values(result, "bits")
    order = _values(result, "order")[_orders(result).index(result.params.score)]
    place_of = {int(block): place for place, block in enumerate(order[::-1])}
    rows = tuple(
        (
            str(name),
            place_of[place] + 1,
            _digits(_values(result, "lim")[place]),
            _digits(_values(result, "zd")[place]),
            _digits(_values(result, "damage")[place]),
            "/".join(str(width) for width in sorted(set(bits[owner == place].tolist()))),
        )
        for place, name in enumerate(result["lim"]["block"].values)
    )
    return Table(
        title="Blocks",
        columns=("block", "rank", "LIM", "ZD", "damage (nat)", "stored bits"),
        rows=rows,
        caption=f"Rank 1 is most important by {_title(result.params.score)}. Important: LIM high, ZD low, damage high.",
    )


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def _views(result: Result) -> tuple[View, ...]:
    score = result.params.score
    return (
        Line(
            title="Perplexity while blocks are lowered",
            y=("perplexity_curve",),
            x="point",
            by="curve",
            x_label="steps down",
            y_label="perplexity",
            markers=True,
            log_y=True,
            caption=f"Full precision: {float(result['perplexity_full_precision']):.4g}. Random curves are taken point by point.",
        ),
        Scatter(
            title=f"Perplexity against size along the order by {_title(score)}",
            x="average_bits",
            y="perplexity",
            label="point",
            select={"order_name": score},
            log_y=True,
            x_label="bits per weight, scales included",
            caption="Numbers: steps down.",
        ),
        Bar(title="LIM of every block", y=("lim",), x="block", error="lim_standard_error", caption="High = important."),
        Bar(title="ZD of every block", y=("zd",), x="block", caption="Low = important."),
        Bar(title="Measured damage of every block", y=("damage",), x="block", y_label="rise of the loss (nat)"),
        Scatter(
            title="LIM against measured damage", x="lim", y="damage", label="block", y_label="rise of the loss (nat)"
        ),
        HeatMap(
            title=f"Widths along the order by {_title(score)}",
            z="block_bits",
            x="point",
            y="block",
            select={"order_name": score},
            annotate=True,
            z_label="bits",
        ),
        Line(
            title="Perplexity with blocks cut out",
            y=("perplexity_pruned",),
            x="cut",
            x_label="blocks cut out",
            y_label="perplexity",
            markers=True,
            log_y=True,
        ),
        HeatMap(title="ZD of every matrix", z="zd_matrix", x="matrix", y="block"),
        HeatMap(
            title="Cosine of the stream before and after a block",
            z="lim_token",
            x="bin",
            y="block",
            z_label="tokens",
            caption="Counts of tokens.",
        ),
        Line(
            title="Standard scores of the weights", y=("weight_z_hist",), x="z_bin", by="block", log_y=True, x_label="z"
        ),
        Bar(title="Widths of the stored model", y=("bits",), x="layer", y_label="bits"),
    )


def _notes(result: Result) -> tuple[str, ...]:
    params = result.params
    windows = result["loss_stored"].sizes["sample"]
    ahead = result.inputs.get("test", result.inputs["data"])["sizes"]["token"] - 1
    notes = [
        f"Perplexity is exp of the mean loss over {windows * ahead:,} tokens in {windows:,} windows without overlap"
        + ("." if "test" in result.inputs else ", the end of `data`, which is not calibrated on."),
        f"The spread between random orders is large: {params.random_orders} of them give a coarse idea of chance.",
        f"Matrices outside the blocks and everything else ({float(result['kept_mb']):.3g} MB) stay as they came.",
        "Scores are those of the full-precision model; nothing is scored again after quantisation. The formulas were taken from "
        "the abstract and from independent implementations (which differ in whether z is one-sided).",
    ]
    if "bits" in result.inputs:
        notes.append("The stored model has the given table of widths, not one of this run's.")
    if params.backend == "rtn":
        notes.append("Rounding to nearest: at 2 bits GPTQ (backend='gptq') usually loses less.")
    notes += damping_note(result, params.damping, "damping_stored")
    return (*notes, *kept_note(result))
