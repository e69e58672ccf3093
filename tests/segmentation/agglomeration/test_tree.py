"""The agglomeration tree: the same merges for any chunk and order, and those of the whole graph at once."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import as_rows

from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Triple, block_number, grid_shape
from kdseg.segmentation.agglomeration.contraction import Rows
from kdseg.segmentation.agglomeration.linkage import Dendrogram, agglomerate, contract, cut, rows_of, sort_merges
from kdseg.segmentation.agglomeration.tree import decide, layout, node_of, rename
from kdseg.segmentation.graph.edge_table import join, take
from kdseg.segmentation.graph.rag import Edges
from kdseg.segmentation.lut import lut

BLOCK = (2, 2, 2)


def random_graph(rng: np.random.Generator, shape: Triple, per_block: int) -> Edges:
    """Fragments in blocks, joined to those of blocks nearby, with few different scores."""
    grid = grid_shape(shape, BLOCK)
    ids, places = [], []
    for index in product(*map(range, grid)):
        for local in range(1, 1 + per_block):
            ids.append(block_number(index, grid) * 8 + local)  # type: ignore[arg-type]
            places.append(index)
    near = np.abs(np.array(places)[:, None] - np.array(places)[None]).max(-1) <= 1
    u, v = np.nonzero(np.triu(near & (rng.random(near.shape) < 0.4), 1))
    contact = rng.integers(1, 4, u.size).astype(np.uint64)
    affinity = contact * rng.choice([51, 128, 204, 255], u.size).astype(np.uint64) - rng.integers(0, 2, u.size).astype(
        np.uint64
    )
    names = np.array(ids, np.uint64)
    return Edges(names[u], names[v], affinity, contact)


def tables(edges: Edges, shape: Triple, chunk: Triple, links: dict[str, NDArray[np.uint64]]) -> dict[Triple, Rows]:
    """Deal the edges to leaves: the one of ``u`` counts, the one of ``v`` gets a row of contact 0."""
    where = layout(shape, chunk, BLOCK)
    ends = [node_of(column, where, 0) for column in (edges.u, edges.v)]
    found = {}
    for index in product(*map(range, grid_shape(shape, where.chunk))):
        counted, touched = ((nodes == index).all(1) for nodes in ends)
        hint = touched & ~counted
        zero = np.zeros(int(hint.sum()), np.uint64)
        part = Edges(
            np.concatenate((edges.u[counted], edges.u[hint])),
            np.concatenate((edges.v[counted], edges.v[hint])),
            np.concatenate((edges.affinity_sum[counted], zero)),
            np.concatenate((edges.contact[counted], zero)),
        )
        mine = {
            name: pairs[(node_of(pairs.ravel(), where, 0) == index).all(1).reshape(-1, 2).any(1)]
            for name, pairs in links.items()
        }
        found[index] = rows_of(part, **mine)
    return found  # type: ignore[return-value]


def grow(
    leaves: dict[Triple, Rows], shape: Triple, chunk: Triple, threshold: float, rng: np.random.Generator
) -> tuple[Dendrogram, list[dict[Triple, Dendrogram]]]:
    """Run the tree, nodes and rows in random order; return all merges, and those by level and node."""
    where = layout(shape, chunk, BLOCK)
    rows, levels = leaves, []
    for level in range(where.levels):
        if level:
            parents: dict[Triple, list[Rows]] = {}
            for index in rng.permutation(np.array(list(rows))).tolist():
                z, y, x = index
                parents.setdefault((z // 2, y // 2, x // 2), []).append(rows[z, y, x])
            rows = {index: join(parts) for index, parts in parents.items()}
        merges, left = {}, {}
        for index, table in rows.items():
            order = rng.permutation(table.u.size)
            merges[index], left[index] = decide(take(table, order), where, level, index, threshold)
        levels.append(merges)
        rows = left
    assert len(rows) == 1
    assert not next(iter(rows.values())).u.size
    return sort_merges(part for level in levels for part in level.values()), levels


CASES = st.tuples(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 3))
CHUNKS = st.lists(st.tuples(*[st.sampled_from([2, 4, 6])] * 3), min_size=3, max_size=3, unique=True)
THRESHOLDS = st.integers(0, 20).map(lambda k: k / 20)


@settings(deadline=None, max_examples=60)
@given(case=CASES, chunks=CHUNKS, threshold=THRESHOLDS)
def test_any_chunking_gives_the_merges_of_the_whole(
    case: tuple[int, Triple, int], chunks: list[Triple], threshold: float
) -> None:
    seed, shape, per_block = case
    rng = np.random.default_rng(seed)
    edges = random_graph(rng, shape, per_block)
    expected = as_rows(agglomerate(edges, threshold))
    for chunk in chunks:
        found, levels = grow(tables(edges, shape, chunk, {}), shape, chunk, threshold, rng)
        assert as_rows(found) == expected
        # a stricter cut, node by node up the tree, is the cut of the whole
        where = layout(shape, chunk, BLOCK)
        ids = np.unique(np.concatenate((edges.u, edges.v)))
        names = ids
        for level, nodes in enumerate(levels):
            for index, merges in nodes.items():
                mine = (node_of(names, where, level) == index).all(1)
                names = np.where(mine, rename(names, *cut(merges, threshold / 2)), names)
        assert names.tolist() == lut(ids, *cut(found, threshold / 2)).tolist()


def oracle(edges: Edges, threshold: Fraction, must: NDArray[np.uint64], cannot: NDArray[np.uint64]) -> dict[int, int]:
    """The definition with a user's links: must-links first, then the best pair of regions that may be merged."""
    region = {int(f): int(f) for f in (*edges.u, *edges.v, *must.ravel(), *cannot.ravel())}

    def merge(a: int, b: int) -> None:
        a, b = sorted((region[a], region[b]))
        region.update({fragment: a for fragment, name in region.items() if name == b})

    for u, v in must.tolist():
        merge(u, v)
    while True:
        apart = {tuple(sorted((region[u], region[v]))) for u, v in cannot.tolist()}
        pairs: dict[tuple[int, ...], tuple[int, int, tuple[int, int]]] = {}
        for u, v, affinity, contact in sorted(as_rows(edges)):
            key = tuple(sorted((region[u], region[v])))
            if key[0] != key[1] and key not in apart:
                old = pairs.get(key, (0, 0, (0, 0)))
                pairs[key] = (old[0] + affinity, old[1] + contact, (u, v))  # type: ignore[assignment]
        ranked = sorted((1 - Fraction(s, 255 * n), last, key) for key, (s, n, last) in pairs.items())
        if not ranked or ranked[0][0] > threshold:
            return region
        merge(*ranked[0][2])


@settings(deadline=None, max_examples=60)
@given(case=CASES, chunks=CHUNKS, threshold=THRESHOLDS, counts=st.tuples(st.integers(0, 3), st.integers(0, 4)))
def test_links_of_a_user_hold_for_any_chunking(
    case: tuple[int, Triple, int], chunks: list[Triple], threshold: float, counts: tuple[int, int]
) -> None:
    seed, shape, _ = case
    rng = np.random.default_rng(seed)
    edges = random_graph(rng, shape, 1)
    ids = np.unique(np.concatenate((edges.u, edges.v)))
    if ids.size < 3:
        return
    drawn = [np.sort(rng.choice(ids, (n, 2)), axis=1) for n in counts]
    must, cannot = (np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0) for pairs in drawn)
    joined = dict(zip(ids.tolist(), lut(ids, must[:, 0], must[:, 1]).tolist(), strict=True))
    cannot = np.array([pair for pair in cannot.tolist() if joined[pair[0]] != joined[pair[1]]], np.uint64).reshape(
        -1, 2
    )
    expected = oracle(edges, Fraction(round(threshold * 20), 20), must, cannot)
    for chunk in chunks:
        leaves = tables(edges, shape, chunk, {"must": must, "cannot": cannot})
        found, _ = grow(leaves, shape, chunk, threshold, rng)
        segments = lut(ids, *cut(found, threshold))
        assert segments.tolist() == [expected[one] for one in ids.tolist()]
        strict = lut(ids, *cut(found, 0.0))
        assert all(strict[ids == u] == strict[ids == v] for u, v in must)


def test_an_edge_that_nobody_counted_is_an_error() -> None:
    rows = rows_of(Edges(*(np.array([value], np.uint64) for value in (1, 2, 0, 0))))
    with pytest.raises(DataError, match="between the fragments 1 and 2: a table of edges is missing or stale"):
        contract(rows, np.empty(0, np.uint64), 0.5)


def test_leaves_are_made_of_whole_blocks() -> None:
    assert layout((10, 10, 10), (4, 16, 11), (2, 6, 2)).chunk == (4, 18, 12)
    assert layout((10, 10, 10), (4, 16, 11), (2, 6, 2)).levels == 3
    with pytest.raises(ShapeError, match="multiple"):
        layout((10, 10, 10), (4, 16, 16), (2, 6, 2), (3, 6, 2))
