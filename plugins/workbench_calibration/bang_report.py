"""Report of `calibration.bang`."""

from __future__ import annotations

from typing import Any

import numpy as np
from workbench import Bar, HeatMap, Histogram, ImageGrid, Line, Metric, Report, Result, Scatter, Table
from workbench.toolkit import Interval, mean_interval

NAMES = {"ce": "cross entropy (WiSE-FT)", "ls": "label smoothing", "mixup": "Mixup", "mixup_ls": "Mixup and label smoothing",
         "given": "given model"}  # fmt: skip
TINY = 1e-12


def report(result: Result) -> Report:
    """The whole report: the theory alone, or with an experiment."""
    if "accuracy" not in result:
        return _theory_report(result)
    losses = [str(name) for name in result["curve_accuracy"]["loss"].values]
    return Report(
        summary=_summary(result, losses),
        metrics=_metrics(result, losses),
        tables=_tables(result, losses),
        views=_views(result, losses),
        notes=_notes(result, losses),
    )


def shifted_mean(result: Result, array: Any) -> Any:
    """Mean of an array over the shifted data sets; over `id` if there are none."""
    kept = result["is_shifted"].values
    return array.isel(dataset=np.flatnonzero(kept) if kept.any() else [0]).mean("dataset")


def _interval(values: np.ndarray) -> Interval:
    return mean_interval(np.asarray(values, dtype=np.float64))


def _span(interval: Interval) -> tuple[float, float] | None:
    return None if np.isnan(interval.lower) else (interval.lower, interval.upper)


def gain(result: Result, loss: str) -> Interval:
    """Accuracy at alpha 0.5 less that of the better end, on shifted data (mean over sets).

    Over seeds Student's interval of paired differences; for one training the normal interval over paired samples.
    """
    curve = shifted_mean(result, result["curve_accuracy"].sel({"loss": loss}))  # (alpha, seed)
    ends = [curve.sel({"alpha": a}).values for a in (0.0, 1.0)]
    difference = curve.sel({"alpha": 0.5}).values - np.maximum(*ends)
    if len(difference) > 1:
        return _interval(difference)
    bits = result["outcome"].sel({"loss": loss}).values.astype(np.int64)
    better = (bits >> 2 if ends[0][0] >= ends[1][0] else bits >> 1) & 1
    return _paired(result, (bits & 1) - better)


def _paired(result: Result, value: np.ndarray) -> Interval:
    """Mean over shifted sets of the means of values (sample,), with its normal 95 % interval."""
    kept = result["is_shifted"].values
    names = result["accuracy"]["dataset"].values[kept] if kept.any() else ["id"]
    own = [value[result["domain"].values == name].astype(np.float64) for name in names]
    mean = float(np.mean([one.mean() for one in own]))
    half = 1.96 * float(np.sqrt(sum(one.var(ddof=1) / len(one) for one in own if len(one) > 1))) / len(own)
    return Interval(mean, mean - half, mean + half)


def _advantage(result: Result, predictor: str, other: str) -> Interval:
    """Accuracy of one predictor less that of another on shifted data: over seeds, or over samples for one training."""
    if result["accuracy"].sizes["seed"] > 1:
        return _interval(_seeds(result, predictor) - _seeds(result, other))
    label = result["label"].values
    right = [
        (result["logit"].sel({"predictor": one}).values.argmax(1) == label).astype(float) for one in (predictor, other)
    ]
    return _paired(result, right[0] - right[1])


def _where(result: Result) -> str:
    return "on shifted data" if result["is_shifted"].values.any() else "in distribution (no shifted data were given)"


def _value(result: Result, array: str, predictor: str) -> float:
    return float(shifted_mean(result, result[array].sel({"predictor": predictor})).mean())


def _sure(interval: Interval, least: float = 0.005) -> int:
    """1, -1 or 0: surely above, surely below zero, or neither; without an interval, by at least half a point."""
    if np.isnan(interval.lower):
        return int(interval.value >= least) - int(interval.value <= -least)
    return int(interval.lower > 0) - int(interval.upper < 0)


def _summary(result: Result, losses: list[str]) -> str:
    first, where = losses[0], _where(result)
    change = gain(result, first)
    figures = {kind: _value(result, "accuracy", name) for kind, name in
               (("pre", "pre"), ("ft", f"ft_{first}"), ("wise", f"wise_{first}"))}  # fmt: skip
    verdict = {
        1: "beats both of them",
        -1: "is worse than the better of them",
        0: "does not surely beat the better of them",
    }
    text = (
        f"The average of both models' weights at alpha = 0.5 reaches {figures['wise']:.1%} {where} and {verdict[_sure(change)]}: "
        f"pretrained {figures['pre']:.1%}, fine-tuned {figures['ft']:.1%}."
    )
    balanced = [loss for loss in losses if loss not in ("ce", "given")]
    if first == "ce" and balanced:
        # Not the best of them on the data reported on: that would report the choice.
        other = "mixup_ls" if "mixup_ls" in balanced else balanced[-1]
        accuracy = _value(result, "accuracy", f"wise_{other}")
        confidence = [_value(result, "confidence_mean", f"ft_{loss}") for loss in ("ce", other)]
        word = {1: "more", -1: "less", 0: "no surely different"}[_sure(_advantage(result, f"wise_{other}", "wise_ce"))]
        moves = "lowers" if confidence[1] < confidence[0] else "does not lower"
        text += (
            f" Fine-tuning with {NAMES[other]} {moves} the fine-tuned model's confidence there ({confidence[0]:.2f} before, "
            f"{confidence[1]:.2f} with it) and gives {word} accuracy to the average ({accuracy:.1%})."
        )
    if "pair_accuracy" in result:
        members = shifted_mean(result, result["pair_mean"])
        values = [float(members.sel({"member": name})) for name in members["member"].values]
        text += f" Two networks from different weights: {values[0]:.1%} and {values[1]:.1%}, their mean logits {values[2]:.1%}."
    return text


def _seeds(result: Result, predictor: str, array: str = "accuracy") -> np.ndarray:
    values: np.ndarray = shifted_mean(result, result[array].sel({"predictor": predictor})).values
    return values


def _metrics(result: Result, losses: list[str]) -> list[Metric]:
    metrics, where = [], _where(result)

    def add(name: str, values: np.ndarray, direction: Any, text: str, least: float = 0.0) -> None:
        interval = _interval(values)
        span = None if np.isnan(interval.lower) else (max(interval.lower, least), min(interval.upper, 1.0))
        metrics.append(Metric(name=name, value=interval.value, direction=direction, interval=span,
                              description=f"{text}; interval over seeds" if len(values) > 1 else text))  # fmt: skip

    for loss in losses:
        found = gain(result, loss)
        metrics.append(Metric(name=f"wise_gain_{loss}", value=found.value, direction="higher", interval=_span(found),
                              description=f"accuracy at alpha 0.5 less the better end's, {where}; {NAMES[loss]}"))  # fmt: skip
    if "pair_fft" in result:
        pair = shifted_mean(result, result["pair_accuracy"]).values
        difference = pair[:, 2] - pair[:, :2].max(1)
        add("pair_gain", difference, "higher", "two networks: mean logits less the better network", -1.0)
        add(
            "pair_fft",
            shifted_mean(result, result["pair_fft"]).values,
            "higher",
            "two networks wrong, mean logits right",
        )
    single = result["accuracy"].sizes["seed"] == 1
    for name in result["accuracy"]["predictor"].values:
        if single:
            hit = result["logit"].sel({"predictor": name}).values.argmax(1) == result["label"].values
            found = _paired(result, hit)
            span = (max(found.lower, 0.0), min(found.upper, 1.0))
            metrics.append(Metric(name=f"accuracy_{name}", value=found.value, direction="higher", interval=span,
                                  description=f"accuracy {where}; interval over samples"))  # fmt: skip
        else:
            add(f"accuracy_{name}", _seeds(result, str(name)), "higher", f"accuracy {where}")
    for name in ["pre", *(f"ft_{loss}" for loss in losses)]:
        add(
            f"confidence_{name}",
            _seeds(result, name, "confidence_mean"),
            "neutral",
            f"mean largest probability {where}",
        )
        identity = result["accuracy"].sel({"predictor": name}).isel(dataset=0).values
        add(f"id_accuracy_{name}", identity, "higher", "accuracy in distribution")
    for loss in losses:
        share = shifted_mean(result, result["outcome_share"].sel({"loss": loss, "outcome_kind": "FFT"})).values
        add(f"fft_{loss}", share, "higher", f"both models wrong, their average right, share of samples {where}")
    return metrics


def _tables(result: Result, losses: list[str]) -> list[Table]:
    datasets = [str(name) for name in result["accuracy"]["dataset"].values]
    tables = []
    for array, title in (
        ("accuracy", "Accuracy"),
        ("confidence_mean", "Mean confidence"),
        ("ece", "Calibration error"),
    ):
        mean = result[array].mean("seed")
        rows = [(str(name), *(round(float(v), 4) for v in mean.sel({"predictor": name}).values))
                for name in mean["predictor"].values]  # fmt: skip
        tables.append(
            Table(title=title, columns=("predictor", *datasets), rows=tuple(rows), caption=_TABLE_CAPTIONS[array])
        )
    rows = []
    for loss in losses:
        share = shifted_mean(result, result["outcome_mean"].sel({"loss": loss}))
        cells = {str(kind): float(share.sel({"outcome_kind": kind})) for kind in share["outcome_kind"].values}
        change = gain(result, loss).value
        part = f"{cells['FFT'] / change:.2f}" if change > TINY else "no gain"
        rows.append((NAMES[loss], *(round(100 * value, 2) for value in cells.values()), round(100 * change, 2), part))
    tables.append(
        Table(
            title="Who is right, % of the shifted samples" if result["is_shifted"].values.any() else "Who is right, %",
            columns=(
                "fine-tuning",
                *(str(kind) for kind in result["outcome_mean"]["outcome_kind"].values),
                "gain",
                "FFT / gain",
            ),
            rows=tuple(rows),
            caption="Pretrained, fine-tuned, average at 0.5: T is right. Gain: accuracy of the average less the better model's, "
            "in points. FFT / gain above 1: the average loses elsewhere a part of what it wins where both are wrong.",
        )
    )
    rows = []
    for loss in losses:
        best = result["best_alpha"].sel({"loss": loss}).values
        curve = shifted_mean(result, result["curve_accuracy"].sel({"loss": loss}))
        picked = np.mean([float(curve.isel(seed=s).sel({"alpha": a})) for s, a in enumerate(best)])
        half = float(curve.sel({"alpha": 0.5}).mean())
        rows.append((NAMES[loss], round(half, 4), round(float(best.mean()), 2), round(float(picked), 4)))
    tables.append(
        Table(
            title="Which alpha",
            columns=("fine-tuning", "accuracy at 0.5", "alpha best in distribution", "accuracy there"),
            rows=tuple(rows),
            caption=f"Accuracy {_where(result)}. The alpha is chosen on a part of the data in distribution that is not reported "
            "on; choosing it on shifted data would report the choice, not the method.",
        )
    )
    return tables


_TABLE_CAPTIONS = {
    "accuracy": "Means over seeds. ft: fine-tuned; wise: weights averaged at 0.5; ose: mean of probabilities or of logits.",
    "confidence_mean": "Mean largest probability. Compare only models whose logits have the same scale.",
    "ece": "Top-label, bins of equal width.",
}


def _views(result: Result, losses: list[str]) -> list[Any]:
    shifted = result["is_shifted"].values.any()
    views: list[Any] = []
    if shifted:
        views += [
            Scatter(title="In distribution against shifted, along alpha", x="point_id", y="point_ood", color="point_loss",
                    label="point_alpha", x_label="accuracy in distribution", y_label="mean accuracy on shifted sets",
                    caption="One point for each alpha; all losses begin at the pretrained model (alpha 0)."),
            Line(title="Accuracy on shifted data along alpha", y=("curve_ood_accuracy",), x="alpha", by="loss", markers=True,
                 x_label="share of the fine-tuned model", y_label="accuracy",
                 caption="A dip between the ends: the two models are not connected by a line of good models, and averaging "
                         "weights does not pay."),
        ]  # fmt: skip
    names = [str(name) for name in result["accuracy"]["dataset"].values]
    apart = "shifted_confidence" in result  # runs of earlier versions do not have it
    hardest = [name for name, kept in zip(names, result["is_shifted"].values, strict=True) if kept][-1:] or names[:1]
    views += [
        Bar(title=f"Who is right: {hardest[0]}", y=("outcome_mean",), x="outcome_kind", by="loss",
            select={"dataset": hardest[0], "outcome_kind": ["FFT", "TFT", "FTT", "FTF", "TFF", "TTF"]}, y_label="share",
            x_label="pretrained, fine-tuned, average",
            caption="FFT is what only averaging gets right; TTF what only averaging gets wrong. TTT and FFF are left out."),
        Histogram(title="Confidence on shifted data" if apart else "Confidence", by="predictor", bins=25, log_y=True,
                  values=("shifted_confidence" if apart else "confidence",),
                  select={"predictor": ["pre", *dict.fromkeys((f"ft_{losses[0]}", f"ft_{losses[-1]}"))]},
                  x_label="largest probability",
                  caption="All samples of all shifted sets, seed 0." if apart else "All samples, seed 0."),
        Line(title="Is it confidence? The fine-tuned head cooled before averaging", y=("cooled_accuracy",), x="tau", by="space",
             select={"loss": losses[0], "dataset": hardest[0], "seed": 0}, markers=True, x_label="temperature",
             y_label="accuracy", caption=f"{NAMES[losses[0]]}, {hardest[0]}, seed 0: averages of weights, and of probabilities."),
    ]  # fmt: skip
    if "pair_mean" in result:
        views += [
            Bar(title="Two networks and their mean logits", y=("pair_mean",), x="dataset", by="member", y_label="accuracy",
                caption="Networks from different initial weights: only their outputs can be averaged."),
            ImageGrid(title="MultiColorMNIST", images=("example_image",), column="class", row="split", value_range=(0, 255),
                      caption="Each of 32 patches has its own permutation of ten colours; below, every patch is random."),
        ]  # fmt: skip
    return [*views, _theory_view()]


def _theory_view() -> HeatMap:
    return HeatMap(title="Theory: averaging weights less averaging outputs", z="theory_gain", x="shared_spurious",
                   y="shared_invariant", diverging=True, z_label="difference of accuracy",
                   caption="Weights count shared features more than outputs do: good where they are invariant, bad where they "
                           "are spurious.")  # fmt: skip


def _notes(result: Result, losses: list[str]) -> list[str]:
    params, notes = result.params, []
    seeds = result["accuracy"].sizes["seed"]
    if losses != ["given"]:
        notes.append("One seed: nothing says how far the figures move from training to training." if seeds == 1 else
                     f"Intervals cover {seeds} trainings on one split of the data, not the samples judged.")  # fmt: skip
    for loss in losses:
        curve = shifted_mean(result, result["curve_accuracy"].sel({"loss": loss})).mean("seed")
        ends = [float(curve.sel({"alpha": a})) for a in (0.0, 1.0)]
        lowest = float(curve.min())
        if lowest < min(ends) - 0.01:
            at = float(curve["alpha"].values[int(curve.values.argmin())])
            notes.append(f"{NAMES[loss]}: at alpha {at:g} the average is {100 * (min(ends) - lowest):.1f} points worse than "
                         "either model: no line of good models leads from one to the other.")  # fmt: skip
        nearest = np.flatnonzero(result["best_alpha"].sel({"loss": loss}).values == 1.0)
        if len(nearest) == seeds and result["is_shifted"].values.any():
            notes.append(
                f"{NAMES[loss]}: in distribution the fine-tuned model itself is best, which says nothing of shifted data."
            )
    notes.append(f"Batch norm statistics: {params.bn}." + (" Measured on images in distribution, without labels."
                 if params.bn == "re-estimate" else ""))  # fmt: skip
    if "randomisation" in result:
        last = [
            float(result["accuracy"].sel({"predictor": name, "dataset": "p=1"}).mean())
            for name in ("pre", f"ft_{losses[0]}")
        ]
        notes.append(f"With every patch random (p = 1) only the digit tells: pretrained {last[0]:.1%}, fine-tuned {last[1]:.1%}. "
                     "This set is not in the means over shifted data.")  # fmt: skip
        notes.append("The layout of the patches and the sizes are ours; the paper's figures (71 to 79 % at p = 0.7) are of MNIST "
                     "with its own layout and cannot be compared.")  # fmt: skip
    if not result["is_shifted"].values.any():
        notes.append("Without shifted data nothing can be said about robustness, which is what averaging is for.")
    return notes


def _theory_report(result: Result) -> Report:
    params, table = result.params, result["theory_accuracy"]
    corner = {kind: float(table.sel({"theory": kind}).values[0, 0]) for kind in ("single", "ose", "wse")}
    halfway = table.sizes["shared_spurious"] // 2
    shared = int(table["shared_spurious"].values[halfway])
    at = {kind: float(table.sel({"theory": kind}).values[0, halfway]) for kind in ("ose", "wse")}
    metrics = [
        Metric(name=f"{kind}_nothing_shared", value=corner[kind], direction="higher",
               description={"single": "accuracy of one model", "ose": "averaged outputs", "wse": "averaged weights"}[kind])
        for kind in corner
    ] + [Metric(name=f"{kind}_{shared}_shared", value=at[kind], direction="higher",
                description=f"with {shared} spurious features in common") for kind in at]  # fmt: skip
    return Report(
        summary=f"In the voting model a single classifier is right {corner['single']:.1%} of the time; averaging two that share "
        f"nothing brings {corner['ose']:.1%}. With {shared} of {params.theory_spurious} spurious features in common, averaged "
        f"outputs reach {at['ose']:.1%} and averaged weights {at['wse']:.1%}.",
        metrics=metrics,
        views=(_theory_view(),
               Line(title="Accuracy by shared spurious features", y=("theory_accuracy",), x="shared_spurious", by="theory",
                    select={"shared_invariant": 0}, markers=True, y_label="accuracy",
                    caption="No shared invariant features. wse: averaged weights; ose: averaged outputs.")),
        notes=[f"{params.theory_draws} draws in each cell, the same ones in all; ties are split. Both models have "
               f"{params.theory_invariant} invariant and {params.theory_spurious} spurious features, p = {params.theory_p:g}, "
               f"{params.theory_classes} classes.",
               "Give digits as `data` for MultiColorMNIST, or a model and data of your own."],
    )  # fmt: skip
