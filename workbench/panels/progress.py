"""Progress as every panel and every cell shows it: a bar, how long still, the newest values and their curves.

Plain HTML that is replaced in place: no widget is needed, so that it works wherever a notebook does.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.render.markup import Html, element, embedded
from workbench.render.palette import COLORS
from workbench.render.texts import duration_text, number_text, plain_name

__all__ = ["Course", "NotebookProgress", "progress_html"]

KEPT = 400
"""Points kept of each series; when there are more, every second one goes."""
SHOWN = 3
"""Series whose curve is drawn."""
_LOOK = """
.wb-progress { font-size: 13px; line-height: 1.5; max-width: 760px; font-family: var(--jp-ui-font-family, system-ui, sans-serif);
  color: var(--jp-content-font-color1, var(--vscode-foreground, inherit)); }
.wb-progress .wb-track { height: 8px; border-radius: 4px; background: rgba(128,128,128,0.25); overflow: hidden; margin: 3px 0; }
.wb-progress .wb-done { height: 8px; border-radius: 4px; background: #1f77d0; }
.wb-progress .wb-line1 { display: flex; flex-wrap: wrap; gap: 0 14px; justify-content: space-between; }
.wb-progress .wb-dim { opacity: 0.72; }
.wb-progress .wb-sparks { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 3px; }
.wb-progress svg { vertical-align: middle; margin-right: 6px; }
"""


@dataclass
class Course:
    """What a run has told so far."""

    title: str
    done: float = 0.0
    total: float = 0.0
    message: str = ""
    started: float = field(default_factory=time.monotonic)
    series: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Newest values of the logged series; the same step twice counts once."""
        for name, value in values.items():
            points = self.series.setdefault(name, [])
            if not points or points[-1][0] != step:
                points.append((step, float(value)))
            if len(points) > KEPT:
                del points[1:-1:2]

    def charts(self) -> list[dict[str, Any]]:
        """For `parts.curves_view`."""
        return [
            {
                "curves": [{"name": "", "x": [step for step, _ in points], "y": [value for _, value in points]}],
                "x_label": "step",
                "y_label": plain_name(name),
            }
            for name, points in self.series.items()
            if len(points) > 1
        ]


def progress_html(
    course: Course, *, status: str = "running", seconds: float | None = None, sparks: bool = True
) -> Html:
    """A course as HTML; every text in it is escaped."""
    passed = time.monotonic() - course.started if seconds is None else seconds
    share = min(max(course.done / course.total, 0.0), 1.0) if course.total > 0 else 0.0
    left = (
        f", about {duration_text(passed * (1 - share) / share)} to go"
        if status == "running" and 0.02 < share < 1
        else ""
    )
    percent = f"{share:.0%} " if course.total > 0 else ""
    bar = element(
        "div",
        element("div", class_="wb-done", style=f"width: {100 * share:.2f}%"),
        class_="wb-track", role="progressbar", aria_valuenow=f"{100 * share:.0f}", aria_valuemin="0", aria_valuemax="100",
        aria_label=f"progress of {course.title}",
    )  # fmt: skip
    about = f"{percent}{course.message}".strip() or ("" if status == "running" else status)
    first = element(
        "div",
        element("span", element("b", course.title), " ", about),
        element("span", f"{duration_text(passed)}{left}", class_="wb-dim"),
        class_="wb-line1",
    )
    drawn = [_spark(name, points, index) for index, (name, points) in enumerate(course.series.items()) if points][
        :SHOWN
    ]
    curves = element("div", *drawn, class_="wb-sparks") if drawn and sparks else None
    return element("div", element("style", embedded(_LOOK)), first, bar, curves, class_="wb-progress")


def _spark(name: str, points: list[tuple[int, float]], index: int) -> Html:
    """A series as a small curve with its newest value."""
    finite = [(step, value) for step, value in points if value == value and abs(value) != float("inf")]
    picture = None
    if len(finite) > 1:
        (x0, x1), values = (finite[0][0], finite[-1][0]), [value for _, value in finite]
        low, high = min(values), max(values)
        places = " ".join(
            f"{110 * (step - x0) / (x1 - x0 or 1):.1f},{19 - 16 * (value - low) / (high - low or 1):.1f}"
            for step, value in finite
        )
        line = element("polyline", points=places, fill="none", stroke=COLORS[index % len(COLORS)], stroke_width="1.5")
        picture = element("svg", line, width="112", height="22", aria_hidden="true")
        # `element` writes attribute names with hyphens, as SVG has them.
    return element(
        "span",
        picture,
        element("span", plain_name(name), class_="wb-dim"),
        " ",
        element("b", number_text(points[-1][1])),
    )


class NotebookProgress:
    """Progress of `bench.run` below its cell (see `workbench.execution.progress.Progress`); gone when the run ended."""

    def __init__(self, title: str, *, delay: float = 0.7, interval: float = 0.2) -> None:
        self.course = Course(title)
        self._delay, self._interval, self._last = delay, interval, 0.0
        self._handle: Any = None

    def show(self, done: float, total: float, message: str) -> None:
        """See Progress."""
        self.course.done, self.course.total, self.course.message = done, total, message
        self._draw()

    def values(self, step: int, values: dict[str, float]) -> None:
        """See Progress."""
        self.course.log(step, values)
        self._draw()

    def close(self) -> None:
        """See Progress."""
        if self._handle is not None:
            self._handle.update({"text/html": "", "text/plain": ""}, raw=True)
            self._handle = None

    def _draw(self) -> None:
        moment = time.monotonic()
        if moment - self.course.started < self._delay or moment - self._last < self._interval:
            return
        self._last = moment
        from IPython.display import display

        share = f"{self.course.done / self.course.total:.0%}" if self.course.total else ""
        bundle = {"text/html": str(progress_html(self.course)), "text/plain": f"{self.course.title} {share}"}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)
