"""Pictures as pixels: colour maps, PNG bytes and data addresses, for both drawers."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from workbench.render.markup import Html, embedded

if TYPE_CHECKING:
    from workbench.render.plots import Floats

__all__ = ["data_uri", "from_png", "pixels", "to_png"]


def pixels(picture: Floats, color_map: str) -> NDArray[np.uint8]:
    """Colours (y, x, 4) of a picture (y, x) or (y, x, 3) in 0..1; where it is NaN, it is transparent.

    A colour map that matplotlib does not have is drawn in grey: a report must not fail for its name.
    """
    from matplotlib import colormaps

    gap = np.isnan(picture) if picture.ndim == 2 else np.isnan(picture).any(axis=-1)
    filled = np.clip(np.nan_to_num(picture), 0.0, 1.0)
    if picture.ndim == 2:
        # matplotlib maps 255.99 of 256 levels; pictures keep their own 8 bits.
        levels = np.round(filled * 255).astype(np.uint8)
        scale = colormaps[color_map if color_map in colormaps else "gray"].resampled(256)
        colors = (scale(np.arange(256)) * 255).round().astype(np.uint8)[levels]
    else:
        colors = np.concatenate([np.round(filled * 255), np.full((*picture.shape[:2], 1), 255.0)], axis=-1).astype(
            np.uint8
        )
    colors[gap] = 0
    return colors


def to_png(colors: NDArray[np.uint8]) -> bytes:
    """PNG of (y, x, 4) colours."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, format="PNG")
    return buffer.getvalue()


def from_png(png: bytes) -> NDArray[np.uint8]:
    """Colours (y, x, 4) of a PNG; at most 4,000 pixels along a side."""
    from PIL import Image

    picture: Any = Image.open(io.BytesIO(png), formats=("PNG",))
    picture.thumbnail((4_000, 4_000))
    return np.asarray(picture.convert("RGBA"))


def data_uri(png: bytes) -> Html:
    """The PNG as an address that needs no request."""
    return embedded(f"data:image/png;base64,{base64.b64encode(png).decode()}")
