"""One life of a run, whoever executes it: begin, beat, compute, report, complete; or fail, cancel, skip without a trace.

    running -> complete | failed | cancelled          a killed process leaves `running`, which later reads as interrupted

Nothing of a run counts before `complete`, which is one atomic step of the store.
"""

from __future__ import annotations

import copy
import math
import os
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import CancelledError, RunFailedError, SkippedError, StoreError
from workbench.execution.checkpoint import CHECKPOINT
from workbench.execution.device import precision_dtype, resolve_device
from workbench.execution.inputs import Resolved
from workbench.execution.progress import CancelToken, NoProgress, Progress, Throttle
from workbench.execution.provenance import PeakMemory, project_commit, provenance
from workbench.execution.turn import Turn, warnings_of_this_thread
from workbench.host import Host
from workbench.method import Inputs, Method
from workbench.record import Failure, RunRecord, new_run_id, now
from workbench.store import RunWriter, Store, StoredRun
from workbench.store.store import current_user
from workbench.store.writer import run_folder

if TYPE_CHECKING:
    import torch

    from workbench.execution.blockwise import BlockSharing

__all__ = ["Job", "execute", "handed_over"]

HEARTBEAT = 10.0
"""Seconds between signs of life of a running run; well below `record.STALE_AFTER`."""
NOTIFY = 0.25
"""Least seconds between two progress notifications."""


@dataclass(frozen=True)
class Job:
    """All that decides a run: what to compute, on what, from which random numbers."""

    method: type[Method]
    params: Any
    inputs: Mapping[str, Resolved]
    seed: int
    precision: str
    code: str | None
    key: str | None
    device: str | torch.device | None = None
    study: str | None = None
    user: str | None = None
    """Who asked for it; None: whoever this process belongs to."""


def execute(
    job: Job,
    store: Store,
    host: Host,
    *,
    progress: Progress | None = None,
    cancel: CancelToken | None = None,
    background: bool = False,
    on_begin: Callable[[str], object] | None = None,
    sharing: BlockSharing | None = None,
) -> StoredRun:
    """Compute a job and store it.

    Args:
        job: what to compute.
        store: where to.
        host: whose plugins hear of it.
        progress: shows how far it is.
        cancel: stops it from another thread.
        background: it shares the process with whoever works in the foreground (see `workbench.execution.turn`).
        on_begin: called with the run's id as soon as it has one.
        sharing: has blocks of a blockwise method computed elsewhere.

    Returns:
        The complete run.

    Raises:
        SkippedError: the method declined; nothing is stored.
        CancelledError: somebody asked to stop (or pressed Ctrl-C); the run is kept with status `cancelled`.
        RunFailedError: the method raised; the run is kept with status `failed` and the traceback.
        StoreError: the store cannot be written.
    """
    progress, cancel = progress or NoProgress(), cancel or CancelToken()
    with Turn(background=background, poll=cancel.check) as turn:
        return _live(job, store, host, progress, cancel, turn, on_begin, sharing)


def _live(
    job: Job,
    store: Store,
    host: Host,
    progress: Progress,
    cancel: CancelToken,
    turn: Turn,
    on_begin: Callable[[str], object] | None,
    sharing: BlockSharing | None,
) -> StoredRun:
    device = resolve_device(job.device)
    memory = PeakMemory(device)
    owner = host.owner(job.method.id)
    facts = provenance(device, owner) | {"project": project_commit(os.getcwd())}
    record = _first_record(job, str(device), facts)
    writer = store.begin(record)
    if on_begin is not None:
        on_begin(record.id)
    host.notify("workbench_run_started", run_id=record.id, record=record.to_json())
    life = _Life(writer, memory, host, progress, turn)
    started = time.perf_counter()
    try:
        with life.beating(), _quietly(facts, turn.background), turn.random_numbers(job.seed):
            report, checkpointed = _compute(job, writer, store, life, cancel, device, turn, sharing)
        seconds = time.perf_counter() - started
        done = writer.complete(seconds=seconds, report=report, provenance=facts | {"memory": memory.summary()})
    except SkippedError as declined:
        writer.abandon()
        host.notify("workbench_run_skipped", run_id=record.id, reason=declined.reason)
        raise
    except BaseException as error:
        facts |= {"memory": memory.summary()}
        ending = _closed(error, job, writer, store, host, time.perf_counter() - started, facts)
        if ending is error:
            raise
        raise ending from error
    finally:
        progress.close()
    if checkpointed:
        with suppress(OSError, StoreError):  # the run is complete; a checkpoint left behind does no harm
            writer.backend.delete_object(f"{writer.folder}/{CHECKPOINT}")
    store.index.put(done)
    host.notify("workbench_run_finished", run_id=done.id, record=done.to_json())
    return StoredRun(store.backend, done, job.params)


def _first_record(job: Job, device: str, facts: Mapping[str, Any]) -> RunRecord:
    method, moment = job.method, now()
    paper = method.paper
    return RunRecord(
        id=new_run_id(method.id),
        key=job.key,
        method=method.id,
        method_title=method.title,
        method_version=method.version,
        method_code=job.code,
        params=job.params.model_dump(mode="json"),
        default_params=_defaults(method),
        inputs={name: resolved.record() for name, resolved in job.inputs.items()},
        seed=job.seed,
        precision=job.precision,
        status="running",
        user=job.user or current_user(),
        host=socket.gethostname(),
        pid=os.getpid(),
        started=moment,
        heartbeat=moment,
        device=device,
        study=job.study,
        paper=None if paper is None else {**vars(paper), "citation": paper.citation},
        provenance=dict(facts),
    )


def _defaults(method: type[Method]) -> dict[str, Any]:
    fields = method.Params.model_fields
    required = {name for name, info in fields.items() if info.is_required()}
    dumped = method.Params.model_construct().model_dump(mode="json", exclude=required)
    return {name: dumped[name] for name in fields if name in dumped}


def _compute(
    job: Job,
    writer: RunWriter,
    store: Store,
    life: _Life,
    cancel: CancelToken,
    device: torch.device,
    turn: Turn,
    sharing: BlockSharing | None,
) -> tuple[dict[str, Any], bool]:
    """The report of the finished method, and whether it left a checkpoint."""
    from workbench.execution.out import RunOut

    dtype = precision_dtype(job.precision)
    out = RunOut(
        job.method,
        writer,
        device=device,
        dtype=dtype,
        cancel=cancel,
        on_progress=life.on_progress,
        on_values=life.on_values,
        restorable=lambda: _checkpointed(store, job.key, writer.record.id),
        sharing=sharing,
        lent=turn.lent,
    )
    values = {name: handed_over(resolved, device, dtype) for name, resolved in job.inputs.items()}
    method = job.method()
    method.run(Inputs(values), job.params, out)
    out.finish()
    unfinished = writer.record.replace(arrays=writer.inventory())
    report = method.report(StoredRun(store.backend, unfinished, job.params))
    return report.to_json(), out.checkpointed


def handed_over(resolved: Resolved, device: torch.device, dtype: torch.dtype) -> Any:
    """A private copy of a model in eval mode on the device; data as they are."""
    import torch

    if resolved.kind == "data":
        return resolved.value
    model = copy.deepcopy(resolved.value).to(device).eval()
    return model.double() if dtype is torch.float64 else model


def _checkpointed(store: Store, key: str | None, running: str) -> str | None:
    """Folder of the newest unfinished run with this key that left a checkpoint."""
    if key is None:
        return None
    try:
        runs = store.runs_with_key(key)
    except StoreError:  # some cannot be read just now; a checkpoint saves work, and nothing depends on it
        return None
    for run in runs:
        folder = run_folder(run.record)
        ended = run.id != running and run.status in ("interrupted", "cancelled", "failed")
        if ended and store.backend.size(f"{folder}/{CHECKPOINT}") is not None:
            return folder
    return None


def _closed(
    error: BaseException,
    job: Job,
    writer: RunWriter,
    store: Store,
    host: Host,
    seconds: float,
    facts: dict[str, Any],
) -> BaseException:
    """Record how a run ended badly and return what to raise."""
    cancelled = isinstance(error, CancelledError | KeyboardInterrupt)
    text = "".join(traceback.format_exception(error))
    failure = vars(Failure(type(error).__name__, str(error), text))
    try:
        close = writer.cancel if cancelled else writer.fail
        record = close(seconds=seconds, failure=failure, provenance=facts)
    except (OSError, StoreError):
        record = writer.record  # not even the record fits: it reads as interrupted once its heartbeat is stale
    store.index.put(record)
    host.notify("workbench_run_failed", run_id=record.id, record=record.to_json())
    if cancelled:
        wrapped: BaseException = CancelledError(f"{job.method.id} was cancelled (kept as run {record.id})")
    elif isinstance(error, StoreError) or not isinstance(error, Exception):
        return error
    else:
        wrapped = RunFailedError(job.method.id, record.id, error)
    return wrapped


class _Life:
    """Signs of life of one run: heartbeat, progress to the record, to the bar and to plugins."""

    def __init__(self, writer: RunWriter, memory: PeakMemory, host: Host, progress: Progress, turn: Turn) -> None:
        self._writer, self._memory, self._host, self._progress, self._turn = writer, memory, host, progress, turn
        self._state: dict[str, Any] = {}
        self._notify: Callable[[float, float, str], None] = Throttle(self._tell, NOTIFY)

    def on_progress(self, done: float, total: float, message: str) -> None:
        self._state = self._state | {"done": done, "total": total, "message": message}
        self._progress.show(done, total, message)
        self._notify(done, total, message)
        self._turn.step_aside()

    def on_values(self, step: int, values: dict[str, float]) -> None:
        shown = {name: value if math.isfinite(value) else str(value) for name, value in values.items()}
        self._state = self._state | {"step": step, "values": shown}
        self._progress.values(step, values)

    def _tell(self, done: float, total: float, message: str) -> None:
        self._host.notify(
            "workbench_run_progressed", run_id=self._writer.record.id, done=done, total=total, message=message
        )

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat in the background for as long as the block runs."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT):
                self._memory.sample()
                # Whatever went wrong (a store out of reach shows when the run writes), the next beat may succeed; a
                # thread that ends here would make a live run read as interrupted.
                with suppress(Exception):
                    self._writer.update(progress=self._state)

        thread = threading.Thread(target=beat, name="workbench-heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


@contextmanager
def _quietly(facts: dict[str, Any], background: bool) -> Iterator[None]:
    """Keep warnings of libraries for the record instead of printing them in the user's face."""
    caught: list[Any] = []
    try:
        if background:
            with warnings_of_this_thread() as caught:
                yield
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("default")
                # The garbage collector tells of files and sockets of others, whenever it comes round.
                warnings.simplefilter("ignore", ResourceWarning)
                yield
    finally:
        texts = dict.fromkeys(
            item if isinstance(item, str) else f"{type(item.message).__name__}: {item.message}" for item in caught
        )
        if texts:
            facts["warnings"] = list(texts)[:50]
