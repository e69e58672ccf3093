"""Time of training steps on a GPU, and of its waits for crops.

Steps are those of benchmarks/step_time.py, with deterministic kernels as in the training loop and one wait for the loss
per step. The loader is the training loop's own, on real EM data; the card waits for it where preparing a batch takes
longer than a step. In order of worth: student, teacher and plain distillation, the loader, then the other methods.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.extend([str(Path(__file__).parents[number]) for number in (1, 2, 3)])

from job import begin


def main() -> None:
    job = begin("training_rates", __doc__)
    # not above: the processes that prepare crops import this module again
    import torch
    from timing import measure_all
    from training import items

    from kdseg.networks.models.device import keep_memory

    if job.rehearse:
        torch.set_num_threads(1)
        keep_memory()
    try:
        measure_all(job, items(job))
    finally:
        shutil.rmtree(job.work, ignore_errors=True)


if __name__ == "__main__":
    main()
