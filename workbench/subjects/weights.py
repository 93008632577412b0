"""Weight files: read without running anything they hold, and fitted to a network with one clear error when they do not fit."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from workbench.errors import InputError

__all__ = ["SUFFIXES", "fit_weights", "read_weights"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")
_NESTED = ("state_dict", "model_state_dict", "model", "net", "params_ema", "params", "weights")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 4


def read_weights(path: Path, argument: str = "model") -> dict[str, Tensor]:
    """Tensors by name from a safetensors file or a file of `torch.save`, the latter with `weights_only=True`.

    A checkpoint that nests its weights (under `state_dict`, `model`, `params`, ...) is unwrapped, and prefixes that
    DataParallel and torch.compile leave (`module.`, `_orig_mod.`) are taken off where every key has them.

    Raises:
        InputError: the file is missing, damaged, holds code, or holds no tensors.
    """
    if not path.is_file():
        raise InputError(argument, expected="a file of weights", got=f"{str(path)!r}, which does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the pickle protocol; what cannot be read is an error below
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            argument,
            expected="a file of tensors only",
            got=f"{str(path)!r}, which is damaged or holds Python objects that are never executed",
            hint="Save the state_dict alone, e.g. with safetensors.torch.save_file(model.state_dict(), path).",
        ) from error
    except Exception as error:  # whatever a damaged file makes a foreign reader raise
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            argument,
            expected="a readable file of weights",
            got=f"{str(path)!r}: {type(error).__name__}: {reason[0] if reason else 'unreadable'}",
            hint="" if path.suffix == ".safetensors" or zipfile.is_zipfile(path) else "It may be cut short.",
        ) from error
    for name in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping):
            loaded = loaded[name]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(t, Tensor) for t in loaded.values()):
        kind = type(loaded).__name__
        got = f"a {kind} with {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else f"a {kind}"
        raise InputError(argument, expected="a mapping of names to tensors", got=f"{got} in {str(path)!r}")
    state = {str(key): value for key, value in loaded.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def fit_weights(module: nn.Module, state: Mapping[str, Tensor], *, source: str, argument: str = "model") -> None:
    """Copy weights into a module, which takes their dtypes on; tied parameters stay tied. All keys and shapes must agree.

    Only `num_batches_tracked` may be missing: files older than that counter lack it and it computes nothing.

    Args:
        module: whose state is replaced; untouched if anything does not fit.
        state: tensors by the names of `module.state_dict()`.
        source: where they come from, for the message.
        argument: what the model is called, for the message.

    Raises:
        InputError: lists some of the keys that are missing, unknown or of another shape.
    """
    own = module.state_dict(keep_vars=True)
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and isinstance(tensor, Tensor) and tensor.shape != state[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
        for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise InputError(
            argument, expected=f"weights that fit {type(module).__name__}", got=f"{source} with {'; '.join(problems)}"
        )
    with torch.no_grad():
        for key, tensor in own.items():
            if key in state and isinstance(tensor, Tensor) and tensor.dtype != state[key].dtype:
                tensor.data = tensor.data.to(state[key].dtype)
    module.load_state_dict(dict(state), strict=False)
