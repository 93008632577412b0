"""More logits than a process may allocate: calibrated all the same.

The limit is the kernel's (RLIMIT_DATA) and the allocator is left as it is, so nothing but arrays that stay small passes. The
child first shows that the limit bites: as many bytes as the logits have cannot be allocated.
"""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import workbench
import xarray as xr
from workbench.host import Host

from benchmarks.calibration import SHARPNESS, StoredLogits, made_up, status

SAMPLES, CLASSES = 160_000, 1000
ALLOWED = 512
"""MiB beyond what a run on few samples needs; the logits are 610 MiB as they are stored, and twice that in float64."""
FEW = {"resamples": 100, "chance_draws": 20, "progress": False}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Folder of a store and the id of the run that holds the logits."""
    folder = tmp_path_factory.mktemp("large")
    host = Host(found=[])
    host.register(StoredLogits)
    run = workbench.open(folder, host=host).run(StoredLogits.id, samples=SAMPLES, classes=CLASSES, progress=False)
    assert run["logit"].nbytes > ALLOWED * 2**20
    return folder, run.id


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit and /proc are Linux's")
def test_more_logits_than_the_process_may_allocate_are_calibrated(stored):
    folder, run = stored
    command = [sys.executable, __file__, str(folder), run]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    paths = [str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["refused"], "the limit is too wide to show anything"
    assert found["extra"] < ALLOWED * 2**20
    assert math.isclose(found["temperature"], SHARPNESS, rel_tol=0.02)
    assert found["after"] < found["before"]


def child(folder: str, run: str) -> None:
    """Calibrate under the limit, and print what came of it."""
    bench = workbench.open(folder)
    logit, label = made_up(2000, 10)
    tiny = {"logit": (("sample", "class"), logit), "label": ("sample", label)}
    bench.run("calibration.temperature", data=xr.Dataset(tiny), **FEW)
    allowed = status("VmData") + ALLOWED * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    try:
        np.empty((SAMPLES, CLASSES), dtype=np.float32)
        refused = False
    except MemoryError:
        refused = True
    before = status("VmHWM")
    done = bench.run("calibration.temperature", data=bench[run], **FEW)
    likelihood = [float(value) for value in done["value"].sel(metric="negative_log_likelihood").values]
    facts = {"refused": refused, "extra": status("VmHWM") - before, "temperature": float(done["temperature"])}
    print(json.dumps(facts | {"before": likelihood[0], "after": likelihood[-1]}))


if __name__ == "__main__":
    child(*sys.argv[1:])
