"""Digests: what makes two inputs the same. Content only, never names, paths, times or devices.

All digests are lower-case hexadecimal SHA-256. Arrays are hashed as (dtype, shape, C-order little-endian bytes), JSON
values in one canonical spelling, so that the same content gives the same digest on any machine.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ArrayDigest", "canonical_json", "combine", "digest_array", "digest_bytes", "digest_json"]


def digest_bytes(*parts: bytes | memoryview) -> str:
    """Digest of the concatenation of `parts`, each preceded by its length (so that ("ab", "c") differs from ("a", "bc"))."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()


def canonical_json(value: Any) -> str:
    """One spelling for equal values: sorted keys, no spaces, tuples as lists, integral floats kept as floats.

    Raises:
        TypeError: for anything that is not a JSON value.
        ValueError: for NaN and infinities, which JSON lacks.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no place in an identity")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"mapping keys must be strings, got {key!r}")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    raise TypeError(f"{type(value).__name__} is not a JSON value: {value!r}")


def digest_json(value: Any) -> str:
    """Digest of a JSON value in its canonical spelling."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class ArrayDigest:
    """Digest of an array that arrives in pieces along its first axis; equal to `digest_array` of the whole."""

    def __init__(self, dtype: np.dtype[Any], shape: Iterable[int]) -> None:
        self._dtype = dtype
        self._state = hashlib.sha256()
        kind = "str" if dtype.kind in "OUT" else dtype.newbyteorder("<").str
        self._text = kind == "str"
        self._state.update(canonical_json([kind, [int(size) for size in shape]]).encode())

    def update(self, piece: np.ndarray) -> None:
        """Add the next rows."""
        import numpy as np

        if self._text:
            for item in piece.ravel():
                encoded = str(item).encode()
                self._state.update(len(encoded).to_bytes(8, "little") + encoded)
            return
        if self._dtype.kind not in "biufcmM":
            raise TypeError(f"arrays of dtype {self._dtype} cannot be digested")
        contiguous = np.ascontiguousarray(piece, dtype=self._dtype.newbyteorder("<"))
        self._state.update(contiguous.reshape(-1).view(np.uint8).data)

    def hexdigest(self) -> str:
        """The digest of what was added so far."""
        return self._state.hexdigest()


def digest_array(array: np.ndarray) -> str:
    """Digest of (dtype, shape, values). Numbers, booleans, dates and strings; objects only if all are strings.

    Raises:
        TypeError: for arrays of arbitrary Python objects.
    """
    if array.dtype.kind == "O" and not all(isinstance(item, str) for item in array.ravel()):
        raise TypeError("arrays of Python objects cannot be digested")
    digest = ArrayDigest(array.dtype, array.shape)
    digest.update(array)
    return digest.hexdigest()


def combine(parts: Mapping[str, str]) -> str:
    """One digest of named digests; the order of names does not matter."""
    return digest_json(dict(parts))
