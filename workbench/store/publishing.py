"""A store on a plain web server: one listing, and the records of every month in a few files.

    STORE/published.json              months, what lies in them, and which files below hold their documents
    STORE/published/<digest>.tsv      lines of: name, tab, JSON document; at most a few MiB each, named by content

A web server cannot list folders and answers one request at a time, so readers fetch the listing and then only the files
they have not seen. Arrays stay where they are and are read by ranges.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workbench.errors import FormatVersionError
from workbench.record import FORMAT_VERSION, now
from workbench.store.records import RecordError, parse_json, root_document

if TYPE_CHECKING:
    from workbench.store.store import Store

__all__ = ["PUBLISHED", "Listing", "Part", "parse_listing", "publish", "split_part"]

PUBLISHED = "published.json"
PART_BYTES = 4 * 1024 * 1024
_FILE = re.compile(r"published/[0-9a-f]{32}\.tsv")
_MONTH = re.compile(r"\d{4}-\d{2}")


@dataclass(frozen=True)
class Part:
    """One month: names of its runs or annotations, and the files with their documents."""

    names: tuple[str, ...]
    files: tuple[str, ...]


@dataclass(frozen=True)
class Listing:
    """What was published: by `runs` or `annotations`, then by month."""

    tables: dict[str, dict[str, Part]]


def parse_listing(data: bytes) -> Listing:
    """Read `published.json`.

    Raises:
        RecordError: it is not one. FormatVersionError: it is of a newer version.
    """
    value = parse_json(data)
    try:
        if int(value["format_version"]) > FORMAT_VERSION:
            raise FormatVersionError("the store was published by a newer version of the workbench")
        tables: dict[str, dict[str, Part]] = {}
        for top in ("runs", "annotations"):
            tables[top] = {}
            for month, part in value[top].items():
                names, files = tuple(part["names"]), tuple(part["files"])
                if not _MONTH.fullmatch(month) or not all(_FILE.fullmatch(file) for file in files):
                    raise RecordError("the published listing names something outside the store")
                if not all(isinstance(name, str) and "/" not in name for name in names):
                    raise RecordError("the published listing names something outside the store")
                tables[top][month] = Part(names, files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordError(f"not a published listing ({error})") from error
    return Listing(tables)


def split_part(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and documents of one file."""
    for line in data.splitlines():
        name, _, document = line.partition(b"\t")
        yield name.decode("utf-8", "replace"), document


def publish(store: Store) -> int:
    """Write the snapshot of all ended runs and all annotations; returns the number of runs.

    Unchanged months keep their files. The listing is replaced in one step, after everything it names is there.
    """
    store.prepare()
    backend = store.backend
    runs: dict[str, list[tuple[str, bytes]]] = {}
    count = 0
    for run in store.each():
        if run.record.status != "running":
            count += 1
            runs.setdefault(run.record.month, []).append((run.id, root_document(run.record, "", None)))
    said: dict[str, list[tuple[str, bytes]]] = {}
    for month in backend.folders("annotations"):
        folder = f"annotations/{month}"
        said[month] = [(name, b" ".join(backend.read(f"{folder}/{name}").split())) for name in backend.names(folder)]
    tables = {
        "runs": {month: _write(store, items) for month, items in runs.items()},
        "annotations": {month: _write(store, items) for month, items in said.items()},
    }
    backend.write(PUBLISHED, json.dumps({"format_version": FORMAT_VERSION, "created": now()} | tables).encode())
    used = {file for table in tables.values() for part in table.values() for file in part["files"]}
    for key, _ in list(backend.files("published")):
        # Readers of the listing before this one may still want a file: it goes when it is a day old.
        stamp = backend.written(key)
        if key not in used and stamp is not None and backend.now() - stamp > 86_400:
            backend.delete_object(key)
    return count


def _write(store: Store, items: list[tuple[str, bytes]]) -> dict[str, list[str]]:
    files, lines, size = [], [], 0
    items = sorted(items)
    for number, (name, document) in enumerate(items):
        lines.append(name.encode() + b"\t" + document + b"\n")
        size += len(lines[-1])
        if size > PART_BYTES or number == len(items) - 1:
            data = b"".join(lines)
            key = f"published/{hashlib.sha256(data).hexdigest()[:32]}.tsv"
            if store.backend.size(key) != len(data):
                store.backend.write(key, data)
            files.append(key)
            lines, size = [], 0
    return {"names": [name for name, _ in items], "files": files}
