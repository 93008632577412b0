"""Data as labelled arrays: what people hold becomes an xarray Dataset, is checked against a role, and gets an identity.

Nothing is guessed about axes: an array's dims are those of the role (or of `schema.VARIABLES`), and pictures that look
channel-last are refused with the line that permutes them. Checks and digests go through lazy arrays block by block.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import xarray as xr

from workbench.errors import InputError
from workbench.fingerprint import ArrayDigest, combine
from workbench.method import DataRole
from workbench.schema import VARIABLES, check_variable

if TYPE_CHECKING:
    from torch import nn

__all__ = ["as_dataset", "check_dataset", "check_model_fits", "dataset_digest"]

BLOCK_BYTES = 16 * 2**20
"""How much of a lazy array is read at once."""
IMAGES = frozenset(name for name, convention in VARIABLES.items() if "channel" in convention.dims)
CHANNELS = (1, 3, 4)


# --------------------------------------------------------------------------------------------------------- conversion


def as_dataset(value: Any, *, variables: Mapping[str, tuple[str, ...]] | None = None, role: str = "data") -> xr.Dataset:
    """Turn what a person holds into an xarray Dataset with conventional names.

    Args:
        value: an xarray Dataset or DataArray (its name counts; an unnamed one is the role's first variable), a mapping
            of name to array, a tuple of arrays (the role's variables in order, `image` and `label` by default), one
            array, a map-style torch Dataset or a DataLoader of such items. Arrays are numpy, torch, dask or lists.
            torch Datasets and loaders are read once, from start to end, into memory.
        variables: dims of each variable the role knows; names it lacks are looked up in `schema.VARIABLES`.
        role: what the argument is called, for messages.

    Returns:
        a Dataset; float16/float64 pictures become float32, integer labels int64. Lazy arrays stay lazy.

    Raises:
        InputError: an unknown type or name, axes that do not fit, or unequal lengths.
    """
    dims = dict(variables or {})
    order = [*dims, *(name for name in ("image", "label") if name not in dims)]
    if isinstance(value, xr.Dataset):
        return _conventional_dtypes(value)
    if isinstance(value, xr.DataArray):
        return _from_data_array(value, dims, order, role)
    if _is_torch_loader(value):
        value = _read_items(value, role)
    if isinstance(value, Mapping):
        named = {str(name): item for name, item in value.items()}
    elif isinstance(value, tuple):
        if len(value) > len(order):
            raise InputError(
                role, expected=f"at most {len(order)} arrays ({', '.join(order)})", got=f"a tuple of {len(value)}"
            )
        named = dict(zip(order, value, strict=False))
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        named = {order[0]: value}
    else:
        raise InputError(
            role,
            expected="an xarray Dataset, a mapping of names to arrays, a tuple (images, labels) or a torch Dataset",
            got=_kind(value),
        )
    if not named:
        raise InputError(role, expected=f"at least one variable ({', '.join(order)})", got="an empty mapping")
    arrays: dict[str, xr.DataArray] = {}
    for name, item in named.items():
        if isinstance(item, xr.DataArray):
            arrays[name] = item
            continue
        array = _array(item, f"{role}[{name!r}]")
        arrays[name] = xr.DataArray(array, dims=_dims_of(name, array.shape, dims, role))
    lengths = {name: array.sizes["sample"] for name, array in arrays.items() if "sample" in array.dims}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise InputError(role, expected="the same number of samples in every variable", got=counts)
    try:
        return _conventional_dtypes(xr.Dataset(arrays))
    except ValueError as error:
        raise InputError(role, expected="variables whose common dims have one length", got=str(error)) from error


def _from_data_array(
    value: xr.DataArray, dims: Mapping[str, tuple[str, ...]], order: Sequence[str], role: str
) -> xr.Dataset:
    name = str(value.name) if value.name is not None else ("image" if value.ndim == 4 else order[0])
    if all(re.fullmatch(r"dim_\d+", str(dim)) for dim in value.dims):  # never named by anyone
        value = value.rename(dict(zip(value.dims, _dims_of(name, value.shape, dims, role), strict=True)))
    return _conventional_dtypes(value.to_dataset(name=name))


def _dims_of(name: str, shape: tuple[int, ...], dims: Mapping[str, tuple[str, ...]], role: str) -> tuple[str, ...]:
    """Dims of a bare array, from the role or the glossary; refuses channel-last and channel-less pictures."""
    argument = f"{role}[{name!r}]"
    if name not in dims and name not in VARIABLES:
        known = [*dims, *VARIABLES]
        near = difflib.get_close_matches(name, known, n=1)
        raise InputError(
            argument,
            expected=f"one of the names {', '.join(dict.fromkeys(known))}",
            got=repr(name),
            hint=f"Did you mean {near[0]!r}?" if near else "Give a DataArray with dims for other variables.",
        )
    expected = tuple(dims[name]) if name in dims else VARIABLES[name].dims
    if "..." in expected and name in VARIABLES:  # a bare array cannot name its own dims: it has the glossary's
        expected = VARIABLES[name].dims
    if len(shape) != len(expected):
        hint = ""
        if name in IMAGES and len(shape) == 3:
            hint = f"Grey pictures need a channel axis: {name}[:, None]."
        raise InputError(argument, expected=f"{len(expected)} axes ({', '.join(expected)})", got=str(shape), hint=hint)
    if name in IMAGES and shape[1] not in CHANNELS and shape[-1] in CHANNELS:
        raise InputError(
            argument,
            expected=f"channels on axis 1 ({', '.join(expected)})",
            got=f"{shape}, which looks channel-last",
            hint=f"Permute the axes: {name}.transpose(0, 3, 1, 2) in numpy, {name}.permute(0, 3, 1, 2) in torch.",
        )
    return expected


def _array(value: Any, argument: str) -> Any:
    """A numpy or dask array of numbers, booleans or strings."""
    if type(value).__module__.split(".")[0] == "torch":
        import torch

        tensor = value.detach().cpu()
        return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    if hasattr(value, "dask"):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InputError(argument, expected="a rectangular array", got=str(error)) from error
    if array.dtype.kind not in "biufUT" and not (
        array.dtype.kind == "O" and all(isinstance(i, str) for i in array.flat)
    ):
        raise InputError(argument, expected="an array of numbers, booleans or strings", got=f"dtype {array.dtype}")
    return array


def _is_torch_loader(value: Any) -> bool:
    """Whether this is a torch Dataset or DataLoader, without importing torch for those who use neither."""
    if not any(base.__module__.startswith("torch.utils.data") for base in type(value).__mro__):
        return False
    from torch.utils.data import DataLoader, Dataset

    return isinstance(value, Dataset | DataLoader)


def _read_items(value: Any, role: str) -> dict[str, Any] | tuple[Any, ...] | np.ndarray:
    """Read a torch Dataset or DataLoader once, in order, into arrays."""
    from torch.utils.data import DataLoader, IterableDataset

    if isinstance(value, IterableDataset):
        raise InputError(role, expected="a map-style torch Dataset", got=_kind(value), hint="Collect its items first.")
    batched = isinstance(value, DataLoader) and value.batch_sampler is not None
    items = iter(value) if isinstance(value, DataLoader) else (value[i] for i in range(len(value)))
    columns: dict[Any, list[np.ndarray]] = {}
    kind: type | None = None
    for item in items:
        fields = item if isinstance(item, Mapping) else dict(enumerate(item if isinstance(item, tuple | list) else [item]))
        kind = kind or (dict if isinstance(item, Mapping) else tuple if isinstance(item, tuple | list) else np.ndarray)
        for name, field in fields.items():
            columns.setdefault(name, []).append(_array(field, f"{role}[{name!r}]"))
    if kind is None:
        raise InputError(role, expected="at least one sample", got="none")
    joined: dict[Any, Any] = {}
    for name, parts in columns.items():
        shapes = {part.shape[1:] if batched else part.shape for part in parts}
        if len(shapes) > 1:
            raise InputError(
                f"{role}[{name!r}]",
                expected="items of one size",
                got=f"{len(shapes)} sizes, e.g. {' and '.join(str(shape) for shape in sorted(shapes)[:2])}",
                hint="Resize or crop them in the data set's transform.",
            )
        joined[name] = np.concatenate(parts) if batched else np.stack(parts)
        parts.clear()
    if kind is dict:
        return {str(name): array for name, array in joined.items()}
    return tuple(joined.values()) if kind is tuple else cast(np.ndarray, joined[0])


def _conventional_dtypes(dataset: xr.Dataset) -> xr.Dataset:
    """float32 pictures and int64 indices; anything else is left for `check_dataset` to judge."""
    for name in list(dataset.data_vars):
        dtype, wanted = dataset[name].dtype, VARIABLES[str(name)].dtypes if str(name) in VARIABLES else ()
        if str(dtype) in wanted:
            continue
        if "float32" in wanted and dtype.kind == "f" and str(name) in IMAGES:
            dataset = dataset.assign({name: dataset[name].astype(np.float32)})
        elif wanted == ("int64",) and dtype.kind in "iu":
            dataset = dataset.assign({name: dataset[name].astype(np.int64)})
    return dataset


# ------------------------------------------------------------------------------------------------------------- checks


def check_dataset(role_name: str, role: DataRole, dataset: xr.Dataset) -> None:
    """Refuse data that do not fit a role, before any work starts. Lazy arrays are read block by block.

    Checked are names, dims and sizes of the role's variables, their dtypes, that pictures lie in 0..1, that nothing is
    NaN or infinite (unless `role.allow_nan`), that labels are classes and probabilities sum to 1.

    Raises:
        InputError: names the variable and, where there is one, the first offending index.
    """
    for name in role.variables:
        if name not in dataset:
            near = difflib.get_close_matches(name, [str(other) for other in dataset.data_vars], n=1)
            raise InputError(
                role_name,
                expected=f"a variable {name!r} with dims ({', '.join(role.variables[name])})",
                got=f"the variables {', '.join(str(other) for other in dataset.data_vars) or '(none)'}",
                hint=f"Rename it: .rename({near[0]}={name!r})." if near else "",
            )
    wanted = {**role.variables, **{name: dims for name, dims in role.optional_variables.items() if name in dataset}}
    for name, dims in wanted.items():
        array, argument = dataset[name], f"{role_name}[{name!r}]"
        if "..." not in dims:
            check_variable(role_name, name, array.dims, dims)
        if 0 in array.shape:
            raise InputError(argument, expected="at least one item along every dim", got=str(dict(array.sizes)))
        _check_dtype(argument, name, array)
        if array.dtype.kind in "iuf":
            _check_values(argument, name, array, allow_nan=role.allow_nan, n_classes=_n_classes(dataset))


def _check_dtype(argument: str, name: str, array: xr.DataArray) -> None:
    if name not in VARIABLES:
        if array.dtype.kind not in "biufUTMm" and not _holds_strings(array):
            raise InputError(argument, expected="numbers, booleans or strings", got=f"dtype {array.dtype}")
        return
    wanted = VARIABLES[name].dtypes
    kinds = {np.dtype(text).kind for text in wanted}
    exact = name in IMAGES or wanted == ("bool",)
    if (str(array.dtype) not in wanted) if exact else (array.dtype.kind not in kinds):
        hint = ""
        if name in IMAGES and array.dtype.kind in "iu":
            hint = "Convert to uint8 (0..255) or to float32 (0..1)."
        raise InputError(argument, expected=" or ".join(wanted), got=str(array.dtype), hint=hint)


def _holds_strings(array: xr.DataArray) -> bool:
    return bool(array.dtype.kind == "O" and all(isinstance(item, str) for item in np.asarray(array).flat))


def _check_values(argument: str, name: str, array: xr.DataArray, *, allow_nan: bool, n_classes: int | None) -> None:
    """Look at every value once, block by block."""
    low, high = math.inf, -math.inf
    for start, block in _blocks(array):
        if block.dtype.kind == "f":
            finite = np.isfinite(block) | (np.isnan(block) & allow_nan)
            if not finite.all():
                index = [int(i) for i in np.argwhere(~finite)[0]]
                value = block[tuple(index)]
                index[0] += start
                got = f"{value} at {', '.join(f'{d}={i}' for d, i in zip(array.dims, index, strict=True))}"
                raise InputError(argument, expected="finite numbers" if not allow_nan else "no infinities", got=got)
        if block.size and not (block.dtype.kind == "f" and np.isnan(block).all()):
            low, high = min(low, float(np.nanmin(block))), max(high, float(np.nanmax(block)))
        if name == "probability" and block.ndim == 2:
            totals = block.sum(axis=1, dtype=np.float64)
            worst = int(np.nanargmax(np.abs(totals - 1))) if not np.isnan(totals).all() else 0
            if abs(totals[worst] - 1) > 1e-2:
                raise InputError(
                    argument, expected="rows that sum to 1", got=f"a sum of {totals[worst]:.4g} at sample={start + worst}"
                )
    _check_range(argument, name, array.dtype, low, high, n_classes)


def _check_range(argument: str, name: str, dtype: np.dtype[Any], low: float, high: float, n_classes: int | None) -> None:
    tolerance, found = 1e-4, f"values from {low:.4g} to {high:.4g}"
    if name in IMAGES and dtype.kind == "f" and (low < -tolerance or high > 1 + tolerance):
        hint = "They look standardised: undo it, models of the workbench normalise their input themselves."
        if low >= 0:
            hint = "They look like 0..255: divide by 255, or pass them as uint8." if high <= 255 else "Divide by the maximum."
        raise InputError(argument, expected="float pictures in 0..1", got=found, hint=hint)
    if name == "probability" and (low < -tolerance or high > 1 + tolerance):
        raise InputError(argument, expected="probabilities in 0..1", got=found, hint="Pass scores as `logit`.")
    if name in ("label", "prediction", "token_id") and low < 0:
        what = "token ids" if name == "token_id" else "class indices"
        raise InputError(argument, expected=f"{what} from 0", got=found)
    if name in ("label", "prediction") and n_classes is not None and high >= n_classes:
        hint = "Count classes from 0." if high == n_classes else ""
        raise InputError(argument, expected=f"class indices 0..{n_classes - 1}", got=found, hint=hint)


def _n_classes(dataset: xr.Dataset) -> int | None:
    """Number of classes, where the data say so."""
    return int(dataset.sizes["class"]) if "class" in dataset.sizes else None


def check_model_fits(
    role: str, model: nn.Module, image: xr.DataArray, *, labels: xr.DataArray | None = None, task: str = "classifier"
) -> None:
    """Run a model on the first two pictures and see that its output is what the task needs.

    Args:
        role: what the model argument is called, for messages.
        model: maps float32 pictures in 0..1 (sample, channel, y, x) to logits (sample, class) if `task` is
            "classifier", to anything finite otherwise. Its mode and parameters are left as they are.
        image: the pictures, (sample, channel, y, x), float32 or uint8.
        labels: their true classes; must be below the number of logits.
        task: as in `ModelRole.task`.

    Raises:
        InputError: the model fails on them, or its output does not fit.
    """
    import torch

    few = np.asarray(image[:2])
    scale = 255.0 if few.dtype == np.uint8 else 1.0
    tensor = next((t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()), torch.empty(0))
    batch = (torch.from_numpy(np.ascontiguousarray(few)).to(torch.float32) / scale).to(tensor.device, tensor.dtype)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            output = model(batch)
    except Exception as error:  # whatever a foreign forward raises, it means that the two do not fit
        first_line = str(error).strip().splitlines()[:1]
        raise InputError(
            role,
            expected=f"a model that accepts pictures of shape {tuple(batch.shape)}",
            got=f"{type(error).__name__}: {first_line[0] if first_line else ''}",
        ) from error
    finally:
        for module, training in modes:
            module.training = training
    if not isinstance(output, torch.Tensor):
        raise InputError(role, expected="a model that returns a tensor", got=_kind(output))
    if not torch.isfinite(output).all():
        raise InputError(role, expected="finite outputs", got="NaN or infinity on the first pictures")
    if task != "classifier":
        return
    if output.ndim != 2 or output.shape[0] != len(few) or output.shape[1] < 2:
        raise InputError(role, expected=f"logits of shape ({len(few)}, classes)", got=f"shape {tuple(output.shape)}")
    if labels is not None:
        highest = int(labels.max())
        if highest >= output.shape[1]:
            raise InputError(
                role, expected=f"logits for every class of the labels, 0..{highest}", got=f"{output.shape[1]} logits"
            )


# ----------------------------------------------------------------------------------------------------------- identity


def dataset_digest(dataset: xr.Dataset) -> str:
    """SHA-256 of the content: name, dims, dtype, shape and values of every variable and coordinate.

    Attributes, encodings and chunking do not count; a lazy array and its copy in memory have one digest.

    Raises:
        InputError: a variable holds Python objects other than strings.
    """
    parts = {}
    for name, array in dataset.variables.items():
        kind = "coordinate" if name in dataset.coords else "variable"
        if array.dtype.kind not in "biufcmMUT" and not _holds_strings(dataset[name]):
            raise InputError(str(name), expected="numbers, booleans or strings", got=f"dtype {array.dtype}")
        state = ArrayDigest(array.dtype, array.shape)
        for _, block in _blocks(dataset[name]):
            state.update(block)
        parts[f"{kind} {name} ({', '.join(str(dim) for dim in array.dims)})"] = state.hexdigest()
    return combine(parts)


def _blocks(array: xr.DataArray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, values) of consecutive blocks along the leading dim, each about `BLOCK_BYTES` long."""
    variable = array.variable
    if variable.ndim == 0:
        yield 0, np.asarray(variable.values)
        return
    row_bytes = max(1, variable.dtype.itemsize * math.prod(variable.shape[1:]))
    rows = max(1, BLOCK_BYTES // row_bytes)
    for start in range(0, variable.shape[0], rows):
        yield start, np.asarray(variable[start : start + rows].values)


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
