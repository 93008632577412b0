"""Studies: what runs were computed for. A study is a path (`ship/resnet20`); one that is above others has their runs too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.store.liveness import observed_status

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
    index = store.index
    running = {run.id: run for run in index.select(("status = 'running'", []))}
    status = {run.id: observed_status(store.backend, run) for run in running.values()}
    counts: dict[str, dict[str, int]] = {}
    last: dict[str, str] = {}

    def note(study: str, state: str, number: int, moment: str) -> None:
        of_study = counts.setdefault(study, {})
        of_study[state] = of_study.get(state, 0) + number
        last[study] = max(last.get(study, ""), moment)

    own = index.study_counts()
    own += [(run.study, status[run.id], 1, run.started) for run in running.values() if run.study is not None]
    for name, state, number, moment in own:
        for study in _with_those_above(name):
            note(study, state, number, moment)
    counted: set[tuple[str, str]] = set()
    for name, run_id, computed_for, state, moment in index.joined():
        for study in _with_those_above(name):
            again = (study, run_id) in counted or study in _with_those_above(computed_for or "")
            note(study, status.get(run_id, state), 0 if again else 1, moment)
            counted.add((study, run_id))
    return [
        Study(
            name, sum(counts[name].values()), {state: n for state, n in sorted(counts[name].items()) if n}, last[name]
        )
        for name in sorted(counts, key=lambda name: name.split("/"))
    ]


def _with_those_above(name: str) -> Iterator[str]:
    parts = name.split("/")
    for end in range(1, len(parts) + 1):
        yield "/".join(parts[:end])
