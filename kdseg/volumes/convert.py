"""A source, or a phantom → raw data, labels, a baseline or a mask as a sharded volume with its pyramid."""

from __future__ import annotations

import logging
import math
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdseg.config.data import Background, PhantomOptions
from kdseg.config.tasks import ConvertTask, Kind
from kdseg.errors import ConfigError, masked
from kdseg.geometry import Block, Roi, Triple, VoxelSize, triple
from kdseg.results.claims import Claim, claim
from kdseg.results.manifests import write_json
from kdseg.running.runner import BlockFunction, place_of, run_blocks
from kdseg.volumes.background import KEY, looks_like_membrane
from kdseg.volumes.checksums import keep_checksums
from kdseg.volumes.foreign import Source
from kdseg.volumes.phantom import phantom_block
from kdseg.volumes.phantom.unstored import description
from kdseg.volumes.plan import Plan, block_shape, convert_block, plan_labels, plan_mask, plan_raw
from kdseg.volumes.pyramid import build_level
from kdseg.volumes.sources import open_source, source_state
from kdseg.volumes.volume import Volume, create_volume, open_volume

_SAMPLE = 64
"""Voxels along each axis of the sample of labels that is looked at."""

_LEAST_RANGE = 0.25
"""Share of a byte's grey values, below which somebody should look."""

log = logging.getLogger(__name__)


def run(task: ConvertTask) -> None:
    """Write one dataset of a volume as sharded OME-Zarr 0.5: raw data as uint8, labels as uint64, a mask as 0 and 1.

    Of a phantom that is not to be stored, only what it is to be computed from is written.

    Raises:
        ConfigError: if the volume has no dataset of this kind.
    """
    if task.options.phantom is not None:
        _run_phantom(task, task.options.phantom)
    else:
        _run_source(task)


def write_phantom_block(options: PhantomOptions, kind: Kind, out: Path, block: Block) -> bytes:
    """Compute and write one block of a phantom; return what is known of its files."""
    raw, labels = phantom_block(options, block.roi)
    return open_volume(out).write(block.roi, raw if kind == "raw" else labels)


def _run_phantom(task: ConvertTask, options: PhantomOptions) -> None:
    kind, storage = task.kind, task.storage
    if kind == "baseline":
        raise ConfigError("a phantom has no baseline: remove it from what is scored")
    if kind == "mask":
        raise ConfigError("a phantom has no mask: it is tissue throughout")
    if not options.stored:
        described = description(options, kind)
        made_of = described | {"stored": False}
        with claim(task.manifest, "convert", made_of, {}, volume=True, overwrite=task.overwrite) as held:
            write_json(held.store, described)
            held.stats |= {"voxels": Roi((0, 0, 0), options.shape).size, "mvox_per_s": None}
        return
    phantom = options.model_dump(mode="json", exclude={"stored"})
    made_of = {"kind": kind, "phantom": phantom, "storage": storage.model_dump(mode="json")}
    with claim(
        task.manifest, "convert", made_of, {}, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        offset = _product(options.offset, options.voxel_size)
        _create(held, task, options.shape, options.voxel_size, offset)
        function = partial(write_phantom_block, options, kind, held.store)
        _fill(held, task, options.shape, storage.shard, function)


def _run_source(task: ConvertTask) -> None:
    kind, options, storage = task.kind, task.options, task.storage
    address = getattr(options, kind)
    if address is None or options.raw is None:
        raise ConfigError(f"the volume has no {kind}: set `{kind}` to the address of a dataset")
    source = raw = open_source(options.raw, options.sections)
    inputs = {"source/raw": source_state(options.raw)}
    if kind == "raw":
        plan = plan_raw(raw, options)
    else:
        source = open_source(address, options.sections)
        inputs[f"source/{kind}"] = source_state(address)
        plan = plan_mask(source, options, raw) if kind == "mask" else plan_labels(source, options, raw, kind)
    made_of = _made_of(task, address, options.raw, plan)
    with claim(
        task.manifest, "convert", made_of, inputs, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        attributes = {KEY: options.background} if kind == "labels" else {}
        _create(held, task, plan.roi.shape, plan.voxel_size, plan.offset, attributes)
        block = block_shape(storage.shard, source.unit, plan.roi.shape)
        function = partial(convert_block, source, plan, held.store)
        _fill(held, task, plan.roi.shape, block, function)
        if kind == "raw":  # not before: what has threads of its own does not survive the forks of workers
            _say_range(source, plan)
        if kind == "labels":
            _say_background(open_volume(held.store), options.background)


def _say_range(raw: Source, plan: Plan) -> None:
    """Warn where grey values of more than a byte leave most of their type's range unused, and so of a byte."""
    if plan.intensity is None or raw.data.dtype == np.uint8:
        return
    sample = raw.read(plan.roi.central((_SAMPLE, _SAMPLE, _SAMPLE)))
    low, high = plan.intensity
    darkest, brightest = float(sample.min()), float(sample.max())
    share = (brightest - darkest) / (high - low)
    if 0 < share < _LEAST_RANGE:  # of padding alone nothing can be told
        log.warning(
            "convert-raw: %s is %s, and of %g to %g, which become 0 and 255, its middle takes %g to %g: %.1f %%, some "
            "%d grey levels. Set `intensity: [%g, %g]` for this volume if that is all of it",
            raw.address,
            raw.data.dtype,
            low,
            high,
            darkest,
            brightest,
            100 * share,
            math.floor(255 * share) + 1,
            *_range(sample),
        )


def _range(sample: NDArray[Any]) -> tuple[float, float]:
    """Return a range that holds some grey values: of integers, that of the bits which they take."""
    if sample.dtype.kind == "f" or sample.min() < 0:
        return float(sample.min()), float(sample.max())
    return 0, 2 ** max(int(sample.max()).bit_length(), 8) - 1


def _say_background(labels: Volume, said: Background) -> None:
    """Log what label 0 is taken for, and warn where it looks like something else."""
    low = [max((n - _SAMPLE) // 2, 0) for n in labels.shape]
    middle = Roi(triple(low), (_SAMPLE, _SAMPLE, _SAMPLE)).intersect(labels.roi)
    doubt = looks_like_membrane(labels.read(middle)) if said == "unknown" else ""
    if doubt:
        log.warning(
            "convert-labels: %s. As `background: unknown` pairs across it teach nothing: set `background: boundary` "
            "for this volume if it is membrane",
            doubt,
        )
    else:
        log.info("convert-labels: label 0 is taken for %s (`background`)", said)


def _made_of(task: ConvertTask, address: str, raw: str, plan: Plan) -> dict[str, Any]:
    return {
        "kind": task.kind,
        "address": masked(address),
        "raw": masked(raw),
        "roi": {"offset": list(plan.roi.offset), "shape": list(plan.roi.shape)},
        "voxel_size": list(plan.voxel_size),
        "offset": list(plan.offset),
        "intensity": None if plan.intensity is None else list(plan.intensity),
        **({"background": task.options.background} if task.kind == "labels" else {}),
        **({} if task.options.sections is None else {"sections": task.options.sections.model_dump(mode="json")}),
        "storage": task.storage.model_dump(mode="json"),
    }


def _create(
    held: Claim,
    task: ConvertTask,
    shape: Triple,
    voxel_size: VoxelSize,
    offset: VoxelSize,
    attributes: dict[str, Any] | None = None,
) -> None:
    create_volume(
        held.store,
        shape=shape,
        dtype=np.uint8 if task.kind in ("raw", "mask") else np.uint64,
        chunk=task.storage.chunk,
        shard=task.storage.shard,
        voxel_size=voxel_size,
        offset=offset,
        levels=task.storage.levels,
        attributes=attributes,
    )


def _fill(held: Claim, task: ConvertTask, shape: Triple, block: Triple, function: BlockFunction) -> None:
    total = Roi((0, 0, 0), shape)
    run_blocks(f"convert-{task.kind}", total, block, function, place_of(task), held.progress(block))
    method: Literal["mean", "mode"] = "mean" if task.kind == "raw" else "mode"
    name, levels = f"convert-{task.kind}", task.storage.levels
    build = partial(build_level, held.store, method, place_of(task), held.private)
    keep_checksums(held, name, block, levels, build)
    held.stats["voxels"] = total.size


def _product(steps: Triple, voxel_size: VoxelSize) -> VoxelSize:
    z, y, x = (n * v for n, v in zip(steps, voxel_size, strict=True))
    return (z, y, x)
