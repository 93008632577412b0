"""Any reconstructor of deepinv for blurred or noisy pictures, as a method: `DeepinvReconstruction`; the example is TV.

Tachella et al. (2025), DeepInverse: A Python package for solving imaging inverse problems with deep learning, JOSS, arXiv
2505.20160. Clean pictures are degraded by deepinv's own operator (a circular Gaussian blur, or none) and noise of a known
strength, y = A x + n; the reconstructor gets y and the operator. The reconstruction is the library's own. Around it the
adapter puts PSNR and SSIM before and after with intervals, and the pictures side by side.

Wrapping another reconstructor takes a few lines:

    class Quadratic(DeepinvReconstruction):
        id = "restoration.deepinv_tikhonov"
        title = "Blurred or noisy pictures restored with a quadratic penalty (deepinv)"

        def reconstructor(self, params, physics):
            from deepinv.optim import FISTA, L2
            from deepinv.optim.prior import Tikhonov
            return FISTA(data_fidelity=L2(), prior=Tikhonov(), lambda_reg=0.01, stepsize=0.9, max_iter=200)

Nothing is trained or tuned here, and nothing is downloaded unless a reconstructor of yours does it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from workbench import DataRole, InputError, Inputs, Out, Output, Paper, Report, Result
from workbench import Params as BaseParams
from workbench.toolkit import image_batches

from workbench_adapters.deepinv_report import reconstruction_report
from workbench_adapters.library import LibraryMethod, import_library, refusals
from workbench_restoration import metrics

Reconstructor = Callable[[Tensor, Any], Tensor]
"""(y, physics) to x, pictures (sample, channel, y, x)."""

PRIMAL_STEP = 3.0
"""tau of the primal-dual algorithm, suited to pictures in 0..1."""

MOST_PSNR = 100.0
"""dB that an exact restoration counts as: infinite, it would make every mean useless."""


class ReconstructionParams(BaseParams):
    """Parameters that every reconstructor has; derive from it to add those of yours."""

    degradation: Literal["blur", "noise"] = Field("blur", description="A Gaussian blur and noise, or noise alone")
    blur_sigma: float = Field(1.5, ge=0.1, le=50, description="Standard deviation of the blur, in pixels")
    noise: float = Field(0.02, ge=0, le=1, description="Standard deviation of the noise, pictures being in 0..1")
    batch_size: int = Field(4, ge=1, le=4096, description="Pictures at once")
    shown: int = Field(6, ge=1, le=100, description="Pictures in the report")


class DeepinvReconstruction(LibraryMethod):
    """A reconstructor of deepinv. Subclasses set id and title and make the reconstructor."""

    library = "deepinv"
    requires = {"deepinv": "deepinv"}
    paper: ClassVar[Paper | None] = Paper(
        title="DeepInverse: A Python package for solving imaging inverse problems with deep learning",
        authors="Tachella et al.",
        year=2025,
        arxiv="2505.20160",
        venue="JOSS",
        code="deepinv/deepinv (BSD-3-Clause)",
    )
    Params = ReconstructionParams
    inputs = {"data": DataRole("clean pictures", variables={"image": ("sample", "channel", "y", "x")})}
    outputs = (
        Output("clean", ("sample", "channel", "y", "x"), "float32", "the pictures as they came"),
        Output(
            "degraded", ("sample", "channel", "y", "x"), "float32", "what is reconstructed from, cut off at 0 and 1"
        ),
        Output("restored", ("sample", "channel", "y", "x"), "float32", "the reconstruction, cut off at 0 and 1"),
        Output("psnr", ("stage", "sample"), "float64", "of degraded and restored against clean", unit="dB"),
        Output("ssim", ("stage", "sample"), "float64", "structural similarity of the same"),
        Output("psnr_degraded", ("sample",), "float64", "the first row of psnr, to draw it", unit="dB"),
        Output(
            "psnr_gain", ("sample",), "float64", "psnr of the restored less that of the degraded picture", unit="dB"
        ),
        Output("residual", ("sample",), "float64", "root mean square of A x - y of the reconstruction"),
    )

    @abc.abstractmethod
    def reconstructor(self, params: Any, physics: Any) -> Reconstructor:
        """The library's reconstructor for one batch, called as `reconstructor(y, physics)`.

        Args:
            params: of the run.
            physics: deepinv's operator A, with the noise model set.
        """

    def run(self, inputs: Inputs, params: Any, out: Out) -> None:
        """Degrade, reconstruct and measure, batch by batch."""
        import_library("deepinv", out)
        data = inputs["data"]
        count = data.sizes["sample"]
        shape = tuple(data.sizes[dim] for dim in ("sample", "channel", "y", "x"))
        arrays = {name: out.array(name, shape) for name in ("clean", "degraded", "restored")}
        measured: dict[str, list[Tensor]] = {"psnr": [], "ssim": [], "residual": []}
        window = largest_window(*shape[2:])
        for region, batch in image_batches(data["image"], params.batch_size, out.device):
            image = batch.float()
            if float(image.min()) < -1e-3 or float(image.max()) > 1 + 1e-3:
                span = f"{float(image.min()):.3g} to {float(image.max()):.3g}"
                raise InputError("data['image']", expected="values in 0..1 (or uint8)", got=span)
            with refusals("data", self.library):
                physics = make_physics(params, shape[1:], out.device)
                asking(physics, lambda start=region.start: out.progress(start, count, "restoring"))
                with torch.no_grad():
                    given = physics.A(image) + params.noise * noise_of(region, image, out)
                    found = self.reconstructor(params, physics)(given, physics).detach()
                    residual = (physics.A(found) - given).square().flatten(1).mean(1).sqrt()
            pictures = {"clean": image, "degraded": given, "restored": found}
            pictures = {name: value.clamp(0, 1) for name, value in pictures.items()}
            for name, value in pictures.items():
                arrays[name][region] = value
            stages = [pictures["degraded"], pictures["restored"]]
            psnr = [metrics.psnr(value, pictures["clean"]).clamp(max=MOST_PSNR) for value in stages]
            similarity = [metrics.ssim(value, pictures["clean"], window=window) for value in stages]
            for name, rows in (("psnr", psnr), ("ssim", similarity)):
                measured[name].append(torch.stack(rows).double().cpu())
            measured["residual"].append(residual.double().cpu())
        out.coordinate("stage", ["degraded", self.id.partition(".")[2]])
        whole = {name: torch.cat(parts, dim=-1) for name, parts in measured.items()}
        whole |= {"psnr_degraded": whole["psnr"][0], "psnr_gain": whole["psnr"][1] - whole["psnr"][0]}
        for name, value in whole.items():
            out.write(name, value)

    def report(self, result: Result) -> Report:
        """PSNR and SSIM before and after, and the pictures."""
        return reconstruction_report(result)


def make_physics(params: ReconstructionParams, shape: Sequence[int], device: torch.device) -> Any:
    """The library's operator for pictures of shape (channel, y, x): a circular blur, or the identity.

    Raises:
        InputError: the kernel is larger than the pictures.
    """
    from deepinv.physics import BlurFFT, Denoising, GaussianNoise
    from deepinv.physics.functional.blur import gaussian_blur

    noise = GaussianNoise(sigma=params.noise)
    if params.degradation == "noise":
        return Denoising(noise_model=noise, device=device)
    kernel = gaussian_blur(sigma=(params.blur_sigma, params.blur_sigma), device=str(device))
    if max(kernel.shape[-2:]) > min(shape[-2:]):
        raise InputError(
            "blur_sigma",
            expected=f"a blur whose kernel fits into {shape[-2]}x{shape[-1]} pixels",
            got=f"{params.blur_sigma:g}, whose kernel has {max(kernel.shape[-2:])}",
        )
    return BlurFFT(img_size=tuple(shape), filter=kernel, noise_model=noise, device=device)


def asking(physics: Any, ask: Callable[[], None]) -> None:
    """Have an operator ask whether the run was cancelled each time a reconstructor applies it, its adjoint or its prox."""

    def wrapped(apply: Callable[..., Any]) -> Callable[..., Any]:
        def applied(*arguments: Any, **options: Any) -> Any:
            ask()
            return apply(*arguments, **options)

        return applied

    for name in ("A", "A_adjoint", "prox_l2"):
        setattr(physics, name, wrapped(getattr(physics, name)))


def noise_of(region: slice, image: Tensor, out: Out) -> Tensor:
    """Standard normal noise of the batch's shape, each picture's from a stream of its own: batches do not matter."""
    parts = [
        torch.randn(image.shape[1:], generator=out.generator(f"noise {k}")) for k in range(region.start, region.stop)
    ]
    return torch.stack(parts[: len(image)]).to(image.device)


def largest_window(height: int, width: int) -> int:
    """SSIM's 11 pixels, or the largest odd number that fits into smaller pictures."""
    side = min(11, height, width)
    return side - 1 + side % 2


class TotalVariation(DeepinvReconstruction):
    """The minimiser of 1/2 |A x - y|^2 + weight TV(x), isotropic total variation, by the primal-dual algorithm.

    Rudin, Osher, Fatemi (1992); Chambolle, Pock (2011). The dual variable carries the norm of the gradient, so that the
    proximal map of each part is exact; with nested iterations (a proximal map of TV inside FISTA) the same work ends far
    from the minimum.
    """

    id = "restoration.deepinv_tv"
    title = "Blurred or noisy pictures restored by total variation (deepinv), with the gain in dB and SSIM"
    paper = Paper(
        title="Nonlinear total variation based noise removal algorithms",
        authors="Rudin, Osher, Fatemi",
        year=1992,
        venue="Physica D 60",
        code="deepinv/deepinv (BSD-3-Clause)",
    )

    class Params(ReconstructionParams):
        """Parameters."""

        weight: float = Field(
            0.002, ge=0, le=10, description="Weight of total variation; about 0.1 x noise for blur, 0.7 x noise without"
        )
        iterations: int = Field(300, ge=1, le=100_000, description="Steps of the primal-dual algorithm")

    def reconstructor(self, params: Params, physics: Any) -> Reconstructor:
        """The library's primal-dual algorithm, split at the gradient; tau sigma |gradient|^2 < 1 with |gradient|^2 <= 8."""
        from deepinv.models import TVDenoiser
        from deepinv.optim import L2, PDCP
        from deepinv.optim.prior import L12Prior

        return PDCP(
            K=TVDenoiser.nabla,
            K_adjoint=TVDenoiser.nabla_adjoint,
            data_fidelity=L2(),
            prior=L12Prior(),
            lambda_reg=params.weight,
            stepsize=PRIMAL_STEP,
            stepsize_dual=0.99 / (8 * PRIMAL_STEP),
            g_first=True,
            max_iter=params.iterations,
            custom_init=lambda y, _: {"est": (y, y, torch.zeros_like(TVDenoiser.nabla(y)))},
        )


__all__: Sequence[str] = ("DeepinvReconstruction", "ReconstructionParams", "Reconstructor", "TotalVariation")
