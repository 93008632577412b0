"""Models: a network with what a method must know about it, and how it is taken apart into arrays and JSON.

`Model` is the one wrapper, `model_state` what is stored of it; `building` makes models from names and stored states.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench.errors import InputError
from workbench.fingerprint import canonical_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["WIDENED", "Model", "as_model", "data_facts", "model_state"]

_OWN = frozenset(
    {"network", "mean", "std", "input_shape", "classes", "factory", "factory_arguments", "label", "_constants"}
)
_SHARED = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class Model(nn.Module):
    """A network that takes pictures in 0..1 and normalises them itself: `model(x) == network((x - mean) / std)`.

    The model has the network's own parts rather than the network as a part: layers and state keys are called as in the
    bare network (`layer1.0.conv1`, `conv1.weight`), and replacing a layer of one replaces it in the other. A network
    with a part named like an attribute of this class (`mean`, `label`, ...) goes one level down, under `inner`.

    Args:
        network: maps normalised pictures (sample, channel, y, x) to logits (sample, class), or whatever its task is.
        mean: of each channel (or one number); empty = no normalisation.
        std: of each channel (or one number), positive.
        input_shape: (channel, y, x) of the pictures it was made for, where known.
        classes: names of the outputs, where known.
        factory: registered name that builds the bare network again, so that a stored state can be loaded.
        factory_arguments: JSON values the factory is called with.
        label: what a person calls the model; no part of its identity.

    Raises:
        InputError: a mean without std, a std that is not positive, or counts that differ.
    """

    _labels: frozenset[str] = frozenset({"label"})
    network: nn.Module

    def __init__(
        self,
        network: nn.Module,
        *,
        mean: Sequence[float] | float = (),
        std: Sequence[float] | float = (),
        input_shape: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        factory: str = "",
        factory_arguments: Mapping[str, Any] | None = None,
        label: str = "",
    ) -> None:
        super().__init__()
        parts = {*network._modules, *network._parameters, *network._buffers}
        if parts & _OWN or isinstance(network, torch.jit.ScriptModule):
            network = nn.Sequential(OrderedDict(inner=network))
        # Not `self.network = network`: that would register it as a child and put `network.` before every name.
        self.__dict__["network"] = network
        for name in _SHARED:
            self.__dict__[name] = getattr(network, name)
        self.mean, self.std = _numbers(mean), _numbers(std)
        self.input_shape = None if input_shape is None else tuple(int(size) for size in input_shape)
        self.classes = tuple(str(name) for name in classes)
        self.factory = factory
        self.factory_arguments = dict(factory_arguments or {})
        self.label = label or factory or type(network).__name__
        _check_metadata(self)
        self._constants = torch.tensor([self.mean, self.std], dtype=torch.float32)[:, :, None, None]

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The network's output for pictures in 0..1; further arguments are handed on."""
        if self.mean:
            if not x.is_floating_point():
                raise InputError("image", expected="floats in 0..1", got=f"a tensor of {x.dtype}", hint="Divide by 255.")
            mean, std = self._constants.to(x.dtype)
            x = (x - mean) / std
        return self.network(x, *args, **kwargs)

    # The network is no child of the model, so whatever torch does to a module itself is handed on to it.

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Mode of the network."""
        return bool(self.__dict__["network"].training) if "network" in self.__dict__ else True

    @training.setter
    def training(self, mode: bool) -> None:
        if "network" in self.__dict__:  # not yet so when nn.Module's constructor sets it
            self.__dict__["network"].training = mode

    def train(self, mode: bool = True) -> Model:
        """Set the mode of the network and all its layers."""
        self.network.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The network's state, under the network's names."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load a state of the network."""
        return self.network.load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        self.network._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Constants follow the device but keep their precision: `.half().float()` must not round the normalisation.
        device = fn(torch.empty(0, device=self._constants.device)).device
        self._constants = torch.tensor([self.mean, self.std], device=device)[:, :, None, None]
        return self

    def extra_repr(self) -> str:
        """Class of the network and its normalisation."""
        parts = [type(self.network).__name__]
        parts += [f"mean={self.mean}, std={self.std}"] if self.mean else []
        return ", ".join(parts)


def _numbers(values: Sequence[float] | float) -> tuple[float, ...]:
    return tuple(float(value) for value in np.atleast_1d(np.asarray(values, dtype=np.float64)))


def _check_metadata(model: Model) -> None:
    mean, std = model.mean, model.std
    if len(mean) != len(std):
        raise InputError("std", expected=f"as many numbers as mean ({len(mean)})", got=str(len(std)))
    if not np.isfinite(mean).all():
        raise InputError("mean", expected="finite numbers", got=str(mean))
    if not all(np.isfinite(value) and value > 0 for value in std):
        raise InputError("std", expected="positive numbers", got=str(std))
    if model.input_shape is not None and (len(model.input_shape) != 3 or min(model.input_shape) < 1):
        raise InputError("input_shape", expected="(channel, y, x), all positive", got=str(model.input_shape))
    if model.input_shape is not None and len(mean) > 1 and len(mean) != model.input_shape[0]:
        raise InputError("mean", expected=f"one number per channel ({model.input_shape[0]})", got=str(len(mean)))
    try:
        canonical_json(model.factory_arguments)
    except (TypeError, ValueError) as error:
        raise InputError("factory_arguments", expected="JSON values", got=str(error)) from error


def as_model(module: nn.Module, *, example: xr.Dataset | None = None, label: str = "") -> Model:
    """The module itself if it is a Model, else a Model around it without normalisation.

    Args:
        module: any module; its layers are shared with the model, not copied.
        example: data it will see; tells `input_shape`.
        label: what a person calls it.
    """
    if isinstance(module, Model):
        return module
    return Model(module, input_shape=data_facts(example)[0], label=label)


def data_facts(example: xr.Dataset | None) -> tuple[tuple[int, ...] | None, tuple[str, ...], int | None]:
    """(channel, y, x), class names and number of classes that a data set shows."""
    if example is None:
        return None, (), None
    shape: tuple[int, ...] | None = None
    if "image" in example and example["image"].ndim == 4:
        shape = tuple(int(size) for size in example["image"].shape[1:])
    if "class" in example.coords:
        names = tuple(str(name) for name in example["class"].values)
        return shape, names, len(names)
    if "class" in example.sizes:
        return shape, (), int(example.sizes["class"])
    return shape, (), int(example["label"].max()) + 1 if "label" in example and example["label"].size else None


# ----------------------------------------------------------------------------------------------------- stored as arrays

WIDENED = tuple(
    getattr(torch, name)
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    if hasattr(torch, name)
)
"""Dtypes numpy lacks: stored as float32, which holds each of their values exactly."""


def model_state(module: nn.Module) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Copies of a module's state as arrays by name, and JSON that says how to build it again.

    The metadata are `factory`, `factory_arguments`, `mean`, `std`, `input_shape`, `classes`, `label`, `class` (of the
    network) and `dtypes`, those of the arrays whose dtype numpy lacks.

    Raises:
        InputError: the state holds something other than plain tensors.
    """
    model = as_model(module)
    arrays, dtypes = {}, {}
    for key, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = f"a {tensor.layout} tensor" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError("model", expected="a state of plain tensors", got=f"{kind} as {key!r}")
        values = tensor.detach().cpu()
        if values.dtype in WIDENED:
            dtypes[key] = str(values.dtype).removeprefix("torch.")
            values = values.to(torch.float32)
        arrays[key] = np.array(values.resolve_conj().resolve_neg().numpy())
    network = type(model.network)
    return arrays, {
        "factory": model.factory,
        "factory_arguments": model.factory_arguments,
        "mean": list(model.mean),
        "std": list(model.std),
        "input_shape": None if model.input_shape is None else list(model.input_shape),
        "classes": list(model.classes),
        "label": model.label,
        "class": f"{network.__module__}.{network.__qualname__}",
        "dtypes": dtypes,
    }
