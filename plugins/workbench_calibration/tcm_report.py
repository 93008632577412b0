"""Report of `calibration.tcm`."""

from __future__ import annotations

from typing import Any

import numpy as np
from workbench import Bar, FreeForm, HeatMap, ImageGrid, Line, Metric, Report, Result, Scatter, Table
from workbench.toolkit import mean_interval

SHOWN_CLASSES = 40
SCORES = {
    "opis": ("OPIS", "lower", "variance of the utility between classes, mean over the calibration range"),
    "tail_opis": ("eps-OPIS", "lower", "squared gap between the best and the worst classes' utility, mean over the range"),
    "mean_utility": ("mean utility", "higher", "mean over classes and thresholds of the range"),
    "recall_1": ("recall@1", "higher", "queries whose nearest neighbour is of their class"),
    "recall_2": ("recall@2", "higher", "of the two nearest, one is of the class"),
    "recall_4": ("recall@4", "higher", "of the four nearest, one is of the class"),
    "recall_8": ("recall@8", "higher", "of the eight nearest, one is of the class"),
    "map_r": ("MAP@R", "higher", "mean average precision at R"),
    "far_spread": ("FAR spread", "lower", "largest less smallest false accept rate of a class at the one threshold"),
    "frr_spread": ("FRR spread", "lower", "largest less smallest false reject rate of a class at the one threshold"),
    "pooled_frr": ("pooled FRR", "lower", "share of all positive pairs rejected at the one threshold"),
    "opis_own_thresholds": ("OPIS, own thresholds", "lower", "if every class had a threshold of its own; not deployable"),
    "frr_spread_own_thresholds": ("FRR spread, own thresholds", "lower", "the same for the false reject rates"),
}  # fmt: skip


def report(result: Result) -> Report:
    """The whole report."""
    value = result["value"].load()
    modes = [str(mode) for mode in value["mode"].values]
    return Report(
        summary=_summary(result, value, modes),
        metrics=_metrics(result, value, modes),
        tables=(*_score_tables(result, value, modes), *_class_tables(result, modes)),
        views=_views(result, value, modes),
        notes=_notes(result, value, modes),
    )


def pairs(modes: list[str]) -> list[tuple[str, str]]:
    """(base, base with TCM)."""
    return [(mode, f"{mode}_tcm") for mode in modes if f"{mode}_tcm" in modes]


def ratio(value: Any, base: str, other: str) -> tuple[float, tuple[float, float] | None]:
    """Geometric mean over seeds of OPIS of `base` over that of `other`, with Student's interval of the logarithm."""
    own = [np.maximum(value.sel({"mode": mode, "score": "opis"}).values, 1e-300) for mode in (base, other)]
    interval = mean_interval(np.log(own[0] / own[1]))
    span = None if np.isnan(interval.lower) else (float(np.exp(interval.lower)), float(np.exp(interval.upper)))
    return float(np.exp(interval.value)), span


def change(value: Any, base: str, other: str, score: str) -> tuple[float, tuple[float, float] | None]:
    """Mean over seeds of `other` less `base`."""
    interval = mean_interval(
        (value.sel({"mode": other, "score": score}) - value.sel({"mode": base, "score": score})).values
    )
    value = round(interval.value, 12)  # equal recalls cancel to 0, not to 1e-17
    return value, None if np.isnan(interval.lower) else (interval.lower, interval.upper)


def _mean(value: Any, mode: str, score: str) -> float:
    return float(value.sel({"mode": mode, "score": score}).mean())


def _worst(result: Result, mode: str) -> list[str]:
    part = result["opis_class"].sel({"mode": mode})
    return [str(part["class"].values[k]) for k in np.argsort(-part.values, kind="stable")]


def pooled_far(result: Result, mode: str) -> float:
    """Share of all negative pairs that the one threshold accepts: what a finite set gives in place of `operating_far`."""
    count = np.unique(result["label"].values, return_counts=True)[1]
    return float(np.average(result["far_class"].sel({"mode": mode}).values, weights=count * (count.sum() - count)))


def _summary(result: Result, value: Any, modes: list[str]) -> str:
    mode = pairs(modes)[0][1] if pairs(modes) else modes[0]
    rates = result["frr_class"].sel({"mode": mode})
    worst = int(np.argmax(rates.values))
    place = (
        f"At the one threshold that accepts {pooled_far(result, mode):.2%} of all negative pairs, classes are rejected between "
        f"{float(rates.min()):.1%} and {float(rates.max()):.1%} of the time (worst: class {rates['class'].values[worst]})"
    )
    if not pairs(modes):
        return f"{place}; OPIS {_mean(value, mode, 'opis'):.2e}, recall@1 {_mean(value, mode, 'recall_1'):.1%}."
    base, other = pairs(modes)[0]
    factor, span = ratio(value, base, other)
    recall = [_mean(value, m, "recall_1") for m in (base, other)]
    clear = factor > 1.2 if span is None else span[0] > 1
    worse = factor < 1 / 1.2 if span is None else span[1] < 1
    verdict = (
        "makes classes agree better"
        if clear
        else "makes classes agree less"
        if worse
        else "changes little that is sure"
    )
    if span is None:
        verdict = f"{verdict} in one training"
    return (
        f"The TCM regulariser {verdict}: with {base} OPIS goes from {_mean(value, base, 'opis'):.2e} to "
        f"{_mean(value, other, 'opis'):.2e} ({_times(factor, span)}), recall@1 from {recall[0]:.1%} to {recall[1]:.1%}. {place} "
        f"with TCM."
    )


def _times(factor: float, span: tuple[float, float] | None) -> str:
    return f"divided by {factor:.2f}" + ("" if span is None else f", 95 % interval {span[0]:.2f} to {span[1]:.2f}")


def _metrics(result: Result, value: Any, modes: list[str]) -> list[Metric]:
    metrics, single = [], value.sizes["seed"] == 1
    for base, other in pairs(modes):
        factor, span = ratio(value, base, other)
        metrics.append(Metric(name=f"opis_ratio_{base}", value=factor, direction="higher", interval=span,
                              description="OPIS without over OPIS with TCM, geometric mean over seeds"))  # fmt: skip
        gain, span = change(value, base, other, "recall_1")
        metrics.append(Metric(name=f"recall_1_gain_{base}", value=gain, direction="higher", interval=span,
                              description="recall@1 with less recall@1 without TCM, seed by seed"))  # fmt: skip
    for score, (_, direction, text) in SCORES.items():
        for mode in modes:
            end = "" if modes == ["given"] else f"_{mode}"
            interval = mean_interval(value.sel({"mode": mode, "score": score}).values)
            # all of them are shares, variances of shares or squares of such
            span, over = (max(interval.lower, 0.0), min(interval.upper, 1.0)), "; interval over seeds"
            if single:
                low, high = (float(x) for x in result["opis_interval"].sel({"mode": mode}).values)
                span, over = ((low, high), "; bootstrap interval over classes") if score == "opis" else (None, "")
            metrics.append(Metric(name=f"{score}{end}", value=interval.value, direction=direction, interval=span,
                                  description=text + over))  # fmt: skip
    return metrics


def _score_tables(result: Result, value: Any, modes: list[str]) -> tuple[Table, Table]:
    def rows(names: tuple[str, ...]) -> list[tuple[Any, ...]]:
        return [(mode, *(float(f"{_mean(value, mode, name):.4g}") for name in names)) for mode in modes]

    over = ("opis", "tail_opis", "mean_utility", "recall_1", "recall_8", "map_r")
    at = ("far_spread", "frr_spread", "pooled_frr", "opis_own_thresholds", "frr_spread_own_thresholds")
    ends = [" to ".join(f"{_mean(value, mode, f'range_{end}'):.3f}" for end in ("low", "high")) for mode in modes]
    return (
        Table(
            title="Scores",
            columns=("embedding", *(SCORES[name][0] for name in over), "range (cosine)"),
            rows=tuple((*row, end) for row, end in zip(rows(over), ends, strict=True)),
            caption=f"Means over {value.sizes['seed']} seeds. A useless embedding can have a tiny OPIS: read it beside mean "
            "utility and recall. Every embedding is judged on its own range, between the same pooled false accept rates.",
        ),
        Table(
            title="At one threshold, and with a threshold for every class",
            columns=("embedding", *(SCORES[name][0] for name in at)),
            rows=tuple(rows(at)),
            caption=f"One threshold: that of pooled FAR {result.params.operating_far:g}. Own thresholds give every class the "
            "same FAR and leave the differences in what is rejected; they need labels of the class, so they cannot be shipped.",
        ),
    )


def _class_tables(result: Result, modes: list[str]) -> list[Table]:
    tables = []
    for mode in [pairs(modes)[0][0], pairs(modes)[0][1]] if pairs(modes) else modes[:1]:
        rows = []
        for name in _worst(result, mode)[:10]:
            at = {"mode": mode, "class": name}
            middle = [float(result[f"{kind}_quantile"].sel({**at, "q": 0.5})) for kind in ("positive", "negative")]
            own = float(result["utility"].sel(at).mean())
            rates = [float(result[f"{kind}_class"].sel(at)) for kind in ("far", "frr")]
            rows.append((name, float(f"{float(result['opis_class'].sel(at)):.3g}"), round(own, 4),
                         *(round(rate, 5) for rate in rates), *(round(m, 3) for m in middle)))  # fmt: skip
        tables.append(
            Table(
                title=f"The ten worst classes: {mode}" if len(modes) > 1 else "The ten worst classes",
                columns=("class", "part of OPIS", "mean utility", "FAR", "FRR", "median positive", "median negative"),
                rows=tuple(rows),
                caption=f"{_shown_seed(result)}FAR and FRR at the threshold of pooled FAR {result.params.operating_far:g}; "
                "medians of cosine similarities. A class far better than the mean counts as inconsistent, too.",
            )
        )
    return tables


def _views(result: Result, value: Any, modes: list[str]) -> list[Any]:
    shown = [m for pair in pairs(modes) for m in pair] or modes
    views: list[Any] = [_utility_figure(result, shown[:4])]
    if "point_opis" in result:
        tuned = any("_x" in mode for mode in modes)
        views.append(Scatter(title="Accuracy against consistency", x="point_opis", y="point_recall", color="point_mode",
                             x_label="OPIS", y_label="recall@1", log_x=True,
                             caption="One point for each training. Left and up is better." + (
                                 " Those with x and a factor are trained without TCM at that many times the temperature or "
                                 "margin: what tuning alone can do." if tuned else "")))  # fmt: skip
    views += [Line(title=f"Similarities of pairs: {mode}", y=("pair_hist_pos", "pair_hist_neg"), x="bin",
                   select={"mode": mode}, x_label="cosine similarity", y_label="density",
                   caption=_margin_caption(result, mode)) for mode in shown[:2]]  # fmt: skip
    views += _class_views(result, shown[:2])
    if "loss_history" in result:
        trained = shown[min(1, len(shown) - 1)]
        views.append(Line(title=f"Terms of the training loss: {trained}", y=("loss_history",), x="epoch", by="term",
                          select={"mode": trained, "seed": 0}, y_label="mean over the epoch",
                          caption=f"{_shown_seed(result)}The term of TCM is a mean over the pairs beyond a margin alone, so it "
                          "need not fall as fewer of them are left."))  # fmt: skip
    if "hard_positive" in result:
        mode = modes[min(1, len(modes) - 1)]
        name = _worst(result, mode)[0]
        for kind, text in (("positive", "Least similar pairs inside"), ("negative", "Pairs most easily mistaken for")):
            views.append(ImageGrid(title=f"{text} class {name}", images=(f"hard_{kind}",), column="pair", row="member",
                                   labels=f"hard_{kind}_similarity",
                                   caption=f"The worst class of {mode}; above each pair its cosine similarity."))  # fmt: skip
    return views


def _shown_seed(result: Result) -> str:
    """Which training curves and classes are of; embeddings that were given have none."""
    return "Seed 0. " if "loss_history" in result else ""


def _margin_caption(result: Result, mode: str) -> str:
    pairs_are = "Pairs of the same class and of different ones; where they overlap no threshold tells them apart."
    text = f"{_shown_seed(result)}{pairs_are}"
    if not mode.endswith("_tcm"):
        return text
    params = result.params
    return f"{text} TCM pulled the former up to {params.m_plus:g} and pushed the latter down to {params.m_minus:g}."


def _class_views(result: Result, modes: list[str]) -> list[Any]:
    count = result["opis_class"].sizes["class"]
    threshold = f"At the one threshold of pooled FAR {result.params.operating_far:g}"
    caption = f"{_shown_seed(result)}{threshold}, classes from worst to best"
    views: list[Any] = []
    for kind, title in (("frr", "False reject rate of each class"), ("far", "False accept rate of each class")):
        for mode in modes:
            rate = result[f"{kind}_class"].sel({"mode": mode})
            order = np.argsort(-rate.values, kind="stable")[:SHOWN_CLASSES]
            names = [str(rate["class"].values[k]) for k in order]
            more = f" (the first {SHOWN_CLASSES} of {count})" if count > SHOWN_CLASSES else ""
            views.append(Bar(title=f"{title}: {mode}", y=(f"{kind}_class",), x="class", select={"mode": mode, "class": names},
                             y_label="rate", caption=f"{caption}{more}."))  # fmt: skip
    views.append(HeatMap(title="Utility of every threshold for every class", z="curve_utility", x="similarity", y="class",
                         select={"mode": modes[0]}, z_label="utility",
                         caption=f"{_shown_seed(result)}{modes[0]}: rows that light up elsewhere than their neighbours need "
                         "another threshold."))  # fmt: skip
    return views


def _utility_figure(result: Result, modes: list[str]) -> FreeForm:
    """All classes as thin lines, their mean bold, the calibration range shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6 * len(modes)), layout="constrained")
    axes = figure.subplots(len(modes), 1, squeeze=False, sharex=True, sharey=True).ravel()
    similarity = result["curve_utility"]["similarity"].values
    for axis, mode in zip(axes, modes, strict=True):
        curves = result["curve_utility"].sel({"mode": mode}).values
        inside = similarity[result["in_range"].sel({"mode": mode}).values]
        ends = result["threshold"].sel({"mode": mode}).values[[0, -1]] if not len(inside) else inside[[0, -1]]
        axis.axvspan(*ends, color="0.88", zorder=0)
        axis.plot(similarity, curves.T, color="tab:blue", alpha=max(0.08, min(0.5, 10 / len(curves))), linewidth=0.7)
        axis.plot(similarity, curves.mean(0), color="black", linewidth=2)
        axis.set(title=mode, ylim=(0, 1.02), xlim=(-1, 1))
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("threshold (cosine similarity)", fontsize=10)
    figure.supylabel("utility", fontsize=10)
    low, high = result.params.far_range
    return FreeForm.from_figure(
        figure,
        title="Utility of a threshold, class by class",
        caption=f"{_shown_seed(result)}Thin: classes; bold: their mean; shaded: pooled false accept rates from {low:g} to "
        f"{high:g}. OPIS is the variance of the thin lines inside the shaded range.",
    )


def _notes(result: Result, value: Any, modes: list[str]) -> list[str]:
    params, seeds = result.params, value.sizes["seed"]
    counts = result["opis_class"].sizes["class"]
    low, high = params.far_range
    notes = [
        f"Utility: F-type mean of specificity and sensitivity with c = {params.c:g}. OPIS: {params.n_grid} thresholds equally "
        f"spaced in {params.spacing} between pooled false accept rates {low:g} and {high:g}; eps-OPIS with {params.tail:.0%} of "
        "the classes, rounded up. Other grids and ranges give other values, so compare only what was measured alike."
    ]  # fmt: skip
    if counts < 20:
        notes.append(f"{counts} classes: a variance between so few is uncertain.")
    label = result["label"].values
    negatives = (len(label) ** 2 - (np.unique(label, return_counts=True)[1] ** 2).sum()) / 2
    if negatives * min(low, params.operating_far) < 20:
        notes.append(
            f"{negatives:.0f} negative pairs are few for a false accept rate of {min(low, params.operating_far):g}."
        )
    dropped = int(result["dropped_classes"])
    if dropped:
        notes.append(f"{dropped} classes of a single sample have no positive pair and were left out.")
    if "loss_history" in result:
        notes.append("One seed: nothing says how far the figures move with the initial weights." if seeds == 1 else
                     f"Intervals cover {seeds} trainings on one split of the classes, not the split itself.")  # fmt: skip
        if params.split == "open" and counts < 10:
            notes.append(
                "With so few classes to train on a metric hardly transfers to others; TCM can then cost recall."
            )
        for base, other in pairs(modes):
            loss, _ = change(value, base, other, "recall_1")
            if loss < -0.005:
                notes.append(f"{other} loses {-100 * loss:.1f} points of recall@1 against {base}.")
            tuned = [mode for mode in modes if mode.startswith(f"{base}_x")]
            if tuned:
                best = min(tuned, key=lambda mode: _mean(value, mode, "opis"))
                figures = [", ".join(f"{SCORES[name][0]} {_mean(value, mode, name):.3g}" for name in
                           ("opis", "mean_utility", "recall_1")) for mode in (best, other)]  # fmt: skip
                notes.append(f"What tuning {base} alone can do: {best} has {figures[0]}; {other} {figures[1]}.")
    return notes
