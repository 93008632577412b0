"""Where the bytes lie. A back-end offers a handful of operations on slash-separated keys; everything else is built on them.

`LocalBackend` serves local and network folders. The protocol is what an object-store back-end has to offer: a whole
object appears at once (`write` is atomic), listing one level, reading, deleting.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlparse

from workbench.errors import StoreError

__all__ = ["Backend", "LocalBackend", "backend_for"]


class Backend(Protocol):
    """What the store needs from a place. Keys are relative to the store's root."""

    url: str

    def read(self, key: str) -> bytes:
        """The object's bytes; FileNotFoundError if there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object in one atomic step: a reader sees the old bytes or the new ones, never a part."""

    def write_new_chunk(self, key: str, data: bytes) -> None:
        """Create an object nobody reads yet (a chunk of a running run): need not be atomic."""

    def exists(self, key: str) -> bool:
        """Whether the object exists."""

    def folders(self, key: str) -> list[str]:
        """Names of the folders directly below `key`; empty if there is no such folder."""

    def folder_version(self, key: str) -> object:
        """Something that changes when folders are added below `key`, or None if that cannot be told cheaply."""

    def files(self, key: str) -> Iterator[tuple[str, int]]:
        """All objects below `key` as (key, size)."""

    def delete(self, key: str) -> None:
        """Remove everything below `key`; nothing happens if there is nothing."""

    def delete_object(self, key: str) -> None:
        """Remove one object; nothing happens if there is none."""

    def zarr_store(self, key: str, *, read_only: bool) -> Any:
        """A zarr store rooted at `key`."""

    def check_writable(self) -> None:
        """Raise StoreError unless objects can be created."""


class LocalBackend:
    """A folder of a local or network file system."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)

    def path(self, key: str) -> Path:
        """The file of a key."""
        return self.root / key if key else self.root

    def read(self, key: str) -> bytes:
        """See Backend."""
        return self.path(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """See Backend: a temporary file in the same folder, then a rename.

        No fsync: it would not make the chunks durable, and what a power cut damages is found by the checksums.
        """
        target = self.path(key)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
        try:
            descriptor = self._create(temporary)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def write_new_chunk(self, key: str, data: bytes) -> None:
        """See Backend."""
        with os.fdopen(self._create(self.path(key)), "wb") as file:
            file.write(data)

    def _create(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            return os.open(path, flags, 0o666)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o666)

    def exists(self, key: str) -> bool:
        """See Backend."""
        return self.path(key).exists()

    def folders(self, key: str) -> list[str]:
        """See Backend."""
        try:
            with os.scandir(self.path(key)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def folder_version(self, key: str) -> object:
        """See Backend: the folder's modification time."""
        try:
            return self.path(key).stat().st_mtime_ns
        except OSError:
            return None

    def files(self, key: str) -> Iterator[tuple[str, int]]:
        """See Backend."""
        for folder, _, names in os.walk(self.path(key)):
            for name in names:
                path = Path(folder, name)
                yield path.relative_to(self.root).as_posix(), path.stat().st_size

    def delete(self, key: str) -> None:
        """See Backend."""
        shutil.rmtree(self.path(key), ignore_errors=True)

    def delete_object(self, key: str) -> None:
        """See Backend."""
        self.path(key).unlink(missing_ok=True)

    def zarr_store(self, key: str, *, read_only: bool) -> Any:
        """See Backend."""
        from zarr.storage import LocalStore

        return LocalStore(self.path(key), read_only=read_only)

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
    """
    text = os.fspath(url)
    scheme = urlparse(text).scheme
    if scheme in ("", "file") or len(scheme) == 1:  # one letter: a Windows drive
        return LocalBackend(unquote(urlparse(text).path) if scheme == "file" else text)
    raise StoreError(f"no back-end for {scheme}:// stores yet (store {text!r}); give a local or network folder")
