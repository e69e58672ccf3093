"""Speed of prediction on a GPU: bare tiles against the limits of the card, and stages from and to a local disk.

In order of worth: limits, the students' tiles as the product computes them, the stage, the other networks, CUDA
graphs, other groupings, the fused stage, and last what has to be compiled. Weights of bare tiles are random, which
costs as much; a tile that fits in no memory has a row that says so.
"""

from __future__ import annotations

import shutil
import sys
from multiprocessing import get_context
from pathlib import Path

sys.path.extend([str(Path(__file__).parents[number]) for number in (1, 3)])

from job import begin


def main() -> None:
    job = begin("rates", __doc__)
    # not above: the processes that stages start import this module again
    import torch
    from predicting import SHM, items
    from timing import measure_all
    from volumes import compile_fragments

    if job.rehearse:
        torch.set_num_threads(1)
        compile_fragments()
    else:  # meanwhile, by another core: it takes half a minute
        get_context("spawn").Process(target=compile_fragments, daemon=True).start()
    try:
        measure_all(job, items(job))
    finally:
        for folder in (job.work, SHM):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
