"""What workers cannot compute is refused with the reason and the worker's name: versions, packages, code, models, stores."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import workbench
from torch import nn
from workbench.dispatch import ask
from workbench.errors import (
    InputError,
    PluginError,
)
from workbench.execution import shipping, worker
from workbench.execution.worker import perform

from unit.cluster_cases import PATIENCE, Picture


def worker_has(client: Any, name: str, value: Any) -> None:
    """Make every worker believe that something is otherwise there."""

    def change(name: str, value: Any) -> None:
        from workbench.execution import worker

        setattr(worker, name, value)

    client.run(change, name, value)


def test_another_version_on_a_worker_is_refused_by_name(far, client):
    worker_has(client, "__version__", "99.0")
    try:
        with pytest.raises(PluginError, match=r"worker tcp://.* has workbench 99.0, you have"):
            far.run("sample.random_numbers", progress=False)
    finally:
        worker_has(client, "__version__", workbench.__version__)
    assert not far.runs()


def test_a_package_that_workers_lack_is_named_with_the_worker(tmp_path, client):
    here = workbench.open(tmp_path / "store")
    request = ask(
        here, "training.evaluation", {"model": "small-cnn", "data": "digits[:8]"}, 0, None, "float32", False, 0, None
    )
    order, blobs = shipping.make_order(request, here, here.store, here.host)
    lacking = {"method": "training.foreign", "package": ("foreign-package", "2.1")}
    other = {"version": "17"}
    for change, message in (
        (lacking, "lacks the package 'foreign-package'.*foreign-package==2.1"),
        (other, "version 17"),
    ):
        changed = order.__class__(**{**vars(order), **change})
        outcome = client.submit(perform, changed, blobs, client.id, pure=False).result(PATIENCE)
        assert isinstance(outcome.error, PluginError)
        assert "worker tcp://" in str(outcome.error)
        with pytest.raises(PluginError, match=message):
            raise outcome.error
    assert not here.runs()


def test_a_plugin_that_a_worker_has_and_cannot_use_is_named_with_the_reason(monkeypatch):
    """To install it again would not help."""
    blocked = workbench.host.PluginStatus("zoo", "zoo", "zoo-package", "2.1", "blocked", "blocked by configuration")
    host = SimpleNamespace(plugins=[blocked], method=workbench.host.Host(found=[]).method)
    monkeypatch.setattr(worker, "_host", lambda: host)
    order: Any = SimpleNamespace(
        workbench=workbench.__version__, cls=None, package=("zoo-package", "2.1"), method="zoo.lion"
    )
    with pytest.raises(
        PluginError, match=r"worker w has zoo-package 2\.1, but not its zoo\.lion \(plugin zoo blocked: "
    ):
        worker._method(order, "w")


def test_other_code_on_a_worker_is_refused(tmp_path, client):
    here = workbench.open(tmp_path / "store")
    request = ask(
        here, "training.evaluation", {"model": "small-cnn", "data": "digits[:8]"}, 0, None, "float32", False, 0, None
    )
    order, blobs = shipping.make_order(request, here, here.store, here.host)
    changed = order.__class__(**{**vars(order), "code": "0" * 64})
    outcome = client.submit(perform, changed, blobs, client.id, pure=False).result(PATIENCE)
    assert "another text of the code" in str(outcome.error)


def test_a_model_that_cannot_be_packed_is_refused_with_advice(bench, far, images):
    class Locked(nn.Module):
        """Holds what no other process can have."""

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 3)
            self.lock = threading.Lock()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Infer."""
            return self.linear(x.flatten(1))

    labels = np.zeros(12, dtype=np.int64)
    with pytest.raises(InputError, match=r"model.*cannot be packed.*NAME@FILE.*Without a client") as told:
        far.submit("sample.scores", model=Locked(), data=(images, labels))
    assert told.value.argument == "model"
    assert not far.runs()


def test_a_run_of_another_store_is_refused(far, tmp_path, images):
    other = workbench.open(tmp_path / "elsewhere", host=far.host)
    run = other.run(Picture, progress=False)
    with pytest.raises(InputError, match="workbench store copy"):
        far.submit("sample.mean_image", data=run)
