"""Rules on the report: a pure function of what is stored, readable, and drawn by both drawers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.testing.trial import Trial, first_line, package_folder
from workbench.testing.watch import watching

if TYPE_CHECKING:
    from workbench.report import Report

__all__ = ["RULES_OF_REPORTING"]

_QUERIED = re.compile(r"[A-Za-z_][\w.\-]*")
"""Names that a query of the store understands."""


class _Untimed:
    """A stored run whose clock says nothing, as when the host made the report that was saved."""

    def __init__(self, stored: Any) -> None:
        self._stored = stored
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)

    def __getitem__(self, name: str) -> Any:
        return self._stored[name]

    def __contains__(self, name: object) -> bool:
        return name in self._stored


def _fresh_report(trial: Trial, *, timed: bool = False) -> Report:
    run = trial.bench[trial.first.completed.id]
    stored = run.stored.with_params(trial.first.completed.stored.params)
    return trial.method().report(stored if timed else _Untimed(stored))


def _report_pure(trial: Trial) -> Iterator[str]:
    run = trial.first.completed
    before = {name: run[name].values.copy() for name in run.arrays}
    package = package_folder(trial.method)
    try:
        with watching(own=(trial.folder,), package=package) as seen:
            made = [_fresh_report(trial).to_json() for _ in range(2)]
    except Exception as error:
        yield f"a fresh instance cannot report on the stored run: {type(error).__name__}: {first_line(error)}"
        return
    saved = trial.bench[run.id].record.report
    if made[0] != made[1]:
        yield f"two reports on one run differ in {_unequal(made[0], made[1])}"
    elif made[0] != saved:
        yield f"a fresh instance reports something else than the one that ran: {_unequal(made[0], saved or {})}"
    if seen.files:
        yield f"report opens files: {', '.join(seen.files[:3])}"
    if seen.network:
        yield f"report uses the network: {', '.join(seen.network[:3])}"
    if seen.printed.strip():
        yield f"report prints: {first_line(seen.printed)}"
    if seen.changed:
        yield f"report changes {', '.join(seen.changed)}"
    if any(
        not np.array_equal(before[name], run[name].values, equal_nan=before[name].dtype.kind == "f") for name in before
    ):
        yield "report changes the arrays it reads"


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(key for key in one if one[key] != other.get(key)) or "parts"


def _report_complete(trial: Trial) -> Iterator[str]:
    from workbench.report import Report

    report = _report(trial)
    if report is None:
        return
    if not report.summary.strip():
        yield "the report has no summary"
    document = report.to_json()
    if Report.from_json(document).to_json() != document:
        yield "the report is another after a turn through JSON"
    for metric in report.metrics:
        if not _QUERIED.fullmatch(metric.name):
            yield f"metric {metric.name!r} cannot be asked for in a query; use words joined by _"
        low, high = metric.interval or (metric.value, metric.value)
        if low > high:
            yield f"metric {metric.name!r} has an interval from {low} to {high}"


def _report(trial: Trial) -> Report | None:
    """The report on the stored run; None where there is none, which `report_pure` has said already."""
    try:
        return _fresh_report(trial, timed=True)
    except Exception:
        return None


def _views(trial: Trial) -> Iterator[str]:
    from workbench.render import interactive, static
    from workbench.render.resolve import resolve

    report = _report(trial)
    stored = trial.first.completed.stored
    for view in report.views if report is not None else ():
        try:
            plot = resolve(view, stored)
            static.svg(plot)
            interactive.figure(plot)
            _draw_custom(plot)
        except Exception as error:
            yield f"view {view.title!r} ({view.kind}): {type(error).__name__}: {first_line(error)}"
            continue
        for problem in _custom_view(view, trial):
            yield f"view {view.title!r} ({view.kind}): {problem}"


def _draw_custom(plot: Any) -> None:
    """What a plugin draws, without the sentence that pages show in place of an error."""
    from matplotlib.figure import Figure

    from workbench.render.custom import custom_drawing, interactive_drawing
    from workbench.render.plots import CustomPlot

    if isinstance(plot, CustomPlot):
        custom_drawing(plot, Figure())
        interactive_drawing(plot)


def _custom_view(view: Any, trial: Trial) -> Iterator[str]:
    """A plugin's own view: of a proper kind, the same after a turn through JSON, and offered by the plugin."""
    from workbench.host import view_type
    from workbench.report import CustomView, Report

    if not isinstance(view, CustomView):
        return
    try:
        kind, cls = view_type(type(view))
    except (TypeError, ValueError) as error:
        yield str(error)
        return
    document = Report(summary="a view", views=[view]).to_json()
    # What JSON does not know at all failed the run that the report is of.
    (back,) = Report.from_json(json.loads(json.dumps(document, allow_nan=False)), views=[cls]).views
    if back != view:
        yield "it is another after a turn through JSON"
    if trial.host is not None and trial.host.views().get(kind) is not cls:
        yield "no plugin offers it in `workbench_views`, so reports that were saved show a table in its place"


RULES_OF_REPORTING: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    "report_pure": _report_pure,
    "report_complete": _report_complete,
    "views": _views,
}
"""Rule -> what a trial shows against it."""
