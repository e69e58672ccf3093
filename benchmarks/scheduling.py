"""Blocks that do nothing, through all that schedules blocks: what a block costs, and whether memory grows with them.

    python benchmarks/scheduling.py 1000 10000 100000 1000000

Prints, per number of blocks, the time per block (wall, and CPU of the process that schedules), and the memory of that
process (Dask's scheduler lives in it) before and at the end. At 256³ blocks and a speed in Mvox/s, the share of
scheduling is time per block × speed / 16.8.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from kdseg.config.cluster import LocalOptions
from kdseg.geometry import Roi
from kdseg.prediction.blocks import run_predicted
from kdseg.results.claims import claim


def nothing(block, clock):
    return True


def rss_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(count, folder):
    total = Roi((0, 0, 0), (256 * count, 256, 256))
    ready = SimpleNamespace(cluster=LocalOptions(), workers=1, threads=2)
    with claim(folder / f"{count}.json", "nothing", {}, {}) as held:
        before, wall, cpu = rss_mb(), time.perf_counter(), time.process_time()
        run_predicted("nothing", total, (256, 256, 256), nothing, held, ready, 0.0)
        return time.perf_counter() - wall, time.process_time() - cpu, before, rss_mb()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| blocks | wall per block [ms] | CPU per block [ms] | memory before [MB] | after [MB] |")
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for count in map(int, sys.argv[1:]):
            wall, cpu, before, after = measure(count, Path(scratch))
            print(f"| {count:,} | {1e3 * wall / count:.2f} | {1e3 * cpu / count:.2f} | {before:.0f} | {after:.0f} |")
