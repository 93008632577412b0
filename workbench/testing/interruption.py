"""Rules on being stopped: at once, and with the same result when the run goes on from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from workbench.errors import CancelledError
from workbench.testing.repetition import differences
from workbench.testing.trial import Trial, first_line

__all__ = ["RULES_OF_INTERRUPTION"]

PATIENCE = 2.0
"""Seconds of computing within which a method must ask whether it was cancelled."""


def _cancel(trial: Trial) -> Iterator[str]:
    if trial.first.asks == 0:
        yield "it reports no progress, so nobody can stop it"
        return
    longest = trial.first.longest
    if longest > PATIENCE:  # the second run decides: in the first one, libraries may have been imported on the way
        longest = min(longest, trial.again.longest)
    if longest > PATIENCE:
        yield f"it computed for {longest:.1f} s without asking whether it was cancelled"
    if not isinstance(trial.stopped.error, CancelledError):
        ended = "it completed" if trial.stopped.run is not None else first_line(trial.stopped.problem)
        yield f"cancelled half way, {ended}"


def _resume(trial: Trial) -> Iterator[str]:
    if trial.first.asks == 0 or trial.stopped.checkpoints == 0 or not isinstance(trial.stopped.error, CancelledError):
        return
    resumed = trial.attempt()
    if not resumed.restored:
        return
    if resumed.run is None:
        yield f"a run that was cancelled half way does not go on: {first_line(resumed.problem)}"
        return
    for difference in differences(trial, trial.first, resumed):
        yield f"a run that was cancelled half way and went on has another result: {difference}"


RULES_OF_INTERRUPTION: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    "cancel": _cancel,
    "resume": _resume,
}
"""Rule -> what a trial shows against it. They come last: what they leave in the store would be gone on from by other runs."""
