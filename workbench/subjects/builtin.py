"""Data and models that the workbench brings: names for `bench.run(..., data="digits", model="small-cnn")`.

Data sets come with scikit-learn, scikit-image and Python itself, or are looked for under the folder that $WORKBENCH_DATA names:

    $WORKBENCH_DATA/cifar10/     CIFAR-10, the extracted python or binary version, or one npz with x_train, y_train, ...
    $WORKBENCH_DATA/weights/     cifar10_resnet20.safetensors and its deeper siblings

Importing this module imports neither torch nor scikit-learn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.subjects.array_files import conventional, read_arrays
from workbench.subjects.cifar import CIFAR10_CLASSES, is_cifar, load_cifar
from workbench.subjects.text_files import python_source

if TYPE_CHECKING:
    from torch import nn

    from workbench.subjects.models import Model

__all__ = ["DATASETS", "FACTORIES", "cifar10", "data_folder", "digits", "photos"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "moon", "rocket", "coins", "brick", "grass", "gravel")
"""Photographs inside the scikit-image wheel (the others of `skimage.data` are downloaded); the first come first."""
DIGITS_SPLIT = {"train": 0.7, "test": 0.3}


def data_folder() -> Path | None:
    """The folder that $WORKBENCH_DATA names, or None."""
    folder = os.environ.get("WORKBENCH_DATA", "").strip()
    return Path(folder).expanduser() if folder else None


# ----------------------------------------------------------------------------------------------------------------- data


def digits(split: str = "all", size: int = 8) -> xr.Dataset:
    """1,797 handwritten digits of 8x8 pixels, grey, in 0..1 (UCI, from scikit-learn).

    Args:
        split: "all" in the published order, or "train" (70 %) or "test" (30 %) of a fixed stratified split.
        size: side to scale to, bilinear.
    """
    from sklearn.datasets import load_digits

    from workbench.toolkit.splits import split_indices

    if split not in ("all", *DIGITS_SPLIT):
        raise InputError("split", expected="all, train or test", got=repr(split))
    _check_size("size", size, 8)
    content = load_digits()
    image = (content.images[:, None] / 16).astype(np.float32)
    label = content.target.astype(np.int64)
    if split != "all":
        index = split_indices(label, DIGITS_SPLIT, seed=0)[split]
        image, label = image[index], label[index]
    if size != 8:
        import torch

        scaled = torch.nn.functional.interpolate(torch.from_numpy(image), size=(size, size), mode="bilinear")
        image = scaled.clamp(0, 1).numpy()
    return xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), image), "label": ("sample", label)},
        coords={"class": [str(digit) for digit in range(10)]},
    )


def photos(size: int = 256, count: int | None = None, gray: bool = False, shrink: int = 1) -> xr.Dataset:
    """Square crops of the photographs that come with scikit-image, uint8; coordinate `name` says which photo.

    By default the centre crop of each photo. With `count`, the crops of a centred grid over each photo, photo by photo in
    turn: no two of them overlap, so that some can be trained on and others reported on.

    Args:
        size: side of the crops; photos that are smaller are left out.
        count: number of crops; by default one of each photo.
        gray: luminance (ITU-R 601) in one channel instead of RGB.
        shrink: first reduce the photos by this factor (mean of `shrink` x `shrink` pixels), so that small crops show
            more than a patch of texture.
    """
    from PIL import Image
    from skimage import data

    _check_size("size", size, 8)
    if not isinstance(gray, bool):
        raise InputError("gray", expected="True or False", got=repr(gray))
    _check_size("shrink", shrink, 1)
    if count is not None:
        _check_size("count", count, 1)
    pictures = {name: Image.fromarray(getattr(data, name)()).convert("L" if gray else "RGB") for name in PHOTOS}
    pictures = {name: picture.reduce(shrink) for name, picture in pictures.items()}
    pictures = {name: picture for name, picture in pictures.items() if min(picture.size) >= size}
    boxes = [(name, _centre(picture.size, size)) for name, picture in pictures.items()] if count is None else []
    tiles = {name: [] if count is None else _tiles(picture.size, size) for name, picture in pictures.items()}
    for turn in range(max((len(found) for found in tiles.values()), default=0)):
        boxes += [(name, found[turn]) for name, found in tiles.items() if turn < len(found)]
    wanted = len(pictures) if count is None else count
    if not pictures or wanted > len(boxes):
        if not pictures:
            limit = f"at most {512 // shrink}, the smaller side of the largest photo"
            raise InputError("size", expected=limit, got=str(size))
        raise InputError("count", expected=f"at most {len(boxes)} crops of {size}x{size}", got=str(wanted))
    chosen = boxes[:wanted]
    crops = [np.asarray(pictures[name].crop((x, y, x + size, y + size))) for name, (x, y) in chosen]
    image = np.stack([crop[None] if gray else crop.transpose(2, 0, 1) for crop in crops])
    return xr.Dataset(
        {"image": (("sample", "channel", "y", "x"), image)}, coords={"name": ("sample", [name for name, _ in chosen])}
    )


def _centre(shape: tuple[int, int], size: int) -> tuple[int, int]:
    return (shape[0] - size) // 2, (shape[1] - size) // 2


def _tiles(shape: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """Corners of the grid of crops, centred."""
    columns, rows = shape[0] // size, shape[1] // size
    left, top = (shape[0] - columns * size) // 2, (shape[1] - rows * size) // 2
    return [(left + i * size, top + j * size) for j in range(rows) for i in range(columns)]


def _check_size(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(name, expected=f"an integer from {least}", got=repr(value))


def cifar10(root: str | None = None, split: str = "test") -> xr.Dataset:
    """CIFAR-10: 32x32 colour pictures of ten classes, uint8.

    Args:
        root: folder of the extracted python or binary version, or an npz (or a folder with one) that holds
            x_train, y_train, x_test, y_test; by default $WORKBENCH_DATA/cifar10.
        split: "test", "train" or "all" (train, then test).
    """
    if root is None and (base := data_folder()) is None:
        raise InputError("root", expected="the folder of CIFAR-10", got="none", hint=_HINT)
    folder = Path(root).expanduser() if root is not None else base / "cifar10"  # type: ignore[operator]
    if not folder.exists():
        raise InputError(
            "root", expected="the folder of CIFAR-10", got=f"{str(folder)!r}, which does not exist", hint=_HINT
        )
    nested = folder / "cifar-10-batches-py"
    folder = nested if nested.is_dir() and not is_cifar(folder) else folder
    if folder.is_dir() and is_cifar(folder):
        return load_cifar(folder, split, argument="data")
    files = [folder] if folder.suffix == ".npz" else sorted(folder.glob("*.npz"))
    if len(files) != 1:
        raise InputError(
            "root", expected="CIFAR-10 batches or one npz", got=f"{len(files)} npz in {str(folder)!r}", hint=_HINT
        )
    named = conventional(read_arrays(files[0], "data"), {"split": split}, str(files[0]), "data")
    dims = ("sample", "channel", "y", "x")
    image, label = named["image"], np.asarray(named["label"], dtype=np.int64)
    if image.shape[1:] != (3, 32, 32) or label.max() > 9:
        raise InputError(
            "root", expected="pictures of shape (3, 32, 32) and labels 0..9", got=f"{image.shape}, {label.max()}"
        )
    dataset = xr.Dataset({"image": (dims, image), "label": ("sample", label)}, coords={"class": list(CIFAR10_CLASSES)})
    return dataset.assign_coords(split=named["split"]) if "split" in named else dataset


_HINT = (
    "Download cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, and write "
    "cifar10(root='/path/to/cifar-10-batches-py') or set $WORKBENCH_DATA to a folder that has it as cifar10/."
)

DATASETS: Mapping[str, Callable[..., xr.Dataset]] = {
    "digits": digits,
    "photos": photos,
    "cifar10": cifar10,
    "python-source": python_source,
}


# --------------------------------------------------------------------------------------------------------------- models


def small_cnn(n_classes: int, channels: int = 1, width: int = 16) -> nn.Module:
    """A small classifier for pictures from 8x8 upwards."""
    from workbench.subjects.networks import SmallCNN

    return SmallCNN(n_classes, channels, width)


def small_gpt(vocabulary: int = 256, blocks: int = 4, width: int = 64, heads: int = 4, context: int = 128) -> nn.Module:
    """A small causal language model with initial weights; 256 tokens are bytes."""
    from workbench.subjects.language_networks import SmallGPT

    sizes = {"vocabulary": vocabulary, "blocks": blocks, "width": width, "heads": heads, "context": context}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise InputError(name, expected="an integer from 1", got=repr(size))
    if width % heads:
        raise InputError("width", expected=f"a multiple of heads ({heads})", got=str(width))
    return SmallGPT(vocabulary, blocks, width, heads, context)


def _resnet(depth: int, n_classes: int = 10) -> nn.Module:
    """The residual network of He et al. for CIFAR, without weights or normalisation."""
    from workbench.subjects.networks import CifarResNet

    return CifarResNet((depth - 2) // 6, n_classes)


def _cifar10_resnet(depth: int, weights: str | None = None) -> Model:
    """The residual network trained on CIFAR-10, with the normalisation and class names it was trained with."""
    from workbench.subjects.models import Model
    from workbench.subjects.networks import CifarResNet
    from workbench.subjects.weights import fit_weights, read_weights

    name = f"cifar10_resnet{depth}.safetensors"
    folder = data_folder()
    path = Path(weights) if weights is not None else folder / "weights" / name if folder is not None else None
    if path is None or not path.is_file():
        where = "$WORKBENCH_DATA is not set" if path is None else f"{str(path)!r} does not exist"
        raise InputError(
            "model",
            expected=f"the weights of cifar10-resnet{depth}",
            got=f"none: {where}",
            hint=f"Write cifar10-resnet{depth}@FILE, or put {name} into $WORKBENCH_DATA/weights/.",
        )
    network = CifarResNet((depth - 2) // 6)
    fit_weights(network, read_weights(path), source=str(path))
    return Model(
        network,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        input_shape=(3, 32, 32),
        classes=CIFAR10_CLASSES,
        factory=f"resnet{depth}",
        factory_arguments={"n_classes": 10},
    )


DEPTHS = (20, 32, 44, 56)
FACTORIES: Mapping[str, Callable[..., nn.Module]] = {
    "small-cnn": small_cnn,
    "small-gpt": small_gpt,
    **{f"resnet{depth}": partial(_resnet, depth) for depth in DEPTHS},
    **{f"cifar10-resnet{depth}": partial(_cifar10_resnet, depth) for depth in DEPTHS},
}
