"""Findings on this machine: a device that is not there, a disk that is too small."""

from __future__ import annotations

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
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = sum(ahead.values()), shutil.disk_usage(there).free
    if needed > free:
        largest = max(ahead, key=lambda manifest: ahead[manifest])
        yield Finding(
            "results",
            f"uncompressed affinities and embeddings alone take {needed / GB:,.2f} GB ({largest} "
            f"{ahead[largest] / GB:,.2f} GB), {there} has {free / GB:,.2f} GB left: make room, name a folder "
            "of another disk, or set `predict: {fused: true}`, which stores none of a segmentation",
        )
