"""From affinities to scores: right on perfect input, and the same for any block, worker count and order."""

import shutil

import numpy as np
import pytest
from pipeline import STORAGE, FragmentsOptions, perfect_affinities, run_fragments, run_rest, store, tables, voxels

from kdseg.config import AgglomerateOptions, EdgesOptions, EvaluateOptions, SegmentOptions
from kdseg.config.data import PhantomOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import AgglomerateTask, EdgesTask, ScoreTask, SegmentTask
from kdseg.errors import ConfigError, DataError, ShapeError, StageError
from kdseg.evaluation import score
from kdseg.geometry import Roi, blocks
from kdseg.results.manifests import read
from kdseg.results.parquet import read_parquet
from kdseg.results.tables import read_table, write_table
from kdseg.segmentation.agglomeration import stage as agglomerate_stage
from kdseg.segmentation.agglomeration.linkage import agglomerate, cut
from kdseg.segmentation.graph import stage as edges_stage
from kdseg.segmentation.graph.rag import Edges, block_edges
from kdseg.segmentation.lut import apply, lut
from kdseg.segmentation.segments import stage as segment
from kdseg.volumes.inputs import open_input
from kdseg.volumes.phantom import phantom_block

SHAPE = (40, 70, 64)
OPTIONS = FragmentsOptions(block=(32, 64, 32), halo=(8, 8, 8), watershed=WatershedOptions(seed_distance=3))


@pytest.fixture(scope="module")
def labels():
    return phantom_block(PhantomOptions(shape=SHAPE, seed=3), Roi((0, 0, 0), SHAPE))[1]


@pytest.fixture(scope="module")
def noisy(labels):
    rng = np.random.default_rng(0)
    clean = perfect_affinities(labels).astype(float)
    return np.clip(0.7 * clean + rng.normal(30, 30, clean.shape), 0, 255).astype(np.uint8)


OFFSETS = [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]


def test_perfect_affinities_give_the_labels_back(tmp_path, labels):
    affinities = store(tmp_path / "affinities.json", perfect_affinities(labels), offsets=OFFSETS)
    truth = store(tmp_path / "labels.json", labels)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    found = run_rest(tmp_path, affinities, fragment, block=(32, 32, 32), labels=truth)
    scores = found["scores"]["scores"]
    # A voxel that touches another neuron on both sides belongs to no basin of its own: those may stray.
    assert scores["voi_merge"] < 0.12
    assert scores["voi_split"] < 0.12
    assert found["sweep"]["sweep"][1]["voi"] == pytest.approx(scores["voi"], abs=1e-12)
    assert found["sweep"]["best"] in (0.1, 0.5, 0.9)


@pytest.mark.slow
@pytest.mark.parametrize(("block", "workers"), [((64, 96, 64), 1), ((32, 64, 32), 2)])
def test_blocks_and_workers_change_nothing(tmp_path, noisy, labels, block, workers):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    truth = store(tmp_path / "labels.json", labels)
    results = []
    for name, size, count in (("a", (32, 32, 32), 1), ("b", block, workers)):
        folder = tmp_path / name
        folder.mkdir()
        fragment = run_fragments(folder, affinities, OPTIONS, workers=count)
        found = run_rest(folder, affinities, fragment, block=size, workers=count, labels=truth)
        results.append((voxels(fragment), found))
    (fragments_a, a), (fragments_b, b) = results
    assert len(np.unique(fragments_a)) > 20
    assert (fragments_a == fragments_b).all()
    assert (a["segmentation"] == b["segmentation"]).all()
    assert a["scores"]["scores"] == b["scores"]["scores"]
    assert a["sweep"]["sweep"] == b["sweep"]["sweep"]
    for table in ("edges", "agglomeration"):
        assert a[table].keys() == b[table].keys()
        assert all((a[table][column] == b[table][column]).all() for column in a[table])


def test_the_graph_of_blocks_is_the_graph_of_the_volume(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    found = run_rest(tmp_path, affinities, fragment, block=(32, 32, 32))["edges"]
    ids = voxels(fragment)
    whole = block_edges(ids, noisy, ((-1, 0, 0), (0, -1, 0), (0, 0, -1)), Roi((0, 0, 0), SHAPE).slices())
    assert all((found[name] == column).all() for name, column in whole._asdict().items())
    unique, counts = np.unique(ids[ids > 0], return_counts=True)
    assert (found["fragment"] == unique).all()
    assert (found["size"] == counts).all()


def test_fragments_are_unique_to_their_block(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    ids = voxels(run_fragments(tmp_path, affinities, OPTIONS))
    owner = {}
    for z in range(0, SHAPE[0], 32):
        for y in range(0, SHAPE[1], 64):
            for x in range(0, SHAPE[2], 32):
                for one in np.unique(ids[z : z + 32, y : y + 64, x : x + 32]):
                    assert one == 0 or owner.setdefault(one, (z, y, x)) == (z, y, x)


def test_a_store_that_vanished_is_made_again(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    manifest = run_fragments(tmp_path, affinities, OPTIONS)
    before = voxels(manifest)
    shutil.rmtree(read(manifest).result)
    manifest.unlink()  # as after a kill: the done blocks are still noted
    assert (voxels(run_fragments(tmp_path, affinities, OPTIONS)) == before).all()


def test_results_of_two_runs_are_not_mixed(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    run_rest(tmp_path, affinities, fragment, block=(32, 32, 32))
    edge, agglomeration, out = (tmp_path / f"{name}.json" for name in ("edges", "agglomeration", "other"))
    (tmp_path / "later").mkdir()
    other = run_fragments(tmp_path / "later", affinities, OPTIONS.model_copy(update={"dust": 50}))
    with pytest.raises(DataError, match="not made of"):
        agglomerate_stage.run(
            AgglomerateTask(
                affinities=affinities, fragments=other, edges=edge, manifest=out, options=AgglomerateOptions()
            )
        )
    how = SegmentOptions(block=(32, 32, 32), threshold=0.5)
    with pytest.raises(DataError, match="not made of"):
        segment.run(
            SegmentTask(
                fragments=other, edges=edge, agglomeration=agglomeration, manifest=out, options=how, storage=STORAGE
            )
        )
    with pytest.raises(DataError, match="a result of `kdseg agglomerate`, expected one of `kdseg edges`"):
        segment.run(
            SegmentTask(
                fragments=fragment, edges=agglomeration, agglomeration=edge, manifest=out, options=how, storage=STORAGE
            )
        )
    changed = store(tmp_path / "changed.json", noisy // 2, offsets=OFFSETS)
    with pytest.raises(DataError, match="not made of"):
        edges_stage.run(EdgesTask(affinities=changed, fragments=fragment, manifest=out, options=EdgesOptions()))
    assert not out.exists()


def test_a_lost_file_of_fragments_does_not_become_background(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    run_rest(tmp_path, affinities, fragment, block=(32, 32, 32))
    names = {name: tmp_path / f"{name}.json" for name in ("fragments", "edges", "agglomeration")}
    next(path for path in sorted((read(fragment).result / "0" / "c").rglob("*")) if path.is_file()).unlink()
    how = SegmentOptions(block=(64, 64, 32), threshold=0.5)
    with pytest.raises(StageError, match="is gone since it was written"):
        segment.run(SegmentTask(**names, manifest=tmp_path / "again.json", options=how, storage=STORAGE))


def test_lost_fragments_of_a_bucket_do_not_become_background(tmp_path, noisy):
    """Buckets have no checksums of files: there the region graph knows how many voxels there were."""
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    run_rest(tmp_path, affinities, fragment, block=(32, 32, 32))
    volume = open_input(fragment).volume
    block = next(blocks(volume.roi, (32, 32, 32)))
    ids, edges = volume.read(block.roi), read(tmp_path / "edges.json")
    segment._expect_all(fragment, edges, volume.roi, block, ids)
    with pytest.raises(DataError, match="a file of it was lost or changed"):
        segment._expect_all(fragment, edges, volume.roi, block, np.zeros_like(ids))


def test_engine_waterz_agrees_on_one_block(tmp_path, noisy, labels):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    truth = store(tmp_path / "labels.json", labels)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    (tmp_path / "w").mkdir()
    ours = run_rest(tmp_path, affinities, fragment, block=(32, 32, 32), labels=truth)
    theirs = run_rest(tmp_path / "w", affinities, fragment, block=(32, 32, 32), labels=truth, engine="waterz")
    for a, b in zip(ours["sweep"]["sweep"], theirs["sweep"]["sweep"], strict=True):
        assert a["voi"] == pytest.approx(b["voi"], abs=0.01)
    # Segments are named alike, by their smallest fragment.
    ids = voxels(fragment)
    for segment_id in np.unique(theirs["segmentation"][ids > 0]):
        assert ids[theirs["segmentation"] == segment_id].min() == segment_id


def test_a_threshold_beyond_the_dendrogram_is_refused(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    found = run_rest(tmp_path, affinities, fragment, block=(32, 32, 32))
    names = {name: tmp_path / f"{name}.json" for name in ("edges", "agglomeration")}
    how = SegmentOptions(block=(32, 32, 32), threshold=0.95)
    with pytest.raises(ConfigError, match=r"up to a score of 0\.9, it cannot be cut at 0\.95"):
        segment.run(
            SegmentTask(fragments=fragment, **names, manifest=tmp_path / "other.json", options=how, storage=STORAGE)
        )
    with pytest.raises(ConfigError, match="no threshold"):
        segment.run(
            SegmentTask(
                fragments=fragment,
                **names,
                manifest=tmp_path / "other.json",
                options=SegmentOptions(block=(32, 32, 32)),
                storage=STORAGE,
            )
        )
    # any stricter one is a cut of the dendrogram
    how = SegmentOptions(block=(32, 32, 32), threshold=0.37)
    segment.run(
        SegmentTask(fragments=fragment, **names, manifest=tmp_path / "other.json", options=how, storage=STORAGE)
    )
    edges, ids = (Edges(*(found["edges"][name] for name in Edges._fields)), voxels(fragment))
    known = found["edges"]["fragment"]
    expected = apply(ids, known, lut(known, *cut(agglomerate(edges, 0.37), 0.37)))
    assert (voxels(tmp_path / "other.json") == expected).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_leaves_of_the_tree_change_nothing(tmp_path, noisy, workers):
    """8 leaves below a root against one pass over the whole graph."""
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    found = run_rest(tmp_path, affinities, fragment, block=(32, 32, 32), workers=workers, chunk=(32, 64, 32))
    assert len(tables(tmp_path / "agglomeration.json")) == 2 * 2 * 2 + 1
    whole = agglomerate(Edges(*(found["edges"][name] for name in Edges._fields)), 0.9)
    assert len(whole.a) > 50
    for name, column in whole._asdict().items():
        assert (found["agglomeration"][name] == column).all(), name
    segments = read_parquet(tmp_path / "segmentation.parquet")
    ids, sizes = np.unique(found["segmentation"], return_counts=True)
    assert segments["segment"].tolist() == ids[ids > 0].tolist()
    assert segments["size"].tolist() == sizes[ids > 0].tolist()
    one = int(np.argmax(segments["size"]))
    places = np.argwhere(found["segmentation"] == segments["segment"][one])
    assert [segments[f"begin_{a}"][one] for a in "zyx"] == places.min(0).tolist()
    assert [segments[f"centroid_{a}"][one] for a in "zyx"] == pytest.approx((10 * places.mean(0)).tolist())


def test_edits_hold_in_the_segmentation(tmp_path, noisy):
    """Two halves of one segment are kept apart, two segments far apart are merged; a rerun keeps both."""
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    before = run_rest(tmp_path, affinities, fragment, block=(32, 32, 32))["segmentation"]
    ids = voxels(fragment)
    names, counts = np.unique(before[before > 0], return_counts=True)
    largest = names[np.argsort(counts)[-3:]]
    parts = np.unique(ids[before == largest[2]])
    u, v = int(parts[0]), int(parts[-1])
    a, b = (int(ids[before == one].min()) for one in largest[:2])
    table = tmp_path / "edits.csv"
    table.write_text(f"edit,u,v\nsplit,{u},{v}\nmerge,{a},{b}\n")
    (tmp_path / "e").mkdir()
    how = {"block": (32, 32, 32), "chunk": (32, 64, 32), "edits": str(table)}
    after = run_rest(tmp_path / "e", affinities, fragment, **how)["segmentation"]
    where = {one: after[ids == one][0] for one in (u, v, a, b)}
    assert where[u] != where[v]
    assert where[a] == where[b]
    table.write_text("edit,u,v\nmerge,1,999999999\n")
    with pytest.raises(DataError, match="999999999 does not exist"):
        agglomerate_stage.run(
            AgglomerateTask(
                affinities=affinities,
                fragments=fragment,
                edges=tmp_path / "edges.json",
                manifest=tmp_path / "x.json",
                options=AgglomerateOptions(edits=str(table)),
            )
        )


def test_a_lost_table_of_edges_is_noticed(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy, offsets=OFFSETS)
    fragment = run_fragments(tmp_path, affinities, OPTIONS)
    run_rest(tmp_path, affinities, fragment, block=(32, 32, 32))
    inputs = {"affinities": affinities, "fragments": fragment, "edges": tmp_path / "edges.json"}
    again = AgglomerateTask(**inputs, manifest=tmp_path / "again.json", options=AgglomerateOptions(chunk=(64, 128, 64)))
    table = tmp_path / "edges.tables" / "0_1_1.npz"
    columns = read_table(table)
    write_table(table, {name: column[:0] for name, column in columns.items()})
    with pytest.raises(StageError, match="missing or stale"):
        agglomerate_stage.run(again)
    table.write_bytes(b"PK")
    with pytest.raises(StageError, match="damaged"):
        agglomerate_stage.run(again)


def test_affinities_without_offsets_are_refused(tmp_path, noisy):
    affinities = store(tmp_path / "affinities.json", noisy)
    with pytest.raises(ShapeError, match="one offset per channel"):
        run_fragments(tmp_path, affinities, OPTIONS)
    assert not (tmp_path / "fragments.json").exists()


def test_labels_of_a_part_are_compared_with_that_part(tmp_path, labels):
    whole = store(tmp_path / "whole.json", labels)
    part = store(tmp_path / "part.json", labels[8:, 4:, :33].copy(), offset=(80.0, 40.0, 0.0))
    scoring = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=(32, 32, 32))
    made = {"model": "m", "volume": "a", "manifest": tmp_path / "scores.json"}
    score.run(ScoreTask(segmentation=whole, labels=part, options=scoring, **made))
    stats = read(tmp_path / "scores.json").stats
    assert stats["scores"]["voi"] == 0
    assert stats["voxels"] == 32 * 66 * 33


def test_scores_come_with_their_table_and_intervals(tmp_path, labels):
    whole = store(tmp_path / "whole.json", labels % 7)
    truth = store(tmp_path / "truth.json", labels)
    scoring = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=(16, 32, 32), bootstrap=30)
    made = {"model": "m", "volume": "a", "manifest": tmp_path / "scores.json"}
    score.run(ScoreTask(segmentation=whole, labels=truth, options=scoring, **made))
    stats = read(tmp_path / "scores.json").stats
    low, high = stats["intervals"]["voi_merge"]
    assert low < stats["scores"]["voi_merge"] < high
    assert stats["intervals"]["voi_split"] == [0, 0]
    table = read_parquet(tmp_path / "scores.parquet")
    assert table["count"].sum() == (labels > 0).sum()
    assert (table["segment"] == table["label"] % 7).all()
