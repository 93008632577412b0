"""What is said of a model quantised by torchao: accuracy before and after, sizes, errors by layer."""

from __future__ import annotations

import numpy as np
from workbench import Bar, Metric, Report, Result, Table
from workbench.toolkit import mean_interval, wilson_interval

from workbench_adapters.library import finite

EQUAL_LOGITS = 1e-3
"""Largest difference of logits that the order of summation explains, relative to the largest logit."""


def quantisation_report(result: Result) -> Report:
    """Accuracy with intervals, measured sizes, and what stays in full precision."""
    correct = result["correct"].values.astype(float)
    change = mean_interval(correct[1] - correct[0])
    sizes = result["model_bytes"].values
    intervals = [wilson_interval(row.sum(), row.size) for row in correct]
    accuracy = [
        Metric(name=name, value=float(row.mean()), direction="higher", interval=(float(low), float(high)))
        for name, row, (low, high) in zip(("accuracy_full_precision", "accuracy"), correct, intervals, strict=True)
    ]
    return Report(
        summary=_summary(result, change.value, change.bounds, sizes),
        metrics=(
            accuracy[1],
            accuracy[0],
            Metric(name="accuracy_change", value=change.value, direction="higher", interval=finite(change.bounds),
                   description="after less before, paired over the samples"),
            Metric(name="agreement", value=float(result["agreement"]), direction="higher",
                   description="share of predictions that stay as they were"),
            Metric(name="negative_log_likelihood", value=float(result["negative_log_likelihood"][1]), direction="lower",
                   unit="nats"),
            Metric(name="size_kb", value=float(sizes[1]) / 1000, unit="kB", direction="lower",
                   description="parameters and buffers of the whole model as torchao holds them"),
            Metric(name="size_packed_kb", value=float(sizes[2]) / 1000, unit="kB", direction="lower",
                   description="the same with integers packed to their width"),
            Metric(name="size_full_precision_kb", value=float(sizes[0]) / 1000, unit="kB", direction="lower"),
            Metric(name="quantised_share", value=float(result["quantised_share"]),
                   description="share of the parameters in quantised layers"),
        ),
        tables=(_table(result),),
        views=(
            Bar(title="Size of each layer's weight", y=("layer_bytes",), x="layer", by="size_of", y_label="bytes"),
            Bar(
                title="Error of each layer's weight",
                y=("relative_error",),
                x="layer",
                y_label="squared error / squared norm",
            ),
        ),
        notes=_notes(result),
    )  # fmt: skip


def _summary(result: Result, change: float, bounds: tuple[float, float], sizes: np.ndarray) -> str:
    bits = sorted({int(width) for width in result["layer_bits"].values})
    widths = " and ".join(map(str, bits))
    before, after = (float(value) for value in result["accuracy"].values)
    clear = "a loss that sampling does not explain" if bounds[1] < 0 else "no loss that these samples can show"
    if bounds[0] > 0:
        clear = "a gain"
    return (
        f"With {widths}-bit integers in {result['layer_bits'].size} linear layers ({float(result['quantised_share']):.0%} of the "
        f"parameters) accuracy goes from {before:.4f} to {after:.4f} ({change:+.4f}, {clear}) and the model from "
        f"{sizes[0] / 1000:.1f} kB to {sizes[1] / 1000:.1f} kB as torchao holds it ({sizes[2] / 1000:.1f} kB packed)."
    )


def _table(result: Result) -> Table:
    names = [str(name) for name in result["layer_bits"]["layer"].values]
    sizes = result["layer_bytes"].values
    rows = tuple(
        (
            name,
            int(result["parameter_count"].values[k]),
            int(result["layer_bits"].values[k]),
            *(round(float(size) / 1000, 2) for size in sizes[:, k]),
            float(f"{float(result['relative_error'].values[k]):.3g}"),
        )
        for k, name in enumerate(names)
    )
    return Table(
        title="Quantised layers",
        columns=("layer", "weights", "bits", "kB before", "kB held", "kB packed", "relative error"),
        rows=rows,
        caption="Sizes include scales and zero points.",
    )


def _notes(result: Result) -> list[str]:
    gap, largest = float(result["stored_gap"]), float(np.abs(result["logit"].values).max())
    notes = [
        "Sizes are counted on the tensors in memory. Below 8 bits torchao keeps one integer in each byte on a CPU; `packed` is "
        "what the integers need at their width.",
        "Only linear layers are quantised; convolutions and batch norms keep their precision.",
    ]
    if gap <= EQUAL_LOGITS * max(largest, 1.0):
        notes.append("The stored model computes with the dequantised weights: its logits "
                     + (f"differ from torchao's by {gap:.2g} at most." if gap else "equal torchao's."))  # fmt: skip
    else:
        notes.append(
            f"The stored model computes with the dequantised weights and leaves activations alone: its logits differ from "
            f"torchao's by up to {gap:.2g} (largest logit {largest:.2g}). The accuracy reported is that of torchao's model."
        )
    return notes
