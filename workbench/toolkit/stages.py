"""Several trainings in one run: one progress bar, one checkpoint, and after a kill none of them is done twice."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from workbench.method import Out

__all__ = ["Stages"]


class Stages:
    """The trainings of a run, one after another. A checkpoint holds what the finished ones left and the state of the present one.

        stages = Stages(out, 2)
        for name in ("first", "second"):
            if stages.result(name) is None:
                fit(model, ..., out=stages.begin(name), name=name)
                stages.finish(name, {"state": model.state_dict()})

    Args:
        out: the run's `Out`; its checkpoint is read here, once.
        count: number of trainings there will be, for progress.
        checkpoint_seconds: least time between two checkpoints of finished trainings; 0 takes one after each. It spares slow
            stores where trainings are short; a killed run does what was finished since the last one again.
    """

    def __init__(self, out: Out, count: int, *, checkpoint_seconds: float = 0.0) -> None:
        self._out, self._count, self._seconds = out, max(count, 1), checkpoint_seconds
        self._saved = time.monotonic()
        state = out.restore() or {}
        self._finished: dict[str, dict[str, Any]] = dict(state.get("finished", {}))
        self._name, self._current = state.get("name"), state.get("current")
        self.done = len(self._finished)
        """Trainings finished or passed over, for progress; set it where fewer were needed than planned."""

    @property
    def results(self) -> Mapping[str, dict[str, Any]]:
        """What every finished training left, by name."""
        return self._finished

    def result(self, name: str) -> dict[str, Any] | None:
        """What the training of this name left, also in an earlier life of the run; None before it is finished."""
        return self._finished.get(name)

    def begin(self, name: str, *, series: Collection[str] | None = None) -> Out:
        """What to hand to `fit` as its `out`: progress is one part of the whole, checkpoints hold the finished trainings too.

        Args:
            name: of the training, as `fit` is told it.
            series: what of it to log, e.g. `("loss",)`; None: all that `fit` logs.
        """
        return cast("Out", _Stage(self, name, series))

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep what a training left (nested dicts and lists of tensors, arrays, numbers, strings) and take a checkpoint."""
        self._finished[name] = dict(result)
        self._name = self._current = None
        self.done += 1
        if time.monotonic() - self._saved >= self._seconds:
            self._checkpoint(None, None)

    def _checkpoint(self, name: str | None, current: Mapping[str, Any] | None) -> None:
        kept = None if current is None else dict(current)
        self._out.checkpoint({"finished": self._finished, "name": name, "current": kept})
        self._saved = time.monotonic()


class _Stage:
    """The part of `Out` that `fit` uses, for one training."""

    def __init__(self, stages: Stages, name: str, series: Collection[str] | None) -> None:
        self._stages, self._name, self._series = stages, name, series

    def progress(self, done: float, total: float, message: str = "") -> None:
        whole = self._stages
        whole._out.progress(whole.done + done / total, whole._count, message)

    def log(self, step: int, **values: float) -> None:
        if self._series is not None:
            values = {key: value for key, value in values.items() if key.removeprefix(f"{self._name}_") in self._series}
        self._stages._out.log(step, **values)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        self._stages._checkpoint(self._name, state)

    def restore(self) -> dict[str, Any] | None:
        whole = self._stages
        return whole._current if whole._name == self._name else None
