"""What dask loads into the workers of `local_cluster` and `gpu_cluster` before anything else, by the name of this module."""

from __future__ import annotations

import signal
from typing import Any

from workbench.execution.heap import settle_heap

__all__ = ["dask_setup"]


def dask_setup(worker: Any) -> None:
    """Called by dask in the worker's main thread."""
    settle_heap()
    # Ctrl-C in a terminal goes to all processes started there. It is for the command, which cancels its runs and then ends
    # its workers; a worker that ended by itself would leave them unfinished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
