"""Places where the blocks of a stage are done, as the rules of the workflow choose them."""

from __future__ import annotations

from typing import NamedTuple

from kdseg.config import Config
from kdseg.config.cluster import LocalOptions, SlurmOptions


class Place(NamedTuple):
    """Cores and GPUs of one job, with those that it starts elsewhere.

    Attributes:
        cores: threads that its rule asks for.
        workers: that share its blocks; None: those of a Dask scheduler that runs already, whose number is not known.
        gpus: that the workers hold; None: likewise.
    """

    cores: int
    workers: int | None
    gpus: int | None


def place_of(config: Config, blocks: int, predicts: bool, gpus: int) -> Place:
    """Return where the blocks of one job are done.

    Args:
        config: of the run.
        blocks: of the job: SLURM is asked for no more jobs than that.
        predicts: a network computes them: ``cluster`` counts, not ``cpu_cluster``.
        gpus: of a prediction on this machine, 0 on a CPU.
    """
    cluster, gpus = (config.cluster, gpus) if predicts else (config.cpu_cluster, 0)
    if isinstance(cluster, LocalOptions):
        return Place(config.workers, gpus or config.workers, gpus)
    if isinstance(cluster, SlurmOptions):
        jobs = min(cluster.jobs, max(blocks, 1))
        return Place(1, jobs, jobs if gpus else 0)
    return Place(1, None, None if gpus else 0)
