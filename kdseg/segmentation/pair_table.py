"""A hash table with one row per pair of ids, for compiled functions that count pairs.

A table is uint64 (capacity, columns), `COUNT`, `A`, `B` and what else belongs to a pair. A row with a count of 0 is
free. At most half of the rows are used: whoever fills another one replaces a fuller table by what `grown` returns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.running.compiled import compiled

COUNT, A, B, VALUE = range(4)
"""Columns; those from `VALUE` on are the caller's."""
CAPACITY = 1 << 12
"""Rows to begin with."""
HASH = np.uint64(0x9E3779B97F4A7C15)
"""2**64 / golden ratio (Knuth, multiplicative hashing)."""


@compiled
def slot(table: NDArray[np.uint64], a: np.uint64, b: np.uint64) -> np.int64:
    """Return the row of a pair, or the free row where it belongs (open addressing)."""
    mask = np.uint64(table.shape[0] - 1)
    mixed = (a * HASH) ^ b
    mixed = (mixed ^ (mixed >> np.uint64(29))) * HASH
    k = (mixed >> np.uint64(32)) & mask
    while table[k, COUNT] != 0 and (table[k, A] != a or table[k, B] != b):
        k = (k + np.uint64(1)) & mask
    return np.int64(k)


@compiled
def grown(table: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a table of twice as many rows that holds the same."""
    more = np.zeros((2 * table.shape[0], table.shape[1]), np.uint64)
    for k in range(table.shape[0]):
        if table[k, COUNT] != 0:
            more[slot(more, table[k, A], table[k, B])] = table[k]
    return more
