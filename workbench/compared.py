"""What `bench.compare` returns: a Dataset over the dim `run` that can show itself as a panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xarray as xr

from workbench.errors import InputError
from workbench.runs import panel_module

if TYPE_CHECKING:
    from workbench.panels.compare import ComparePanel
    from workbench.render.comparison import ComparisonReport
    from workbench.runs import Run

__all__ = ["Comparison"]


class Comparison(xr.Dataset):  # type: ignore[no-untyped-call]
    """Runs side by side: an `xarray.Dataset` in every respect. What is computed from it knows no runs and has no panel."""

    __slots__ = ("_runs",)

    @classmethod
    def of(cls, dataset: xr.Dataset, runs: Sequence[Run]) -> Comparison:
        """The Dataset of these runs."""
        made = cls(dataset.data_vars, dataset.coords, dataset.attrs)
        made._runs = tuple(runs)
        return made

    def panel(self) -> ComparePanel:
        """Metrics with differences, what differs in parameters, curves on top of each other, pictures side by side.

        Raises:
            InputError: this was computed from a comparison.
        """
        return panel_module("compare").ComparePanel(self._given("panel"))  # type: ignore[no-any-return]

    def report(self, family: str | None = None) -> ComparisonReport:
        """What the family of these runs says about them side by side, with intervals over their seeds.

        Runs that are not complete are left out.

        Args:
            family: whose view, where the runs are of several families; runs of the others are left out.

        Raises:
            InputError: this was computed from a comparison; no complete run; several families and none named; a family that
                offers no comparison; or runs that its comparison refuses.
        """
        from workbench.render.comparison import ComparisonReport

        runs = self._given("report")
        host = runs[0]._bench.host
        known = host.comparisons()
        families = sorted({_family(run) for run in runs})
        if family is None and len(families) > 1:
            families = [name for name in families if name in known] or families
        chosen = families[0] if family is None and len(families) == 1 else family
        if chosen not in known:
            raise InputError(
                "family",
                expected=f"one of {', '.join(sorted(known)) or 'none: no plugin offers a comparison'}",
                got=repr(chosen) if chosen is not None else f"runs of {', '.join(families)}",
            )
        complete = [run for run in runs if _family(run) == chosen and run.status == "complete"]
        if not complete:
            raise InputError("runs", expected=f"complete runs of family {chosen!r}", got="none")
        report, data = known[chosen](complete)
        return ComparisonReport(report, data, chosen, [run.info for run in complete])

    def _given(self, wanted: str) -> tuple[Run, ...]:
        runs: tuple[Run, ...] | None = getattr(self, "_runs", None)
        if runs is None:
            raise InputError(
                wanted,
                expected="what bench.compare returned",
                got="a Dataset computed from it",
                hint=f"bench.compare(runs).{wanted}()",
            )
        return runs


def _family(run: Run) -> str:
    return run.method.partition(".")[0]
