"""Counts of a plan, against loops over all blocks and against files on disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.config import AgglomerateOptions, FragmentsOptions, StorageOptions
from kdseg.geometry import Roi, blocks
from kdseg.planning import sizes
from kdseg.planning.actual import METADATA
from kdseg.prediction.tiles import tiled
from kdseg.segmentation.fragments.block import halo_roi
from kdseg.volumes.volume import create_volume

extents = st.tuples(*[st.integers(1, 70)] * 3)
halos = st.tuples(*[st.integers(0, 9)] * 3)
cells = st.tuples(*[st.integers(9, 40)] * 3)


@settings(deadline=None)
@given(extents, cells, halos, cells)
def test_work_is_counted_as_a_loop_over_the_blocks_counts_it(shape, block, halo, tile):
    volume, options = Roi((0, 0, 0), shape), FragmentsOptions(block=block, halo=halo)
    read = [halo_roi(options, one.roi, volume) for one in blocks(volume, block)]
    assert sizes.block_count(shape, block) == len(read)
    assert sizes.halo_voxels(shape, options) == sum(one.size for one in read)
    assert sizes.halo_tiled_voxels(shape, options, tile) == sum(tiled(one, tile).size for one in read)
    assert sizes.tiled_voxels(shape, tile) == tiled(volume, tile).size


def test_sections_that_are_flooded_alone_read_no_halo_along_z():
    options = FragmentsOptions(block=(4, 8, 8), halo=(2, 2, 2), watershed={"method": "watershed", "per_section": True})
    assert sizes.halo_voxels((8, 8, 16), options) == 8 * 8 * (10 + 10)


@pytest.mark.parametrize(
    ("shape", "nodes"),
    [((32, 32, 32), 1), ((33, 32, 32), 2 + 1), ((96, 64, 32), 3 * 2 + 2 * 1 + 1)],
    ids=["one leaf", "two", "three levels"],
)
def test_a_tree_has_as_many_nodes_as_counted_by_hand(shape, nodes):
    assert sizes.node_count(shape, AgglomerateOptions(chunk=(32, 32, 32)), (16, 16, 16)) == nodes
    whole = AgglomerateOptions(engine="waterz", chunk=(32, 32, 32))
    assert sizes.node_count(shape, whole, (16, 16, 16)) == 1


@settings(max_examples=10, deadline=None)
@given(extents, st.integers(1, 3), st.sampled_from([np.uint8, np.float16]), st.booleans())
def test_uncompressed_bytes_are_those_on_disk(tmp_path_factory, shape, channels, dtype, zeros):
    path = tmp_path_factory.mktemp("volume") / "a.zarr"
    storage = StorageOptions(chunk=(8, 16, 16), shard=(16, 32, 32))
    how = {"chunk": storage.chunk, "shard": storage.shard, "channels": channels, "compress": False}
    volume = create_volume(path, shape=shape, dtype=dtype, voxel_size=(1.0, 1.0, 1.0), **how)
    for block in blocks(volume.roi, storage.shard):
        volume.write(block.roi, np.full((channels, *block.roi.shape), 0 if zeros else 1, dtype))
    files = [one for one in path.rglob("*") if one.is_file() and one.name != METADATA]
    expected = sum(one.stat().st_size for one in files)
    assert sizes.uncompressed_bytes(shape, channels, np.dtype(dtype).itemsize, storage) == expected
