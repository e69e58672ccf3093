"""Time, memory and cores that jobs of the workflow ask SLURM for: estimates from the configuration, and limits.

Too much is not harmless: a job that no node can hold, or that may take longer than its partition allows, waits for ever
without an error. Too little is: Snakemake starts the job again with more (`capped`), and stages go on where they
were killed. So the estimates are for the usual case, and nothing asks for more than its partition has.
"""

from __future__ import annotations

import logging
import subprocess
from dataclasses import dataclass
from math import ceil, prod

from kdseg.config import Config
from kdseg.config.base import Extent
from kdseg.config.networks import TrainOptions
from kdseg.geometry import triple

log = logging.getLogger(__name__)

MB = 10**6
DAY = 24 * 60
"""Minutes."""
LONGEST = 2 * DAY
"""Minutes that a training asks for at most: it goes on where it stopped, and who asks for less starts earlier."""
TRAIN_CORES = 8
"""Threads of a training."""
SEARCH_MB = 32_000
"""Megabytes of a search for options of the segmentation, which holds affinities of whole parts."""
OTHERS_MB = 8_000
"""Megabytes of a conversion, and of counting for scores."""
ANSWER_S = 60.0
"""Seconds that SLURM may take to answer."""


@dataclass(frozen=True)
class Limits:
    """Limits of one job in a partition; None: none that is known."""

    minutes: int | None = None
    mem_mb: int | None = None
    cores: int | None = None


def training_minutes(options: TrainOptions) -> int:
    """Return the minutes that a training may take: those given, or a voxel each 30 µs, with an hour for all else.

    A tenth of the speed of one core with the small networks of benchmarks/README.md: larger ones come with a GPU.
    """
    voxels = (options.steps or 0) * options.accumulate * options.batch * prod(options.crop)
    seconds = 1.5 * (options.seconds or 0) + voxels / 30_000
    return min(LONGEST, 60 + ceil(seconds / 60))


def training_mb(options: TrainOptions) -> int:
    """Return the megabytes of a training: 8 kB per voxel of a batch, three times what the demo's teacher took.

    The libraries and the crops that are prepared take the rest; a validation holds scores of all channels.
    """
    batch = options.batch * prod(options.crop) * 8_000
    validation = prod(options.validate_shape) * 400
    return 4_000 + 1_000 * options.loader_workers + ceil((batch + validation) / MB)


def blocks_mb(block: Extent, per_voxel: int, workers: int, tile: Extent | None = None) -> int:
    """Return the megabytes of a stage whose workers hold a block each, and a gigabyte of libraries.

    Args:
        block: voxels of one task, with all that is read around it.
        per_voxel: bytes that a worker holds for each of them.
        workers: processes side by side.
        tile: voxels of one forward pass, where a network predicts: a kilobyte each, as benchmarks/README.md measured.
    """
    each = 1_000 + ceil((prod(block) * per_voxel + (prod(tile) * 1_000 if tile else 0)) / MB)
    return 2_000 + workers * each


def stage_mb(config: Config, stage: str, workers: int) -> int:
    """Return the megabytes of a job of a stage that works block by block.

    Args:
        config: of the run.
        stage: command of the stage.
        workers: processes side by side.
    """
    predict, fragments = config.predict, config.fragments
    if stage == "predict":
        return blocks_mb(predict.block, 40, workers, tile=predict.tile)
    if stage == "fragments":
        read = triple(b + 2 * h for b, h in zip(fragments.block, fragments.halo, strict=True))
        return blocks_mb(read, 200, workers, tile=predict.tile if predict.fused else None)
    # a leaf of the tree holds its part of the graph, not its voxels
    block, per_voxel = {
        "edges": (config.edges.block, 200),
        "agglomerate": (config.agglomerate.chunk, 20),
        "relabel": (config.segment.block, 100),
    }.get(stage, ((1, 1, 1), 0))
    return blocks_mb(block, per_voxel, workers) if per_voxel else OTHERS_MB


def capped(wanted: int, attempt: int, limit: int | None) -> int:
    """Return what the n-th attempt of a job asks for: n times as much as wanted, up to a limit."""
    return wanted * attempt if limit is None else min(wanted * attempt, limit)


def ask_slurm() -> str:
    """Return SLURM's partitions as `sinfo` lists them for `limits`; nothing if SLURM does not say."""
    command = ["sinfo", "--noheader", "--exact", "--format=%P|%l|%m|%c"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=ANSWER_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("SLURM does not say what its partitions allow: %s; jobs ask for what they may need", error)
        return ""


def limits(partition: str | None, listed: str) -> Limits:
    """Return what one job may have in a partition: its time, and the most that a node of it has.

    Args:
        partition: its name; None: the default one, which SLURM marks with a star.
        listed: partition, time limit, megabytes and cores of each kind of node, as `ask_slurm` returns them.
    """
    kinds = [line.split("|") for line in listed.splitlines() if line.count("|") == 3]
    ours = [
        kind for kind in kinds if (kind[0].endswith("*") if partition is None else kind[0].rstrip("*") == partition)
    ]
    if not ours:
        return Limits()
    return Limits(
        minutes=_minutes(ours[0][1]),
        mem_mb=max(_number(kind[2]) for kind in ours),
        cores=max(_number(kind[3]) for kind in ours),
    )


def _minutes(text: str) -> int | None:
    """Return a time of SLURM, `days-hours:minutes:seconds` or less of it, as whole minutes."""
    if not text[:1].isdigit():
        return None  # infinite, n/a
    days, _, clock = text.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return int(days or 0) * DAY + seconds // 60


def _number(text: str) -> int:
    """Return a number of SLURM, which ends with a plus where nodes differ."""
    return int(text.rstrip("+"))
