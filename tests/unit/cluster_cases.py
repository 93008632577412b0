"""What the tests of clusters share: a method that waits for a file, one that stores pictures, and who computes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from workbench import DataRole, Method, Output, Params, Report

PATIENCE = 300.0


class Patient(Method):
    """Waits for a file, reporting progress; says who computes it."""

    id = "sample.patient"
    title = "Waits"
    inputs: ClassVar = {"data": DataRole("images", {"image": ("sample", "channel", "y", "x")}, optional=True)}
    outputs = (Output("value", ("sample",), "float64", "numbers"),)

    class Params(Params):
        """Parameters."""

        folder: str = Field(description="where the file `go` will be")

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Leave a note with the process's number, then wait."""
        import time
        from pathlib import Path

        folder = Path(params.folder)
        out.log(3, loss=0.25)
        stored = out.array("value", (2,))
        stored[0] = 1.0
        (folder / f"begun-{out.seed}-{os.getpid()}").touch()
        while not (folder / "go").exists():
            out.progress(1, 4, "waiting")
            time.sleep(0.01)
        stored[1] = 2.0

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")


def begun(folder: Path, count: int = 1) -> list[Path]:
    """Notes of runs that began, once there are so many."""
    end = time.monotonic() + PATIENCE
    while len(found := sorted(folder.glob("begun-*"))) < count:
        assert time.monotonic() < end, "nothing began"
        time.sleep(0.02)
    return found


def process_of(note: Path) -> int:
    return int(note.name.rpartition("-")[2])


class Picture(Method):
    """Stores pictures for another method."""

    id = "sample.picture"
    title = "Pictures"
    outputs = (Output("image", ("sample", "channel", "y", "x"), "float32", "pictures"),)

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        """Draw."""
        out.write("image", out.rng().random((3, 1, 4, 4)).astype("float32"))

    def report(self, result: Any) -> Report:
        """Say something."""
        return Report(summary="Done.")
