"""Blocks of an earlier result: taken only where a run from scratch makes the same; all bytes are those of one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from pipeline import STORAGE, store, voxels
from toy_models import TILE, save
from workflow import snakemake

from kdseg.config import FragmentsOptions, PredictOptions, validate
from kdseg.config.networks import HeadOptions
from kdseg.config.tasks import FragmentsTask, PredictTask
from kdseg.errors import ClaimError, ConfigError
from kdseg.geometry import Roi, blocks, grid_shape
from kdseg.networks.checkpoint import load_model
from kdseg.networks.weights import weights
from kdseg.prediction import stage as predict
from kdseg.results.claims import clear
from kdseg.results.manifests import read, read_json
from kdseg.results.sealed import write_sealed
from kdseg.running import runner
from kdseg.running.progress import FinishedBlocks
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.fragments.block import renumbered, unique_ids
from kdseg.volumes.inputs import open_input
from kdseg.volumes.reuse import Reuse, earlier

BLOCK = (32, 32, 32)
HALO = (3, 4, 5)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model") / "model.json", heads=HeadOptions(embedding=2))


@pytest.fixture(scope="module", autouse=True)
def engine():
    """Have all blocks done by this process: Dask takes seconds to start."""

    @contextmanager
    def here(*_):
        yield runner._in_this_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "engine", here)
        yield


def raw_data(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def run_predict(folder, model, reuse=None, tile=TILE, name="affinities", **more):
    mask = folder / "mask.json"
    task = PredictTask(
        raw=folder / "raw.json",
        model=model,
        mask=mask if mask.exists() else None,
        manifest=folder / "net" / f"{name}.json",
        options=PredictOptions(block=BLOCK, tile=tile),
        storage=STORAGE,
        device="cpu",
        reuse=None if reuse is None else reuse / "net" / f"{name}.json",
        **more,
    )
    predict.run(task)
    return task.manifest


def run_fragments(folder, reuse=None, model=None, dust=2, **more):
    """Make fragments of stored affinities, or with a model of those that it computes."""
    mask = folder / "mask.json"
    computed = {"raw": folder / "raw.json", "model": model, "predict": PredictOptions(tile=TILE), "device": "cpu"}
    task = FragmentsTask(
        **({"affinities": folder / "net" / "affinities.json"} if model is None else computed),
        mask=mask if mask.exists() else None,
        manifest=folder / "net" / "fragments.json",
        options=FragmentsOptions(block=BLOCK, halo=HALO, dust=dust),
        storage=STORAGE,
        reuse=None if reuse is None else reuse / "net" / "fragments.json",
        **more,
    )
    fragments.run(task)
    return task.manifest


def made(manifest):
    """Return the bytes of all files of a result."""
    found = [path for path in manifest.parent.rglob("*") if path.is_file()]
    parts = (manifest.with_suffix(ending).name for ending in (".zarr", ".tables", ".checksums.npz"))
    begins = tuple(str(manifest.with_name(part)) for part in parts)
    return {str(p.relative_to(manifest.parent)): p.read_bytes() for p in found if str(p).startswith(begins)}


def reused(manifest):
    return read(manifest).stats["blocks"]["reused"]


def mirrored(raw, roi):
    """Return a region of raw data that goes on beyond its borders as in a mirror."""
    axes = []
    for n, o, e in zip(raw.shape, roi.offset, roi.end, strict=True):
        there = np.abs(np.arange(o, e)) % max(2 * n - 2, 1)
        axes.append(np.minimum(there, 2 * n - 2 - there))
    return raw[np.ix_(*axes)]


def alike(block, was, now, region, read_voxels):
    """Return whether a block lies in both volumes, and they are equal in a region around it."""
    inside = all(e <= n for e, n in zip(block.roi.end, was.shape[-3:], strict=True))
    return inside and np.array_equal(read_voxels(was, region), read_voxels(now, region))


def reusable_predictions(was, now, halo):
    """Count the blocks whose network would see the same raw data; all blocks are whole tiles."""
    volume = Roi((0, 0, 0), now.shape)
    whole = [Roi(tuple(i * n for i, n in zip(b.index, BLOCK, strict=True)), BLOCK) for b in blocks(volume, BLOCK)]
    pairs = zip(blocks(volume, BLOCK), whole, strict=True)
    # of the last blocks the tiles that the volume ends in are computed whole
    return sum(alike(b, was, now, tiled_end(b, roi).grow(halo), mirrored) for b, roi in pairs)


def tiled_end(block, whole):
    ends = [-(-e // t) * t for e, t in zip(block.roi.end, TILE, strict=True)]
    return Roi(whole.offset, tuple(e - o for e, o in zip(ends, whole.offset, strict=True)))


def reusable_fragments(was, now):
    """Count the blocks with equal affinities up to the halo, which the volume cuts alike."""
    volumes = [Roi((0, 0, 0), array.shape[1:]) for array in (was, now)]
    count = 0
    for block in blocks(volumes[1], BLOCK):
        before, after = (block.roi.grow(HALO).intersect(volume) for volume in volumes)
        inside = all(e <= n for e, n in zip(block.roi.end, was.shape[1:], strict=True))
        same = inside and before == after
        count += same and bool((was[(..., *before.slices())][:3] == now[(..., *after.slices())][:3]).all())
    return count


CHANGES = st.fixed_dictionaries(
    {
        "axis": st.integers(0, 2),
        "length": st.sampled_from([64, 75, 96]),
        "more": st.sampled_from([-20, 0, 5, 32, 50]),
        "spot": st.none() | st.tuples(st.integers(0, 95), st.integers(0, 31), st.integers(0, 31)),
        "fused": st.booleans(),
        "masked": st.booleans(),
        "mask_spot": st.booleans(),
    }
)


@settings(max_examples=10, deadline=None)
@given(change=CHANGES)
def test_all_bytes_are_those_of_a_run_from_scratch(model, change):
    """A volume that grows or shrinks along any axis, is changed at a voxel, or has another mask."""
    axis = change["axis"]
    shape, longer = [33, 32, 34], [33, 32, 34]
    shape[axis], longer[axis] = change["length"], change["length"] + change["more"]
    whole = raw_data(np.maximum(shape, longer))
    was, now = whole[tuple(map(slice, shape))], whole[tuple(map(slice, longer))].copy()
    if change["spot"] is not None:
        place = list(change["spot"])
        place[0], place[axis] = place[axis], place[0]
        now[tuple(min(p, n - 1) for p, n in zip(place, longer, strict=True))] ^= 128
    with tempfile.TemporaryDirectory() as base:
        old, new, scratch = (Path(base) / name for name in ("old", "new", "scratch"))
        for folder, raw in ((old, was), (new, now), (scratch, now)):
            store(folder / "raw.json", np.ascontiguousarray(raw))
            if change["masked"]:
                mask = np.ones(raw.shape, np.uint8)
                mask[:20, :20, :20] = folder == old and change["mask_spot"]
                store(folder / "mask.json", mask)
        results = []
        for folder, earlier in ((old, None), (new, old), (scratch, None)):
            results = [] if change["fused"] else [run_predict(folder, model, earlier)]
            results.append(run_fragments(folder, earlier, model=model if change["fused"] else None))
            if folder == new:
                kept = results
        for one, other in zip(kept, results, strict=True):
            assert made(one) == made(other)
            assert read(one).fingerprint == read(other).fingerprint
            assert reused(other) == 0
        if not change["masked"]:
            total = np.prod(grid_shape(now.shape, BLOCK))
            halo = load_model(weights(model)).network.halo
            if change["fused"]:
                assert reused(kept[0]) <= reusable_predictions(was, now, halo)
            else:
                affinities = voxels(old / "net" / "affinities.json"), voxels(new / "net" / "affinities.json")
                assert reused(kept[0]) == reusable_predictions(was, now, halo)
                assert reused(kept[1]) == reusable_fragments(*affinities)
            if change["more"] == 0 and change["spot"] is None:
                assert [reused(one) for one in kept] == [total] * len(kept)


SHAPE, LONGER = (96, 32, 32), (128, 32, 32)


@pytest.fixture(scope="module")
def grown(tmp_path_factory, model):
    """An old volume with its results, and what is made of a longer one from scratch."""
    base, raw = tmp_path_factory.mktemp("grown"), raw_data(LONGER)
    for name, end in (("old", SHAPE[0]), ("scratch", LONGER[0])):
        store(base / name / "raw.json", np.ascontiguousarray(raw[:end]))
        run_predict(base / name, model)
        run_fragments(base / name)
    return base


@pytest.fixture
def folders(grown, tmp_path):
    """A copy of the old results, and the longer volume without results."""
    shutil.copytree(grown / "old", tmp_path / "old")
    store(tmp_path / "new" / "raw.json", raw_data(LONGER))
    return tmp_path / "old", tmp_path / "new", grown / "scratch"


def expect_made(new, scratch, *names):
    for name in names:
        assert made(new / "net" / f"{name}.json") == made(scratch / "net" / f"{name}.json")


def test_embeddings_are_reused_too(folders, model):
    old, new, scratch = folders
    for folder in (old, scratch):
        run_predict(folder, model, product="embedding", name="embedding")
    assert reused(run_predict(new, model, old, product="embedding", name="embedding")) > 0
    expect_made(new, scratch, "embedding")


def test_of_other_options_or_weights_nothing_is_reused_and_the_log_says_so_once(folders, model, tmp_path, caplog):
    old, new, _ = folders
    run_predict(new, model)
    assert reused(run_fragments(new, old, dust=5)) == 0
    assert said(caplog) == [f"fragments: nothing is reused: {old}/net/fragments.json was made of something else: "
                            "options.dust was 2, is 5"]  # fmt: skip
    caplog.clear()
    other = save(tmp_path / "other" / "model.json")
    manifest = run_predict(new, other, old, name="affinities", overwrite=True)
    assert reused(manifest) == 0
    assert "inputs.model was" in said(caplog)[-1]
    caplog.clear()
    assert reused(run_predict(new, model, old, tile=(32, 32, 32), overwrite=True)) == 0
    assert "options.tile was [16, 16, 16], is [32, 32, 32]" in said(caplog)[-1]


def said(caplog):
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING" and "reused" in one.getMessage()]


@pytest.mark.parametrize(
    "what", ["unfinished", "no volume", "damaged manifest", "no raw", "other raw", "raw again", "itself"]
)
def test_of_results_that_are_not_whole_nothing_is_reused(folders, model, what, caplog):
    old, new, scratch = folders
    manifest = old / "net" / "affinities.json"
    if what == "unfinished":
        manifest.unlink()
    elif what == "no volume":
        shutil.rmtree(manifest.with_suffix(".zarr"))
    elif what == "damaged manifest":
        manifest.write_text(manifest.read_text().replace('"predict"', '"Predict"'))
    elif what == "no raw":
        (old / "raw.json").unlink()
    elif what == "other raw":
        clear(old / "raw.json")
        store(old / "raw.json", raw_data(SHAPE, seed=1))
    elif what == "raw again":  # of the same options and source, whose voxels are others: of a bucket nobody can tell
        before = read_json(old / "raw.json")["fingerprint"]
        clear(old / "raw.json")
        store(old / "raw.json", raw_data(LONGER)[: SHAPE[0]] // 2)
        again = {"fingerprint": before, "run": "another", "finished": "9999-01-01T00:00:00+00:00"}
        write_sealed(old / "raw.json", {**read_json(old / "raw.json"), **again})
    assert reused(run_predict(new, model, new if what == "itself" else old)) == 0
    (message,) = said(caplog)
    assert message.startswith("predict: nothing is reused: ")
    expect_made(new, scratch, "affinities")


def test_a_damaged_block_is_made_again_with_a_word(folders, model, caplog):
    old, new, scratch = folders
    (_, shard), *_ = open_input(old / "net" / "affinities.json").volume.files(Roi((0, 0, 0), BLOCK))
    damaged = bytearray(shard.read_bytes())
    damaged[1000] ^= 1
    shard.write_bytes(damaged)
    manifest = run_predict(new, model, old)
    assert 0 < reused(manifest) < reusable_predictions(raw_data(SHAPE), raw_data(LONGER), halo_of(model))
    assert "is made, since the earlier one cannot be reused" in said(caplog)[0]
    expect_made(new, scratch, "affinities")


def halo_of(model):
    return load_model(weights(model)).network.halo


def test_results_that_are_made_again_meanwhile_are_not_reused(folders, model, caplog):
    manifest = run_predict(folders[1], model)
    runs = {path: read(path).run for path in (manifest, folders[1] / "raw.json")}
    reuse = Reuse(manifest, runs, 1, 2, lambda *_: iter(["alike"]), lambda *_: 7, lambda *_: b"")
    block = next(blocks(Roi((0, 0, 0), LONGER), BLOCK))
    for path in runs:
        assert reuse.block(block) == 7
        redone = replace(reuse, runs={**runs, path: f"not that of {path.stem}"})
        assert redone.block(block) is None
        assert f"{path} was made again meanwhile" in caplog.messages[-1]
        told = len(caplog.messages)
        assert redone.block(block) is None
        assert len(caplog.messages) == told  # said once, not of each block


def test_the_inputs_of_an_earlier_result_are_pinned_too(folders, model):
    old, new, _ = folders
    made = read(old / "net" / "affinities.json")
    task = PredictTask(raw=new / "raw.json", model=model, manifest=new / "net" / "affinities.json", reuse=made.path)
    found = earlier(task, "predict", made.options, made.inputs, {"raw": task.raw, "mask": None})
    assert found.runs == {made.path: made.run, old / "raw.json": read(old / "raw.json").run}


@pytest.mark.slow
@pytest.mark.parametrize("with_reuse", [True, False])
def test_a_killed_run_goes_on_with_or_without_reuse(folders, model, with_reuse):
    old, new, scratch = folders
    program = (
        "import sys; from pathlib import Path as P; import test_reuse as t;"
        "t.run_predict(P(sys.argv[1]), P(sys.argv[2]), P(sys.argv[3]))"
    )
    places = [*sys.path, str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    child = subprocess.Popen([sys.executable, "-c", program, new, model, old], env=environment)
    marks = new / "net" / ".affinities" / "32x32x32" / "predict.txt"
    while not (marks.exists() and "\n" in marks.read_text()):
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = FinishedBlocks(marks, Roi((0, 0, 0), LONGER), BLOCK)
    deadline = time.monotonic() + 30
    while True:  # the workers of the killed run end by themselves
        try:
            manifest = run_predict(new, model, old if with_reuse else None)
            break
        except ClaimError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    expect_made(new, scratch, "affinities")
    everything = reusable_predictions(raw_data(SHAPE), raw_data(LONGER), halo_of(model))
    assert before.reused.any()
    assert before.reused.sum() <= reused(manifest) <= everything
    if with_reuse:
        assert reused(manifest) == everything


def test_status_and_telemetry_say_how_much_was_reused(folders, model):
    old, new, _ = folders
    manifest = run_predict(new, model, old)
    count = reused(manifest)
    assert count == reusable_predictions(raw_data(SHAPE), raw_data(LONGER), halo_of(model))
    assert read(manifest).stats["mvox_per_s"] is None  # of a copy it would mean nothing
    assert f"{count} of 4 blocks reused" in invoke("status", new, "--all").output
    assert "reused" not in invoke("status", old, "--all").output


def test_reuse_is_no_part_of_what_a_result_is_made_of(folders, model):
    old, new, _ = folders
    manifest, everything = run_predict(new, model), Roi((0, 0, 0), LONGER)
    files = [path for _, path in open_input(manifest).volume.files(everything)]
    before = [path.stat().st_mtime_ns for path in files]
    run_predict(new, model, old)
    assert [path.stat().st_mtime_ns for path in files] == before
    assert reused(manifest) == 0


@given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(0, 3)] * 3), st.integers(0, 2**32), st.booleans())
def test_ids_are_those_that_a_block_has_in_the_new_grid(grid, more, seed, grows):
    """Also where the grid becomes smaller, so that numbers fall."""
    rng = np.random.default_rng(seed)
    larger = tuple(g + m for g, m in zip(grid, more, strict=True))
    was, now = (grid, larger) if grows else (larger, grid)
    index = tuple(int(rng.integers(g)) for g in grid)
    pieces = rng.integers(0, 5, (2, 3, 4), dtype=np.uint64)
    block = (2, 3, 4)
    old, new = (unique_ids(pieces, index, one, block) for one in (was, now))
    assert (renumbered(old, index, was, now, block) == new).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "message"),
    [
        (None, r"reuse: no folder at '\S*old', expected the `results` of an earlier run.*take `reuse` out"),
        (".", r"reuse: '\S*old' holds no finished prediction or fragments"),  # a file of another program
        ("below/student/tune", r"reuse: '\S*old' holds no finished .*'student'.*'tune'.*take `reuse` out"),
        ("student/tune", None),
    ],
)
def test_a_folder_without_an_earlier_result_is_refused_before_anything_runs(tmp_path, values, place, message):
    old, config = tmp_path / "old", tmp_path / "config.yaml"
    if place is not None:
        store(old / place / "fragments.json", np.ones((1, 2, 3), np.uint64))
    if place == ".":
        (old / "student" / "tune").mkdir(parents=True)
        (old / "student" / "tune" / "fragments.json").write_text('{"fingerprint": "0"}')
    config.write_text(yaml.safe_dump({**values, "results": str(tmp_path / "new"), "reuse": str(old)}))
    timings = tmp_path / "timings.json"
    for words in (("check", config), ("plan", config, "--timings", timings)):
        done = invoke(*words)
        if message is None:
            assert "reuse" not in done.stderr
        else:
            assert done.exit_code == 1
            said = done.stdout.splitlines()[0] if words[0] == "check" else done.stderr
            assert re.match(rf"{'error' if words[0] == 'check' else 'kdseg plan'}: {message}", said)
            assert done.stderr.count("\n") == (words[0] == "plan")
            assert invoke("check", config, "--no-files").exit_code == 0
    text = snakemake(tmp_path, config, "--dry-run", check=message is None)
    assert "rule predict" in text if message is None else re.search(message, text)


def test_a_folder_is_not_reused_for_itself(values):
    with pytest.raises(ConfigError, match=r"reuse 'results/test' is the folder `results`"):
        validate({**values, "reuse": "results/test"})
