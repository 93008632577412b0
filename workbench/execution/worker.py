"""What a dask worker does with an order: resolve the subjects, compute or find the run, and say what became of it.

Everything goes through `workbench.execution.request`, as in a notebook; a worker only differs in where progress goes and
where the wish to cancel comes from.
"""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workbench._version import __version__
from workbench.errors import PluginError, UnknownMethodError, WorkbenchError
from workbench.execution import inputs as preparation
from workbench.execution.code import method_code
from workbench.execution.lifecycle import Job
from workbench.execution.progress import CancelToken
from workbench.execution.request import Request, SharedSubjects, fulfil
from workbench.execution.shipping import Order, unpack
from workbench.execution.sources import StoreSources
from workbench.host import Host
from workbench.method import Method
from workbench.record import RunRecord
from workbench.store import Store

__all__ = ["Outcome", "cancel", "perform", "topic"]

KEPT_SUBJECTS = 4
"""Sets of subjects that a worker keeps for the next order of the same batch."""
INTERVAL = 0.25
"""Least seconds between two reports of progress of one run."""


@dataclass(frozen=True)
class Outcome:
    """What became of an order: the record of a complete run, or an error."""

    record: RunRecord | None
    served: bool = False
    error: BaseException | None = None
    worker: str = ""


def topic(client: str) -> str:
    """The dask topic on which workers tell a client about its runs."""
    return f"workbench-{client}"


def perform(order: Order, blobs: Mapping[str, bytes], client: str) -> Outcome:
    """Run an order. Errors are part of the outcome: a task that raises would be noise in everybody's log."""
    token = _tokens.begin(order.token)
    where = _address()
    tell = _Teller(order.token, client)
    try:
        token.check()
        method = _method(order, where)
        request = _request(order, method)
        store, host = _store(order.store), _host()
        job, check = _job(order, request, blobs, store, host)
        done, served = fulfil(
            request,
            job,
            store,
            host,
            progress=tell,
            cancel=token,
            background=True,
            on_begin=tell.began,
            check=check,
        )
        return Outcome(done.record, served, worker=where)
    except WorkbenchError as error:
        return Outcome(None, error=error, worker=where)
    except Exception as error:  # a bug, or a foreign library: told as it is, if it can travel
        return Outcome(None, error=_travelling(error), worker=where)
    finally:
        _tokens.end(order.token)


def _travelling(error: Exception) -> Exception:
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _address() -> str:
    from distributed import get_worker

    try:
        return f"{get_worker().address} ({socket.gethostname()})"
    except ValueError:
        return socket.gethostname()


# ------------------------------------------------------------------------------------------------- method and subjects


@functools.cache
def _host() -> Host:
    """The plugins of this worker."""
    return Host()


_stores: dict[str, Store] = {}


def _store(store: Store) -> Store:
    """One store object per place: its index and connections are used again by the next order."""
    return _stores.setdefault(store.url, store)


@functools.lru_cache(maxsize=32)
def _unpacked_class(blob: bytes) -> type[Method]:
    found: type[Method] = unpack(blob)
    return found


_verified: set[tuple[str, str]] = set()
"""Batches and methods whose code was compared: walking through the files takes longer than a small run."""


def _method(order: Order, where: str) -> type[Method]:
    """The method, in the version that was asked for.

    Raises:
        PluginError: this worker has no such method, or another version of it or of the workbench.
    """
    if order.workbench != __version__:
        raise PluginError(
            f"worker {where} has workbench {__version__}, this notebook has {order.workbench}; "
            f"install the same version there: pip install 'vision-workbench=={order.workbench}'"
        )
    if order.cls is not None:
        return _unpacked_class(order.cls)
    package, version = order.package
    try:
        method = _host().method(order.method)
    except (UnknownMethodError, PluginError) as error:
        raise PluginError(
            f"worker {where} lacks the package {package!r}, which offers {order.method} ({error}); "
            f"install it there: pip install '{package}=={version}'"
        ) from error
    owner = _host().owner(order.method)
    there = ("", "") if owner is None else (owner.distribution or owner.name, owner.version)
    if (there, method.version) != (order.package, order.version):
        raise PluginError(
            f"worker {where} has {' '.join(there)} with version {method.version} of {order.method}, this notebook has "
            f"{package} {version} with version {order.version}; install the same version on both"
        )
    if (order.batch, order.method) not in _verified and method_code(method) != order.code:
        raise PluginError(
            f"worker {where} has another text of the code behind {order.method} than this notebook; "
            "restart whichever was started before the last edit (client.restart() for workers)"
        )
    _verified.add((order.batch, order.method))
    return method


def _request(order: Order, method: type[Method]) -> Request:
    preparation.check_requirements(method)
    roles: dict[str, Any] = {**order.specs, **dict.fromkeys(order.contents)}
    return Request(
        method,
        roles,
        preparation.validate_params(method, order.params),
        order.seed,
        order.device,
        order.precision,
        order.force,
        order.wait,
        order.study,
        order.user,
    )


_subjects = SharedSubjects()


def _job(
    order: Order, request: Request, blobs: Mapping[str, bytes], store: Store, host: Host
) -> tuple[Job, Callable[[Job], None]]:
    return _subjects.prepare(
        (order.batch, order.method, *sorted(order.specs.items()), *sorted(order.contents.items())),
        request,
        StoreSources(store, host),
        given=lambda: {role: unpack(blobs[digest]) for role, digest in order.contents.items()},
        code=order.code,
    )


# ------------------------------------------------------------------------------------------------ progress and cancelling


class _Tokens:
    """Cancel tokens of the orders on this worker, and of those that were cancelled before they came."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: dict[str, CancelToken] = {}
        self._early: OrderedDict[str, None] = OrderedDict()

    def begin(self, name: str) -> CancelToken:
        with self._lock:
            token = self._tokens.setdefault(name, CancelToken())
            if name in self._early:
                token.cancel()
            return token

    def end(self, name: str) -> None:
        with self._lock:
            self._tokens.pop(name, None)

    def cancel(self, names: Sequence[str]) -> None:
        with self._lock:
            for name in names:
                if name in self._tokens:
                    self._tokens[name].cancel()
                self._early[name] = None
            while len(self._early) > 10_000:
                self._early.popitem(last=False)


_tokens = _Tokens()


def cancel(names: Sequence[str]) -> None:
    """Stop these orders, running or yet to come. Sent to every worker."""
    _tokens.cancel(names)


class _Teller:
    """Progress that goes to the client through dask's own event stream."""

    def __init__(self, order: str, client: str) -> None:
        self._order, self._topic = order, topic(client)
        self._last = 0.0
        self._state: dict[str, Any] = {}

    def began(self, run_id: str) -> None:
        """The run has an id."""
        self._send({"run_id": run_id})

    def show(self, done: float, total: float, message: str) -> None:
        """See Progress."""
        self._state |= {"done": done, "total": total, "message": message}
        self._sometimes()

    def values(self, step: int, values: dict[str, float]) -> None:
        """See Progress."""
        self._state |= {"step": step, "values": {**self._state.get("values", {}), **values}}
        self._sometimes()

    def close(self) -> None:
        """See Progress."""
        if self._state:
            self._send(self._state)

    def _sometimes(self) -> None:
        moment = time.monotonic()
        if moment - self._last >= INTERVAL:
            self._last = moment
            self._send(self._state)

    def _send(self, state: Mapping[str, Any]) -> None:
        from distributed import get_worker

        try:
            get_worker().log_event(self._topic, {"order": self._order, **state})
        except (ValueError, RuntimeError, OSError):
            return  # no worker here (a test), or its connection is gone: progress is a courtesy
