"""Timing for benchmarks: candidates take turns in one process, and what counts is the ratio of their medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["print_table", "take_turns"]


def take_turns(candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each call of each candidate; they run in turn, so that a drift of the machine hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + rounds):
        for name, call in candidates.items():
            started = time.perf_counter()
            call()
            if number >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def print_table(title: str, seconds: Mapping[str, list[float]], *, reference: str) -> None:
    """Median, fastest and slowest in milliseconds, and the median of the ratios to `reference` round by round."""
    print(f"\n{title}")
    print(f"{'':34}{'median ms':>11}{'min':>9}{'max':>9}{'ratio':>8}")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[reference], strict=True))
        low, middle, high = (1e3 * f(values) for f in (min, statistics.median, max))
        print(f"{name:34}{middle:11.2f}{low:9.2f}{high:9.2f}{ratio:8.2f}")
