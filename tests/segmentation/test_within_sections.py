"""Stacks of unrelated images: offsets that stay in their section join nothing across sections, whatever the blocks."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import FragmentsOptions, graph, perfect_affinities, run_fragments, run_rest, store, voxels
from toy_models import save
from toy_volumes import cells

from kdseg.config import EdgesOptions, PredictOptions, StorageOptions
from kdseg.config.networks import UNetOptions
from kdseg.config.segmentation import MutexOptions, WatershedOptions
from kdseg.config.tasks import EdgesTask, FragmentsTask, PredictTask
from kdseg.geometry import Roi
from kdseg.prediction import stage as predict
from kdseg.segmentation.fragments import stage as fragments_stage
from kdseg.segmentation.fragments.block import cell_fragments
from kdseg.segmentation.fragments.checks import doubts, thin_halo
from kdseg.segmentation.graph import stage as edges_stage
from kdseg.segmentation.graph.details import detailed_edges
from kdseg.segmentation.links import nearest_channels, nearest_links

FLAT = ((0, -1, 0), (0, 0, -1), (0, -3, 0), (0, 0, 4))
SHAPE = (5, 40, 36)
STORAGE = StorageOptions(chunk=(1, 16, 16), shard=(1, 32, 32), levels=2)
METHODS = [
    WatershedOptions(seed_distance=2),
    WatershedOptions(seeds="maxima", boundary=0.3),
    MutexOptions(strides=(1, 2, 2)),
]


def noisy(shape: tuple[int, int, int], seed: int) -> NDArray[np.uint8]:
    """Return affinities within sections that each show other cells."""
    rng = np.random.default_rng(seed)
    labels = np.stack([cells((1, *shape[1:]), 12, seed=100 * seed + z)[1][0] for z in range(shape[0])])
    clean = perfect_affinities(labels, FLAT).astype(float)
    return np.clip(0.7 * clean + rng.normal(30, 40, clean.shape), 0, 255).astype(np.uint8)


def expect_same_parts(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Expect two segmentations to be the same but for ids; 0 is background in both."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]
    assert ((a == 0) == (b == 0)).all()


def test_links_of_sections_are_those_of_y_and_x():
    affinities = noisy((2, 9, 8), 0)
    assert nearest_channels(FLAT) == [0, 1]
    links = nearest_links(affinities, FLAT)
    assert (links[0] == 0).all()
    assert (links[1, :, 1:] == affinities[0, :, 1:]).all()
    assert (links[2, :, :, 1:] == affinities[1, :, :, 1:]).all()
    turned = nearest_links(affinities[[1, 0]], ((0, 0, 1), (0, -1, 0)))
    assert (turned[1, :, 1:] == affinities[0, :, 1:]).all()
    assert (turned[2][:, :, 1:] == affinities[1][:, :, :-1]).all()


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 99), method=st.sampled_from(METHODS), depth=st.integers(2, 4), dust=st.sampled_from([0, 6]))
def test_fragments_of_a_stack_are_those_of_each_section(seed, method, depth, dust):
    shape = (depth, 17, 15)
    affinities = noisy(shape, seed)
    tissue = np.random.default_rng(seed).random(shape) < 0.97
    options = FragmentsOptions(watershed=method, dust=dust, least_mean=0.3)

    def made(part: slice) -> NDArray[np.uint64]:
        here = np.ascontiguousarray(affinities[:, part])
        core = Roi((0, 0, 0), here.shape[1:]).slices()
        return cell_fragments(here, FLAT, options, core, tissue[part], (10.0, 10.0, 10.0))

    whole = made(slice(None))
    assert len(np.unique(whole)) > depth
    ids = [set(np.unique(section)) - {0} for section in whole]
    assert len(set().union(*ids)) == sum(map(len, ids))
    for z, section in enumerate(whole):
        assert (section - np.where(section, min(ids[z]) - 1, 0) == made(slice(z, z + 1))[0]).all()


@pytest.mark.parametrize("long_range", [False, True])
def test_no_edge_joins_two_sections(long_range):
    affinities = noisy((3, 16, 16), 1)
    ids = np.arange(1, 3 * 16 * 16 + 1, dtype=np.uint64).reshape(3, 16, 16)
    how = EdgesOptions(long_range=long_range, histograms=True)
    channels = slice(None) if long_range else slice(2)
    edges, more = detailed_edges(ids, affinities[channels], FLAT[channels], Roi((0, 0, 0), ids.shape).slices(), how)
    assert edges.u.size
    assert ((edges.u - 1) // 256 == (edges.v - 1) // 256).all()
    assert more is not None
    apart = (edges.v - edges.u).astype(int)
    assert (more.touch == np.isin(apart, (1, 16))).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS[::2], ids=["watershed", "mutex"])
def test_every_block_gives_each_section_what_it_has_alone(tmp_path: Path, method):
    affinities = noisy(SHAPE, 7)
    offsets = [list(offset) for offset in FLAT]
    found = {}
    for name, depth in (("deep", 32), ("thin", 2)):
        options = FragmentsOptions(block=(depth, 32, 32), halo=(0, 8, 8), watershed=method)
        folder = tmp_path / name
        folder.mkdir()
        source = store(folder / "affinities.json", affinities, offsets=offsets)
        made = run_fragments(folder, source, options, storage=STORAGE)
        rest = run_rest(folder, source, made, block=(depth, 32, 32), storage=STORAGE)
        edges = graph(folder / "edges.json")
        home = {one: z for z, section in enumerate(voxels(made)) for one in np.unique(section) if one}
        assert all(home[u] == home[v] for u, v in zip(edges["u"], edges["v"], strict=True))
        found[name] = voxels(made), rest["segmentation"]
    for z in range(SHAPE[0]):
        folder = tmp_path / str(z)
        folder.mkdir()
        source = store(folder / "affinities.json", affinities[:, z : z + 1], offsets=offsets)
        options = FragmentsOptions(block=(32, 32, 32), halo=(0, 8, 8), watershed=method)
        made = run_fragments(folder, source, options, storage=STORAGE)
        rest = run_rest(folder, source, made, block=(32, 32, 32), storage=STORAGE)
        for fragments, segments in found.values():
            expect_same_parts(fragments[z], voxels(made)[0])
            expect_same_parts(segments[z], rest["segmentation"][0])
    for fragments, segments in found.values():
        for ids in (fragments, segments):
            each = [set(np.unique(section)) - {0} for section in ids]
            assert len(set().union(*each)) == sum(map(len, each))
        assert len(np.unique(segments)) < len(np.unique(fragments))


def alone(affinities: NDArray[np.uint8], options: FragmentsOptions, threshold: float) -> list[NDArray[np.uint64]]:
    """Return fragments and segments of one section: its regions are joined one by one, the best pair first."""
    core = Roi((0, 0, 0), affinities.shape[1:]).slices()
    ids = cell_fragments(affinities, FLAT, options, core, None, (10.0, 10.0, 10.0))[0]
    pairs: dict[tuple[int, int], list[int]] = {}
    for channel, (dy, dx) in enumerate(((1, 0), (0, 1))):
        for y, x in np.ndindex(ids.shape):
            u, v = (int(ids[y, x]), int(ids[y - dy, x - dx])) if min(y - dy, x - dx) >= 0 else (0, 0)
            if 0 < u != v > 0:
                pairs.setdefault((min(u, v), max(u, v)), []).append(int(affinities[channel, 0, y, x]))
    name = {int(one): int(one) for one in np.unique(ids)}

    def score(pair: tuple[int, int]) -> Fraction:
        return 1 - Fraction(sum(pairs[pair]), 255 * len(pairs[pair]))

    while pairs and score(best := min(pairs, key=lambda pair: (score(pair), pair))) <= Fraction(str(threshold)):
        kept, gone = best
        del pairs[best]
        name = {one: kept if now == gone else now for one, now in name.items()}
        for (u, v), values in list(pairs.items()):
            if gone in (u, v):
                del pairs[u, v]
                other = v if u == gone else u
                pairs.setdefault((min(kept, other), max(kept, other)), []).extend(values)
    return [ids, np.vectorize(name.__getitem__, otypes=[np.uint64])(ids)]


@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 99),
    method=st.sampled_from(METHODS),
    depth=st.integers(1, 4),
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
)
def test_any_depth_of_blocks_joins_what_a_section_has_alone(seed, method, depth, blocks, threshold):
    """A single section among them."""
    affinities, (cut, graph_, tree) = noisy((depth, 20, 18), seed), blocks
    options = FragmentsOptions(block=(cut, 32, 32), halo=(0, 8, 8), watershed=method)
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = store(folder / "affinities.json", affinities, offsets=[list(offset) for offset in FLAT])
        made = run_fragments(folder, source, options, storage=STORAGE)
        how = {"block": (graph_, 32, 32), "chunk": (12 * tree, 32, 32), "threshold": threshold}
        segments = run_rest(folder, source, made, **how, storage=STORAGE)["segmentation"]
        found = [voxels(made), segments]
    for z in range(depth):
        for ours, expected in zip(found, alone(affinities[:, z : z + 1], options, threshold), strict=True):
            expect_same_parts(ours[z], expected)
    for ids in found:
        each = [set(np.unique(section)) - {0} for section in ids]
        assert len(set().union(*each)) == sum(map(len, each))


@pytest.mark.slow
def test_fragments_and_edges_without_stored_affinities_are_the_same(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
    flat = UNetOptions(widths=(3, 6), kernels=((1, 3, 3),) * 2, downsample=((1, 2, 2),))
    inputs = {"raw": store(tmp_path / "raw.json", raw), "model": save(tmp_path / "m.json", options=flat, offsets=FLAT)}
    how = {"storage": STORAGE, "device": "cpu"}
    options = FragmentsOptions(block=(2, 32, 32), halo=(0, 8, 8), watershed=METHODS[0])
    tiles = PredictOptions(block=(2, 32, 32), tile=(1, 16, 16))
    found = []
    for name in ("stored", "fused"):
        folder = tmp_path / name
        source = {"predict": tiles, **inputs, **how}
        if name == "stored":
            affinities = folder / "affinities.json"
            predict.run(PredictTask(manifest=affinities, options=tiles, **inputs, **how))
            source = {"affinities": affinities, "storage": STORAGE}
        made, edge = folder / "fragments.json", folder / "edges.json"
        fragments_stage.run(FragmentsTask(manifest=made, options=options, **source))
        options_of_edges = EdgesOptions(block=(4, 32, 32))
        edges_stage.run(
            EdgesTask(affinities=source.get("affinities"), fragments=made, manifest=edge, options=options_of_edges)
        )
        found.append((voxels(made), graph(edge)))
    (stored, table), (fused, same) = found
    assert len(np.unique(stored)) > 20
    assert (stored == fused).all()
    assert all((table[column] == same[column]).all() for column in table)


def test_sections_are_doubted_for_what_is_in_them_alone():
    labels = np.stack([cells((1, 48, 48), 6, seed=z)[1][0] for z in range(8)])
    affinities = perfect_affinities(labels, FLAT[:2])
    assert doubts(affinities, FLAT[:2]) == []
    small = np.stack([cells((1, 32, 32), 150, seed=z)[1][0] for z in range(8)])
    assert doubts(perfect_affinities(small, FLAT[:2]), FLAT[:2]) == []
    (turned,) = doubts(affinities[::-1], FLAT[:2])
    assert "the channels taken for y, x are those along x, y" in turned
    (inverted,) = doubts(255 - affinities, FLAT[:2])[:1]
    assert "nearest affinities are below 0.5" in inverted
    options = FragmentsOptions(block=(2, 32, 32), halo=(0, 16, 16))
    assert thin_halo(options, FLAT, (10.0, 10.0, 10.0), (8, 48, 48)) == ""
