"""What a camera, a cable or a codec may do to pictures: the same data set blurred, noisy, compressed or flattened, as a run.

No paper: the shifts and their strengths are those of `shifts`, after the kinds of Hendrycks and Dietterich (2019),
Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, arXiv 1903.12261, with strengths of our own;
figures are therefore not comparable with CIFAR-10-C. The noise of a picture depends on the seed and its position alone.

    dim = bench.run("detection.covariate_shift", data="cifar10(split=test)", shift="contrast", severity=4)
    bench.run("training.evaluation", model=network, data=dim)
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field
from workbench import DataRole, ImageGrid, InputError, Inputs, Method, Metric, Out, Output, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import mean_interval

from workbench_detection.shifts import STRENGTHS, Shift, apply_shift, eight_bit

BATCH = 256
EXAMPLES = 8
UNITS = {
    "blur": "px standard deviation",
    "noise": "standard deviation, grey values 0 to 1",
    "jpeg": "JPEG quality",
    "contrast": "of the contrast",
}


def root_mean_square(change: np.ndarray) -> np.ndarray:
    """Per picture the root of the mean squared change of its pixels: (sample, channel, y, x) to (sample,)."""
    return np.sqrt(np.square(change, dtype=np.float64).mean(axis=(1, 2, 3)))


class CovariateShift(Method):
    """The pictures of a data set after one shift, with their labels, for whatever takes pictures."""

    id = "detection.covariate_shift"
    title = "Blurs, disturbs, compresses or flattens pictures, to see what notices and what suffers"
    paper = None
    inputs = {
        "data": DataRole(
            "pictures to shift",
            variables={"image": ("sample", "channel", "y", "x")},
            optional_variables={"label": ("sample",)},
        ),
    }
    outputs = (
        Output("image", ("sample", "channel", "y", "x"), "uint8", "pictures after the shift"),
        Output("label", ("sample",), "int64", "labels as they came", optional=True),
        Output("change", ("sample",), "float64", "root mean square change of a picture's grey values, 0 to 1"),
        Output("example_before", ("picture", "channel", "y", "x"), "uint8", "the first pictures as they came"),
        Output("example_after", ("picture", "channel", "y", "x"), "uint8", "the same after the shift"),
    )

    class Params(BaseParams):
        """Parameters."""

        shift: Shift = Field("noise", description="What happens to the pictures")
        severity: int = Field(3, ge=1, le=5, description="1 (hardly seen) to 5; see `shifts.STRENGTHS`")

    def run(self, inputs: Inputs, params: Params, out: Out) -> None:
        """Shift batch by batch."""
        image = inputs["data"]["image"]
        if params.shift == "jpeg" and image.sizes["channel"] not in (1, 3):
            raise InputError(
                "data", expected="grey or RGB pictures for shift 'jpeg'", got=f"{image.sizes['channel']} channels"
            )
        strength = STRENGTHS[params.shift][params.severity - 1]
        stored, change = out.array("image", image.shape), np.empty(image.sizes["sample"])
        for start in out.track(range(0, image.sizes["sample"], BATCH), params.shift):
            rows = slice(start, min(start + BATCH, image.sizes["sample"]))
            before = eight_bit(image.isel(sample=rows).to_numpy())
            after = apply_shift(before, params.shift, strength, indices=range(rows.start, rows.stop), seed=out.seed)
            stored[rows] = _pixels(after)
            change[rows] = root_mean_square(after - before)
            if not start:
                out.write("example_before", _pixels(before[:EXAMPLES]))
                out.write("example_after", _pixels(after[:EXAMPLES]))
        out.write("change", change)
        if "label" in inputs["data"]:
            out.write("label", inputs["data"]["label"].to_numpy())

    def report(self, result: Result) -> Report:
        """How much the pictures changed, and what that looks like."""
        params, change = result.params, result["change"].values
        strength = STRENGTHS[params.shift][params.severity - 1]
        mean = mean_interval(change)
        noise_ratio = -20 * math.log10(math.sqrt(np.square(change).mean())) if change.any() else math.inf
        said = f"PSNR {noise_ratio:.1f} dB" if math.isfinite(noise_ratio) else "not one pixel changed"
        return Report(
            summary=f"{len(change):,} pictures under {params.shift} of severity {params.severity} ({strength:g} "
            f"{UNITS[params.shift]}): {said} against the pictures as they came.",
            metrics=[
                Metric(
                    name="change",
                    value=float(change.mean()),
                    interval=mean.bounds,
                    description="root mean square change of a picture's grey values (0 to 1), mean over the pictures",
                ),
                Metric(name="strength", value=float(strength), description=UNITS[params.shift]),
            ],
            views=[ImageGrid(title="Before and after", images=("example_before", "example_after"), column="picture")],
            notes=[
                "Strengths are those of this package, not of CIFAR-10-C. Every picture, also an unshifted one, is rounded to "
                "8 bits."
            ],
        )


def _pixels(image: np.ndarray) -> np.ndarray:
    """Multiples of 1/255 as uint8."""
    return np.rint(image * 255).astype(np.uint8)
