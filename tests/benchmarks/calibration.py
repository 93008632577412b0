"""Calibrating 50,000 logits of 1,000 classes: the product against scikit-learn, netcal and torchmetrics in the same run.

    python tests/benchmarks/calibration.py [--samples 50000] [--classes 1000] [--rounds 3] [--limit 512]
        [--part fit|metrics|bootstrap|memory]

`fit`: temperature. `metrics`: every metric of a calibration report against the peers' accuracy, likelihood, Brier score, ECE
(norms 1, 2, maximum) and ACE alone. `bootstrap`: 1,000 replicates of eight metrics with intervals against as many
resampled calls of a peer's ECE, likelihood and accuracy (timed on a few replicates, multiplied). Each part first checks that the
results are equal. `memory`: runs of calibration.temperature on as many and on four times as many logits that an earlier run
stored, each in a process of its own that may allocate `--limit` MiB beyond what a tiny run needs, and no more; what counts is
that they end, and by how much the peak grows from the one to the other. (glibc is told to give large blocks back at once; by
default it keeps more of them the more it has seen, which makes a process grow whose arrays do not.)
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import workbench
import xarray as xr
from workbench import Method, Output, Report
from workbench.host import Host

sys.path.insert(0, str(Path(__file__).parents[1]))
import conftest  # noqa: F401  (declares operators that torchvision lacks beside a CPU build of torch)
from benchmarks.measure import print_table, take_turns

SHARPNESS = 1.6
"""The logits are calibrated at this temperature."""


def made_up(samples: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Overconfident float32 logits (sample, class) and labels drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    logit = rng.standard_normal((samples, classes), dtype=np.float32)
    logit[np.arange(samples), rng.integers(classes, size=samples)] += rng.uniform(0, 11, samples).astype(np.float32)
    # the largest of z + Gumbel noise is a draw from softmax(z)
    label = np.concatenate([
        (part + rng.gumbel(size=part.shape)).argmax(1) for part in np.array_split(logit, max(samples // 1000, 1))
    ])
    return logit * np.float32(SHARPNESS), label.astype(np.int64)


def softmax(logit: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(logit), dim=1).numpy()


def fit(logit: np.ndarray, label: np.ndarray, rounds: int) -> None:
    """Temperature scaling."""
    from netcal.scaling import TemperatureScaling
    from sklearn.calibration import _TemperatureScaling

    from workbench_calibration.samples import Samples
    from workbench_calibration.temperature import fit_temperature, scaled_likelihood

    z, y, p = torch.from_numpy(logit), torch.from_numpy(label), softmax(logit)

    def workbench() -> float:
        return fit_temperature(Samples.of(z, y)).temperature

    def sklearn() -> float:
        return 1 / float(_TemperatureScaling().fit(logit.astype(np.float64), label).beta_)

    def netcal(probability: np.ndarray) -> float:
        scaler = TemperatureScaling()
        scaler.fit(probability, label, random_state=0)
        return 1 / float(np.ravel(scaler.temperature)[0])

    found: dict[str, float] = {}
    # in single precision netcal differentiates by differences too small to see and stays where it starts, at T = 1
    calls = {
        "workbench": workbench,
        "scikit-learn": sklearn,
        "netcal": lambda: netcal(p),
        "netcal, double precision": lambda: netcal(p.astype(np.float64)),
    }
    peers = {name: (lambda n=name, c=call: found.update({n: c()})) for name, call in calls.items()}
    seconds = take_turns(peers, rounds=rounds, warmup=0)
    for name, value in found.items():
        print(f"{name:34} T = {value:.6f}, negative log likelihood {scaled_likelihood(z.double(), y, value):.9f}")
    assert abs(found["workbench"] / found["scikit-learn"] - 1) < 1e-5
    print_table("Fitting a temperature", seconds, reference="workbench")


def peer_metrics(p: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """What torchmetrics, netcal and scikit-learn define of the report, each by the one that has it."""
    from netcal.metrics import ACE
    from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
    from torchmetrics.functional.classification import multiclass_calibration_error

    classes, tensor, y = np.arange(p.shape[1]), torch.from_numpy(p), torch.from_numpy(label)
    found = {
        f"ece_width_{norm}": float(multiclass_calibration_error(tensor, y, p.shape[1], n_bins=15, norm=norm))
        for norm in ("l1", "l2", "max")
    }
    double = p.astype(np.float64)
    double /= double.sum(axis=1, keepdims=True)
    return found | {
        "ace_width": ACE(15).measure(double, label),
        "accuracy": accuracy_score(label, p.argmax(1)),
        "negative_log_likelihood": log_loss(label, double, labels=classes),
        "brier_score": brier_score_loss(label, double, labels=classes, scale_by_half=False),
    }


def metrics(logit: np.ndarray, label: np.ndarray, rounds: int) -> None:
    """All metrics."""
    from workbench.toolkit import calibration_metrics

    p = softmax(logit)
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    peers = {
        "workbench, 24 metrics": lambda: ours.update(calibration_metrics(p, label)),
        "peers, 7 metrics": lambda: theirs.update(peer_metrics(p, label)),
    }
    seconds = take_turns(peers, rounds=rounds, warmup=0)
    for name, value in theirs.items():
        assert abs(ours[name] - value) < 2e-5, (name, ours[name], value)
    print(f"equal: {', '.join(theirs)}; the product gives {len(ours)} metrics, the peers {len(theirs)}")
    print_table("Metrics", seconds, reference="workbench, 24 metrics")


def bootstrap(logit: np.ndarray, label: np.ndarray, resamples: int = 1000, timed: int = 2) -> None:
    """Bootstrap replicates; the peers' time is that of `timed` replicates, multiplied."""
    from sklearn.metrics import accuracy_score, log_loss
    from torchmetrics.functional.classification import multiclass_calibration_error

    from workbench_calibration.resampling import ResampleCounts, ResampledScores

    p, classes = softmax(logit), logit.shape[1]
    started = time.perf_counter()
    counts = ResampleCounts(len(label), resamples, np.random.default_rng(0))
    scores = ResampledScores(*p.shape, 15, counts, 0, np.random.default_rng(1))
    for rows in np.array_split(np.arange(len(p)), max(p.size // 1_000_000, 1)):
        scores.add(p[rows].astype(np.float64), label[rows])
    ours = scores.metrics()
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    _, drawn = next(counts.groups())
    for draw in range(timed):
        rows = np.repeat(np.arange(len(label)), drawn[draw])
        q, y = p[rows], label[rows]
        ece = float(multiclass_calibration_error(torch.from_numpy(q), torch.from_numpy(y), classes, n_bins=15))
        nll = log_loss(y, q.astype(np.float64), labels=np.arange(classes))
        assert abs(ours["ece_width_l1"][draw] - ece) < 2e-5
        assert abs(ours["negative_log_likelihood"][draw] - nll) < 2e-5
        assert abs(ours["accuracy"][draw] - accuracy_score(y, q.argmax(1))) < 1e-12
    peer = (time.perf_counter() - started) / timed * resamples
    print(f"\n{resamples} bootstrap replicates: workbench, {len(ours)} metrics {seconds:.1f} s; torchmetrics and scikit-learn, "
          f"3 metrics {peer:.0f} s ({timed} replicates, multiplied); ratio {peer / seconds:.0f}")


def memory(samples: int, classes: int, limit: int) -> dict[str, float]:
    """Calibrate the stored logits of a run in a process of its own; sizes in MiB.

    Args:
        samples: of the run.
        classes: of the run.
        limit: how much the process may allocate beyond what a tiny run needs, in MiB.
    """
    with tempfile.TemporaryDirectory() as folder:
        host = Host(found=[])
        host.register(StoredLogits)
        run = workbench.open(folder, host=host).run(StoredLogits.id, samples=samples, classes=classes, progress=False)
        command = [sys.executable, __file__, "--child", folder, run.id, str(limit)]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"logits": samples * classes * 4 / 2**20}


class StoredLogits(Method):
    """A run whose logits are larger than what a reader wants to hold."""

    id = "benchmark.stored_logits"
    title = "Stores made-up logits"
    inputs: ClassVar = {}
    outputs = (
        Output("logit", ("sample", "class"), "float32", "logits"),
        Output("label", ("sample",), "int64", "labels"),
    )

    class Params(workbench.Params):
        """Sizes."""

        samples: int = 1
        classes: int = 2

    def run(self, inputs: Any, params: Any, out: Any) -> None:
        stored, labels = out.array("logit", (params.samples, params.classes)), out.array("label", (params.samples,))
        for start in range(0, params.samples, 2000):
            logit, label = made_up(min(2000, params.samples - start), params.classes, seed=start)
            stored[start : start + len(logit)], labels[start : start + len(label)] = logit, label

    def report(self, result: Any) -> Report:
        return Report(summary="Stored.")


def child(folder: str, run: str, limit: str) -> None:
    """`calibration.temperature` on the stored logits; what counts is the memory beyond what a tiny run needs."""
    bench = workbench.open(folder)
    logit, label = made_up(2000, 10)
    tiny = {"logit": (("sample", "class"), logit), "label": ("sample", label)}
    bench.run("calibration.temperature", data=xr.Dataset(tiny), progress=False)
    allowed = status("VmData") + int(limit) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    before, started = status("VmHWM"), time.perf_counter()
    done = bench.run("calibration.temperature", data=bench[run], progress=False)
    facts = {"extra": (status("VmHWM") - before) / 2**20, "seconds": time.perf_counter() - started}
    print(json.dumps(facts | {"temperature": float(done["temperature"])}))


def status(name: str) -> int:
    """A size of this process in bytes: VmData, what it has allocated, or VmHWM, the largest that was resident so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["fit", "metrics", "bootstrap", "memory"])
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--child", nargs=3)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    if arguments.part in (None, "memory"):
        for samples in (arguments.samples, 4 * arguments.samples):
            found = memory(samples, arguments.classes, arguments.limit)
            print(f"out of core, {samples} samples:", {name: round(value, 3) for name, value in found.items()})
    if arguments.part == "memory":
        return
    logit, label = made_up(arguments.samples, arguments.classes)
    print(f"{arguments.samples} samples, {arguments.classes} classes, {torch.get_num_threads()} threads")
    if arguments.part in (None, "fit"):
        fit(logit, label, arguments.rounds)
    if arguments.part in (None, "metrics"):
        metrics(logit, label, arguments.rounds)
    if arguments.part in (None, "bootstrap"):
        bootstrap(logit, label)


if __name__ == "__main__":
    main()
