"""The facade that notebooks and the command line use: open a store, run methods, find, report and compare runs.

bench = workbench.open()
run = bench.run("calibration.temperature", data="run:latest")
run.report()
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.dispatch import WAIT, ask, point_runner, progress_bar, send
from workbench.host import Host
from workbench.listings import Methods, Plugins
from workbench.method import Method
from workbench.runs import Run, Runs, Studies, panel_module
from workbench.store import Store, StoredRun

if TYPE_CHECKING:
    import torch
    import xarray as xr
    from distributed import Client
    from torch import nn

    from workbench.compared import Comparison
    from workbench.execution.cluster import Cluster
    from workbench.execution.handle import Handle
    from workbench.execution.points import Each
    from workbench.execution.progress import CancelToken, Progress
    from workbench.execution.sources import StoreSources
    from workbench.execution.sweep import Sweep
    from workbench.panels.browse import BrowsePanel
    from workbench.panels.launch import LaunchPanel
    from workbench.render.method_page import MethodPage
    from workbench.study import Study, StudyResult

__all__ = ["Methods", "Plugins", "Workbench", "open"]

T = TypeVar("T")
DEFAULT_STORE = "store"


def open(
    url: str | os.PathLike[str] | None = None, *, host: Host | None = None, client: Client | None = None
) -> Workbench:
    """Open a store; it is created by the first run.

    Args:
        url: folder of the store; default: $WORKBENCH_STORE, else `./store`.
        host: plugins to use; default: all installed ones.
        client: a `distributed.Client`: runs are computed by its workers, which must reach the store under the same URL.

    Raises:
        StoreError: the place is not a store or cannot be read.
        FormatVersionError: it was written by a newer version of the workbench.
    """
    bench = Workbench(Store(url or os.environ.get("WORKBENCH_STORE") or DEFAULT_STORE), host or Host())
    return bench if client is None else bench.on(client)


class Workbench:
    """A store and the methods to run on it. Made by `workbench.open`."""

    def __init__(self, store: Store, host: Host, cluster: Cluster | None = None) -> None:
        self.store, self.host, self.cluster = store, host, cluster

    def __repr__(self) -> str:
        where = "" if self.cluster is None else f", dashboard={self.cluster.dashboard!r}"
        return f"Workbench(store={self.store.url!r}, methods={len(self.host.methods)}{where})"

    def on(self, client: Client | None) -> Workbench:
        """The same store and methods, but runs are computed by the workers of a dask client (None: by this process).

        Workers need the same version of the workbench and of the plugins, and the store under the same URL. Names and paths
        are resolved there; models and data in memory, and methods from a notebook cell, are sent along.
        """
        from workbench.execution.cluster import cluster_of

        return Workbench(self.store, self.host, None if client is None else cluster_of(client))

    # --- methods and subjects ---------------------------------------------------------------------------------------

    @property
    def methods(self) -> Methods:
        """Every method that can be run, by id."""
        return Methods(self.host)

    @property
    def plugins(self) -> Plugins:
        """Every plugin that was found, broken ones with the reason; `bench.plugins()` shows what each brings."""
        return Plugins(self.host)

    def register(self, cls: type[T]) -> type[T]:
        """Add a method written in a notebook cell (again after an edit: the key of its runs changes with the code).

        Can be used as a decorator. Takes a view type (`workbench.CustomView`) as well.

        Raises:
            PluginError: the class breaks the contract.
        """
        return self.host.register(cls)

    def describe(self, method: str | type[Method]) -> MethodPage:
        """A method explained: what it tells, its paper, inputs, parameters, outputs, and figures of its newest run here.

        Displays itself in a notebook; `.save(path)` writes a page.

        Raises:
            UnknownMethodError, PluginError: there is no such method, or it cannot be imported.
        """
        from workbench.description import describe_method
        from workbench.render.method_page import MethodPage

        cls = method if isinstance(method, type) else self.host.method(method)
        complete = self.runs(f"method = {cls.id} and status = complete", limit=1)
        example = (complete[0].report_data(), complete[0].stored, complete[0].info) if complete else None
        return MethodPage(describe_method(cls), example=example)

    def data(self, spec: str) -> xr.Dataset:
        """A data set by name (`digits`, `photos(size=64)[:16]`) or path."""
        return self.dataset(spec, role="data")[0].copy(deep=True)

    def model(self, spec: str, *, data: xr.Dataset | None = None) -> nn.Module:
        """A model by name (`small-cnn`), name and weights (`resnet20@weights.safetensors`) or `run:ID`."""
        from workbench.execution.inputs import RUN_PREFIX

        if spec.startswith(RUN_PREFIX):
            return Run(self, self.stored_run(spec.removeprefix(RUN_PREFIX))).model()
        return self.network(spec, example=data, role="model")

    # --- running ----------------------------------------------------------------------------------------------------

    def run(
        self,
        method: str | type[Method],
        /,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        precision: str = "float32",
        force: bool = False,
        wait: float = WAIT,
        study: str | None = None,
        progress: bool | Progress = True,
        cancel: CancelToken | None = None,
        **inputs_and_parameters: Any,
    ) -> Run:
        """Run a method, or return the run from the store if the same was computed before.

        Args:
            method: its id, or its class.
            seed: of everything random in the run.
            device: where to compute; default: cuda, else mps, else cpu. Not part of the run's identity.
            precision: float32, float16, bfloat16 or float64; part of the identity.
            force: compute even if the store has it.
            wait: seconds to wait for somebody who is computing the same just now, before computing it here as well.
            study: what the run is for, a path such as `ship/resnet20`; not part of its identity. A run that comes from the
                store joins the study.
            progress: show a bar, or an object that shows progress.
            cancel: a token that stops the run from another thread.
            inputs_and_parameters: roles and parameters of the method by name. Data: arrays, Datasets, names, paths,
                runs or arrays of runs. Models: modules, names, runs.

        Raises:
            UnknownMethodError, InputError, MissingDependencyError: before any work starts.
            SkippedError, CancelledError, RunFailedError, StoreError: see `workbench.execution.lifecycle.execute`.
        """
        from workbench.execution.request import fulfil, prepare

        request = ask(self, method, inputs_and_parameters, seed, device, precision, force, wait, study)
        shown = progress_bar(request.method.id) if progress is True else (progress or None)
        if self.cluster is not None:
            return send(self, request).attend(shown, cancel)
        job = prepare(request, self)
        stored, served = fulfil(request, job, self.store, self.host, progress=shown, cancel=cancel)
        return Run(self, stored, served=served)

    def submit(
        self,
        method: str | type[Method],
        /,
        *,
        seed: int = 0,
        device: str | torch.device | None = None,
        precision: str = "float32",
        force: bool = False,
        wait: float = WAIT,
        study: str | None = None,
        **inputs_and_parameters: Any,
    ) -> Handle[Run]:
        """Begin what `run` would do and return at once: `handle.status`, `.progress`, `.result()`, `.cancel()`.

        With a client it runs on a worker. Without, it runs in a background thread of this process, one after the other. A
        `run` in the foreground goes first: the one in the background steps aside for it. Cells that draw from torch's,
        numpy's or Python's *global* generators
        meanwhile share them with it (see `workbench.execution.turn`). What is unfinished when the process ends is cancelled.

        Args:
            method: its id, or its class.
            seed: see `run`.
            device: see `run`.
            precision: see `run`.
            force: see `run`.
            wait: see `run`.
            study: see `run`.
            inputs_and_parameters: roles and parameters of the method by name, as for `run`.

        Raises:
            UnknownMethodError, InputError, MissingDependencyError: before anything begins. What goes wrong later, on a
                worker also whatever is wrong with subjects that it has to load, raises from `handle.result()`.
        """
        from workbench.execution.background import submit

        request = ask(self, method, inputs_and_parameters, seed, device, precision, force, wait, study)
        if self.cluster is not None:
            return send(self, request)
        return submit(request, self, self.store, self.host, lambda stored, served: Run(self, stored, served=served))

    def sweep(
        self,
        methods: str | type[Method] | Sequence[str | type[Method]],
        /,
        *,
        points: Sequence[Mapping[str, Any]] | None = None,
        seed: int | Sequence[int] | Each = 0,
        device: str | torch.device | None = None,
        precision: str = "float32",
        force: bool = False,
        study: str | None = None,
        in_flight: int | None = None,
        block: bool = True,
        progress: bool | Progress = True,
        **inputs_and_parameters: Any,
    ) -> Sweep[Run]:
        """Run many points: the product of everything swept, one run each. What the store has is not computed again.

            bench.sweep("calibration.*", data=[logits, other], seed=range(5), study="calibration")
            bench.sweep("training.classifier", model="small-cnn", data="digits", epochs=workbench.each(5, 10))

        A list of subjects, a list or range of seeds and several methods are swept; for parameters write `workbench.each(...)`,
        because a list may be the value of one. With several methods, each gets the arguments it knows. A point that fails
        neither stops nor hides the others (`sweep.failures`). When the notebook or the cluster dies, the same call goes on.

        Args:
            methods: ids, patterns such as `calibration.*`, or classes.
            points: an explicit list of points instead of a product: the arguments of each, beside the common ones
                (`method` and `seed` allowed).
            seed: one, or several.
            device: see `run`.
            precision: see `run`.
            force: see `run`.
            study: name that all its runs have or join.
            in_flight: how many points are on the way at once; default: a few for every worker.
            block: wait until it is done; False returns at once, and `sweep.progress`, `.wait()`, `.cancel()` tell and steer.
            progress: show a bar while waiting, or an object that shows progress.
            inputs_and_parameters: roles and parameters by name.

        Returns:
            the sweep: shows itself as a table; `.runs`, `.failures`, `.progress`, `.table()`.

        Raises:
            UnknownMethodError, InputError: an argument that no method knows, before anything begins.
            CancelledError: Ctrl-C while it was waited for.
        """
        from workbench.execution.points import Points, methods_like
        from workbench.execution.sweep import Sweep, pace
        from workbench.record import check_study

        if study is not None:
            check_study(study)
        classes = methods_like(self.host, methods)
        every = Points(classes, inputs_and_parameters, seed, points)
        sweep: Sweep[Run] = Sweep(
            every,
            point_runner(self, device, precision, force, study),
            lambda run: (run.id, run.served, run.metrics),
            lambda ids: Runs(self[run_id] for run_id in ids),
            in_flight=pace(in_flight, 1 if self.cluster is None else self.cluster.threads),
            study=study,
            dashboard="" if self.cluster is None else self.cluster.dashboard,
        )
        if block:
            sweep.attend(progress_bar(study or "sweep") if progress is True else (progress or None))
        return sweep

    def study(
        self,
        study: Study | Mapping[str, Any] | str | os.PathLike[str],
        /,
        *,
        subjects: Mapping[str, Any] | None = None,
        device: str | None = None,
        precision: str = "float32",
        progress: bool | Progress = True,
    ) -> StudyResult:
        """Have a study computed: many methods on shared subjects, whose runs feed each other, and one report.

            result = bench.study("ship-small")        # comes with the workbench; or a YAML file, a dict, a `Study`
            result.report()

        What the store has is not computed again, so asking again adds what is missing or new. A branch that fails stops
        what would have taken its run, and nothing else (`result.failures`). The runs get the study's name.

        Args:
            study: a description (`workbench.study`), a file of one, or the name of one that comes with the workbench.
            subjects: in place of those of the description, by name.
            device: see `run`.
            precision: see `run`.
            progress: show a bar for every step, or an object that shows progress.

        Raises:
            InputError, UnknownMethodError: what is wrong with the description, before anything begins; names the step.
            CancelledError: Ctrl-C.
        """
        from workbench.study import run_study

        return run_study(self, study, subjects=subjects, device=device, precision=precision, progress=progress)

    def browse(
        self,
        where: str = "",
        *,
        view: str | None = None,
        columns: Sequence[str] = (),
        sort: str = "started",
        descending: bool | None = None,
    ) -> BrowsePanel:
        """All runs in a table: search, filters, order, columns, saved views; select to compare, click to open.

        Args:
            where: a query, as for `runs`.
            view: name of a view that somebody saved, in place of all others.
            columns: what to show: columns, metrics, `params.NAME`; default: what fits the first runs.
            sort: a column, a metric, `params.NAME` or `tag`.
            descending: largest, latest or last first; default: so for numbers and moments, not for texts.

        Raises:
            InputError: the query is not understood, or there is no such view.
        """
        made = panel_module("browse").BrowsePanel
        return made(self, where, view=view, columns=columns, sort=sort, descending=descending)  # type: ignore[no-any-return]

    def launch(self, method: str | type[Method], /, **inputs_and_parameters: Any) -> LaunchPanel:
        """A form for a method: inputs, parameters with their ranges, progress, cancel, and the same as code.

        The run goes on in the background (`submit`), so the notebook stays free.

        Args:
            method: its id, or its class.
            inputs_and_parameters: what the form begins with, by name; objects of the notebook are used as they are.

        Raises:
            UnknownMethodError, MissingDependencyError, InputError: the method cannot be had, or has no such argument.
        """
        return panel_module("launch").launch(self, method, inputs_and_parameters)  # type: ignore[no-any-return]

    # --- finding ----------------------------------------------------------------------------------------------------

    def runs(self, where: str = "", *, order: str = "", limit: int | None = None, offset: int = 0) -> Runs:
        """Runs that meet a query: `family = quantization and accuracy > 0.9 and user = me`.

        Args:
            where: the query; empty means all runs.
            order: a column, metric or parameter to sort by, from large to small with a minus: `-accuracy`, `params.bits`;
                runs without it come last. Default: newest first.
            limit: at most so many.
            offset: leave out so many before.

        Raises:
            InputError: the query or the order is not understood.
        """
        return Runs(Run(self, stored) for stored in self.store.runs(where, order=order, limit=limit, offset=offset))

    def studies(self) -> Studies:
        """All studies (`run(..., study="ship/resnet20")`) and those above them: name, runs by status, last activity."""
        return Studies(self.store.studies())

    def __getitem__(self, run_id: str) -> Run:
        """A run by its id, any unambiguous part of it, or `latest`.

        Raises:
            RunNotFoundError: none or several match.
        """
        return Run(self, self.store.run(run_id))

    def delete(self, run: str | Run, *, force: bool = False) -> None:
        """Remove a run from the store for good.

        Raises:
            StoreError: others were made from it, or it is running; `force` removes it all the same.
        """
        self.store.delete(run if isinstance(run, str) else run.id, force=force)

    def compare(self, runs: Sequence[Run | str], *, variables: Sequence[str] = ()) -> Comparison:
        """Runs side by side: every metric, every parameter that differs and the arrays asked for, over the dim `run`.

        Args:
            runs: runs or run ids.
            variables: stored arrays to line up; each must have the same dims and sizes in all runs. An array that shares
                its name with a metric is called NAME_array.

        Returns:
            a Dataset over `run` (coordinate: run ids) with one variable per metric (NaN where a run lacks it), its
            interval as NAME_lower and NAME_upper where one was stored, and coordinates `method`, `seed` and one per
            parameter or input that differs. Its `.panel()` shows them side by side.

        Raises:
            InputError: there are no runs, or an array does not line up.
        """
        from workbench.compared import Comparison
        from workbench.comparison import compare_runs

        found = [self[run] if isinstance(run, str) else run for run in runs]
        return Comparison.of(compare_runs(found, variables), found)

    def aggregate(self, runs: Sequence[Run | str], *, level: float = 0.95) -> xr.Dataset:
        """Repetitions as one: mean, deviation and Student's t interval of every metric over runs that differ only in seed.

        Runs belong to one group if method, version, code, parameters, precision and inputs are the same; an input that is
        the output of a run counts by what that run computed, not by its seed, so that evaluations of models that were
        trained with several seeds are repetitions of one another. Runs that are not complete are left out; of runs that
        repeat all seeds the newest counts, because it is no independent repetition.

        Args:
            runs: runs or run ids.
            level: confidence of the intervals, in (0, 1).

        Returns:
            a Dataset over `group` (a label that says the method, and the parameters and inputs that differ) with, for every
            metric, the mean (NAME), the standard deviation with n - 1 (NAME_std), the interval (NAME_lower, NAME_upper) and the
            number of independent repetitions that have the metric (NAME_n); NaN where there are too few. Coordinates:
            `method`, one per parameter or input that differs, `runs` (their ids) and `seeds`, both separated by spaces, and
            `replicates`, what counts as a repetition: `seed`, each run; or, where runs come from earlier runs with several
            seeds, the role behind which those are (`model`): runs from the same one are averaged first, so that five
            evaluations of one trained model do not pass for five trainings.

        Raises:
            InputError: no run is complete, or a level outside (0, 1).
        """
        from workbench.comparison import aggregate_runs

        found = [self[run] if isinstance(run, str) else run for run in runs]
        return aggregate_runs(found, lambda run: self.store.run(run).record, level=level)

    # --- where subjects come from (`execution.inputs.Sources`) --------------------------------------------------------

    def dataset(self, spec: str, *, role: str) -> tuple[xr.Dataset, str | None]:
        """See `workbench.execution.inputs.Sources`."""
        return self._sources.dataset(spec, role=role)

    def network(self, spec: str, *, example: xr.Dataset | None, role: str) -> nn.Module:
        """See `workbench.execution.inputs.Sources`."""
        return self._sources.network(spec, example=example, role=role)

    def stored_run(self, run_id: str) -> StoredRun:
        """See `workbench.execution.inputs.Sources`."""
        return self.store.run(run_id)

    def stored_model(self, run: StoredRun, name: str, into: nn.Module | None = None) -> nn.Module:
        """See `workbench.execution.inputs.Sources`."""
        return self._sources.stored_model(run, name, into)

    @property
    def _sources(self) -> StoreSources:
        from workbench.execution.sources import StoreSources

        return StoreSources(self.store, self.host)
