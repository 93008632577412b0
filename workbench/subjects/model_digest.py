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
import dis
import enum
import functools
import importlib.metadata
import inspect
import logging
import pathlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pydantic
import torch
from torch import nn

from workbench.fingerprint import combine, digest_array, digest_bytes, digest_json

__all__ = ["class_digest", "model_digest", "tensor_to_numpy"]

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"_forward_hooks_always_called", "_forward_hooks_with_kwargs"}
_NO_CODE = (types.ModuleType, types.BuiltinFunctionType, np.ufunc)


class _Undigestible(Exception):
    """Something whose content cannot be told."""


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
    except (_Undigestible, RecursionError):
        return None


def class_digest(cls: type) -> str | None:
    """SHA-256 of the code of a class and of everything it reaches, or None where that cannot be told."""
    try:
        return _Digester().cls(cls)
    except (_Undigestible, RecursionError):
        return None


def tensor_to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on any device as a numpy array; bfloat16, which numpy lacks, becomes float32 (exactly)."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    array: np.ndarray = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


class _Digester:
    """One pass over one model; remembers what it has seen, so that shared and cyclic objects are visited once."""

    def __init__(self) -> None:
        self._done: dict[int, str] = {}
        self._open: dict[int, int] = {}
        self._alive: list[object] = []
        self._tensors: dict[int, int] = {}

    def _once(self, value: object, digest: Callable[[], str]) -> str:
        key = id(value)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            return digest_json(["cycle", self._open[key]])
        self._open[key] = len(self._open)
        self._alive.append(value)  # ids must not be reused while they are remembered
        try:
            self._done[key] = digest()
        finally:
            del self._open[key]
        return self._done[key]

    # ------------------------------------------------------------------------------------------------------- modules

    def module(self, module: nn.Module) -> str:
        return self._once(module, lambda: self._module(module))

    def _module(self, module: nn.Module) -> str:
        state = vars(module)
        if any(state.get(name) for name in _HOOKS) or any(_global_hooks()):
            raise _Undigestible("hooks")
        if "forward" in state or "__call__" in state or isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule):
            raise _Undigestible("its computation is not that of its class")
        ignored: frozenset[str] = getattr(type(module), "_labels", frozenset()) if _is_core(type(module)) else frozenset()
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
            raise _Undigestible(f"tensor subclass {type(tensor).__name__}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise _Undigestible("not a plain tensor")
        if getattr(tensor, "_backward_hooks", None):
            raise _Undigestible("hooks on a tensor")
        # Sharing counts: tied weights train differently from equal ones.
        alias = self._tensors.setdefault(id(tensor), len(self._tensors))
        self._alive.append(tensor)
        content = self._once(tensor, lambda: digest_array(tensor_to_numpy(tensor)))
        return digest_json([str(tensor.dtype), content, alias])

    # ---------------------------------------------------------------------------------------------------------- code

    def cls(self, cls: type) -> str:
        return self._once(cls, lambda: self._class(cls))

    def _class(self, cls: type) -> str:
        parts = {}
        for depth, base in enumerate(cls.__mro__):
            parts[f"{depth:03d} {base.__module__}.{base.__qualname__}"] = self._class_body(base)
        return combine(parts)

    def _class_body(self, cls: type) -> str:
        origin = _origin(cls.__module__)
        if origin == "torch":
            forward = vars(cls).get("forward")
            if isinstance(forward, types.FunctionType) and not forward.__module__.startswith("torch"):
                raise _Undigestible(f"{cls.__qualname__}.forward was replaced")
            return "torch"
        if origin == "library":
            return digest_json([_release(cls.__module__), _source(cls)])
        if origin == "python":
            return "python"
        if origin == "core":
            # The text of the file, not compiled code: the same on every version of Python. What was put in later counts.
            functions = {name: value for name, value in vars(cls).items() if isinstance(value, types.FunctionType)}
            foreign = {n: self.value(f) for n, f in functions.items() if not _is_core(f) and not _is_pydantic(f)}
            return combine({"file": self._file(cls.__module__)} | foreign)
        parts = {}
        for name, value in vars(cls).items():
            if isinstance(value, types.GetSetDescriptorType | types.MemberDescriptorType) or name.startswith("_abc_"):
                continue
            if name.startswith("__") and name.endswith("__") and not isinstance(value, types.FunctionType):
                continue
            if isinstance(value, types.FunctionType) and _is_pydantic(value):
                continue
            parts[name] = self.value(value)
        if issubclass(cls, pydantic.BaseModel):
            parts["fields"] = digest_json(_schema(cls))
        if origin == "file":
            parts["file"] = self._file(cls.__module__)
        return combine(parts)

    def function(self, function: types.FunctionType) -> str:
        return self._once(function, lambda: self._function(function))

    def _function(self, function: types.FunctionType) -> str:
        origin = _origin(function.__module__)
        if origin in ("torch", "python", "library"):
            if hasattr(function, "__wrapped__"):  # a library's decorator around somebody's function
                inner = self.value(function.__wrapped__)
                return combine({"wrapper": digest_json(function.__code__.co_qualname), "inner": inner})
            if function.__closure__:
                raise _Undigestible("a library's closure")
            name = f"{function.__module__}.{function.__qualname__}"
            return digest_json([name, _release(function.__module__) if origin == "library" else origin])
        code = function.__code__
        if origin == "core" and not function.__closure__:
            return digest_json([function.__qualname__, self._file(function.__module__)])
        parts = {
            "code": _code(code),
            "defaults": self.value(function.__defaults__),
            "keyword defaults": self.value(function.__kwdefaults__),
        }
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":  # what `super()` uses
                parts[f"closure {name}"] = self.value(cell.cell_contents)
        for name in sorted(_global_names(code)):
            if name in function.__globals__:
                value = function.__globals__[name]
                parts[f"global {name}"] = self.value(value)
                if isinstance(value, types.ModuleType) and _origin(value.__name__) in ("file", "main"):
                    parts[f"used of {name}"] = self._used(value, code)
        if origin == "file":
            parts["file"] = self._file(function.__module__)
        return combine(parts)

    def _used(self, module: types.ModuleType, code: types.CodeType) -> str:
        """The members of a user's module that a function's code names."""
        names = [name for name in sorted(set(code.co_names)) if name in vars(module)]
        return combine({name: self.value(vars(module)[name]) for name in names})

    def _file(self, module_name: str) -> str:
        path = getattr(sys.modules.get(module_name), "__file__", None)
        if path is None:
            return "none"
        try:
            return self._once(sys.modules[module_name], lambda: digest_bytes(pathlib.Path(path).read_bytes()))
        except OSError as error:
            raise _Undigestible(f"cannot read {path}") from error

    # -------------------------------------------------------------------------------------------------------- values

    def value(self, value: Any) -> str:
        """Digest of an attribute, default, closure cell or global."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes) or value in _singletons(value):
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
        if isinstance(value, tuple | list) and _origin(kind.__module__) in ("python", "torch"):
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
        raise _Undigestible(f"{kind.__module__}.{kind.__qualname__}")

    def _builtin(self, value: Any) -> str:
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            raise _Undigestible("a bound method of an unknown object")
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
        raise _Undigestible(str(error)) from error


def _global_hooks() -> tuple[Any, ...]:
    hooks = torch.nn.modules.module
    return (
        hooks._global_forward_hooks,
        hooks._global_forward_pre_hooks,
        hooks._global_backward_hooks,
        hooks._global_backward_pre_hooks,
    )


def _is_pydantic(function: types.FunctionType) -> bool:
    """Whether pydantic itself put this function into a class; the class's schema stands for it."""
    return function.__module__.startswith("pydantic.")


def _is_core(code: type | types.FunctionType) -> bool:
    return _origin(code.__module__) == "core"


@functools.lru_cache(maxsize=4096)
def _origin(module_name: str | None) -> str:
    """Where code lives: torch, python, library (installed), core (this package), file (a person's) or main (a notebook)."""
    top = (module_name or "").split(".")[0]
    if top in ("torch", "functorch"):
        return "torch"
    if top == "builtins" or (top in sys.stdlib_module_names and top != "__main__"):
        return "python"
    if top == "workbench":
        return "core"
    path = getattr(sys.modules.get(module_name or ""), "__file__", None)
    if path is None:
        return "main"
    return "library" if {"site-packages", "dist-packages"} & set(pathlib.Path(path).parts) else "file"


@functools.lru_cache(maxsize=256)
def _release(module_name: str) -> str:
    """`package version` of an installed module."""
    top = module_name.split(".")[0]
    for distribution in importlib.metadata.packages_distributions().get(top, []):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return top


def _schema(cls: type[pydantic.BaseModel]) -> Any:
    try:
        return cls.model_json_schema()
    except Exception as error:  # a field of a type that JSON cannot describe
        raise _Undigestible(f"the fields of {cls.__qualname__}") from error


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):
        return "none"  # compiled; its release number stands for it


def _code(code: types.CodeType) -> str:
    """Compiled code without file names and line numbers."""
    constants = [_code(c) if isinstance(c, types.CodeType) else _constant(c) for c in code.co_consts]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    signature = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    table = getattr(code, "co_exceptiontable", b"")
    return digest_json([code.co_code.hex(), table.hex(), constants, names, signature])


def _constant(constant: Any) -> str:
    # The order of a frozenset's repr depends on the hash seed.
    if isinstance(constant, frozenset):
        return f"frozenset({sorted(_constant(item) for item in constant)})"
    if isinstance(constant, tuple):
        return f"({[_constant(item) for item in constant]})"
    return f"{type(constant).__qualname__} {constant!r}"


def _global_names(code: types.CodeType) -> set[str]:
    """Names that a function, and the functions defined inside it, look up in its module."""
    names = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names
