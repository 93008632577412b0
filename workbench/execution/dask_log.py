"""What dask writes into the terminal and is nobody's concern there, because an error of ours says it or it harms nothing."""

from __future__ import annotations

import asyncio
import logging

__all__ = ["quiet_dask"]

HARMLESS = (
    "Worker process still alive",  # told to stop, it computed on and was killed: what it left counts for nothing
    "Cluster closed without starting up",  # the error that follows says why
)


def quiet_dask() -> None:
    """Keep it out of the log of this process; everything else that dask has to say stays."""
    for name in ("distributed.nanny", "distributed.deploy.spec", "distributed.client"):
        logging.getLogger(name).addFilter(_worth_telling)  # once, however often it is added


def _worth_telling(record: logging.LogRecord) -> bool:
    # The client tries to reach a scheduler that is gone and writes the traceback of giving up.
    gave_up = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError | OSError)
    return not (record.name == "distributed.client" and gave_up) and not record.getMessage().startswith(HARMLESS)
