"""The region graph while it is being contracted: adjacency, heap and exact comparison, compiled by numba.

What belongs to an edge lies in one record, hence in one line of the processor's cache.

Two regions may be merged as soon as each is the best partner of the other, in whatever order this is found
out, since merging elsewhere never makes an edge better (the linkage is *reducible*). So regions with few
neighbours are merged first, along chains of best partners (nearest-neighbour chain; Murtagh 1983, doi
10.1093/comjnl/26.4.354): that stays in the processor's cache. The few with many neighbours, whose lists would be read
over and over, are left to a heap of all edges. Its entries are lower bounds: the sum of two edges stays at the
entry of the better one, and is put back when it comes to the top with an outdated score.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.running.compiled import compiled
from kdseg.segmentation.graph.histograms import Histograms
from kdseg.segmentation.pair_table import HASH

TOUCH, MUST, CANNOT = 1, 2, 4
"""Bits of `Rows.flags`; an edge without any of them is dead."""

_MANY = 256
"""Neighbours from which on a region is left to the heap."""
_NEAR = 1e-9  # far above rounding: values that differ by more need no integers
_HIGH, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)

_NODE = np.dtype(
    [
        ("name", np.uint64),  # smallest fragment
        ("head", np.int32),  # its first half edge, ``2 * edge + side``; -1: none
        ("tail", np.int32),  # its last one
        ("length", np.int32),  # number of half edges, with dead ones
        ("stamp", np.int32),  # when `edge` was written
        ("edge", np.int32),  # edge between this node and the one that is looked at
        ("frozen", np.uint8),  # not to be merged, or merged into another
    ],
    align=True,
)
_EDGE = np.dtype(
    [
        ("affinity_sum", np.uint64),
        ("contact", np.uint64),
        ("numerator", np.uint64),  # its score when it was last put into the heap
        ("denominator", np.uint64),
        ("a", np.int32),  # node at side 0
        ("b", np.int32),  # node at side 1
        ("after_a", np.int32),  # half edge that follows at node a
        ("after_b", np.int32),
        ("last", np.int32),  # row of the largest pair of fragments
        ("heaped", np.int32),  # the same when it was last put into the heap
        ("bins", np.int32),  # first entry of its histogram; -1: none
        ("flags", np.uint8),  # 0: dead
        ("stale", np.uint8),  # added to since it was last put into the heap
    ],
    align=True,
)


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
        histograms: of the affinities, where the score is a quantile.
    """

    u: NDArray[np.uint64]
    v: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]
    last_u: NDArray[np.uint64]
    last_v: NDArray[np.uint64]
    flags: NDArray[np.uint8]
    histograms: Histograms | None = None


class Bins(NamedTuple):
    """Histograms as linked lists, which are joined in place."""

    bin: NDArray[np.uint8]
    pairs: NDArray[np.uint64]
    follow: NDArray[np.int32]  # -1: the last


class Graph(NamedTuple):
    """Edges between nodes; a node links its half edges in a list."""

    nodes: NDArray[Any]  # of _NODE
    edges: NDArray[Any]  # of _EDGE


class Heap(NamedTuple):
    """Four children per entry; the value of each entry stands beside it, so that most comparisons stay here."""

    value: NDArray[np.float64]
    edge: NDArray[np.int32]


class Merges(NamedTuple):
    """Merges in the order in which they were made, see `linkage.Dendrogram`."""

    a: NDArray[np.uint64]
    b: NDArray[np.uint64]
    affinity_sum: NDArray[np.uint64]
    contact: NDArray[np.uint64]


@compiled
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


@compiled
def reaches(
    sums: NDArray[np.uint64], contacts: NDArray[np.uint64], numerator: np.uint64, denominator: np.uint64
) -> NDArray[np.bool_]:
    """Return where ``sums / contacts`` is at least the given fraction; 1 / 0 is above all."""
    out = np.empty(sums.size, np.bool_)
    for k in range(sums.size):
        out[k] = not less(sums[k], denominator, numerator, contacts[k])
    return out


@compiled
def descending(numerators: NDArray[np.uint64], denominators: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the order of fractions, largest first, equal ones as they come; 1 / 0 is above all."""
    order = np.arange(numerators.size)
    other = np.empty_like(order)
    width = 1
    while width < order.size:  # merge sort, bottom up: runs of `width` are in order
        for start in range(0, order.size, 2 * width):
            middle = min(start + width, order.size)
            stop = min(middle + width, order.size)
            i, j = start, middle
            for k in range(start, stop):
                second = i == middle
                if not second and j < stop:
                    one, two = order[i], order[j]
                    second = less(numerators[one], denominators[two], numerators[two], denominators[one])
                if second:
                    other[k] = order[j]
                    j += 1
                else:
                    other[k] = order[i]
                    i += 1
        order, other = other, order
        width *= 2
    return order


@compiled
def _quantile(head: int, bins: Bins, percent: int) -> int:
    """Return the smallest affinity, in 1/255, up to which more than ``percent`` of 100 of the entries lie."""
    total = np.uint64(0)
    k = head
    while k != -1:
        total += bins.pairs[k]
        k = bins.follow[k]
    bound, below = np.uint64(percent) * total, np.uint64(0)
    k = head
    while k != -1:
        below += np.uint64(100) * bins.pairs[k]
        if below > bound:
            return int(bins.bin[k])
        k = bins.follow[k]
    return 0


@compiled
def _join(one: int, other: int, bins: Bins) -> int:
    """Add two histograms in place; return the first entry."""
    first = last = -1
    while one != -1 or other != -1:
        if one != -1 and other != -1 and bins.bin[one] == bins.bin[other]:
            bins.pairs[one] += bins.pairs[other]
            other = bins.follow[other]
        if other == -1 or (one != -1 and bins.bin[one] < bins.bin[other]):
            new, one = one, bins.follow[one]
        else:
            new, other = other, bins.follow[other]
        if last == -1:
            first = new
        else:
            bins.follow[last] = new
        last = new
    return int(first)


@compiled
def _evaluate(edges: NDArray[Any], e: int, bins: Bins | None, percent: int) -> float:
    """Note an edge's present score; return it, infinite for a must-link, negative for a cannot-link."""
    edge = edges[e]
    edge.heaped, edge.stale = edge.last, 0
    if edge.flags & CANNOT:
        edge.numerator, edge.denominator = 0, 1
        return -1.0
    if edge.flags & MUST:
        edge.numerator, edge.denominator = 1, 0
        return np.inf
    if bins is None:
        edge.numerator, edge.denominator = edge.affinity_sum, edge.contact
    else:
        edge.numerator, edge.denominator = _quantile(edge.bins, bins, percent), 1
    return float(edge.numerator) / float(edge.denominator)


@compiled
def _after(i: int, j: int, last_u: NDArray[np.uint64], last_v: NDArray[np.uint64]) -> bool:
    """Return whether the pair of fragments in row ``i`` is larger than that in row ``j``."""
    if last_u[i] != last_u[j]:
        return bool(last_u[i] > last_u[j])
    return bool(last_v[i] > last_v[j])


@compiled
def _before(i: int, j: int, edges: NDArray[Any], last_u: NDArray[np.uint64], last_v: NDArray[np.uint64]) -> bool:
    """Return whether edge ``i`` is merged before ``j``, where floats cannot tell."""
    one, other = edges[i], edges[j]
    if less(other.numerator, one.denominator, one.numerator, other.denominator):
        return True
    if less(one.numerator, other.denominator, other.numerator, one.denominator):
        return False
    return _after(other.heaped, one.heaped, last_u, last_v)


@compiled
def _sift_down(
    heap: Heap, size: int, k: int, edges: NDArray[Any], last_u: NDArray[np.uint64], last_v: NDArray[np.uint64]
) -> None:
    """Restore the order of the heap below ``k``."""
    values, entries = heap
    value, edge = values[k], entries[k]
    while 4 * k + 1 < size:
        best = 4 * k + 1
        for child in range(best + 1, min(best + 4, size)):
            gain = values[child] - values[best]  # of two infinite ones no number: both comparisons fail
            if gain > _NEAR or (not gain < -_NEAR and _before(entries[child], entries[best], edges, last_u, last_v)):
                best = child
        gain = values[best] - value
        if gain < -_NEAR or (not gain > _NEAR and not _before(entries[best], edge, edges, last_u, last_v)):
            break
        values[k], entries[k] = values[best], entries[best]
        k = best
    values[k], entries[k] = value, edge


@compiled
def _hash(a: int, b: int) -> np.uint64:
    """Return 32 mixed bits of a pair of nodes, whichever comes first."""
    mixed = (np.uint64(min(a, b)) << _HIGH | np.uint64(max(a, b))) * HASH
    return ((mixed ^ (mixed >> np.uint64(29))) * HASH) >> _HIGH


@compiled
def _find(table: NDArray[np.uint64], edges: NDArray[Any], tag: np.uint64, a: int, b: int) -> int:
    """Return the place of a pair of nodes in the table, or the free one where it belongs."""
    mask = table.size - 1
    k = np.int64(tag) & mask
    while table[k] != 0:
        if table[k] >> _HIGH == tag:
            edge = edges[np.int64(table[k] & _LOW) - 1]
            if (edge.a == a and edge.b == b) or (edge.a == b and edge.b == a):
                break
        k = (k + 1) & mask
    return int(k)


@compiled
def _remove(table: NDArray[np.uint64], tag: np.uint64, edge: int) -> None:
    """Free the place of an edge and close the gap (Knuth, vol. 3, 6.4, algorithm R), so that pairs are found."""
    mask = table.size - 1
    gap = np.int64(tag) & mask
    wanted = tag << _HIGH | np.uint64(edge + 1)
    while table[gap] != wanted:
        gap = (gap + 1) & mask
    k = (gap + 1) & mask
    while table[k] != 0:
        home = np.int64(table[k] >> _HIGH) & mask
        if ((k - home) & mask) >= ((k - gap) & mask):
            table[gap] = table[k]
            gap = k
        k = (k + 1) & mask
    table[gap] = 0


@compiled
def _append(nodes: NDArray[Any], edges: NDArray[Any], n: int, half: int) -> None:
    node = nodes[n]
    if node.head == -1:
        node.head = half
    elif node.tail & 1:
        edges[node.tail >> 1].after_b = half
    else:
        edges[node.tail >> 1].after_a = half
    node.tail = half
    node.length += 1
    if half & 1:
        edges[half >> 1].after_b = -1
    else:
        edges[half >> 1].after_a = -1


@compiled
def _add(
    edges: NDArray[Any],
    kept: int,
    dead: int,
    last_u: NDArray[np.uint64],
    last_v: NDArray[np.uint64],
    bins: Bins | None,
) -> None:
    """Add an edge to a parallel one."""
    one, other = edges[kept], edges[dead]
    one.affinity_sum += other.affinity_sum
    one.contact += other.contact
    one.flags |= other.flags
    if _after(other.last, one.last, last_u, last_v):
        one.last = other.last
    if bins is not None:
        one.bins = _join(one.bins, other.bins, bins)
        other.bins = -1
    other.flags, other.affinity_sum, other.contact = 0, 0, 0


@compiled
def _number(ids: NDArray[np.uint64], table: NDArray[np.int32], names: NDArray[np.uint64], count: int, one: int) -> int:
    """Return the node of the region ``ids[one]``, a new one if it is met for the first time."""
    mask = table.size - 1
    mixed = ids[one] * HASH
    k = np.int64((mixed ^ (mixed >> np.uint64(29))) * HASH >> np.uint64(20)) & mask
    while table[k] != -1 and names[table[k]] != ids[one]:
        k = (k + 1) & mask
    if table[k] == -1:
        table[k] = count
        names[count] = ids[one]
    return int(table[k])


@compiled
def _nodes(u: NDArray[np.uint64], v: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Return both nodes of each row, and the nodes' names."""
    size = 4
    while size < 2 * u.size:  # a graph with many edges has far fewer nodes: it grows where needed
        size *= 2
    table = np.full(size, -1, np.int32)
    names = np.empty(max(size // 2, 2), np.uint64)
    ends = np.empty((u.size, 2), np.int32)
    count = 0
    for k in range(u.size):
        if count + 2 > names.size:
            size *= 2
            more = np.empty(size // 2, np.uint64)
            more[:count] = names[:count]
            names, table = more, np.full(size, -1, np.int32)
            for node in range(count):
                _number(names, table, names, node, node)
        ends[k, 0] = _number(u, table, names, count, k)
        count = max(count, int(ends[k, 0]) + 1)
        ends[k, 1] = _number(v, table, names, count, k)
        count = max(count, int(ends[k, 1]) + 1)
    return ends, names[:count].copy()


@compiled
def build(rows: Rows, frozen: NDArray[np.uint64], bins: Bins | None, start: NDArray[np.int32] | None) -> Graph:
    """Return the graph of some rows.

    Args:
        rows: of edges; those of one pair are added up.
        frozen: uint64, ascending, regions that are never merged; others may be among them.
        bins: histograms of the rows, where the score is a quantile; their lists are joined.
        start: int32 (e,), first entry of each row's, -1: none.
    """
    last_u, last_v = rows.last_u, rows.last_v
    ends, names = _nodes(rows.u, rows.v)
    nodes, edges = np.empty(names.size, _NODE), np.empty(ends.shape[0], _EDGE)
    for n in range(names.size):
        node = nodes[n]
        place = np.searchsorted(frozen, names[n])
        node.name, node.head, node.tail, node.length, node.stamp = names[n], -1, -1, 0, -1
        node.frozen = 1 if place < frozen.size and frozen[place] == names[n] else 0
    for e in range(edges.size):
        edge = edges[e]
        edge.affinity_sum, edge.contact = rows.affinity_sum[e], rows.contact[e]
        edge.flags, edge.stale, edge.last = rows.flags[e], 0, e
        edge.a, edge.b = ends[e]
        edge.bins = -1
        if start is not None:
            edge.bins = start[e]
        _append(nodes, edges, edge.a, 2 * e)
        _append(nodes, edges, edge.b, 2 * e + 1)
    for n in range(names.size):
        half = nodes[n].head
        while half != -1:
            e, side = half >> 1, half & 1
            other = nodes[edges[e].a if side else edges[e].b]
            if other.stamp != -2 - n:
                other.stamp, other.edge = -2 - n, e
            else:
                _add(edges, other.edge, e, last_u, last_v, bins)
            half = edges[e].after_b if side else edges[e].after_a
    return Graph(nodes, edges)


@compiled
def _best(
    nodes: NDArray[Any], edges: NDArray[Any], n: int, last_u: NDArray[np.uint64], last_v: NDArray[np.uint64]
) -> int:
    """Return the best half edge of a node, -1 if there is none; take the dead ones out of its list."""
    node = nodes[n]
    best = previous = -1
    half = node.head
    while half != -1:
        edge = edges[half >> 1]
        following = edge.after_b if half & 1 else edge.after_a
        if edge.flags == 0:
            node.length -= 1
            if previous == -1:
                node.head = following
            elif previous & 1:
                edges[previous >> 1].after_b = following
            else:
                edges[previous >> 1].after_a = following
        else:
            previous = half
            if not edge.flags & CANNOT and (best == -1 or _before(half >> 1, best >> 1, edges, last_u, last_v)):
                best = half
        half = following
    node.tail = previous
    return int(best)


@compiled
def _note(merges: Merges, done: int, edge: Any, one: Any, other: Any) -> int:
    merges.a[done], merges.b[done] = min(one.name, other.name), max(one.name, other.name)
    merges.affinity_sum[done], merges.contact[done] = edge.numerator, edge.denominator
    return done + 1


@compiled
def _contract_near(
    graph: Graph,
    merged: int,
    last_u: NDArray[np.uint64],
    last_v: NDArray[np.uint64],
    bins: Bins | None,
    percent: int,
) -> int:
    """Merge the ends of an edge, reading the lists of both; return the node that is left."""
    nodes, edges = graph
    small, large = edges[merged].a, edges[merged].b
    if nodes[small].length > nodes[large].length:
        small, large = large, small
    nodes[large].name = min(nodes[small].name, nodes[large].name)
    nodes[small].frozen = 1
    edges[merged].flags = 0
    half = nodes[large].head
    while half != -1:
        e, side = half >> 1, half & 1
        if edges[e].flags != 0:
            other = nodes[edges[e].a if side else edges[e].b]
            other.stamp, other.edge = merged, e
        half = edges[e].after_b if side else edges[e].after_a
    half = nodes[small].head
    while half != -1:
        e, side = half >> 1, half & 1
        edge = edges[e]
        following = edge.after_b if side else edge.after_a
        if edge.flags != 0:
            other = nodes[edge.a if side else edge.b]
            if other.stamp == merged:
                _add(edges, other.edge, e, last_u, last_v, bins)
                _evaluate(edges, other.edge, bins, percent)
            else:
                if side:
                    edge.b = large
                else:
                    edge.a = large
                _append(nodes, edges, large, half)
        half = following
    return int(large)


@compiled
def _merge_near(
    graph: Graph,
    rows: Rows,
    numerator: np.uint64,
    denominator: np.uint64,
    bins: Bins | None,
    percent: int,
    merges: Merges,
) -> int:
    """Merge regions with few neighbours along chains of best partners; return the number of merges."""
    nodes, edges = graph
    last_u, last_v = rows.last_u, rows.last_v
    chain = np.empty(nodes.size + 1, np.int32)
    done = 0
    for n in range(nodes.size):
        chain[0], top = n, 0
        # the nodes of a chain can be merged from its end only: where that has to wait, all have
        while nodes[chain[top]].frozen == 0 and nodes[chain[top]].length <= _MANY:
            best = _best(nodes, edges, chain[top], last_u, last_v)
            edge = edges[best >> 1]
            if best == -1 or less(edge.numerator, denominator, numerator, edge.denominator):
                break
            partner = edge.a if best & 1 else edge.b
            if top == 0 or chain[top - 1] != partner:
                top += 1
                chain[top] = partner
                continue
            done = _note(merges, done, edge, nodes[edge.a], nodes[edge.b])
            left = _contract_near(graph, best >> 1, last_u, last_v, bins, percent)
            top = max(top - 2, 0)
            if top < 2:
                chain[0] = left
            top = max(top - 2, 0)
    return done


@compiled
def _index(edges: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a hash table of the pairs of nodes that edges join: ``hash << 32 | edge + 1``, 0 where free."""
    size = 4
    for e in range(edges.size):
        size += 2 * (edges[e].flags != 0)
    capacity = 4
    while capacity < size:
        capacity *= 2
    table = np.zeros(capacity, np.uint64)
    for e in range(edges.size):
        if edges[e].flags != 0:
            tag = _hash(edges[e].a, edges[e].b)
            table[_find(table, edges, tag, edges[e].a, edges[e].b)] = tag << _HIGH | np.uint64(e + 1)
    return table


@compiled
def _contract(
    graph: Graph,
    table: NDArray[np.uint64],
    merged: int,
    last_u: NDArray[np.uint64],
    last_v: NDArray[np.uint64],
    bins: Bins | None,
) -> None:
    """Merge the ends of an edge: the node with the shorter list hands its edges to the other one."""
    nodes, edges = graph
    small, large = edges[merged].a, edges[merged].b
    if nodes[small].length > nodes[large].length:
        small, large = large, small
    nodes[large].name = min(nodes[small].name, nodes[large].name)
    _remove(table, _hash(small, large), merged)
    edges[merged].flags = 0
    half = nodes[small].head
    while half != -1:
        moved, side = half >> 1, half & 1
        edge = edges[moved]
        following = edge.after_b if side else edge.after_a
        if edge.flags != 0:
            other = edge.a if side else edge.b
            _remove(table, _hash(small, other), moved)
            tag = _hash(large, other)
            place = _find(table, edges, tag, large, other)
            parallel = int(table[place] & _LOW) - 1
            if parallel != -1 and _first(parallel, moved, edges, last_u, last_v):
                _add(edges, parallel, moved, last_u, last_v, bins)
                edges[parallel].stale = 1
            else:
                if parallel != -1:
                    _add(edges, moved, parallel, last_u, last_v, bins)
                    edge.stale = 1
                if side:
                    edge.b = large
                else:
                    edge.a = large
                table[place] = tag << _HIGH | np.uint64(moved + 1)
                _append(nodes, edges, large, half)
        half = following


@compiled
def _first(i: int, j: int, edges: NDArray[Any], last_u: NDArray[np.uint64], last_v: NDArray[np.uint64]) -> bool:
    """Return whether edge ``i`` stands before ``j`` in the heap."""
    one, other = edges[i], edges[j]
    if one.denominator and other.denominator:
        gain = float(one.numerator) / float(one.denominator) - float(other.numerator) / float(other.denominator)
        if abs(gain) > _NEAR:
            return gain > 0
    return _before(i, j, edges, last_u, last_v)


@compiled
def _start(edges: NDArray[Any], numerator: np.uint64, denominator: np.uint64) -> Heap:
    """Return the entries of the edges that may be merged."""
    heap = Heap(np.empty(edges.size, np.float64), np.empty(edges.size, np.int32))
    size = 0
    for e in range(edges.size):
        edge = edges[e]
        if edge.flags == 0 or edge.flags & CANNOT or less(edge.numerator, denominator, numerator, edge.denominator):
            continue
        heap.value[size] = float(edge.numerator) / float(edge.denominator) if edge.denominator else np.inf
        heap.edge[size] = e
        size += 1
    return Heap(heap.value[:size], heap.edge[:size])


@compiled
def _merge_far(
    graph: Graph,
    rows: Rows,
    numerator: np.uint64,
    denominator: np.uint64,
    bins: Bins | None,
    percent: int,
    merges: Merges,
    done: int,
) -> int:
    """Merge the best edge of all until none is left; return the number of merges, with the ``done`` ones.

    Where the best edge has a frozen end, it may not be the best one of that end: the other end is frozen
    then, too, and the edge is left.
    """
    nodes, edges = graph
    last_u, last_v = rows.last_u, rows.last_v
    heap = _start(edges, numerator, denominator)
    size = heap.edge.size
    if size == 0:
        return done
    table = _index(edges)
    for k in range(size // 4, -1, -1):
        if k < size:
            _sift_down(heap, size, k, edges, last_u, last_v)
    while size > 0:
        best = heap.edge[0]
        edge = edges[best]
        keep = False
        if edge.flags != 0 and edge.stale:
            heap.value[0] = _evaluate(edges, best, bins, percent)
            keep = heap.value[0] >= 0 and not less(edge.numerator, denominator, numerator, edge.denominator)
        elif edge.flags != 0:
            one, other = nodes[edge.a], nodes[edge.b]
            if one.frozen or other.frozen:
                one.frozen = other.frozen = 1
            else:
                done = _note(merges, done, edge, one, other)
                _contract(graph, table, best, last_u, last_v, bins)
        if not keep:
            size -= 1
            heap.value[0], heap.edge[0] = heap.value[size], heap.edge[size]
        if size > 0:
            _sift_down(heap, size, 0, edges, last_u, last_v)
    return done


@compiled
def merge_all(
    graph: Graph, rows: Rows, numerator: np.uint64, denominator: np.uint64, bins: Bins | None, percent: int
) -> Merges:
    """Merge regions of which each is the best partner of the other, while a score is at least a given one.

    Args:
        graph: from `build`; left as what cannot be decided here.
        rows: what it was built from.
        numerator: of the least score, in 1/255.
        denominator: of the least score.
        bins: as given to `build`.
        percent: which quantile of the affinities is the score, where there are histograms.

    Returns:
        The merges; of must-links the fraction 1 / 0.
    """
    nodes, edges = graph
    merges = Merges(
        np.empty(nodes.size, np.uint64),
        np.empty(nodes.size, np.uint64),
        np.empty(nodes.size, np.uint64),
        np.empty(nodes.size, np.uint64),
    )
    for e in range(edges.size):
        if edges[e].flags != 0:
            _evaluate(edges, e, bins, percent)
    done = _merge_near(graph, rows, numerator, denominator, bins, percent, merges)
    done = _merge_far(graph, rows, numerator, denominator, bins, percent, merges, done)
    return Merges(merges.a[:done], merges.b[:done], merges.affinity_sum[:done], merges.contact[:done])


@compiled
def gather(edges: NDArray[Any], bins: Bins) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]:
    """Return the columns of the histograms of some edges."""
    start = np.zeros(edges.size + 1, np.int64)
    for e in range(edges.size):
        start[e + 1] = start[e]
        k = edges[e].bins
        while k != -1:
            start[e + 1] += 1
            k = bins.follow[k]
    found, pairs = np.empty(start[-1], np.uint8), np.empty(start[-1], np.uint64)
    for e in range(edges.size):
        place, k = start[e], edges[e].bins
        while k != -1:
            found[place], pairs[place] = bins.bin[k], bins.pairs[k]
            place, k = place + 1, bins.follow[k]
    return start, found, pairs


@compiled
def undecided(graph: Graph) -> NDArray[np.int64]:
    """Return the edges that are left between frozen nodes.

    A node that is not frozen has no edge left that reaches the threshold, and never gets one: what it
    touches can only become worse. It is finished.
    """
    left = np.empty(graph.edges.size, np.int64)
    count = 0
    for k in range(graph.edges.size):
        edge = graph.edges[k]
        if edge.flags != 0 and graph.nodes[edge.a].frozen and graph.nodes[edge.b].frozen:
            left[count] = k
            count += 1
    return left[:count].copy()
