"""Files of encoded pictures: folders with a sub-folder per class, and Hugging Face parquet. Both are decoded lazily.

Sizes are read first (of a folder from the headers alone), so that pictures that do not agree are an error before any
work. A block of pictures is decoded when something asks for it; a damaged one is named.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xarray as xr
from PIL import Image, ImageOps

from workbench.errors import InputError, MissingDependencyError

__all__ = ["SUFFIXES", "has_images", "load_image_folder", "load_parquet"]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
BLOCK = 256
"""Pictures decoded at once."""
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")
_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)


# ------------------------------------------------------------------------------------------------------------- pictures


def _fit(picture: Image.Image, size: int | None, crop: int | None) -> Image.Image:
    """`size`: scale the shorter side to it, then cut the centre square; `crop`: cut the centre square without scaling."""
    side = size or crop
    if side is None:
        return picture
    if size is not None and min(picture.size) != size:
        scale = size / min(picture.size)
        target = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
        picture = picture.resize(target, Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))


def _decode(source: Path | BinaryIO, name: str, gray: bool, size: int | None, crop: int | None, argument: str) -> np.ndarray:
    """(channel, y, x) uint8, the camera's orientation applied; 16-bit grey is scaled to 8 bits, alpha is dropped."""
    try:
        with Image.open(source) as file:
            picture: Image.Image = ImageOps.exif_transpose(file)
            if picture.mode == "F":
                raise OSError("pictures of floats have no known range; store them as an array")
            if picture.mode.startswith("I;16") or picture.mode == "I":
                wide = np.asarray(picture, dtype=np.float64)
                picture = Image.fromarray(np.clip(np.rint(wide / 257), 0, 255).astype(np.uint8))
            picture = _fit(picture.convert("L" if gray else "RGB"), size, crop)
            pixels = np.array(picture)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others for damaged files
        raise InputError(argument, expected="a readable picture", got=f"{name!r}: {error}") from error
    return pixels[None] if gray else pixels.transpose(2, 0, 1)


def _lazy(blocks: Sequence[tuple[Callable[[], np.ndarray], int]], shape: tuple[int, ...]) -> Any:
    """A dask array of (reader, number of pictures) pieces."""
    from dask import array
    from dask.delayed import delayed

    lazy: Any = array  # dask.array has no types
    return lazy.concatenate([lazy.from_delayed(delayed(read)(), (n, *shape), np.uint8) for read, n in blocks])


def _options(size: Any, crop: Any, gray: Any) -> None:
    for name, value in (("size", size), ("crop", crop)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(name, expected="a positive number of pixels", got=repr(value))
    if size is not None and crop is not None:
        raise InputError("crop", expected="to be left out where size is given", got=repr(crop))
    if gray is not None and not isinstance(gray, bool):
        raise InputError("gray", expected="True or False", got=repr(gray))


# --------------------------------------------------------------------------------------------------------------- folders


def _pictures(folder: Path) -> list[Path]:
    found = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()]
    return sorted(found, key=lambda path: path.name)


def _folders(folder: Path) -> list[Path]:
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda path: path.name)


def has_images(folder: Path) -> bool:
    """Whether a folder or one of its sub-folders holds pictures."""
    return bool(_pictures(folder)) or any(_pictures(child) for child in _folders(folder))


def load_image_folder(
    path: Path, *, size: int | None = None, crop: int | None = None, gray: bool | None = None, argument: str = "data"
) -> xr.Dataset:
    """Pictures of a folder in order of their names, or one picture.

    Each sub-folder with pictures is a class, in order of names; without sub-folders there are no labels. The coordinate
    `name` holds each picture's path below the folder.

    Args:
        path: the folder, or a single picture.
        size: scale the shorter side to this and cut the centre square.
        crop: cut the centre square of this side, without scaling.
        gray: one channel; by default only where every picture is grey.
        argument: what the data are called, for messages.

    Raises:
        InputError: no pictures, a damaged one, or sizes that differ.
    """
    _options(size, crop, gray)
    labelled = [] if path.is_file() or _pictures(path) else [child for child in _folders(path) if _pictures(child)]
    files = [path] if path.is_file() else [file for folder in labelled or [path] for file in _pictures(folder)]
    if not files:
        raise InputError(
            argument, expected=f"pictures ({', '.join(sorted(SUFFIXES))})", got=f"none in {str(path)!r}"
        )
    root = path.parent if path.is_file() else path
    names = [file.relative_to(root).as_posix() for file in files]
    headers = [_header(file, argument) for file in files]
    grey = all(is_grey for _, _, is_grey in headers) if gray is None else gray
    shapes = {(height, width): name for (height, width, _), name in zip(headers, names, strict=True)}
    if size is None and crop is None and len(shapes) > 1:
        few = ", ".join(f"{name} {height}x{width}" for (height, width), name in list(shapes.items())[:2])
        raise InputError(
            argument, expected="pictures of one size", got=f"{len(shapes)} sizes in {str(path)!r} ({few}, ...)",
            hint="Give size=64 to scale and crop them, or crop=64 to cut their centres.",
        )
    if crop is not None:
        for shape, name in shapes.items():
            if min(shape) < crop:
                raise InputError("crop", expected=f"at most {min(shape)}, the side of {name}", got=str(crop))
    side = size or crop
    height, width = (side, side) if side else next(iter(shapes))

    expected = (1 if grey else 3, height, width)

    def decode(file: Path) -> np.ndarray:
        pixels = _decode(file, str(file), grey, size, crop, argument)
        if pixels.shape != expected:
            raise InputError(argument, expected=f"a picture of shape {expected}", got=f"{pixels.shape} in {str(file)!r}")
        return pixels

    def reader(part: Sequence[Path]) -> Callable[[], np.ndarray]:
        return lambda: np.stack([decode(file) for file in part])

    parts = [files[start : start + BLOCK] for start in range(0, len(files), BLOCK)]
    image = _lazy([(reader(part), len(part)) for part in parts], expected)
    dataset = xr.Dataset({"image": (("sample", "channel", "y", "x"), image)}, coords={"name": ("sample", names)})
    if not labelled:
        return dataset
    label = [i for i, folder in enumerate(labelled) for _ in _pictures(folder)]
    dataset = dataset.assign(label=("sample", np.asarray(label, dtype=np.int64)))
    return dataset.assign_coords({"class": [folder.name for folder in labelled]})


def _header(file: Path, argument: str) -> tuple[int, int, bool]:
    """(height, width, grey) after the camera's orientation, without decoding the pixels."""
    try:
        with Image.open(file) as picture:
            width, height = picture.size
            # A PNG may hold its orientation behind the pixels; asking for it there would decode them all.
            known = picture.format != "PNG" or "exif" in picture.info
            turned = known and picture.getexif().get(_ORIENTATION) in _TURNED
            return (width, height, picture.mode in _GREY) if turned else (height, width, picture.mode in _GREY)
    except Exception as error:
        raise InputError(argument, expected="a readable picture", got=f"{str(file)!r}: {error}") from error


# --------------------------------------------------------------------------------------------------------------- parquet


def load_parquet(
    paths: Sequence[Path],
    *,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    crop: int | None = None,
    gray: bool | None = None,
    argument: str = "data",
) -> xr.Dataset:
    """Pictures and labels of parquet files in the Hugging Face layout (a column of encoded pictures, one of labels).

    Args:
        paths: files of one data set, in order.
        image: column of pictures (bytes, or a struct with `bytes`); by default the only such column.
        label: column of labels (integers or text); by default the first of label, labels, fine_label, target, class.
        size: as for `load_image_folder`.
        crop: as for `load_image_folder`.
        gray: one channel; by default where the first picture is grey.
        argument: what the data are called, for messages.

    Raises:
        MissingDependencyError: pyarrow is not installed.
        InputError: a damaged file or picture, no such column, or sizes that differ.
    """
    _options(size, crop, gray)
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingDependencyError(
            "parquet files need pyarrow. Install it with: pip install 'vision-workbench[parquet]'"
        ) from error
    try:
        files = [parquet.ParquetFile(path) for path in paths]
        schema = files[0].schema_arrow
        pictures = _picture_column(pyarrow, schema, image, argument)
        names = ("label", "labels", "fine_label", "target", "class") if label is None else (label,)
        labels = next((name for name in names if name in schema.names), None)
        if label is not None and labels is None:
            raise InputError("label", expected=f"one of the columns {', '.join(schema.names)}", got=repr(label))
        column = [v for path in paths for v in parquet.read_table(path, columns=[labels])[labels].to_pylist()] if labels else []
        groups = [
            (path, group, start, min(start + BLOCK * 4, file.metadata.row_group(group).num_rows))
            for path, file in zip(paths, files, strict=True)
            for group in range(file.metadata.num_row_groups)
            for start in range(0, file.metadata.row_group(group).num_rows, BLOCK * 4)
        ]
    except (pyarrow.ArrowException, OSError, IndexError) as error:
        raise InputError(
            argument, expected="readable parquet files", got=f"{', '.join(repr(str(p)) for p in paths)}: {error}"
        ) from error
    if not groups:
        raise InputError(argument, expected="at least one row", got=f"none in {str(paths[0])!r}")

    def encoded(path: Path, group: int, start: int, stop: int) -> list[tuple[str, bytes]]:
        rows = parquet.ParquetFile(path).read_row_group(group, columns=[pictures])[pictures][start:stop].to_pylist()
        items = [row.get("bytes") if isinstance(row, Mapping) else row for row in rows]
        return [(f"{path}, row group {group}, row {start + i}", item or b"") for i, item in enumerate(items)]

    name, first = encoded(*groups[0][:3], groups[0][2] + 1)[0]
    try:
        with Image.open(io.BytesIO(first)) as picture:
            grey = picture.mode in _GREY if gray is None else gray
    except OSError as error:
        raise InputError(argument, expected="a readable picture", got=f"{name}: {error}") from error
    shape = _decode(io.BytesIO(first), name, grey, size, crop, argument).shape

    def decode(item: tuple[str, bytes]) -> np.ndarray:
        pixels = _decode(io.BytesIO(item[1]), item[0], grey, size, crop, argument)
        if grey and gray is None:  # the first picture was grey; dropping the colours of another must be asked for
            with Image.open(io.BytesIO(item[1])) as picture:
                if picture.mode not in _GREY:
                    raise InputError(
                        argument, expected="only grey pictures, as the first one is", got=f"colour in {item[0]}",
                        hint="Give gray=True or gray=False.",
                    )
        if pixels.shape != shape:
            raise InputError(
                argument, expected=f"pictures of shape {shape}", got=f"{pixels.shape} in {item[0]}",
                hint="Give size=64 to scale and crop them.",
            )
        return pixels

    def reader(*block: Any) -> Callable[[], np.ndarray]:
        return lambda: np.stack([decode(item) for item in encoded(*block)])

    lazy = _lazy([(reader(*block), block[3] - block[2]) for block in groups], shape)
    dataset = xr.Dataset({"image": (("sample", "channel", "y", "x"), lazy)})
    if labels is None:
        return dataset
    return _with_labels(dataset, column, _class_names(schema, labels), labels, argument)


def _picture_column(pyarrow: Any, schema: Any, image: str | None, argument: str) -> str:
    kinds = pyarrow.types

    def holds_bytes(kind: Any) -> bool:
        if kinds.is_struct(kind):
            return "bytes" in [kind.field(i).name for i in range(kind.num_fields)]
        return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))

    columns = [field.name for field in schema if holds_bytes(field.type)]
    if image is not None and image in columns:
        return image
    if image is None and len(columns) == 1:
        return str(columns[0])
    raise InputError(
        argument if image is None else "image",
        expected=f"one of the picture columns {', '.join(columns) or '(none)'}",
        got=f"columns {', '.join(schema.names)}" if image is None else repr(image),
        hint="Name it: (image=COLUMN)." if len(columns) > 1 else "",
    )


def _class_names(schema: Any, column: str) -> list[str]:
    """Names of a ClassLabel, which Hugging Face keeps in the file's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return []


def _with_labels(dataset: xr.Dataset, column: Sequence[Any], names: list[str], what: str, argument: str) -> xr.Dataset:
    if any(value is None or (isinstance(value, float) and math.isnan(value)) for value in column):
        raise InputError(argument, expected="a label in every row", got=f"empty ones in column {what!r}")
    if all(isinstance(value, str) for value in column):
        names = sorted(set(column))
        index = {name: i for i, name in enumerate(names)}
        column = [index[value] for value in column]
    if not all(isinstance(value, int) for value in column):
        raise InputError(argument, expected="labels that are integers or text", got=f"{column[0]!r} in column {what!r}")
    dataset = dataset.assign(label=("sample", np.asarray(column, dtype=np.int64)))
    return dataset.assign_coords({"class": names}) if names else dataset

