"""What somebody asks for, from keyword arguments to a stored run: the same steps for every way of running it.

ask      sorts the arguments; costs nothing and refuses what is wrong on its face
prepare  loads and identifies the subjects: now the run has a key
fulfil   returns the run from the store, or computes it
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.execution import inputs as preparation
from workbench.execution.code import method_code
from workbench.execution.device import PRECISIONS
from workbench.execution.inputs import Resolved, Sources
from workbench.execution.lifecycle import Job, execute
from workbench.execution.progress import CancelToken, Progress
from workbench.host import Host
from workbench.method import Method, ModelRole
from workbench.record import check_study, run_key
from workbench.store import Store, StoredRun

if TYPE_CHECKING:
    import torch

    from workbench.execution.blockwise import BlockSharing

__all__ = [
    "Request",
    "SharedSubjects",
    "Waiting",
    "ask",
    "fulfil",
    "named_models",
    "owned",
    "prepare",
    "stored_already",
]

SEED_LIMIT = 2**63


@dataclass(frozen=True)
class Request:
    """A method and what to run it on. Names and parameters are known to be right, subjects are as they were given."""

    method: type[Method]
    roles: Mapping[str, Any]
    params: Any
    seed: int
    device: str | torch.device | None
    precision: str
    force: bool
    wait: float
    study: str | None
    user: str | None = None
    """Who asks; None: whoever this process belongs to."""


def ask(
    method: type[Method],
    arguments: Mapping[str, Any],
    *,
    seed: int,
    device: str | torch.device | None,
    precision: str,
    force: bool,
    wait: float,
    study: str | None,
) -> Request:
    """A request from what `bench.run` takes.

    Raises:
        InputError, MissingDependencyError: before any work starts.
    """
    roles, params = preparation.sort_arguments(method, arguments)
    validated = preparation.validate_params(method, params)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise InputError("seed", expected=f"an integer in 0..{SEED_LIMIT - 1}", got=repr(seed))
    if precision not in PRECISIONS:
        raise InputError("precision", expected=f"one of {', '.join(PRECISIONS)}", got=repr(precision))
    if study is not None:
        check_study(study)
    preparation.check_requirements(method)
    return Request(method, roles, validated, seed, device, precision, force, wait, study)


def prepare(
    request: Request, sources: Sources, *, resolved: Mapping[str, Resolved] | None = None, code: str | None = None
) -> Job:
    """Load and identify the subjects.

    Args:
        request: what is asked for.
        sources: where subjects named in text come from.
        resolved: subjects that were identified before, by role.
        code: digest of the method's code where it was told before; else it is taken here.

    Raises:
        InputError: a subject that is none, an unknown name, a missing file.
    """
    resolved = resolved or {}
    method, roles = request.method, {name: item for name, item in request.roles.items() if name not in resolved}
    found = preparation.resolve(method, roles, sources, known=resolved)
    code = method_code(method) if code is None else code
    known = {name: item.digest for name, item in found.items() if item.digest is not None}
    key = None
    if len(known) == len(found):
        key = run_key(
            method=method.id,
            version=method.version,
            code=code,
            params=request.params.model_dump(mode="json"),
            inputs=known,
            seed=request.seed,
            precision=request.precision,
        )
    return Job(
        method,
        request.params,
        found,
        request.seed,
        request.precision,
        code,
        key,
        request.device,
        request.study,
        request.user,
    )


def stored_already(
    request: Request, job: Job, store: Store, poll: Callable[[StoredRun], object] | None = None
) -> StoredRun | None:
    """The same run from the store, after waiting for somebody who computes it; without `poll`, only if it is there now."""
    if job.key is None or request.force:
        return None
    found = store.find(job.key) if poll is None else store.wait_for(job.key, request.wait, poll)
    # A store that is only published for reading hands its runs out all the same.
    if found is not None and request.study not in (None, found.record.study) and store.backend.writable:
        store.annotations.of(found.id).join(request.study)
    return found


def fulfil(
    request: Request,
    job: Job,
    store: Store,
    host: Host,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    background: bool = False,
    on_begin: Callable[[str], object] | None = None,
    check: Callable[[Job], object] | None = None,
    sharing: BlockSharing | None = None,
) -> tuple[StoredRun, bool]:
    """The run, and whether it came from the store. `check` is called instead of checking the subjects; else as `execute`.

    Raises:
        InputError: the subjects do not fit the method.
        SkippedError, CancelledError, RunFailedError, StoreError: see `workbench.execution.lifecycle.execute`.
    """
    poll = Waiting(progress is not None and not background, cancel)
    if (found := stored_already(request, job, store, poll)) is not None:
        return found, True
    if check is not None:
        check(job)
    else:
        preparation.check(job.method, job.inputs)
    done = execute(
        job,
        store,
        host,
        progress=progress,
        cancel=cancel,
        background=background,
        on_begin=on_begin,
        sharing=sharing,
    )
    return done, False


class SharedSubjects:
    """Subjects that several requests have in common: each set is loaded, identified and checked once.

    For requests of one sweep. Between sweeps a file may change, so there is no cache for longer than that.
    """

    def __init__(self, kept: int = 4) -> None:
        self._kept, self._lock = kept, threading.Lock()
        self._sets: OrderedDict[Hashable, tuple[Mapping[str, Resolved], set[str]]] = OrderedDict()

    def prepare(
        self,
        identity: Hashable,
        request: Request,
        sources: Sources,
        *,
        given: Callable[[], Mapping[str, Resolved]] = dict,
        code: str | None = None,
        own: bool = False,
    ) -> tuple[Job, Callable[[Job], None]]:
        """The job, and what checks its subjects the first time that something is computed from them.

        Args:
            identity: equal for requests with the same method and subjects.
            request: what is asked for.
            sources: see `prepare`.
            given: makes the subjects that were identified before, by role.
            code: see `prepare`.
            own: copy what lies in the caller's memory, because the caller may change it before it is computed on.
        """
        with self._lock:
            known = self._sets.get(identity)
        job = prepare(request, sources, resolved=given() if known is None else known[0], code=code)
        if known is None:
            if own:
                copies = {name: _owned(item, request.roles[name]) for name, item in job.inputs.items()}
                job = replace(job, inputs=copies)
            known = (job.inputs, set())
            with self._lock:
                self._sets[identity] = known
                while len(self._sets) > self._kept:
                    self._sets.popitem(last=False)
        done = known[1]

        def check(job: Job) -> None:
            if not done:
                preparation.check(job.method, job.inputs)
                done.add("checked")

        return job, check


def owned(request: Request, sources: Sources, names: set[str]) -> dict[str, Resolved]:
    """Subjects of these roles, loaded and identified, with copies of what lies in the caller's memory."""
    roles = {name: item for name, item in request.roles.items() if name in names}
    found = preparation.resolve(request.method, roles, sources)
    return {name: _owned(item, roles[name]) for name, item in found.items()}


def named_models(request: Request) -> set[str]:
    """Roles whose models are still to be built: they were given as names, paths or runs."""
    return {
        name
        for name, item in request.roles.items()
        if isinstance(request.method.inputs[name], ModelRole)
        and (isinstance(item, str) or preparation.run_reference(item) is not None)
    }


def _owned(subject: Resolved, given: Any) -> Resolved:
    """A subject that nobody else can change: a copy of arrays and models in memory; what is read lazily stays as it is."""
    import copy

    import numpy as np

    if isinstance(given, str) or preparation.run_reference(given) is not None:
        return subject
    if subject.kind == "model":
        return replace(subject, value=copy.deepcopy(subject.value))
    dataset = subject.value
    held = {name: array for name, array in dataset.data_vars.items() if isinstance(array.variable._data, np.ndarray)}
    return replace(subject, value=dataset.assign({name: array.copy(deep=True) for name, array in held.items()}))


class Waiting:
    """Says whose run is waited for, and stops when asked to."""

    def __init__(self, shown: bool, cancel: CancelToken | None) -> None:
        self._shown, self._cancel, self._told = shown, cancel, False

    def __call__(self, other: StoredRun) -> None:
        """The other run is still going."""
        if self._cancel is not None:
            self._cancel.check()
        if not self._told and self._shown:
            record = other.record
            print(f"waiting for the same run by {record.user} on {record.host} ({record.id})", file=sys.stderr)
        self._told = True
