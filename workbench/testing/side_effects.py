"""Rules on what a run leaves behind in the process, on the disk, on the screen and in its inputs: nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from workbench.testing.trial import Trial, first_line

__all__ = ["RULES_OF_SIDE_EFFECTS"]


def _global_state(trial: Trial) -> Iterator[str]:
    # The second run: in the first one, libraries that were imported on the way may have set things up.
    seen = trial.again.seen if trial.again.run is not None else trial.first.seen
    for name, (before, after) in seen.changed.items():
        if isinstance(before, dict):
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            yield f"it changes {name}: {', '.join(map(str, changed[:5]))}"
        elif name == "threads":
            if left := sorted(set(after) - set(before)):
                yield f"it leaves threads behind: {', '.join(left)}"
        else:
            yield f"it changes {name} from {before} to {after}"


def _files(trial: Trial) -> Iterator[str]:
    written = [text for text in trial.first.seen.files if not text.startswith("read ")]
    for text in dict.fromkeys(written + trial.again.seen.files):
        yield f"it opens a file: {text}"


def _printing(trial: Trial) -> Iterator[str]:
    for attempt in (trial.first, trial.again):
        if attempt.seen.printed.strip():
            yield f"it prints: {first_line(attempt.seen.printed)}"
            return


def _network(trial: Trial) -> Iterator[str]:
    for text in dict.fromkeys(trial.first.seen.network + trial.again.seen.network):
        yield f"it uses the network: {text}"


def _inputs_untouched(trial: Trial) -> Iterator[str]:
    from workbench.subjects import dataset_digest

    assert trial.completed
    for name in trial.data_roles():
        if dataset_digest(trial.handed_over[name]) != dataset_digest(trial.inputs[name]):
            yield f"it changes the values of {name!r}"


RULES_OF_SIDE_EFFECTS: Mapping[str, Callable[[Trial], Iterator[str]]] = {
    "global_state": _global_state,
    "files": _files,
    "printing": _printing,
    "network": _network,
    "inputs_untouched": _inputs_untouched,
}
"""Rule -> what a trial shows against it."""
