"""A third party's plugin, for tests of the command line: the sample methods, and some that misbehave."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from workbench import DataRole, Method, MethodReference, Metric, Output, Params, Report, hookimpl

from unit import sample_methods

HOSTILE = "[red]alarm[/red] \x1b[2J\x1b]0;owned\x07 \u202egpj.exe <script>alert(1)</script>"
"""What a prankster would put into a shared store: markup, terminal escapes, reordering marks, HTML."""


class _Plain(Method):
    inputs: ClassVar = {}
    outputs = (Output("value", ("sample",), "float32", "numbers"),)

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")


class Waiting(_Plain):
    """Takes ten minutes, a hundredth of a second at a time; says in the current folder that it began."""

    id = "sample.waiting"
    title = "Waits"

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Wait."""
        Path("waiting").touch()
        for _ in out.track(range(60_000), "waiting"):
            time.sleep(0.01)
        out.write("value", np.zeros(1, dtype=np.float32))


class Echo(_Plain):
    """Stores its parameters."""

    id = "sample.echo"
    title = "Echoes its parameters"
    inputs: ClassVar = {"data": DataRole("images", {"image": ("sample", "channel", "y", "x")}, optional=True)}

    class Params(Params):
        """Parameters of many kinds."""

        widths: tuple[int, ...] = (2, 4)
        rates: tuple[float, ...] = ()
        names: tuple[str, ...] = ()
        flag: bool = False
        text: str = ""
        limit: float | None = 1.0

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Write something."""
        out.write("value", np.asarray(params.widths, dtype=np.float32))


class Hostile(_Plain):
    """Everything it says is a trap."""

    id = "sample.hostile"
    title = HOSTILE

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Write something."""
        out.write("value", np.zeros(1, dtype=np.float32))

    def report(self, result: Any) -> Report:
        """Attack the terminal."""
        metric = Metric(name="trap", value=1.0, unit="[blink]", description=HOSTILE)
        return Report(summary=HOSTILE, metrics=[metric], notes=[HOSTILE])


class Unbounded(_Plain):
    """Finds no upper bound."""

    id = "sample.unbounded"
    title = "Numbers without end"

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Write something."""
        out.write("value", np.zeros(1, dtype=np.float32))

    def report(self, result: Any) -> Report:
        """Infinity and not-a-number."""
        metrics = [
            Metric(name="ratio", value=float("inf"), interval=(2.0, float("inf"))),
            Metric(name="undefined", value=float("nan")),
        ]
        return Report(summary="Not bounded.", metrics=metrics)


class HostileFailure(_Plain):
    """Fails with a trap."""

    id = "sample.hostile_failure"
    title = "Fails"

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Raise."""
        raise ValueError(HOSTILE)


class Dependent(_Plain):
    """Needs what nobody has."""

    id = "sample.dependent"
    title = "Needs a package"
    requires: ClassVar = {"surely_not_installed_anywhere": "exotic"}

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Never reached."""


@hookimpl
def workbench_methods() -> list[Any]:
    """The sample methods, those above, and one whose module does not exist."""
    samples = [getattr(sample_methods, name) for name in sample_methods.__all__]
    missing = MethodReference("sample.missing", "no_such_module:Method", "Its module is missing")
    return [*samples, Waiting, Echo, Hostile, HostileFailure, Unbounded, Dependent, missing]
