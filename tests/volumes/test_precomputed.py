"""Precomputed volumes that tensorstore wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from toy_volumes import cells, write_volume

from kdseg.config.questions import EvaluateTask, RunlengthTask
from kdseg.errors import ConfigError, MissingError, ShapeError, UnreadableError
from kdseg.evaluation import runlength
from kdseg.evaluation.evaluate import run
from kdseg.geometry import Roi
from kdseg.volumes import precomputed
from kdseg.volumes.sources import open_source, source_path

tensorstore = pytest.importorskip("tensorstore")
SHAPE = (10, 24, 20)
SEGMENTS = cells(SHAPE, 9)[1] + np.uint64(2**63)
NM = (40.0, 6.0, 4.0)
SHARDS = {
    "@type": "neuroglancer_uint64_sharded_v1",
    "preshift_bits": 1,
    "minishard_bits": 1,
    "shard_bits": 1,
    "hash": "murmurhash3_x86_128",
    "data_encoding": "gzip",
}


def write(folder: Path, data: NDArray[Any] = SEGMENTS, encoding: str = "raw", **scale: Any) -> str:
    """Write (z, y, x) as one more scale."""
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 4]
    scale = {"resolution": NM[::-1], "voxel_offset": [10, 20, 30], **scale}
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "multiscale_metadata": {
            "type": "image" if encoding == "jpeg" else "segmentation",
            "data_type": str(data.dtype),
            "num_channels": 1,
        },
        "scale_metadata": {"size": data.shape[::-1], "encoding": encoding, "chunk_size": [8, 9, 4], **scale},
    }
    tensorstore.open(spec, create=True, open=True).result()[..., 0].write(data.T).result()
    return str(folder)


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
@pytest.mark.parametrize("more", [{}, {"sharding": SHARDS}], ids=["files", "shards"])
def test_reads_as_it_was_written(tmp_path: Path, encoding: str, more: dict[str, Any]) -> None:
    source = open_source(write(tmp_path / "a", encoding=encoding, **more))
    assert (source.data.shape, source.data.dtype) == (SHAPE, np.uint64)
    assert (source.voxel_size, source.offset, source.placed) == (NM, (1200.0, 120.0, 40.0), True)
    assert source.unit == (4, 9, 8)
    np.testing.assert_array_equal(source.read(source.roi), SEGMENTS)
    part = Roi((3, 5, 7), (6, 15, 8))
    np.testing.assert_array_equal(source.read(part), SEGMENTS[part.slices()])


def test_images(tmp_path: Path) -> None:
    raw = cells(SHAPE, 9)[0]
    source = open_source(write(tmp_path / "raw", raw))
    np.testing.assert_array_equal(source.read(source.roi), raw)
    smooth = np.broadcast_to(np.arange(20, dtype=np.uint8) * np.uint8(5), SHAPE)
    found = open_source(write(tmp_path / "jpeg", smooth, "jpeg"))
    assert np.abs(found.read(found.roi).astype(int) - smooth).max() <= 8


def test_scales_have_keys(tmp_path: Path) -> None:
    write(tmp_path / "a")
    address = write(tmp_path / "a", SEGMENTS[:, ::2, ::2], resolution=[8, 12, 40], voxel_offset=[5, 10, 30])
    assert open_source(address).data.shape == SHAPE
    coarse = open_source(f"{address}:8_12_40")
    assert (coarse.voxel_size, coarse.offset) == ((40.0, 12.0, 8.0), (1200.0, 120.0, 40.0))
    np.testing.assert_array_equal(coarse.read(coarse.roi), SEGMENTS[:, ::2, ::2])
    assert source_path(f"{address}:8_12_40") == source_path(address) == tmp_path / "a"
    with pytest.raises(MissingError, match=r"no scale '9_9_9'.*\['4_6_40', '8_12_40'\]"):
        open_source(f"{address}:9_9_9")


def test_only_what_is_asked_for_is_read_and_damage_is_named(tmp_path: Path) -> None:
    address = write(tmp_path / "a", encoding="compressed_segmentation")
    chunk = tmp_path / "a" / "4_6_40" / "10-18_20-29_30-34"
    chunk.write_bytes(chunk.read_bytes()[:9])
    source = open_source(address)
    rest = Roi((4, 0, 0), (6, 24, 20))
    np.testing.assert_array_equal(source.read(rest), SEGMENTS[4:])
    with pytest.raises(UnreadableError, match=r"a:4_6_40.*damaged"):
        source.read(source.roi)


def test_bad_input_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "a" / "info"
    address = write(tmp_path / "a")
    good = json.loads(info.read_text())
    for wrong in ("{", "{}", json.dumps({**good, "scales": []}), json.dumps({**good, "scales": [{"key": "a"}]})):
        info.write_text(wrong)
        with pytest.raises(UnreadableError, match="info is damaged or not that of a precomputed volume"):
            open_source(address)
    info.write_text(json.dumps({**good, "num_channels": 3}))
    with pytest.raises(ShapeError, match="3 channels"):
        open_source(address)
    info.write_text(json.dumps(good))
    with pytest.raises(ConfigError, match="is not a path"):
        open_source("precomputed://gs://bucket/segmentation")
    monkeypatch.setattr(precomputed, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'kdseg\[precomputed\]'"):
        open_source(address)


def test_chunks_that_would_be_read_as_zeros_are_refused(tmp_path: Path) -> None:
    address = write(tmp_path / "a")
    folder = next(path for path in (tmp_path / "a").iterdir() if path.is_dir())
    for chunk in list(folder.iterdir()):
        chunk.rename(chunk.with_name(f"{chunk.name}.gz"))
    with pytest.raises(UnreadableError, match=r"packed one by one, e\.g\. .*\.gz, as CloudVolume"):
        open_source(address)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match="with the chunks of this scale"):
        open_source(address)


def test_run_lengths_take_its_offset_for_a_corner(tmp_path: Path) -> None:
    """As neuroglancer: a node at 10.9 voxels is in voxel 10."""
    ids = np.zeros((4, 4, 4), np.uint64)
    ids[1, 2] = 5
    address = write(tmp_path / "a", ids, voxel_offset=[0, 0, 10], resolution=[4, 4, 40])
    nodes = [f"1,{x},{x - 1},{11.9 * 40},{2.1 * 4},{(x + 0.9) * 4}" for x in range(4)]
    (tmp_path / "truth.csv").write_text("\n".join(["neuron,node,parent,z,y,x", *nodes]))
    assert runlength.run(RunlengthTask(segmentation=address, skeletons=tmp_path / "truth.csv"))["nerl"] == 1


def test_is_scored_by_several_workers(tmp_path: Path) -> None:
    """In a process of its own: workers fork, which tensorstore's threads would not survive."""
    labels = cells(SHAPE, 14, seed=1)[1]
    write(tmp_path / "a", encoding="compressed_segmentation")
    write_volume(tmp_path / "labels.zarr", labels, NM, (1200.0, 120.0, 40.0))
    write_volume(tmp_path / "a.zarr", SEGMENTS, NM, (1200.0, 120.0, 40.0))
    command = ["evaluate", "a", "labels.zarr", "--block", "5", "9", "9", "--workers", "2", "--json", "a.json"]
    subprocess.run([sys.executable, "-m", "kdseg", *command], cwd=tmp_path, check=True, timeout=300)
    found = json.loads((tmp_path / "a.json").read_text())
    expected = run(EvaluateTask(segmentation=str(tmp_path / "a.zarr"), labels=str(tmp_path / "labels.zarr")))
    assert found["scores"] == expected["scores"]
