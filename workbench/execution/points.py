"""The points of a sweep: which runs it consists of, told from its arguments without making a list of them.

What is swept is always said: a list of methods, models, data or seeds, and `each(...)` for a parameter, because a list may
well be the value of one.
"""

from __future__ import annotations

import bisect
import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.errors import InputError
from workbench.host import Host
from workbench.method import Method

__all__ = ["Each", "Point", "Points", "each", "methods_like"]


@dataclass(frozen=True)
class Each:
    """Values of a swept argument; made by `each`."""

    values: tuple[Any, ...]


def each(*values: Any) -> Each:
    """Sweep over these values of an argument: `bench.sweep(..., temperature=each(1.0, 2.0))`.

    Raises:
        InputError: there are none.
    """
    if not values:
        raise InputError("each", expected="at least one value", got="none")
    return Each(values)


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    number: int
    method: type[Method]
    seed: int
    arguments: Mapping[str, Any]
    swept: Mapping[str, Any] = field(default_factory=dict)
    """What tells it from the others: name -> value, the method's id and the seed included where they are swept."""

    @property
    def label(self) -> str:
        """What tells it from the others, in words."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self.swept.items()) or self.method.id


def shown(value: Any) -> str:
    """A value of a swept argument as people call it."""
    for attribute in ("id", "label", "title"):
        text = getattr(value, attribute, None)
        if isinstance(text, str) and text:
            return text
    if isinstance(value, str | int | float | bool | None):
        return str(value)
    text = repr(value)
    return text if len(text) <= 40 else type(value).__name__


@dataclass(frozen=True)
class _Block:
    """The points of one method (and, in an explicit list, of one entry): a product of axes."""

    method: type[Method]
    fixed: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]
    told: Mapping[str, Any]
    """What tells its points from those of other blocks."""

    def __len__(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    def point(self, number: int, rest: int) -> Point:
        """The point at place `rest` of this block; the last axis changes fastest."""
        chosen: dict[str, Any] = {}
        for name in reversed(list(self.axes)):
            rest, index = divmod(rest, len(self.axes[name]))
            chosen[name] = self.axes[name][index]
        chosen = {name: chosen[name] for name in self.axes}
        given = {**self.fixed, **chosen}
        return Point(number, self.method, given.pop("seed"), given, {**self.told, **chosen})


class Points(Sequence[Point]):
    """All points, method by method: the product of what is swept, or an explicit list. The seed changes fastest.

    Args:
        methods: classes.
        arguments: roles and parameters; lists of subjects and `each(...)` are swept. With several methods, each gets those
            it knows.
        seed: one, or several.
        points: instead of a product: arguments of each point (`seed` and `method` allowed), beside the common ones.

    Raises:
        InputError: an argument that no method knows, or nothing to do.
    """

    def __init__(
        self,
        methods: Sequence[type[Method]],
        arguments: Mapping[str, Any],
        seed: int | Sequence[int] | Each,
        points: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        names = set(arguments) | ({name for point in points or () for name in point} - {"seed", "method"})
        _check_names(methods, names)
        if points is not None and not points:
            raise InputError("points", expected="at least one point", got="none")
        self._blocks: list[_Block] = []
        self._ends: list[int] = []
        total = 0
        for entry in [{}] if points is None else points:
            for method in _methods_of(entry, methods):
                block = _block(method, {"seed": seed, **arguments, **entry}, entry, several=len(methods) > 1)
                total += len(block)
                self._blocks.append(block)
                self._ends.append(total)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, number: Any) -> Any:
        if not isinstance(number, int):
            return [self[index] for index in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        at = bisect.bisect_right(self._ends, number)
        return self._blocks[at].point(number, number - (self._ends[at] - len(self._blocks[at])))

    def __iter__(self) -> Iterator[Point]:
        return (self[number] for number in range(len(self)))


def _methods_of(entry: Mapping[str, Any], methods: Sequence[type[Method]]) -> Sequence[type[Method]]:
    if "method" not in entry:
        return methods
    found = [method for method in methods if method.id == entry["method"]]
    if not found:
        known = ", ".join(method.id for method in methods)
        raise InputError("points", expected=f"a method of this sweep ({known})", got=repr(entry["method"]))
    return found


def _block(method: type[Method], given: Mapping[str, Any], entry: Mapping[str, Any], *, several: bool) -> _Block:
    known = {*method.inputs, *method.Params.model_fields}
    fixed: dict[str, Any] = {}
    axes: dict[str, tuple[Any, ...]] = {}
    for name in [*(name for name in given if name not in ("seed", "method")), "seed"]:
        if name != "seed" and several and name not in known:
            continue
        values = _swept(name, given[name], method)
        if values is None:
            fixed[name] = given[name]
        elif values:
            axes[name] = values
        else:
            raise InputError(name, expected="at least one value to sweep over", got="none")
    told = {name: value for name, value in entry.items() if name in fixed}
    return _Block(method, fixed, axes, {"method": method.id, **told} if several else told)


def _swept(name: str, value: Any, method: type[Method]) -> tuple[Any, ...] | None:
    if isinstance(value, Each):
        return value.values
    if name == "seed":
        return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else None
    # A tuple is one subject: (images, labels), (run, "model").
    return tuple(value) if name in method.inputs and isinstance(value, list) else None


def _check_names(methods: Sequence[type[Method]], names: set[str]) -> None:
    import difflib

    known = {name for method in methods for name in (*method.inputs, *method.Params.model_fields)}
    for name in sorted(names - known):
        close = difflib.get_close_matches(name, known, n=1)
        raise InputError(
            name,
            expected=f"a role or parameter of {' or '.join(method.id for method in methods[:3])}"
            + (", ..." if len(methods) > 3 else ""),
            got="an unknown name",
            hint=f"Did you mean {close[0]!r}?" if close else "",
        )


def methods_like(host: Host, wanted: str | type[Method] | Sequence[str | type[Method]]) -> list[type[Method]]:
    """Classes of methods by id, pattern (`calibration.*`) or class.

    Raises:
        InputError: a pattern that no method meets. UnknownMethodError: an id that is none.
    """
    found: dict[str, type[Method]] = {}
    for item in [wanted] if isinstance(wanted, str | type) else wanted:
        if isinstance(item, type):
            cls = host.register(item)
            found[cls.id] = cls
        elif any(sign in item for sign in "*?["):
            matching = [name for name in host.methods if fnmatch.fnmatchcase(name, item)]
            if not matching:
                raise InputError("methods", expected="a pattern that some method meets", got=repr(item))
            found |= {name: host.method(name) for name in matching}
        else:
            found[item] = host.method(item)
    if not found:
        raise InputError("methods", expected="at least one method", got="none")
    return list(found.values())
