"""Every error a user of the workbench can meet, each with one clear sentence.

All of them derive from `WorkbenchError`, so `except WorkbenchError` catches what the workbench raises on purpose and
nothing else. The command line turns each into one line on stderr and the class's `exit_code`.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "CancelledError",
    "ClusterError",
    "ClusterLostError",
    "FormatVersionError",
    "InputError",
    "IntegrityError",
    "MissingDependencyError",
    "OutputError",
    "PluginError",
    "RunFailedError",
    "RunNotFoundError",
    "SkippedError",
    "StoreError",
    "UnknownMethodError",
    "WorkbenchError",
]


class WorkbenchError(Exception):
    """Base of all errors raised on purpose by the workbench."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors come back from workers as what they are, whatever their constructor takes.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(cls: type[WorkbenchError], args: tuple[Any, ...], state: dict[str, Any]) -> WorkbenchError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InputError(WorkbenchError, ValueError):
    """An argument is missing, unknown, of the wrong shape or out of range.

    `argument` names it, `expected` says what would have been right and `got` what came.
    """

    exit_code = 2

    def __init__(self, argument: str, *, expected: str, got: str, hint: str = "") -> None:
        self.argument, self.expected, self.got, self.hint = argument, expected, got, hint
        text = f"{argument}: expected {expected}, got {got}"
        super().__init__(f"{text}. {hint}" if hint else text)


class UnknownMethodError(WorkbenchError, LookupError):
    """No plugin offers a method of this id."""

    exit_code = 2


class MissingDependencyError(WorkbenchError, ImportError):
    """A method or loader needs an optional package; the message says how to get it."""

    exit_code = 3


class PluginError(WorkbenchError):
    """A plugin could not be loaded or breaks the contract."""

    exit_code = 3


class SkippedError(WorkbenchError):
    """A method declined to run on these inputs; `reason` says why. Nothing is stored."""

    exit_code = 4

    def __init__(self, method: str, reason: str) -> None:
        self.method, self.reason = method, reason
        super().__init__(f"{method} was skipped: {reason}")


class OutputError(WorkbenchError):
    """A method wrote something other than what it declared in `outputs`."""


class StoreError(WorkbenchError):
    """The store cannot be opened, read or written."""

    exit_code = 5


class FormatVersionError(StoreError):
    """The store was written by a newer version of the workbench."""


class IntegrityError(StoreError):
    """Stored data are damaged or missing; names run, array and region."""

    def __init__(self, run: str, array: str, region: str, problem: str) -> None:
        self.run, self.array, self.region, self.problem = run, array, region, problem
        super().__init__(f"run {run}, array {array!r}, region {region}: {problem}")


class RunNotFoundError(StoreError, LookupError):
    """No run of this id (or more than one of this abbreviation) is in the store."""

    exit_code = 2


class RunFailedError(WorkbenchError):
    """A method raised while it ran; the failed run, with its traceback, is kept under `run_id`."""

    def __init__(self, method: str, run_id: str, cause: BaseException) -> None:
        self.method, self.run_id = method, run_id
        super().__init__(f"{method} failed: {type(cause).__name__}: {cause} (recorded as run {run_id})")


class ClusterError(WorkbenchError):
    """Workers could not compute a run. What was complete is in the store."""


class ClusterLostError(ClusterError):
    """There is no connection to the scheduler. What was complete is in the store; connect and ask again for the rest."""


class CancelledError(WorkbenchError):
    """The run was cancelled on request; it is kept in the store with status `cancelled`."""

    exit_code = 130

    def __init__(self, message: str = "the run was cancelled") -> None:
        super().__init__(message)
