"""The glossary: names of dims and variables that every subject and every method shares.

Any method's output can be another's input because both use these words. A plugin may add names of its own; it must not
give one of these another meaning. Sizes: `sample` leads, then the dims in the order printed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workbench.errors import InputError

__all__ = ["DIMS", "VARIABLES", "VariableConvention", "check_variable"]

DIMS: Mapping[str, str] = {
    "sample": "one item of a data set: an image, a signal, a row",
    "class": "a class of a classifier; coordinate: class names",
    "channel": "colour or feature channel of an image",
    "z": "slice of a volume, front to back",
    "y": "image row, top to bottom",
    "x": "image column, left to right",
    "layer": "a named layer of a model, in order of execution; coordinate: its qualified name",
    "feature": "an entry of a feature vector",
    "token": "position in a text that was cut into tokens",
    "step": "an optimiser step or epoch of a time series",
    "epoch": "a pass over the training data",
    "seed": "a repetition with another random seed; coordinate: the seed",
    "bit": "a candidate bit width; coordinate: the width",
    "solution": "one of several results of a search",
    "probe": "a random probe vector",
    "bin": "a bin of a histogram or reliability diagram",
    "recalibrator": "one of several compared recalibrations, or none; coordinate: its name",
    "detector": "one of several compared anomaly scores; coordinate: its name",
    "attributor": "one of several compared attributions; coordinate: its name",
    "metric": "one of several metrics; coordinate: its name",
    "loss": "a training loss; coordinate: its name",
    "mode": "one of several training modes; coordinate: its name",
    "patch": "a crop of an image",
    "shift": "a kind of distribution shift; coordinate: its name",
    "severity": "the strength of a shift; coordinate: its value",
    "latent": "an entry of a latent code",
    "mask": "one of several masks",
    "run": "a run, where several are compared; coordinate: run id",
}


@dataclass(frozen=True)
class VariableConvention:
    """How a variable of this name looks wherever it occurs."""

    dims: tuple[str, ...]
    dtypes: tuple[str, ...]
    meaning: str


VARIABLES: Mapping[str, VariableConvention] = {
    "image": VariableConvention(
        ("sample", "channel", "y", "x"), ("float32", "uint8"), "pictures; float32 in 0..1 or uint8 in 0..255, RGB or grey"
    ),
    "label": VariableConvention(("sample",), ("int64",), "index of the true class, 0-based"),
    "token_id": VariableConvention(("sample", "token"), ("int64",), "text: index into a vocabulary, 0-based"),
    "logit": VariableConvention(("sample", "class"), ("float32", "float64"), "scores before softmax"),
    "probability": VariableConvention(("sample", "class"), ("float32", "float64"), "class probabilities, rows sum to 1"),
    "prediction": VariableConvention(("sample",), ("int64",), "index of the predicted class"),
    "feature": VariableConvention(("sample", "feature"), ("float32", "float64"), "penultimate features of a model"),
    "score": VariableConvention(("sample",), ("float32", "float64"), "detector score, larger = more anomalous"),
    "anomalous": VariableConvention(("sample",), ("bool",), "ground truth of detection: True = anomalous"),
    "restored": VariableConvention(("sample", "channel", "y", "x"), ("float32",), "restored image in 0..1"),
    "degraded": VariableConvention(("sample", "channel", "y", "x"), ("float32",), "degraded image in 0..1"),
    "clean": VariableConvention(("sample", "channel", "y", "x"), ("float32",), "ground-truth image in 0..1"),
    "bits": VariableConvention(("layer",), ("int8", "int64"), "bit width given to each layer"),
}


def check_variable(role: str, name: str, dims: Iterable[object], expected: tuple[str, ...]) -> None:
    """Raise InputError unless `dims` are `expected` (in that order).

    Args:
        role: the role the variable was given for, for the message.
        name: the variable.
        dims: what came.
        expected: what the method asks for.
    """
    came = tuple(str(dim) for dim in dims)
    if came != expected:
        raise InputError(
            f"{role}[{name!r}]",
            expected=f"dims ({', '.join(expected)})",
            got=f"({', '.join(came)})",
            hint="Rename with .rename(...) or reorder with .transpose(...).",
        )
