"""What dask writes into the terminal and is nobody's concern there, because an error of ours says it or it harms nothing."""

from __future__ import annotations

import asyncio
import logging
import traceback

__all__ = ["quiet_dask"]

HARMLESS = (
    "Worker process still alive",  # told to stop, it computed on and was killed: what it left counts for nothing
    "Cluster closed without starting up",  # the error that follows says why
)
GIVING_UP = ("_reconnect", "_close")
"""Where dask's client gives up on a scheduler that is gone."""


def quiet_dask() -> None:
    """Keep it out of the log of this process; everything else that dask has to say stays."""
    for name in ("distributed.nanny", "distributed.deploy.spec", "distributed.client"):
        logging.getLogger(name).addFilter(_worth_telling)  # once, however often it is added


def _worth_telling(record: logging.LogRecord) -> bool:
    return not _gave_up(record) and not record.getMessage().startswith(HARMLESS)


def _gave_up(record: logging.LogRecord) -> bool:
    """Whether it is the traceback of giving up, and not one of what somebody else asked dask to call."""
    if record.name != "distributed.client" or not record.exc_info:
        return False
    _, error, trace = record.exc_info
    if not isinstance(error, asyncio.CancelledError | OSError):
        return False
    return any(
        frame.f_code.co_name in GIVING_UP and frame.f_globals.get("__name__") == record.name
        for frame, _ in traceback.walk_tb(trace)
    )
