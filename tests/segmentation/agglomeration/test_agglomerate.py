"""Agglomeration, against an exhaustive search in fractions, and against waterz."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pipeline import as_rows

from kdseg.errors import ConfigError, DataError, ShapeError
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores
from kdseg.geometry import Offsets
from kdseg.segmentation.agglomeration.contraction import less
from kdseg.segmentation.agglomeration.linkage import Dendrogram, agglomerate, cut, sort_merges
from kdseg.segmentation.graph.rag import Edges, block_edges
from kdseg.segmentation.links import nearest_links
from kdseg.segmentation.lut import apply, lut
from kdseg.segmentation.threshold import least_mean
from kdseg.segmentation.waterz import waterz_fragments, waterz_segments

NEAREST: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
Row = tuple[int, int, int, int]


def make_edges(rows: list[Row]) -> Edges:
    columns = np.array(sorted(rows), np.uint64).reshape(-1, 4).T
    return Edges(*(np.ascontiguousarray(column) for column in columns))


def oracle(edges: Edges, threshold: Fraction) -> list[Row]:
    """The definition: look at all pairs of regions, merge the best one, start again."""
    region = {int(f): int(f) for f in (*edges.u, *edges.v)}
    merges: list[Row] = []
    while True:
        pairs: dict[tuple[int, int], tuple[int, int, tuple[int, int]]] = {}
        for u, v, affinity, contact in sorted(as_rows(edges)):
            a, b = sorted((region[u], region[v]))
            if a != b:
                old = pairs.get((a, b), (0, 0, (u, v)))
                pairs[a, b] = (old[0] + affinity, old[1] + contact, (u, v))
        ranked = sorted((1 - Fraction(s, 255 * n), last, a, b, s, n) for (a, b), (s, n, last) in pairs.items())
        if not ranked or ranked[0][0] > threshold:
            return sorted(merges, key=lambda row: (1 - Fraction(row[2], 255 * row[3]), row[0], row[1]))
        _, _, a, b, s, n = ranked[0]
        merges.append((a, b, s, n))
        region = {fragment: a if name == b else name for fragment, name in region.items()}


@st.composite
def graphs(draw: st.DrawFn) -> Edges:
    """Small dense graphs with few different scores, so that ties are common."""
    nodes = draw(st.lists(st.integers(1, 2**64 - 1), min_size=2, max_size=9, unique=True))
    scale = draw(st.sampled_from([1, 3, 2**20, 2**40]))  # 2**40 contacts overflow 64 bits when multiplied
    rows = []
    for i, u in enumerate(sorted(nodes)):
        for v in sorted(nodes)[i + 1 :]:
            contact = draw(st.integers(0, 4)) * scale + draw(st.integers(0, 1)) * (scale > 1)
            if contact:
                affinity = contact * draw(st.sampled_from([0, 51, 127, 128, 204, 255]))
                rows.append((u, v, max(affinity - draw(st.integers(0, 1)), 0), contact))
    return make_edges(rows)


THRESHOLDS = st.integers(0, 20).map(lambda k: k / 20)


@settings(deadline=None, max_examples=150)
@given(edges=graphs(), threshold=THRESHOLDS)
# means that are equal as float64
@example(edges=make_edges([(2, 9, 280375465082879, 2**40), (3, 6, 280375465083134, 2**40 + 1)]), threshold=0.05)
def test_equals_the_exhaustive_search(edges: Edges, threshold: float) -> None:
    exact = Fraction(round(threshold * 20), 20)
    assert as_rows(agglomerate(edges, threshold)) == oracle(edges, exact)


@settings(deadline=None, max_examples=50)
@given(edges=graphs(), low=THRESHOLDS, high=THRESHOLDS)
def test_cutting_equals_a_stricter_threshold(edges: Edges, low: float, high: float) -> None:
    low, high = min(low, high), max(low, high)
    dendrogram = agglomerate(edges, high)
    a, b = cut(dendrogram, low)
    strict = agglomerate(edges, low)
    assert a.tolist() == strict.a.tolist()
    assert b.tolist() == strict.b.tolist()
    exact = [1 - Fraction(s, 255 * n) for _, _, s, n in as_rows(dendrogram)]
    assert exact == sorted(exact)


@settings(deadline=None, max_examples=200)
@given(st.tuples(*[st.integers(0, 2**64 - 1) | st.integers(2**32 - 3, 2**33)] * 4), st.integers(-1, 1))
def test_products_are_compared_exactly(factors: tuple[int, int, int, int], change: int) -> None:
    a, b, c, d = factors
    assert less(*(np.uint64(value) for value in factors)) == (a * b < c * d)
    other = min(max(a + change, 0), 2**64 - 1)  # almost the same product
    assert less(np.uint64(b), np.uint64(a), np.uint64(other), np.uint64(b)) == (a * b < other * b)


@st.composite
def close_fractions(draw: st.DrawFn) -> list[Row]:
    """Merges whose scores float64 cannot tell apart, equal ones and must-links among them."""
    contact = draw(st.sampled_from([1, 3, 10**8, 2**40, 2**56 - 8]))
    affinity = draw(st.integers(0, 255)) * contact // 255
    near = st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(1, 9), st.integers(0, 3))
    drawn = draw(st.lists(near, max_size=40))
    return [
        (k, k + b, 1, 0) if not kind else (k, k + b, min(affinity + s, 255 * (contact + n)), contact + n)
        for k, (s, n, b, kind) in enumerate(drawn, 1)
    ]


def test_sums_of_more_than_64_bits_are_refused() -> None:
    some, more = 2**63 // 255, (2**63 + 2**40) // 255
    with pytest.raises(DataError, match="more than 64 bits"):
        agglomerate(make_edges([(1, 2, 255 * some, some), (1, 3, 255 * more, more)]), 0.5)
    less_of_it = more - 2**36
    (last,) = as_rows(agglomerate(make_edges([(1, 2, 255 * some, some), (1, 2, 255 * less_of_it, less_of_it)]), 0.5))
    assert last == (1, 2, 255 * (some + less_of_it), some + less_of_it)


@settings(deadline=None, max_examples=200)
@given(rows=close_fractions(), data=st.data())
def test_merges_are_sorted_exactly(rows: list[Row], data: st.DataObject) -> None:
    mixed = data.draw(st.permutations(rows))
    middle = data.draw(st.integers(0, len(rows)))
    parts = [Dendrogram(*np.array(part, np.uint64).reshape(-1, 4).T) for part in (mixed[:middle], mixed[middle:])]
    expected = sorted(
        rows, key=lambda row: (row[3] > 0, -Fraction(row[2], row[3]) if row[3] else Fraction(), row[0], row[1])
    )
    assert as_rows(sort_merges(parts)) == expected


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([2**20, 2**46]))
@example(seed=0, scale=2**46)  # sums that float64 rounds
def test_regions_with_many_neighbours_are_merged_exactly(seed: int, scale: int) -> None:
    """What has more than 256 neighbours is merged by a heap of floats, which here cannot tell scores apart."""
    rng = np.random.default_rng(seed)
    pairs = [(1, leaf) for leaf in range(2, 260)]
    pairs += sorted({(min(p), max(p)) for p in rng.integers(2, 260, (150, 2)).tolist() if p[0] != p[1]})
    contact = scale + rng.integers(0, 3, len(pairs))
    affinity = 204 * contact - rng.integers(0, 4, len(pairs))
    rows = zip(pairs, affinity.tolist(), contact.tolist(), strict=True)
    edges = make_edges([(*pair, total, n) for pair, total, n in rows])
    assert as_rows(agglomerate(edges, 0.3)) == oracle(edges, Fraction(3, 10))


@settings(deadline=None, max_examples=200)
@given(rows=close_fractions(), threshold=st.fractions(0, 1, max_denominator=10**6), low=st.floats(0, 1))
def test_thresholds_are_fractions(rows: list[Row], threshold: Fraction, low: float) -> None:
    at_it = least_mean(float(threshold))
    assert Fraction(int(at_it[0]), int(at_it[1])) == 255 * (1 - threshold)
    one, other = (least_mean(value) for value in sorted((low, float(threshold))))
    assert int(one[0]) * int(other[1]) >= int(other[0]) * int(one[1])  # rise as thresholds do
    numerator, denominator = (int(part) for part in at_it)
    rows.append((1, 2, numerator, denominator))  # exactly at the threshold
    table = Dendrogram(*np.array(rows, np.uint64).reshape(-1, 4).T)
    expected = [a for a, _, s, n in rows if n == 0 or 1 - Fraction(s, 255 * n) <= threshold]
    assert cut(table, float(threshold))[0].tolist() == expected


def synthetic(seed: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Fragments of a Voronoi diagram with noisy affinities: all kinds of scores, large regions."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 1, (400, 3)) * shape
    voxels = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).reshape(-1, 1, 3)
    nearest = [((part - points) ** 2).sum(-1).argmin(-1) for part in np.array_split(voxels, 64)]
    fragments = np.concatenate(nearest).reshape(shape).astype(np.uint64) + np.uint64(1)
    smooth = rng.normal(0.5, 0.25, (3, *(-(-n // 4) for n in shape))).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    noisy = smooth[:, : shape[0], : shape[1], : shape[2]] + rng.normal(0, 0.2, (3, *shape))
    return fragments, np.clip(255 * noisy, 0, 255).astype(np.uint8)


def test_order_of_the_edges_does_not_matter() -> None:
    fragments, affinities = synthetic(0, (32, 32, 32))
    edges = block_edges(fragments, affinities, NEAREST, (slice(0, 32),) * 3)
    expected = as_rows(agglomerate(edges, 0.7))
    assert len(expected) > 100
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(edges.u.size)
        assert as_rows(agglomerate(Edges(*(column[order] for column in edges)), 0.7)) == expected


def test_equals_waterz() -> None:
    fragments, affinities = synthetic(1, (40, 40, 40))
    fragments[:3] = 0
    spread = fragments * np.uint64(10**15)  # waterz would need petabytes if ids were not made small first
    kept = spread.copy()
    thresholds = [0.55, 0.4, 0.45, 0.5]
    one_shot = waterz_segments(affinities, spread, NEAREST, thresholds)
    assert np.array_equal(spread, kept)
    edges = block_edges(spread, affinities, NEAREST, (slice(0, 40),) * 3)
    dendrogram = agglomerate(edges, max(thresholds))
    ids = np.unique(spread[spread > 0])
    counts = []
    for threshold, theirs in zip(thresholds, one_shot, strict=True):
        ours = apply(spread, ids, lut(ids, *cut(dendrogram, threshold)))
        assert scores(block_contingency(theirs, ours)).voi <= 0.005
        assert set(np.unique(theirs)) - {0} <= set(ids)
        assert np.array_equal(theirs == 0, spread == 0)
        counts.append(np.unique(ours).size)
    assert counts[1] > counts[2] > counts[3] > counts[0] > 2


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, 1), (-1, 1, -1)])
def test_waterz_gets_affinities_of_any_sign_and_order(signs: tuple[int, int, int]) -> None:
    fragments, affinities = synthetic(2, (20, 24, 28))
    offsets = [tuple(sign * int(axis == a) for a in range(3)) for axis, sign in enumerate(signs)]
    turned = np.zeros_like(affinities)
    for axis, sign in enumerate(signs):
        turned[axis] = np.roll(affinities[axis], -1, axis) if sign > 0 else affinities[axis]
    channels = [2, 0, 1]
    offsets_turned = tuple(offsets[c] for c in channels)
    (expected,) = waterz_segments(affinities, fragments, NEAREST, [0.5])
    (got,) = waterz_segments(turned[channels], fragments, offsets_turned, [0.5])  # type: ignore[arg-type]
    assert np.array_equal(got, expected)
    inside = nearest_links(affinities, NEAREST)[:, 1:, 1:, 1:]
    assert np.array_equal(nearest_links(turned[channels], offsets_turned)[:, 1:, 1:, 1:], inside)  # type: ignore[arg-type]


def test_waterz_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    _, affinities = synthetic(3, (12, 12, 12))
    fragments = waterz_fragments(affinities, 0.01, 0.99)
    waterz_segments(affinities, fragments, NEAREST, [0.5])
    assert capfd.readouterr() == ("", "")
    assert np.unique(fragments).size > 2


def test_waterz_merges_nothing_among_fragments() -> None:
    """Two sure boxes with one sure link between them, above ``high`` only where it says so."""
    affinities = np.full((3, 4, 4, 8), 255, np.uint8)
    affinities[2, :, :, 4] = 128
    assert np.unique(waterz_fragments(affinities, 0.6, 0.9)).size == 2
    assert np.unique(waterz_fragments(affinities, 0.1, 0.4)).size == 1


def test_nothing_to_merge() -> None:
    assert as_rows(agglomerate(make_edges([]), 0.5)) == []
    assert as_rows(agglomerate(make_edges([(1, 2, 0, 1)]), 0.99)) == []


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_refuses_thresholds(threshold: float) -> None:
    edges = make_edges([(1, 2, 255, 1)])
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        agglomerate(edges, threshold)
    with pytest.raises(ConfigError, match=r"0\.\.1"):
        cut(agglomerate(edges, 0.5), threshold)


@pytest.mark.parametrize("rows", [[(2, 1, 5, 1)], [(1, 1, 5, 1)], [(1, 2, 256, 1)], [(1, 2, 0, 0)]])
def test_refuses_edges_that_are_none(rows: list[Row]) -> None:
    with pytest.raises(DataError):
        agglomerate(make_edges(rows), 0.5)


def test_refuses_fragments_of_another_shape() -> None:
    fragments, affinities = synthetic(4, (8, 8, 8))
    with pytest.raises(ShapeError):
        waterz_segments(affinities, fragments[1:], NEAREST, [0.5])
    with pytest.raises(ConfigError, match="low < high"):
        waterz_fragments(affinities, 0.5, 0.5)
