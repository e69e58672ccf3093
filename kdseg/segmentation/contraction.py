"""The region graph while it is being contracted: adjacency, heap and exact comparison, compiled by numba.

All compiled functions that call each other live in this one module, since numba's cache does not notice a
change in another one.

Heap entries are lower bounds: since an edge only gets worse when it is added to another, the sum stays at
the heap entry of the better one, and is put back when it comes to the top with an outdated score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

TOUCH, MUST, CANNOT = 1, 2, 4
"""Bits of `Rows.flags`; an edge without any of them is dead."""

_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, multiplicative hashing)
_NEAR = 1e-9  # far above rounding: values that differ by more need no integers
_HIGH, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


class Rows(NamedTuple):
    """Edges between regions, in any order; rows of one pair are parts of one edge and add up.

    Attributes:
        u: uint64 (e,), a region, named by its smallest fragment.
        v: uint64 (e,), another region.
        affinity_sum: uint64 (e,), in 1/255.
        contact: uint64 (e,), what the sum is divided by.
        last_u: uint64 (e,), the largest pair of fragments that the edge contains, which decides between
            equal scores.
        last_v: uint64 (e,), its other end.
        flags: uint8 (e,), bits `TOUCH` (regions that do not touch are not merged), `MUST`, `CANNOT`.
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]
    last_u: NDArray[np.uint64]
    last_v: NDArray[np.uint64]
    flags: NDArray[np.uint8]


class Graph(NamedTuple):
    """Edges between nodes. A half edge is ``2 * edge + side``; a node links its own in a list."""

    name: NDArray[np.uint64]  # (n,), smallest fragment
    frozen: NDArray[np.bool_]  # (n,)
    head: NDArray[np.int32]  # (n,), -1: none
    tail: NDArray[np.int32]
    length: NDArray[np.int32]  # with dead ones
    ends: NDArray[np.int32]  # (e, 2), nodes
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]
    last: NDArray[np.int32]  # row of the largest pair of fragments
    flags: NDArray[np.uint8]  # 0: dead
    follow: NDArray[np.int32]  # (2e,), next half edge
    table: NDArray[np.uint64]  # (capacity,), hash table of pairs: hash << 32 | edge + 1, 0: free


class Keys(NamedTuple):
    """What the heap compares, one row per edge: its state when it was last put into the heap."""

    numerator: NDArray[np.uint64]
    denominator: NDArray[np.uint64]
    last: NDArray[np.int32]
    stale: NDArray[np.bool_]


class Heap(NamedTuple):
    """Four children per entry; the value of each entry stands beside it, so that most comparisons stay here."""

    value: NDArray[np.float64]
    edge: NDArray[np.int32]


class Merges(NamedTuple):
    """Merges in the order in which they were made, see `agglomerate.Dendrogram`."""

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]


@njit(cache=True)
def less(a: np.uint64, b: np.uint64, c: np.uint64, d: np.uint64) -> bool:
    """Return whether ``a * b < c * d``, exactly, by products of 128 bits where 64 are too few."""
    bits, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    if (a | b | c | d) <= low:
        return bool(a * b < c * d)
    # schoolbook multiplication in halves of 32 bits
    middle = (a & low) * (b >> bits) + (((a & low) * (b & low)) >> bits)
    cross = (a >> bits) * (b & low) + (middle & low)
    high_ab = (a >> bits) * (b >> bits) + (middle >> bits) + (cross >> bits)
    middle = (c & low) * (d >> bits) + (((c & low) * (d & low)) >> bits)
    cross = (c >> bits) * (d & low) + (middle & low)
    high_cd = (c >> bits) * (d >> bits) + (middle >> bits) + (cross >> bits)
    return bool(high_ab < high_cd if high_ab != high_cd else a * b < c * d)


@njit(cache=True)
def reaches(
    sums: NDArray[np.uint64], contacts: NDArray[np.uint64], numerator: np.uint64, denominator: np.uint64
) -> NDArray[np.bool_]:
    """Return where ``sums / contacts`` is at least the given fraction; 1 / 0 is above all."""
    out = np.empty(sums.size, np.bool_)
    for k in range(sums.size):
        out[k] = not less(sums[k], denominator, numerator, contacts[k])
    return out


@njit(cache=True)
def _evaluate(graph: Graph, keys: Keys, edge: int) -> float:
    """Note an edge's present score in its key; return it, infinite for a must-link, negative for a cannot-link."""
    keys.last[edge] = graph.last[edge]
    keys.stale[edge] = False
    if graph.flags[edge] & CANNOT:
        keys.numerator[edge], keys.denominator[edge] = np.uint64(0), np.uint64(1)
        return -1.0
    if graph.flags[edge] & MUST:
        keys.numerator[edge], keys.denominator[edge] = np.uint64(1), np.uint64(0)
        return np.inf
    keys.numerator[edge], keys.denominator[edge] = graph.affinity_sum[edge], graph.contact[edge]
    return float(keys.numerator[edge]) / float(keys.denominator[edge])


@njit(cache=True)
def _after(i: int, j: int, rows: Rows) -> bool:
    """Return whether the pair of fragments in row ``i`` is larger than that in row ``j``."""
    if rows.last_u[i] != rows.last_u[j]:
        return bool(rows.last_u[i] > rows.last_u[j])
    return bool(rows.last_v[i] > rows.last_v[j])


@njit(cache=True)
def _better(one: float, i: int, other: float, j: int, keys: Keys, rows: Rows) -> bool:
    """Return whether edge ``i`` with the value ``one`` is merged before ``j`` with ``other``."""
    if abs(one - other) > _NEAR:  # two infinite ones differ by no number
        return one > other
    if less(keys.numerator[j], keys.denominator[i], keys.numerator[i], keys.denominator[j]):
        return True
    if less(keys.numerator[i], keys.denominator[j], keys.numerator[j], keys.denominator[i]):
        return False
    return _after(keys.last[j], keys.last[i], rows)


@njit(cache=True)
def _sift_down(heap: Heap, size: int, k: int, keys: Keys, rows: Rows) -> None:
    """Restore the order of the heap below ``k``."""
    value, edge = heap.value[k], heap.edge[k]
    while 4 * k + 1 < size:
        best = 4 * k + 1
        for child in range(best + 1, min(best + 4, size)):
            # a call copies all that keys and rows name: only where the values themselves do not decide
            gain = heap.value[child] - heap.value[best]
            if gain > _NEAR or (
                not gain < -_NEAR
                and _better(heap.value[child], heap.edge[child], heap.value[best], heap.edge[best], keys, rows)
            ):
                best = child
        gain = heap.value[best] - value
        if gain < -_NEAR or (
            not gain > _NEAR and not _better(heap.value[best], heap.edge[best], value, edge, keys, rows)
        ):
            break
        heap.value[k], heap.edge[k] = heap.value[best], heap.edge[best]
        k = best
    heap.value[k], heap.edge[k] = value, edge


@njit(cache=True)
def _hash(a: int, b: int) -> np.uint64:
    """Return 32 mixed bits of a pair of nodes, whichever comes first."""
    mixed = (np.uint64(min(a, b)) << _HIGH | np.uint64(max(a, b))) * _HASH
    return ((mixed ^ (mixed >> np.uint64(29))) * _HASH) >> _HIGH


@njit(cache=True)
def _find(table: NDArray[np.uint64], ends: NDArray[np.int32], a: int, b: int) -> int:
    """Return the place of a pair of nodes in the table, or the free one where it belongs."""
    mask = table.size - 1
    tag = _hash(a, b)
    k = np.int64(tag) & mask
    while table[k] != 0:
        if table[k] >> _HIGH == tag:
            one, other = ends[np.int64(table[k] & _LOW) - 1]
            if (one == a and other == b) or (one == b and other == a):
                break
        k = (k + 1) & mask
    return int(k)


@njit(cache=True)
def _remove(table: NDArray[np.uint64], gap: int) -> None:
    """Free a place and close the gap (Knuth, vol. 3, 6.4, algorithm R), so that pairs stay easy to find."""
    mask = table.size - 1
    k = (gap + 1) & mask
    while table[k] != 0:
        home = np.int64(table[k] >> _HIGH) & mask
        if ((k - home) & mask) >= ((k - gap) & mask):
            table[gap] = table[k]
            gap = k
        k = (k + 1) & mask
    table[gap] = 0


@njit(cache=True)
def _append(graph: Graph, node: int, half: int) -> None:
    if graph.head[node] == -1:
        graph.head[node] = half
    else:
        graph.follow[graph.tail[node]] = half
    graph.tail[node] = half
    graph.follow[half] = -1
    graph.length[node] += 1


@njit(cache=True)
def _add(graph: Graph, kept: int, dead: int, rows: Rows) -> None:
    """Add an edge to a parallel one."""
    graph.affinity_sum[kept] += graph.affinity_sum[dead]
    graph.contact[kept] += graph.contact[dead]
    graph.flags[kept] |= graph.flags[dead]
    if _after(graph.last[dead], graph.last[kept], rows):
        graph.last[kept] = graph.last[dead]
    graph.flags[dead] = 0


@njit(cache=True)
def _number(ids: NDArray[np.uint64], table: NDArray[np.int32], names: NDArray[np.uint64], count: int, one: int) -> int:
    """Return the node of the region ``ids[one]``, a new one if it is met for the first time."""
    mask = table.size - 1
    mixed = ids[one] * _HASH
    k = np.int64((mixed ^ (mixed >> np.uint64(29))) * _HASH >> np.uint64(20)) & mask
    while table[k] != -1 and names[table[k]] != ids[one]:
        k = (k + 1) & mask
    if table[k] == -1:
        table[k] = count
        names[count] = ids[one]
    return int(table[k])


@njit(cache=True)
def _nodes(rows: Rows) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Return both nodes of each row, and the nodes' names."""
    size = 4
    while size < 2 * rows.u.size:  # a graph with many edges has far fewer nodes: it grows where needed
        size *= 2
    table = np.full(size, -1, np.int32)
    names = np.empty(max(size // 2, 2), np.uint64)
    ends = np.empty((rows.u.size, 2), np.int32)
    count = 0
    for k in range(rows.u.size):
        if count + 2 > names.size:
            size *= 2
            more = np.empty(size // 2, np.uint64)
            more[:count] = names[:count]
            names, table = more, np.full(size, -1, np.int32)
            for node in range(count):
                _number(names, table, names, node, node)
        ends[k, 0] = _number(rows.u, table, names, count, k)
        count = max(count, int(ends[k, 0]) + 1)
        ends[k, 1] = _number(rows.v, table, names, count, k)
        count = max(count, int(ends[k, 1]) + 1)
    return ends, names[:count].copy()


@njit(cache=True)
def build(rows: Rows, frozen: NDArray[np.uint64]) -> Graph:
    """Return the graph of some rows.

    Args:
        rows: of edges; those of one pair are added up.
        frozen: uint64, ascending, regions that are never merged; others may be among them.
    """
    ends, names = _nodes(rows)
    size = 4
    while size < 2 * rows.u.size:
        size *= 2
    graph = Graph(
        names,
        np.zeros(names.size, np.bool_),
        np.full(names.size, -1, np.int32),
        np.full(names.size, -1, np.int32),
        np.zeros(names.size, np.int32),
        ends,
        rows.affinity_sum.copy(),
        rows.contact.copy(),
        np.arange(rows.u.size, dtype=np.int32),
        rows.flags.copy(),
        np.full(2 * rows.u.size, -1, np.int32),
        np.zeros(size, np.uint64),
    )
    for node in range(names.size):
        place = np.searchsorted(frozen, names[node])
        graph.frozen[node] = place < frozen.size and frozen[place] == names[node]
    for edge in range(rows.u.size):
        a, b = ends[edge]
        place = _find(graph.table, graph.ends, a, b)
        if graph.table[place] != 0:
            _add(graph, int(graph.table[place] & _LOW) - 1, edge, rows)
        else:
            graph.table[place] = _hash(a, b) << _HIGH | np.uint64(edge + 1)
            _append(graph, a, 2 * edge)
            _append(graph, b, 2 * edge + 1)
    for edge in range(rows.u.size):
        if graph.flags[edge] == 0:  # added to another, or nothing that touches
            place = _find(graph.table, graph.ends, ends[edge, 0], ends[edge, 1])
            if graph.table[place] & _LOW == np.uint64(edge + 1):
                _remove(graph.table, place)
    return graph


@njit(cache=True)
def _contract(graph: Graph, keys: Keys, edge: int, rows: Rows) -> None:
    """Merge the ends of an edge: the node with the shorter list hands its edges to the other one."""
    small, large = graph.ends[edge]
    if graph.length[small] > graph.length[large]:
        small, large = large, small
    graph.name[large] = min(graph.name[small], graph.name[large])
    _remove(graph.table, _find(graph.table, graph.ends, small, large))
    graph.flags[edge] = 0
    half = graph.head[small]
    while half != -1:
        following = graph.follow[half]
        moved, side = half >> 1, half & 1
        if graph.flags[moved] != 0:
            other = graph.ends[moved, 1 - side]
            _remove(graph.table, _find(graph.table, graph.ends, small, other))
            place = _find(graph.table, graph.ends, large, other)
            parallel = int(graph.table[place] & _LOW) - 1
            kept = moved
            if parallel != -1:
                if _first(parallel, moved, keys, rows):
                    kept = parallel
                    _add(graph, parallel, moved, rows)
                else:
                    _add(graph, moved, parallel, rows)
                keys.stale[kept] = True
            if kept == moved:
                graph.ends[moved, side] = large
                graph.table[place] = _hash(large, other) << _HIGH | np.uint64(moved + 1)
                _append(graph, large, half)
        half = following


@njit(cache=True)
def _first(i: int, j: int, keys: Keys, rows: Rows) -> bool:
    """Return whether edge ``i`` stands before ``j`` in the heap."""
    one = float(keys.numerator[i]) / float(keys.denominator[i]) if keys.denominator[i] else np.inf
    other = float(keys.numerator[j]) / float(keys.denominator[j]) if keys.denominator[j] else np.inf
    return _better(one, i, other, j, keys, rows)


@njit(cache=True)
def _start(graph: Graph, keys: Keys, numerator: np.uint64, denominator: np.uint64) -> Heap:
    """Return the heap of the edges that may be merged; bury what only looks like an edge."""
    heap = Heap(np.empty(graph.flags.size, np.float64), np.empty(graph.flags.size, np.int32))
    size = 0
    for edge in range(graph.flags.size):
        if graph.flags[edge] == 0:
            continue
        value = _evaluate(graph, keys, edge)
        if value >= 0 and not less(keys.numerator[edge], denominator, numerator, keys.denominator[edge]):
            heap.value[size], heap.edge[size] = value, edge
            size += 1
    return Heap(heap.value[:size], heap.edge[:size])


@njit(cache=True)
def merge_all(graph: Graph, rows: Rows, numerator: np.uint64, denominator: np.uint64) -> Merges:
    """Merge the best edge until none is left whose score is at least ``numerator / denominator``.

    Where the best edge has a frozen end, it may not be the best one of that end: the other end is frozen
    then, too, and the edge is left. So every merge is of two regions each of which is best for the other.

    Args:
        graph: from `build`; left as what cannot be decided here.
        rows: what it was built from.
        numerator: of the least affinity, in 1/255.
        denominator: of the least affinity.

    Returns:
        The merges; of must-links the fraction 1 / 0.
    """
    edges, nodes = graph.flags.size, graph.name.size
    keys = Keys(
        np.zeros(edges, np.uint64), np.ones(edges, np.uint64), np.zeros(edges, np.int32), np.zeros(edges, np.bool_)
    )
    heap = _start(graph, keys, numerator, denominator)
    a, b = np.empty(nodes, np.uint64), np.empty(nodes, np.uint64)
    sums, contacts = np.empty(nodes, np.uint64), np.empty(nodes, np.uint64)
    done, size = 0, heap.edge.size
    for k in range(size // 4, -1, -1):
        if k < size:
            _sift_down(heap, size, k, keys, rows)
    while size > 0:
        edge = heap.edge[0]
        keep = False
        if graph.flags[edge] != 0 and keys.stale[edge]:
            heap.value[0] = _evaluate(graph, keys, edge)
            reached = not less(keys.numerator[edge], denominator, numerator, keys.denominator[edge])
            keep = reached and heap.value[0] >= 0
        elif graph.flags[edge] != 0:
            one, other = graph.ends[edge]
            if graph.frozen[one] or graph.frozen[other]:
                graph.frozen[one] = graph.frozen[other] = True
            else:
                a[done] = min(graph.name[one], graph.name[other])
                b[done] = max(graph.name[one], graph.name[other])
                sums[done], contacts[done] = graph.affinity_sum[edge], graph.contact[edge]
                if graph.flags[edge] & MUST:
                    sums[done], contacts[done] = np.uint64(1), np.uint64(0)
                done += 1
                _contract(graph, keys, edge, rows)
        if not keep:
            size -= 1
            heap.value[0], heap.edge[0] = heap.value[size], heap.edge[size]
        if size > 0:
            _sift_down(heap, size, 0, keys, rows)
    return Merges(a[:done], b[:done], sums[:done], contacts[:done])


@njit(cache=True)
def undecided(graph: Graph) -> NDArray[np.int64]:
    """Return the edges that are left between frozen nodes.

    A node that is not frozen has no edge left that reaches the threshold, and never gets one: what it
    touches can only become worse. It is finished.
    """
    left = np.empty(graph.flags.size, np.int64)
    count = 0
    for edge in range(graph.flags.size):
        if graph.flags[edge] != 0 and graph.frozen[graph.ends[edge, 0]] and graph.frozen[graph.ends[edge, 1]]:
            left[count] = edge
            count += 1
    return left[:count].copy()
