"""Keeps a line that HiGHS prints by itself out of people's terminals, without losing what others print meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Iterator

NOISE = b"HighsMipSolverData::"
"""How the line begins; it is a trace left in the solver (HiGHS 1.8 and later in scipy), which no option turns off."""

_STANDARD_OUTPUT = 1
_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def solver_kept_quiet() -> Iterator[None]:
    """Inside the block standard output is collected in memory; after it, all of it but the solver's line is written on.

    The line comes from C, past `sys.stdout`, so that the file descriptor has to be turned aside for the moment. Output of
    other threads is late by as long as the block takes. Where that cannot be done (not on Linux, standard output closed)
    nothing is.
    """
    if not hasattr(os, "memfd_create"):
        yield
        return
    flush = ctypes.CDLL(None).fflush  # C buffers what it prints
    with _one_at_a_time:  # before the descriptor is copied: what another thread has turned aside is not to be kept
        try:
            kept = os.dup(_STANDARD_OUTPUT)
        except OSError:
            yield
            return
        aside = os.memfd_create("solver output")
        flush(None)
        os.dup2(aside, _STANDARD_OUTPUT)
        try:
            yield
        finally:
            flush(None)
            os.dup2(kept, _STANDARD_OUTPUT)
            collected = os.pread(aside, os.fstat(aside).st_size, 0)
            os.close(aside)
            passed_on = b"".join(x for x in collected.splitlines(keepends=True) if not x.startswith(NOISE))
            while passed_on:
                passed_on = passed_on[os.write(kept, passed_on) :]
            os.close(kept)
