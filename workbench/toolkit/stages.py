"""Several trainings in one run: one progress bar, one checkpoint, and after a kill none of them is done twice."""

from __future__ import annotations

from collections.abc import Mapping
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
    """

    def __init__(self, out: Out, count: int) -> None:
        self._out, self._count = out, max(count, 1)
        state = out.restore() or {}
        self._finished: dict[str, dict[str, Any]] = dict(state.get("finished", {}))
        self._name, self._current = state.get("name"), state.get("current")

    def result(self, name: str) -> dict[str, Any] | None:
        """What the training of this name left, also in an earlier life of the run; None before it is finished."""
        return self._finished.get(name)

    def begin(self, name: str) -> Out:
        """What to hand to `fit` as its `out`: progress is one part of the whole, checkpoints hold the finished trainings too."""
        return cast("Out", _Stage(self, name))

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep what a training left (nested dicts and lists of tensors, arrays, numbers, strings) and take a checkpoint."""
        self._finished[name] = dict(result)
        self._name = self._current = None
        self._out.checkpoint({"finished": self._finished, "name": None, "current": None})


class _Stage:
    """The part of `Out` that `fit` uses, for one training."""

    def __init__(self, stages: Stages, name: str) -> None:
        self._stages, self._name = stages, name

    def progress(self, done: float, total: float, message: str = "") -> None:
        whole = self._stages
        whole._out.progress(len(whole._finished) + done / total, whole._count, message)

    def log(self, step: int, **values: float) -> None:
        self._stages._out.log(step, **values)

    def checkpoint(self, state: Mapping[str, Any]) -> None:
        whole = self._stages
        whole._out.checkpoint({"finished": whole._finished, "name": self._name, "current": dict(state)})

    def restore(self) -> dict[str, Any] | None:
        whole = self._stages
        return whole._current if whole._name == self._name else None
