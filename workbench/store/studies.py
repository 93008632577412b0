"""Studies: what runs were computed for. A study is a path (`ship/resnet20`); one that is above others has their runs too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.store.liveness import observed_status
from workbench.store.query import compile_query

if TYPE_CHECKING:
    from workbench.store.store import Store

__all__ = ["Study", "find_studies"]


@dataclass(frozen=True)
class Study:
    """One study: how many runs it and the studies below it have, each run counted once."""

    name: str
    runs: int
    by_status: dict[str, int] = field(default_factory=dict)
    """Runs by status; running ones that show no sign of life count as interrupted."""
    last_activity: str = ""
    """When a run of it last began, ended or joined it (ISO 8601, UTC)."""


def find_studies(store: Store) -> list[Study]:
    """All studies of a store, and those above them, in the order of their names."""
    live = {
        run.id: observed_status(store.backend, run)
        for run in store.index.select(compile_query("status = running and study ~ ''", user=""))
    }
    statuses: dict[str, dict[str, str]] = {}
    last: dict[str, str] = {}
    for name, run, status, moment in store.index.memberships():
        for study in _with_those_above(name):
            statuses.setdefault(study, {})[run] = live.get(run, status)
            last[study] = max(last.get(study, ""), moment)
    found = []
    for name in sorted(statuses, key=lambda name: name.split("/")):
        counts: dict[str, int] = {}
        for status in statuses[name].values():
            counts[status] = counts.get(status, 0) + 1
        found.append(Study(name, len(statuses[name]), dict(sorted(counts.items())), last[name]))
    return found


def _with_those_above(name: str) -> Iterator[str]:
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        yield "/".join(parts[:end])
