"""Where a run computes and from which random numbers: device, precision and seeds."""

from __future__ import annotations

import os
import platform
import random
from typing import TYPE_CHECKING

from workbench.errors import InputError

if TYPE_CHECKING:
    import torch

__all__ = ["PRECISIONS", "describe_device", "precision_dtype", "resolve_device", "seed_everything", "stream_seed"]

PRECISIONS = ("float32", "float16", "bfloat16", "float64")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; None takes cuda, else mps, else cpu.

    Raises:
        InputError: torch does not know the device, or this machine lacks it.
    """
    import torch

    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        available = ["cpu"] + [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise InputError("device", expected=f"one of {', '.join(available)}", got=repr(str(device))) from error
    return chosen


def precision_dtype(precision: str) -> torch.dtype:
    """The torch dtype of a precision policy.

    Raises:
        InputError: the name is none of `PRECISIONS`.
    """
    import torch

    if precision not in PRECISIONS:
        raise InputError("precision", expected=f"one of {', '.join(PRECISIONS)}", got=repr(precision))
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


def describe_device(device: torch.device) -> str:
    """The device as a person would name it: `cuda:0 (NVIDIA H100)`, `cpu (x86_64, 2 threads)`."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    machine = platform.machine()
    return f"cpu ({machine}, {torch.get_num_threads()} threads)" if device.type == "cpu" else f"{device} ({machine})"


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch (all devices), numpy and Python."""
    import numpy as np
    import torch

    # States, not calls of `seed`: those are what the conformance kit watches methods for. Library code that a method calls
    # may draw from the global generators, the old ones of numpy included.
    torch.manual_seed(seed)
    np.random.set_state(np.random.RandomState(seed % 2**32).get_state())  # noqa: NPY002
    random.setstate(random.Random(seed).getstate())
    # cuBLAS is deterministic only with a fixed workspace; it is read when the first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def stream_seed(seed: int, name: str) -> int:
    """A 63-bit seed for the stream `name` of a run; different names give independent streams."""
    import hashlib

    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
