"""Plugin discovery: finds plugins by entry point, isolates the broken ones with their reason, and knows every method.

A plugin is a module named by an entry point in group `workbench` that implements hooks of `workbench.hookspecs`. One that
fails to import, repeats an id, has a hook of the wrong signature or was built for another version of the workbench is listed
with its reason and never takes the host down.
"""

from __future__ import annotations

import difflib
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

from workbench import hookspecs
from workbench._version import __version__
from workbench.errors import PluginError, UnknownMethodError
from workbench.method import Method, MethodReference

if TYPE_CHECKING:
    from workbench.report import CustomView

__all__ = ["Host", "PluginStatus", "view_type"]

T = TypeVar("T")
OWN = "vision-workbench"
"""Our own distribution."""
SLOW_IMPORT = 2.0
"""Seconds of import time above which a plugin is reported as slow."""


@dataclass(frozen=True)
class PluginStatus:
    """What became of one plugin."""

    name: str
    module: str
    distribution: str
    version: str
    state: Literal["loaded", "failed", "blocked"]
    reason: str = ""
    traceback: str = ""
    seconds: float = 0.0
    methods: tuple[str, ...] = ()
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Method ids (and names of data sets, models and views) that were refused, with the reason."""


class Host:
    """Loads plugins and answers which methods, data sets, models and commands exist.

    Args:
        block: names of plugins (or distributions) to leave out; default: $WORKBENCH_BLOCK, separated by commas.
        allow: if given, only these are loaded; default: $WORKBENCH_ALLOW.
        found: entry points to load, for tests; default: all installed ones.
    """

    def __init__(
        self,
        *,
        block: Iterable[str] | None = None,
        allow: Iterable[str] | None = None,
        found: Iterable[EntryPoint] | None = None,
    ) -> None:
        self._manager = pluggy.PluginManager(hookspecs.NAMESPACE)
        self._manager.add_hookspecs(hookspecs)
        self._block = frozenset(_names("WORKBENCH_BLOCK") or () if block is None else block)
        self._allow = _names("WORKBENCH_ALLOW") if allow is None else frozenset(allow)
        self._statuses: dict[str, PluginStatus] = {}
        self._methods: dict[str, MethodReference | type[Method]] = {}
        self._owners: dict[str, str] = {}
        self._loaded: dict[str, type[Method]] = {}
        self._views: dict[str, type[CustomView]] = {}
        """View types of this session."""
        for point in sorted(entry_points(group=hookspecs.NAMESPACE) if found is None else found, key=_own_first):
            self._load(point)

    # --- plugins ----------------------------------------------------------------------------------------------------

    @property
    def plugins(self) -> list[PluginStatus]:
        """Every plugin that was found, loaded or not."""
        return list(self._statuses.values())

    def _load(self, point: EntryPoint) -> None:
        distribution = point.dist.name if point.dist is not None else ""
        version = point.dist.version if point.dist is not None else ""
        name = point.name if point.name not in self._statuses else f"{distribution}:{point.name}"
        status = PluginStatus(name, point.value, distribution, version, "loaded")
        if {point.name, distribution} & self._block:
            self._statuses[name] = replace(status, state="blocked", reason="blocked by configuration")
            return
        if self._allow is not None and not {point.name, distribution} & self._allow:
            self._statuses[name] = replace(status, state="blocked", reason="not on the allow list")
            return
        if problem := _built_for_another(_required_by(point)):
            self._statuses[name] = replace(status, state="failed", reason=problem)
            return
        started = time.perf_counter()
        try:
            module = point.load()
        except (Exception, SystemExit) as error:
            self._statuses[name] = _failed(status, "import failed", error)
            return
        seconds = time.perf_counter() - started
        reason = f"slow import: {seconds:.1f} s" if seconds > SLOW_IMPORT else ""
        self.register_plugin(module, replace(status, seconds=seconds, reason=reason))

    def register_plugin(self, plugin: object, status: PluginStatus) -> PluginStatus:
        """Register a plugin object (a module or an instance with hook implementations) and collect its methods."""
        self._statuses[status.name] = status
        if problem := _built_for_another(getattr(plugin, "requires_workbench", "")):
            self._statuses[status.name] = replace(status, state="failed", reason=problem)
            return self._statuses[status.name]
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")  # of hooks that are to go, see `workbench.hookspecs`
                self._manager.register(plugin, name=status.name)
                self._manager.check_pending()
        except Exception as error:
            if self._manager.has_plugin(status.name):
                self._manager.unregister(name=status.name)
            self._statuses[status.name] = _failed(status, "breaks the hook specification", error)
            return self._statuses[status.name]
        remarks = [status.reason, *_uncalled(plugin), *(str(warning.message) for warning in told)]
        status = replace(status, reason="; ".join(filter(None, remarks)))
        try:
            offered = [item for items in self._call(plugin, "workbench_methods") for item in items]
        except (Exception, SystemExit) as error:
            self._manager.unregister(name=status.name)
            self._statuses[status.name] = _failed(status, "workbench_methods failed", error)
            return self._statuses[status.name]
        accepted, rejected = [], {}
        for item in offered:
            method_id = getattr(item, "id", None)
            problem = self._problem(item)
            if problem:
                rejected[str(method_id or item)] = problem
                continue
            assert isinstance(method_id, str)
            self._methods[method_id] = item
            self._owners[method_id] = status.name
            accepted.append(method_id)
        self._statuses[status.name] = replace(status, methods=tuple(accepted), rejected=rejected)
        return self._statuses[status.name]

    def _problem(self, item: object) -> str:
        if isinstance(item, type) and issubclass(item, Method):
            if abstract := sorted(getattr(item, "__abstractmethods__", ())):
                return f"the class does not implement {' and '.join(abstract)}"
        elif not isinstance(item, MethodReference):
            return f"neither a Method class nor a MethodReference: {item!r}"
        missing = [name for name in ("id", "title") if not isinstance(getattr(item, name, None), str)]
        if missing:
            return f"the class lacks {' and '.join(missing)}"
        if item.id.count(".") != 1 or not all(part.isidentifier() for part in item.id.split(".")):
            return f"id {item.id!r} is not of the form family.name"
        if item.id in self._methods:
            return f"id already taken by plugin {self._owners[item.id]!r}"
        return ""

    def _call(self, plugin: object, hook: str) -> list[Any]:
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        return list(self._manager.subset_hook_caller(hook, remove_plugins=others)())

    # --- methods ----------------------------------------------------------------------------------------------------

    @property
    def methods(self) -> Mapping[str, MethodReference | type[Method]]:
        """All methods by id, in order of id; none is imported."""
        return dict(sorted(self._methods.items()))

    def owner(self, method_id: str) -> PluginStatus | None:
        """The plugin that offers a method; None for one registered in a session."""
        return self._statuses.get(self._owners.get(method_id, ""))

    def register(self, cls: type[T]) -> type[T]:
        """Add or replace a method (or a view type) of this session, as written in a notebook cell.

        Raises:
            PluginError: the class is abstract, or lacks an id and title (a view: a kind).
        """
        from workbench.report import CustomView

        if isinstance(cls, type) and issubclass(cls, CustomView):
            return self._register_view(cls)
        if not (isinstance(cls, type) and issubclass(cls, Method)):
            raise PluginError(f"register takes a subclass of workbench.Method or workbench.CustomView, got {cls!r}")
        if abstract := sorted(getattr(cls, "__abstractmethods__", ())):
            raise PluginError(f"{cls.__name__} does not implement {' and '.join(abstract)}")
        known = self._methods.pop(getattr(cls, "id", ""), None)
        problem = self._problem(cls)
        if problem:
            if known is not None:
                self._methods[cls.id] = known
            raise PluginError(f"{cls.__name__}: {problem}")
        self._methods[cls.id] = cls
        self._owners.pop(cls.id, None)
        self._loaded.pop(cls.id, None)
        return cls

    def _register_view(self, cls: type[T]) -> type[T]:
        try:
            kind, view = view_type(cls)
        except (TypeError, ValueError) as error:
            raise PluginError(str(error)) from None
        self._views[kind] = view
        return cls

    def method(self, method_id: str) -> type[Method]:
        """The class of a method, imported on first use.

        Raises:
            UnknownMethodError: no plugin offers it; names the nearest.
            PluginError: its module fails to import or breaks the contract.
        """
        if method_id in self._loaded:
            return self._loaded[method_id]
        item = self._methods.get(method_id)
        if item is None:
            raise UnknownMethodError(self._unknown(method_id))
        if isinstance(item, MethodReference):
            try:
                item = item.load()
            except PluginError:
                raise
            except (Exception, SystemExit) as error:
                owner = self._owners.get(method_id, "?")
                raise PluginError(
                    f"method {method_id} (plugin {owner!r}) cannot be imported: {type(error).__name__}: {error}"
                ) from error
        self._loaded[method_id] = item
        return item

    def _unknown(self, method_id: str) -> str:
        close = difflib.get_close_matches(method_id, self._methods, n=3, cutoff=0.5)
        name = method_id.rpartition(".")[2]
        close = close or [known for known in self._methods if name and name in known.rpartition(".")[2]][:3]
        hint = f"Did you mean {' or '.join(close)}?" if close else "See `workbench list`."
        broken = [status.name for status in self._statuses.values() if status.state == "failed"]
        note = f" Plugins that failed to load: {', '.join(broken)} (see `workbench plugins`)." if broken else ""
        return f"unknown method {method_id!r}. {hint}{note}"

    # --- other hooks ------------------------------------------------------------------------------------------------

    def datasets(self) -> dict[str, Callable[..., Any]]:
        """Registered data sets by name."""
        return self._merge("workbench_datasets", "data set", _functions)

    def models(self) -> dict[str, Callable[..., Any]]:
        """Registered model factories by name."""
        return self._merge("workbench_models", "model", _functions)

    def views(self) -> dict[str, type[CustomView]]:
        """View types by kind, those of this session first."""
        return {**self._merge("workbench_views", "view", _view_types), **self._views}

    def comparisons(self) -> dict[str, Callable[..., Any]]:
        """What a family says about several of its runs: functions by family."""
        return self._merge("workbench_comparisons", "comparison", _functions)

    def commands(self) -> Iterator[Any]:
        """Click commands that plugins add."""
        for plugin in self._plugins_with("workbench_commands"):
            yield from self._guarded(plugin, "workbench_commands", lambda answer: [_command(item) for item in answer])

    def notify(self, hook: str, **arguments: Any) -> None:
        """Call a life-cycle hook of every plugin; one that raises is noted and does not disturb the run."""
        for plugin in self._plugins_with(hook):
            others = [other for other in self._manager.get_plugins() if other is not plugin]
            try:
                self._manager.subset_hook_caller(hook, remove_plugins=others)(**arguments)
            except (Exception, SystemExit) as error:
                self._note(plugin, f"{hook} raised", error)

    def _plugins_with(self, hook: str) -> list[object]:
        # In order of registration: our own first, so that a name of ours stays ours.
        return [implementation.plugin for implementation in getattr(self._manager.hook, hook).get_hookimpls()]

    def _guarded(self, plugin: object, hook: str, read: Callable[[Any], list[Any]]) -> list[Any]:
        """What a plugin answers; nothing, and a note, where it raises or answers something that cannot be read."""
        try:
            return [item for answer in self._call(plugin, hook) for item in read(answer)]
        except (Exception, SystemExit) as error:
            self._note(plugin, f"{hook} failed", error)
            return []

    def _note(self, plugin: object, what: str, error: BaseException) -> None:
        # The plugin stays loaded: its other hooks and its methods may well work.
        status = self._status_of(plugin)
        self._statuses[status.name] = replace(_failed(status, what, error), state=status.state)

    def _status_of(self, plugin: object) -> PluginStatus:
        return self._statuses[self._manager.get_name(plugin) or ""]

    def _merge(self, hook: str, what: str, read: Callable[[Any], list[tuple[str, Any]]]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        owners: dict[str, str] = {}
        for plugin in self._plugins_with(hook):
            for name, item in self._guarded(plugin, hook, read):
                if name in merged:
                    status = self._status_of(plugin)
                    rejected = {**status.rejected, name: f"{what} already offered by plugin {owners[name]!r}"}
                    self._statuses[status.name] = replace(status, rejected=rejected)
                    continue
                merged[name], owners[name] = item, self._status_of(plugin).name
        return merged


def _uncalled(plugin: object) -> list[str]:
    """Hooks that a plugin means to implement but that are never called, because their mark is missing."""
    hooks = [name for name in vars(hookspecs) if name.startswith(f"{hookspecs.NAMESPACE}_")]
    written = {name: getattr(plugin, name) for name in hooks if callable(getattr(plugin, name, None))}
    unmarked = [name for name, function in written.items() if not hasattr(function, f"{hookspecs.NAMESPACE}_impl")]
    return [f"{name} is not called: @workbench.hookimpl is missing above it" for name in unmarked]


def _command(item: Any) -> Any:
    import click

    if not isinstance(item, click.Command):
        raise TypeError(f"not a click command: {item!r}")
    return item


def _functions(answer: Any) -> list[tuple[str, Any]]:
    for name, factory in answer.items():
        if not isinstance(name, str) or not callable(factory):
            raise TypeError(f"expected a name and a function, got {name!r}: {factory!r}")
    return list(answer.items())


def _view_types(answer: Any) -> list[tuple[str, Any]]:
    return [view_type(item) for item in answer]


def view_type(item: Any) -> tuple[str, type[CustomView]]:
    """A view class by its kind.

    Raises:
        TypeError: it is no such class, or abstract. ValueError: its kind is not of the form package.word.
    """
    from workbench.report import CustomView

    if not (isinstance(item, type) and issubclass(item, CustomView)):
        raise TypeError(f"not a subclass of workbench.CustomView: {item!r}")
    if abstract := sorted(getattr(item, "__abstractmethods__", ())):
        raise TypeError(f"{item.__name__} does not implement {' and '.join(abstract)}")
    kind = item.model_fields["kind"].default
    if not isinstance(kind, str) or kind.count(".") != 1 or not all(part.isidentifier() for part in kind.split(".")):
        raise ValueError(f"the kind of {item.__name__} must be a default of the form 'package.word', got {kind!r}")
    return kind, item


def _required_by(point: EntryPoint) -> str:
    """The range of versions of the workbench that a plugin's package asks for, read without importing it.

    pip installs a package beside a workbench it does not fit and only warns; so this is looked at again here.
    """
    if point.dist is None or point.dist.name == OWN:
        return ""
    for text in point.dist.requires or ():
        if text.lower().replace("_", "-").startswith(OWN):
            from packaging.requirements import InvalidRequirement, Requirement

            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                return text
            if requirement.name.lower().replace("_", "-") == OWN and requirement.marker is None:
                return str(requirement.specifier)
    return ""


def _built_for_another(wanted: object) -> str:
    """Why a plugin that asks for these versions of the workbench does not fit; empty if it does."""
    if wanted == "":
        return ""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet
    from packaging.version import Version

    if not isinstance(wanted, str):
        return f"requires_workbench must be a version range such as '>=1.2,<2', got {wanted!r}"
    try:
        versions = SpecifierSet(wanted)
    except InvalidSpecifier:
        return f"requires_workbench must be a version range such as '>=1.2,<2', got {wanted!r}"
    # A development version counts as the release it leads to.
    if versions.contains(Version(__version__).base_version, prereleases=True):
        return ""
    return f"built for workbench {wanted}, this is {__version__}; install a version of the plugin that fits"


def _names(variable: str) -> frozenset[str] | None:
    text = os.environ.get(variable)
    return None if not text else frozenset(name.strip() for name in text.split(",") if name.strip())


def _own_first(point: EntryPoint) -> tuple[bool, str]:
    # Our own families load first, so that a third party cannot take one of their ids.
    return (point.dist is None or point.dist.name != OWN, point.name)


def _failed(status: PluginStatus, what: str, error: BaseException) -> PluginStatus:
    text = "".join(traceback.format_exception(error))
    return replace(status, state="failed", reason=f"{what}: {type(error).__name__}: {error}", traceback=text)
