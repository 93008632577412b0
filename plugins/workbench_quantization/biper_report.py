"""The report of a BiPer run: what one bit costs, whether the sine helped, and how the weights moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from workbench import Bar, FreeForm, Histogram, ImageGrid, Line, Metric, Report, Result, Table
from workbench.report import View
from workbench.toolkit import mean_interval

from workbench_quantization.biper_theory import LIMIT, quantisation_error, worst_scale
from workbench_quantization.report_parts import reasons, resolution, share_interval, values

MAIN, BINARISED, STAGE_ONE, FULL = "biper", "biper_binarised", "biper_stage1", "full_precision"
AS_GIVEN = "as_given"
SIGNS = ("sign_clipped", "sign_polynomial")
TOLD = {
    AS_GIVEN: ("the model as it was given", "32/32"),
    FULL: ("full precision, same architecture and epochs", "32/32"),
    "sign_clipped": ("sign, gradient 1 where |w| <= 1", "1"),
    "sign_polynomial": ("sign, gradient max(2 - 2|w|, 0)", "1"),
    "biper_one_stage": ("BiPer, binary from the start", "1"),
    STAGE_ONE: ("BiPer after stage 1: weights are still real", "32"),
    BINARISED: ("BiPer after stage 1, merely binarised", "1"),
    MAIN: ("BiPer after stage 2", "1"),
}
SHOWN_LAYERS = 12
"""Curves in one figure."""


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=_tables(result),
        views=_views(result),
        notes=_notes(result),
    )


def _modes(result: Result) -> list[str]:
    return [str(mode) for mode in result["accuracy"]["mode"].values]


def _scores(result: Result, mode: str) -> np.ndarray:
    """(seed,)."""
    return np.asarray(result["accuracy"].values[_modes(result).index(mode)])


def _best_sign(result: Result) -> str | None:
    signs = [mode for mode in _modes(result) if mode in SIGNS]
    return max(signs, key=lambda mode: float(_scores(result, mode).mean())) if signs else None


def _summary(result: Result) -> str:
    params, layers = result.params, result["bits"].sizes["layer"]
    full_size, size = (int(value) for value in result["size"].values)
    seeds = f", mean of {params.seeds} seeds" if params.seeds > 1 else ""
    text = f"With 1-bit weights{' and inputs' if params.act_bits == 1 else ''} in {layers} layers the network reaches "
    text += f"{_scores(result, MAIN).mean():.1%}{seeds}"
    if FULL in _modes(result):
        text += f", against {_scores(result, FULL).mean():.1%} in full precision"
    elif AS_GIVEN in _modes(result):
        text += f", against {_scores(result, AS_GIVEN)[0]:.1%} of the model as it was given"
    text += f", and takes {size / 1000:,.1f} instead of {full_size / 1000:,.1f} kB."
    text += f" Merely binarised after stage 1 it reaches {_scores(result, BINARISED).mean():.1%}: stage 2 "
    text += f"{_told_gain(result, BINARISED)}."
    sign = _best_sign(result)
    if sign is not None:
        text += f" Trained as plain signs ({sign}, its rate chosen from {len(params.baseline_rates)}) it reaches "
        text += f"{_scores(result, sign).mean():.1%}: the sine {_told_gain(result, sign)}."
    return text


def _gain(result: Result, over: str) -> tuple[float, tuple[float, float] | None]:
    """Accuracy after stage 2 less that of another training, and the 95 % interval.

    Over seeds, seed by seed; of a single training over the images, image by image. None where it cannot be told: for a
    single training in runs of before `correct` was stored.
    """
    gain = _scores(result, MAIN) - _scores(result, over)
    if len(gain) == 1:
        if "correct" not in result or result["correct"].sizes["sample"] < 2:
            return float(gain[0]), None
        correct, modes = values(result, "correct")[:, 0].astype(np.float64), _modes(result)
        gain = correct[modes.index(MAIN)] - correct[modes.index(over)]
    found = mean_interval(gain)
    return found.value, found.bounds


def _told_gain(result: Result, over: str) -> str:
    """`gains 2.0 points (...)`, with whether that is more than chance."""
    gain, interval = _gain(result, over)
    told = f"{'gains' if gain >= 0 else 'loses'} {100 * abs(gain):.1f} points"
    single = "" if result.params.seeds > 1 else "one training of each"
    if interval is None:
        return f"{told} ({single})"
    low, high = interval
    told += f" (95 % interval over {'images' if single else 'seeds'} {100 * low:+.1f} to {100 * high:+.1f}"
    told += f", {single})" if single else ")"
    return told + (", which may be chance" if low <= 0 <= high else "")


def _interval(result: Result, mode: str) -> tuple[float, float]:
    scores, count = _scores(result, mode), int(result["label"].sizes["sample"])
    if len(scores) > 1 and mode != AS_GIVEN:  # which no seed changes
        low, high = np.clip(mean_interval(scores).bounds, 0, 1)  # a t interval of few seeds is wide
        return float(low), float(high)
    return share_interval(float(scores[0]), count)


def _metrics(result: Result) -> tuple[Metric, ...]:
    full_size, size = (int(value) for value in result["size"].values)
    main = _modes(result).index(MAIN)

    def share(name: str, mode: str, description: str) -> Metric:
        value = float(_scores(result, mode).mean())
        kind = "t interval over seeds" if result.params.seeds > 1 and mode != AS_GIVEN else "Wilson interval"
        return Metric(
            name=name,
            value=value,
            direction="higher",
            interval=_interval(result, mode),
            description=f"{description} ({kind})",
        )

    metrics = [share("accuracy", MAIN, "of the binary network after stage 2, on the report images")]
    if FULL in _modes(result):
        metrics.append(share("accuracy_full_precision", FULL, "of the same architecture in full precision"))
    if AS_GIVEN in _modes(result):
        metrics.append(share("accuracy_as_given", AS_GIVEN, "of the model before anything was done to it"))
    metrics += [
        share("accuracy_binarised", BINARISED, "of the network of stage 1 when its weights are merely binarised"),
        share("accuracy_stage1", STAGE_ONE, "after stage 1: weights are real, this is not a binary network"),
    ]
    compared = {"gain_of_stage_two": (BINARISED, "the network of stage 1 when merely binarised")}
    if (sign := _best_sign(result)) is not None:
        compared["gain_over_sign"] = (sign, f"{sign}, the better of the plain signs")
    for name, (over, told) in compared.items():
        gain, bounds = _gain(result, over)
        paired = "seed by seed" if result.params.seeds > 1 else "image by image"
        metrics.append(
            Metric(name=name, value=gain, direction="higher", interval=bounds,
                   description=f"accuracy less that of {told}, {paired}")
        )  # fmt: skip
    metrics += [
        Metric(name="negative_log_likelihood", value=float(result["negative_log_likelihood"].values[main].mean()), unit="nat",
               direction="lower", description="of the binary network"),
        Metric(name="size", value=size / 1e6, unit="MB", direction="lower",
               description="of the stored model: packed bits, scales, and all that is not binary"),
        Metric(name="size_full_precision", value=full_size / 1e6, unit="MB", direction="lower"),
        Metric(name="binary_share", value=_binary_share(result), description="share of parameters and buffers that became bits"),
    ]  # fmt: skip
    return tuple(metrics)


def _binary_share(result: Result) -> float:
    return int(result["parameter_count"].values.sum()) * 4 / int(result["size"].values[0])


def _tables(result: Result) -> tuple[Table, ...]:
    params = result.params
    inputs = "1" if params.act_bits == 1 else "32"
    rows = []
    for mode in _modes(result):
        scores = _scores(result, mode)
        told, width = TOLD[mode]
        rate = _chosen(result).get(mode)
        rows.append(
            (
                told,
                width if "/" in width else f"{width}/{inputs}",
                round(float(scores.mean()), 4),
                float(scores.std(ddof=1)) if len(scores) > 1 and mode != AS_GIVEN else None,
                *(round(bound, 4) for bound in _interval(result, mode)),
                None if rate is None else round(rate, 5),
            )
        )
    columns = ("training", "W/A bits", "accuracy", "sd", "95 % from", "to", "chosen rate")
    told_of = [place for place in range(len(columns)) if any(row[place] is not None for row in rows)]
    tables = [
        Table(
            title="Trainings",
            columns=tuple(columns[place] for place in told_of),
            rows=tuple(tuple(row[place] for place in told_of) for row in rows),
            caption=f"{'One training' if params.seeds == 1 else f'{params.seeds} trainings'} of each, "
            f"{params.epochs1} + {params.epochs2} epochs; same initial weights, "
            "scales and batches for one seed. Intervals are "
            + ("over seeds." if params.seeds > 1 else "of the sample of images, not of the training."),
        ),
        Table(title="Binary layers", columns=_LAYER_COLUMNS, rows=_layer_rows(result), caption=_LAYER_CAPTION),
    ]
    left = reasons(result, "unbinarised_reason")
    if left:
        tables.append(Table(title="What is not binary", columns=("weight", "reason"), rows=tuple(left)))
    return tuple(tables)


_LAYER_COLUMNS = (
    "layer",
    "shape",
    "weights",
    "u, stage 1",
    "u, stage 2",
    "error, stage 1",
    "error, stage 2",
    "for Laplace",
)
_LAYER_CAPTION = (
    "u = omega times the mean magnitude of the latent weights. Error: mean of (sin - gamma sign sin)^2 with the best gamma; for "
    "Laplace: what the closed form says at the u of stage 2."
)


def _layer_rows(result: Result) -> tuple[tuple[str | int | float, ...], ...]:
    u = result["laplace_scale"].values * result.params.omega
    error = result["quantisation_error"].values
    return tuple(
        (str(name), str(shape), int(count), *(round(float(value), 4) for value in (*u[row], *error[row], closed)))
        for row, (name, shape, count, closed) in enumerate(
            zip(
                result["bits"]["layer"].values,
                result["weight_shape"].values,
                result["parameter_count"].values,
                quantisation_error(u[:, 1]),
                strict=True,
            )
        )
    )


def _chosen(result: Result) -> dict[str, float]:
    if "chosen_rate" not in result:
        return {}
    chosen = result["chosen_rate"]
    return {str(mode): float(rate) for mode, rate in zip(chosen["baseline"].values, chosen.values, strict=True)}


def _diverged(result: Result) -> str:
    """Baselines and rates at which the training did not stay finite."""
    if "rate_accuracy" not in result:
        return ""
    tried = result["rate_accuracy"]
    return ", ".join(
        f"{mode} at {rate:g}"
        for mode, row in zip(tried["baseline"].values, tried.values, strict=True)
        for rate, accuracy in zip(tried["rate"].values, row, strict=True)
        if np.isnan(accuracy)
    )


def _views(result: Result) -> tuple[View, ...]:
    names = [str(name) for name in result["bits"]["layer"].values]
    some = _spread(names)
    part = {} if len(some) == len(names) else {"layer": some}
    curves = [mode for mode in _modes(result) if mode not in (BINARISED, AS_GIVEN)]
    views: list[View] = [
        Line(title="Accuracy while training", y=("validation_accuracy",), x="epoch", by="mode",
             select={"seed": 0, "mode": curves}, y_label="accuracy on validation images",
             caption=f"Seed 0. The two stages are {STAGE_ONE} and, from epoch {result.params.epochs1 + 1}, {MAIN}."),
        Bar(title="Accuracy on the report images", y=("accuracy",), x="mode", by="seed", y_label="accuracy",
            caption=f"{STAGE_ONE} is not a binary network."),
        _error_figure(result),
        Line(title="Waveforms", y=("waveform",), x="weight_value", by="wave", x_label="latent weight w",
             caption="The weight bit is the square wave; its gradient is that of the sine."),
        Line(title="Weight bits that changed", y=("flip_rate",), x="epoch", by="layer", select=part, y_label="share per epoch",
             caption=f"Stage 2 begins at epoch {result.params.epochs1 + 1}."),
        Line(title="u = omega mean|w| of each layer", y=("scale",), x="epoch", by="layer", select=part, y_label="u",
             caption="Near 0 the square wave is a plain sign."),
        Line(title="Latent weights within a period", y=("phase_count",), x="phase", x_label="omega w modulo 2 pi",
             y_label="weights", caption="Bits change at 0 and at pi."),
        Histogram(title="Sine of the latent weights", values=("sine_weight",), x_label="sin(omega w) after stage 2"),
    ]  # fmt: skip
    if "kernel" in result:
        views.append(
            ImageGrid(title="Binary kernels", images=("kernel",), column="kernel_index", row="kernel_layer", limit=12,
                      select={"kernel_layer": _spread([str(n) for n in result["kernel"]["kernel_layer"].values], 6)},
                      caption="White: +1. The first kernels of the layers.")
        )  # fmt: skip
    if "omega_accuracy" in result:
        half = 100 * resolution(float(_scores(result, MAIN)[0]), int(result["label"].sizes["sample"]))
        views.append(Line(title="Accuracy against the frequency", y=("omega_accuracy",), x="omega", markers=True, log_x=True,
                          y_label="accuracy on the report images",
                          caption=f"After stage 2, seed 0: one training each. The images alone leave each accuracy uncertain "
                          f"by {half:.1f} points to either side."))  # fmt: skip
    if "rate_accuracy" in result:
        views.append(Line(title="Rates of the baselines", y=("rate_accuracy",), x="rate", by="baseline", markers=True, log_x=True,
                          x_label="learning rate", y_label="accuracy on validation images"))  # fmt: skip
    return tuple(views)


def _spread(names: Sequence[str], shown: int = SHOWN_LAYERS) -> list[str]:
    """At most so many of them, evenly spread from the first to the last."""
    if len(names) <= shown:
        return list(names)
    return [names[place] for place in np.unique(np.linspace(0, len(names) - 1, shown).round().astype(int))]


def _error_figure(result: Result) -> FreeForm:
    """The closed form with every layer on it, after stage 1 and after stage 2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.3))
    axes = figure.subplots()
    curve = result["quantisation_error_curve"]
    axes.plot(curve["u"].values, curve.values, color="0.4", label="Laplace, closed form")
    axes.axhline(LIMIT, color="0.7", linestyle=":", linewidth=1, label="evenly spread phase")
    axes.plot(*worst_scale(), marker="x", color="0.2", linestyle="none", label="largest for Laplace")
    u = result["laplace_scale"].values * result.params.omega
    for place, (label, marker) in enumerate((("layers after stage 1", "o"), ("layers after stage 2", "s"))):
        axes.plot(u[:, place], result["quantisation_error"].values[:, place], marker, ms=5, alpha=0.75, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("u = omega mean|w|")
    axes.set_ylabel("quantisation error")
    axes.legend(fontsize=8, frameon=False)
    return FreeForm.from_figure(
        figure,
        title="Distance of the sine from its sign",
        caption="Mean of (sin - gamma sign sin)^2 with the best gamma. Layers off the curve are not Laplace-distributed.",
    )


def _notes(result: Result) -> tuple[str, ...]:
    params, count = result.params, int(result["label"].sizes["sample"])
    notes = [
        f"Accuracies are of {count:,} images"
        + (
            ", none of which was trained on."
            if "test" in result.inputs
            else ", a share of `data` that was not trained on."
        )
        + " They are of the last epoch"
        + ("; rates are chosen on other images." if _chosen(result) else "."),
        f"{STAGE_ONE} computes with real sine weights. What can be shipped is {MAIN}, or {BINARISED} without stage 2.",
    ]
    if "stage1" in result.inputs:
        notes.append(
            f"{STAGE_ONE} was trained by an earlier run, whose parameters are not among those of this one. If images that are "
            "reported on here were trained on there, accuracies are too high: same `data` and seed, or a `test` for both."
        )
    if params.initialization == "given":
        notes.append(
            "All trainings began with the weights of the given model: what it was trained on counts too, and none of the images "
            "reported on may be among it."
        )
    convolutions = any(str(shape).count("x") > 1 for shape in result["weight_shape"].values)
    if params.pad_value == 0 and params.act_bits == 1 and convolutions:
        notes.append(
            "Convolutions pad with zeros, a third level beside -1 and +1 at the borders; pad_value=1 avoids it."
        )
    if params.seeds == 1:
        notes.append(
            "One training of each kind: differences between kinds also hold the chance of a training (seeds=5)."
        )
    at_end = [
        mode for mode, rate in _chosen(result).items() if rate >= max(params.baseline_rates) * params.lr1 * (1 - 1e-9)
    ]
    at_end += [
        mode for mode, rate in _chosen(result).items() if rate <= min(params.baseline_rates) * params.lr1 * (1 + 1e-9)
    ]
    if at_end and len(params.baseline_rates) > 1:
        notes.append(
            f"The chosen rate of {', '.join(dict.fromkeys(at_end))} lies at an end of those tried: try further ones."
        )
    if diverged := _diverged(result):
        notes.append(f"Trainings that diverged, and whose rates were not chosen: {diverged}.")
    if len(params.baseline_rates) < 3 and _chosen(result):
        notes.append("Baselines were trained with fewer than three learning rates: a gain may be one of the rate.")
    u = result["scale"].values[-1]
    low = [str(name) for name, value in zip(result["bits"]["layer"].values, u, strict=True) if value < 0.3]
    if low:
        notes.append(
            f"In {len(low)} of {len(u)} layers u is below 0.3, where the square wave is nearly a plain sign: {', '.join(low[:6])}"
            f"{', ...' if len(low) > 6 else ''}. Weight decay does that; a larger omega or less decay undoes it."
        )
    gap = np.abs(
        result["quantisation_error"].values[:, 1]
        - quantisation_error(result["laplace_scale"].values[:, 1] * params.omega)
    )
    notes.append(
        f"Measured quantisation errors differ from the closed form for Laplace-distributed weights by {gap.max():.3f} at most."
    )
    return tuple(notes)
