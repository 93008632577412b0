"""What a run record is in the index, and how many records are read at once: by helper processes, where that pays.

Reading, checking and taking apart a record is most of the work of a first build, and needs nothing but the record. So
helpers do it for the process that writes the tables. They are plain children that get the names of runs and answer with
rows; where none can be started, or one dies, the work is done here.
"""

from __future__ import annotations

import gc
import json
import marshal
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, NamedTuple

from workbench.errors import StoreError
from workbench.store.backend import Backend, LocalBackend
from workbench.store.query import COLUMNS
from workbench.store.records import RecordError, read_record_json

__all__ = ["Batch", "Entry", "RecordReader", "entry_of", "read_batch"]

BATCH = 500
"""Records that are read together and entered together."""
MANY = 3000
"""Records of a month from which on helpers are started (each takes a quarter of a second to begin)."""
MOST_HELPERS = 3
"""More of them would wait for the one that writes the tables."""
LONGEST_ANSWER = 60.0
"""Seconds after which a helper that does not answer is ended, and what it was asked is read here."""
_HELPER = "import sys; sys.path[:] = sys.argv[1:]; from workbench.store.entries import serve; serve()"

Entry = tuple[tuple[Any, ...], str, tuple[str, ...], list[str | float | None]]
"""Of one run: its columns of the table `runs` (first the id), the record as text, names and values of its facts."""


class Batch(NamedTuple):
    """What came of reading some records."""

    entries: list[Entry]
    gone: list[str]
    """Runs without a record, and those whose record is none: what is wrong with it `verify` tells."""
    readable: bool
    """False if something could not be read that may be readable later."""


# ------------------------------------------------------------------------------------------------------------ one record


def entry_of(value: Mapping[str, Any], text: str, metrics: Mapping[str, float]) -> Entry:
    """What the index keeps of a record.

    Args:
        value: the record as JSON values, checked.
        text: the same as JSON text.
        metrics: those of its report.
    """
    method, started = value["method"], value["started"]
    row = (
        value["id"], started[:7], value["key"], value["status"], method, method.partition(".")[0], value["user"],
        value["host"], value["device"], started, value.get("finished"), float(value.get("seconds", 0.0)),
        max(0, min(value["seed"], 2**63 - 1)), value.get("study"),
    )  # fmt: skip
    names: list[str] = []
    values: list[str | float | None] = []
    for described in value["inputs"].values():
        names.append("input")
        values.append(str(described.get("label", "")))
        for run in described.get("runs", ()):
            names.append("uses")
            values.append(run)
    for name, number in {name.lower(): number for name, number in metrics.items()}.items():
        if name not in COLUMNS:
            names.append(name)
            values.append(number)
    for name, item in value["params"].items():
        names.append(f"params.{name.lower()}")
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            values.append(float(item) if abs(item) < 1e300 else None)
        else:
            values.append(item if isinstance(item, str) else json.dumps(item))
    return row, text, tuple(names), values


def read_batch(month: str, documents: Iterable[tuple[str, bytes | Exception]]) -> Batch:
    """Check root documents of runs of one month and take them apart."""
    entries: list[Entry] = []
    gone: list[str] = []
    readable = True
    for run, data in documents:
        try:
            if isinstance(data, Exception):
                raise data
            entries.append(entry_of(*read_record_json(data, month=month, run=run)))
        except RecordError:
            gone.append(run)
        except FileNotFoundError:
            gone.append(run)
            readable = False  # a run or copy that is just beginning
        except (OSError, StoreError):
            readable = False  # a disk or network that hiccups takes no known run away
    return Batch(entries, gone, readable)


# ---------------------------------------------------------------------------------------------------------- many records


class RecordReader:
    """Reads the records of runs, in helper processes where there are many. Use it in a `with` statement."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._idle: list[subprocess.Popen[bytes]] = []
        self._threads: ThreadPoolExecutor | None = None
        self._ended = False

    def __enter__(self) -> RecordReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for helper in self._helpers:
            helper.kill()  # it writes nothing
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for helper in self._helpers:
            with suppress(subprocess.TimeoutExpired):
                helper.communicate(timeout=5.0)

    def batches(self, wanted: Iterable[tuple[str, Sequence[str]]]) -> Iterator[tuple[str, Batch]]:
        """Records of runs that were just listed, a few hundred at a time, with their month.

        Args:
            wanted: month and names of runs; the next month is asked for while helpers still read this one.
        """
        ahead: deque[tuple[str, Future[Batch]]] = deque()
        for month, runs in wanted:
            threads = self._threads or self._start(len(runs))
            if threads is None:
                yield from ((month, batch) for batch in self._here(month, runs))
                continue
            for start in range(0, len(runs), BATCH):
                if len(ahead) > len(self._helpers):  # so that results never pile up
                    done, future = ahead.popleft()
                    yield done, future.result()
                ahead.append((month, threads.submit(self._by_helper, month, runs[start : start + BATCH])))
        for done, future in ahead:
            yield done, future.result()

    def _here(self, month: str, runs: Sequence[str]) -> Iterator[Batch]:
        documents = iter(self._backend.documents(f"runs/{month}", runs, "/zarr.json"))
        for start in range(0, len(runs), BATCH):
            yield read_batch(month, (next(documents) for _ in runs[start : start + BATCH]))

    def _start(self, count: int) -> ThreadPoolExecutor | None:
        """Start helpers if so many records, this store and this machine are worth it; as many threads talk to them."""
        if count < MANY or type(self._backend) is not LocalBackend or _processors() < 2:
            return None
        name = os.path.basename(sys.executable or "").lower()
        if not name.startswith(("python", "pypy")) or getattr(sys, "frozen", False):
            return None  # inside another program, which a helper would start a second time
        # Isolated: nothing from the current folder or the environment is imported before the path is this process's.
        command = [sys.executable, "-I", "-c", _HELPER, *sys.path]
        # As many as processors: while one waits for the disk, this process or another helper works.
        for _ in range(min(MOST_HELPERS, _processors())):
            try:
                helper = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
                )
            except OSError:
                break
            self._helpers.append(helper)
        if self._helpers:
            self._idle = list(self._helpers)
            self._threads = ThreadPoolExecutor(len(self._helpers), thread_name_prefix="workbench-index")
        return self._threads

    def _by_helper(self, month: str, runs: Sequence[str]) -> Batch:
        """One question to an idle helper (there are as many threads as helpers); without one, the work is done here."""
        with suppress(IndexError, OSError, EOFError, ValueError, TypeError):
            helper = self._idle.pop()
            batch = _asked(helper, (self._backend.url, month, list(runs)))
            self._idle.append(helper)  # one that died is not put back
            return batch
        if self._ended:
            return Batch([], [], False)
        return read_batch(month, self._backend.documents(f"runs/{month}", runs, "/zarr.json"))


def _asked(helper: subprocess.Popen[bytes], question: tuple[str, str, list[str]]) -> Batch:
    """What a helper answers; EOFError if it died, also because it took too long."""
    assert helper.stdin is not None
    assert helper.stdout is not None
    watch = threading.Timer(LONGEST_ANSWER, helper.kill)
    watch.daemon = True
    watch.start()
    try:
        _send(helper.stdin, question)
        return Batch(*_receive(helper.stdout))
    finally:
        watch.cancel()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve() -> None:
    """What a helper does: answer questions until there are no more."""
    gc.disable()  # records are trees: nothing of them outlives its last use, and looking for cycles takes a fifth of the time
    while True:
        try:
            root, month, runs = _receive(sys.stdin.buffer)
        except (EOFError, KeyboardInterrupt):
            return
        documents = LocalBackend(root).documents(f"runs/{month}", runs, "/zarr.json")
        _send(sys.stdout.buffer, tuple(read_batch(month, documents)))


# Both ends are this program, so marshal is safe here, and several times as fast as pickle.


def _send(stream: IO[bytes], value: Any) -> None:
    data = marshal.dumps(value)
    stream.write(len(data).to_bytes(8, "little"))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    size = stream.read(8)
    data = stream.read(int.from_bytes(size, "little")) if len(size) == 8 else b""
    if not data:
        raise EOFError
    return marshal.loads(data)
