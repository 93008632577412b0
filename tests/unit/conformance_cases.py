"""A method that keeps every rule of the contract, and how to break one rule of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from workbench import (
    DataRole,
    Line,
    Method,
    Metric,
    Output,
    Paper,
    Report,
)
from workbench import Params as BaseParams
from workbench.method import Method as AnyMethod
from workbench.schema import VARIABLES
from workbench.testing.behaviour import check_behaviour
from workbench.testing.trial import Trial

PICTURE = VARIABLES["image"].dims


class Brightness(Method):
    """How bright every picture is, and how that is spread: a method that keeps every rule of the contract."""

    id = "sample.brightness"
    title = "How bright the pictures are"
    paper = Paper(title="On means", authors="A. Author", year=1999)
    inputs = {"data": DataRole("pictures", {"image": PICTURE}, {"label": ("sample",)})}
    outputs = (
        Output("brightness", ("sample",), "float64", "mean of every picture"),
        Output("resampled", ("draw",), "float64", "mean brightness of resampled data"),
    )

    class Params(BaseParams):
        """Parameters."""

        draws: int = Field(5, ge=2, le=100, description="bootstrap draws")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Average, then resample."""
        image = inputs["data"]["image"].values.astype(np.float64)
        value = image.mean(axis=(1, 2, 3))
        out.write("brightness", value)
        means = [
            value[out.rng(f"{i}").integers(0, len(value), len(value))].mean() for i in out.track(range(params.draws))
        ]
        out.write("resampled", np.array(means))

    def report(self, result: Any) -> Report:
        """The mean."""
        value = float(result["brightness"].mean())
        return Report(
            summary=f"The pictures have a mean brightness of {value:.2f}.",
            metrics=[Metric(name="brightness", value=value)],
            views=[Line(title="Resampled", y=("resampled",), x="draw")],
        )


def broken(**body: Any) -> type[Method]:
    """`Brightness` with a part replaced."""
    return type("Broken", (Brightness,), {"__doc__": Brightness.__doc__, "__module__": __name__, **body})


def then(act: Any) -> Any:
    """A `run` that does its work and then `act(inputs, params, out)`."""

    def run(self: Any, inputs: Any, params: Any, out: Any) -> None:
        Brightness.run(self, inputs, params, out)
        act(inputs, params, out)

    return run


def first(act: Any) -> Any:
    """A `run` that calls `act(inputs, params, out)` before its work."""

    def run(self: Any, inputs: Any, params: Any, out: Any) -> None:
        act(inputs, params, out)
        Brightness.run(self, inputs, params, out)

    return run


def also_report(act: Any) -> Any:
    def report(self: Any, result: Any) -> Report:
        act(self, result)
        return Brightness.report(self, result)

    return report


def problems(method: type[AnyMethod], rule: str, tmp_path: Path, **inputs: Any) -> str:
    trial = Trial(method, folder=tmp_path / "store", inputs=inputs)
    return "\n".join(finding.problem for finding in check_behaviour(trial, rule))


def fail_when(condition: Any) -> Any:
    def act(inputs: Any, params: Any, out: Any) -> None:
        if condition(inputs, out):
            raise ValueError("not prepared for that")

    return act


def silent(self: Any, inputs: Any, params: Any, out: Any) -> None:
    out.write("brightness", inputs["data"]["image"].values.astype(np.float64).mean(axis=(1, 2, 3)))
    out.write("resampled", np.zeros(params.draws))
