"""Logits of a run that are larger than what the process may hold: calibrated and judged from the store, in blocks."""

import pytest

from benchmarks.calibration import memory


@pytest.mark.slow
def test_stored_logits_are_calibrated_in_a_fraction_of_their_memory():
    """300 MiB of logits in float64 of which a million may be kept; a process of its own, beyond what a tiny run needs."""
    found = memory(40_000, 1000, keep=1_000_000)
    assert found["logits"] > 300
    assert found["extra"] < 0.6 * found["logits"]
    assert found["temperature"] == pytest.approx(1.6, rel=0.02)  # the truth
