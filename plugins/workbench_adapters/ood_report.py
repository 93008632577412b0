"""What is said of a detector beside its baselines: metrics, paired differences, histograms, ROC."""

from __future__ import annotations

from typing import Any

import numpy as np
from workbench import Bar, Histogram, Line, Metric, Report, Result, Table

from workbench_detection.metrics import DETECTION_METRICS

TITLES = {"msp": "MSP", "max_logit": "max-logit", "energy": "energy"}


def paired_auroc(
    scores: np.ndarray, anomalous: np.ndarray, rng: np.random.Generator, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of each score, and of each score on the same resamples of the samples.

    Args:
        scores: (detector, sample), larger = more anomalous.
        anomalous: (sample,) bool.
        rng: where the resamples come from; normal and anomalous samples are redrawn separately.
        resamples: how many.

    Returns:
        (detector,) and (detector, resample).
    """
    orders = [np.argsort(score, kind="stable") for score in scores]
    starts = [np.unique(score[order], return_index=True)[1] for score, order in zip(scores, orders, strict=True)]
    normals, anomalies = int((~anomalous).sum()), int(anomalous.sum())

    def of_counts(count: np.ndarray) -> np.ndarray:
        """(resample, sample) counts to (detector, resample)."""
        rows = []
        for order, start in zip(orders, starts, strict=True):
            sorted_count, sorted_kind = count[:, order], anomalous[order]
            normal = np.add.reduceat(sorted_count * ~sorted_kind, start, axis=1)
            foreign = np.add.reduceat(sorted_count * sorted_kind, start, axis=1)
            # Pairs in which the anomalous sample scores higher; ties count half.
            rows.append((foreign * (np.cumsum(normal, axis=1) - 0.5 * normal)).sum(1) / (normals * anomalies))
        return np.stack(rows)

    drawn, block = [], max(1, 2_000_000 // len(anomalous))
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        count = np.empty((size, len(anomalous)), dtype=np.int64)
        count[:, ~anomalous] = rng.multinomial(normals, np.full(normals, 1 / normals), size=size)
        count[:, anomalous] = rng.multinomial(anomalies, np.full(anomalies, 1 / anomalies), size=size)
        drawn.append(of_counts(count))
    return of_counts(np.ones((1, len(anomalous)), dtype=np.int64))[:, 0], np.concatenate(drawn, axis=1)


def ood_report(result: Result) -> Report:
    """The report of one detector; the first entry of dim `method` is the detector, the others are the baselines."""
    names = [str(name) for name in result["auroc"]["detector"].values]
    shown = {name: TITLES.get(name, name) for name in names}
    values = {metric: result[metric].values for metric in (*DETECTION_METRICS, "auroc_gain", "auroc_gain_low",
              "auroc_gain_high", "auroc_low", "auroc_high")}  # fmt: skip
    anomalous = result["anomalous"].values
    return Report(
        summary=_summary(shown, values, anomalous),
        metrics=_metrics(result, names),
        tables=(_table(shown, values),),
        views=(
            Histogram(
                title=f"Scores: {shown[names[0]]}",
                values=("score",),
                by="anomalous",
                select={"detector": names[0]},
                x_label="score (larger = more anomalous)",
            ),
            Line(
                title="ROC",
                y=("true_positive_rate",),
                x="false_positive_rate",
                by="detector",
                x_label="in-distribution samples flagged",
                y_label="out-of-distribution samples found",
            ),
            Bar(
                title="FPR95 of each score",
                caption="Out-of-distribution samples accepted when 95 % of the in-distribution ones are kept; lower is better.",
                y=("fpr95_id",),
                x="detector",
            ),
        ),
        notes=(
            "The baselines use the logits alone and are fitted to nothing; the detector was fitted on the role `fit`, which "
            "should be the classifier's training data and share no sample with `data`.",
            "fpr95_id: out-of-distribution samples accepted when 95 % of the in-distribution ones are kept; fpr95_ood: "
            "in-distribution samples flagged when 95 % of the others are found.",
            f"AUPR depends on the share of out-of-distribution samples, here {float(anomalous.mean()):.0%}. Intervals are "
            "bootstraps over the samples; they do not cover another training of the classifier.",
        ),
    )


def _summary(shown: dict[str, str], values: dict[str, np.ndarray], anomalous: np.ndarray) -> str:
    title, *others = shown.values()
    best = 1 + int(np.argmax(values["auroc"][1:]))
    gain, low, high = (float(values[key][best]) for key in ("auroc_gain", "auroc_gain_low", "auroc_gain_high"))
    verdict = (
        "better than" if low > 0 else "worse than" if high < 0 else "not told apart by these samples from"
    )  # fmt: skip
    return (
        f"{title} separates {int(anomalous.sum())} out-of-distribution from {int((~anomalous).sum())} in-distribution samples "
        f"with AUROC {values['auroc'][0]:.3f} and FPR95 {values['fpr95_id'][0]:.2f}; that is {verdict} the best score of the "
        f"logits alone, {others[best - 1]} ({values['auroc'][best]:.3f}; difference {gain:+.3f}, 95 % interval {low:+.3f} to "
        f"{high:+.3f})."
    )


def _metrics(result: Result, names: list[str]) -> list[Metric]:
    """The detector's own figures, what it gains over each baseline, and then the baselines' figures."""
    return [
        *_figures(result, 0, ""),
        *(_gain(result, position, name) for position, name in enumerate(names[1:], start=1)),
        *(
            metric
            for position, name in enumerate(names[1:], start=1)
            for metric in _figures(result, position, f"_{name}")
        ),
    ]


def _figures(result: Result, position: int, suffix: str) -> list[Metric]:
    metrics = []
    for name in DETECTION_METRICS:
        value, low, high = (float(result[key][position]) for key in (name, f"{name}_low", f"{name}_high"))
        direction: Any = "lower" if name.startswith("fpr") else "higher"
        metrics.append(Metric(name=f"{name}{suffix}", value=value, direction=direction, interval=(low, high)))
    return metrics


def _gain(result: Result, position: int, name: str) -> Metric:
    value, low, high = (float(result[f"auroc_gain{end}"][position]) for end in ("", "_low", "_high"))
    return Metric(
        name=f"auroc_gain_over_{name}",
        value=value,
        direction="higher",
        interval=(low, high),
        description="AUROC of the detector less that of the baseline, paired bootstrap",
    )


def _table(shown: dict[str, str], values: dict[str, np.ndarray]) -> Table:
    rows = []
    for position, title in enumerate(shown.values()):
        interval = f"{values['auroc_low'][position]:.3f} to {values['auroc_high'][position]:.3f}"
        gain = None
        if position:
            ends = [values[f"auroc_gain{end}"][position] for end in ("", "_low", "_high")]
            gain = f"{ends[0]:+.3f} ({ends[1]:+.3f} to {ends[2]:+.3f})"
        first, *rest = (round(float(values[metric][position]), 4) for metric in DETECTION_METRICS)
        rows.append((title, first, interval, gain, *rest))
    return Table(
        title="The detector and its baselines",
        columns=("score", "auroc", "95 % interval", "gain of the detector", *DETECTION_METRICS[1:]),
        rows=tuple(rows),
    )
