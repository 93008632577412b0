"""The overview of a picture far larger than a screen: until something is seen, until all is there, and what is read for it.

    python tests/benchmarks/panels_overview.py [--side 16384]

Answers of the explorer, without a browser. The peer is one strided read of the same picture through xarray, which must
unpack every chunk before anything can be shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import workbench
from workbench.host import Host
from workbench.panels.explore import Explorer

from unit.panel_cases import put_run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=16_384)
    side = parser.parse_args().side
    with tempfile.TemporaryDirectory() as place:
        bench = workbench.open(Path(place) / "store", host=Host(found=[]))
        rng = np.random.default_rng(0)
        y, x = np.ogrid[0:side, 0:side]
        picture = (100 + 60 * np.sin(x / 700.0) * np.cos(y / 900.0)).astype(np.uint8)
        for row in range(0, side, 1024):  # noise does not compress, and is made a part at a time
            picture[row : row + 1024] += rng.integers(0, 90, picture[row : row + 1024].shape, dtype=np.uint8)
        run = put_run(bench, {"slide": (("sample", "y", "x"), picture[np.newaxis])})
        print(f"{picture.nbytes / 2**20:.0f} MiB of uint8, chunks {run.record.arrays['slide']['chunk']}")
        explorer = Explorer([run.stored], "slide")
        assert explorer.view is not None
        message = {"view": explorer.view.model_dump(mode="json")}
        begin, times, reads, known = time.perf_counter(), [], [], 0.0
        while known < 1:
            answer, _ = explorer.answer(message)
            known = answer["known"]
            times.append(time.perf_counter() - begin)
            reads.append(explorer.bytes_read)
        step = answer["step"]
        begin = time.perf_counter()
        whole = bench[run.id]["slide"][:, ::step, ::step].values
        peer = time.perf_counter() - begin
        assert whole.shape[1] == answer["height"]
        begin = time.perf_counter()
        again, _ = explorer.answer(message)
        back = time.perf_counter() - begin
        window = {"view": message["view"] | {"window": [8000, 8900, 8000, 8900]}}
        before, begin = explorer.bytes_read, time.perf_counter()
        explorer.answer(window)
        sharp = time.perf_counter() - begin
        longest = 1000 * max(np.diff(times, prepend=0))
        print(
            f"first answer {1000 * times[0]:.0f} ms, {reads[0] / 2**20:.1f} MiB read; no answer takes over {longest:.0f} ms"
        )
        print(f"all of it after {len(times)} answers, {times[-1]:.2f} s, {reads[-1] / 2**20:.0f} MiB read")
        print(
            f"peer (one strided read) {peer:.2f} s: first picture in {times[0] / peer:.2f} x, all in {times[-1] / peer:.2f} x"
        )
        print(f"seen again {1000 * back:.0f} ms, {again['read']} bytes read")
        print(
            f"900 x 900 pixels of it sharp: {1000 * sharp:.0f} ms, {(explorer.bytes_read - before) / 2**20:.1f} MiB read"
        )


if __name__ == "__main__":
    main()
