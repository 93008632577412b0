"""Image restoration: losses, metrics and networks that give pictures back, and how to compare what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from workbench import MethodReference, hookimpl

if TYPE_CHECKING:
    from torch import nn


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """Methods of this family; nothing heavy is imported until one is used."""
    return [
        MethodReference(
            "restoration.ms_ssim",
            "workbench_restoration.ms_ssim:MSSSIM",
            "Pixel loss or structural loss: what (MS-)SSIM training changes in reconstructions, codes and upscaling",
        ),
    ]


@hookimpl
def workbench_models() -> Mapping[str, Callable[..., Any]]:
    """Networks of this family, so that stored ones can be built again: `run.model(name="network_ssim")`."""
    return {"autoencoder": _autoencoder, "srcnn": _srcnn}


def _autoencoder(
    architecture: str = "conv",
    *,
    channels: int = 1,
    height: int = 32,
    width: int = 32,
    code: int = 128,
    variational: bool = False,
) -> nn.Module:
    """An untrained autoencoder; see `networks.build_autoencoder`."""
    from workbench_restoration.networks import build_autoencoder

    sizes: dict[str, Any] = {"channels": channels, "height": height, "width": width, "code": code}
    return build_autoencoder(architecture, variational=variational, **sizes)  # type: ignore[arg-type]


def _srcnn() -> nn.Module:
    """An untrained SRCNN 9-1-5 for Y images."""
    from workbench_restoration.networks import SRCNN

    return SRCNN()
