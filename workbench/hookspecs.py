"""Every hook a plugin may implement, on one page.

Implement any of them in a module named by an entry point in group `workbench`:

    from workbench import MethodReference, hookimpl

    @hookimpl
    def workbench_methods():
        return [MethodReference("family.name", "my_package.my_module:MyMethod", "What it tells a practitioner")]

Compatibility. These hooks, `workbench`'s and `workbench.toolkit`'s public names and `workbench.testing` follow semantic
versions: within a major version hooks and arguments are added, never taken away or reordered (pluggy passes a hook only the
arguments it names). What is to go stays for one minor version at least, with a warning, and goes with the next major one.
Before 1.0 a minor version counts as a major one. The warning of a hook or of one of its arguments is part of its
specification (`warn_on_impl`, `warn_on_impl_args`), and `workbench plugins` repeats it beside every plugin that still
implements it; a public name raises a DeprecationWarning, which pytest shows in the plugin's own tests. A plugin with a hook
or an argument that no longer exists is not loaded, and `workbench plugins` names it. State the range you tested in your
package's dependencies (`vision-workbench>=1.2,<2`) or in the plugin's module:

    requires_workbench = ">=1.2,<2"

A plugin outside its range is not loaded; `workbench plugins` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click
    import xarray as xr

    from workbench.method import Method, MethodReference
    from workbench.report import CustomView, Report
    from workbench.runs import Run

NAMESPACE = "workbench"
hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)

__all__ = ["NAMESPACE", "hookimpl", "hookspec"]


@hookspec
def workbench_methods() -> Sequence[MethodReference | type[Method]]:  # type: ignore[empty-body]
    """Methods this plugin offers: references (imported on first use) or classes."""


@hookspec
def workbench_datasets() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Data sets by name: a function of keyword arguments (`name(size=64)`) that returns a Dataset with the variables of
    `workbench.schema`.
    """


@hookspec
def workbench_models() -> Mapping[str, Callable[..., Any]]:  # type: ignore[empty-body]
    """Model factories by name: a function of keyword arguments that returns an `nn.Module` or a `workbench.Model`.

    Arguments called `n_classes` and `channels` are filled in from the data where the user gives none; one called
    `weights` receives the path after `@`. Every factory also understands `mean`, `std` and `seed` in `name(...)`.
    A factory that changes a network made by another one takes it as `network`; a stored model of it has
    `factory_arguments={"network": {"factory": NAME, "arguments": {...}}, ...}` and is built again from the inside out.
    """


@hookspec
def workbench_views() -> Sequence[type[CustomView]]:  # type: ignore[empty-body]
    """View types for reports: classes with their fields and both drawings, see `workbench.CustomView`.

    A report that holds one is stored like any other. Where the plugin is missing, a table of its arrays stands in its place.
    """


@hookspec
def workbench_comparisons() -> Mapping[str, Callable[[Sequence[Run]], tuple[Report, xr.Dataset]]]:  # type: ignore[empty-body]
    """What runs of a family say side by side: by family, a function of its complete runs (at least one).

    It returns a report and the Dataset whose arrays the report's views draw. `bench.compare(runs).report()` shows it. Runs
    that cannot be compared, such as those of different test data, are refused with an `InputError` for `runs`.
    """


@hookspec
def workbench_commands() -> Sequence[click.Command]:  # type: ignore[empty-body]
    """Commands to add to the `workbench` command line."""


@hookspec
def workbench_run_started(run_id: str, record: Mapping[str, Any]) -> None:
    """A run began; `record` is its run record as plain JSON values. One of finished, failed and skipped follows."""


@hookspec
def workbench_run_progressed(run_id: str, done: float, total: float, message: str) -> None:
    """A run reported progress (at most a few times a second)."""


@hookspec
def workbench_run_finished(run_id: str, record: Mapping[str, Any]) -> None:
    """A run is complete in the store."""


@hookspec
def workbench_run_failed(run_id: str, record: Mapping[str, Any]) -> None:
    """A run failed or was cancelled; `record["failure"]` says how."""


@hookspec
def workbench_run_skipped(run_id: str, reason: str) -> None:
    """The method of a run declined these inputs; nothing of the run is kept."""
