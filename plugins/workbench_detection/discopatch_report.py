"""The report of DisCoPatch: what it notices, what it does not, and whether it should be believed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from workbench import Bar, Histogram, ImageGrid, Line, Metric, Report, Result, Scatter, Table

LOSSES = ("series/vae", "series/d_real", "series/d_gen", "series/d_recon", "series/recon_adv", "series/gen_adv")


def report(result: Result) -> Report:
    """Tables by shift, curves over patches and severity, heat maps, batch-norm statistics, training curves."""
    return Report(
        summary=_summary(result),
        metrics=_metrics(result),
        tables=(_table(result),),
        views=(*_curves(result), *_pictures(result), *_training(result)),
        notes=_notes(result),
    )


def _names(result: Result) -> list[str]:
    return [str(name) for name in result["auroc"]["shift"].values]


def _summary(result: Result) -> str:
    names, values = _names(result), result["auroc"].values
    low, high = result["auroc_low"].values, result["auroc_high"].values
    others = [index for index in range(len(names)) if names[index] != "control"]
    count = int((result["source"].values == "id").sum())
    control = f"the control, unshifted images, reaches {values[0]:.2f} (0.50: nothing to find)"
    if not others:
        return f"Trained and scored against {count} reference images; {control}."
    noticed = [index for index in sorted(others, key=lambda index: -values[index]) if low[index] > 0.5]
    reversed_names = [names[index] for index in others if high[index] < 0.5]
    missed = [names[index] for index in others if low[index] <= 0.5 <= high[index]]
    if noticed:
        best = noticed[0]
        text = (
            f"Against {count} reference images, {names[best]} is noticed best: AUROC {values[best]:.2f}, "
            f"FPR95 {float(result['fpr95_id'][best]):.2f}; {control}."
        )
    else:
        text = f"Against {count} reference images no shift is noticed beyond chance; {control}."
    if missed and noticed:
        text += f" Not noticed beyond chance: {', '.join(missed)}."
    if reversed_names:
        text += f" Taken for more normal than the reference (AUROC below 0.5): {', '.join(reversed_names)}."
    return text


def _metrics(result: Result) -> tuple[Metric, ...]:
    metrics: list[Metric] = []
    for index, name in enumerate(_names(result)):
        control = name == "control"
        for metric, better in (("auroc", "higher"), ("fpr95_id", "lower")):
            metrics.append(
                Metric(
                    name=f"{metric}_{name.replace(' ', '_')}",
                    value=float(result[metric][index]),
                    direction="neutral" if control else better,  # type: ignore[arg-type]
                    interval=(float(result[f"{metric}_low"][index]), float(result[f"{metric}_high"][index])),
                    description="should lie near chance: these images are not shifted" if control else "",
                )
            )
    parameters = int(result["parameter_count"].sel(network="discriminator"))
    metrics.append(
        Metric(
            name="detector_size",
            value=parameters * 4 / 1e6,
            unit="MB",
            direction="lower",
            description="the discriminator in float32; the VAE is not needed for scoring",
        )
    )
    series = result.series
    if "seconds_per_image" in series:
        seconds = series["seconds_per_image"].values
        metrics.append(
            Metric(
                name="latency",
                value=float(seconds[np.isfinite(seconds)][-1]) * 1000,
                unit="ms per image",
                direction="lower",
                description=f"scoring from all patches on {result.device}, reading and shifting not counted",
            )
        )
    return tuple(metrics)


def _table(result: Result) -> Table:
    metrics = ("auroc", "fpr95_id", "fpr95_ood", "aupr_out", "aupr_in")
    baselines = [str(name) for name in result["baseline_auroc"]["detector"].values] if "baseline_auroc" in result else []
    source = result["source"].values
    rows = []
    for index, name in enumerate(_names(result)):
        interval = f"{float(result['auroc_low'][index]):.3f} to {float(result['auroc_high'][index]):.3f}"
        values = [round(float(result[metric][index]), 4) for metric in metrics]
        beside = [round(float(result["baseline_auroc"].sel(detector=method)[index]), 4) for method in baselines]
        rows.append((name, int((source == name).sum()), values[0], interval, *values[1:], *beside))
    return Table(
        title="Detection by shift",
        columns=("shift", "images", "auroc", "95 % interval", *metrics[1:], *(f"auroc {name}" for name in baselines)),
        rows=tuple(rows),
        caption="Each row against the same reference images. fpr95_id: shifted images accepted when 95 % of the reference "
        "are kept; fpr95_ood: reference images flagged when 95 % of the shifted ones are found.",
    )


def _curves(result: Result) -> list[Any]:
    names, values = _names(result), result["auroc"].values
    views: list[Any] = [
        Bar(
            title="AUROC by shift",
            caption="0.5 is chance; `control` should be there.",
            y=("auroc",),
            x="shift",
            x_label="shift and strength",
            y_label="AUROC",
        )
    ]
    if "baseline_auroc" in result:
        views.append(
            Bar(
                title="AUROC of the classifier's own scores",
                caption="The same images, judged by MSP and energy of the given model.",
                y=("baseline_auroc",),
                x="shift",
                by="detector",
                y_label="AUROC",
            )
        )
    if result["patch_count"].size > 1:
        order = np.argsort(-np.abs(values - 0.5))
        shown = [names[index] for index in order if names[index] != "control"][:5]
        views.append(
            Line(
                title="AUROC against the number of patches",
                caption="More patches of an image give batch norm a better estimate of its statistics; the shifts farthest "
                "from chance, and the control.",
                y=("auroc_by_patches",),
                x="patch_count",
                by="shift",
                select={"shift": ["control", *shown]},
                x_label="patches per image",
                y_label="AUROC",
                log_x=True,
                markers=True,
            )
        )
    if "auroc_by_severity" in result:
        views.append(
            Line(
                title="AUROC against severity",
                caption="Severity 0 is the control.",
                y=("auroc_by_severity",),
                x="severity",
                by="kind",
                y_label="AUROC",
                markers=True,
            )
        )
    farthest = [names[index] for index in np.argsort(-np.abs(values - 0.5)) if names[index] != "control"][:2]
    views.append(
        Histogram(
            title="Scores",
            caption="Unshifted images and the shifts farthest from chance.",
            values=("score_by_shift",),
            by="shift",
            select={"shift": ["control", *farthest]},
            x_label="1 - mean D (larger = more anomalous)",
        )
    )
    if "statistic_1" in result:
        views.append(
            Scatter(
                title="Batch-norm statistics of the images",
                caption="Means of each image in D's batch norms, projected on the two main directions of the reference "
                "images: what D can see of an image's statistics.",
                x="statistic_1",
                y="statistic_2",
                color="shift_kind",
                x_label="first principal component",
                y_label="second principal component",
            )
        )
    return views


def _pictures(result: Result) -> list[Any]:
    if result["example_image"].sizes["channel"] not in (1, 3):
        return []
    heat = result["example_heat"].values
    low, high = float(heat.min()), float(heat.max())
    return [
        ImageGrid(title="One image under every shift", images=("example_image",), column="shift"),
        ImageGrid(
            title="Where its patches look anomalous",
            caption=f"Mean score of the patches that cover a pixel, from {low:.2f} (dark) to {high:.2f} (bright). Patches "
            "share their image's normalisation, so the level says more than the place.",
            images=("example_heat",),
            column="shift",
            value_range=(low, high if high > low else low + 1),
            color_map="viridis",
        ),
        ImageGrid(
            title="What D learnt to tell apart",
            caption="Patches of reference images, the VAE's reconstructions of them, and patches it made up.",
            images=("original", "recon", "generated"),
            column="picture",
        ),
    ]


def _training(result: Result) -> list[Any]:
    series = result.series
    return [
        Line(
            title="Losses",
            caption="vae: reconstruction error plus weighted KL. d_...: cross entropy of D on real, generated and "
            "reconstructed patches (0.69: guessing). ..._adv: cross entropy of D being fooled.",
            y=tuple(name for name in LOSSES if name.removeprefix("series/") in series),
            x="step",
            log_y=True,
        ),
        Line(
            title="How often D is right",
            caption="On real and on made-up patches, each in batches of their own. Both near one half means that D has "
            "collapsed; both at 1 leaves the VAE nothing to learn from.",
            y=("series/real_accuracy", "series/fake_accuracy"),
            x="step",
            y_label="share of patches",
        ),
    ]


def _notes(result: Result) -> tuple[str, ...]:
    params, notes = result.params, []
    low, high = float(result["auroc_low"][0]), float(result["auroc_high"][0])
    if not low <= 0.5 <= high:
        notes.append(
            f"The control's interval ({low:.2f} to {high:.2f}) leaves out 0.5: reference and control differ by chance or "
            "by a split that is not random. Read the other figures with that in mind."
        )
    if collapsed(result):
        notes.append("D ended at guessing (mean accuracy below 0.55 over the last tenth of the training): retrain it.")
    if params.norm != "batch":
        notes.append(f"Ablation: D is normalised by '{params.norm}', so it does not see an image's batch statistics.")
    if params.negatives != "both":
        notes.append(f"Ablation: D's negatives are {params.negatives} only.")
    if params.mixed_test_batches:
        notes.append(
            "Ablation: images of all kinds shared their normalisation batches. A score then depends on the other images "
            "of its batch; this shows why the method keeps images apart."
        )
    notes += [
        "Every image, shifted or not, is rounded to 8 bits as if saved and loaded. Images of role `ood` must have been "
        "resized and encoded like `data`, otherwise the detector finds the difference in processing.",
        "Intervals are bootstraps over test images. They do not cover another training: repeat with several seeds.",
        "A small VAE makes blurry negatives, so blur is what D learns to notice first. Low figures for noise, JPEG or "
        "contrast after a small training are not the limit of the method.",
    ]
    return tuple(notes)


def collapsed(result: Result) -> bool:
    """Whether D's balanced accuracy over the last tenth of the training is below 0.55."""
    series = result.series
    both = 0.5 * (series["real_accuracy"].values + series["fake_accuracy"].values)
    last = both[-max(1, math.ceil(len(both) / 10)) :]
    return bool(np.nanmean(last) < 0.55)
