"""The report of `restoration.ms_ssim`: what each loss won and lost, as a pure function of the stored run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from workbench import Bar, HeatMap, ImageGrid, Line, Metric, Report, Result, Scatter, Table
from workbench.toolkit import Interval, mean_interval

from workbench_restoration.comparison import CRITERIA, LOWER_IS_BETTER, METRICS, MOST_PSNR, probe_interval
from workbench_restoration.subject import training_scales

__all__ = ["Verdict", "report", "verdicts"]

NAMES = {"mse": "MSE", "mae": "MAE", "psnr": "PSNR", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "mix": "MS-SSIM + MAE mix"}
NETWORK = {"autoencoder": "autoencoder", "vae": "expected-loss VAE", "superres": "SRCNN"}


@dataclass(frozen=True)
class Verdict:
    """Whether the network trained by a loss is the best one by that loss."""

    loss: str
    own: float
    """Its mean of its own metric."""
    rival: str
    """The best of the others."""
    rival_value: float
    gain: Interval
    """Mean over images of own - rival, turned so that above 0 means won."""

    @property
    def word(self) -> str:
        """wins, loses, or tie where the interval holds 0."""
        return "wins" if self.gain.lower > 0 else "loses" if self.gain.upper < 0 else "tie"


def verdicts(losses: Sequence[str], value: np.ndarray) -> list[Verdict]:
    """One verdict per training loss that is also a metric, from (loss, metric, sample); none with a single loss."""
    found = []
    for row, loss in enumerate(losses):
        if loss not in CRITERIA or len(losses) < 2:
            continue
        column = value[:, METRICS.index(loss)]
        sign = -1.0 if loss in LOWER_IS_BETTER else 1.0
        others = [index for index in range(len(losses)) if index != row]
        rival = max(others, key=lambda index: sign * column[index].mean())
        gain = mean_interval(sign * (column[row] - column[rival]))
        found.append(Verdict(loss, float(column[row].mean()), losses[rival], float(column[rival].mean()), gain))
    return found


def contrast(losses: Sequence[str]) -> tuple[str, str] | None:
    """The structural and the pixel loss that the summary compares."""
    structural = next((name for name in ("ssim", "ms_ssim", "mix") if name in losses), None)
    pixel = next((name for name in ("mse", "mae") if name in losses), None)
    return (structural, pixel) if structural and pixel else None


def report(result: Result) -> Report:
    """Summary, metrics, tables and views of a run."""
    params = result.params
    losses = [str(name) for name in result["metric_value"]["loss"].values]
    value = result["metric_value"].values.astype(np.float64)
    judged = verdicts(losses, value)
    probed = "probe_accuracy" in result
    return Report(
        summary=_summary(result, losses, value, judged),
        metrics=_metrics(result, losses, value, judged),
        tables=[
            _loss_by_metric(result, losses, value),
            *([_diagonal(judged)] if judged else []),
            *([_repetitions(result, losses)] if params.repetitions > 1 else []),
            _trainings(result, losses),
            *([_probe_table(result, losses)] if probed else []),
        ],
        views=_views(result, losses),
        notes=_notes(result, losses),
    )


def _paired(value: np.ndarray, losses: Sequence[str], metric: str, first: str, second: str) -> Interval:
    column = value[:, METRICS.index(metric)]
    return mean_interval(column[losses.index(first)] - column[losses.index(second)])


def _summary(result: Result, losses: Sequence[str], value: np.ndarray, judged: Sequence[Verdict]) -> str:
    count = value.shape[2]
    network = NETWORK[result.params.task]
    pair = contrast(losses)
    if pair is None:
        means = ", ".join(
            f"{NAMES[name]}-trained {value[row, METRICS.index('psnr')].mean():.2f} dB PSNR and "
            f"{value[row, METRICS.index('ssim')].mean():.3f} SSIM" for row, name in enumerate(losses)
        )  # fmt: skip
        return f"The {network} on {count} held-out images: {means}."
    structural, pixel = pair
    ssim, psnr = (_paired(value, losses, metric, structural, pixel).value for metric in ("ssim", "psnr"))
    text = (
        f"Trained by {NAMES[structural]} instead of {NAMES[pixel]}, the {network} changes SSIM by {ssim:+.3f} and "
        f"PSNR by {psnr:+.2f} dB on {count} held-out images"
    )
    won = sum(verdict.word == "wins" for verdict in judged)
    text += f"; {won} of {len(judged)} losses win their own metric clearly."
    if "probe_accuracy" in result:
        probe = result["probe_accuracy"].values.mean(1)
        better, other = probe[losses.index(structural)], probe[losses.index(pixel)]
        text += (
            f" A linear probe reads the label from its codes in {100 * better:.1f} % of the images "
            f"({100 * other:.1f} % with {NAMES[pixel]})."
        )
    return text


def _metrics(result: Result, losses: Sequence[str], value: np.ndarray, judged: Sequence[Verdict]) -> list[Metric]:
    found = []
    pair = contrast(losses)
    if pair is not None:
        structural, pixel = pair
        for name, metric, unit in (("ssim_gain", "ssim", ""), ("psnr_change", "psnr", "dB")):
            gain = _paired(value, losses, metric, structural, pixel)
            about = f"{NAMES[metric]} of {NAMES[structural]}-trained minus {NAMES[pixel]}-trained, mean over held-out images"
            found.append(
                Metric(
                    name=name,
                    value=gain.value,
                    unit=unit,
                    direction="higher",
                    interval=_bounds(gain),
                    description=about,
                )
            )
    if judged:
        found.append(
            Metric(
                name="diagonal_wins",
                value=sum(verdict.word == "wins" for verdict in judged) / len(judged),
                direction="higher",
                description="share of losses whose network is clearly the best by the metric it was trained by",
            )
        )
    for row, loss in enumerate(losses):
        for metric, unit in (("ssim", ""), ("psnr", "dB")):
            mean = mean_interval(value[row, METRICS.index(metric)])
            found.append(
                Metric(
                    name=f"{metric}_{loss}",
                    value=mean.value,
                    unit=unit,
                    direction="higher",
                    interval=_bounds(mean),
                    description=f"mean {NAMES[metric]} of the {NAMES[loss]}-trained network",
                )
            )
    if "probe_accuracy" in result:
        for row, loss in enumerate(losses):
            probe = probe_interval(result["probe_accuracy"].values[row], value.shape[2])
            found.append(
                Metric(
                    name=f"probe_{loss}",
                    value=probe.value,
                    direction="higher",
                    interval=probe.bounds,
                    description=f"accuracy of a linear probe on the codes of the {NAMES[loss]}-trained network",
                )
            )
    return found


def _bounds(interval: Interval) -> tuple[float, float] | None:
    return interval.bounds if all(map(math.isfinite, interval.bounds)) else None


def _loss_by_metric(result: Result, losses: Sequence[str], value: np.ndarray) -> Table:
    names = [NAMES[loss] for loss in losses]
    means = value.mean(2)
    if "bicubic_value" in result:
        names = ["bicubic, not trained", *names]
        means = np.concatenate([result["bicubic_value"].values.astype(np.float64).mean(1)[None], means])
    best = [
        int(means[:, column].argmin() if name in LOWER_IS_BETTER else means[:, column].argmax())
        for column, name in enumerate(METRICS)
    ]
    digits = {"mse": 5, "mae": 4, "psnr": 2, "ssim": 4, "ms_ssim": 4}
    rows = tuple(
        (name, *(
            f"{means[row, column]:.{digits[metric]}f}" + (" *" if best[column] == row else "")
            for column, metric in enumerate(METRICS)
        ))
        for row, name in enumerate(names)
    )  # fmt: skip
    return Table(
        title="Training loss by metric",
        columns=("trained by", "MSE", "MAE", "PSNR [dB]", "SSIM", "MS-SSIM"),
        rows=rows,
        caption=f"Means over {value.shape[2]} held-out images, first training; * marks the best of a column. "
        "Each loss should win its own column, MSE also that of PSNR.",
    )


def _diagonal(judged: Sequence[Verdict]) -> Table:
    return Table(
        title="Does each loss win its own metric?",
        columns=("trained by", "own metric", "best other", "its value", "gain", "95 % low", "95 % high", "verdict"),
        rows=tuple(
            (
                NAMES[verdict.loss], verdict.own, NAMES[verdict.rival], verdict.rival_value,
                verdict.gain.value, verdict.gain.lower, verdict.gain.upper, verdict.word,
            )
            for verdict in judged
        ),
        caption="Gain: mean paired difference over held-out images, above 0 = better than the best other network.",
    )  # fmt: skip


def _repetitions(result: Result, losses: Sequence[str]) -> Table:
    mean = result["metric_mean"].values
    rows = []
    for row, loss in enumerate(losses):
        cells: list[Any] = [NAMES[loss]]
        for column in range(len(METRICS)):
            interval = mean_interval(mean[row, column])
            cells.append(f"{interval.value:.4g} ± {interval.upper - interval.value:.2g}")
        rows.append(tuple(cells))
    return Table(
        title="Over repeated trainings",
        columns=("trained by", "MSE", "MAE", "PSNR [dB]", "SSIM", "MS-SSIM"),
        rows=tuple(rows),
        caption=f"Mean and 95 % interval (Student's t) over {mean.shape[2]} trainings with other weights and batches.",
    )


def _trainings(result: Result, losses: Sequence[str]) -> Table:
    vae = "weight" in result
    drift = result["mean_error"].values.mean(1)
    rows = []
    for row, loss in enumerate(losses):
        cells: list[Any] = [NAMES[loss], float(result["learning_rate"].values[row, 0])]
        cells += [float(result[name].values[row, -1]) for name in ("train_loss", "validation_loss")]
        cells.append(", ".join(f"{channel:+.4f}" for channel in drift[row]))
        cells += [float(result[name].values[row, 0]) for name in ("weight", "divergence")] if vae else []
        rows.append(tuple(cells))
    return Table(
        title="Trainings",
        columns=("trained by", "learning rate", "last training loss", "last validation loss", "brightness drift")
        + (("C [nats per unit loss]", "KL [nats]") if vae else ()),
        rows=tuple(rows),
        caption="Losses are in units of their own and do not compare between rows. Brightness drift: mean of restored - "
        "original per channel; MS-SSIM hardly sees a constant offset.",
    )


def _probe_table(result: Result, losses: Sequence[str]) -> Table:
    rows = []
    for row, loss in enumerate(losses):
        probe = probe_interval(result["probe_accuracy"].values[row], result["clean"].sizes["sample"])
        rows.append((NAMES[loss], probe.value, *probe.bounds))
    over = "trainings" if result["probe_accuracy"].sizes["seed"] > 1 else "held-out images"
    return Table(
        title="What the codes know",
        columns=("trained by", "probe accuracy", "95 % low", "95 % high"),
        rows=tuple(rows),
        caption=f"Logistic regression on frozen codes of the training images, accuracy on held-out ones; interval over {over}.",
    )


def _views(result: Result, losses: Sequence[str]) -> list[Any]:
    task = result.params.task
    views: list[Any] = [
        ImageGrid(
            title="Crops side by side" if task == "superres" else "Reconstructions side by side",
            images=("gallery",),
            row="version",
            column="picture",
            limit=1 + 2 * (len(losses) + 1),
            caption="Rows below a version: its SSIM map, white = 1; black frame where no window fits. "
            "The first held-out images" + (", at their most textured place." if task == "superres" else "."),
        ),
        HeatMap(
            title="How far from the best network, by each criterion",
            z="excess_loss",
            x="criterion",
            y="loss",
            annotate=True,
            z_label="loss / best loss - 1",
            caption="0 = best of the column. Trained by (rows) against judged by (columns).",
        ),
        Scatter(
            title="Each held-out image: PSNR against SSIM",
            x="psnr",
            y="ssim",
            color="trained_by",
            x_label="PSNR [dB]",
            y_label="SSIM",
        ),
        *(
            Line(
                title=f"{title}, by epoch",
                y=(name,),
                x="epoch",
                by="loss",
                log_y=True,
                y_label="objective",
                caption="Each loss in units of its own: compare the shapes, not the heights.",
            )
            for name, title in (("train_loss", "Training objective"), ("validation_loss", "Validation objective"))
        ),
    ]
    if "probe_accuracy" in result:
        views.append(
            Bar(title="Linear probe on the codes", y=("probe_mean",), x="loss", error="probe_error", y_label="accuracy",
                caption="Bars: half the width of the 95 % interval.")
        )  # fmt: skip
    if "generated" in result:
        views.append(
            ImageGrid(title="Samples: decoded N(0, I)", images=("generated",), row="loss", column="picture",
                      caption="The same codes for every loss.")
        )  # fmt: skip
        views.append(
            Line(
                title="Search for C: divergence in the order tried",
                y=("search",), x="trial_step", by="loss", select={"quantity": "divergence"}, y_label="mean KL [nats]",
                log_y=True, markers=True,
            )
        )  # fmt: skip
    if "pair_sheet" in result:
        views.append(
            ImageGrid(
                title="Pair sheet for human judges (blind)",
                images=("pair_sheet",),
                row="side",
                column="trial",
                limit=8,
                caption="Which of the two looks more like the original? The key is in pair_left and pair_right.",
            )
        )
    return views


def _notes(result: Result, losses: Sequence[str]) -> list[str]:
    params = result.params
    notes = [
        "Intervals over held-out images hold for these trained networks; they say nothing about other weights or data. "
        + (
            "Repeat the training (repetitions) to see those."
            if params.repetitions == 1
            else "See the repetitions table."
        ),
        "Metrics are those of the network's output in 0..1 before rounding to 8 bits."
        if params.task != "superres"
        else f"Metrics are those of Y, clipped and rounded to 8 bits, without {params.factor} pixels on each border.",
    ]
    column = METRICS.index("psnr")
    stored = [result[name].values for name in ("metric_value", "bicubic_value") if name in result]
    at_most = sum(int((value[..., column, :] >= MOST_PSNR).sum()) for value in stored)
    notes.append(
        f"PSNR counts as {MOST_PSNR:g} dB at most, because that of an image restored exactly is infinite"
        + (f": {at_most:,} of the values behind the means are cut off so." if at_most else "; none is.")
    )
    if params.task == "superres" and params.scales is None:
        notes.append(
            f"MS-SSIM has {training_scales(params)} scales, as many as the training patches have room for, in training "
            "and in judging."
        )
    if params.task == "vae":
        reached = result["divergence"].values
        off = np.abs(reached / params.target_divergence - 1).max(1) > params.divergence_tolerance
        missed = [NAMES[loss] for loss, far in zip(losses, off, strict=True) if far]
        if missed:
            notes.append(
                f"The divergence of {', '.join(missed)} is not within {100 * params.divergence_tolerance:g} % of the target of "
                f"{params.target_divergence:g} nats: compare with care, or allow more bisection_steps or a wider weight_bracket."
            )
    if len(params.learning_rates) == 1:
        notes.append("One learning rate for all losses; gradients differ in scale, so give several to choose from.")
    if "probe_accuracy" not in result and params.task != "superres":
        notes.append("No labels were given for both parts, so the codes were not probed.")
    if "pair_sheet" in result:
        notes.append(
            "The pair sheet is stored unanswered: the run holds no human preference. Answers can be scored with "
            "comparison.preference."
        )
    return notes
