"""From the network to fragments and edges without stored affinities: the same bytes as through them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from command import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import STORAGE, FragmentsOptions, columns_of, store, voxels
from pydantic import ValidationError
from toy_models import OFFSETS, TILE, save

from kdseg.config import AgglomerateOptions, EdgesOptions, PredictOptions, SegmentOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, PredictTask, SegmentTask
from kdseg.errors import ClaimError, ConfigError, MissingError, ShapeError
from kdseg.geometry import Block, Roi, Triple, blocks
from kdseg.prediction import affinities as computed
from kdseg.prediction import stage as predict
from kdseg.prediction.blocks import prepare
from kdseg.results.claims import clear
from kdseg.results.manifests import read
from kdseg.results.tables import read_table
from kdseg.running.attempt import Clock
from kdseg.segmentation.agglomeration import stage as agglomerate
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.fragments.block import checked_grid
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.graph.faces import cell_part, joined_edges, nearest_offsets
from kdseg.segmentation.graph.rag import block_edges
from kdseg.segmentation.segments import stage as segment
from kdseg.volumes.verify import repair, verify
from kdseg.volumes.volume import Volume, open_volume

SHAPE = (40, 70, 50)
OPTIONS = FragmentsOptions(
    block=(32, 64, 32), halo=(5, 8, 8), watershed=WatershedOptions(seed_distance=2), dust=2, premerge=0.2
)
PREDICT = PredictOptions(block=(32, 32, 32), tile=TILE)
EDGES: Triple = (64, 32, 32)
"""Neither a multiple nor a part of the blocks of fragments."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw data, a mask and a network; and what comes of them through stored affinities."""
    path = tmp_path_factory.mktemp("fused")
    rng = np.random.default_rng(0)
    store(path / "raw.json", rng.integers(0, 256, SHAPE, dtype=np.uint8))
    mask = np.ones(SHAPE, np.uint8)
    mask[10:20, 30:50] = 0
    store(path / "mask.json", mask)
    save(path / "model.json")
    out = path / "stored"
    predict.run(
        PredictTask(
            raw=path / "raw.json",
            model=path / "model.json",
            manifest=out / "affinities.json",
            options=PREDICT,
            storage=STORAGE,
            device="cpu",
        )
    )
    fragments.run(
        FragmentsTask(
            affinities=out / "affinities.json",
            manifest=out / "fragments.json",
            options=OPTIONS,
            storage=STORAGE,
            mask=path / "mask.json",
        )
    )
    edges.run(
        EdgesTask(
            affinities=out / "affinities.json",
            fragments=out / "fragments.json",
            manifest=out / "edges.json",
            options=EdgesOptions(block=EDGES),
        )
    )
    return path


def fused(folder: Path, name: str, workers: int = 1, **changes: Any) -> Path:
    inputs = {"raw": folder / "raw.json", "model": folder / changes.pop("model", "model.json")}
    manifest = folder / name / "fragments.json"
    options = {"mask": folder / "mask.json", "device": "cpu", "workers": workers, **changes}
    fragments.run(
        FragmentsTask(**inputs, manifest=manifest, predict=PREDICT, options=OPTIONS, storage=STORAGE, **options)
    )
    return manifest


@pytest.mark.slow
def test_damaged_tables_are_made_again_by_their_blocks(folder: Path) -> None:
    """The cells of tables are those of shards, half as high and wide as the blocks that make them."""
    manifest = fused(folder, "damaged")
    before = files(manifest.with_suffix(".tables"))
    assert list(verify(manifest, 1)) == [(manifest, [])]
    (manifest.with_suffix(".tables") / "1_2_1.npz").write_bytes(b"damaged")
    (manifest.with_suffix(".tables") / "0_1_0.npz").unlink()
    ((_, faults),) = verify(manifest, 1)
    assert len(faults) == 2
    repair(manifest, faults)
    fused(folder, "damaged")
    assert files(manifest.with_suffix(".tables")) == before
    status = json.loads(manifest.with_name("fragments.status.json").read_text())
    assert status["blocks"]["done"] == 2


def files(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def expect_the_same_bytes(folder: Path, name: str, workers: int = 1) -> None:
    found, stored = folder / name, folder / "stored"
    edges.run(
        EdgesTask(
            affinities=None,
            fragments=found / "fragments.json",
            manifest=found / "edges.json",
            options=EdgesOptions(block=EDGES),
            workers=workers,
        )
    )
    assert len(np.unique(voxels(found / "fragments.json"))) > 100
    ours, theirs = files(found / "fragments.zarr"), files(stored / "fragments.zarr")
    assert ours.keys() == theirs.keys()
    assert all(ours[key] == theirs[key] for key in theirs)
    assert columns_of(found / "edges.tables") == columns_of(stored / "edges.tables")
    assert not (found / "affinities.zarr").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_fragments_and_edges_are_those_of_stored_affinities(folder: Path, workers: int) -> None:
    name = f"workers{workers}"
    stats = read(fused(folder, name, workers)).stats
    expect_the_same_bytes(folder, name, workers)
    assert stats["times_predicted"] > 1
    assert stats["mvox_per_s"] > 0
    rows = sum(len(read_table(path)["u"]) for path in (folder / name / "edges.tables").iterdir())
    assert rows > 500


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(folder: Path) -> None:
    program = "import sys; from pathlib import Path; import test_computed as t; t.fused(Path(sys.argv[1]), 'killed')"
    path = os.pathsep.join(sys.path)
    child = subprocess.Popen([sys.executable, "-c", program, str(folder)], env={**os.environ, "PYTHONPATH": path})
    marks = folder / "killed" / ".fragments" / "32x64x32" / "fragments.txt"
    while not (marks.exists() and "\n" in marks.read_text()):
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (folder / "killed" / "fragments.json").exists()
    deadline = time.monotonic() + 60
    while not (folder / "killed" / "fragments.json").exists():
        try:
            fused(folder, "killed", workers=2)
        except ClaimError:  # the workers of the killed run end by themselves
            assert time.monotonic() < deadline
            time.sleep(0.2)
    expect_the_same_bytes(folder, "killed")


@pytest.mark.slow
def test_the_neurons_follow_without_affinities(folder: Path) -> None:
    found = []
    for name, affinities in (("neurons", None), ("stored", folder / "stored" / "affinities.json")):
        out = folder / name
        if affinities is None:
            fused(folder, name)
            edges.run(
                EdgesTask(
                    affinities=None,
                    fragments=out / "fragments.json",
                    manifest=out / "edges.json",
                    options=EdgesOptions(block=EDGES),
                )
            )
        inputs = {n: out / f"{n}.json" for n in ("fragments", "edges")}
        tree, chunk = out / "agglomeration.json", AgglomerateOptions(chunk=(64, 64, 32))
        agglomerate.run(AgglomerateTask(affinities=affinities, **inputs, manifest=tree, options=chunk))
        how = SegmentOptions(block=(32, 32, 32), threshold=0.5)
        segment.run(
            SegmentTask(**inputs, agglomeration=tree, manifest=out / "segmentation.json", options=how, storage=STORAGE)
        )
        found.append(voxels(out / "segmentation.json"))
    assert np.array_equal(*found)
    one = AgglomerateOptions(engine="waterz")
    with pytest.raises(ConfigError, match="waterz needs the affinities of the whole volume"):
        agglomerate.run(AgglomerateTask(**inputs, manifest=folder / "x.json", options=one))


def _threads_of_reading(function: Callable[[Block, Clock], bool], block: Block) -> list[int]:
    """Do a block in a fresh process; return how many threads decode whenever a volume is opened there."""
    found = []

    def noted(path: Path) -> Volume:
        found.append(zarr.config.get("threading.max_workers"))
        return open_volume(path)

    for module in (fragments, computed):
        module.open_volume = noted  # type: ignore[attr-defined]
    function(block, Clock())
    return found


@pytest.mark.slow
def test_the_mask_is_decoded_in_one_thread_too(folder: Path) -> None:
    fused(folder, "threads")
    inputs = {"raw": folder / "raw.json", "model": folder / "model.json", "manifest": folder / "x.json"}
    ready = prepare(PredictTask(**inputs, options=PREDICT, device="cpu"))
    raw, mask, out = (read(folder / f"{name}.json").result for name in ("raw", "mask", "threads/fragments"))
    grid, voxels_of = checked_grid(SHAPE, OPTIONS.block), Roi((0, 0, 0), SHAPE)
    source = computed.ComputedAffinities(raw, ready.weights)
    places = ready.loaded.voxel_size, voxels_of, out, STORAGE.shard, False
    work = fragments.Work(source, mask, ready.loaded.offsets, OPTIONS, grid, *places)
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        block = next(blocks(voxels_of, OPTIONS.block))
        threads = fresh.submit(_threads_of_reading, partial(fragments.fragment_block, work), block).result()
    assert len(threads) == 3
    assert set(threads) == {1}


def test_refusals(folder: Path) -> None:
    made = folder / "stored" / "fragments.json"
    with pytest.raises(MissingError, match="keeps nothing of its affinities: name them"):
        edges.run(
            EdgesTask(affinities=None, fragments=made, manifest=folder / "x.json", options=EdgesOptions(block=EDGES))
        )
    one = fused(folder, "refused")
    for option in ("long_range", "histograms"):
        with pytest.raises(ConfigError, match="need stored affinities"):
            edges.run(
                EdgesTask(
                    affinities=None,
                    fragments=one,
                    manifest=folder / "x.json",
                    options=EdgesOptions(block=EDGES, **{option: True}),
                )
            )  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"edges\.block \(32, 32, 16\) must be a multiple of the shard \(32, 32, 32\)"):
        edges.run(
            EdgesTask(
                affinities=None, fragments=one, manifest=folder / "x.json", options=EdgesOptions(block=(32, 32, 16))
            )
        )
    with pytest.raises(ClaimError, match=r"inputs\.mask was"):
        fused(folder, "refused", mask=None)
    store(folder / "small.json", np.ones((40, 70, 49), np.uint8))
    with pytest.raises(ShapeError, match="on its grid"):
        fused(folder, "small", mask=folder / "small.json")
    with pytest.raises(ConfigError, match="first three offsets must be one-voxel steps"):
        nearest_offsets((OFFSETS[1], OFFSETS[0], OFFSETS[2]))
    assert any(path.name == "fragments.tables" for path in clear(one))
    assert not (folder / "refused" / "fragments.tables").exists()


@pytest.mark.parametrize(
    "given", [{}, {"raw": "r"}, {"model": "m"}, {"affinities": "a", "model": "m"}, {"affinities": "a", "raw": "r"}]
)
def test_affinities_have_one_source(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="expected either affinities, or raw and model"):
        FragmentsTask.model_validate({"manifest": "f.json", **given})
    done = invoke("fragments", "--manifest", "f.json", *(part for k, v in given.items() for part in (f"--{k}", v)))
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "expected either affinities, or raw and model" in done.output


def test_stored_affinities_need_no_torch() -> None:
    program = "import sys; import kdseg.segmentation.fragments.stage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_the_command(folder: Path) -> None:
    out = folder / "command"
    manifests = {"raw": folder / "raw.json", "model": folder / "model.json", "mask": folder / "mask.json"}
    sections = {"predict": PREDICT, "options": OPTIONS, "storage": STORAGE}
    arguments = ["fragments", "--manifest", str(out / "fragments.json"), "--device", "cpu"]
    arguments += [part for name, path in manifests.items() for part in (f"--{name}", str(path))]
    arguments += [part for name, one in sections.items() for part in (f"--{name}", one.model_dump_json())]
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    section = EdgesOptions(block=EDGES).model_dump_json()
    places = ["--fragments", str(out / "fragments.json"), "--manifest", str(out / "edges.json")]
    done = invoke("edges", *places, "--options", section)
    assert done.exit_code == 0, done.output
    assert columns_of(read(out / "edges.json").result) == columns_of(folder / "stored" / "edges.tables")


Extent = st.tuples(*[st.integers(1, 9)] * 3)
Times = st.tuples(*[st.integers(1, 3)] * 3)


@settings(deadline=None, max_examples=100)
@given(
    Extent,
    st.tuples(*[st.integers(1, 4)] * 3),
    Times,
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.booleans(),
    st.integers(0),
)
def test_cells_add_up_to_blocks(
    shape: Triple, unit: Triple, times: Triple, signs: Triple, flat: bool, seed: int
) -> None:
    """For any shape, cell and block, and for steps of either sign, rows of contact 0 included; and within sections."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 4, shape).astype(np.uint64)
    affinities = rng.integers(0, 256, (3 - flat, *shape), dtype=np.uint8)
    offsets: Any = tuple(tuple(sign * (a == b) for b in range(3)) for a, sign in enumerate(signs))[flat:]
    assert nearest_offsets(offsets) == offsets
    volume = Roi((0, 0, 0), shape)
    parts = {
        cell.index: cell_part(ids[cell.roi.slices()], affinities[(slice(3), *cell.roi.slices())], offsets)
        for cell in blocks(volume, unit)
    }
    for block in blocks(volume, tuple(u * t for u, t in zip(unit, times, strict=True))):  # type: ignore[arg-type]
        read_roi = block.roi.grow((1, 1, 1)).intersect(volume)
        near, links = ids[read_roi.slices()], affinities[(slice(3), *read_roi.slices())]
        expected = block_edges(near, links, offsets, block.roi.slices(read_roi))
        found = joined_edges(near, read_roi, block.roi, unit, offsets, parts.__getitem__)
        for name in expected._fields:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
