"""Raw data and a network → uint8 affinities, block by block on Dask workers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.config.tasks import PredictTask
from kdseg.errors import ConfigError, ShapeError
from kdseg.geometry import Block, Roi, Triple, blocks, is_multiple
from kdseg.prediction.blocks import Prepared, Weights, prepare, run_predicted, worker_predictor
from kdseg.prediction.tiles import predict_tiles, read_reflected, tiled
from kdseg.results.claims import claim
from kdseg.running.attempt import Clock
from kdseg.volumes.checksums import keep_checksums
from kdseg.volumes.reuse import Reuse, earlier, reusing
from kdseg.volumes.volume import create_volume, open_volume


@dataclass(frozen=True)
class Work:
    """Arguments of `predict_block` that are equal for all blocks; small, sent with every block."""

    raw: Path
    mask: Path | None
    roi: Roi | None
    weights: Weights
    out: Path


def run(task: PredictTask) -> None:
    """Predict the affinities of a volume, or what else a student learns from.

    Beside the manifest lie uint8 affinities (c, z, y, x), with the offsets as an attribute, or the float16 embedding
    (d, z, y, x).

    Raises:
        ConfigError: if the network has no embedding, but it is asked for, or the cluster cannot be used.
    """
    ready, options, storage = prepare(task, task.product), task.options, task.storage
    source, loaded = ready.raw.volume, ready.loaded
    if task.product == "embedding" and not loaded.heads.embedding:
        raise ConfigError(f"{task.model} has no embedding to predict: train it with heads.embedding")
    if not is_multiple(options.block, storage.shard):
        raise ShapeError(f"predict.block {options.block} must be a multiple of the shard {storage.shard}")
    roi = None if task.roi is None else Roi(task.roi.offset, task.roi.shape)
    made_of = {
        **ready.made_of,
        **({} if task.product == "affinities" else {"product": task.product}),
        **({} if roi is None else {"roi": [list(roi.offset), list(roi.shape)]}),
        "storage": storage.model_dump(mode="json"),
    }
    if roi is not None and not source.roi.contains(roi):
        raise ShapeError(f"the region {roi} does not lie in {task.raw}, which is {source.roi}")
    with claim(
        task.manifest, "predict", made_of, ready.inputs, volume=True, bucket=storage.remote, overwrite=task.overwrite
    ) as held:
        create_volume(
            held.store,
            shape=source.shape,
            dtype=np.float16 if task.product == "embedding" else np.uint8,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=source.voxel_size or loaded.voxel_size,
            offset=source.offset,
            channels=loaded.heads.embedding if task.product == "embedding" else len(loaded.offsets),
            compress=False,
            attributes={} if task.product == "embedding" else {"offsets": [list(o) for o in loaded.offsets]},
        )
        tissue = None if ready.mask is None else ready.mask.store
        work = Work(ready.raw.store, tissue, roi, ready.weights, held.store)
        held.stats.update(voxels=source.roi.size, device=ready.made_of["device"], workers=ready.workers)
        block = Roi((0, 0, 0), options.block).intersect(source.roi)
        announced = ready.announced_mb(tiled(block, options.tile).grow(loaded.network.halo), block)
        function = reusing(partial(predict_block, work), _reuse(task, work, made_of, ready))
        run_predicted("predict", source.roi, options.block, function, held, ready, announced)
        keep_checksums(held, "predict", options.block)


def _reuse(task: PredictTask, work: Work, made_of: dict[str, Any], ready: Prepared) -> Reuse[Work, NDArray[Any]] | None:
    """Return the blocks of an earlier prediction that may be of use; None if there is none."""
    found = earlier(task, "predict", made_of, ready.inputs, {"raw": task.raw, "mask": task.mask})
    if found is None:
        return None
    mask = found.inputs.get("mask")
    was = replace(
        work, raw=found.inputs["raw"].store, mask=None if mask is None else mask.store, out=found.manifest.result
    )
    return Reuse(found.manifest.path, found.runs, was, work, _sees, _load, _save)


def predict_block(work: Work, block: Block, clock: Clock) -> bytes | None:
    """Predict and write one block; see `kdseg.running.attempt.BlockWork`."""
    predict = worker_predictor(work.weights)
    with clock("read"):
        wanted = _wanted(work, block, predict.tile)
        if not wanted:
            return None
        raw = _around(work, block)
    with predict.stream():
        with clock("read"):
            grey = predict.placed(raw)
        with clock.computing():
            result = predict_tiles(predict, grey, block.roi, wanted=lambda tile: tile.offset in wanted)
        with clock("write"):
            values = predict.fetched(result)
    if work.roi is not None:
        inside = np.zeros(values.shape, np.bool_)
        inside[(..., *block.roi.intersect(work.roi).slices(block.roi))] = True
        values[~inside] = 0
    with clock("write"):
        return _save(work, block, values)


def _around(work: Work, block: Block) -> NDArray[np.uint8]:
    """Return the raw data that the network sees of a block, mirrored at the borders of the volume."""
    predict, source = worker_predictor(work.weights), open_volume(work.raw)
    return read_reflected(source.read, source.roi, tiled(block.roi, predict.tile).grow(predict.halo))


def _sees(work: Work, block: Block) -> Iterator[Any]:
    """Yield all that the prediction of a block follows from; see `kdseg.volumes.reuse.Sees`."""
    if open_volume(work.raw).roi.contains(block.roi):
        wanted = _wanted(work, block, worker_predictor(work.weights).tile)
        if wanted:
            yield wanted
            yield _around(work, block)


def _load(was: Work, _now: Work, block: Block) -> NDArray[Any]:
    return open_volume(was.out).read(block.roi)


def _save(work: Work, block: Block, values: NDArray[Any]) -> bytes:
    out = open_volume(work.out)
    written = out.write(block.roi, values)
    out.sync(block.roi)
    return written


def _wanted(work: Work, block: Block, tile: Triple) -> set[Triple]:
    """Return the first voxels of those tiles of a block that hold tissue and meet the region.

    Tiles lie on a grid of the volume: which voxels are predicted does not depend on the blocks.
    """
    part = block.roi if work.roi is None else block.roi.intersect(work.roi)
    if not part.size:
        return set()
    cells = [cell.roi for cell in blocks(tiled(part, tile), tile)]
    if work.mask is None:
        return {cell.offset for cell in cells}
    tissue = open_volume(work.mask).read(block.roi)
    return {cell.offset for cell in cells if tissue[cell.intersect(block.roi).slices(block.roi)].any()}
