"""Runs on a dask cluster: orders go out, handles tell what becomes of them. The client's side; see `worker` for the other.

A task is one run. dask gives it to another worker when its worker dies; what the dead one left reads as interrupted and
counts for nothing. When the scheduler or this process dies, what was complete is in the store and nothing else is needed
to go on: asking again computes only the rest.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from workbench.errors import CancelledError, ClusterError, ClusterLostError
from workbench.execution import messages
from workbench.execution import worker as remote
from workbench.execution.dask_log import quiet_dask
from workbench.execution.handle import Handle
from workbench.execution.shipping import Order

if TYPE_CHECKING:
    from workbench.record import RunRecord

__all__ = ["Cluster", "cluster_of"]

R = TypeVar("R")
KEPT_BLOBS = 8
TRIES = 4
"""How often an order is sent out when what it was to compute on dies with the workers that held it."""
CURRENT = 1.0
"""Seconds for which the list of workers is taken as it is; asking the scheduler costs as much as a small run."""
GATHER = 0.05
"""Seconds in which wishes to stop are gathered: a sweep that is cancelled tells all workers once, not once for each run."""
AGAIN = 2.0
"""Seconds after which workers are told once more of a run that still goes on: one that came meanwhile has not heard it."""
PATIENCE = 5.0
"""Seconds for which a worker is waited for that was there a moment ago."""
NO_WORKER = "waiting for a worker, the cluster has none"
KEPT_MESSAGES = 10
"""Of those sent to the scheduler, see `_forget_messages`."""
WAITING, BLOCK = 1 / 1024, 3 / 4
"""Parts of a GPU: a run that shares out its blocks must be where a GPU is, but only waits; no two blocks share one."""


@dataclass
class _Sent(Generic[R]):
    """An order on its way, with all that is needed to send it again."""

    order: Order
    blobs: Mapping[str, bytes]
    handle: Handle[R]
    wrap: Callable[[RunRecord, bool], R]
    tries: int = 0


class Cluster:
    """A dask client, seen as a place to run methods. Made by `cluster_of`."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._handles: weakref.WeakValueDictionary[str, Handle[Any]] = weakref.WeakValueDictionary()
        self._spread: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        """Of the handles; taken by the client's event loop too, so nothing that waits for the loop is done under it."""
        self._spreading = threading.Lock()
        self._seen: tuple[float, Mapping[str, Any]] = (float("-inf"), {})
        self._missing = ""
        """What no order can begin without: `NO_WORKER`, or nothing as far as is known."""
        self._unwanted: list[str] = []
        """Tokens of orders that workers are to be told to stop."""
        _forget_messages(client)
        quiet_dask()
        try:
            client.subscribe_topic(messages.topic(client.id), self._told)
        except Exception as error:
            raise ClusterLostError(f"the cluster cannot be reached: {error}") from error

    @property
    def dashboard(self) -> str:
        """Address of dask's dashboard."""
        return str(self.client.dashboard_link or "")

    @property
    def threads(self) -> int:
        """How many runs can compute at once: one thread of each worker (runs of one process take turns)."""
        return max(1, len(self._workers()))

    def _check(self) -> None:
        """Raise ClusterLostError if there is no connection: dask would keep an order until there is one, maybe for ever."""
        if self.client.status != "running":
            raise ClusterLostError(f"the cluster cannot be reached: the client is {self.client.status}")

    def _workers(self) -> Mapping[str, Any]:
        self._check()
        moment = time.monotonic()
        if moment - self._seen[0] > CURRENT:
            self._seen = (moment, dict(self.client.scheduler_info(n_workers=-1)["workers"]))
            self._missing = "" if self._seen[1] else NO_WORKER
        return self._seen[1]

    def _resources(self, device: str | None) -> dict[str, float] | None:
        """A GPU for what computes on one: asked for by name, or because the cluster has some and nothing was asked."""
        if device is not None and not device.startswith("cuda"):
            return None
        return {"GPU": 1} if any(info.get("resources", {}).get("GPU") for info in self._workers().values()) else None

    # --- running ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        order: Order,
        blobs: Mapping[str, bytes],
        wrap: Callable[[RunRecord, bool], R],
    ) -> Handle[R]:
        """Send an order out.

        Args:
            order: what to run.
            blobs: packed subjects by digest.
            wrap: makes what `handle.result()` returns, from a run's record and whether it came from the store.

        Raises:
            ClusterLostError: there is no connection to the scheduler.
        """
        handle: Handle[R] = Handle(order.method)
        with self._lock:
            self._handles[order.token] = handle
        self._send(_Sent(order, blobs, handle, wrap))
        return handle

    def _send(self, sent: _Sent[R]) -> None:
        order, handle = sent.order, sent.handle
        sent.tries += 1
        method, title = order.key
        self._check()
        try:
            if not self._workers():  # dask keeps the order until there is one
                handle.held_up(lambda: self._missing)
            shared = {digest: self._placed(digest, blob) for digest, blob in sent.blobs.items()}
            resources = self._resources(order.device)
            blocks = {"GPU": BLOCK} if order.blockwise and resources else None
            future = self.client.submit(
                remote.perform_packed, remote.sealed(order), shared, self.client.id, blocks,
                # dask would answer a task of a known name with what became of it the first time
                key=(method, title if sent.tries == 1 else f"{title} · {sent.tries}"),
                pure=False, resources={"GPU": WAITING} if blocks else resources,
            )  # fmt: skip
        except Exception as error:
            raise ClusterLostError(f"the cluster cannot be reached: {error}") from error
        # The closures keep handle and future alive for as long as dask remembers the task.
        handle._stop = lambda: self._stop(order, handle, future)
        if handle._asked_to_stop:  # while it was sent again
            handle._stop()
        future.add_done_callback(lambda done: self._ended(sent, done))

    def _placed(self, digest: str, blob: bytes) -> Any:
        if len(blob) <= remote.SMALL:
            return blob
        with self._spreading:
            future = self._spread.get(digest)
            if future is None or future.status in ("cancelled", "lost", "error"):
                # Every worker gets it, because any may be asked.
                future = self._scattered(digest, blob) if self._workers() else self._deposited(digest, blob)
                self._spread[digest] = future
                while len(self._spread) > KEPT_BLOBS:
                    self._spread.popitem(last=False)
            return future

    def _scattered(self, digest: str, blob: bytes) -> Any:
        try:  # straight to the workers, past the scheduler
            return self.client.scatter(blob, broadcast=True, hash=False, direct=True, timeout=PATIENCE)
        except TimeoutError:  # they are gone, or have no room now
            return self._deposited(digest, blob)
        except OSError:  # this process cannot reach them, as on some clusters
            return self.client.scatter(blob, broadcast=True, hash=False, direct=False)

    def _deposited(self, digest: str, blob: bytes) -> Any:
        """Left with the scheduler, which gives it to the first worker that comes, and starts some where it can.

        To scatter is to wait for a worker, and nobody could cancel that.
        """
        import dask

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1TB"}):  # it is known to be large
            return self.client.submit(
                bytes, blob, key=("subjects", f"{digest[:12]} · {uuid.uuid4().hex[:8]}"), pure=False
            )

    def _ended(self, sent: _Sent[R], future: Any) -> None:
        handle, wrap = sent.handle, sent.wrap
        try:
            if self._died_with_its_subjects(sent, future):
                self._send(sent)
                return
            if future.status == "finished":
                outcome = future.result()
                if outcome.record is not None:
                    handle.ended(wrap(outcome.record, outcome.served), run_id=outcome.record.id)
                else:
                    handle.ended(error=outcome.error, run_id=getattr(outcome.error, "run_id", None))
            else:
                handle.ended(error=self._lost(handle, future))
        except ClusterLostError as error:
            handle.ended(error=error)
        except BaseException as error:
            handle.ended(error=ClusterError(f"{handle.title}: the result did not arrive ({error})"))
        if handle.done():
            handle._stop = lambda: None

    def _died_with_its_subjects(self, sent: _Sent[Any], future: Any) -> bool:
        """Whether dask forgot a task because every worker that held a subject of it died: then both are sent anew."""
        gone = future.status in ("cancelled", "lost") and self.client.status == "running"
        return gone and bool(sent.blobs) and not sent.handle._asked_to_stop and sent.tries < TRIES

    def _lost(self, handle: Handle[Any], future: Any) -> BaseException:
        """Why dask gave up on a task."""
        if handle._asked_to_stop:
            return CancelledError(f"{handle.title} was cancelled")
        if future.status in ("cancelled", "lost"):
            return ClusterLostError(
                "the connection to the scheduler was lost. What was complete is in the store; connect to a cluster and ask "
                "again for the rest"
            )
        error = future.exception()
        if type(error).__name__ == "KilledWorker":
            return ClusterError(
                f"{handle.title} was given up because every worker that computed it died, most likely for want of memory "
                f"(dask: {error}). Give workers more memory, fewer threads, or the method smaller batches"
            )
        return ClusterError(
            f"{handle.title} could not be run on a worker: {type(error).__name__}: {error}. "
            "Do the workers have the workbench installed?"
        )

    # --- progress and cancelling ------------------------------------------------------------------------------------

    def _told(self, event: Any) -> None:
        message = event[-1] if isinstance(event, tuple | list) else event
        with self._lock:
            handle = self._handles.get(message.get("order", ""))
        if handle is None:
            return
        if "run_id" in message:
            self._missing = ""
            handle.began(message["run_id"])
            if handle._asked_to_stop:  # it began anew on a worker that came after it was cancelled
                self._unwant(message["order"])
        if "total" in message:
            handle.progressed(message["done"], message["total"], message["message"])
        if "values" in message:
            handle.logged(message["step"], message["values"])

    def _stop(self, order: Order, handle: Handle[Any], future: Any) -> None:
        if handle.status == "pending":
            future.cancel()
            handle.ended(error=CancelledError(f"{order.method} was cancelled before it began"))
        self._unwant(order.token)

    def _unwant(self, token: str) -> None:
        """Tell whichever worker has it, or is about to begin it. Not waited for: a busy worker answers late."""
        with self._lock:
            first = not self._unwanted
            self._unwanted.append(token)
        if first:
            threading.Thread(target=self._tell_workers, name="workbench-cancel", daemon=True).start()

    def _tell_workers(self) -> None:
        time.sleep(GATHER)
        with self._lock:
            tokens, self._unwanted = self._unwanted, []
        with contextlib.suppress(Exception):  # a worker or the scheduler is just dying; whether it is gone shows below
            self.client.run(messages.cancel, tokens, on_error="ignore")
        time.sleep(AGAIN)
        for token in tokens:
            handle = self._handles.get(token)
            if handle is not None and not handle.done() and self.client.status == "running":
                self._unwant(token)


_CLUSTERS: weakref.WeakValueDictionary[str, Cluster] = weakref.WeakValueDictionary()
"""By the client's id. The client keeps its cluster (it calls it with progress), the cluster its client, and nobody else both."""


def cluster_of(client: Any) -> Cluster:
    """The cluster behind a client; one per client, gone with it."""
    found = _CLUSTERS.get(client.id)
    if found is None:
        found = _CLUSTERS[client.id] = Cluster(client)
    return found


def _forget_messages(client: Any) -> None:
    """Let dask's client keep few of the messages that it sent, instead of the last thousand.

    They are kept for those who debug dask itself, with the orders in them: up to 64 kB for each run.
    """
    batches: Any = getattr(client, "scheduler_comm", None)
    if isinstance(kept := getattr(batches, "recent_message_log", None), deque):
        batches.recent_message_log = deque(kept, maxlen=min(kept.maxlen or KEPT_MESSAGES, KEPT_MESSAGES))
