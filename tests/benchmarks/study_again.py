"""Do two people get the same? A part of ship-cifar10, computed in an empty store by a process of its own, beside one that has it.

    WORKBENCH_DATA=DATA python tests/benchmarks/study_again.py FIRST [SECOND]

FIRST is a store in which `ship-cifar10` was run; SECOND, a folder for the other store, is left out for a temporary one. Runs are
told by their keys: one that FIRST does not have under the same key counts as unknown, and of the others every metric and every
array is compared. The part is ResNet-20 in full precision and at 4 bits, with everything that the study asks of
them. Keys of an editable checkout hold a digest of its code: use an installed copy of what computed FIRST.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import workbench
import yaml
from workbench.study import shipped_studies

STEPS = ("uniform", "shifted", "clean", "compressed", "moved", "foreign", "calibrated", "carried", "detected")
CLOSE = 1e-5
"""Relative difference that other processors or numbers of threads may make in single precision."""


def part(steps: Container[str] = STEPS) -> dict[str, Any]:
    """The description of ship-cifar10 cut down to ResNet-20, full precision and 4 bits, and to some of its steps."""
    described: dict[str, Any] = yaml.safe_load(shipped_studies()["ship-cifar10"].read_text(encoding="utf-8"))
    described["steps"] = {name: step for name, step in described["steps"].items() if name in steps}
    described["steps"]["uniform"]["parameters"]["store_width"] = 4
    shipped = described["choices"]["shipped"]
    described["choices"] = {
        "network": {"ResNet-20": described["choices"]["network"]["ResNet-20"]},
        "shipped": {name: shipped[name] for name in ("full precision", "uniform")},
        **({"strange": described["choices"]["strange"]} if "detected" in steps else {}),
    }
    asked = described["questions"]
    metrics = [metric for metric in asked["metrics"] if metric["step"] in ("shipped", *described["steps"])]
    labels = {metric["label"] for metric in metrics}
    fronts = [front for front in asked["fronts"] if labels.issuperset(front)]
    described["questions"] = {**asked, "metrics": metrics, "fronts": fronts, "beside": []}
    return described


def compute(described: dict[str, Any], store: Path, data: Path) -> None:
    """Have a study computed in a store by a new process.

    Raises:
        CalledProcessError: a branch failed.
    """
    store.mkdir(parents=True, exist_ok=True)
    file = store.parent / f"{store.name}.yaml"
    file.write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    environment = os.environ | {"WORKBENCH_STORE": str(store), "WORKBENCH_DATA": str(data)}
    command = [sys.executable, "-m", "workbench", "study", "run", str(file), "--quiet"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


@dataclass
class Agreement:
    """What two stores say of the same keys."""

    runs: int = 0
    """Complete runs of the second store."""
    unknown: list[str] = field(default_factory=list)
    """Runs of the second store whose keys the first does not have."""
    exact: int = 0
    """Metrics and arrays that are equal to the last bit."""
    close: int = 0
    """Those that differ by at most `CLOSE` of their largest value."""
    differing: dict[str, str] = field(default_factory=dict)
    """All others: method and name -> in how many runs, and how."""


def compare(first: workbench.Workbench, second: workbench.Workbench) -> Agreement:
    """Look up every run of `second` by its key in `first`; NaN beside NaN is equal."""
    known = {run.key: run for run in first.runs("status = complete")}
    found, others = Agreement(), dict[str, list[str]]()
    for run in second.runs("status = complete"):
        found.runs += 1
        other = known.get(run.key) if run.key else None
        if other is None:
            found.unknown.append(f"{run.id} ({run.method})")
            continue
        theirs, mine = _numbers(other), _numbers(run)
        for name in theirs.keys() | mine.keys():
            if name not in theirs or name not in mine:
                said = f"only in the {'first' if name in theirs else 'second'} store"
            else:
                said = _difference(theirs[name], mine[name])
            found.exact += said == ""
            found.close += said == "close"
            if said not in ("", "close"):
                others.setdefault(f"{run.method} {name}", []).append(said)
    found.differing = {name: f"{len(said)} runs, {max(said)}" for name, said in sorted(others.items())}
    return found


def _numbers(run: workbench.Run) -> dict[str, np.ndarray]:
    metrics = {f"metric {name}": np.asarray(value) for name, value in run.metrics.items()}
    return metrics | {f"array {name}": run[name].values for name in run.arrays}


def _difference(first: np.ndarray, second: np.ndarray) -> str:
    """Empty: none; `close`; or how they differ."""
    floats = first.dtype.kind == "f"
    if first.dtype == second.dtype and np.array_equal(first, second, equal_nan=floats):
        return ""
    if first.shape != second.shape:
        return f"shapes {first.shape} and {second.shape}"
    if not floats or not np.array_equal(np.isnan(first), np.isnan(second)):
        return "other values"
    largest, difference = float(np.nanmax(np.abs(first))), float(np.nanmax(np.abs(first - second)))
    return "close" if difference <= CLOSE * largest else f"up to {difference:.2g} of {largest:.2g}"


def main() -> None:
    """Compute, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path, nargs="?")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = (given.second or Path(folder) / "second").resolve()
        compute(part(), store, Path(os.environ["WORKBENCH_DATA"]))
        found = compare(workbench.open(given.first), workbench.open(store))
    print(f"{found.runs} runs, {len(found.unknown)} of other keys")
    print(
        f"metrics and arrays: {found.exact} equal to the last bit, {found.close} within {CLOSE:g} of their largest value, others:"
    )
    for line in (*found.unknown, *(f"{name}: {said}" for name, said in found.differing.items())):
        print("  ", line)


if __name__ == "__main__":
    main()
