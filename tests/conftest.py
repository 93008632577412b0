"""Fixtures for everyone: a bench with sample methods over a fresh store; no test touches the user's cache or environment."""

from __future__ import annotations

import math
import os
import random
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: workers share the processors, and more threads than those make all of them slower.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

import torchvision_operators  # noqa: F401 -- torchvision is imported, whatever build it is

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores Ctrl-C for what it starts in the background; the tests of cancellation send it themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Before any fixture: what a test draws from global generators does not depend on the tests before it in its process."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.getbasetemp() / "cache"
    cache.mkdir(exist_ok=True)  # as a user's is there: the first library that caches something would make it
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    for name in ("WORKBENCH_STORE", "WORKBENCH_BLOCK", "WORKBENCH_ALLOW", "WORKBENCH_USER", "WORKBENCH_DATA"):
        monkeypatch.delenv(name, raising=False)
    # On a busy machine every import is slow; that one is told is tested in test_host.py.
    monkeypatch.setattr("workbench.host.SLOW_IMPORT", math.inf)


@pytest.fixture
def bench(tmp_path: Path):
    """A bench over a fresh store whose only methods are those of `sample_methods`."""
    import workbench
    from workbench.host import Host

    from unit import sample_methods

    host = Host(found=[])
    for name in sample_methods.__all__:
        host.register(getattr(sample_methods, name))
    sample_methods.Checkpointed.stop_at, sample_methods.Checkpointed.visited = None, []
    return workbench.open(tmp_path / "store", host=host)


@pytest.fixture
def images() -> np.ndarray:
    """Twelve random grey images, (sample, channel, y, x)."""
    return np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory):
    """A dask client of two worker processes of one thread each, for all tests of this process: they take long to start."""
    import distributed
    from workbench.execution.processes import local_cluster

    folder = tmp_path_factory.mktemp("dask")
    options = {
        "dashboard_address": "127.0.0.1:0",
        "env": {"XDG_CACHE_HOME": str(folder / "cache")},
        "local_directory": str(folder),
    }
    with (
        local_cluster(2, threads=1, **options) as cluster,
        distributed.Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


@pytest.fixture
def client(two_workers):
    """The client of two workers. If the test killed one, another is waited for, which takes seconds.

    Else the next test might find one worker, or the new one the environment variables that the next test sets.
    """
    yield two_workers
    two_workers.wait_for_workers(2, timeout=300)


@pytest.fixture
def far(bench, client):
    """The bench of the tests, with its runs on workers."""
    return bench.on(client)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the project; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real data sets (shared/data beside the project)")
    return SHARED
