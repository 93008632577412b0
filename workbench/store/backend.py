"""Where the bytes lie. A back-end offers a handful of operations on slash-separated keys; everything else is built on them.

`LocalBackend` serves local and network folders; `workbench.store.remote` serves buckets and published https stores. A
third party's back-end is tested with `workbench.testing.store.StoreContract`.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from workbench.errors import StoreError

__all__ = [
    "DOCUMENT_LIMIT",
    "Backend",
    "LocalBackend",
    "RefusedError",
    "backend_for",
    "documents_one_by_one",
    "read_document",
]

DOCUMENT_LIMIT = 16 * 1024 * 1024
"""Bytes of the largest JSON document (record, annotation) that is written or read: one never fills the memory."""


SHARED_LEVELS = {"keys": 3}
"""Levels of folders below the root that are everybody's: two (`runs`, its months, `annotations`, its months), or these."""
FEW = 8
"""Documents up to which opening their folder does not pay."""
CLOCK_GOOD_FOR = 60.0
"""Seconds after which the file system's clock is asked again."""
PRUNED_MEANWHILE = 3
"""Times that a folder is made again for an object, because a colleague's tidying up took it away empty."""


class RefusedError(StoreError):
    """What lies there is nothing this store has (a link that leaves it, a pipe, absurdly large), today and tomorrow."""


class Backend(Protocol):
    """What the store needs from a place. Keys are relative to the store's root and never begin with a slash."""

    url: str
    remote: bool
    """Whether every call is a request over a network: then requests are saved and large reads are gathered."""
    writable: bool
    """Whether objects can be made at all (https stores are read-only)."""

    def read(self, key: str, limit: int | None = None) -> bytes:
        """The object's bytes; FileNotFoundError if there is none, StoreError if there are more than `limit`."""

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """The last `size` bytes (all, if there are fewer) and the size of the whole object; else as `read`."""

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes start..stop of each part (fewer where the object ends before); else as `read`."""

    def size(self, key: str) -> int | None:
        """Bytes of the object, or None if there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object in one atomic step: a reader sees the old bytes or the new ones, never a part."""

    def write_new_chunk(self, key: str, data: bytes) -> None:
        """Create an object nobody reads yet (a chunk of a running run): need not be atomic."""

    def folders(self, key: str) -> list[str]:
        """Names of the folders directly below `key`, sorted; empty if there is no such folder."""

    def names(self, key: str) -> list[str]:
        """Names of the objects directly below `key`, sorted; empty if there is no such folder."""

    def folder_version(self, key: str) -> object:
        """Something that changes when folders or objects are added below `key`, None if that cannot be told cheaply."""

    def documents(self, key: str, names: Sequence[str], file: str) -> Iterator[tuple[str, bytes | Exception]]:
        """The documents KEY/NAME + `file` of many names that were just listed, the quickest way this place has.

        In any order; an error in place of a document that cannot be read. `documents_one_by_one` will do.
        """

    def files(self, key: str) -> Iterator[tuple[str, int]]:
        """All objects below `key` as (key, size)."""

    def written(self, key: str) -> float | None:
        """When the object was last written by the clock of the place itself (seconds); None if there is none."""

    def now(self) -> float:
        """The moment by the clock of the place itself (seconds)."""

    def delete(self, key: str) -> None:
        """Remove everything below `key`; nothing happens if there is nothing."""

    def delete_object(self, key: str) -> None:
        """Remove one object; nothing happens if there is none."""

    def prune(self, key: str) -> None:
        """Remove the folder `key` if nothing is in it, in one step; nothing happens where there are no empty folders."""

    def zarr_store(self, key: str) -> Any:
        """A writable zarr store rooted at `key`."""

    def check_writable(self) -> None:
        """Raise StoreError unless objects can be created."""


def read_document(backend: Backend, key: str) -> bytes:
    """A JSON document of the store: refused before it is read where it is absurdly large."""
    return backend.read(key, DOCUMENT_LIMIT)


def documents_one_by_one(
    backend: Backend, key: str, names: Sequence[str], file: str
) -> Iterator[tuple[str, bytes | Exception]]:
    """See `Backend.documents`."""
    for name in names:
        try:
            yield name, read_document(backend, f"{key}/{name}{file}")
        except (OSError, StoreError) as error:
            yield name, error


class LocalBackend:
    """A folder of a local or network file system.

    Nothing is read, written or removed through a link that leaves the folder, and nothing but regular files is opened: a
    store from elsewhere may hold links to your files, or pipes that never end.
    """

    remote = False
    writable = True

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)
        self._real_root: str | None = None
        self._clock: tuple[float, float] | None = None

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.root / key if key else self.root

    def _inside(self, key: str) -> str:
        """The file of a key, links resolved; RefusedError if it lies outside the store."""
        if self._real_root is None:
            self._real_root = os.path.realpath(self.root)
        real = os.path.realpath(os.path.join(self.root, key))
        if not real.startswith(os.path.join(self._real_root, "")):
            raise RefusedError(f"{key!r} in the store {self.url} is a link or name that leaves the store: refused")
        return real

    def _open(self, key: str) -> tuple[int, int]:
        """A descriptor of a regular file, and its size."""
        descriptor = os.open(self._inside(key), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(f"{key} is a folder")
            raise RefusedError(f"{key!r} in the store {self.url} is not a regular file: refused")
        return descriptor, status.st_size

    def read(self, key: str, limit: int | None = None) -> bytes:
        """See Backend."""
        descriptor, size = self._open(key)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if limit is not None and size > limit:
                raise RefusedError(f"{key!r} in the store {self.url} has {size} bytes, more than {limit}: refused")
            return file.read(size)

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See Backend."""
        descriptor, total = self._open(key)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            file.seek(max(0, total - size))
            return file.read(min(size, total)), total

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """See Backend."""
        descriptor, total = self._open(key)
        found = []
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            for start, stop in parts:
                file.seek(start)
                found.append(file.read(max(0, min(stop, total) - start)))
        return found

    def size(self, key: str) -> int | None:
        """See Backend."""
        try:
            status = os.stat(self._inside(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def write(self, key: str, data: bytes) -> None:
        """See Backend: a temporary file in the same folder, then a rename.

        No fsync: it would not make the chunks durable, and what a power cut damages is found by the checksums.
        """
        self._inside(key)
        target = self.path(key)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            descriptor = self._create(temporary)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            if key.count("/") <= 2:  # no part of a run: the marker, something said about a run, something published
                self._share(temporary, 0o666)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def write_new_chunk(self, key: str, data: bytes) -> None:
        """See Backend. Where the run's own folder leads was looked at when its record was written, before any chunk."""
        with os.fdopen(self._create(self.path(key)), "wb") as file:
            file.write(data)

    def _create(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        for _ in range(PRUNED_MEANWHILE):
            with suppress(FileNotFoundError):
                return os.open(path, flags, 0o666)
            self._make_folder(path.parent)
        return os.open(path, flags, 0o666)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it. What everybody writes to gets the root's permissions, whatever the umask."""
        try:
            folder.mkdir()
        except FileExistsError:
            return
        except FileNotFoundError:
            if folder.parent == folder:
                raise
            self._make_folder(folder.parent)
            folder.mkdir(exist_ok=True)
        parts = folder.relative_to(self.root).parts if self.root in folder.parents else ()
        if parts and len(parts) <= SHARED_LEVELS.get(parts[0], 2):
            self._share(folder, 0o7777)

    def _share(self, path: Path, mask: int) -> None:
        """Give a file or folder that is everybody's the root's permissions."""
        with suppress(OSError):
            path.chmod(stat.S_IMODE(self.root.stat().st_mode) & mask)

    def folders(self, key: str) -> list[str]:
        """See Backend. Links are not followed: a run is a folder of the store itself."""
        return self._list(key, lambda entry: entry.is_dir(follow_symlinks=False))

    def names(self, key: str) -> list[str]:
        """See Backend."""
        return self._list(key, lambda entry: entry.is_file(follow_symlinks=False))

    def _list(self, key: str, wanted: Any) -> list[str]:
        try:
            with os.scandir(self._inside(key + "/x").removesuffix("x")) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and wanted(entry))
        except (FileNotFoundError, NotADirectoryError, StoreError):
            return []

    def folder_version(self, key: str) -> object:
        """See Backend: the folder's modification time."""
        try:
            return self.path(key).stat().st_mtime_ns
        except OSError:
            return None

    def documents(self, key: str, names: Sequence[str], file: str) -> Iterator[tuple[str, bytes | Exception]]:
        """See Backend: relative to the folder, without resolving its path for every file."""
        if os.open not in os.supports_dir_fd or len(names) < FEW:
            yield from documents_one_by_one(self, key, names, file)
            return
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
        try:
            folder = os.open(self._inside(key), os.O_RDONLY)
        except (OSError, StoreError) as error:
            yield from ((name, error) for name in names)
            return
        try:
            for name in names:
                try:
                    # The listing left links out, so that only the last part of the path can be one.
                    descriptor = os.open(f"{name}{file}", flags, dir_fd=folder)
                except OSError as error:
                    yield name, error
                    continue
                try:
                    status = os.fstat(descriptor)
                    if not stat.S_ISREG(status.st_mode) or status.st_size > DOCUMENT_LIMIT:
                        yield (
                            name,
                            RefusedError(f"{key}/{name}{file} is no file, or has more than {DOCUMENT_LIMIT} bytes"),
                        )
                    else:
                        yield name, os.read(descriptor, status.st_size)
                except OSError as error:
                    yield name, error
                finally:
                    os.close(descriptor)
        finally:
            os.close(folder)

    def files(self, key: str) -> Iterator[tuple[str, int]]:
        """See Backend."""
        for folder, _, names in os.walk(self.path(key)):
            for name in names:
                path = Path(folder, name)
                try:
                    size = path.lstat().st_size
                except FileNotFoundError:
                    continue  # a temporary file, renamed meanwhile
                yield path.relative_to(self.root).as_posix(), size

    def written(self, key: str) -> float | None:
        """See Backend: the modification time. An OSError where it cannot be told: what is in trouble is not gone."""
        try:
            return os.stat(self._inside(key)).st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def now(self) -> float:
        """See Backend: the modification time of a file made now (asked once a minute, else counted from there).

        On a store that cannot be written there is no such file, and this machine's clock has to do.
        """
        if self._clock is None or time.monotonic() - self._clock[1] > CLOCK_GOOD_FOR:
            self._clock = (self._probe(), time.monotonic())
        there, here = self._clock
        return there + time.monotonic() - here

    def _probe(self) -> float:
        probe = self.path(f".clock-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            probe.write_bytes(b"")
            moment = probe.stat().st_mtime
            probe.unlink()
        except OSError:
            return time.time()
        return moment

    def delete(self, key: str) -> None:
        """See Backend."""
        shutil.rmtree(self._inside(key), ignore_errors=True)

    def delete_object(self, key: str) -> None:
        """See Backend. The object itself may be a link, and is removed; its folder must not be one that leaves the store."""
        if folder := os.path.dirname(key):
            self._inside(folder)
        self.path(key).unlink(missing_ok=True)

    def prune(self, key: str) -> None:
        """See Backend: a folder with something in it cannot be removed this way, whoever put it there meanwhile."""
        with suppress(OSError):
            os.rmdir(self._inside(key))

    def zarr_store(self, key: str) -> Any:
        """See Backend."""
        from zarr.storage import LocalStore

        return LocalStore(self.path(key), read_only=False)

    def check_writable(self) -> None:
        """See Backend: creates the folder and a file in it, and removes the file."""
        probe = self.path(f".writable-{os.getpid()}-{os.urandom(4).hex()}")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(
                f"the store {self.url} cannot be written: {error.strerror or error}. "
                "Choose another with --store or $WORKBENCH_STORE."
            ) from error


def backend_for(url: str | os.PathLike[str]) -> Backend:
    """The back-end for a path or URL.

    Raises:
        StoreError: for a scheme that no back-end serves.
        MissingDependencyError: the back-end needs the package obstore.
    """
    text = os.fspath(url)
    scheme = urlparse(text).scheme
    if scheme in ("", "file") or len(scheme) == 1:  # one letter: a Windows drive
        return LocalBackend(unquote(urlparse(text).path) if scheme == "file" else text)
    if scheme in ("s3", "gs", "az", "http", "https"):
        from workbench.store.remote import HttpBackend, ObjectBackend

        backend: Backend = HttpBackend(text) if scheme.startswith("http") else ObjectBackend(text)
        return backend
    raise StoreError(
        f"no back-end for {scheme}:// stores (store {text!r}); give a folder, or an s3://, gs://, az:// or https:// URL"
    )
