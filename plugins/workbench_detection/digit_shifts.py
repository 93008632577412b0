"""The digits of scikit-learn under a covariate shift, for studies on bundled data."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
from workbench import InputError
from workbench.toolkit import split_indices

from workbench_detection.shifts import SHIFTS, STRENGTHS, Shift, apply_shift

__all__ = ["shifted_digits"]


def shifted_digits(shift: Shift = "noise", severity: int = 3, split: str = "test", seed: int = 0) -> Any:
    """The digits (8x8 pixels, grey) blurred, noisy, through JPEG or of less contrast; the same samples as `digits(split=...)`.

    Args:
        shift: blur, noise, jpeg or contrast.
        severity: 1 to 5, see `STRENGTHS`.
        split: "test", "train" or "all", as for `digits`.
        seed: of the noise.
    """
    import xarray as xr
    from sklearn.datasets import load_digits

    if shift not in SHIFTS:
        raise InputError("shift", expected=", ".join(get_args(Shift)), got=repr(shift))
    if isinstance(severity, bool) or severity not in range(1, 6):
        raise InputError("severity", expected="1 to 5", got=repr(severity))
    if split not in ("all", "train", "test"):
        raise InputError("split", expected="all, train or test", got=repr(split))
    content = load_digits()
    image, label = (content.images[:, None] / 16).astype(np.float32), content.target.astype(np.int64)
    index = np.arange(len(label))
    if split != "all":
        index = split_indices(label, {"train": 0.7, "test": 0.3}, seed=0)[split]
    strength = STRENGTHS[shift][severity - 1]
    shifted = apply_shift(image[index], shift, strength, indices=index.tolist(), seed=seed)
    return xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), shifted), "label": ("sample", label[index])},
        coords={"class": [str(digit) for digit in range(10)]},
    )
