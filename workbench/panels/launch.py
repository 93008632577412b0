"""Start a method from a form: `bench.launch("quantization.hawq")`. It runs in the background; the kernel stays free.

What is typed is checked while it is typed. The run itself is `bench.submit` with the arguments that "as code" shows.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError, WorkbenchError
from workbench.method import DataRole, Method, ModelRole
from workbench.panels import style
from workbench.panels.launch_form import Checked, as_code, check, fields
from workbench.panels.panel import Panel
from workbench.panels.parts import curves_view, error_text, fragment, series_curves
from workbench.panels.progress import Course, progress_html
from workbench.render import sections
from workbench.render.html import notebook_fragment, run_head
from workbench.render.markup import element, visible

if TYPE_CHECKING:
    import ipywidgets

    from workbench.bench import Workbench
    from workbench.execution.handle import Handle
    from workbench.runs import Run

__all__ = ["LaunchPanel", "launch"]

LOOK = 0.1
"""Seconds between two looks at a run that goes on."""
RECENT = 100
"""Newest runs that are looked through for outputs that fit a role."""
OFFERED = 25


class LaunchPanel(Panel):
    """A method's form, its progress and its result.

    Args:
        bench: where it runs.
        method: its class.
        given: arguments to begin with; objects of the notebook among them are used as they are.

    Raises:
        InputError: an argument that the method does not have.
    """

    def __init__(self, bench: Workbench, method: type[Method], given: Mapping[str, Any]) -> None:
        self.bench, self.method = bench, method
        known = {*method.inputs, *method.Params.model_fields, "seed", "device", "precision", "study", "force"}
        for name in given:
            if name not in known:
                raise InputError(name, expected=f"a role or parameter of {method.id}", got="an unknown name")
        self.given = dict(given)
        self.fields = fields(method, self.given, _subjects(bench, method))
        self.texts = {field.name: field.value for field in self.fields}
        self.handle: Handle[Run] | None = None
        self.run: Run | None = None
        self._starting = threading.Lock()
        self._saying = threading.RLock()
        """Of the form's state: who follows the run and who answers the page both read and replace it."""
        self._followed = False

    def __repr__(self) -> str:
        return f"<form of {self.method.id}>"

    # --- logic (no widgets) -----------------------------------------------------------------------------------------

    def checked(self) -> Checked:
        """What the form comes to."""
        return check(self.method, self.texts, self.given)

    def code(self, checked: Checked) -> str:
        """The same in Python."""
        objects = {field.name: field.given for field in self.fields if field.given}
        return as_code(self.method.id, checked.arguments, objects)

    def start(self) -> Handle[Run]:
        """Submit the run.

        Raises:
            InputError: something does not fit. MissingDependencyError: a package is not installed.
        """
        checked = self.checked()
        if checked.errors:
            name, problem = next(iter(checked.errors.items()))
            raise InputError(name or "parameters", expected=problem, got=repr(self.texts.get(name, "")))
        self.handle = self.bench.submit(self.method, **checked.arguments)
        return self.handle

    # --- widgets ----------------------------------------------------------------------------------------------------

    def _static(self) -> str:
        rows = [
            (
                element("code", field.name),
                field.value or field.given,
                field.default,
                field.range or " ".join(field.choices),
                field.help,
            )
            for field in self.fields
            if field.group != "run"
        ]
        head = element("div", element("b", self.method.title, class_="wb-title"), " ", element("code", self.method.id))
        return notebook_fragment(head, sections.table_html(("name", "value", "default", "range", "what it is"), rows))

    def _widget(self) -> ipywidgets.DOMWidget:
        import ipywidgets

        self._form = _widget_class()(form=self._described(), state=self._state())
        self._form.on_msg(self._received)
        self._progress = ipywidgets.HTML()
        self._curves = curves_view([])
        self._ended = ipywidgets.VBox()
        return style.frame(self._form, self._progress, *self._elsewhere(), self._curves, self._ended)

    def _elsewhere(self) -> list[ipywidgets.Widget]:
        """Where to watch the workers, if workers compute it."""
        dashboard = "" if self.bench.cluster is None else self.bench.cluster.dashboard
        link = element("a", dashboard, href=dashboard, target="_blank")
        return [fragment(element("div", "dask dashboard: ", link))] if dashboard else []

    def _described(self) -> dict[str, Any]:
        method = self.method
        return {
            "id": method.id,
            "title": method.title,
            "version": method.version,
            "paper": method.paper.citation if method.paper else "",
            "fields": [field.to_json() for field in self.fields],
        }

    def _state(
        self, *, status: str = "idle", errors: Mapping[str, str] | None = None, trouble: str = ""
    ) -> dict[str, Any]:
        checked = self.checked()
        return {
            "errors": {**checked.errors, **(errors or {})},
            "code": self.code(checked),
            "status": status,
            "trouble": visible(trouble, 4000),
        }

    def _received(self, widget: Any, message: Any, buffers: Any) -> None:
        kind = message.get("type") if isinstance(message, dict) else None
        if kind in ("changed", "run") and isinstance(message.get("texts"), dict):
            known = {field.name for field in self.fields}
            self.texts |= {name: str(text)[:20_000] for name, text in message["texts"].items() if name in known}
        if kind == "changed":
            with self._saying:
                self._form.state = self._state(status=self._form.state["status"]) | {"seq": message.get("seq")}
        elif kind == "run":
            self._launch()
        elif kind == "cancel" and self.handle is not None:
            with self._saying:
                if self._followed:  # else it has just ended, and how it did is what the page shows
                    self._form.state = {**self._form.state, "status": "cancelling"}
            self.handle.cancel()

    def _launch(self) -> None:
        """Start it in a thread of its own: loading subjects must not hold the kernel up."""
        if not self._starting.acquire(blocking=False):
            return
        with self._saying:
            self._form.state = self._state(status="starting")
        self._ended.children = ()
        self._curves.charts = []
        threading.Thread(target=self._follow, name=f"workbench-launch-{self.method.id}", daemon=True).start()

    def _follow(self) -> None:
        course = Course(self.method.id)
        try:
            handle = self.start()
            self._followed = True
            self._watch(handle, course)
            self._finish(handle, course)
        except (WorkbenchError, OSError, ValueError, TypeError, LookupError) as error:
            argument = getattr(error, "argument", None)
            place = {argument: error_text(error)} if argument in self.texts else None
            self._progress.value = ""
            self._over("idle", errors=place, trouble="" if place else error_text(error))
        finally:
            self._starting.release()

    def _watch(self, handle: Handle[Run], course: Course) -> None:
        status = ""
        while not handle.wait(LOOK):
            progress = handle.progress
            course.done, course.total, course.message = progress.done, progress.total, progress.message
            if progress.step is not None:
                course.log(progress.step, progress.values)
            with self._saying:
                if handle.status != status and self._form.state["status"] != "cancelling":
                    status = handle.status
                    self._form.state = {**self._form.state, "status": status}
            if handle.status == "pending":
                course.started, course.message = time.monotonic(), "waits for its turn"
            self._progress.value = str(progress_html(course, sparks=False))
            charts = course.charts()
            if charts != self._curves.charts:
                self._curves.charts = charts

    def _finish(self, handle: Handle[Run], course: Course) -> None:
        if handle.status == "complete":
            self.run = handle.result()
            self._curves.charts = series_curves({"": self.run.series})
            self._progress.value = ""
            self._ended.children = self._result(self.run)
            self._over("complete")
            return
        error = handle.error
        # Whoever cancelled knows it; the status says it, too.
        trouble = "" if handle.status == "cancelled" else str(error or handle.status)
        argument = getattr(error, "argument", None)
        errors = {argument: str(error)} if argument in self.texts else None
        self._progress.value = str(progress_html(course, status=handle.status, sparks=False))
        self._over(handle.status, errors=errors, trouble=trouble)

    def _over(self, status: str, *, errors: Mapping[str, str] | None = None, trouble: str = "") -> None:
        """The last word of who followed a run."""
        with self._saying:
            self._followed = False
            self._form.state = self._state(status=status, errors=errors, trouble=trouble)

    def _result(self, run: Run) -> tuple[ipywidgets.Widget, ...]:
        import ipywidgets

        info = run.info
        lead = element("p", info.report.summary, class_="wb-lead wb-text") if info.report is not None else None
        table = (
            sections.metrics_table(info.report.metrics[:8]) if info.report is not None and info.report.metrics else None
        )
        shown = ipywidgets.Button(description="Look through the run", icon="search")
        shown.layout.width = "auto"
        box = ipywidgets.VBox([shown])
        box.layout.align_items = "flex-start"

        def look(_: Any) -> None:
            box.layout.align_items = "stretch"
            box.children = (run.panel().widget,)

        shown.on_click(look)
        return fragment(run_head(info), lead, table), box


def _subjects(bench: Workbench, method: type[Method]) -> dict[str, list[str]]:
    """What may fill each role: names of data sets and models, and recent runs whose outputs fit."""
    from workbench.subjects.builtin import DATASETS, FACTORIES

    runs = bench.store.runs("status = complete", limit=RECENT)
    found: dict[str, list[str]] = {}
    for name, role in method.inputs.items():
        if isinstance(role, ModelRole):
            names = [*FACTORIES, *bench.host.models()]
            fitting = [f"run:{run.id}" for run in runs if "model" in run.record.models]
        else:
            names = [*DATASETS, *bench.host.datasets()]
            fitting = [f"run:{run.id}" for run in runs if _fits(role, run.record.arrays)]
        found[name] = [*fitting[:OFFERED], *dict.fromkeys(names)]
    return found


def _fits(role: DataRole, arrays: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(name in arrays and tuple(arrays[name]["dims"]) == dims for name, dims in role.variables.items())


@cache
def _widget_class() -> Any:
    import anywidget
    import traitlets

    class LaunchForm(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = style.asset("common.js") + style.asset("launch.js")
        _css = style.asset("launch.css")
        form = traitlets.Dict().tag(sync=True)
        state = traitlets.Dict().tag(sync=True)

    return LaunchForm


def launch(bench: Workbench, method: str | type[Method], given: Mapping[str, Any]) -> LaunchPanel:
    """See `workbench.bench.Workbench.launch`.

    Raises:
        UnknownMethodError, PluginError: the method cannot be had. MissingDependencyError: it needs a package.
    """
    from workbench.execution.inputs import check_requirements

    cls = bench.register(method) if isinstance(method, type) else bench.host.method(method)
    check_requirements(cls)
    return LaunchPanel(bench, cls, given)
