"""Watching a piece of code: which files it opens, what it prints, whether it reaches for the network or leaves a mark.

Files and network are seen through Python's audit events, so a library that opens a file on the method's behalf is seen too;
what compiled code does behind Python's back is not. Neither is what threads do that were there before: a test server or the
event loop of a dask client in the same process has files and connections of its own. A file is no finding if it belongs to
the Python installation, to the method's own package, to the store of the run, or to the cache of matplotlib or of torch's
compiler.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Seen", "watching"]

_CODE = (".py", ".pyc", ".pyi", ".so", ".pyd", ".dll", ".dylib", ".pth")
_SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/opt", "/System", "/Library")
_CACHES = ("torchinductor", "triton", "matplotlib", "__pycache__", "fontconfig")
_CHANGES = frozenset({"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"})
_NETWORK = frozenset({"socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request"})


@dataclass
class Seen:
    """What happened while watching."""

    own: tuple[str, ...] = ()
    """Folders whose files may be read and written."""
    readable: tuple[str, ...] = ()
    """Folders whose files may be read."""
    others: frozenset[int] = frozenset()
    """Threads (native ids) whose doings are none of the code's business."""
    files: list[str] = field(default_factory=list)
    """`read PATH`, `write PATH`, ... of files that are none of the code's business."""
    network: list[str] = field(default_factory=list)
    printed: str = ""
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Global setting -> (before, after)."""

    def event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of an audit event."""
        if threading.get_native_id() in self.others:
            return
        if event in _NETWORK:
            address = arguments[1] if event in ("socket.connect", "socket.bind") else arguments[0]
            if event == "socket.bind" and isinstance(address, tuple) and address[:2] in (("::1", 0), ("127.0.0.1", 0)):
                return  # urllib3 asks in this way whether the machine has IPv6 when it is imported
            if not isinstance(address, str | bytes) or event != "socket.connect":  # a path: a pipe between processes
                self._note(self.network, f"{event.partition('.')[2]} {address!r}")
        elif event == "open":
            path, mode, flags = arguments
            self._file(path, bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)), mode)
        elif event in _CHANGES:
            self._file(arguments[0], True, event)

    def _file(self, path: Any, written: bool, mode: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file descriptor
        text = os.path.abspath(os.fsdecode(path))
        if text == os.devnull or any(part in text for part in _CACHES) or _below(text, self.own):
            return
        innocent = text.endswith(_CODE) or _below(text, (*self.readable, *_SYSTEM))
        if written or not innocent:
            self._note(
                self.files,
                f"{mode if isinstance(mode, str) and '.' in mode else 'write' if written else 'read'} {text}",
            )

    @staticmethod
    def _note(notes: list[str], text: str) -> None:
        if text not in notes and len(notes) < 20:
            notes.append(text)


def _below(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders)


# An audit hook cannot be taken off again, so there is one, and it looks up who is watching.
_WATCHERS: list[Seen] = []
_installed = threading.Event()


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _WATCHERS and (event == "open" or event in _NETWORK or event in _CHANGES):
        for seen in tuple(_WATCHERS):
            seen.event(event, arguments)


@contextmanager
def watching(*, own: tuple[Path | str, ...] = (), package: Path | None = None) -> Iterator[Seen]:
    """Watch what the block does.

    Args:
        own: folders that may be written (the store).
        package: folder of the method's package, which may be read.
    """
    if not _installed.is_set():
        sys.addaudithook(_hook)
        _installed.set()
    installation = {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.__file__)}
    installation |= {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    readable = tuple(sorted(installation)) + ((str(package),) if package is not None else ())
    # The system's numbers of threads: Python's own (`ident`) go to the next thread as soon as one has ended.
    running = (thread.native_id for thread in threading.enumerate())
    others = frozenset(native for native in running if native is not None and native != threading.get_native_id())
    seen = Seen(tuple(os.path.abspath(path) for path in own), readable, others)
    text = io.StringIO()
    before = _global_state()
    _WATCHERS.append(seen)
    try:
        with redirect_stdout(text), redirect_stderr(text):
            yield seen
    finally:
        _WATCHERS.remove(seen)
        after = _global_state()
        seen.printed = text.getvalue()
        seen.changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
        _restore(before, seen.changed)


def _global_state() -> Mapping[str, Any]:
    """Settings of the process and of this thread that a method must leave as they are."""
    import numpy as np
    import torch

    pyplot = sys.modules.get("matplotlib.pyplot")
    return {
        "working folder": os.getcwd(),
        "environment": dict(os.environ),
        "sys.path": list(sys.path),
        "recursion limit": sys.getrecursionlimit(),
        "threads": sorted(f"{thread.name} ({thread.ident})" for thread in threading.enumerate() if not thread.daemon),
        "numpy error settings": dict(np.geterr()),
        "numpy print options": repr(np.get_printoptions()),
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": str(torch.get_default_device()),
        "torch threads": torch.get_num_threads(),
        "torch gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "open pyplot figures": list(pyplot.get_fignums()) if pyplot is not None else [],
    }


def _restore(before: Mapping[str, Any], changed: Collection[str]) -> None:
    """Undo what was changed, so that the next run starts where this one did, and the tests after it as well."""
    import numpy as np
    import torch

    if "working folder" in changed:
        os.chdir(before["working folder"])
    if "environment" in changed:
        os.environ.clear()
        os.environ.update(before["environment"])
    if "sys.path" in changed:
        sys.path[:] = before["sys.path"]
    if "numpy error settings" in changed:
        np.seterr(**before["numpy error settings"])
    if "torch default dtype" in changed:
        torch.set_default_dtype(before["torch default dtype"])
    if "torch threads" in changed:
        torch.set_num_threads(before["torch threads"])
    if "torch gradients" in changed:
        torch.set_grad_enabled(before["torch gradients"][0])
    if "torch deterministic algorithms" in changed:
        torch.use_deterministic_algorithms(before["torch deterministic algorithms"])
    if "torch matmul precision" in changed:
        torch.set_float32_matmul_precision(before["torch matmul precision"])
