"""How the blocks of a `BlockwiseMethod` are computed: here one after the other, or by the workers of a dask cluster.

Both go through `run_block`: the same seeds, the same writer, the same order of what is combined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from workbench.errors import OutputError
from workbench.execution.device import seed_everything, stream_seed
from workbench.method import BlockwiseMethod, Inputs
from workbench.store.backend import Backend
from workbench.store.blocks import BlockWriter
from workbench.store.layout import ArrayLayout

if TYPE_CHECKING:
    from workbench.execution.out import StoredArray
    from workbench.execution.progress import CancelToken

__all__ = ["BlockPlace", "BlockSharing", "run_block"]


@dataclass(frozen=True)
class BlockPlace:
    """Where the blocks of a run are written. Travels to workers, without the back-end: they have one of their own."""

    backend: Backend | None
    folder: str
    layouts: Mapping[str, ArrayLayout]
    seed: int


class BlockSharing(Protocol):
    """Has blocks computed elsewhere."""

    def worthwhile(self, regions: Sequence[slice]) -> bool:
        """Whether others shall compute them."""

    def compute(
        self, place: BlockPlace, regions: Sequence[slice], done: Callable[[int], None], cancel: CancelToken
    ) -> list[Mapping[str, Any]]:
        """What every block returned, in their order; `done` is called with the number of samples whenever a block is."""


class _Block:
    """`workbench.method.BlockOut` for one block."""

    def __init__(
        self,
        place: BlockPlace,
        number: int,
        region: slice,
        device: torch.device,
        dtype: torch.dtype,
        cancel: CancelToken,
        tell: Callable[[float, float, str], None],
    ) -> None:
        self.device, self.dtype, self.seed = device, dtype, place.seed
        self._place, self._number, self._region = place, number, region
        self._cancel, self._tell = cancel, tell
        self.writers: dict[str, BlockWriter] = {}

    def generator(self, name: str = "") -> torch.Generator:
        """See BlockOut."""
        return torch.Generator().manual_seed(stream_seed(self.seed, f"{name}/block {self._number}"))

    def rng(self, name: str = "") -> np.random.Generator:
        """See BlockOut."""
        return np.random.default_rng(stream_seed(self.seed, f"{name}/block {self._number}"))

    def part(self, name: str) -> StoredArray:
        """See BlockOut."""
        from workbench.execution.out import StoredArray

        if name not in self._place.layouts:
            known = ", ".join(self._place.layouts) or "none"
            raise OutputError(
                f"a block wrote {name!r}, which begin did not declare with sample first; declared: {known}"
            )
        if name not in self.writers:
            place = self._place
            assert place.backend is not None
            self.writers[name] = BlockWriter(
                place.backend, place.folder, name, place.layouts[name], self._region.start, self._region.stop
            )
        return StoredArray(self.writers[name], name)

    def progress(self, done: float, total: float, message: str = "") -> None:
        """See BlockOut."""
        self._cancel.check()
        self._tell(float(done), float(total), message)

    def cancelled(self) -> bool:
        """See BlockOut."""
        return self._cancel.cancelled


def run_block(
    method: BlockwiseMethod,
    inputs: Inputs,
    params: Any,
    place: BlockPlace,
    number: int,
    region: slice,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cancel: CancelToken,
    tell: Callable[[float, float, str], None] = lambda done, total, message: None,
) -> Mapping[str, Any]:
    """Compute and write one block; returns what it has for `end`.

    Raises:
        OutputError: it did not write all of its part of every array.
    """
    seed_everything(stream_seed(place.seed, f"block {number}"))
    out = _Block(place, number, region, device, dtype, cancel, tell)
    part = method.block(inputs, params, region, out)
    missing = [name for name in place.layouts if name not in out.writers]
    if missing:
        raise OutputError(f"block {region.start}:{region.stop} did not write {', '.join(map(repr, missing))}")
    for writer in out.writers.values():
        writer.flush()
    return {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in part.items()}
