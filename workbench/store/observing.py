"""What is observed of the runs that have not ended: some of them only seem to run, and every question must see it alike."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from workbench.record import RunRecord, Status
from workbench.store.liveness import observed_status

if TYPE_CHECKING:
    from workbench.store.backend import Backend
    from workbench.store.index import Index

__all__ = ["interrupted", "unfinished"]

MOST_OBSERVED = 500
"""Running runs whose signs of life are looked for, the newest; of more, the others are taken at their word."""


def unfinished(index: Index, backend: Backend, *, look: bool = False) -> dict[int, Status]:
    """Numbers of the runs whose records say that they run, and their status as it is observed.

    Args:
        index: of the store.
        backend: where the store lies.
        look: bring the index up to date first.
    """
    rows = index.ask(
        "SELECT n, record FROM runs JOIN records USING (n) WHERE status = 'running' ORDER BY n DESC LIMIT ?",
        [MOST_OBSERVED],
        look=look,
    )
    return {n: observed_status(backend, RunRecord.from_json(json.loads(record))) for n, record in rows}


def interrupted(index: Index, backend: Backend, *, look: bool = False) -> list[int]:
    """Numbers of the runs whose records say that they run, but which show no sign of life."""
    return [n for n, status in unfinished(index, backend, look=look).items() if status == "interrupted"]
