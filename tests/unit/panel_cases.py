"""Runs with arrays to look at, for the tests of the panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import workbench
from workbench.host import Host
from workbench.report import Line, Metric, Report

from unit.store_cases import record

__all__ = ["HOSTILE", "bench_over", "pictures", "put_run"]

HOSTILE = '<script>window.hacked=1</script><img src=x onerror="window.hacked=2">\u202egnp.\u202c' + "A" * 300
"""Text that would be markup, or reorder its surroundings, if anything took it for that."""


def pictures(count: int = 6, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, size, size), dtype=np.float32)


def bench_over(tmp_path: Path) -> workbench.Workbench:
    """A bench without methods over a fresh store."""
    return workbench.open(tmp_path / "store", host=Host(found=[]))


def put_run(
    bench: workbench.Workbench,
    arrays: dict[str, tuple[tuple[str, ...], Any]],
    *,
    metrics: dict[str, float] | None = None,
    intervals: dict[str, tuple[float, float]] | None = None,
    directions: dict[str, Any] | None = None,
    failure: dict[str, str] | None = None,
    uses: tuple[str, ...] = (),
    **changes: Any,
) -> workbench.Run:
    """A run of these arrays (name -> dims, values) in the store of a bench."""
    if uses:
        changes["inputs"] = {"data": {"label": "", "runs": list(uses), "kind": "data", "digest": "d" * 8}}
    writer = bench.store.begin(record(**{"method": "restoration.demo", "method_title": "Demo", "key": None, **changes}))
    for name, (dims, values) in arrays.items():
        writer.put(name, np.asarray(values), dims)
    report = Report(
        summary="A demonstration.",
        metrics=[
            Metric(
                name=name,
                value=value,
                direction=(directions or {}).get(name, "higher"),
                interval=(intervals or {}).get(name),
            )
            for name, value in (metrics or {}).items()
        ],
        views=[Line(title="Loss", y=("series/loss",), x="step")] if "series/loss" in arrays else [],
    )
    done = writer.fail(failure=failure) if failure else writer.complete(report=report.to_json(), seconds=1.0)
    bench.store.index.put(done)
    return bench[done.id]
