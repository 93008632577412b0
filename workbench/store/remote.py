"""Back-ends behind a network, through obstore: buckets (s3://, gs://, az://), and published stores on any web server.

Credentials and endpoints come from the environment, as the provider's own tools read them (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...). Failed requests (500, 503, connections
that break off in the middle of a body) are tried again for a minute.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

from workbench.errors import MissingDependencyError, StoreError
from workbench.store.backend import CLOCK_GOOD_FOR, DOCUMENT_LIMIT, RefusedError, documents_one_by_one
from workbench.store.publishing import PUBLISHED, Listing, parse_listing, split_part
from workbench.store.records import RecordError, run_files

__all__ = ["HttpBackend", "ObjectBackend"]

T = TypeVar("T")
RETRIES: dict[str, Any] = {
    "max_retries": 8,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=50), "max_backoff": timedelta(seconds=5), "base": 2},
}
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
GOOGLE_ACCOUNT = "GOOGLE_SERVICE_ACCOUNT_KEY"
"""Its JSON may name a server of one's own as `gcs_base_url`."""
NO_RANGES = (
    "this web server hands out whole files only; arrays are read by byte ranges, as nginx, Apache and Caddy give them"
)
CLIENT: dict[str, Any] = {"timeout": "120s", "connect_timeout": "10s"}


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise MissingDependencyError(
            "stores behind a network need the package obstore: pip install 'vision-workbench[cloud]'"
        ) from error
    return obstore


class _Client:
    """The part of obstore that both back-ends use, with its errors told apart: absent, forbidden, anything else."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._api = _obstore()
        plain = {"allow_http": True} if url.startswith("http://") or _plain_endpoint() else {}
        self.options = {"client_options": CLIENT | plain, "retry_config": RETRIES}
        try:
            self.store = self._api.store.from_url(url, **self.options)
        except Exception as error:
            raise StoreError(f"the store {url} cannot be opened: {_first_line(error)}") from error

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        return self.again(lambda: getattr(self._api, name)(self.store, *arguments, **options))

    def read(self, key: str, limit: int | None) -> bytes:
        def work() -> bytes:
            answer = self._api.get(self.store, key)
            size = int(answer.meta["size"])
            if limit is not None and size > limit:
                raise _TooLarge(f"{key!r} in the store {self.url} has {size} bytes, more than {limit}: refused")
            return bytes(answer.bytes())

        try:
            return self.again(work)
        except _TooLarge as error:
            raise RefusedError(str(error)) from None

    def again(self, work: Callable[[], T]) -> T:
        """Do it again if the answer broke off in the middle of its body: obstore itself retries up to the first byte.

        Every request of ours may be sent twice: objects are written whole, under names of their own.
        """
        pauses = [0.1, 0.5, 2.0]
        while True:
            try:
                return work()
            except (_TooLarge, FileNotFoundError):
                raise
            except Exception as error:
                if "body" not in str(error) or not pauses:
                    text = NO_RANGES if "Range request not supported" in str(error) else _first_line(error)
                    raise StoreError(f"the store {self.url} does not answer as it should: {text}") from error
            time.sleep(pauses.pop(0))

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        total = 0

        def work() -> bytes:
            nonlocal total
            answer = self._api.get(self.store, key, options={"range": {"suffix": size}})
            total = int(answer.meta["size"])
            return bytes(answer.bytes())

        return self.again(work), total

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        if not parts:
            return []
        starts, ends = [start for start, _ in parts], [end for _, end in parts]
        return [bytes(part) for part in self.call("get_ranges", key, starts=starts, ends=ends)]

    def size(self, key: str) -> int | None:
        try:
            return int(self.call("head", key)["size"])
        except FileNotFoundError:
            return None


class _TooLarge(Exception):
    pass


def _plain_endpoint() -> bool:
    """Whether the environment names an endpoint without TLS (a server of one's own)."""
    endpoints = [os.environ.get(name, "") for name in ENDPOINTS]
    return any(text.startswith("http://") for text in endpoints) or '"http://' in os.environ.get(GOOGLE_ACCOUNT, "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class ObjectBackend:
    """A bucket, or a prefix of one."""

    remote = True
    writable = True

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._client = _Client(self.url)
        self._clock: tuple[float, float] | None = None

    def read(self, key: str, limit: int | None = None) -> bytes:
        """See Backend."""
        return self._client.read(key, limit)

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See Backend."""
        if self.url.startswith("az:"):  # Azure knows no "last bytes of"
            total = self._client.size(key)
            if total is None:
                raise FileNotFoundError(key)
            return self._client.read_parts(key, [(max(0, total - size), total)])[0], total
        return self._client.read_tail(key, size)

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """See Backend."""
        return self._client.read_parts(key, parts)

    def size(self, key: str) -> int | None:
        """See Backend."""
        return self._client.size(key)

    def write(self, key: str, data: bytes) -> None:
        """See Backend: a PUT is atomic."""
        self._client.call("put", key, data, use_multipart=False)

    def write_new_chunk(self, key: str, data: bytes) -> None:
        """See Backend."""
        self._client.call("put", key, data, use_multipart=False)

    def folders(self, key: str) -> list[str]:
        """See Backend."""
        found = self._client.call("list_with_delimiter", key)["common_prefixes"]
        return sorted(name for name in (prefix.rstrip("/").rpartition("/")[2] for prefix in found) if name[:1] != ".")

    def names(self, key: str) -> list[str]:
        """See Backend."""
        found = self._client.call("list_with_delimiter", key)["objects"]
        return sorted(name for name in (item["path"].rpartition("/")[2] for item in found) if name[:1] != ".")

    def folder_version(self, key: str) -> object:
        """See Backend: a bucket does not say."""
        return None

    def documents(self, key: str, names: Sequence[str], file: str) -> Iterator[tuple[str, bytes | Exception]]:
        """See Backend: sixteen requests at a time."""

        def read(name: str) -> tuple[str, bytes | Exception]:
            return next(documents_one_by_one(self, key, [name], file))

        if len(names) < 2:
            yield from map(read, names)
            return
        with ThreadPoolExecutor(max_workers=16, thread_name_prefix="workbench-index") as pool:
            for start in range(0, len(names), 256):  # a few at a time: a document may be large
                yield from pool.map(read, names[start : start + 256])

    def files(self, key: str) -> Iterator[tuple[str, int]]:
        """See Backend."""
        yield from self._client.again(
            lambda: [(item["path"], int(item["size"])) for page in self._client.call("list", key) for item in page]
        )

    def written(self, key: str) -> float | None:
        """See Backend."""
        try:
            return float(self._client.call("head", key)["last_modified"].timestamp())
        except FileNotFoundError:
            return None

    def now(self) -> float:
        """See Backend: the stamp of an object made now (asked once a minute, else counted from there)."""
        if self._clock is None or time.monotonic() - self._clock[1] > CLOCK_GOOD_FOR:
            probe = f".clock-{os.getpid()}-{os.urandom(4).hex()}"
            try:
                self.write(probe, b"")
                moment = self.written(probe)
                self.delete_object(probe)
            except StoreError:  # one may only read
                moment = None
            self._clock = (time.time() if moment is None else moment, time.monotonic())
        there, here = self._clock
        return there + time.monotonic() - here

    def delete(self, key: str) -> None:
        """See Backend."""
        paths = [path for path, _ in self.files(key)]
        if paths:
            self._client.call("delete", paths)

    def delete_object(self, key: str) -> None:
        """See Backend."""
        with contextlib.suppress(FileNotFoundError):
            self._client.call("delete", key)

    def prune(self, key: str) -> None:
        """See Backend: a bucket has no empty folders."""

    def zarr_store(self, key: str) -> Any:
        """See Backend."""
        from zarr.storage import ObjectStore

        return ObjectStore(_obstore().store.from_url(f"{self.url}/{key}", **self._client.options))

    def check_writable(self) -> None:
        """See Backend: writing the store's marker, which comes next, tells the same with one request less."""


class HttpBackend:
    """A store that `workbench store index --publish` prepared and any web server hands out: read-only."""

    remote = True
    writable = False

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._client = _Client(self.url)
        self._listing: tuple[Listing, float] | None = None

    def _published(self) -> Listing:
        if self._listing is None or time.monotonic() - self._listing[1] > CLOCK_GOOD_FOR:
            try:
                data = self.read(PUBLISHED, DOCUMENT_LIMIT)
            except FileNotFoundError:
                raise StoreError(
                    f"{self.url} was not published: run `workbench store index --publish` on the store it is a copy of"
                ) from None
            self._listing = (parse_listing(data), time.monotonic())
        return self._listing[0]

    def read(self, key: str, limit: int | None = None) -> bytes:
        """See Backend."""
        return self._client.read(key, limit)

    def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        """See Backend."""
        return self._client.read_tail(key, size)

    def read_parts(self, key: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """See Backend."""
        return self._client.read_parts(key, parts)

    def size(self, key: str) -> int | None:
        """See Backend."""
        return self._client.size(key)

    def folders(self, key: str) -> list[str]:
        """See Backend: what was published."""
        top, _, month = key.partition("/")
        table = self._published().tables.get(top, {})
        if not month:
            return sorted(table)
        return sorted(table[month].names) if top == "runs" and month in table else []

    def names(self, key: str) -> list[str]:
        """See Backend: what was published."""
        top, _, month = key.partition("/")
        table = self._published().tables.get(top, {})
        return sorted(table[month].names) if top == "annotations" and month in table else []

    def folder_version(self, key: str) -> object:
        """See Backend: the digests of the published parts."""
        top, _, month = key.partition("/")
        part = self._published().tables.get(top, {}).get(month)
        return None if part is None else " ".join(part.files)

    def documents(self, key: str, names: Sequence[str], file: str) -> Iterator[tuple[str, bytes | Exception]]:
        """See Backend: they were published many in a file."""
        top, _, month = key.partition("/")
        part = self._published().tables.get(top, {}).get(month)
        wanted = set(names)
        for published in part.files if part is not None else ():
            if not wanted:
                return
            for name, document in split_part(self.read(published, DOCUMENT_LIMIT)):
                if name in wanted:  # once, however often somebody wrote it there
                    wanted.remove(name)
                    yield name, document
        yield from ((name, FileNotFoundError(f"{key}/{name}{file} was not published")) for name in sorted(wanted))

    def files(self, key: str) -> Iterator[tuple[str, int]]:
        """See Backend: the files that the run in this folder must have (a web server lists nothing); sizes are not known."""
        try:
            names = run_files(self.read(f"{key}/zarr.json", DOCUMENT_LIMIT), key)
        except (FileNotFoundError, RecordError):
            return
        for name in ("zarr.json", *names):
            yield f"{key}/{name}", -1

    def written(self, key: str) -> float | None:
        """See Backend: published runs have ended, nothing depends on it."""
        return None

    def now(self) -> float:
        """See Backend."""
        return time.time()

    def _refuse(self) -> StoreError:
        return StoreError(f"the store {self.url} is published read-only")

    def write(self, key: str, data: bytes) -> None:
        """Refused."""
        raise self._refuse()

    def write_new_chunk(self, key: str, data: bytes) -> None:
        """Refused."""
        raise self._refuse()

    def delete(self, key: str) -> None:
        """Refused."""
        raise self._refuse()

    def delete_object(self, key: str) -> None:
        """Refused."""
        raise self._refuse()

    def prune(self, key: str) -> None:
        """Refused."""
        raise self._refuse()

    def zarr_store(self, key: str) -> Any:
        """Refused: arrays are read without zarr."""
        raise self._refuse()

    def check_writable(self) -> None:
        """Refused."""
        raise self._refuse()
