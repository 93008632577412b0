"""Fixtures for everyone: a bench with sample methods over a fresh store; no test touches the user's cache or environment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    for name in ("WORKBENCH_STORE", "WORKBENCH_BLOCK", "WORKBENCH_ALLOW", "WORKBENCH_USER", "WORKBENCH_DATA"):
        monkeypatch.delenv(name, raising=False)


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


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the project; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real data sets (shared/data beside the project)")
    return SHARED
