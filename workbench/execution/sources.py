"""Where subjects named in text come from: the store, and what plugins registered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workbench.execution.turn import Turn
from workbench.host import Host
from workbench.store import Store, StoredRun

if TYPE_CHECKING:
    import xarray as xr
    from torch import nn

__all__ = ["StoreSources"]


class StoreSources:
    """The one implementation of `workbench.execution.inputs.Sources`."""

    def __init__(self, store: Store, host: Host) -> None:
        self.store, self.host = store, host

    def dataset(self, spec: str, *, role: str) -> tuple[xr.Dataset, str | None]:
        """See Sources."""
        from workbench.subjects import open_data
        from workbench.subjects.builtin import DATASETS

        return open_data(spec, datasets={**self.host.datasets(), **DATASETS}, role=role), None

    def network(self, spec: str, *, example: xr.Dataset | None, role: str) -> nn.Module:
        """See Sources."""
        from workbench.subjects import load_model

        with Turn():  # factories draw weights from global generators
            return load_model(spec, factories=self._factories(), example=example, argument=role)

    def stored_run(self, run_id: str) -> StoredRun:
        """See Sources."""
        return self.store.run(run_id)

    def stored_model(self, run: StoredRun, name: str, into: nn.Module | None = None) -> nn.Module:
        """See Sources; `into` is a module to load the state into, for networks that no registered factory builds."""
        from workbench.subjects import load_state

        arrays = run.model_state(name)
        with Turn():
            return load_state(arrays, run.record.models[name], factories=self._factories(), into=into)

    def _factories(self) -> dict[str, Any]:
        from workbench.subjects.builtin import FACTORIES

        return {**self.host.models(), **FACTORIES}
