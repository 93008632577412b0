"""Small real methods for tests of the host, the store and the life cycle. Import as `from unit.sample_methods import ...`."""

from __future__ import annotations

import os
import signal
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from workbench import DataRole, Method, Metric, ModelRole, Output, Params, Report

__all__ = ["Checkpointed", "Declining", "Failing", "Filling", "Interrupted", "MeanImage", "RandomNumbers", "Scores"]

IMAGES = {"image": ("sample", "channel", "y", "x")}


class MeanImage(Method):
    """The mean of the images, and of every image."""

    id = "sample.mean_image"
    title = "Mean image of a data set"
    inputs: ClassVar = {"data": DataRole("images", IMAGES, {"label": ("sample",)})}
    outputs = (
        Output("mean", ("channel", "y", "x"), "float32", "mean over the samples"),
        Output("brightness", ("sample",), "float32", "mean of every image"),
    )

    class Params(Params):
        """Parameters."""

        scale: float = Field(1.0, ge=0.0, le=10.0, description="factor of the mean")
        mode: Literal["mean", "median"] = Field("mean", description="which average")
        sizes: tuple[int, ...] = Field((1, 2), description="a list of numbers")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Average."""
        image = inputs["data"]["image"].values.astype(np.float32)
        average = image.mean(axis=0) if params.mode == "mean" else np.median(image, axis=0)
        out.write("mean", torch.from_numpy(average * np.float32(params.scale)))
        stored = out.array("brightness", (len(image),))
        for index in out.track(range(len(image)), "averaging"):
            stored[index] = image[index].mean()
        out.log(1, loss=0.5)
        out.log(2, loss=0.25)

    def report(self, result: Any) -> Report:
        """Brightness."""
        value = float(result["mean"].mean())
        return Report(summary="An average.", metrics=[Metric(name="brightness", value=value, direction="higher")])


class Scores(Method):
    """Logits of a model."""

    id = "sample.scores"
    title = "Logits of a model"
    inputs: ClassVar = {
        "model": ModelRole("classifier"),
        "data": DataRole("images and labels", {**IMAGES, "label": ("sample",)}),
    }
    outputs = (Output("logit", ("sample", "class"), "float32", "scores before softmax"),)

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Infer."""
        image = torch.as_tensor(inputs["data"]["image"].values, device=out.device, dtype=torch.float32)
        with torch.no_grad():
            out.write("logit", inputs["model"](image))
        out.model(inputs["model"])

    def report(self, result: Any) -> Report:
        """Size."""
        return Report(summary="Scores.", metrics=[Metric(name="largest_logit", value=float(result["logit"].max()))])


class _Empty(Method):
    inputs: ClassVar = {}
    outputs = (Output("value", ("sample",), "float32", "numbers"),)

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")


class RandomNumbers(_Empty):
    """Draws from every source of random numbers a method has."""

    id = "sample.random_numbers"
    title = "Random numbers"

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Draw."""
        drawn = [torch.rand(2), torch.rand(2, generator=out.generator("a")), torch.from_numpy(out.rng("a").random(2)).float()]
        drawn.append(torch.from_numpy(np.random.rand(2)).float())  # noqa: NPY002
        out.write("value", torch.cat(drawn))


class Failing(_Empty):
    """Raises after it wrote something."""

    id = "sample.failing"
    title = "Fails"

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Raise."""
        out.write("value", np.zeros(3, dtype=np.float32))
        raise ValueError("the matrix is singular")


class Declining(_Empty):
    """Skips."""

    id = "sample.declining"
    title = "Declines"

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Skip."""
        out.write("value", np.zeros(3, dtype=np.float32))
        out.skip("the model has no convolution")


class Interrupted(_Empty):
    """Receives Ctrl-C in the middle."""

    id = "sample.interrupted"
    title = "Is interrupted"

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Interrupt."""
        out.write("value", np.zeros(3, dtype=np.float32))
        os.kill(os.getpid(), signal.SIGINT)
        for _ in out.track(range(1000), "waiting"):
            pass


class Checkpointed(_Empty):
    """Counts to four with a checkpoint at every step; `stop_at` raises there the first time."""

    id = "sample.checkpointed"
    title = "Counts"
    outputs = (Output("value", ("sample",), "float32", "numbers"),)
    stop_at: ClassVar[int | None] = None
    visited: ClassVar[list[int]] = []

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Count."""
        state = out.restore() or {"next": 0, "sum": torch.zeros(1)}
        for step in range(state["next"], 4):
            if step == type(self).stop_at:
                raise RuntimeError("power cut")
            type(self).visited.append(step)
            state = {"next": step + 1, "sum": state["sum"] + step}
            out.log(step, loss=float(step))
            out.checkpoint(state)
        out.write("value", state["sum"])


class Filling(_Empty):
    """Writes an array of `rows` times 1 MiB, region by region."""

    id = "sample.filling"
    title = "Fills"
    outputs = (Output("value", ("sample", "feature"), "float32", "numbers"),)

    class Params(Params):
        """Parameters."""

        rows: int = Field(4, ge=1, description="number of rows of 1 MiB")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Fill."""
        stored = out.array("value", (params.rows, 262_144))
        generator = out.generator("values")
        for row in out.track(range(params.rows), "filling"):
            stored[row] = torch.rand(262_144, generator=generator)
