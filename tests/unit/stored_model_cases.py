"""What tests of stored quantised models share: digits, networks on them, runs without a registered factory, ONNX as an oracle."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import workbench
import xarray as xr
from torch import nn
from workbench import Model


def first_digits(count: int) -> xr.Dataset:
    """The first images of the data set `digits`."""
    return workbench.open("unused").data("digits")[{"sample": slice(0, count)}]


def untrained(network: nn.Module, digits: xr.Dataset) -> Model:
    """The network in eval mode, with statistics of batch norms that are not the initial ones."""
    network.train()
    network(torch.from_numpy(digits["image"].values).float())
    return Model(network.eval(), input_shape=digits["image"].shape[1:])


def run_on(bench: Any, model: Any, digits: xr.Dataset, method: str, *, calibration: int, **params: Any) -> Any:
    """A run that is shown the first `calibration` digits and reports on the others."""
    parts = {"data": digits.isel(sample=slice(0, calibration)), "test": digits.isel(sample=slice(calibration, None))}
    return bench.run(method, model=model, **parts, progress=False, **params)


class WithModel:
    """A run whose network no factory builds: the state is loaded into a copy of the one it was made from."""

    def __init__(self, run: Any, blank: nn.Module) -> None:
        self._run, self._blank, self.id, self.record = run, blank, run.id, run.record

    def __getitem__(self, name: str) -> xr.DataArray:
        return self._run[name]

    def __contains__(self, name: object) -> bool:
        return name in self._run

    def model(self, name: str = "model") -> nn.Module:
        return self._run.model(name, into=copy.deepcopy(self._blank))


def report_images(digits: xr.Dataset, run: Any, calibration: int) -> np.ndarray:
    """(sample, channel, y, x) float32: the images that a run of `run_on` reports on, in its order."""
    held = digits["image"].isel(sample=slice(calibration, None))
    return held.values[run["sample_index"].values].astype(np.float32)


def onnx_logits(path: Path, image: np.ndarray) -> np.ndarray:
    """(sample, class): what onnxruntime computes from the file, checked by onnx."""
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    onnx = pytest.importorskip("onnx")
    onnx.checker.check_model(onnx.load(path))
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["logit"], {"image": image})[0]
