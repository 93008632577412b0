"""Keeps a line that HiGHS prints by itself out of people's terminals, without losing what others print meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
from collections.abc import Iterator

NOISE = b"HighsMipSolverData::"
"""How the line begins; it is a trace left in the solver (HiGHS 1.8 and later in scipy), which no option turns off."""

_STANDARD_OUTPUT = 1
_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def solver_kept_quiet() -> Iterator[None]:
    """Inside the block standard output is collected; after it, all of it but the solver's line is written on.

    The line comes from C, past `sys.stdout`, so that the file descriptor has to be turned aside for the moment. Output of other
    threads is late by as long as the block takes. Where that cannot be done (no POSIX, standard output closed) nothing is.
    """
    try:
        flush = ctypes.CDLL(None).fflush if os.name == "posix" else None
        kept = os.dup(_STANDARD_OUTPUT) if flush is not None else None
    except (OSError, AttributeError, TypeError):
        kept = None
    if kept is None or flush is None:
        yield
        return
    with _one_at_a_time, tempfile.TemporaryFile() as aside:
        flush(None)
        os.dup2(aside.fileno(), _STANDARD_OUTPUT)
        try:
            yield
        finally:
            flush(None)  # C buffers what it prints
            os.dup2(kept, _STANDARD_OUTPUT)
            aside.seek(0)
            for line in aside:
                if not line.startswith(NOISE):
                    os.write(kept, line)
            os.close(kept)
