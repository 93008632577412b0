"""CIFAR-10 and CIFAR-100 as published: the python pickles through a reader that admits nothing but arrays, and the binary files.

A pickle can run any code when it is read. The reader here resolves the handful of names that arrays need and refuses
every other one, so that a file that was tampered with is an error and not an intrusion.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from workbench.errors import InputError

__all__ = ["CIFAR10_CLASSES", "is_cifar", "load_cifar", "read_pickle"]

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
_FILES: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("cifar10", "train"): tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("cifar10", "test"): ("test_batch",),
    ("cifar100", "train"): ("train",),
    ("cifar100", "test"): ("test",),
}


class _ArraysOnly(pickle.Unpickler):
    """Admits dicts, lists, text, bytes, numbers and numpy arrays of numbers, the last as `_Array`."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: Mapping[tuple[str, str], Any] = {
            ("numpy", "ndarray"): _ARRAY,
            ("numpy", "dtype"): _Dtype,
            ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
            ("_codecs", "encode"): _latin1,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not admitted")
        return allowed[module, name]


_ARRAY = object()
"""Stands for the class ndarray, which a file may name but not call."""


class _Dtype:
    """A dtype of numbers, as a pickle spells it; numpy's own `__setstate__` would believe whatever the file says."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.dtype = np.dtype(_text(code))
        if self.dtype.kind not in "biuf":
            raise pickle.UnpicklingError(f"it holds an array of dtype {self.dtype}")

    def __setstate__(self, state: Any) -> None:
        order: Any = _text(state[1])
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it holds an array of an unusual dtype")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An array whose content is checked before numpy sees it."""

    values: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array of something other than numbers")
        order: Literal["F", "C"] = "F" if fortran else "C"
        self.values = np.frombuffer(content, dtype.dtype).reshape(tuple(shape), order=order).copy()


def _reconstruct(kind: Any, *_: Any) -> _Array:
    if kind is not _ARRAY:
        raise pickle.UnpicklingError("it holds an array that no array made")
    return _Array()


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _unwrapped(value: Any) -> Any:
    """The same containers with real arrays."""
    if isinstance(value, _Array):
        if value.values is None:
            raise pickle.UnpicklingError("it holds an array without content")
        return value.values
    if isinstance(value, dict):
        return {key: _unwrapped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unwrapped(item) for item in value]
    if value is not None and not isinstance(value, bool | int | float | str | bytes):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    return value


def _latin1(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in protocol 2."""
    if _text(encoding) not in ("latin1", "latin-1") or not isinstance(text, str):
        raise pickle.UnpicklingError("it holds bytes that are encoded in an unusual way")
    return text.encode("latin1")


def read_pickle(path: Path, argument: str = "data") -> Any:
    """Read a pickle that holds arrays, numbers, text and containers of them; keys of Python 2 come back as bytes.

    Raises:
        InputError: the file is missing or damaged, or refers to anything else; nothing of it was executed.
    """
    try:
        return _unwrapped(_ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load())
    except OSError as error:
        raise InputError(argument, expected="a readable file", got=f"{str(path)!r}: {error}") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(
            argument, expected="a pickle of arrays, undamaged", got=f"{str(path)!r}: {error or type(error).__name__}"
        ) from error


def is_cifar(folder: Path) -> bool:
    """Whether a folder holds the files of CIFAR-10 or CIFAR-100."""
    return _flavour(folder) is not None


def _flavour(folder: Path) -> tuple[str, str] | None:
    """(cifar10 or cifar100, suffix) of a folder's files."""
    for suffix in ("", ".bin"):
        if any((folder / f"{stem}{suffix}").is_file() for stem in ("data_batch_1", "test_batch")):
            return "cifar10", suffix
        meta = "meta" if not suffix else "fine_label_names.txt"
        if (folder / meta).is_file() and any((folder / f"{stem}{suffix}").is_file() for stem in ("train", "test")):
            return "cifar100", suffix
    return None


def load_cifar(folder: Path, split: str = "test", *, argument: str = "data") -> xr.Dataset:
    """Pictures (uint8) and labels in the order of the files; for CIFAR-100 the fine labels.

    Args:
        folder: with the extracted python or binary version.
        split: "train", "test" or "all" (train, then test, with a coordinate `split`).
        argument: what the data are called, for messages.

    Raises:
        InputError: a file is missing, damaged or holds more than arrays.
    """
    flavour = _flavour(folder)
    if flavour is None:
        raise InputError(argument, expected="the files of CIFAR-10 or CIFAR-100", got=f"none of them in {str(folder)!r}")
    name, suffix = flavour
    splits = {"train": ("train",), "test": ("test",), "all": ("train", "test")}.get(split)
    if splits is None:
        raise InputError("split", expected="train, test or all", got=repr(split))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    origin: list[str] = []
    for part in splits:
        for stem in _FILES[name, part]:
            path = folder / f"{stem}{suffix}"
            parts.append(_read_binary(path, name, argument) if suffix else _read_batch(path, argument))
            origin += [part] * len(parts[-1][1])
    classes = _classes(folder, name, suffix, argument)
    label = np.concatenate([label for _, label in parts])
    if label.size and (label.min() < 0 or label.max() >= len(classes)):
        raise InputError(
            argument, expected=f"labels 0..{len(classes) - 1}", got=f"{label.min()}..{label.max()} in {str(folder)!r}"
        )
    dataset = xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), np.concatenate([image for image, _ in parts])), "label": ("sample", label)},
        coords={"class": list(classes)},
    )
    return dataset.assign_coords(split=("sample", origin)) if split == "all" else dataset


def _read_batch(path: Path, argument: str) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(path, argument)
    if not isinstance(content, dict):
        raise InputError(argument, expected="a CIFAR batch", got=f"a {type(content).__name__} in {str(path)!r}")
    pixels = _entry(content, ("data",))
    label = _entry(content, ("labels", "fine_labels"))
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,) or label is None:
        raise InputError(argument, expected=f"data (n, {PIXELS}) of uint8 and labels", got=f"something else in {str(path)!r}")
    labels = np.asarray(label)
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise InputError(argument, expected=f"{len(pixels)} labels", got=f"{labels.shape} of {labels.dtype} in {str(path)!r}")
    return pixels.reshape(-1, 3, 32, 32), labels.astype(np.int64)


def _entry(content: Mapping[Any, Any], names: Sequence[str]) -> Any:
    for name in names:
        for key in (name, name.encode()):
            if key in content:
                return content[key]
    return None


def _read_binary(path: Path, name: str, argument: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of one label byte (CIFAR-100: a coarse and a fine one) and 3,072 pixels."""
    header = 1 if name == "cifar10" else 2
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(argument, expected="a readable file", got=f"{str(path)!r}: {error}") from error
    if not content.size or content.size % (header + PIXELS):
        raise InputError(
            argument, expected=f"rows of {header + PIXELS} bytes", got=f"{content.size} bytes in {str(path)!r}",
            hint="The file is damaged or cut short.",
        )
    rows = content.reshape(-1, header + PIXELS)
    return rows[:, header:].reshape(-1, 3, 32, 32).copy(), rows[:, header - 1].astype(np.int64)


def _classes(folder: Path, name: str, suffix: str, argument: str) -> tuple[str, ...]:
    text = folder / ("batches.meta.txt" if name == "cifar10" else "fine_label_names.txt")
    meta = folder / ("batches.meta" if name == "cifar10" else "meta")
    if suffix and text.is_file():
        return tuple(line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip())
    if not suffix and meta.is_file():
        content = read_pickle(meta, argument)
        names = _entry(content, ("label_names", "fine_label_names")) if isinstance(content, dict) else None
        if isinstance(names, list) and names:
            return tuple(item.decode() if isinstance(item, bytes) else str(item) for item in names)
    return CIFAR10_CLASSES if name == "cifar10" else tuple(str(i) for i in range(100))
