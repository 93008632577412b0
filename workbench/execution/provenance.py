"""What a reader later asks about a run: versions, code state, machine, memory."""

from __future__ import annotations

import functools
import os
import platform
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from workbench._version import __version__
from workbench.execution.device import describe_device

if TYPE_CHECKING:
    import torch

    from workbench.host import PluginStatus

__all__ = ["PeakMemory", "project_commit", "provenance"]

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "scikit-image", "xarray", "zarr", "zarrs")


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "vision-workbench": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


FRESH = 20.0
"""Seconds for which the state of the git project is taken to be what it was: asking git takes longer than a small run."""


def project_commit(folder: str) -> dict[str, Any] | None:
    """Commit of the git project that holds `folder`, and whether it has uncommitted changes; None outside of one."""
    return _project_commit(folder, int(time.monotonic() / FRESH))


@functools.lru_cache(maxsize=8)
def _project_commit(folder: str, period: int) -> dict[str, Any] | None:
    command = ["git", "-C", folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = done.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid")), "")
    if not commit or commit == "(initial)":
        return None
    return {"commit": commit, "uncommitted_changes": any(not line.startswith("#") for line in lines)}


def provenance(device: torch.device, plugin: PluginStatus | None) -> dict[str, Any]:
    """Versions, command, machine and device of a run that starts now."""
    import torch

    return {
        "versions": _versions() | {"torch": torch.__version__},
        "plugin": None if plugin is None else {"name": plugin.distribution or plugin.name, "version": plugin.version},
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": describe_device(device),
        "cuda": torch.version.cuda,
        "program": os.path.basename(sys.argv[0]) if sys.argv and sys.argv[0] else "python",
    }


class PeakMemory:
    """Largest resident memory seen between samples, and the device's own peak where it keeps one. Bytes."""

    def __init__(self, device: torch.device) -> None:
        import psutil

        self._process = psutil.Process()
        self._device = device
        self.before = self.peak = int(self._process.memory_info().rss)
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)

    def sample(self) -> None:
        """Look at the process once; called with every heartbeat."""
        self.peak = max(self.peak, int(self._process.memory_info().rss))

    def summary(self) -> dict[str, int]:
        """`resident` (peak of the process), `resident_before`, and `device` on a GPU."""
        self.sample()
        found = {"resident": self.peak, "resident_before": self.before}
        if self._device.type == "cuda":
            import torch

            found["device"] = int(torch.cuda.max_memory_allocated(self._device))
        return found
