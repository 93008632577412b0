"""What is said of a reconstruction: how much nearer to the clean pictures it is, picture by picture."""

from __future__ import annotations

import numpy as np
from workbench import ImageGrid, Metric, Report, Result, Scatter, Table
from workbench.toolkit import mean_interval

from workbench_adapters.library import finite

UNITS = {"psnr": "dB", "ssim": ""}


def reconstruction_report(result: Result) -> Report:
    """Gains with intervals and the pictures side by side."""
    params = result.params
    values = {name: result[name].values for name in UNITS}
    gains = {name: mean_interval(rows[1] - rows[0]) for name, rows in values.items()}
    count = values["psnr"].shape[1]
    metrics = []
    for name, unit in UNITS.items():
        after = mean_interval(values[name][1])
        metrics += [
            Metric(name=name, value=after.value, unit=unit, direction="higher", interval=finite(after.bounds)),
            Metric(name=f"{name}_degraded", value=float(values[name][0].mean()), unit=unit, direction="higher"),
            Metric(name=f"{name}_gain", value=gains[name].value, unit=unit, direction="higher",
                   interval=finite(gains[name].bounds), description="restored less degraded, paired over the pictures"),
        ]  # fmt: skip
    better = int((values["psnr"][1] > values["psnr"][0]).sum())
    blur = f"a blur of {params.blur_sigma:g} pixels and " if params.degradation == "blur" else ""
    shown = list(range(min(params.shown, count)))
    return Report(
        summary=(
            f"Of {count} pictures with {blur}noise of {params.noise:g} the reconstruction brings {better} nearer to the "
            f"clean ones: PSNR from {values['psnr'][0].mean():.2f} to {values['psnr'][1].mean():.2f} dB "
            f"({gains['psnr'].value:+.2f}), SSIM from {values['ssim'][0].mean():.3f} to {values['ssim'][1].mean():.3f} "
            f"({gains['ssim'].value:+.3f})."
        ),
        metrics=metrics,
        tables=(_table(values),),
        views=(
            ImageGrid(
                title="Clean, degraded, restored",
                images=("clean", "degraded", "restored"),
                column="sample",
                select={"sample": shown},
                limit=len(shown),
            ),
            Scatter(
                title="Gain of each picture",
                x="psnr_degraded",
                y="psnr_gain",
                x_label="PSNR of the degraded picture (dB)",
                y_label="gain (dB)",
                caption="Above 0: the reconstruction is nearer to the clean picture.",
            ),
        ),
        notes=(
            "PSNR and SSIM are taken on values cut off at 0 and 1, not rounded to 8 bits; published protocols round first. "
            "SSIM uses the 11-pixel Gaussian window, or the largest that fits.",
            "The blur is circular (opposite borders meet) and known to the reconstructor, as is the strength of the noise: "
            "real pictures are harder.",
            f"Root mean square residual |A x - y|: {float(result['residual'].values.mean()):.4f}, the noise is {params.noise:g}. "
            "A residual far below the noise fits the noise; one far above it leaves detail in the residual.",
        ),
    )


def _table(values: dict[str, np.ndarray]) -> Table:
    gain = values["psnr"][1] - values["psnr"][0]
    order = np.argsort(-gain, kind="stable")
    chosen = order if len(order) <= 10 else np.concatenate([order[:5], order[-5:]])
    rows = tuple(
        (int(k), *(round(float(values[name][stage, k]), digits) for name, digits in (("psnr", 2), ("ssim", 4))
                   for stage in (0, 1)), round(float(gain[k]), 2))
        for k in chosen
    )  # fmt: skip
    return Table(
        title="Largest and smallest gains",
        columns=("picture", "PSNR degraded", "PSNR restored", "SSIM degraded", "SSIM restored", "gain (dB)"),
        rows=rows,
    )
