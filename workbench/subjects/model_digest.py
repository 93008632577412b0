"""The identity of a model: what it computes, not what it is called.

Two modules with equal weights can compute different things, so the digest covers parameters and buffers, the code of
every class and function involved (compiled code as it is in memory, so that an edited cell or a file edited after its
import counts), and plain Python attributes. Whatever cannot be digested makes the digest None, and a run on such a
model is never taken from the store. Code is compared as compiled by one minor version of Python: colleagues on another
one get the same digest for models made of library classes only.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import logging
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from workbench.fingerprint import combine, digest_array, digest_json
from workbench.subjects.code_digest import CodeDigester, Undigestible, is_core, origin_of
from workbench.subjects.models import WIDENED

__all__ = ["class_digest", "model_digest", "tensor_to_numpy"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"_forward_hooks_always_called", "_forward_hooks_with_kwargs"}
_NO_CODE = (types.ModuleType, types.BuiltinFunctionType, np.ufunc)


def model_digest(module: nn.Module) -> str | None:
    """SHA-256 of what a module computes, or None where that cannot be told.

    Covered are names, dtypes, shapes and values of parameters and buffers (also non-persistent ones) and which of them
    are shared; the classes of all submodules with their code; `repr(module)`; and attributes that are numbers, strings,
    containers, dtypes, tensors, arrays, functions or modules. Training mode, `requires_grad`, device and the label of a
    `Model` do not matter.

    None comes back for hooks, a `forward` set on an instance, scripted, traced or compiled modules, special tensors
    (sparse, quantized, subclasses) and attributes of unknown types.
    """
    try:
        return _Digester().module(module)
    except (Undigestible, RecursionError):
        return None


def class_digest(cls: type) -> str | None:
    """SHA-256 of the code of a class and of everything it reaches, or None where that cannot be told."""
    try:
        return _Digester().cls(cls)
    except (Undigestible, RecursionError):
        return None


def tensor_to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on any device as a numpy array; floats that numpy lacks (bfloat16, float8) become float32, exactly."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    array: np.ndarray = (tensor.float() if tensor.dtype in WIDENED else tensor).numpy()
    return array


class _Digester(CodeDigester):
    """One pass over one model; remembers what it has seen, so that shared and cyclic objects are visited once."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[int, int] = {}

    # ------------------------------------------------------------------------------------------------------- modules

    def module(self, module: nn.Module) -> str:
        return self._once(module, lambda: self._module(module))

    def _module(self, module: nn.Module) -> str:
        state = vars(module)
        if any(state.get(name) for name in _HOOKS) or any(_global_hooks()):
            raise Undigestible("hooks")
        if (
            "forward" in state
            or "__call__" in state
            or isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule)
        ):
            raise Undigestible("its computation is not that of its class")
        ignored: frozenset[str] = (
            getattr(type(module), "_labels", frozenset()) if is_core(type(module)) else frozenset()
        )
        parts = {"class": self.cls(type(module)), "repr": digest_json(repr(module))}
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            parts[f"state {name}"] = "none" if tensor is None else self.tensor(tensor)
        for name, child in module._modules.items():
            parts[f"module {name}"] = "none" if child is None else self.module(child)
        parts["order"] = digest_json([str(name) for name in module._modules])
        for name, value in state.items():
            if name not in _BOOKKEEPING and name not in ignored:
                parts[f"attribute {name}"] = self.value(value)
        return combine(parts)

    def tensor(self, tensor: torch.Tensor) -> str:
        if type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer) and not _is_lazy_free_subclass(tensor):
            raise Undigestible(f"tensor subclass {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise Undigestible("not a plain tensor")
        if getattr(tensor, "_backward_hooks", None):
            raise Undigestible("hooks on a tensor")
        # Sharing counts: tied weights train differently from equal ones.
        alias = self._tensors.setdefault(id(tensor), len(self._tensors))
        self._alive.append(tensor)
        try:
            content = self._once(tensor, lambda: digest_array(tensor_to_numpy(tensor)))
        except TypeError as error:  # a dtype that numpy has no like of
            raise Undigestible(f"a tensor of {tensor.dtype}") from error
        return digest_json([str(tensor.dtype), content, alias])

    # -------------------------------------------------------------------------------------------------------- values

    def value(self, value: Any) -> str:
        """Digest of an attribute, default, closure cell or global."""
        if (
            value is None
            or isinstance(value, bool | int | float | complex | str | bytes)
            or value in _singletons(value)
        ):
            return digest_json([type(value).__qualname__, repr(value)])
        if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format | slice | range):
            return digest_json([type(value).__qualname__, repr(value)])
        if isinstance(value, nn.Module):
            return self.module(value)
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if isinstance(value, np.ndarray | np.generic):
            return _numpy(value)
        if isinstance(value, types.ModuleType):
            return digest_json(["module", value.__name__])
        # These two remember themselves; remembering them here as well would look like a cycle.
        if isinstance(value, type):
            return self.cls(value)
        if isinstance(value, types.FunctionType):
            return self.function(value)
        return self._once(value, lambda: self._composite(value))

    def _composite(self, value: Any) -> str:
        kind = type(value)
        if isinstance(value, enum.Enum):
            return combine({"class": self.cls(kind), "name": digest_json(value.name)})
        if isinstance(value, Mapping) and kind in (dict, collections.OrderedDict, types.MappingProxyType):
            entries = [[self.value(key), self.value(item)] for key, item in value.items()]
            return digest_json([kind.__qualname__, entries])
        if isinstance(value, tuple | list) and origin_of(kind.__module__) in ("python", "torch"):
            return digest_json([kind.__qualname__, [self.value(item) for item in value]])
        if isinstance(value, tuple):  # a named tuple
            return combine({"class": self.cls(kind), "items": digest_json([self.value(item) for item in value])})
        if kind in (set, frozenset):
            return digest_json([kind.__qualname__, sorted(self.value(item) for item in value)])
        if isinstance(value, staticmethod | classmethod):
            return combine({kind.__qualname__: self.value(value.__func__)})
        if isinstance(value, property):
            return digest_json([self.value(part) for part in (value.fget, value.fset, value.fdel)])
        if isinstance(value, functools.cached_property):
            return combine({"cached": self.value(value.func)})
        if isinstance(value, types.MethodType):
            return combine({"self": self.value(value.__self__), "function": self.value(value.__func__)})
        if isinstance(value, functools.partial):
            return digest_json([self.value(part) for part in (value.func, value.args, value.keywords)])
        if isinstance(
            value, types.BuiltinFunctionType | np.ufunc | types.MethodDescriptorType | types.WrapperDescriptorType
        ):
            return self._builtin(value)
        if isinstance(value, types.GenericAlias | types.UnionType) or kind.__module__ == "typing":
            return digest_json(repr(value))
        if kind.__module__ == "dataclasses":  # the marker of a default made anew
            return digest_json(kind.__qualname__)
        if isinstance(value, logging.Logger):
            return digest_json(["logger", value.name])
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: self.value(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return combine({"class": self.cls(kind), "fields": combine(fields)})
        if kind.__module__.startswith("transformers.") and hasattr(value, "to_dict"):  # a configuration
            return combine({"class": self.cls(kind), "content": self.value(value.to_dict())})
        raise Undigestible(f"{kind.__module__}.{kind.__qualname__}")

    def _builtin(self, value: Any) -> str:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            raise Undigestible("a bound method of an unknown object")
        home = getattr(owner, "__name__", getattr(value, "__module__", None))
        return digest_json(["builtin", str(home), getattr(value, "__qualname__", getattr(value, "__name__", ""))])


# ------------------------------------------------------------------------------------------------------------- helpers


def _singletons(value: Any) -> tuple[Any, ...]:
    """Ellipsis and NotImplemented, compared by identity so that arrays never reach `==`."""
    return (value,) if value is Ellipsis or value is NotImplemented else ()


def _is_lazy_free_subclass(tensor: torch.Tensor) -> bool:
    """Whether a subclass of Parameter merely renames it (no behaviour of its own)."""
    return type(tensor).__torch_function__ is torch.Tensor.__torch_function__ and type(tensor).__module__.startswith(
        "torch.nn.parameter"
    )


def _numpy(value: np.ndarray | np.generic) -> str:
    try:
        return digest_json([type(value).__qualname__, digest_array(np.asarray(value))])
    except TypeError as error:
        raise Undigestible(str(error)) from error


def _global_hooks() -> tuple[Any, ...]:
    hooks = torch.nn.modules.module
    return (
        hooks._global_forward_hooks,
        hooks._global_forward_pre_hooks,
        hooks._global_backward_hooks,
        hooks._global_backward_pre_hooks,
    )
