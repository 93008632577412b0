"""Run records as bytes and back. What is read may have been made by anybody, so every part is checked before it is used.

The root `zarr.json` of a run holds the record and a CRC-32C of it, so that a damaged record is never taken for a run.
"""

from __future__ import annotations

import json
import marshal
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from workbench.errors import StoreError
from workbench.record import RunRecord, report_metrics, valid_study
from workbench.store.backend import DOCUMENT_LIMIT
from workbench.store.layout import MOST_FILES, ArrayLayout, chunk_files, layout_of

__all__ = [
    "RecordError",
    "array_layout",
    "parse_json",
    "read_record",
    "read_record_json",
    "root_document",
    "run_files",
    "safe_run_id",
]

DEEPEST = 200
"""Levels of nesting of a document; our own have about ten."""
MOST_ELEMENTS = 2**53
MOST_DIMS = 32

_HEAD = b'{"zarr_format":3,"node_type":"group","attributes":{"workbench":'
_CHECKSUM = b',"checksum":"'
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,199}")
_MONTH = re.compile(r"\d{4}-\d{2}")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_STATUS = ("running", "complete", "failed", "cancelled")
_NAMES = ("method", "method_version", "user", "host", "device", "precision")
_TYPES: dict[str, tuple[type, ...]] = {
    "key": (str, type(None)),
    "method_title": (str,),
    "method_code": (str, type(None)),
    "params": (dict,),
    "default_params": (dict,),
    "inputs": (dict,),
    "seed": (int,),
    "pid": (int,),
    "paper": (dict, type(None)),
    "seconds": (int, float),
    "provenance": (dict,),
    "progress": (dict,),
    "arrays": (dict,),
    "models": (dict,),
    "report": (dict, type(None)),
    "failure": (dict, type(None)),
}


class RecordError(StoreError):
    """A document of the store is not what it should be: such a run is left out and listed by `verify`."""


def safe_run_id(text: str) -> bool:
    """Whether a text can be a run id: one folder name without surprises."""
    return _RUN_ID.fullmatch(text) is not None


def parse_json(data: bytes) -> Any:
    """A JSON document from a store.

    Raises:
        RecordError: it is no JSON, is nested too deeply, or has numbers of thousands of digits.
    """
    try:
        value = json.loads(data)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()  # half a character is no text: UnicodeEncodeError
        if data.count(b"[") + data.count(b"{") > DEEPEST:
            _check_depth(value, DEEPEST)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not a JSON document ({error})") from error
    return value


def _check_depth(value: Any, left: int) -> None:
    if left == 0:
        raise RecordError(f"nested more than {DEEPEST} levels deep")
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return
    for item in value:
        if isinstance(item, dict | list):
            _check_depth(item, left - 1)


def root_document(record: RunRecord, coordinates: str, documents: Mapping[str, Any] | None) -> bytes:
    """The root `zarr.json` of a run: record, its checksum, and once closed the documents of all arrays.

    Raises:
        StoreError: the record is larger than what readers accept.
    """
    body = _dump(record.to_json())
    text = f'{_HEAD.decode()}{body}{_CHECKSUM.decode()}{_checksum(body)}"'
    if coordinates:
        text += f',"coordinates":{json.dumps(coordinates)}'
    text += "}"
    if documents is not None:
        metadata = _dump({"kind": "inline", "must_understand": False, "metadata": documents})
        text += f',"consolidated_metadata":{metadata}'
    data = (text + "}").encode()
    if len(data) > DOCUMENT_LIMIT:
        raise StoreError(
            f"the record of run {record.id} has {len(data) / 2**20:.0f} MiB, at most {DOCUMENT_LIMIT / 2**20:.0f} are "
            "kept: store long tables and texts of a report as arrays"
        )
    return data


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _checksum(text: str) -> str:
    from google_crc32c import value as crc32c

    return f"{crc32c(text.encode()):08x}"


def read_record(data: bytes, *, month: str, run: str) -> RunRecord:
    """The record in the root `zarr.json` of the folder `runs/MONTH/RUN`, checked.

    Raises:
        RecordError: it is damaged, or not what this format version writes.
    """
    return RunRecord.from_json(read_record_json(data, month=month, run=run)[0])


def read_record_json(data: bytes, *, month: str, run: str) -> tuple[dict[str, Any], str, dict[str, float]]:
    """As `read_record`, but as JSON values, as JSON text and its metrics, for those who read a hundred thousand.

    Raises:
        RecordError: it is damaged, or not what this format version writes.
    """
    try:
        value, text = _own_spelling(data) or _any_spelling(data)
        _check(value, month, run)
        metrics = report_metrics(value.get("report"))  # raises where the report is not one
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordError(f"not a run record ({type(error).__name__}: {str(error)[:200]})") from error
    return value, text, metrics


def _own_spelling(data: bytes) -> tuple[dict[str, Any], str] | None:
    """Record and text of a document as `root_document` writes it; None for any other. What follows the record is not read."""
    from google_crc32c import value as crc32c
    from pydantic_core import from_json

    if not data.startswith(_HEAD):
        return None
    end = data.find(_CHECKSUM, len(_HEAD))
    while end > 0:  # parameters may have the name `checksum` too
        body = data[len(_HEAD) : end]
        if data[end + len(_CHECKSUM) : end + len(_CHECKSUM) + 9] == f'{crc32c(body):08x}"'.encode():
            # Three times as fast as the json module; refuses halves of characters and more than 200 levels by itself.
            value = from_json(body, allow_inf_nan=False)
            return (value, body.decode()) if isinstance(value, dict) else None
        end = data.find(_CHECKSUM, end + 1)
    return None


def _any_spelling(data: bytes) -> tuple[dict[str, Any], str]:
    """Record and text of a document that another tool may have spelled anew."""
    document = parse_json(data)
    value = document["attributes"]["workbench"]
    if document["zarr_format"] != 3 or not isinstance(value, dict):
        raise RecordError("not a run in zarr format 3")
    text = _dump(value)
    if document["attributes"]["checksum"] != _checksum(text):
        raise RecordError("the record is damaged: its checksum does not match")
    return value, text


def _check(value: dict[str, Any], month: str, run: str) -> None:
    if value["format"] != 1:
        raise RecordError(f"record of format {str(value['format'])[:20]!r}, this version reads format 1")
    if value["id"] != run or not safe_run_id(run) or not _MONTH.fullmatch(month):
        raise RecordError(f"the record says run {str(value['id'])[:100]!r}, its folder {run[:100]!r}")
    for name, kinds in _TYPES.items():
        if name in value and type(value[name]) not in kinds:  # exactly: to Python, true and false are numbers too
            raise RecordError(f"{name} is a {type(value[name]).__name__}")
    if not math.isfinite(value.get("seconds", 0.0)):  # OverflowError where it has hundreds of digits
        raise RecordError("seconds is no number")
    for name in _NAMES:
        if not isinstance(value[name], str) or len(value[name]) > 500 or not value[name].isprintable():
            raise RecordError(f"{name} is not a short printable text")
    if value["status"] not in _STATUS:
        raise RecordError(f"unknown status {str(value['status'])[:40]!r}")
    if value.get("study") is not None and not valid_study(value["study"]):
        raise RecordError("study is not the name of one")
    for name in ("started", "heartbeat", "finished"):
        moment = value.get(name)
        if moment is None and name == "finished":
            continue
        if not isinstance(moment, str) or not _MOMENT.fullmatch(moment):
            raise RecordError(f"{name} is not a moment")
    if not value["started"].startswith(month):
        raise RecordError(f"started {value['started']}, but lies in the folder of {month}")
    for role, entry in value["inputs"].items():
        runs = entry.get("runs", ()) if isinstance(entry, dict) else None
        if not isinstance(runs, list | tuple) or not all(isinstance(item, str) and safe_run_id(item) for item in runs):
            raise RecordError(f"input {role[:100]!r} is not described as it should be")
    # By value and dtype, hence version 2: it has no references. Arrays of one method mostly are described alike.
    _check_arrays(marshal.dumps(value["arrays"], 2))


@lru_cache(512)
def _check_arrays(arrays: bytes) -> None:
    for path, entry in marshal.loads(arrays).items():
        array_layout(path, entry)


def array_layout(path: str, entry: Mapping[str, Any]) -> ArrayLayout:
    """How the array of an entry of `record.arrays` is cut into chunks and files, checked.

    Raises:
        RecordError: the name leaves the run, or sizes, dtype or chunks are none this format has.
    """
    _check_path(path)
    dims, shape = entry["dims"], entry["shape"]
    if not isinstance(dims, list) or not all(isinstance(dim, str) for dim in dims):
        raise RecordError(f"array {path!r}: dims are not names")
    if not isinstance(shape, list) or len(shape) != len(dims) or len(shape) > MOST_DIMS:
        raise RecordError(f"array {path!r}: shape and dims do not fit")
    if not _whole_numbers(shape) or math.prod(shape) > MOST_ELEMENTS:
        raise RecordError(f"array {path!r}: absurd shape")
    dtype, chunk, shard = entry["dtype"], entry["chunk"], entry["shard"]
    cut = type(dtype) is str and _whole_numbers(chunk) and (shard is None or _whole_numbers(shard))
    layout = _layout(tuple(shape), dtype, tuple(chunk), None if shard is None else tuple(shard)) if cut else None
    if layout is None:
        raise RecordError(f"array {path!r}: chunks, shards or dtype are none of this format")
    if type(entry["files"]) is not int or entry["files"] != layout.files or layout.files > MOST_FILES:
        raise RecordError(f"array {path!r}: {str(entry['files'])[:30]} files for {layout.files}")
    for name in ("description", "units"):
        if not isinstance(entry[name], str):
            raise RecordError(f"array {path!r}: {name} is no text")
    if not isinstance(entry["coordinate"], bool) or type(entry["bytes"]) is not int:
        raise RecordError(f"array {path!r}: not described as it should be")
    return layout


def _whole_numbers(sizes: object) -> bool:
    return type(sizes) is list and all(type(size) is int and size >= 0 for size in sizes)


@lru_cache(4096)
def _layout(
    shape: tuple[int, ...], dtype: str, chunk: tuple[int, ...], shard: tuple[int, ...] | None
) -> ArrayLayout | None:
    return layout_of(shape, dtype, chunk, shard)


def _check_path(path: str) -> None:
    parts = path.split("/")
    if len(path) > 1000 or not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in parts):
        raise RecordError(f"array name {path[:100]!r} is refused")


def run_files(data: bytes, folder: str) -> Iterator[str]:
    """Names of all files that an ended run must have below its folder, but its root document, which is `data`.

    Raises:
        RecordError: it is not the document of an ended run, or names something outside the folder.
    """
    _, month, run = folder.split("/")
    record = read_record(data, month=month, run=run)
    try:
        documents = parse_json(data)["consolidated_metadata"]["metadata"]
        paths = list(documents)
    except (KeyError, TypeError) as error:
        raise RecordError("the run has not ended") from error
    for path in paths:
        _check_path(path)
        yield f"{path}/zarr.json"
    for path, entry in record.arrays.items():
        for name in chunk_files(array_layout(path, entry)):
            yield f"{path}/{name}"
