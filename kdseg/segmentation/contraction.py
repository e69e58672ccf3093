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

_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio (Knuth, multiplicative hashing)


class Keys(NamedTuple):
    """What the heap compares, one row per edge: its state when it was last put into the heap."""

    mean: NDArray[np.float64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]
    first: NDArray[np.int64]  # smallest original edge in it; rows of edges are sorted by (u, v)


class Graph(NamedTuple):
    """Edges between regions. A half edge is ``2 * edge + side``; a node links its own in a list."""

    ends: NDArray[np.int64]  # (e, 2), nodes
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]  # 0: dead
    first: NDArray[np.int64]
    head: NDArray[np.int64]  # (n,), -1: none
    tail: NDArray[np.int64]
    length: NDArray[np.int64]  # with dead ones
    follow: NDArray[np.int64]  # (2e,), next half edge
    table: NDArray[np.int64]  # (capacity, 2), hash table: packed pair of nodes (-1: free), edge


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
    """Return where ``sums / contacts`` is at least the given fraction."""
    out = np.empty(sums.size, np.bool_)
    for k in range(sums.size):
        out[k] = not less(sums[k], denominator, numerator, contacts[k])
    return out


@njit(cache=True)
def _better(i: int, j: int, keys: Keys) -> bool:
    """Return whether edge ``i`` is merged before ``j``."""
    difference = keys.mean[i] - keys.mean[j]
    if abs(difference) > 1e-9:  # far above rounding: no need for integers
        return bool(difference > 0)
    if less(keys.affinity_sum[j], keys.contact[i], keys.affinity_sum[i], keys.contact[j]):
        return True
    if less(keys.affinity_sum[i], keys.contact[j], keys.affinity_sum[j], keys.contact[i]):
        return False
    return bool(keys.first[i] < keys.first[j])


@njit(cache=True)
def _sift_down(heap: NDArray[np.int64], size: int, k: int, keys: Keys) -> None:
    """Restore the order of a heap with four children per entry below ``k``."""
    edge = heap[k]
    while 4 * k + 1 < size:
        best = 4 * k + 1
        for child in range(best + 1, min(best + 4, size)):
            if _better(heap[child], heap[best], keys):
                best = child
        if not _better(heap[best], edge, keys):
            break
        heap[k] = heap[best]
        k = best
    heap[k] = edge


@njit(cache=True)
def _find(table: NDArray[np.int64], a: int, b: int) -> int:
    """Return the row of a pair of nodes, or the free row where it belongs."""
    key = (min(a, b) << 32) | max(a, b)
    mask = table.shape[0] - 1
    k = np.int64((np.uint64(key) * _HASH) >> np.uint64(20)) & mask
    while table[k, 0] != key and table[k, 0] != -1:
        k = (k + 1) & mask
    return int(k)


@njit(cache=True)
def _put(table: NDArray[np.int64], a: int, b: int, edge: int) -> None:
    k = _find(table, a, b)
    table[k, 0] = (min(a, b) << 32) | max(a, b)
    table[k, 1] = edge


@njit(cache=True)
def _remove(table: NDArray[np.int64], a: int, b: int) -> None:
    """Remove a pair and close the gap (Knuth, vol. 3, 6.4, algorithm R), so that rows stay easy to find."""
    mask = table.shape[0] - 1
    gap = _find(table, a, b)
    k = (gap + 1) & mask
    while table[k, 0] != -1:
        home = np.int64((np.uint64(table[k, 0]) * _HASH) >> np.uint64(20)) & mask
        if ((k - home) & mask) >= ((k - gap) & mask):
            table[gap] = table[k]
            gap = k
        k = (k + 1) & mask
    table[gap, 0] = -1


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
def build(ends: NDArray[np.int64], sums: NDArray[np.uint64], contacts: NDArray[np.uint64], nodes: int) -> Graph:
    """Return the graph of the given edges.

    Args:
        ends: int64 (e, 2), nodes 0..nodes-1; each pair once. Changed by merging, like the next two.
        sums: uint64 (e,), affinity sums.
        contacts: uint64 (e,), contact counts.
        nodes: number of nodes.
    """
    size = 4
    while size < 2 * sums.size:
        size *= 2
    graph = Graph(
        ends,
        sums,
        contacts,
        np.arange(sums.size),
        np.full(nodes, -1, np.int64),
        np.full(nodes, -1, np.int64),
        np.zeros(nodes, np.int64),
        np.full(2 * sums.size, -1, np.int64),
        np.full((size, 2), -1, np.int64),
    )
    for edge in range(sums.size):
        _put(graph.table, ends[edge, 0], ends[edge, 1], edge)
        _append(graph, ends[edge, 0], 2 * edge)
        _append(graph, ends[edge, 1], 2 * edge + 1)
    return graph


@njit(cache=True)
def _add(graph: Graph, kept: int, dead: int) -> None:
    graph.affinity_sum[kept] += graph.affinity_sum[dead]
    graph.contact[kept] += graph.contact[dead]
    graph.first[kept] = min(graph.first[kept], graph.first[dead])
    graph.contact[dead] = 0


@njit(cache=True)
def _contract(graph: Graph, keys: Keys, edge: int) -> None:
    """Merge the ends of an edge: the node with the shorter list hands its edges to the other one."""
    small, large = graph.ends[edge]
    if graph.length[small] > graph.length[large]:
        small, large = large, small
    _remove(graph.table, small, large)
    graph.contact[edge] = 0
    half = graph.head[small]
    while half != -1:
        following = graph.follow[half]
        moved, side = half >> 1, half & 1
        if graph.contact[moved] != 0:
            other = graph.ends[moved, 1 - side]
            _remove(graph.table, small, other)
            k = _find(graph.table, large, other)
            parallel = graph.table[k, 1] if graph.table[k, 0] != -1 else -1
            if parallel != -1 and _better(parallel, moved, keys):
                _add(graph, parallel, moved)
            else:
                if parallel != -1:
                    _add(graph, moved, parallel)
                graph.ends[moved, side] = large
                _put(graph.table, large, other, moved)
                _append(graph, large, half)
        half = following


@njit(cache=True)
def merge_all(
    graph: Graph, keys: Keys, heap: NDArray[np.int64], numerator: np.uint64, denominator: np.uint64
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Merge the best edge until none is left whose mean is at least ``numerator / denominator``.

    Args:
        graph: from `build`; used up.
        keys: the same edges' state; used up.
        heap: int64, the edges that reach the least mean, in any order; used up.
        numerator: of the least mean.
        denominator: of the least mean.

    Returns:
        Pairs of names (m, 2), int64, each region named by its smallest node; their affinity sums and
        contacts, uint64 (m,).
    """
    nodes = graph.head.size
    name = np.arange(nodes)
    merges = np.empty((nodes, 2), np.int64)
    sums, contacts = np.empty(nodes, np.uint64), np.empty(nodes, np.uint64)
    done, size = 0, heap.size
    for k in range(size // 4, -1, -1):
        if k < size:
            _sift_down(heap, size, k, keys)
    while size > 0:
        edge = heap[0]
        keep = False
        if graph.contact[edge] != 0 and graph.contact[edge] != keys.contact[edge]:  # outdated
            keys.affinity_sum[edge], keys.contact[edge] = graph.affinity_sum[edge], graph.contact[edge]
            keys.mean[edge] = graph.affinity_sum[edge] / graph.contact[edge]
            keys.first[edge] = graph.first[edge]
            keep = not less(keys.affinity_sum[edge], denominator, numerator, keys.contact[edge])
        elif graph.contact[edge] != 0:
            a, b = name[graph.ends[edge, 0]], name[graph.ends[edge, 1]]
            merges[done, 0], merges[done, 1] = min(a, b), max(a, b)
            sums[done], contacts[done] = graph.affinity_sum[edge], graph.contact[edge]
            done += 1
            one, other = graph.ends[edge]
            name[one] = name[other] = min(a, b)
            _contract(graph, keys, edge)
        if not keep:
            size -= 1
            heap[0] = heap[size]
        _sift_down(heap, size, 0, keys)
    return merges[:done], sums[:done], contacts[:done]
