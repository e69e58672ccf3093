"""Findings on this machine: a device that is not there, folders that cannot be written, a disk that is too small."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdseg.config import Config
from kdseg.planning.estimate import GB
from kdseg.planning.extents import Extents
from kdseg.planning.findings import Finding
from kdseg.planning.jobs import jobs


def devices(config: Config) -> Iterator[Finding]:
    """Yield a warning if the device of the configuration is not here: jobs may run on other machines."""
    if not config.device.startswith("cuda"):
        return
    import torch  # takes seconds

    elsewhere = "nothing to do if the jobs run on other machines"
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    _, _, number = config.device.partition(":")
    if not there:
        yield Finding(
            "device", f"{config.device!r}, but torch sees no CUDA here: use 'cpu' or 'auto'; {elsewhere}", False
        )
    elif number and int(number) >= there:
        yield Finding("device", f"{config.device!r}, but GPUs here are 0 to {there - 1}; {elsewhere}", False)
    elif config.gpus > there:
        yield Finding("gpus", f"{config.gpus}, but there are {there} here; {elsewhere}", False)


def folders(config: Config) -> Iterator[Finding]:
    """Yield errors if the folder of the results cannot be written or made, or Snakemake cannot keep its notes."""
    there = _first_there(Path(config.results))
    if not there.is_dir():
        yield Finding("results", f"{config.results} cannot be made, since {there} is a file: name another folder")
    elif not _writable(there):
        yield Finding(
            "results", f"{config.results} cannot be written, since you may not write in {there}: name another folder"
        )
    if not _writable(here := Path.cwd()):
        yield Finding(
            "current folder",
            f"you may not write in {here}, where the workflow keeps .snakemake: call kdseg in a folder of your own, "
            "from which relative paths of the configuration count",
        )


def _first_there(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there, or the file in its place."""
    paths = (folder.absolute(), *folder.absolute().parents)
    # Path.exists would raise where one may not look
    return next(path for path in paths if os.path.exists(path))  # noqa: PTH110


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def disk(config: Config, extents: Mapping[str, Extents]) -> Iterator[Finding]:
    """Yield an error if affinities and embeddings that are still to be made do not fit on the disk.

    They are stored uncompressed, so that their bytes follow from shapes; what is compressed is not counted, nor what
    was begun.

    Args:
        config: of the run.
        extents: of all its volumes, by name.
    """
    if config.storage.remote is not None:
        return
    folder = Path(config.results)
    manifests = {job.manifest: job.size or 0 for job in jobs(config, extents)}
    ahead = {
        manifest: size
        for manifest, size in manifests.items()
        if size and not (folder / manifest).exists() and not (folder / manifest).with_suffix(".zarr").exists()
    }
    there = _first_there(folder)
    needed, free = sum(ahead.values()), shutil.disk_usage(there).free
    if needed > free:
        largest = max(ahead, key=lambda manifest: ahead[manifest])
        yield Finding(
            "results",
            f"uncompressed affinities and embeddings alone take {needed / GB:,.2f} GB ({largest} "
            f"{ahead[largest] / GB:,.2f} GB), {there} has {free / GB:,.2f} GB left: make room, name a folder "
            "of another disk, or set `predict: {fused: true}`, which stores none of a segmentation",
        )
