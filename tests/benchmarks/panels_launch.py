"""What the form adds to a run: from the click's message in the kernel until the run is stored, against `bench.run`.

    python tests/benchmarks/panels_launch.py [--rounds 15]

All compute the same small method on the same data, with a new seed each time, turn by turn in one process. The form's
time covers reading and checking the fields, `bench.submit` and its thread, and in the last line the panel's last update;
the browser's part is not in it.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import workbench
from measure import print_table, take_turns
from workbench.host import Host

from unit.sample_methods import MeanImage


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    images = np.random.default_rng(0).random((12, 1, 8, 8), dtype=np.float32)
    seeds = itertools.count()
    with tempfile.TemporaryDirectory() as place:
        host = Host(found=[])
        host.register(MeanImage)
        bench = workbench.open(Path(place) / "store", host=host)
        panel = bench.launch("sample.mean_image", data=images)
        assert panel.widget

        def plain() -> None:
            bench.run("sample.mean_image", data=images, seed=next(seeds), progress=False)

        def background() -> None:
            bench.submit("sample.mean_image", data=images, seed=next(seeds)).result()

        stored: list[float] = []

        def form() -> None:
            started, before = time.perf_counter(), panel.handle
            panel._form._handle_custom_msg({"type": "run", "texts": {"seed": str(next(seeds))}}, [])
            while panel.handle is before:
                time.sleep(0.0005)
            panel.handle.wait()
            stored.append(time.perf_counter() - started)
            with panel._starting:  # held until the panel shows the result
                assert panel._form.state["status"] == "complete"

        seconds = take_turns({"bench.run": plain, "bench.submit": background, "form": form}, rounds=arguments.rounds)
    seconds["form, until it is stored"] = stored[-arguments.rounds :]
    seconds["form, until it is shown"] = seconds.pop("form")
    print_table("a small run, started in three ways", seconds, reference="bench.run")
    added = [1e3 * (a - b) for a, b in zip(stored[-arguments.rounds :], seconds["bench.run"], strict=True)]
    print(
        f"\nthe form adds {statistics.median(added):.1f} ms to the run (median; {min(added):.1f} to {max(added):.1f})"
    )


if __name__ == "__main__":
    main()
