"""Digests of code: classes and functions as they are in memory, and everything of a user that they reach.

What a library or Python itself brings is told by its release; what a person wrote by its compiled code, the globals,
defaults, closures and modules it uses, and the text of its file.
"""

from __future__ import annotations

import abc
import dis
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import pathlib
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pydantic

from workbench.fingerprint import combine, digest_bytes, digest_json

__all__ = ["CodeDigester", "Undigestible", "is_core", "origin_of"]


class Undigestible(Exception):
    """Something whose content cannot be told."""


class CodeDigester(abc.ABC):
    """One pass over one subject; remembers what it has seen, so that shared and cyclic objects are visited once."""

    def __init__(self) -> None:
        self._done: dict[tuple[int, int], str] = {}
        self._open: dict[tuple[int, int], int] = {}
        self._alive: list[object] = []

    def _once(self, value: object, digest: Callable[[], str], aspect: object = None) -> str:
        """The digest of one aspect of a value; modules have several, such as their file and what some code uses."""
        key = id(value), id(aspect)
        if key in self._done:
            return self._done[key]
        if key in self._open:
            return digest_json(["cycle", self._open[key]])
        self._open[key] = len(self._open)
        self._alive += [value, aspect]  # ids must not be reused while they are remembered
        try:
            self._done[key] = digest()
        finally:
            del self._open[key]
        return self._done[key]

    @abc.abstractmethod
    def value(self, value: Any) -> str:
        """Digest of an attribute, default, closure cell or global."""

    def cls(self, cls: type) -> str:
        """Digest of a class with all its bases."""
        return self._once(cls, lambda: self._class(cls))

    def _class(self, cls: type) -> str:
        parts = {}
        for depth, base in enumerate(cls.__mro__):
            parts[f"{depth:03d} {base.__module__}.{base.__qualname__}"] = self._class_body(base)
        return combine(parts)

    def _class_body(self, cls: type) -> str:
        origin = origin_of(cls.__module__)
        if origin == "torch":
            forward = vars(cls).get("forward")
            if isinstance(forward, types.FunctionType) and not forward.__module__.startswith("torch"):
                raise Undigestible(f"{cls.__qualname__}.forward was replaced")
            return "torch"
        if origin == "library":
            return digest_json([_release(cls.__module__), _source(cls)])
        if origin == "python":
            return "python"
        if origin == "core":
            # The text of the file, not compiled code: the same on every version of Python. What was put in later counts.
            functions = {name: value for name, value in vars(cls).items() if isinstance(value, types.FunctionType)}
            foreign = {n: self.value(f) for n, f in functions.items() if not is_core(f) and not _is_pydantic(f)}
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
        """Digest of a function with what it reaches."""
        return self._once(function, lambda: self._function(function))

    def _function(self, function: types.FunctionType) -> str:
        origin = origin_of(function.__module__)
        if origin in ("torch", "python", "library"):
            if hasattr(function, "__wrapped__"):  # a library's decorator around somebody's function
                inner = self.value(function.__wrapped__)
                return combine({"wrapper": digest_json(function.__code__.co_qualname), "inner": inner})
            if function.__closure__:
                raise Undigestible("a library's closure")
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
                if isinstance(value, types.ModuleType) and origin_of(value.__name__) in ("file", "main"):
                    parts[f"used of {name}"] = self._used(value, code)
        if origin in ("file", "main"):
            for module in _imported(code, function.__globals__):
                parts[f"import {module.__name__}"] = self._used(module, code)
                parts[f"file {module.__name__}"] = self._file(module.__name__)
        if origin == "file":
            parts["file"] = self._file(function.__module__)
        return combine(parts)

    def _used(self, module: types.ModuleType, code: types.CodeType) -> str:
        """The members of a user's module that a function's code names, also those of modules inside it."""
        return self._once(module, lambda: self._members(module, code), code)

    def _members(self, module: types.ModuleType, code: types.CodeType) -> str:
        parts = {}
        for name in sorted({name for part in _codes(code) for name in part.co_names} & vars(module).keys()):
            member = vars(module)[name]
            if isinstance(member, types.ModuleType) and origin_of(member.__name__) in ("file", "main"):
                parts[name] = self._used(member, code)
            else:
                parts[name] = self.value(member)
        return combine(parts)

    def _file(self, module_name: str) -> str:
        path = getattr(sys.modules.get(module_name), "__file__", None)
        if path is None:
            return "none"
        try:
            return self._once(sys.modules[module_name], lambda: digest_bytes(pathlib.Path(path).read_bytes()), "file")
        except OSError as error:
            raise Undigestible(f"cannot read {path}") from error


def _is_pydantic(function: types.FunctionType) -> bool:
    """Whether pydantic itself put this function into a class; the class's schema stands for it."""
    return function.__module__.startswith("pydantic.")


def is_core(code: type | types.FunctionType) -> bool:
    """Whether a class or function is the workbench's own."""
    return origin_of(code.__module__) == "core"


@functools.lru_cache(maxsize=4096)
def origin_of(module_name: str | None) -> str:
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
    return "library" if _is_site(path) else "file"


def _is_site(path: str) -> bool:
    return bool({"site-packages", "dist-packages"} & set(pathlib.Path(path).parts))


def _release(module_name: str) -> str:
    """`package version` of an installed module."""
    return _package_release(module_name.split(".")[0])


@functools.cache
def _package_release(top: str) -> str:
    """The same of a top-level package. Asked once for each: the answer takes a look at every file of every distribution."""
    for distribution in importlib.metadata.packages_distributions().get(top, []):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return top


def _schema(cls: type[pydantic.BaseModel]) -> Any:
    try:
        return cls.model_json_schema()
    except Exception as error:  # a field of a type that JSON cannot describe
        raise Undigestible(f"the fields of {cls.__qualname__}") from error


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


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of the functions, classes and comprehensions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _global_names(code: types.CodeType) -> set[str]:
    """Names that a function, and the functions defined inside it, look up in its module."""
    instructions = (i for part in _codes(code) for i in dis.get_instructions(part))
    return {str(i.argval) for i in instructions if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


def _imported(code: types.CodeType, namespace: Mapping[str, Any]) -> list[types.ModuleType]:
    """Modules of a user that a function imports when it is called, imported here if that did not happen yet."""
    package = namespace.get("__package__") or str(namespace.get("__name__")).rpartition(".")[0]
    modules: dict[str, types.ModuleType] = {}
    for part in _codes(code):
        steps = [step for step in dis.get_instructions(part) if step.opname != "EXTENDED_ARG"]
        for i, step in enumerate(steps):
            if step.opname != "IMPORT_NAME":
                continue
            level, members = steps[i - 2].argval, steps[i - 1].argval  # the compiler puts both right before the import
            try:
                name = importlib.util.resolve_name("." * level + step.argval, package)
            except ImportError:  # a relative import outside a package fails when called, too
                continue
            names = [name, name.partition(".")[0], *(f"{name}.{member}" for member in members or ())]
            modules |= {known: module for known in names if (module := _users_module(known)) is not None}
    return [modules[name] for name in sorted(modules)]


def _users_module(name: str) -> types.ModuleType | None:
    top, _, member = name.partition(".")
    if top in sys.stdlib_module_names or top in ("torch", "functorch", "workbench"):
        return None
    if name not in sys.modules:
        owner = sys.modules.get(name.rpartition(".")[0]) if member else None
        if owner is not None and (hasattr(owner, name.rpartition(".")[2]) or not hasattr(owner, "__path__")):
            return None  # a function or class of a module, which `_used` covers
        try:
            spec = importlib.util.find_spec(top)  # this imports nothing
            places = [spec.origin or "", *(spec.submodule_search_locations or ())] if spec is not None else []
            if not places or any(_is_site(place) for place in places):
                return None
            importlib.import_module(name)
        except (ModuleNotFoundError, ValueError):
            return None
        except Exception as error:  # whatever a person's module does while it is imported
            raise Undigestible(f"{name} cannot be imported") from error
    module = sys.modules.get(name)
    return module if isinstance(module, types.ModuleType) and origin_of(name) in ("file", "main") else None
