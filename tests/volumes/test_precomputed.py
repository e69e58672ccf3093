"""Precomputed volumes that tensorstore wrote."""

from __future__ import annotations

import gzip
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy_volumes import cells, write_volume

from kdseg.config.questions import EvaluateTask, RunlengthTask
from kdseg.errors import ConfigError, MissingError, ShapeError, UnreadableError
from kdseg.evaluation import runlength
from kdseg.evaluation.evaluate import run
from kdseg.geometry import Roi, blocks
from kdseg.volumes import precomputed, precomputed_shards
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
    assert (source.lossy, found.lossy) == (False, True)  # no ids are taken from it


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
    for wrong in (
        "{",
        "[" * 100_000,
        "{}",
        json.dumps({**good, "scales": []}),
        json.dumps({**good, "scales": [{"key": "a"}]}),
    ):
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


def sharded(base: Path, sharding: dict[str, Any]) -> Any:
    """Open shards by the numbers of their chunks."""
    spec = {"driver": "neuroglancer_uint64_sharded", "base": f"file://{base}/", "metadata": sharding}
    return tensorstore.KvStore.open(spec).result()


def with_a_bomb(folder: Path, sharding: dict[str, Any], which: int, bomb: bytes, data: NDArray[Any] = SEGMENTS) -> str:
    """Write shards, the chunk at one place among the numbers of which is replaced."""
    address = write(folder, data, key="k", sharding=sharding)
    chunks = sharded(folder / "k", sharding)
    packed = {key: gzip.compress(chunks.read(key).result().value) for key in sorted(chunks.list().result())}
    packed[sorted(packed)[which % len(packed)]] = bomb
    shutil.rmtree(folder / "k")
    (folder / "k").mkdir()
    out = sharded(folder / "k", {**sharding, "data_encoding": "raw"})
    for key, value in packed.items():
        out.write(key, value).result()
    return address


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_chunk_that_unpacks_to_more_is_refused_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sharding = {
        **SHARDS,
        "hash": data.draw(st.sampled_from(["identity", "murmurhash3_x86_128"])),
        "preshift_bits": data.draw(st.integers(0, 4)),
        "minishard_bits": data.draw(st.integers(0, 3)),
        "shard_bits": data.draw(st.integers(0, 5)),
        "minishard_index_encoding": data.draw(st.sampled_from(["raw", "gzip"])),
    }
    shape = tuple(data.draw(st.integers(1, 5 * unit)) for unit in (4, 9, 8))
    voxels = np.random.default_rng(0).integers(1, 2**60, shape, np.uint64)
    bomb = gzip.compress(bytes(10**5))
    folder = tmp_path_factory.mktemp("bomb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precomputed_shards, "SPARE", 0 if sharding["minishard_index_encoding"] == "raw" else 2**12)
        source = open_source(with_a_bomb(folder, sharding, data.draw(st.integers(0, 200)), bomb, voxels))
        refused = 0
        for block in blocks(source.roi, (4, 9, 8)):
            try:
                assert (source.read(block.roi) == voxels[block.roi.slices()]).all()
            except UnreadableError as error:
                assert f"a chunk at {block.index} that unpacks to more than 2304 bytes" in str(error)  # noqa: PT017
                refused += 1
    assert refused == 1


MUCH = 2**30
"""More than the 256 MB in excess that are not looked for."""


@pytest.mark.slow
def test_a_chunk_of_a_shard_does_not_take_the_memory_that_it_asks_for(tmp_path: Path) -> None:
    source = open_source(with_a_bomb(tmp_path / "a", SHARDS, 3, gzip.compress(bytes(MUCH))))
    source.read(Roi((0, 0, 0), (1, 1, 1)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = r"\.shard has a chunk at .* unpacks to more than 2304 bytes: it is damaged"
    with pytest.raises(UnreadableError, match=said):
        source.read(source.roi)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MUCH / 8 / 1024


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 2**62, 2**64 - 8])
def test_an_index_of_a_shard_does_not_take_the_memory_that_it_asks_for(tmp_path: Path, start: int) -> None:
    sharding = {**SHARDS, "minishard_bits": 0, "shard_bits": 0, "minishard_index_encoding": "gzip"}
    source = open_source(write(tmp_path / "a", sharding=sharding, key="k"))
    bomb = gzip.compress(bytes(MUCH))
    (shard,) = (tmp_path / "a" / "k").iterdir()
    end = (start + len(bomb)) % 2**64
    shard.write_bytes(start.to_bytes(8, "little") + end.to_bytes(8, "little") + bomb)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableError, match=r"an index of minishard 0 that unpacks to more|the volume is damaged"):
        source.read(source.roi)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MUCH / 8 / 1024


@pytest.mark.parametrize("cut", [0, 5, 20])
def test_a_shard_that_was_cut_is_refused(tmp_path: Path, cut: int) -> None:
    sharding = {**SHARDS, "minishard_bits": 0, "shard_bits": 0, "minishard_index_encoding": "gzip"}
    source = open_source(write(tmp_path / "a", sharding=sharding, key="k"))
    (shard,) = (tmp_path / "a" / "k").iterdir()
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(UnreadableError, match="the volume is damaged"):
        source.read(source.roi)


def test_info_with_sharding_of_another_kind(tmp_path: Path) -> None:
    write(tmp_path / "a", key="k", sharding=SHARDS)
    info = tmp_path / "a" / "info"
    info.write_text(info.read_text().replace("murmurhash3_x86_128", "sha1"))
    with pytest.raises(UnreadableError, match="not that of a precomputed volume"):
        open_source(str(tmp_path / "a"))
