"""What a dask worker does with an order: resolve the subjects, compute or find the run, and say what became of it.

Everything goes through `workbench.execution.request`, as in a notebook; a worker only differs in where progress goes and
where the wish to cancel comes from.
"""

from __future__ import annotations

import functools
import queue
import socket
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench._version import __version__
from workbench.errors import PluginError, UnknownMethodError, WorkbenchError
from workbench.execution import inputs as preparation
from workbench.execution import messages
from workbench.execution.blockwise import BlockPlace, run_block
from workbench.execution.code import method_code
from workbench.execution.device import precision_dtype, resolve_device
from workbench.execution.heap import settle_heap
from workbench.execution.lifecycle import Job, handed_over
from workbench.execution.local_reads import read_here, reading_here
from workbench.execution.progress import CancelToken
from workbench.execution.request import Request, SharedSubjects, fulfil
from workbench.execution.shipping import Order, unpack
from workbench.execution.sources import StoreSources
from workbench.execution.turn import Turn, warnings_of_this_thread
from workbench.host import Host
from workbench.method import BlockwiseMethod, Inputs, Method
from workbench.record import RunRecord
from workbench.store import Store

__all__ = ["SMALL", "Outcome", "compute_block", "perform", "perform_packed", "sealed"]

SMALL = 64 * 1024
"""Bytes of packed subjects that travel with their order; larger ones are given to every worker once."""
KEPT_INPUTS = 2
LOOK = 0.1
"""Seconds between two looks whether a run that waits for its blocks was cancelled."""


@dataclass(frozen=True)
class Outcome:
    """What became of an order: the record of a complete run, or an error."""

    record: RunRecord | None
    served: bool = False
    error: BaseException | None = None
    worker: str = ""


def sealed(order: Order) -> bytes:
    """An order as bytes that only its worker opens.

    dask's scheduler makes objects of what it passes on, and to make a store is to look into it: the scheduler may have neither
    the store nor the workbench.
    """
    from distributed.protocol import pickle

    dumps: Callable[[Order], bytes] = pickle.dumps
    return dumps(order)


def _opened(order: bytes) -> Order:
    import pickle  # not dask's, which writes what it cannot open into the log of the worker, secrets of the store included

    found: Order = pickle.loads(order)
    return found


def perform_packed(
    order: bytes, blobs: Mapping[str, bytes], client: str, resources: Mapping[str, float] | None = None
) -> Outcome:
    """`perform` for an order that was `sealed`."""
    try:
        opened = _opened(order)
    except WorkbenchError as error:  # the store, which cannot be opened from here
        return Outcome(None, error=error, worker=_address())
    return perform(opened, blobs, client, resources)


@reading_here()
def perform(
    order: Order, blobs: Mapping[str, bytes], client: str, resources: Mapping[str, float] | None = None
) -> Outcome:
    """Run an order; `resources` are what each of its blocks needs, if it has blocks.

    Errors are part of the outcome: a task that raises would be noise in everybody's log.
    """
    _settle()
    token = messages.TOKENS.begin(order.token)
    where = _address()
    tell = messages.Teller(order.token, client)
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
            sharing=DaskBlocks(order, blobs, resources) if order.blockwise else None,
        )
        return Outcome(done.record, served, worker=where)
    except WorkbenchError as error:
        return Outcome(None, error=error, worker=where)
    except Exception as error:  # a bug, or a foreign library: told as it is, if it can travel
        return Outcome(None, error=_travelling(error), worker=where)
    finally:
        messages.TOKENS.end(order.token)


_settle = functools.cache(settle_heap)
"""Once per process, whoever started it: the workers of a cluster of the team's own are as slow without."""


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
            f"worker {where} has workbench {__version__}, you have {order.workbench}; "
            f"install the same version there: pip install 'vision-workbench=={order.workbench}'"
        )
    if order.cls is not None:
        return _unpacked(order, order.cls, where)
    package, version = order.package
    try:
        method = _host().method(order.method)
    except (UnknownMethodError, PluginError) as error:
        out_of_order = [one for one in _host().plugins if one.distribution == package and one.state != "loaded"]
        if out_of_order:
            reasons = "; ".join(f"plugin {one.name} {one.state}: {one.reason}" for one in out_of_order)
            raise PluginError(
                f"worker {where} has {package} {version}, but not its {order.method} ({reasons})"
            ) from error
        raise PluginError(
            f"worker {where} lacks the package {package!r}, which offers {order.method} ({error}); "
            f"install it there: pip install '{package}=={version}'"
        ) from error
    owner = _host().owner(order.method)
    there = ("", "") if owner is None else (owner.distribution or owner.name, owner.version)
    if (there, method.version) != (order.package, order.version):
        raise PluginError(
            f"worker {where} has {' '.join(there)} with version {method.version} of {order.method}, you have "
            f"{package} {version} with version {order.version}; install the same version on both"
        )
    _same_code(order, method, where)
    return method


def _unpacked(order: Order, blob: bytes, where: str) -> type[Method]:
    try:
        method = _unpacked_class(blob)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"worker {where} lacks the code of {order.method} ({error}); install its package there, or define it in a cell"
        ) from error
    if not order.with_code:
        _same_code(order, method, where)
    return method


def _same_code(order: Order, method: type[Method], where: str) -> None:
    if (order.batch, order.method) not in _verified and method_code(method) != order.code:
        raise PluginError(
            f"worker {where} has another text of the code behind {order.method} than you have; "
            "restart whichever was started before the last edit (client.restart() for workers)"
        )
    _verified.add((order.batch, order.method))


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


# -------------------------------------------------------------------------------------------------------------- blocks

_handed_lock = threading.Lock()
_handed: OrderedDict[str, Inputs] = OrderedDict()
"""Inputs of the runs whose blocks this worker computes: loaded once, with models of its own."""


def _block_inputs(order: Order, blobs: Mapping[str, bytes], method: type[Method]) -> Inputs:
    with _handed_lock:
        if order.token not in _handed:
            given = {role: unpack(blobs[digest]) for role, digest in order.contents.items()}
            sources = StoreSources(_store(order.store), _host())
            loaded = preparation.resolve(method, dict(order.specs), sources, known=given, identify=False)
            device, dtype = resolve_device(order.device), precision_dtype(order.precision)
            _handed[order.token] = Inputs({name: handed_over(item, device, dtype) for name, item in loaded.items()})
            while len(_handed) > KEPT_INPUTS:
                _handed.popitem(last=False)
        return _handed[order.token]


@reading_here()
def compute_block(
    packed: bytes, blobs: Mapping[str, bytes], place: BlockPlace, number: int, start: int, stop: int
) -> Mapping[str, Any]:
    """Compute one block of an order (`sealed`) that another worker has begun."""
    _settle()
    order = _opened(packed)
    token = messages.TOKENS.begin(order.token)
    try:
        token.check()  # the run was cancelled while this block waited
        method = _method(order, _address())
        inputs, params = _block_inputs(order, blobs, method), preparation.validate_params(method, order.params)
        here = replace(place, backend=_store(order.store).backend)
        blockwise = method()
        assert isinstance(blockwise, BlockwiseMethod)
        with (
            Turn(background=True, poll=token.check) as turn,
            turn.random_numbers(order.seed),
            warnings_of_this_thread(),
        ):
            return run_block(
                blockwise,
                inputs,
                params,
                here,
                number,
                slice(start, stop),
                device=resolve_device(order.device),
                dtype=precision_dtype(order.precision),
                cancel=token,
            )
    finally:
        messages.TOKENS.end(order.token)


class DaskBlocks:
    """`workbench.execution.blockwise.BlockSharing` from within a worker: its blocks become tasks beside it."""

    def __init__(self, order: Order, blobs: Mapping[str, bytes], resources: Mapping[str, float] | None) -> None:
        self._order, self._blobs, self._resources = order, blobs, resources

    def worthwhile(self, regions: Sequence[slice]) -> bool:
        """See BlockSharing."""
        return len(regions) > 1

    def compute(
        self, place: BlockPlace, regions: Sequence[slice], done: Callable[[int], None], cancel: CancelToken
    ) -> list[Mapping[str, Any]]:
        """See BlockSharing."""
        import distributed

        order, packed = self._order, sealed(self._order)
        ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # The run's id is part of the names: an order that begins anew because its worker died has another folder, and dask
        # would answer a task of a known name with what was written into the old one.
        run = place.folder.rpartition("/")[2]
        # The thread leaves the worker's pool meanwhile, so that this worker computes blocks as well.
        with distributed.worker_client() as client:
            read_here()
            shared = {digest: blob if len(blob) <= SMALL else client.scatter(blob, broadcast=True, hash=False)
                      for digest, blob in self._blobs.items()}  # fmt: skip
            tasks = {}
            for number, region in enumerate(regions):
                task = client.submit(
                    compute_block, packed, shared, replace(place, backend=None), number, region.start, region.stop,
                    key=(f"{order.method} blocks", f"{order.title}, {region.start}:{region.stop} · {order.token[:8]} · {run}"),
                    pure=False, resources=self._resources,
                )  # fmt: skip
                tasks[task.key] = (number, task)
                task.add_done_callback(ended.put)
                del task
            return self._collect(client, tasks, regions, ended, done, cancel)

    def _collect(
        self,
        client: Any,
        tasks: dict[Any, tuple[int, Any]],
        regions: Sequence[slice],
        ended: queue.SimpleQueue[Any],
        done: Callable[[int], None],
        cancel: CancelToken,
    ) -> list[Mapping[str, Any]]:
        parts: dict[int, Mapping[str, Any]] = {}
        samples = 0
        try:
            while len(parts) < len(regions):
                try:
                    task = ended.get(timeout=LOOK)
                except queue.Empty:
                    cancel.check()
                    continue
                number, _ = tasks.pop(task.key)  # what a block returned is let go once it is here
                parts[number] = task.result()
                samples += regions[number].stop - regions[number].start
                done(samples)
        except BaseException:
            client.cancel([task for _, task in tasks.values()])  # those that wait; the others look at their token
            client.run(messages.cancel, [self._order.token], on_error="ignore")
            raise
        return [parts[number] for number in range(len(regions))]
