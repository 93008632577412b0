"""Solutions of many runs as points: size, bit operations and accuracy, with intervals over the seeds that found them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from workbench import Run
from workbench.toolkit import mean_interval

from workbench_quantization.frontier_readers import (
    MEASURED_AND_STORED,
    READERS,
    Reached,
    input_widths,
    short_name,
    stored,
)
from workbench_quantization.hawq_solutions import MEGABYTE
from workbench_quantization.layers import BLOCK_SEPARATOR
from workbench_quantization.quantizer import FULL_PRECISION

TABLE_ROLES = ("bits", "table")
"""Roles by which methods take a table of widths that another run found."""

TOLD_OTHERWISE = ("model", "test", *TABLE_ROLES)
"""Roles that are equal in all runs that are compared, or told by the run that found a table."""


@dataclass(frozen=True)
class Point:
    """A solution over all seeds it was found with; `lower` and `upper` are NaN for a single seed."""

    series: str
    name: str
    size_mb: float
    average_bits: float
    bops: float
    accuracy: float
    lower: float
    upper: float
    seeds: int


@dataclass(frozen=True)
class _Source:
    """What solutions of several runs must share to be repetitions of one another.

    Attributes:
        method: that ran.
        series, solution: of what it reached.
        params: of the run, spelled out, without those that only choose what is measured and stored; what it was given beside the
            model and the report images (calibration images, say), its precision and the method's version.
        finder: method and params of the run that found a given table of widths.
    """

    method: str
    series: str
    solution: str
    params: tuple[tuple[str, str], ...]
    finder: tuple[str, tuple[tuple[str, str], ...]] | None

    @property
    def base(self) -> str:
        """Name that says no parameters."""
        found = f"widths of {short_name(self.finder[0]) if self.finder[0] else 'a table'}, " if self.finder else ""
        return f"{short_name(self.method)}: {found}{self.solution}"


def collect(runs: Sequence[Run]) -> list[Point]:
    """Every solution of every run, those of runs that differ only in seed as one point, in order of size.

    Random tables of one run are one point: their mean, which the seeds then repeat. A table that another run found is a
    repetition with that run's seed. Solutions of one series and method whose figures are all equal are one point, under the
    first name: with one candidate width a program has nothing to choose.
    """
    known_layers = _layers(runs)
    found: dict[_Source, dict[tuple[Any, ...], list[tuple[float, float, float, float]]]] = {}
    for run in runs:
        left_out = _without(run, known_layers)
        for item in READERS.get(run.method, stored)(run):
            source, repetition = _identify(run, item)
            row = (*_costs(run, item, left_out), item.accuracy)
            found.setdefault(source, {}).setdefault(repetition, []).append(row)
    names = _names(list(found))
    points = []
    seen: set[tuple[str, str, tuple[Any, ...], tuple[tuple[Any, ...], ...], bytes]] = set()
    for source, by_seed in found.items():
        rows = np.array([np.mean(parts, axis=0) for parts in by_seed.values()])
        figures = (source.series, source.method, source.params, tuple(by_seed), rows.tobytes())
        if figures in seen:
            continue
        seen.add(figures)
        size, bits, bops, accuracy = rows.mean(axis=0)
        estimate = mean_interval(rows[:, 3]) if len(rows) > 1 else None
        low, high = (float(estimate.lower), float(estimate.upper)) if estimate is not None else (np.nan, np.nan)
        points.append(Point(source.series, names[source], size, bits, bops, accuracy, low, high, len(rows)))
    return sorted(points, key=lambda point: (point.size_mb, point.name))


def _costs(run: Run, item: Reached, left_out: tuple[float, float]) -> tuple[float, float, float]:
    """MB of integers, bits per weight, and bit operations of one sample."""
    sizes, macs = run["parameter_count"].values.astype(float), run["macs"].values.astype(float)
    inputs = item.input_bits
    if inputs is None:
        params = run.record.params
        inputs = input_widths(item.bits, params["act_bits"], params.get("first_last_bits"))
    more_weights, more_macs = left_out
    total = float((sizes * item.bits).sum()) + more_weights * FULL_PRECISION
    bops = float((macs * item.bits * inputs).sum()) + more_macs * FULL_PRECISION**2
    return total / 8 / MEGABYTE, total / (float(sizes.sum()) + more_weights), bops


def _layers(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """(weights, multiply-accumulates) of every layer that some run names by itself."""
    known: dict[str, tuple[float, float]] = {}
    for run in runs:
        counts = run["parameter_count"].load()
        for name, size, macs in zip(counts["layer"].values, counts.values, run["macs"].values, strict=True):
            if BLOCK_SEPARATOR not in str(name):
                known[str(name)] = float(size), float(macs)
    return known


def _without(run: Run, known: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """Weights and multiply-accumulates of layers that others quantise and this run leaves in full precision."""
    mine = {part for name in run["parameter_count"]["layer"].values for part in str(name).split(BLOCK_SEPARATOR)}
    rest = [facts for name, facts in known.items() if name not in mine]
    return sum(size for size, _ in rest), sum(macs for _, macs in rest)


def _identify(run: Run, item: Reached) -> tuple[_Source, tuple[Any, ...]]:
    """What a solution is, and which repetition of it."""
    params = _spelled(run)
    if not item.given:
        return _Source(run.method, item.series, item.solution, params, None), (run.seed,)
    role = next((role for role in TABLE_ROLES if role in run.record.inputs), "")
    finders = run.inputs.get(role, [])
    if finders:
        finder: tuple[str, tuple[tuple[str, str], ...]] = (finders[0].method, _spelled(finders[0]))
        return _Source(run.method, item.series, item.solution, params, finder), (run.seed, finders[0].seed)
    digest = str(run.record.inputs.get(role, {}).get("digest"))
    return _Source(run.method, item.series, item.solution, params, ("", (("table", digest),))), (run.seed,)


def _spelled(run: Run) -> tuple[tuple[str, str], ...]:
    record, untold = run.record, MEASURED_AND_STORED.get(run.method, ())
    told = {key: value for key, value in record.params.items() if key not in untold}
    told |= {
        role: f"{facts.get('label')} [{str(facts.get('digest'))[:6]}]"  # equal labels need not be equal images
        for role, facts in record.inputs.items()
        if role not in TOLD_OTHERWISE
    }
    told |= {"precision": record.precision, "version": record.method_version}
    return tuple((key, json.dumps(value)) for key, value in sorted(told.items()))


def _names(sources: Sequence[_Source]) -> dict[_Source, str]:
    """A name for each; parameters are told where others of the same name had different ones."""
    names: dict[_Source, str] = {}
    for base in dict.fromkeys(source.base for source in sources):
        alike = [source for source in sources if source.base == base]
        own = _differences([dict(source.params) for source in alike])
        theirs = _differences([dict(source.finder[1]) if source.finder else {} for source in alike])
        for source, mine, finders in zip(alike, own, theirs, strict=True):
            told = "; ".join(text for text in (mine, finders) if text)
            method, _, solution = base.partition(": ")
            names[source] = f"{method} ({told}): {solution}" if told else base
    return names


def _differences(spelled: Sequence[Mapping[str, str]]) -> list[str]:
    """Of each, what the others do not all agree on: `bits 3; probes 20`."""
    keys = sorted({key for one in spelled for key in one})
    differing = [key for key in keys if len({one.get(key) for one in spelled}) > 1]
    return ["; ".join(f"{key.replace('_', ' ')} {_told(one.get(key))}" for key in differing) for one in spelled]


def _told(text: str | None) -> str:
    value = None if text is None else json.loads(text)
    if isinstance(value, list):
        return ", ".join(_told(json.dumps(part)) for part in value) or "none"
    return "none" if value is None else f"{value}"
