"""What `bench.compare` returns: a Dataset over the dim `run` that can show itself as a panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import xarray as xr

from workbench.errors import InputError
from workbench.runs import panel_module

if TYPE_CHECKING:
    from workbench.panels.compare import ComparePanel
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
        runs: tuple[Run, ...] | None = getattr(self, "_runs", None)
        if runs is None:
            raise InputError(
                "panel",
                expected="what bench.compare returned",
                got="a Dataset computed from it",
                hint="bench.compare(runs).panel()",
            )
        return panel_module("compare").ComparePanel(runs)  # type: ignore[no-any-return]
