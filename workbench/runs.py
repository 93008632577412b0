"""A run as people hold it: its record, its arrays (read lazily), its report and its relatives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import PluginError, RunNotFoundError
from workbench.record import RunRecord, Status
from workbench.store import StoredRun

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

    from workbench.bench import Workbench
    from workbench.panels.explore import Explorer
    from workbench.panels.run import RunPanel
    from workbench.render import RenderedReport
    from workbench.report import Report
    from workbench.store.annotations import RunAnnotations
    from workbench.store.studies import Study

__all__ = ["ArrayNames", "Run", "Runs", "Studies", "panel_module"]


def panel_module(name: str) -> Any:
    """A module of the panels. They lie on the floor above, so it is named as text and loaded when somebody wants to look."""
    from importlib import import_module

    return import_module(f"workbench.panels.{name}")


class Runs(list["Run"]):
    """A list of runs that shows itself as a table."""

    def _repr_html_(self) -> str:
        from workbench.render import runs_html

        return runs_html([run.info for run in self])


class Studies(list["Study"]):
    """A list of studies that shows itself as a table."""

    HEADINGS = ("study", "runs", "by status", "last activity")

    def rows(self) -> list[tuple[str, str, str, str]]:
        """One row of text a study."""
        return [
            (
                study.name,
                str(study.runs),
                ", ".join(f"{count} {status}" for status, count in study.by_status.items()),
                study.last_activity[:16].replace("T", " "),
            )
            for study in self
        ]

    def __repr__(self) -> str:
        rows = [self.HEADINGS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self.HEADINGS))]
        lines = (
            "  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )
        return "\n".join(lines) if self else "no studies"

    def _repr_html_(self) -> str:
        from workbench.render.html import notebook_fragment
        from workbench.render.sections import table_html

        return notebook_fragment(table_html(self.HEADINGS, self.rows(), (False, True, False, False)))


class ArrayNames(tuple[str, ...]):
    """Names of the arrays of a run. Shows itself as a table of dims, chunks and sizes; called, it opens the explorer."""

    stored: StoredRun

    @classmethod
    def of(cls, stored: StoredRun) -> ArrayNames:
        """The arrays of a run."""
        made = cls(stored.outputs)
        made.stored = stored
        return made

    def __call__(self) -> Explorer:
        """All arrays of the run in one panel: `run.arrays()`."""
        return panel_module("explore").Explorer([self.stored])  # type: ignore[no-any-return]

    def _repr_html_(self) -> str:
        from workbench.render.layout import arrays_html

        return arrays_html(self.stored.record.arrays, self)


class Run:
    """A run: its record, its arrays (read lazily), its report, and what it was made from."""

    def __init__(self, bench: Workbench, stored: StoredRun, *, served: bool = False) -> None:
        self._bench, self.stored, self.served = bench, stored, served

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Unique id in the store."""
        return self.stored.id

    @property
    def key(self) -> str | None:
        """Identity of the computation; None if an input could not be identified."""
        return self.record.key

    @property
    def record(self) -> RunRecord:
        """Everything known about the run but its arrays."""
        return self.stored.record

    @property
    def method(self) -> str:
        """Id of the method."""
        return self.record.method

    @property
    def status(self) -> Status:
        """running, complete, failed, cancelled or interrupted; asked anew as long as the run is running."""
        if self.record.status == "running":
            self.stored = self._bench.store.run(self.id)
        return self.stored.status

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.record.seed

    @property
    def studies(self) -> tuple[str, ...]:
        """The study it was computed for, if any, then those it joined."""
        own = () if self.record.study is None else (self.record.study,)
        return own + tuple(name for name in self.annotations.studies if name not in own)

    @property
    def metrics(self) -> dict[str, float]:
        """Metric values of the report by name."""
        return self.record.metrics

    @property
    def params(self) -> Any:
        """The validated parameters; a plain dict where the method is not at hand or has changed its parameters."""
        try:
            return self._bench.host.method(self.method).Params(**self.record.params)
        except (PluginError, LookupError, ValueError):
            return dict(self.record.params)

    @property
    def inputs(self) -> dict[str, list[Run]]:
        """Per role the runs it was made from (none for inputs that are no runs)."""
        found: dict[str, list[Run]] = {}
        for role, entry in self.record.inputs.items():
            found[role] = []
            for run_id in entry.get("runs", ()):
                try:
                    found[role].append(self._bench[run_id])
                except RunNotFoundError:
                    continue  # deleted since; the record still names it
        return found

    def descendants(self, *, direct: bool = False) -> Runs:
        """Runs that were made from its outputs, and from theirs (only the former, if `direct`), oldest first."""
        return Runs(Run(self._bench, stored) for stored in self._bench.store.descendants(self.id, direct=direct))

    @property
    def annotations(self) -> RunAnnotations:
        """Tags, notes, pin and archive mark: `run.annotations.tag("paper")`, `run.annotations.notes`."""
        return self._bench.store.annotations.of(self.id)

    @property
    def traceback(self) -> str:
        """Where a failed run failed; empty otherwise."""
        return str((self.record.failure or {}).get("traceback", ""))

    # --- arrays -----------------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> xr.DataArray:
        """A stored array with its coordinates; only what is sliced is read.

        Raises:
            OutputError: there is none of this name; IntegrityError (on reading): chunks are damaged or missing.
        """
        return self.stored[name]

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    @property
    def arrays(self) -> ArrayNames:
        """Names of the stored outputs; `run.arrays()` opens them in the explorer."""
        return ArrayNames.of(self.stored)

    def explore(self, name: str) -> Explorer:
        """A stored array as pictures, curves, histogram or table: choose dims, slide, zoom. Only what is on view is read.

        Raises:
            OutputError: there is none of this name.
        """
        return panel_module("explore").Explorer([self.stored], name)  # type: ignore[no-any-return]

    @property
    def series(self) -> xr.Dataset:
        """Logged time series over `step`."""
        return self.stored.series

    @property
    def tree(self) -> xr.DataTree:
        """Everything stored, lazily."""
        return self.stored.tree

    def model(self, name: str = "model", *, into: nn.Module | None = None) -> nn.Module:
        """A model the run stored, in eval mode.

        Args:
            name: which one.
            into: a module to load the state into, for networks that no registered factory builds.

        Raises:
            OutputError: the run stored no such model. InputError: it cannot be rebuilt without `into`.
        """
        return self._bench.stored_model(self.stored, name, into)

    # --- what it found ----------------------------------------------------------------------------------------------

    def panel(self) -> RunPanel:
        """Everything about the run to look through: report, arrays, parameters, lineage, curves, provenance, code, notes."""
        return panel_module("run").RunPanel(self)  # type: ignore[no-any-return]

    def report(self) -> RenderedReport:
        """The report saved with the run; displays itself in a notebook, `.save(path)` writes one HTML page.

        Raises:
            RunNotFoundError: the run is not complete, so it has no report.
        """
        from workbench.render import RenderedReport

        return RenderedReport(self.report_data(), self.stored, self.info)

    def report_data(self) -> Report:
        """The report as data: metrics, tables, views."""
        from workbench.report import Report

        if self.record.report is None:
            raise RunNotFoundError(f"run {self.id} is {self.status} and has no report")
        return Report.from_json(self.record.report, views=self._bench.host.views().values())

    @property
    def info(self) -> Any:
        """What pages and panels show of the run (`workbench.render.RunInfo`)."""
        from workbench.render import RunInfo

        return RunInfo.from_record(
            self.record, status=self.stored.status, served=self.served, store=self._bench.store.url
        )

    @property
    def path(self) -> Path | str:
        """Where the run lies: `xarray.open_datatree(run.path)` reads it without this package."""
        from workbench.store.writer import run_folder

        url = self._bench.store.url
        return f"{url}/{run_folder(self.record)}" if "://" in url else Path(url) / run_folder(self.record)

    def __repr__(self) -> str:
        parts = [f"{name}={value:.4g}" for name, value in list(self.metrics.items())[:4]]
        origin = ", from the store" if self.served else ""
        return f"<Run {self.id} {self.stored.status}{origin}{': ' if parts else ''}{', '.join(parts)}>"

    def _repr_html_(self) -> str:
        from workbench.render import run_html

        return run_html(self.info)
