"""Arrays in memory as views see a run: what reports over several runs draw from."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ViewArrays"]


class ViewArrays:
    """Arrays in memory that look like a run to the renderer: the part of a `Result` that views use."""

    def __init__(self, data: xr.Dataset, name: str) -> None:
        self._data, self.id = data, name

    def __getitem__(self, name: str) -> xr.DataArray:
        return self._data[name]

    def __contains__(self, name: object) -> bool:
        return name in self._data

    @property
    def series(self) -> xr.Dataset:
        """There are none."""
        import xarray as xr

        return xr.Dataset()
