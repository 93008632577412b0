"""Files of arrays: npz, npy, safetensors, zarr and idx. Each reader returns arrays under the names the file gives them.

`conventional` then gives them the names of the glossary. What a file calls its variables is recognised by this table
(`_train`, `_test` and `_val` at the end, or `train_` ... at the beginning, name a part of the file):

    variable      names in files
    image         image, images, img, imgs, x, pixels
    label         label, labels, y, target, targets, ground_truth
    logit         logit, logits
    probability   probability, probabilities, probs, prediction(s) of floats
    prediction    prediction, predictions, pred, preds of integers
    feature       feature, features, embedding, embeddings
    others        their own name in `schema.VARIABLES`

Anything else is named in the spec: `file.npz(image=my_pictures, label=my_classes)`.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.schema import VARIABLES

__all__ = ["SPLITS", "channel_first", "conventional", "find_idx", "read_arrays", "read_idx", "scaled"]

Arrays = Mapping[str, Any]

ALIASES: Mapping[str, str] = {
    **{name: name for name in VARIABLES},
    **dict.fromkeys(("images", "img", "imgs", "x", "pixels"), "image"),
    **dict.fromkeys(("labels", "y", "target", "targets", "ground_truth"), "label"),
    **dict.fromkeys(("logits",), "logit"),
    **dict.fromkeys(("probabilities", "probs"), "probability"),
    **dict.fromkeys(("predictions", "pred", "preds"), "prediction"),
    **dict.fromkeys(("features", "embedding", "embeddings"), "feature"),
}
SPLITS = ("train", "val", "test")
IMAGES = frozenset(name for name, convention in VARIABLES.items() if "channel" in convention.dims)


# -------------------------------------------------------------------------------------------------------------- reading


def read_arrays(path: Path, argument: str) -> dict[str, Any]:
    """Arrays by name from an npz, npy, safetensors or zarr; npy is memory-mapped and zarr lazy. An npy's name is empty.

    Raises:
        InputError: the file is damaged or holds Python objects.
    """
    reader = _READERS.get(path.suffix.lower(), _read_zarr)
    try:
        return reader(path)
    except InputError:
        raise
    except Exception as error:  # each reader has its own exceptions for damaged files
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            argument,
            expected=f"a readable {path.suffix.lstrip('.') or 'zarr'} file of arrays",
            got=f"{str(path)!r}: {type(error).__name__}: {reason[0] if reason else ''}",
            hint="It is damaged, cut short, or holds Python objects, which are never read.",
        ) from error


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_npy(path: Path) -> dict[str, Any]:
    return {"": np.load(path, mmap_mode="r", allow_pickle=False)}


def _read_safetensors(path: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path)
    return {n: (t.float() if t.dtype is torch.bfloat16 else t).numpy() for n, t in tensors.items()}


def _read_zarr(path: Path) -> dict[str, Any]:
    """Every array of a group, as DataArrays with the dims the file names, or else as bare lazy arrays."""
    import zarr
    from dask import array as untyped

    dask: Any = untyped
    node = zarr.open(str(path), mode="r")
    if isinstance(node, zarr.Array):
        return {"": dask.from_zarr(node)}
    arrays: dict[str, Any] = {}
    for name, array in node.arrays():
        dims: Any = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
        lazy = dask.from_zarr(array) if array.ndim else np.asarray(array[...])
        arrays[name] = xr.DataArray(lazy, dims=dims) if dims and None not in dims else lazy
    return arrays


_READERS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".zarr": _read_zarr,
}

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path, argument: str) -> np.ndarray:
    """One array from an idx file, gzipped or not.

    Raises:
        InputError: it is no idx file, or has fewer or more bytes than its header says.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(argument, expected="an undamaged idx file", got=f"{str(path)!r}: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise InputError(argument, expected="an idx file", got=f"{str(path)!r}, which begins with {content[:4].hex()}")
    dtype, ndim = np.dtype(_IDX_TYPES[content[2]]), content[3]
    header = 4 + 4 * ndim
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], ">u4")) if len(content) >= header else ()
    wanted = header + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(content) != wanted or len(shape) != ndim:
        raise InputError(
            argument, expected=f"{wanted} bytes for an array of shape {shape}", got=f"{len(content)} in {str(path)!r}",
            hint="The file is damaged or cut short.",
        )
    values: np.ndarray = np.frombuffer(content, dtype, offset=header).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def scaled(image: np.ndarray, size: Any, argument: str) -> np.ndarray:
    """Pictures (sample, channel, y, x), uint8, at `size` x `size` pixels (Pillow's bilinear filter).

    Raises:
        InputError: no such size, or pictures that are not uint8.
    """
    from PIL import Image

    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 4096:
        raise InputError("size", expected="an integer from 1 to 4096", got=repr(size))
    if image.dtype != np.uint8:
        raise InputError(argument, expected="uint8 pictures where a size is given", got=str(image.dtype))
    flat = image.reshape(-1, *image.shape[2:])
    pictures = [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR)) for one in flat]
    return np.stack(pictures).reshape(*image.shape[:2], size, size)


def find_idx(path: Path) -> dict[str, tuple[Path, Path | None]]:
    """Pairs of (pictures, labels) by prefix: of a folder, of a prefix such as `mnist/t10k`, or of the pictures' own path."""
    if path.is_dir():
        candidates = sorted(path.glob("*images*idx*"))
    else:
        candidates = [path] if path.is_file() else sorted(path.parent.glob(f"{path.name}*images*idx*"))
    pairs: dict[str, tuple[Path, Path | None]] = {}
    for images in candidates:
        prefix = images.name.partition("images")[0].rstrip("-_.")
        name = re.sub(r"idx\d", "idx1", images.name.replace("images", "labels")).removesuffix(".gz")
        found = [images.with_name(name + end) for end in ("", ".gz") if images.with_name(name + end).is_file()]
        if prefix not in pairs:  # unpacked and packed copies side by side are one pair
            pairs[prefix] = (images, found[0] if found and found[0] != images else None)
    return pairs


# --------------------------------------------------------------------------------------------------------------- naming


def conventional(arrays: Arrays, arguments: Mapping[str, Any], source: str, argument: str) -> dict[str, Any]:
    """Arrays under the glossary's names, pictures channel-first, ready for `as_dataset`.

    Args:
        arrays: by the file's names.
        arguments: of the spec: `layout` (NCHW, NHWC, NHW, NWHC, ...), `split` (train, val, test or all, where the
            file holds several; test unless given), `variable` (what a lone array is), and `VARIABLE=NAME in the file`.
        source: the file, for messages.
        argument: what the data are called, for messages.

    Raises:
        InputError: a name that is not in the file, or nothing that is recognised.
    """
    options = dict(arguments)
    layout, split, variable = (options.pop(key, None) for key in ("layout", "split", "variable"))
    if list(arrays) == [""]:
        arrays = {_lone(arrays[""], variable, source, argument): arrays[""]}
    elif variable is not None:
        raise InputError("variable", expected="a file with one array", got=f"the arrays {', '.join(arrays)} in {source}")
    if options:
        chosen = {str(name): [_known(str(key), arrays, source, argument)] for name, key in options.items()}
        if split is not None:
            raise InputError("split", expected="to be left out where variables are named one by one", got=repr(split))
        origin: list[str] = []
    else:
        chosen, origin = _recognise(arrays, split, source, argument)
    named: dict[str, Any] = {}
    lengths: list[int] = []
    for name, keys in chosen.items():
        parts = [_tidy(name, arrays[key], layout, f"{argument}[{name!r}]", key) for key in keys]
        named[name] = parts[0] if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])
        if origin and "sample" in VARIABLES[name].dims:
            lengths = [len(part) for part in parts]
    if origin:
        named["split"] = xr.DataArray(np.repeat(np.array(origin), lengths), dims=("sample",))
    return named


def _lone(array: Any, variable: Any, source: str, argument: str) -> str:
    if variable is not None:
        return str(variable)
    if array.ndim == 4:
        return "image"
    raise InputError(
        argument, expected="pictures (4 axes), or to be told what the array is",
        got=f"an array of shape {tuple(array.shape)} in {source}", hint=f"For example {source}(variable=feature).",
    )


def _known(key: str, arrays: Arrays, source: str, argument: str) -> str:
    if key not in arrays:
        raise InputError(argument, expected=f"one of the arrays {', '.join(arrays)} of {source}", got=repr(key))
    return key


def _recognise(arrays: Arrays, split: Any, source: str, argument: str) -> tuple[dict[str, list[str]], list[str]]:
    """The file's names of each variable, part after part, and the parts where there are several in one variable."""
    found: dict[str, dict[str, str]] = {}
    for key, array in arrays.items():
        part, base = _part(key)
        name = ALIASES.get(base.lower())
        if name == "prediction" and np.dtype(array.dtype).kind == "f":
            name = "probability"
        if name is None:
            continue
        if key in VARIABLES and name in found.get(part, {}):
            continue
        if name in found.setdefault(part, {}):
            raise InputError(
                argument, expected=f"one array for {name!r}", got=f"{found[part][name]!r} and {key!r} in {source}",
                hint=f"Choose: {source}({name}={key}).",
            )
        found[part][name] = key
    if not found:
        raise InputError(
            argument, expected="arrays with names such as image and label", got=f"{', '.join(arrays) or 'none'} in {source}",
            hint=f"Name them: {source}(image=NAME, label=NAME).",
        )
    parts = [part for part in SPLITS if part in found]
    if split is None:
        wanted = parts if len(parts) < 2 else ["test" if "test" in parts else parts[-1]]
    elif split == "all":
        wanted = parts
    elif split in parts:
        wanted = [split]
    else:
        raise InputError("split", expected=f"one of {', '.join([*parts, 'all']) if parts else 'none: there is only one part'}",
                         got=repr(split))
    common = found.get("", {})
    if len(wanted) > 1:
        names = [name for name in found[wanted[0]] if all(name in found[part] for part in wanted)]
        return {name: [found[part][name] for part in wanted] for name in names}, wanted
    chosen = {name: [key] for name, key in common.items()} if not wanted or split is None else {}
    return chosen | {name: [key] for part in wanted for name, key in found[part].items()}, []


def _part(key: str) -> tuple[str, str]:
    for part in SPLITS:
        if key.lower().endswith(f"_{part}"):
            return part, key[: -len(part) - 1]
        if key.lower().startswith(f"{part}_"):
            return part, key[len(part) + 1 :]
    return "", key


def _tidy(name: str, array: Any, layout: Any, argument: str, key: str) -> Any:
    if isinstance(array, xr.DataArray):
        return array
    if name in IMAGES:
        return channel_first(array, layout, argument)
    if VARIABLES.get(name) is not None and VARIABLES[name].dims == ("sample",) and array.ndim == 2 and array.shape[1] == 1:
        return array[:, 0]
    return array


def channel_first(array: Any, layout: Any, argument: str) -> Any:
    """Axes in the order NCHW, from a layout that names them; without one the array comes back as it is.

    Raises:
        InputError: the layout does not fit, or there is none and the axes are not (sample, channel, y, x).
    """
    if layout is None:
        hint = ""
        if array.ndim == 3:
            hint = "Give layout=NHW for grey pictures, or layout=HWC, CHW for one picture."
        elif array.ndim == 4 and array.shape[1] not in (1, 3, 4) and array.shape[3] in (1, 3, 4):
            hint = "Give layout=NHWC."
        if hint:
            raise InputError(
                argument, expected="4 axes (sample, channel, y, x)", got=f"shape {tuple(array.shape)}", hint=hint
            )
        return array
    letters = str(layout).upper()
    valid = set(letters) <= set("NCHW") and {"H", "W"} <= set(letters) and len(set(letters)) == len(letters)
    if not valid or len(letters) != array.ndim:
        raise InputError("layout", expected=f"{array.ndim} of the letters N, C, H, W, for {argument}", got=repr(layout))
    order: Sequence[int] = [letters.index(letter) for letter in "NCHW" if letter in letters]
    array = array.transpose(order)
    index = tuple(slice(None) if letter in letters else None for letter in "NCHW")
    return array[index]
