"""Quantile scores and long offsets: from voxels to merges, against the definition."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import as_rows

from kdseg.errors import ConfigError, DataError
from kdseg.geometry import Block, Offsets, Roi, Triple, block_number, blocks, grid_shape, offsets_reach
from kdseg.results.tables import read_table, write_table
from kdseg.segmentation.agglomeration.contraction import Rows
from kdseg.segmentation.agglomeration.linkage import agglomerate, rows_of, sort_merges
from kdseg.segmentation.agglomeration.tree import decide, layout
from kdseg.segmentation.graph.details import Details, block_details
from kdseg.segmentation.graph.edge_table import from_columns, join, take, to_columns
from kdseg.segmentation.graph.rag import Edges, block_edges

NEAREST: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
OFFSETS: Offsets = (*NEAREST, (0, -2, 1), (0, 0, 3))
BLOCK = (2, 3, 4)
Values = dict[tuple[int, int], list[int]]


def random_volume(seed: int, shape: Triple) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    ids = np.zeros(shape, np.uint64)
    for cell in blocks(Roi((0, 0, 0), shape), BLOCK):
        local = rng.integers(0, 4, cell.roi.shape).astype(np.uint64)
        base = block_number(cell.index, grid_shape(shape, BLOCK)) * prod(BLOCK)
        ids[cell.roi.slices()] = np.where(local > 0, local + np.uint64(base), 0)
    return ids, rng.choice(np.array([0, 60, 61, 200, 255], np.uint8), (len(OFFSETS), *shape))


def voxel_pairs(ids: NDArray[np.uint64], affinities: NDArray[np.uint8], offsets: Offsets) -> Values:
    """The affinities between each two fragments, read pair by pair."""
    found: Values = defaultdict(list)
    for channel, offset in zip(affinities, offsets, strict=True):
        for here in np.ndindex(*ids.shape):
            there = tuple(h + o for h, o in zip(here, offset, strict=True))
            if all(0 <= t < n for t, n in zip(there, ids.shape, strict=True)):
                u, v = sorted((int(ids[here]), int(ids[there])))
                if u != v and u > 0:
                    found[u, v].append(int(channel[here]))
    return found


def table(
    ids: NDArray[np.uint64], affinities: NDArray[np.uint8], offsets: Offsets, block: Block
) -> tuple[Edges, Details]:
    """The table of one block, read with its halo as the stage does it."""
    below, above = offsets_reach(offsets)
    reach = tuple(max(b, a) for b, a in zip(below, above, strict=True))
    read = block.roi.grow(reach).intersect(Roi((0, 0, 0), ids.shape))  # type: ignore[arg-type]
    voxels, owned = np.ascontiguousarray(ids[read.slices()]), block.roi.slices(read)
    links = np.ascontiguousarray(affinities[(slice(len(offsets)), *read.slices())])
    edges = block_edges(voxels, links, offsets, owned)
    nearest = block_edges(voxels, links[:3], NEAREST, owned)
    return edges, block_details(voxels, links, offsets, owned, edges, nearest, with_histograms=True)


def oracle(
    values: Values, touching: set[tuple[int, int]], threshold: Fraction, percent: int | None
) -> list[tuple[int, int]]:
    """The definition: the best pair of regions, by all the affinities between fragments that touch, again and again."""
    region = {fragment: fragment for pair in touching for fragment in pair}
    merges = []
    while True:
        between: dict[tuple[int, int], tuple[list[int], list[tuple[int, int]]]] = defaultdict(lambda: ([], []))
        for u, v in touching:
            a, b = sorted((region[u], region[v]))
            if a != b:
                between[a, b][0].extend(values[u, v])
                between[a, b][1].append((u, v))
        ranked = []
        for pair, (found, parts) in between.items():
            if percent is None:
                score = Fraction(sum(found), len(found))
            else:
                score = Fraction(sorted(found)[percent * len(found) // 100])
            ranked.append((1 - score / 255, max(parts), pair))
        if not ranked or min(ranked)[0] > threshold:
            return merges
        a, b = min(ranked)[2]
        merges.append((a, b))
        region = {fragment: a if name == b else name for fragment, name in region.items()}


CASES = st.tuples(
    st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(2, 11)), st.booleans()
)
SCORES = st.sampled_from([None, 0, 25, 50, 75, 99])
THRESHOLDS = st.sampled_from([0.0, 0.2, 0.5, 0.77, 1.0])


@settings(deadline=None, max_examples=40)
@given(case=CASES, percent=SCORES, threshold=THRESHOLDS)
def test_equals_the_definition(case: tuple[int, Triple, bool], percent: int | None, threshold: float) -> None:
    seed, shape, long_range = case
    ids, affinities = random_volume(seed, shape)
    offsets = OFFSETS if long_range else NEAREST
    edges, details = table(ids, affinities, offsets, Block((0, 0, 0), Roi((0, 0, 0), shape)))
    found = agglomerate(edges, threshold, details=details, percent=percent)
    values = voxel_pairs(ids, affinities[: len(offsets)], offsets)
    touching = set(voxel_pairs(ids, affinities[:3], NEAREST))
    expected = oracle(values, touching, Fraction(threshold).limit_denominator(100), percent)
    assert sorted(zip(found.a.tolist(), found.b.tolist(), strict=True)) == sorted(expected)


@settings(deadline=None, max_examples=40)
@given(
    case=CASES,
    percent=SCORES,
    threshold=THRESHOLDS,
    chunks=st.lists(st.tuples(*[st.integers(1, 3)] * 3), min_size=3, max_size=3, unique=True),
)
def test_any_chunking_gives_the_merges_of_the_whole(
    case: tuple[int, Triple, bool], percent: int | None, threshold: float, chunks: list[Triple]
) -> None:
    seed, shape, long_range = case
    ids, affinities = random_volume(seed, shape)
    offsets = OFFSETS if long_range else NEAREST
    whole = Roi((0, 0, 0), shape)
    edges, details = table(ids, affinities, offsets, Block((0, 0, 0), whole))
    expected = as_rows(agglomerate(edges, threshold, details=details, percent=percent))
    rng = np.random.default_rng(seed)
    for times in chunks:
        chunk = tuple(t * b for t, b in zip(times, BLOCK, strict=True))
        where = layout(shape, chunk, BLOCK)  # type: ignore[arg-type]
        rows = {
            leaf.index: join([rows_of(*table(ids, affinities, offsets, part)) for part in blocks(leaf.roi, BLOCK)])
            for leaf in blocks(whole, where.chunk)
        }
        merges = []
        for level in range(where.levels):
            left = {}
            for node in blocks(whole, where.node(level)):
                if level:
                    children = blocks(node.roi, where.node(level - 1))
                    parts = [rows[child.index] for child in children]
                    part = join([parts[k] for k in rng.permutation(len(parts))])
                else:
                    part = rows[node.index]
                order = rng.permutation(part.u.size)
                found, left[node.index] = decide(take(part, order), where, level, node.index, threshold, percent)
                merges.append(found)
            rows = left
        assert as_rows(sort_merges(merges)) == expected


def test_rows_come_back_from_disk(tmp_path: Path) -> None:
    ids, affinities = random_volume(1, (4, 6, 8))
    rows = rows_of(*table(ids, affinities, OFFSETS, Block((0, 0, 0), Roi((0, 0, 0), (4, 6, 8)))))
    write_table(tmp_path / "rows.npz", to_columns(rows))
    back = from_columns(Rows, read_table(tmp_path / "rows.npz"))
    assert back.histograms is not None
    assert rows.histograms is not None
    assert all(np.array_equal(a, b) for a, b in zip(back.histograms, rows.histograms, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(back[:-1], rows[:-1], strict=True))


def test_errors_say_what_is_wrong() -> None:
    ids, affinities = random_volume(1, (4, 6, 8))
    edges, details = table(ids, affinities, NEAREST, Block((0, 0, 0), Roi((0, 0, 0), (4, 6, 8))))
    with pytest.raises(DataError, match="no histograms"):
        agglomerate(edges, 0.5, details=details._replace(histograms=None), percent=50)
    with pytest.raises(ConfigError, match=r"0\.\.99, got 100"):
        agglomerate(edges, 0.5, details=details, percent=100)
    assert details.histograms is not None
    less = details.histograms.pairs.copy()
    less[3] += 1
    damaged = details._replace(histograms=details.histograms._replace(pairs=less))
    with pytest.raises(DataError, match="damaged"):
        agglomerate(edges, 0.5, details=damaged, percent=50)
