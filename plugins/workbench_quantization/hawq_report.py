"""The report of a HAWQ run: what the budget costs, whether curvature beat chance, and how sure its numbers are."""

from __future__ import annotations

import numpy as np
from workbench import Metric, Report, Result

from workbench_quantization.hawq_facts import Facts
from workbench_quantization.hawq_views import further_tables, layer_table, solution_table, views
from workbench_quantization.report_parts import accuracy_metric, resolution

NOISY = 0.15
"""Relative standard error of a trace from which on it is called noisy."""
LARGER = 0.15
"""Share by which a size is larger than another from which on the two are not compared by accuracy alone."""


def report(result: Result) -> Report:
    """Metrics, tables, views and caveats from the stored arrays."""
    facts = Facts(result)
    return Report(
        summary=facts.summary(),
        metrics=_metrics(facts),
        tables=(layer_table(facts), solution_table(facts), *further_tables(facts)),
        views=views(facts),
        notes=_notes(facts),
    )


def _metrics(facts: Facts) -> tuple[Metric, ...]:
    count = facts.samples

    bound = facts.read("solution_bits")[0]
    metrics = [
        accuracy_metric(
            "accuracy", facts.final, count, "of the stored quantised model on the report images (Wilson interval)"
        ),
        accuracy_metric("accuracy_full_precision", facts.full, count, "of the model as it came"),
        Metric(name="accuracy_drop", value=facts.full - facts.final, direction="lower"),
        Metric(
            name="average_bits",
            value=facts.average[0],
            unit="bit",
            direction="lower",
            description="of all weights that are quantised, first and last layer included",
        ),
        Metric(name="compression", value=32 / facts.average[0], direction="higher", description="32 / average bits"),
        Metric(
            name="size", value=facts.read("size_mb")[0], unit="MB", direction="lower", description="quantised weights"
        ),
        Metric(name="bit_operations", value=facts.read("bops")[0] / 1e9, unit="GBOPS", direction="lower"),
        Metric(name="sensitivity_spread", value=facts.spread(), description="largest over smallest S_i"),
        Metric(
            name="eigenvalue_trace_rank_correlation",
            value=facts.rank_correlation(),
            description="Spearman, |lambda|/n against trace/n",
        ),
        Metric(
            name="largest_trace_error",
            value=float(facts.relative_error().max()),
            direction="lower",
            description="standard error relative to the trace, worst layer",
        ),
        Metric(
            name="largest_eigenvalue_residual",
            value=float(np.nanmax(facts.read("eigenvalue_residual")[:, 0])),
            direction="lower",
            description="||Hv - lambda v|| / |lambda|, worst layer",
        ),
        Metric(name="hessian_products", value=float(facts.read("hessian_products"))),
        Metric(name="layers_at_lowest_width", value=float((bound[facts.free] == facts.widths[0]).sum())),
    ]
    drawn = facts.of_kind("random")
    if len(drawn):
        metrics.append(
            Metric(
                name="accuracy_random_median",
                value=float(np.median(drawn)),
                description=f"median of {len(drawn)} random orders, same budget, before fine-tuning",
            )
        )
        metrics.append(
            Metric(
                name="beaten_random_orders",
                value=float((facts.accuracy[0] > drawn).mean() + (facts.accuracy[0] == drawn).mean() / 2),
                direction="higher",
                description="share of random orders with lower accuracy before fine-tuning; ties count half",
            )
        )
    metrics.append(Metric(name="accuracy_reversed", value=float(facts.of_kind("reversed")[0])))
    metrics.append(
        accuracy_metric(
            "accuracy_uniform",
            float(facts.accuracy[facts.uniform]),
            count,
            f"{facts.names[facts.uniform]}, the uniform width nearest to the budget, before fine-tuning",
        )
    )
    if "finetuned_accuracy" in facts.result:
        metrics.append(
            accuracy_metric("accuracy_before_finetuning", float(facts.accuracy[0]), count, "of the chosen widths")
        )
    return tuple(metrics)


def _notes(facts: Facts) -> tuple[str, ...]:
    notes = [
        f"Accuracies are of {facts.samples:,} images that were neither calibrated nor fine-tuned on"
        + ("." if "test" in facts.result.inputs else " (a share of `data`)."),
        "Curvature is that of the unfolded weights with batch norm in eval mode; folding changes eigenvalues and traces.",
        f"Sizes count the quantised weights; the other {int(facts.read('other_parameter_count')):,} parameters and the scales "
        "come on top. MB are 10^6 bytes.",
    ]
    notes += _low_width_note(facts)
    calibration = float(facts.read("accuracy_calibration"))
    if calibration - facts.full > 0.1:
        notes.append(
            f"In full precision the model reaches {calibration:.1%} on the calibration images and {facts.full:.1%} on the "
            "report images: overfitting or a shift of the images, in which differences between solutions drown."
        )
    negative = [n for n, v in zip(facts.layers, facts.read("eigenvalue")[:, 0], strict=True) if v < 0]
    if negative:
        notes.append(
            f"The sharpest direction curves downwards in {', '.join(negative)}: the model is not at a minimum there."
        )
    slow = ~facts.read("eigenvalue_converged")[:, 0].astype(bool)
    if slow.any():
        notes.append(
            f"The power iteration had not converged after {facts.params.power_iterations} products in {slow.sum()} "
            f"of {len(slow)} layers; see the residuals."
        )
    noisy = facts.relative_error() > NOISY
    if noisy.any():
        notes.append(
            f"The trace's standard error exceeds {NOISY:.0%} in {noisy.sum()} of {len(noisy)} layers; more probes "
            + ("" if facts.params.probe_mode == "gauss_newton" else "or probe_mode='gauss_newton' ")
            + "would help."
        )
    if facts.params.act_bits != 32:
        notes.append(
            "The stored model has quantised weights; the ranges of its inputs are in `input_range`, and `logit` was "
            "computed with quantised inputs."
        )
    if not facts.free.all():
        fixed = ", ".join(n for n, f in zip(facts.layers, facts.free, strict=True) if not f)
        notes.append(f"{fixed}: at {facts.params.first_last_bits} bits, outside the allocation.")
    return tuple(notes)


def _low_width_note(facts: Facts) -> list[str]:
    """What mixing widths brought over one width for all layers, from the stored accuracies."""
    bits = facts.read("solution_bits")[0][facts.free]
    if len(set(bits.tolist())) == 1:
        return []
    chosen, uniform = float(facts.accuracy[0]), float(facts.accuracy[facts.uniform])
    lowest = int(facts.widths[0])
    count = int((bits == lowest).sum())
    mixture = f"{count} of {len(bits)} layers at {lowest} bits" if count else f"widths {sorted(set(bits.tolist()))}"
    figures = (
        f"{mixture} give {chosen:.1%} at {facts.average[0]:.2f} bits per weight, {facts.names[facts.uniform]} gives "
        f"{uniform:.1%} at {facts.average[facts.uniform]:.2f}"
    )
    unsure = resolution(max(chosen, uniform), facts.samples)
    if abs(chosen - uniform) < unsure:
        figures += f" (a difference within the sampling error of {unsure:.1%})"
    text = f"Mixing widths against one width, without fine-tuning: {figures}."
    if chosen >= uniform:
        return [text]
    # Less accurate at a clearly smaller size, or by no more than chance, is no verdict.
    if abs(chosen - uniform) >= unsure and facts.average[facts.uniform] <= (1 + LARGER) * facts.average[0]:
        what = f"mixing in {lowest}-bit layers" if count else "mixing widths"
        text = f"Without fine-tuning, {what} does not pay here: {figures}."
    if "finetuned_accuracy" not in facts.result:
        text += (
            " The paper's gain over uniform widths comes with fine-tuning (`finetune`). Batch norms re-estimated for both can be "
            'enough: quantization.adaquant does that for this table (`table=run["bits"]`).'
        )
    return [text]
