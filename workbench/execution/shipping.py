"""What travels to a worker: an order. Names stay names and are resolved there; what is in memory travels as content.

A method that a plugin offers travels as its id. One from a notebook cell, and models and data in memory, are packed with
cloudpickle: between processes of one user only, through connections that dask made for this. Nothing packed is ever stored.
"""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from workbench._version import __version__
from workbench.errors import InputError
from workbench.execution.code import method_code
from workbench.execution.inputs import RUN_PREFIX, Resolved, Sources, resolve, run_reference
from workbench.execution.request import Request
from workbench.host import Host
from workbench.method import BlockwiseMethod, Method
from workbench.store import Store
from workbench.store.store import current_user

__all__ = ["Order", "make_order", "unpack"]

Blob = bytes
"""A packed value."""


@dataclass(frozen=True)
class Order:
    """A request on its way to a worker."""

    method: str
    title: str
    """What the run is of, in a few words, for people who watch the dashboard."""
    version: str
    code: str | None
    params: dict[str, Any]
    specs: Mapping[str, str]
    """Role -> name, path or run reference."""
    contents: Mapping[str, str]
    """Role -> digest of the packed subject, which travels beside the order."""
    cls: Blob | None
    """A class that no plugin of the worker offers."""
    with_code: bool
    """Whether `cls` holds the code, or only the name of an importable class."""
    blockwise: bool
    """Whether its work can be shared out."""
    package: tuple[str, str]
    """Distribution that offers the method, and its version; empty for a class that travels."""
    workbench: str
    store: Store
    seed: int
    device: str | None
    precision: str
    force: bool
    wait: float
    study: str | None
    user: str
    batch: str
    """Orders of one batch (a sweep) load each subject once per worker."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Names this order, for cancelling and progress."""

    @property
    def key(self) -> tuple[str, str]:
        """What dask calls the task: grouped by method, readable each on its own."""
        return (self.method, f"{self.title} · {self.token[:8]}")


@dataclass
class Packed:
    """What the orders of one batch have in common, packed once."""

    batch: str = field(default_factory=lambda: uuid.uuid4().hex)
    methods: dict[type[Method], tuple[str | None, Blob | None, bool]] = field(default_factory=dict)
    """Digest of the code, and the class where it has to travel, with its code or by name."""
    subjects: dict[tuple[type[Method], str, int], tuple[Any, str, Blob]] = field(default_factory=dict)
    """Per method, role and object: the object (kept, so that its id stays its own), digest and bytes."""


def make_order(
    request: Request, sources: Sources, store: Store, host: Host, packed: Packed | None = None
) -> tuple[Order, dict[str, Blob]]:
    """An order, and the packed subjects it needs, by digest.

    Args:
        request: what is asked for.
        sources: where subjects come from.
        store: where the run goes to.
        host: whose method it is.
        packed: what was packed for other orders of the batch; added to.

    Raises:
        InputError: a subject that is none, or one in memory that cannot be packed.
    """
    method = request.method
    owner = host.owner(method.id)
    specs: dict[str, str] = {}
    blobs: dict[str, Blob] = {}
    contents: dict[str, str] = {}
    packed = packed or Packed()
    if method not in packed.methods:
        packed.methods[method] = (method_code(method), *(pack_class(method) if owner is None else (None, False)))
    code, cls, with_code = packed.methods[method]
    for role, value in request.roles.items():
        text = _as_text(value, store)
        if text is not None:
            specs[role] = text
            continue
        place = (method, role, id(value))
        if place not in packed.subjects:
            subject = resolve(method, {role: value}, sources)[role]
            blob = pack(_portable(subject), role)
            packed.subjects[place] = (value, hashlib.sha256(blob).hexdigest(), blob)
        _, contents[role], blob = packed.subjects[place]
        blobs[contents[role]] = blob
    return Order(
        method=method.id,
        title=_title(specs, request.seed),
        version=method.version,
        code=code,
        params=request.params.model_dump(mode="json"),
        specs=specs,
        contents=contents,
        cls=cls,
        with_code=with_code,
        blockwise=issubclass(method, BlockwiseMethod),
        package=("", "") if owner is None else (owner.distribution or owner.name, owner.version),
        workbench=__version__,
        store=store,
        seed=request.seed,
        device=None if request.device is None else str(request.device),
        precision=request.precision,
        force=request.force,
        wait=request.wait,
        study=request.study,
        user=request.user or current_user(),
        batch=packed.batch,
    ), blobs


def _title(specs: Mapping[str, str], seed: int) -> str:
    return ", ".join([*(text.rpartition("/")[2] for text in specs.values()), f"seed {seed}"])


def _as_text(value: Any, store: Store) -> str | None:
    """A name, path or run reference for a subject, None if it is in memory."""
    if isinstance(value, str):
        return value if value.startswith(RUN_PREFIX) else _absolute(value)
    reference = run_reference(value)
    if reference is None:
        return None
    run, text = reference
    if run.backend.url != store.url:
        raise InputError(
            "run",
            expected=f"a run of the store {store.url}, where the workers look",
            got=f"run {run.id} of {run.backend.url}",
            hint="Copy it there: workbench store copy.",
        )
    return text


def _absolute(spec: str) -> str:
    """A path relative to this process's folder made absolute: a worker's folder is another."""
    head, mark, tail = spec.partition("@")
    if mark and Path(tail).exists():
        return f"{head}@{os.path.abspath(tail)}"
    path = spec if Path(spec).exists() else spec.partition("(")[0].partition("[")[0]
    exists = bool(path) and ("/" in path or "." in path) and Path(path).exists()
    return os.path.abspath(path) + spec[len(path) :] if exists and not os.path.isabs(path) else spec


def _portable(subject: Resolved) -> Resolved:
    """A model on a GPU is handed over through the CPU: the worker may have another GPU, or none."""
    import copy

    import torch

    module = subject.value
    if isinstance(module, torch.nn.Module) and any(tensor.is_cuda for tensor in module.state_dict().values()):
        return replace(subject, value=copy.deepcopy(module).cpu())
    return subject


def pack(value: Any, role: str) -> Blob:
    """A subject as bytes.

    Raises:
        InputError: it cannot be packed.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # whatever a foreign object's pickling raises
        kind = getattr(value, "kind", "subject")
        hint = {
            "model": "Store it with a run and pass that run, pass a name with weights (NAME@FILE), or register a factory.",
            "data": "Pass arrays, or a name or path that the workers can read.",
        }.get(kind, "")
        raise InputError(
            role,
            expected=f"{kind} that can be sent to a worker process",
            got=f"one that cannot be packed ({type(error).__name__}: {str(error)[:200]})",
            hint=f"{hint} Without a client it runs as it is.",
        ) from error


def pack_class(method: type[Method]) -> tuple[Blob, bool]:
    """A method's class as bytes, and whether they hold its code.

    By value, because workers may lack its module. What cannot be packed so, because its module holds something that no other
    process can have, goes by name: then workers need the module.

    Raises:
        InputError: it can be packed neither way.
    """
    import cloudpickle

    module = sys.modules.get(method.__module__)
    path = getattr(module, "__file__", None) or ""
    own = module is not None and method.__module__ != "__main__" and "site-packages" not in path
    if module is not None and own:
        cloudpickle.register_pickle_by_value(module)
        try:
            return bytes(cloudpickle.dumps(method)), True
        except Exception as error:
            reason: Exception = error
        finally:
            cloudpickle.unregister_pickle_by_value(module)
    try:
        # What a script or notebook defines is packed with its code, whether or not it has a file: workers have another script.
        return bytes(cloudpickle.dumps(method)), not path or method.__module__ == "__main__"
    except Exception as error:
        reason = error
    raise InputError(
        "method",
        expected="a class that can be sent to a worker process",
        got=f"{method.__name__}, which cannot be packed ({type(reason).__name__}: {str(reason)[:200]})",
        hint="Put it into a package that the workers have, or run it without a client.",
    ) from reason


def unpack(blob: Blob) -> Any:
    """What `pack` packed."""
    import cloudpickle

    return cloudpickle.loads(blob)
