"""The C library's heap of a dask worker, set to what it is in any other Python process.

dask starts its workers with `MALLOC_TRIM_THRESHOLD_=65536`, so that they give memory back early. With that variable set,
glibc no longer adapts its thresholds: every piece beyond 128 kB is mapped for itself, and at every release the end of the
heap goes back to the kernel. A tensor of a few hundred kilobytes then costs a page fault for each of its pages: products of
matrices of 256 x 256 take twice the time that they take in a notebook (`tests/benchmarks/sweeps.py`).
"""

from __future__ import annotations

import ctypes
import os

__all__ = ["settle_heap"]

VARIABLE = "MALLOC_TRIM_THRESHOLD_"
CHOICE_OF_DASK = "65536"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's malloc.h."""
LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024
"""Up to which glibc adapts the size that it maps for itself (DEFAULT_MMAP_THRESHOLD_MAX); it trims at twice as much."""


def settle_heap() -> bool:
    """Give this process the thresholds at which glibc arrives when it adapts them; for the worker at its first order.

    The variable is read when a process starts, before anything of ours runs there, so this calls `mallopt` instead of setting
    it. A value that somebody chose is left alone; so are other C libraries.

    Returns:
        whether something was changed.
    """
    if os.environ.get(VARIABLE) != CHOICE_OF_DASK:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    set_both = [
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD),
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD),
    ]
    return all(set_both)
