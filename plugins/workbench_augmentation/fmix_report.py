"""The report of `augmentation.fmix`: what the masks are like, what mixing does to images, what training showed."""

from __future__ import annotations

import numpy as np
from workbench import Bar, HeatMap, Histogram, ImageGrid, Line, Metric, Report, Result, Table
from workbench.report import View
from workbench.toolkit import Interval, mean_interval

SLICES = 8
COLUMN_REACH = 1.5
"""Horizontal frequencies up to this many cycles per width count as the lowest ones."""


def report(result: Result) -> Report:
    """Put together what was stored; parts whose inputs were left out are absent."""
    metrics, tables = mask_metrics(result), [mask_table(result)]
    views = mask_views(result)
    sentences = [mask_sentence(result)]
    notes = mask_notes(result)
    if "mixed" in result:
        tables.append(patch_table(result))
        views += mixed_views(result)
    if "accuracy" in result:
        sentences.insert(0, training_sentence(result))
        metrics = training_metrics(result) + metrics
        tables.insert(0, training_table(result))
        views = training_views(result) + views
        notes += training_notes(result)
    return Report(" ".join(sentences), metrics, tables, views, notes)


def _space_dims(result: Result) -> tuple[str, ...]:
    return tuple(str(dim) for dim in result["mask"].dims[1:])


def _at_decay(result: Result, name: str, spectrum: str) -> np.ndarray:
    row = result[name].coords["decay"].values.tolist().index(result.params.decay)
    chosen = result[name].sel(spectrum=spectrum).isel(decay=row)
    return np.asarray(chosen.values, dtype=np.float64)


# -------------------------------------------------------------------------------------------------------------- masks


def lowest_columns_share(result: Result, spectrum: str) -> float:
    """Share of the power in the horizontal frequencies 0 and +-1 cycle per width."""
    power = np.asarray(result["power"].sel(spectrum=spectrum).values)
    frequency = np.abs(np.fft.fftshift(np.fft.fftfreq(power.shape[-1])))
    return float(power[..., frequency < COLUMN_REACH / power.shape[-1]].sum() / power.sum())


def mask_metrics(result: Result) -> list[Metric]:
    """The mask's own figures, for the chosen spectrum and delta."""
    spectrum = result.params.spectrum
    off = np.abs(np.asarray(result["mask_mean"]) - np.asarray(result["lam"])).max()
    components = mean_interval(_at_decay(result, "component_count", spectrum))
    boundary = mean_interval(_at_decay(result, "boundary_length", spectrum))
    metrics = [
        Metric(name="mask_mean_error", value=float(off), direction="lower",
               description="largest |mean of a mask - its lambda|; at most 1 / pixels without softening"),
        Metric(name="component_count", value=components.value, interval=components.bounds,
               description="mean number of connected parts of a mask at lambda 1/2"),
        Metric(name="boundary_length", value=boundary.value, interval=boundary.bounds, unit="px",
               description="mean length of the edge between both images at lambda 1/2"),
    ]  # fmt: skip
    slope = float(_at_decay(result, "slope", spectrum))
    if np.isfinite(slope):  # images of a few pixels have too few frequencies for it
        metrics.append(
            Metric(name="spectral_slope", value=slope,
                   description=f"slope of log power over log frequency; the law says {-2 * result.params.decay:g}")
        )  # fmt: skip
    return metrics


def mask_sentence(result: Result) -> str:
    """What a mask is like."""
    params, components = result.params, _at_decay(result, "component_count", result.params.spectrum)
    shape = " x ".join(str(result["mask"].sizes[dim]) for dim in _space_dims(result))
    return (
        f"FMix masks of {shape} pixels (delta {params.decay:g}, spectrum {params.spectrum}) show the first image in "
        f"{components.mean():.1f} connected parts on average at lambda 1/2."
    )


def mask_table(result: Result) -> Table:
    """Slope, components and boundary by delta and spectrum."""
    rows = []
    for column, decay in enumerate(result["slope"].coords["decay"].values):
        row: list[float | None] = [float(decay), -2 * float(decay)]
        for name in ("slope", "component_count", "boundary_length"):
            for spectrum in result[name].coords["spectrum"].values:
                value = float(result[name].sel(spectrum=spectrum).isel(decay=column).mean())
                row.append(round(value, 2) if np.isfinite(value) else None)
        rows.append(tuple(row))
    return Table(
        title="Masks by delta",
        columns=("delta", "slope, law", "slope, isotropic", "slope, official_code", "parts, isotropic",
                 "parts, official_code", "edge [px], isotropic", "edge [px], official_code"),
        rows=tuple(rows),
        caption=f"Means over {result.params.analysed_masks} masks; parts and edge of masks at lambda 1/2.",
    )  # fmt: skip


def mask_views(result: Result) -> list[View]:
    """Greys, masks, spectra, components, in the form that suits 1, 2 or 3 dims."""
    dims = _space_dims(result)
    views: list[View] = []
    if len(dims) == 2:
        y, x = dims
        views += [
            ImageGrid(title="Grey images and their masks", images=("grey", "mask"), column="mask", labels="lam",
                      caption="Above each: the drawn lambda, the share of the first image (white)."),
            ImageGrid(title="Grey images by delta", images=("grid_grey",), column="decay",
                      caption="The same random numbers seen through each spectrum."),
            ImageGrid(title="Masks by delta and lambda", images=("grid_mask",), row="decay", column="share"),
            HeatMap(title="Mean power spectrum of grey images", z="power", x=f"frequency_{x}", y=f"frequency_{y}",
                    select={"spectrum": result.params.spectrum}, log=True,
                    caption=f"Spectrum {result.params.spectrum}; frequencies in cycles per pixel."),
        ]  # fmt: skip
        other = "official_code" if result.params.spectrum == "isotropic" else "isotropic"
        views.append(
            HeatMap(title=f"The same, spectrum {other}", z="power", x=f"frequency_{x}", y=f"frequency_{y}",
                    select={"spectrum": other}, log=True)
        )  # fmt: skip
    elif len(dims) == 3:
        depth = result["mask"].sizes[dims[0]]
        chosen = [round(k * (depth - 1) / (min(SLICES, depth) - 1)) for k in range(min(SLICES, depth))] if depth > 1 else [0]
        few = list(range(min(4, result["mask"].sizes["mask"])))
        views += [
            ImageGrid(title=f"Slices of {name}s along {dims[0]}", images=(name,), row="mask", column=dims[0],
                      select={"mask": few, dims[0]: chosen})
            for name in ("grey", "mask")
        ]  # fmt: skip
    else:
        views += [
            HeatMap(title="Masks", z="mask", x=dims[0], y="mask", caption="One mask a row: 1 shows the first signal."),
            Line(title="Grey signals by delta", y=("grid_grey",), x=dims[0], by="decay", y_label="value",
                 caption="The same random numbers seen through each spectrum."),
        ]  # fmt: skip
    views += [
        Line(title="Power over frequency", x="frequency", log_x=True, log_y=True, markers=True,
             y=("radial_power_law", "radial_power_isotropic", "radial_power_official_code"),
             x_label="frequency [cycles per pixel]", y_label="mean power",
             caption=f"Means over rings, delta {result.params.decay:g}; the law, f^{-2 * result.params.decay:g}, is scaled "
             "to isotropic and hidden where both agree."),
        Histogram(title="Connected parts of a mask, by delta", values=("component_count",), by="decay",
                  select={"spectrum": result.params.spectrum}, log_x=True, bins=30, x_label="connected parts"),
    ]  # fmt: skip
    return views


def mask_notes(result: Result) -> list[str]:
    """How the two spectra differ, in this run's own figures."""
    official, isotropic = (lowest_columns_share(result, name) for name in ("official_code", "isotropic"))
    return [
        "The official code reads its random numbers along the wrong axis, so its masks contain only the last axis' "
        f"frequencies 0 and +-1 ({official:.1%} of the power here; isotropic {isotropic:.1%}). All published figures were "
        "produced with it; `spectrum='official_code'` repeats it."
    ]


# -------------------------------------------------------------------------------------------------------------- mixing


def mixed_views(result: Result) -> list[View]:
    """Mixed images by mode and over lambda and delta; Laplacian power."""
    dims, views = _space_dims(result), []
    if len(dims) == 2:
        views += [
            ImageGrid(title="Mixed images by mode", images=("mixed",), row="mode", column="pair", limit=8),
            ImageGrid(title="One pair by delta and lambda", images=("grid_mixed",), row="decay", column="share"),
        ]
    elif len(dims) == 1:
        views.append(Line(title="A mixed signal by mode", y=("mixed",), x=dims[0], by="mode", y_label="value",
                          select={"pair": 0, "channel": 0}))  # fmt: skip
    else:
        middle = result["mixed"].sizes[dims[0]] // 2
        views.append(ImageGrid(title="Middle slices of mixed volumes by mode", images=("mixed",), row="mode",
                               column="pair", limit=8, select={dims[0]: middle}))  # fmt: skip
    if "laplacian_power" in result:
        views.append(Line(title="Power of Laplacian responses", y=("laplacian_power",), x="image_frequency", by="mode",
                          log_x=True, log_y=True, x_label="frequency [cycles per pixel]", y_label="mean power",
                          caption="Near the curve of `none`, patches keep the statistics of clean images."))  # fmt: skip
    return views


def patch_table(result: Result) -> Table:
    """Kurtosis of Laplacian responses by mode."""
    kurtosis = result["laplacian_kurtosis"]
    values = [float(value) for value in kurtosis.values]
    return Table(
        title="Local patches by mode",
        columns=("mode", "kurtosis of Laplacian responses"),
        rows=tuple((str(mode), round(value, 2) if np.isfinite(value) else None)
                   for mode, value in zip(kurtosis.coords["mode"].values, values, strict=True)),
        caption="Excess kurtosis over all pixels, to be compared with `none`: blending pulls it towards a Gaussian's 0, the "
        "edges of masks add large responses of their own, which count most where the images are smooth.",
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ training


def _final(result: Result, name: str, mode: str) -> np.ndarray:
    """One figure per seed, at the end of training."""
    chosen = result[name].sel(mode=mode)
    for dim in ("epoch", "severity"):
        if dim in chosen.dims:
            chosen = chosen.isel({dim: -1})
    return np.asarray(chosen.values, dtype=np.float64)


def _modes(result: Result) -> list[str]:
    return [str(mode) for mode in result["accuracy"].coords["mode"].values]


def gain_over_none(result: Result, mode: str) -> Interval:
    """Accuracy less that of `none` from equal weights, on the same test images; interval over these images."""
    label = np.asarray(result["label"].values)

    def hits(name: str) -> np.ndarray:
        """(seed, sample): right, or for multi-hot labels the share of right decisions."""
        logit = np.asarray(result["logit"].sel(mode=name).values)
        if label.ndim == 2:
            return ((logit > 0) == (label > 0)).mean(-1)
        return (logit.argmax(-1) == label).astype(np.float64)

    return mean_interval((hits(mode) - hits("none")).mean(0))


def training_sentence(result: Result) -> str:
    """The best mode, and what it gains over no mixing."""
    means = {mode: _final(result, "accuracy", mode).mean() for mode in _modes(result)}
    best = max(means, key=lambda mode: means[mode])
    seeds = result["accuracy"].sizes["seed"]
    text = f"Trained with {best}, the model is right on {means[best]:.1%} of the test images"
    if "none" in means and best != "none":
        gain = gain_over_none(result, best)
        low, high = (100 * bound for bound in gain.bounds)
        text += f", {100 * gain.value:+.1f} points against no mixing (95 % interval over test images {low:+.1f} to {high:+.1f})"
    elif best == "none" and len(means) > 1:
        text += "; no mixing mode does better"
    return f"{text}; {seeds} {'training' if seeds == 1 else 'trainings'} for each of {len(means)} modes."


def _metric(name: str, values: np.ndarray, direction: str, description: str, unit: str = "") -> Metric:
    interval = mean_interval(values)
    bounds = interval.bounds if len(values) > 1 else None
    return Metric(name=name, value=interval.value, interval=bounds, direction=direction, unit=unit,
                  description=description)  # fmt: skip


def training_metrics(result: Result) -> list[Metric]:
    """Accuracy, NLL and ECE of each mode with intervals over seeds, and gains over `none`, seed by seed."""
    metrics = []
    for mode in _modes(result):
        accuracy = _final(result, "accuracy", mode)
        metrics += [
            _metric(f"accuracy_{mode}", accuracy, "higher", f"test accuracy trained with {mode}"),
            _metric(f"nll_{mode}", _final(result, "nll", mode), "lower", f"test NLL trained with {mode}", "nat"),
            _metric(f"ece_{mode}", _final(result, "ece", mode), "lower", f"test ECE trained with {mode}"),
        ]
        if mode != "none" and "none" in _modes(result):
            gain = gain_over_none(result, mode)
            metrics.append(
                Metric(name=f"gain_{mode}", value=gain.value, interval=gain.bounds, direction="higher",
                       description="accuracy less that of `none` from equal weights; interval over the test images")
            )  # fmt: skip
    return metrics


def training_table(result: Result) -> Table:
    """One row for each mode."""
    strength = float(result["noise_accuracy"].coords["severity"].values[-1])
    rows = []
    for mode in _modes(result):
        values = {name: _final(result, name, mode) for name in ("accuracy", "nll", "ece", "train_nll", "noise_accuracy")}
        spread = float(values["accuracy"].std(ddof=1)) if len(values["accuracy"]) > 1 else None
        clean = float(_final(result, "train_accuracy", mode).mean())
        remembered = float((values["train_nll"] - values["nll"]).mean())
        means = {name: float(value.mean()) for name, value in values.items()}
        rows.append((mode, means["accuracy"], spread, means["nll"], means["ece"], clean, means["train_nll"], remembered,
                     means["noise_accuracy"]))  # fmt: skip
    return Table(
        title="Trainings by mode",
        columns=("mode", "accuracy", "sd over seeds", "NLL", "ECE", "accuracy on clean training images", "their NLL",
                 "training less test NLL", f"accuracy under noise {strength:g}"),
        rows=tuple(rows),
        caption="Means over seeds. The further training less test NLL lies below 0, the more was memorised.",
    )  # fmt: skip


def training_views(result: Result) -> list[View]:
    """Accuracy curves with seeds, noise, calibration, Grad-CAM."""
    seeds = result["accuracy"].coords["seed"].values.tolist()
    views: list[View] = [
        Line(title=f"Test accuracy, seed {seed}", y=("accuracy",), x="epoch", by="mode", select={"seed": seed},
             y_label="accuracy", markers=True)
        for seed in seeds[:3]
    ]  # fmt: skip
    views.append(Bar(title="Test NLL by seed", y=("nll",), x="mode", by="seed", y_label="NLL [nat]"))
    views.append(Line(title=f"Accuracy under uniform noise, seed {seeds[0]}", y=("noise_accuracy",), x="severity",
                      by="mode", select={"seed": seeds[0]}, x_label="half-width of the noise", markers=True))  # fmt: skip
    if "grad_cam" in result:
        views.append(ImageGrid(title="Images of the Grad-CAM maps", images=("explained_image",), column="example"))
        views.append(
            ImageGrid(title="Where models trained with each mode look (Grad-CAM)", images=("grad_cam",), row="mode",
                      column="example", color_map="magma", caption="Last convolution, true class, seed 0.")
        )  # fmt: skip
    return views


def training_notes(result: Result) -> list[str]:
    """What the reader must not conclude."""
    notes = ["Every mode starts from the same weights and sees the same batches for a seed; none saw the test images."]
    if result["accuracy"].sizes["seed"] < 3:
        notes.append("With fewer than 3 seeds the order of modes that lie close together means nothing.")
    if result.params.budget == "small":
        notes.append("A short training on few images; the paper's figures need its recipe (`budget='paper'`).")
    if result.params.reformulate:
        notes.append("Reformulated: FMix and Mixup learn from the first label only; CutMix is as published.")
    return notes
