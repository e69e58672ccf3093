"""Raw data and a network → uint8 affinities, block by block on Dask workers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from kdseg.config import PredictOptions, StorageOptions
from kdseg.config.cluster import ClusterOptions
from kdseg.config.tasks import Product
from kdseg.errors import ConfigError, ShapeError
from kdseg.geometry import Block, Roi, Triple, blocks, is_multiple
from kdseg.prediction.blocks import HERE, Weights, prepare, run_predicted, worker_predictor
from kdseg.prediction.tiles import predict_tiles, read_reflected, tiled
from kdseg.results.manifests import claim
from kdseg.running.attempt import Clock
from kdseg.volumes.volume import create_volume, open_volume


@dataclass(frozen=True)
class Work:
    """Arguments of `predict_block` that are equal for all blocks; small, sent with every block."""

    raw: Path
    mask: Path | None
    roi: Roi | None
    weights: Weights
    out: Path


def run(
    raw: Path,
    model: Path,
    manifest: Path,
    options: PredictOptions,
    storage: StorageOptions,
    *,
    product: Product = "affinities",
    mask: Path | None = None,
    roi: Roi | None = None,
    device: str = "auto",
    gpus: int = 1,
    workers: int = 1,
    cluster: ClusterOptions = HERE,
    overwrite: bool = False,
) -> None:
    """Predict the affinities of a volume, or what else a student learns from.

    Args:
        raw: manifest of uint8 raw data.
        model: manifest of a network.
        manifest: to write; uint8 affinities (c, z, y, x) lie beside it, with the offsets as an attribute; or the
            float16 embedding (d, z, y, x).
        options: block, tile, precision.
        storage: layout on disk.
        product: affinities, as they are or averaged over mirror images (and quarter turns), or the embedding.
        mask: manifest of a volume (z, y, x) on the raw data's voxels, of integers or bools. Tiles where it is 0
            throughout are not predicted: there the result is 0.
        roi: predict these voxels only, (z, y, x); the others are 0. The same bytes as without it.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.
        gpus: processes on CUDA, one GPU each.
        workers: processes on a CPU, one of whose threads computes. The result depends on neither.
        cluster: where the processes run.
        overwrite: clear what other options or inputs made.

    Raises:
        DeviceError: if the device is not there.
        ConfigError: if the network has no embedding, but it is asked for, or the cluster cannot be used.
        VoxelSizeError: if the network was trained on voxels of another size.
        ClaimError: if the store holds something else, or is being written.
        StageError: if a block failed, e.g. since the network yields NaN; the status beside the store lists them.
    """
    ready = prepare(
        raw, model, options, product=product, mask=mask, device=device, gpus=gpus, workers=workers, cluster=cluster
    )
    source, loaded = ready.raw.volume, ready.loaded
    if product == "embedding" and not loaded.heads.embedding:
        raise ConfigError(f"{model} has no embedding to predict: train it with heads.embedding")
    if not is_multiple(options.block, storage.shard):
        raise ShapeError(f"predict.block {options.block} must be a multiple of the shard {storage.shard}")
    made_of = {
        **ready.made_of,
        **({} if product == "affinities" else {"product": product}),
        **({} if roi is None else {"roi": [list(roi.offset), list(roi.shape)]}),
        "storage": storage.model_dump(mode="json"),
    }
    if roi is not None and not source.roi.contains(roi):
        raise ShapeError(f"the region {roi} does not lie in {raw}, which is {source.roi}")
    inputs = ready.inputs
    with claim(manifest, "predict", made_of, inputs, volume=True, bucket=storage.remote, overwrite=overwrite) as held:
        create_volume(
            held.store,
            shape=source.shape,
            dtype=np.float16 if product == "embedding" else np.uint8,
            chunk=storage.chunk,
            shard=storage.shard,
            voxel_size=source.voxel_size or loaded.voxel_size,
            offset=source.offset,
            channels=loaded.heads.embedding if product == "embedding" else len(loaded.offsets),
            compress=False,
            attributes={} if product == "embedding" else {"offsets": [list(o) for o in loaded.offsets]},
        )
        tissue = None if ready.mask is None else ready.mask.store
        work = Work(ready.raw.store, tissue, roi, ready.weights, held.store)
        held.stats.update(voxels=source.roi.size, device=ready.made_of["device"], workers=ready.workers)
        block = Roi((0, 0, 0), options.block).intersect(source.roi)
        announced = ready.announced_mb(tiled(block, options.tile).grow(loaded.network.halo), block)
        function = partial(predict_block, work)
        run_predicted("predict", source.roi, options.block, function, held, ready, announced)


def predict_block(work: Work, block: Block, clock: Clock) -> bool:
    """Predict and write one block; return whether anything of it is wanted."""
    predict = worker_predictor(work.weights)
    source, out = open_volume(work.raw), open_volume(work.out)
    around = tiled(block.roi, predict.tile).grow(predict.halo)
    with clock("read"):
        wanted = _wanted(work, block, predict.tile)
        if not wanted:
            return False
        raw = read_reflected(source.read, source.roi, around)
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
        out.write(block.roi, values)
        out.sync(block.roi)
    return True


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
