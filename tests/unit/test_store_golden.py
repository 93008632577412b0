"""Stores written by earlier versions open, for ever; nothing in tests/assets is ever written again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import workbench
from workbench.errors import FormatVersionError
from workbench.host import Host
from workbench.record import FORMAT_VERSION
from workbench.store import Store
from workbench.store.layout import DTYPES

ASSETS = Path(__file__).parents[1] / "assets"


@pytest.fixture
def golden(tmp_path) -> Store:
    shutil.copytree(ASSETS / "store-format-1", tmp_path / "store")
    return Store(tmp_path / "store", index_folder=tmp_path / "index")


def test_there_is_a_golden_store_of_every_version():
    assert {path.name for path in ASSETS.glob("store-format-*")} == {
        f"store-format-{version}" for version in range(1, FORMAT_VERSION + 1)
    }


def test_format_1_opens(golden):
    assert list(golden.verify()) == []
    bench = workbench.Workbench(golden, Host(found=[]))
    run = bench["20261125-100000-golden-00000001"]
    assert (run.status, run.metrics, run.params, run.seed) == ("complete", {"accuracy": 0.75}, {"bits": 4}, 7)
    assert run.report_data().summary == "A run of long ago."
    for dtype in DTYPES:
        values = run[f"value_{dtype}"].values
        assert values.dtype == dtype
        np.testing.assert_array_equal(values, (np.arange(12).reshape(4, 3) % 5).astype(dtype))
    assert run["scalar"].item() == 3.5
    assert run["empty"].shape == (0, 4)
    assert run["name"].values.tolist() == ["conv1", "größer", ""]
    assert run.stored.model_state()["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert run.record.arrays["sharded"]["shard"] is not None
    np.testing.assert_array_equal(run["sharded"].values, np.arange(1200).reshape(40, 30) % 251)
    np.testing.assert_array_equal(run["sharded"][7:33:5, 4].values, (np.arange(1200).reshape(40, 30) % 251)[7:33:5, 4])
    assert run.annotations.tags == ("paper",)
    assert [found.id for found in bench.runs("tag = paper and note ~ open and accuracy > 0.7")] == [run.id]
    (made,) = run.descendants()
    assert made.status == "failed"


def test_plain_zarr_reads_format_1(golden):
    import xarray as xr

    folder = Path(golden.url, "runs", "2026-11", "20261125-100000-golden-00000001")
    found = xr.open_zarr(folder)
    np.testing.assert_array_equal(found["sharded"].values, np.arange(1200).reshape(40, 30) % 251)
    assert found["value_float32"].values[1].tolist() == [3.0, 4.0, 0.0]


def test_a_newer_format_is_refused_with_the_way_out(golden):
    marker = Path(golden.url, "workbench.json")
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"format_version": 2, "created_by": "9.1"}))
    with pytest.raises(FormatVersionError, match=r"written by workbench 9\.1.*Upgrade with: pip install"):
        Store(golden.url)
