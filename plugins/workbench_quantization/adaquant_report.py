"""The report of an AdaQuant run: what each stage brings beyond re-estimated batch norms, widths, errors by layer."""

from __future__ import annotations

import numpy as np
from workbench import Bar, HeatMap, Histogram, Line, Metric, Report, Result, Scatter, Table
from workbench.report import View
from workbench.toolkit import mean_interval

from workbench_quantization.adaquant_end_to_end_report import fit_metrics, fit_notes, fit_tables, fit_views
from workbench_quantization.report_parts import accuracy_metric, kept_note, resolution, values

SHIFTED = 0.1
"""Loss of accuracy from calibration to report images from which on a shift is suspected."""


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    return Report(
        summary=_summary(result),
        metrics=(*_metrics(result), *fit_metrics(result)),
        tables=(*_tables(result), *fit_tables(result)),
        views=(*_views(result), *fit_views(result)),
        notes=(*_notes(result), *fit_notes(result)),
    )


def _lowest(result: Result) -> int:
    """The narrowest candidate: one of `bits`, or of the given widths."""
    return int(result["loss_increase"]["bit"].values[0])


def _stages(result: Result) -> list[str]:
    return [str(name) for name in result["accuracy"]["stage"].values]


def _chosen(result: Result) -> dict[str, float]:
    """Accuracy of the stored solution by stage."""
    return dict(zip(_stages(result), values(result, "accuracy")[0].tolist(), strict=True))


def _gain(result: Result, after: str, before: str) -> tuple[float, tuple[float, float] | None]:
    """What the stored solution's accuracy rises by from stage to stage, and its interval over the images, taken in pairs.

    None where it cannot be told: in runs of before `correct` was stored.
    """
    by_stage = _chosen(result)
    gain = by_stage[after] - by_stage[before]
    if "correct" not in result:
        return gain, None
    correct, stages = values(result, "correct").astype(np.float64), _stages(result)
    found = mean_interval(correct[stages.index(after)] - correct[stages.index(before)])
    return gain, found.bounds if len(correct[0]) > 1 else None


def _summary(result: Result) -> str:
    by_stage, full = _chosen(result), float(result["accuracy_full_precision"])
    gain, bounds = _gain(result, "adaquant + norms", "naive + norms")
    sure = f" (95 % interval {100 * bounds[0]:+.1f} to {100 * bounds[1]:+.1f})" if bounds else ""
    tuned = by_stage.get("adaquant + norms + biases")
    biases = "" if tuned is None else f", that of tuned biases {100 * (tuned - by_stage['adaquant + norms']):+.1f}"
    return (
        f"At {float(values(result, 'size_share')[0]):.1%} of the 32-bit size the model keeps {_final(result):.1%} of "
        f"{full:.1%} accuracy. Rounding alone gives {by_stage['naive']:.1%}, re-estimating batch norms brings that to "
        f"{by_stage['naive + norms']:.1%}; AdaQuant's own part is {100 * gain:+.1f} points{sure}{biases}."
    )


def _final(result: Result) -> float:
    return float(values(result, "accuracy")[0, -1])


def _metrics(result: Result) -> tuple[Metric, ...]:
    count, by_stage = result["label"].sizes["sample"], _chosen(result)
    full = float(result["accuracy_full_precision"])

    errors = values(result, "layer_error")
    names = {
        "naive": "naive",
        "naive + norms": "naive_norms",
        "adaquant": "adaquant",
        "adaquant + norms": "adaquant_norms",
    }
    metrics = [
        accuracy_metric(
            "accuracy", _final(result), count, "of the stored model, after the last stage (Wilson interval)"
        ),
        accuracy_metric("accuracy_full_precision", full, count, "of the model as it came"),
        Metric(name="accuracy_drop", value=full - _final(result), direction="lower"),
        *(
            accuracy_metric(f"accuracy_{short}", by_stage[stage], count, f"stage {stage}")
            for stage, short in names.items()
        ),
        *(
            Metric(
                name=name,
                value=gain,
                direction="higher",
                interval=bounds,
                description=text if bounds is None else f"{text} (interval over images, taken in pairs)",
            )
            for name, (gain, bounds), text in (
                (
                    "norm_tuning_gain",
                    _gain(result, "naive + norms", "naive"),
                    "accuracy that re-estimated batch norms bring without AdaQuant",
                ),
                (
                    "adaquant_gain",
                    _gain(result, "adaquant + norms", "naive + norms"),
                    "accuracy that AdaQuant adds, both with re-estimated batch norms",
                ),
            )
        ),
        Metric(
            name="size_share",
            value=float(values(result, "size_share")[0]),
            direction="lower",
            description="size of the weights over their size at 32 bits",
        ),
        Metric(
            name="average_bits",
            value=stored_bits(result) / float(values(result, "parameter_count").sum()),
            unit="bit",
            direction="lower",
            description="size of weights and scales, per weight",
        ),
        Metric(name="size", value=stored_bits(result) / 8e6, unit="MB", direction="lower", description="with scales"),
        Metric(
            name="layer_error_ratio",
            value=float(np.exp(np.mean(np.log((errors[:, 0, 1] + 1e-12) / (errors[:, 0, 0] + 1e-12))))),
            direction="lower",
            description="error of the layers' outputs after AdaQuant over before, lowest width, geometric mean",
        ),
        Metric(
            name="worse_layers",
            value=float((errors[:, 0, 1] > errors[:, 0, 0]).sum()),
            direction="lower",
            description="layers whose error on held-out images grew (lowest width)",
        ),
    ]
    return tuple(metrics)


def stored_bits(result: Result) -> float:
    """Bits of the stored model's weights and scales (float32, one per output channel), as `quantization.uniform` counts them."""
    weights = float((values(result, "parameter_count") * values(result, "bits").astype(np.int64)).sum())
    return weights + 32.0 * values(result, "scale").size


def _tables(result: Result) -> tuple[Table, ...]:
    stages = _stages(result)
    solutions = tuple(
        (
            str(name),
            round(float(share), 4),
            float(f"{increase:.4g}"),
            *(round(float(value), 4) for value in accuracies),
        )
        for name, share, increase, accuracies in zip(
            result["accuracy"]["solution"].values,
            values(result, "size_share"),
            values(result, "predicted_increase"),
            values(result, "accuracy"),
            strict=True,
        )
    )
    errors, noise = values(result, "layer_error"), values(result, "signal_to_noise")
    lowest = _lowest(result)
    layers = tuple(
        (
            str(name),
            int(count),
            int(bits),
            bool(fixed),
            float(f"{errors[place, 0, 0]:.3g}"),
            float(f"{errors[place, 0, 1]:.3g}"),
            round(float(noise[place, 0, 0]), 1),
            round(float(noise[place, 0, 1]), 1),
            float(f"{values(result, 'loss_increase')[place, 0]:.3g}"),
        )
        for place, (name, count, bits, fixed) in enumerate(
            zip(
                result["bits"]["layer"].values,
                values(result, "parameter_count"),
                values(result, "bits"),
                values(result, "fixed"),
                strict=True,
            )
        )
    )
    return (
        Table(
            title="Accuracy by stage",
            columns=("solution", "size share", "predicted increase", *stages),
            rows=solutions,
            caption=f"Full precision: {float(result['accuracy_full_precision']):.1%}. The first solution is stored.",
        ),
        Table(
            title=f"Layers at {lowest} bits",
            columns=(
                "layer", "weights", "stored bits", "fixed", "error naive", "error AdaQuant", "SNR naive (dB)",
                "SNR AdaQuant (dB)", "loss increase",
            ),
            rows=layers,
            caption="Errors and signal-to-noise ratios of the outputs on calibration images that were not optimised on; "
            "fixed layers at their own width.",
        ),
    )  # fmt: skip


def _views(result: Result) -> tuple[View, ...]:
    lowest = _lowest(result)
    stages = _stages(result)
    views: list[View] = [
        Bar(
            title="What each stage brings",
            y=("accuracy",),
            x="solution",
            by="stage",
            y_label="accuracy",
            caption="AdaQuant's own share is its difference to naive + norms, not to naive.",
        ),
        *_widths_compared(result, stages[-1]),
        Bar(
            title=f"Error of the layers' outputs at {lowest} bits",
            y=("layer_error",),
            x="layer",
            by="state",
            select={"bit": lowest},
            log_y=True,
            caption="On calibration images that were not optimised on.",
        ),
        HeatMap(title="Widths of every solution", z="solution_bits", x="layer", y="solution", annotate=True),
        Line(
            title=f"Optimisation at {lowest} bits",
            y=("layer_loss",),
            x="iteration",
            by="layer",
            select={"bit": lowest},
            log_y=True,
            y_label="squared error of the batch",
        ),
    ]
    if values(result, "normalised").any():
        views.append(
            Bar(
                title="How far quantisation had moved the channels",
                y=("norm_mean_shift", "norm_deviation_shift"),
                x="layer",
                caption="Root mean square over channels, in the stored solution: means in standard deviations, "
                "and standard deviations relative to what they were.",
            )
        )
    if "norm_mean_shift_channel" in result and values(result, "normalised").any():
        views.append(
            Histogram(
                title="The same channel by channel",
                values=("norm_mean_shift_channel", "norm_deviation_shift_channel"),
                x_label="against what the batch norm gave",
                caption="Means less beta in units of |gamma|, standard deviations over |gamma| less 1, before norms were "
                "re-estimated; afterwards both are 0 on these images.",
            )
        )
    return tuple(views)


def _widths_compared(result: Result, stage: str) -> tuple[View, ...]:
    """Sizes, and what narrowing a single layer costs; nothing to see where there is one width only."""
    if result["loss_increase"].sizes["bit"] == 1:
        return ()
    costs = [("size", "size_share", "share of the 32-bit size")]
    if getattr(result.params, "budget", "size") == "bops":
        costs.append(("bit operations", "bops", "bit operations of one sample"))
    return (
        *(
            Scatter(
                title=f"Accuracy against {name}",
                x=cost,
                y="accuracy",
                color="solution_kind",
                label="solution",
                select={"stage": stage},
                x_label=label,
                caption=f"After the last stage ({stage}).",
            )
            for name, cost, label in costs
        ),
        HeatMap(
            title="Rise of the calibration loss, one layer at a time",
            z="loss_increase",
            x="bit",
            y="layer",
            frame="chosen" if "chosen" in result else None,  # runs of before it was stored
            caption="Frames: widths of the stored model. First and last layer have 0 where their width is fixed.",
        ),
    )


def _notes(result: Result) -> tuple[str, ...]:
    count, full = result["label"].sizes["sample"], float(result["accuracy_full_precision"])
    params = result.params
    notes = [
        f"Accuracies are of {count:,} images that were not calibrated on; at {full:.1%} the sampling error is "
        f"{resolution(full, count):.1%}, so smaller differences say little.",
        "Intervals are over the report images; what other calibration images would give only runs with other seeds can tell.",
        "The stored model has quantised weights; the ranges of its inputs are in `input_range`, and `logit` was computed "
        "with quantised inputs.",
    ]
    if result["loss_increase"].sizes["bit"] > 1:
        notes.append(
            "The widths are chosen by single-layer losses, which ignore how errors of several layers interact."
        )
    if not values(result, "normalised").all():
        missing = int((~values(result, "normalised").astype(bool)).sum())
        have = "layer has" if missing == 1 else "layers have"
        notes.append(f"{missing} {have} no batch norm that could be folded and re-estimated.")
    own = float(result["accuracy_calibration"])
    if own - full > SHIFTED:
        notes.append(
            f"In full precision the model reaches {own:.1%} on the calibration images and {full:.1%} on the report images: "
            "overfitting or a shift of the images, in which differences between stages drown."
        )
    worse = int((values(result, "layer_error")[:, 0, 1] > values(result, "layer_error")[:, 0, 0]).sum())
    if worse:
        hint = "rate_mode='relative' takes smaller steps" if params.rate_mode == "absolute" else "take more images"
        layers = "layer" if worse == 1 else "layers"
        notes.append(f"AdaQuant made the output of {worse} {layers} worse on held-out images; {hint}.")
    cost, bounds = _gain(result, "adaquant", "adaquant + norms")
    if bounds and bounds[0] > 0:
        by_stage = _chosen(result)
        notes.append(
            f"AdaQuant's model was better before its norms were re-estimated: {by_stage['adaquant']:.1%} instead of "
            f"{by_stage['adaquant + norms']:.1%}, {100 * cost:.1f} points (95 % interval {100 * bounds[0]:.1f} to "
            f"{100 * bounds[1]:.1f})."
        )
    if params.mode == "parallel" and _lowest(result) < 4:
        notes.append(
            "Layers were optimised without the errors of those before them; below 4 bits mode='sequential' sees them."
        )
    program = values(result, "solution_kind") == "program"
    greedy = values(result, "solution_kind") == "greedy"
    gap = values(result, "predicted_increase")[greedy] - values(result, "predicted_increase")[program]
    if gap.max() > 1e-9:
        notes.append(f"The program's predicted increase is up to {gap.max():.3g} below that of the greedy allocation.")
    return (*notes, *kept_note(result))
