"""Time, memory and storage that finished jobs of a run took, from their files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from kdseg.errors import MissingError
from kdseg.planning.jobs import Job
from kdseg.results.manifests import private_folder, read

LISTS = {"sweep": "count", "score": "count"}
"""Lists of finished blocks that are not called as their stage."""
METADATA = "zarr.json"


@dataclass(frozen=True)
class Actual:
    """Measurements of one job; None: it left no word of it.

    Attributes:
        seconds: from its start to its end.
        cpu_s: CPU seconds, the more of what the job counted and what Snakemake sampled. Either may be too few: the job
            does not see Dask's workers, and Snakemake not its last half a second, or half a minute of a longer one.
        mb: most memory that Snakemake saw.
        size: bytes of its stores and tables, without the JSON of volumes' metadata.
        voxels: of its volume.
        blocks: that are done.
    """

    seconds: float | None
    cpu_s: float | None
    mb: float | None
    size: int
    voxels: int | None
    blocks: int | None


def actual(results: Path, job: Job) -> Actual | None:
    """Return what a job took, None if it has not finished."""
    path = results / job.manifest
    try:
        manifest = read(path)
    except MissingError:
        return None
    row = _benchmark(path, job)
    voxels = manifest.stats.get("voxels")
    counted = [one for one in (manifest.stats.get("cpu_s"), _number(row.get("cpu_time"))) if one is not None]
    return Actual(
        seconds=_number(row.get("s")),
        cpu_s=max(counted, default=None),
        mb=_number(row.get("max_rss")),
        size=stored_bytes(path),
        voxels=None if voxels is None else int(voxels),
        blocks=_blocks(path, job) if job.stage != "train" else manifest.stats.get("steps"),
    )


def stored_bytes(manifest: Path) -> int:
    """Return the bytes of the stores, tables and networks beside a manifest, without the JSON of volumes' metadata."""
    suffixes = (".zarr", ".tables", ".parquet", ".safetensors", ".training")
    found = [manifest.with_name(f"{manifest.stem}{suffix}") for suffix in suffixes]
    files = [file for one in found for file in ([one] if one.is_file() else one.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file() and file.name != METADATA)


def _benchmark(manifest: Path, job: Job) -> dict[str, str]:
    """Return the row of Snakemake's benchmark of a job, nothing if there is none."""
    of_dataset = job.stage in ("convert", "predict") and manifest.stem != "affinities"
    path = manifest.parent / "benchmarks" / f"{manifest.stem if of_dataset else job.stage}.tsv"
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return next(csv.DictReader(file, delimiter="\t"), {})


def _blocks(manifest: Path, job: Job) -> int | None:
    """Return how many blocks the lists of a job's finished blocks have; None if there is no list."""
    private = private_folder(manifest)
    name = "convert-*" if job.stage == "convert" else LISTS.get(job.stage, job.stage)
    pattern = "level*/agglomerate, level *.txt" if job.stage == "agglomerate" else f"*x*x*/{name}.txt"
    lists = list(private.glob(pattern))
    return sum(path.read_bytes().count(b"\n") for path in lists) if lists else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
