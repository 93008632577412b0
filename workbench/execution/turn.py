"""What a process has only once, and which run may use it: the global random generators and the filters of warnings.

Runs of one process compute one at a time. Whoever has the turn has torch's, numpy's and Python's global generators, seeded
with the seed of its run; what they were before is put back when the turn ends. A run in the foreground (`bench.run`) goes
first: one in the background (`bench.submit`) steps aside at its next report of progress, its generators are put away, and
it goes on with them afterwards. So both give the numbers they give alone.

The notebook itself takes no turns. A cell that draws from a *global* generator while a run computes in the background
shares it with that run; draw from generators of your own (`torch.Generator`, `numpy.random.default_rng`), or give the
bench a client: workers are processes, which share nothing.
"""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from workbench.execution.device import seed_everything

__all__ = ["Turn", "taken", "warnings_of_this_thread"]

LOOK = 0.1
"""Seconds between two looks whether a run that waits for its turn was cancelled."""

_CHANGED = threading.Condition()
_holders: list[Turn] = []
"""Whose turn it is: the last one. More than one only where a run starts another in the same thread."""
_foreground_waiting = 0


class Turn:
    """A claim on the process, as a context: entering waits until nobody else has it.

    Args:
        background: steps aside for those in the foreground.
        poll: called while it waits, ten times a second; may raise, e.g. because the run was cancelled.
    """

    def __init__(self, *, background: bool = False, poll: Callable[[], object] = lambda: None) -> None:
        self.background = background
        self._poll = poll
        self._thread = 0
        self._before: list[tuple[Callable[[Any], object], Any]] | None = None
        """The notebook's generators, while this turn has its own."""

    def __enter__(self) -> Turn:
        self._thread = threading.get_ident()
        self._acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    @contextmanager
    def random_numbers(self, seed: int) -> Iterator[None]:
        """The global generators seeded for this turn alone; what they were is put back afterwards."""
        self._before = _global_generators()
        seed_everything(seed)
        try:
            yield
        finally:
            _put_back(self._before)
            self._before = None

    def step_aside(self) -> None:
        """Let somebody in the foreground go first, if one waits. Called by the run's own thread where it can pause."""
        if not self.background or not _foreground_waiting or threading.get_ident() != self._thread:
            return
        if self not in _holders:  # it is lent already
            return
        mine = None if self._before is None else _global_generators()
        _put_back(self._before or [])
        self._release()
        try:
            self._acquire()
        except BaseException:
            self._acquire(patient=False)  # cancelled meanwhile: the run ends, and leaves as it would have
            raise
        finally:
            if mine is not None:
                self._before = _global_generators()
                _put_back(mine)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Leave the process to others for as long as the block runs, because this run only waits for somebody."""
        mine = None if self._before is None else _global_generators()
        _put_back(self._before or [])
        self._release()
        try:
            yield
        finally:
            self._acquire(patient=False)
            if mine is not None:
                self._before = _global_generators()
                _put_back(mine)

    def _acquire(self, *, patient: bool = True) -> None:
        global _foreground_waiting
        with _CHANGED:
            first = not self.background
            _foreground_waiting += first
            try:
                while not self._may_go():
                    _CHANGED.wait(LOOK)
                    if patient:
                        self._poll()
                _holders.append(self)
            finally:
                _foreground_waiting -= first

    def _may_go(self) -> bool:
        if _holders:
            return _holders[-1]._thread == self._thread
        return not (self.background and _foreground_waiting)

    def _release(self) -> None:
        with _CHANGED:
            _holders.remove(self)
            _CHANGED.notify_all()


def taken() -> bool:
    """Whether somebody else has the turn now, so that asking for it may take as long as that run goes without a pause."""
    with _CHANGED:
        return bool(_holders) and _holders[-1]._thread != threading.get_ident()


def _global_generators() -> list[tuple[Callable[[Any], object], Any]]:
    """State of every global generator, each with what sets it."""
    import numpy as np
    import torch

    # Libraries that a method calls may draw from them, the old ones of numpy included.
    found: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),  # noqa: NPY002
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    return found


def _put_back(states: list[tuple[Callable[[Any], object], Any]]) -> None:
    for put, state in states:
        put(state)


# ------------------------------------------------------------------------------------------------------------ warnings

_THREAD = threading.local()
_shown_before: Callable[..., Any] = warnings.showwarning
_listening = 0


def _show(*arguments: Any, **named: Any) -> None:
    """`warnings.showwarning` while something runs in the background: each thread's warnings to where they belong."""
    caught: list[str] | None = getattr(_THREAD, "caught", None)
    if caught is None:
        _shown_before(*arguments, **named)
    else:
        caught.append(f"{arguments[1].__name__}: {arguments[0]}")


@contextmanager
def warnings_of_this_thread() -> Iterator[list[str]]:
    """Texts of what this thread warns of inside the block.

    `warnings.catch_warnings` swaps filters of the whole process, so in a background thread it would swallow the warnings
    of the notebook's cells, and undo what they set. Here filters stay as they are.
    """
    global _shown_before, _listening
    with _CHANGED:
        _listening += 1
        if warnings.showwarning is not _show:
            _shown_before, warnings.showwarning = warnings.showwarning, _show
    _THREAD.caught = caught = list[str]()
    try:
        yield caught
    finally:
        _THREAD.caught = None
        with _CHANGED:
            _listening -= 1
            if not _listening and warnings.showwarning is _show:
                warnings.showwarning = _shown_before
