"""Data by name or path: `digits[:200]`, `photos(size=64)`, `pictures/(size=64)`, `set.npz(image=x_val)`, `mnist/t10k`.

What a path holds is told from its suffix and its contents:

    folder of pictures        sub-folder = class; `size`, `crop`, `gray` (image_files)
    *.parquet, a folder of    Hugging Face layout; `image`, `label`, `size`, `crop`, `gray`, `split` (image_files)
    CIFAR-10/-100 folder      python pickles (restricted reader) or binary; `split` (cifar)
    idx, idx.gz or a prefix   MNIST and its relatives; `split` where a folder holds several, `size`, `color` (array_files)
    npz, npy, safetensors     `layout`, `split`, `variable`, VARIABLE=NAME (array_files)
    zarr                      an xarray Dataset, or arrays as above; also a URL; lazy
    *.txt, *.md, *.rst, or    text as token ids; `tokenizer`, `length` (text_files)
    a folder of such files

A relative path that does not exist is looked for under $WORKBENCH_DATA too. A slice at the end picks samples. What is left is
read into memory up to `IN_MEMORY` bytes and stays lazy above.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import InputError, WorkbenchError
from workbench.subjects.array_files import conventional, find_idx, read_arrays, read_idx, scaled
from workbench.subjects.builtin import data_folder
from workbench.subjects.cifar import is_cifar, load_cifar
from workbench.subjects.data import as_dataset
from workbench.subjects.grammar import check_call, split_arguments, split_slice
from workbench.subjects.image_files import SUFFIXES, has_images, load_image_folder, load_parquet
from workbench.subjects.text_files import SUFFIXES as TEXT
from workbench.subjects.text_files import load_text, text_files

__all__ = ["open_data"]

IN_MEMORY = 256 * 2**20
"""Data of up to so many bytes are read at once; larger ones are read piece by piece when they are used."""

Datasets = Mapping[str, Callable[..., Any]]
_ARRAYS = (".npz", ".npy", ".safetensors")


def open_data(
    spec: str | os.PathLike[str],
    *,
    datasets: Datasets,
    variables: Mapping[str, tuple[str, ...]] | None = None,
    role: str = "data",
) -> xr.Dataset:
    """Open data by registered name, path or URL, with arguments in parentheses and a slice of samples in brackets.

    Args:
        spec: `NAME`, `NAME(key=value)[start:stop]` or a path with the same endings; a path that exists as written is
            taken as written.
        datasets: registered data sets by name: functions of keyword arguments.
        variables: dims of each variable the role knows, as for `as_dataset`.
        role: what the argument is called, for messages.

    Returns:
        a Dataset with the names of the glossary; lazy where it is larger than `IN_MEMORY`.

    Raises:
        InputError: an unknown name, a path that does not exist, arguments that do not fit, a damaged file, no samples.
    """
    text = os.fspath(spec)
    path = Path(os.path.expanduser(text))
    if text and text not in datasets and path.exists():
        return _finish(_open_path(path, {}, role), None, variables, role, text)
    name, part = split_slice(text.strip())
    name, arguments = split_arguments(name, role)
    if name in datasets:
        check_call(datasets[name], name, arguments, role)
        loaded = datasets[name](**arguments)
    elif "://" in name:
        loaded = _open_zarr(name, arguments, role)
    else:
        path = _located(name)
        if not name or (not path.exists() and not find_idx(path)):
            raise _unknown(name, path, datasets, role)
        loaded = _open_path(path, arguments, role)
    return _finish(loaded, part, variables, role, text)


def _located(name: str) -> Path:
    """The path as it is written, or else below $WORKBENCH_DATA where it exists there."""
    path, base = Path(os.path.expanduser(name)), data_folder()
    if not name or base is None or path.is_absolute() or path.exists() or find_idx(path):
        return path
    return base / path if (base / path).exists() else path


def _unknown(name: str, path: Path, datasets: Datasets, role: str) -> InputError:
    near = difflib.get_close_matches(name, datasets, n=1, cutoff=0.5)
    if not near and path.parent.is_dir():
        siblings = sorted(child.name for child in path.parent.iterdir())
        near = [str(path.parent / other) for other in difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)]
    known = ", ".join(sorted(datasets)) or "none"
    return InputError(
        role,
        expected=f"a registered data set ({known}) or an existing path",
        got=repr(name),
        hint=f"Did you mean {near[0]!r}?" if near else "",
    )


def _finish(
    loaded: Any, part: slice | None, variables: Mapping[str, tuple[str, ...]] | None, role: str, spec: str
) -> xr.Dataset:
    dataset = as_dataset(loaded, variables=variables, role=role)
    if "split" in dataset.data_vars:
        dataset = dataset.set_coords("split")
    if part is not None:
        if "sample" not in dataset.sizes:
            raise InputError(role, expected="data with a dim 'sample' to slice", got=f"dims {tuple(dataset.sizes)}")
        dataset = dataset.isel(sample=part)
    if dataset.sizes.get("sample", 1) == 0:
        raise InputError(role, expected="at least one sample", got=f"none in {spec!r}")
    if dataset.nbytes > IN_MEMORY:
        return dataset
    try:
        return dataset.load()
    except WorkbenchError:
        raise
    except Exception as error:  # a chunk of a zarr that is damaged or cannot be reached
        raise InputError(role, expected="readable data", got=f"{spec!r}: {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------- paths


def _open_path(path: Path, arguments: Mapping[str, Any], role: str) -> Any:
    """Tell the format and read it."""
    suffix = path.suffix.lower()
    if suffix in _ARRAYS:
        return conventional(read_arrays(path, role), arguments, str(path), role)
    if suffix == ".zarr" or (path.is_dir() and any((path / m).is_file() for m in ("zarr.json", ".zgroup", ".zarray"))):
        return _open_zarr(str(path), arguments, role)
    if suffix == ".parquet":
        return _open_parquet([path], path, arguments, role)
    if suffix in SUFFIXES:
        return _with(load_image_folder, path, arguments, role)
    if path.is_dir() and is_cifar(path):
        return _with(load_cifar, path, arguments, role)
    if pairs := find_idx(path) if not path.is_file() or "images" in path.name else {}:
        return _open_idx(pairs, path, arguments, role)
    if path.is_file() and "idx" in path.name:
        return conventional({"": read_idx(path, role)}, {"variable": "label", **arguments}, str(path), role)
    if path.is_dir() and (parquet := sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))):
        return _open_parquet(parquet, path, arguments, role)
    if path.is_dir() and has_images(path):
        return _with(load_image_folder, path, arguments, role)
    # A read-me beside folders of pictures is not what somebody wants to see.
    if (suffix in TEXT and path.is_file()) or (path.is_dir() and text_files(path) and not _deeper(path)):
        return _with(load_text, path, arguments, role)
    raise _nothing(path, role)


def _nothing(path: Path, role: str) -> InputError:
    expected = "pictures, parquet, CIFAR, idx, npz, npy, safetensors, zarr or text"
    if path.is_file():
        pickled = path.suffix in (".pkl", ".pickle", ".pt", ".pth")
        hint = "Pickles can run code when read; save the arrays as npz." if pickled else ""
        return InputError(role, expected=expected, got=f"the file {str(path)!r}", hint=hint)
    inside = sorted(child.name for child in path.iterdir())
    deeper = _deeper(path)
    files = [name for name in inside if (path / name).suffix in _ARRAYS]
    hint = f"Name one of its parts: {str(path / (deeper + files)[0])!r}." if deeper + files else ""
    got = f"the folder {str(path)!r} with {', '.join(inside[:4]) or 'nothing'}{', ...' if len(inside) > 4 else ''}"
    return InputError(role, expected=expected, got=got, hint=hint)


def _deeper(path: Path) -> list[str]:
    """Names of the sub-folders that are data sets of pictures themselves."""
    return sorted(child.name for child in path.iterdir() if child.is_dir() and has_images(child))


def _with(function: Callable[..., xr.Dataset], path: Any, arguments: Mapping[str, Any], role: str) -> xr.Dataset:
    accepted = [name for name in inspect.signature(function).parameters if name != "argument"][1:]
    if wrong := [name for name in arguments if name not in accepted]:
        near = difflib.get_close_matches(wrong[0], accepted, n=1)
        raise InputError(
            role,
            expected=f"the arguments {', '.join(accepted)}",
            got=wrong[0],
            hint=f"Did you mean {near[0]!r}?" if near else "",
        )
    return function(path, argument=role, **arguments)


def _part(names: Mapping[str, Any], split: Any, what: str) -> str:
    """The chosen one of several parts: `test` unless asked for otherwise."""
    if split in names:
        return str(split)
    if split is not None:
        raise InputError("split", expected=f"one of {', '.join(names)} in {what}", got=repr(split))
    return "test" if "test" in names else next(iter(names))


def _open_parquet(paths: list[Path], path: Path, arguments: Mapping[str, Any], role: str) -> xr.Dataset:
    """Hugging Face calls the files of a split `test-00000-of-00001.parquet`."""
    options = dict(arguments)
    if path.is_dir():
        parts: dict[str, list[Path]] = {}
        for file in paths:
            known = [split for split in ("train", "validation", "test") if split in file.stem.lower()]
            parts.setdefault(known[0] if known else "", []).append(file)
        paths = parts[_part(parts, options.pop("split", None), str(path))]
    return _with(load_parquet, paths, options, role)


def _open_idx(
    pairs: Mapping[str, tuple[Path, Path | None]], path: Path, arguments: Mapping[str, Any], role: str
) -> xr.Dataset:
    """The test part of MNIST is called t10k; pictures (n, y, x) get their one channel.

    `size` scales to a square (bilinear); `color=true` repeats the grey channel as red, green and blue, for networks that
    take colour pictures.
    """
    options = dict(arguments)
    named = {"test" if prefix.endswith("t10k") else prefix: pair for prefix, pair in pairs.items()}
    images, labels = named[_part(named, options.pop("split", None), str(path))]
    size, color = options.pop("size", None), options.pop("color", False)
    if options:
        raise InputError(role, expected="the arguments split, size and color", got=", ".join(options))
    if not isinstance(color, bool):
        raise InputError("color", expected="true or false", got=repr(color))
    image = read_idx(images, role)
    if image.ndim not in (3, 4):
        raise InputError(role, expected="pictures (n, y, x)", got=f"shape {image.shape} in {str(images)!r}")
    image = image[:, None] if image.ndim == 3 else image
    if size is not None:
        image = scaled(image, size, role)
    if color and image.shape[1] == 1:
        image = np.repeat(image, 3, axis=1)
    dataset = xr.Dataset({"image": (("sample", "channel", "y", "x"), image)})
    if labels is None:
        return dataset
    label = read_idx(labels, role)
    if label.shape != image.shape[:1] or label.dtype.kind not in "iu":
        raise InputError(
            role, expected=f"{len(image)} labels, as many as pictures", got=f"shape {label.shape} in {str(labels)!r}"
        )
    return dataset.assign(label=("sample", label.astype(np.int64)))


def _open_zarr(path: str, arguments: Mapping[str, Any], role: str) -> Any:
    """An xarray Dataset if it is one by the glossary's names, else arrays to be named."""
    if "://" not in path and (arguments or not _has_dims(Path(path), role)):
        return conventional(read_arrays(Path(path), role), arguments, path, role)
    try:
        # Over a network one consolidated document is read instead of many; on a disk it saves nothing and may be absent.
        dataset = xr.open_zarr(path, chunks={}, consolidated=None if "://" in path else False)
    except Exception as error:  # fsspec and zarr have an exception for everything
        raise InputError(
            role, expected="a readable zarr group", got=f"{path!r}: {type(error).__name__}: {error}"
        ) from error
    if arguments:
        missing = [str(key) for key in arguments.values() if key not in dataset]
        if missing:
            raise InputError(role, expected=f"one of the arrays {', '.join(map(str, dataset))}", got=missing[0])
        dataset = dataset.rename({key: name for name, key in arguments.items()})
    return dataset


def _has_dims(path: Path, role: str) -> bool:
    arrays = read_arrays(path, role)
    return bool(arrays) and all(isinstance(array, xr.DataArray) or array.ndim == 0 for array in arrays.values())
