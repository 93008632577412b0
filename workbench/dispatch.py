"""How what is asked of a bench begins: with a request, in this process, in its background or on the workers of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from workbench.method import Method
from workbench.runs import Run, panel_module
from workbench.store import StoredRun

if TYPE_CHECKING:
    import torch

    from workbench.bench import Workbench
    from workbench.execution.handle import Handle
    from workbench.execution.points import Point
    from workbench.execution.progress import Progress
    from workbench.execution.request import Request
    from workbench.execution.shipping import Packed
    from workbench.record import RunRecord

__all__ = ["WAIT", "ask", "point_runner", "progress_bar", "send"]

WAIT = 24 * 3600.0
"""Seconds `run` waits for the same run that somebody else is computing; a run that dies is not waited for."""


def ask(
    bench: Workbench,
    method: str | type[Method],
    arguments: Mapping[str, Any],
    seed: int,
    device: str | torch.device | None,
    precision: str,
    force: bool,
    wait: float,
    study: str | None,
    *,
    registered: bool = False,
) -> Request:
    """A request for one run; a class is registered with the host, unless it is known to be.

    Raises:
        UnknownMethodError, InputError: there is no such method, or it has no such argument.
    """
    from workbench.execution import request

    cls = bench.host.method(method) if isinstance(method, str) else method
    if isinstance(method, type) and not registered:
        bench.register(method)
    return request.ask(
        cls, arguments, seed=seed, device=device, precision=precision, force=force, wait=wait, study=study
    )


def send(bench: Workbench, request: Request, packed: Packed | None = None) -> Handle[Run]:
    """Give a request to the cluster."""
    from workbench.execution.shipping import make_order

    assert bench.cluster is not None
    order, blobs = make_order(request, bench, bench.store, bench.host, packed)

    def arrived(record: RunRecord, served: bool) -> Run:
        return Run(bench, StoredRun(bench.store.backend, record, request.params), served=served)

    return bench.cluster.submit(order, blobs, arrived)


def point_runner(
    bench: Workbench, device: str | torch.device | None, precision: str, force: bool, study: str | None
) -> Callable[[Point], Handle[Run]]:
    """What begins a point of a sweep; the points share what they load or pack."""
    from workbench.execution.background import submit
    from workbench.execution.request import SharedSubjects
    from workbench.execution.shipping import Packed

    shared, packed = SharedSubjects(), Packed()

    def begin(point: Point) -> Handle[Run]:
        request = ask(
            bench, point.method, point.arguments, point.seed, device, precision, force, WAIT, study, registered=True
        )
        if bench.cluster is not None:
            return send(bench, request, packed)
        roles = {name: item if isinstance(item, str) else id(item) for name, item in request.roles.items()}
        return submit(
            request,
            bench,
            bench.store,
            bench.host,
            lambda stored, served: Run(bench, stored, served=served),
            shared=(shared, (point.method, *sorted(roles.items()))),
        )

    return begin


def progress_bar(title: str) -> Progress:
    """In a notebook what the panels show, in a terminal a line."""
    import sys

    if getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)().__class__.__name__ == "ZMQInteractiveShell":
        return panel_module("progress").NotebookProgress(title)  # type: ignore[no-any-return]
    from workbench.execution.progress import ProgressBar

    return ProgressBar(title)
