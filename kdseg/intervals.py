"""How far scores would vary on other parts of the same tissue: the bootstrap over blocks.

Voxels are no independent samples, nor are neurons cut at faces; blocks are nearly so where they are larger than the
errors. Each resample draws as many blocks as there are, with replacement, and adds up their tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdseg.counting import Rows, added, numbered
from kdseg.errors import ConfigError
from kdseg.measures import measure
from kdseg.metrics.contingency import Contingency, drop_small_labels

LEVEL = 0.95
SEED = 0
_LEAST = 2


def intervals(tables: Sequence[Rows], resamples: int, *, dust: int = 0, seed: int = SEED) -> dict[str, list[float]]:
    """Return an interval of each number of `measures.measure`: 95 % of the resamples lie in it.

    Blocks in which nothing is counted are not drawn. Labels that are dust in the volume are left out of every resample.

    Args:
        tables: of blocks, `counting.block_counts`; all are in memory at once, with a copy per resample.
        resamples: how many.
        dust: labels of fewer voxels, in the whole region, are left out.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        Lower and upper end by name; percentiles, interpolated linearly.

    Raises:
        ConfigError: if fewer than two blocks hold something, or ``resamples`` is not positive.
    """
    merged = added(np.concatenate([np.empty((5, 0), np.uint64), *tables], axis=1))
    segment, label = numbered(merged)
    kept = drop_small_labels(Contingency(segment, label, merged[3]), dust)
    left = np.isin(label, kept.label)
    parts = [(row, table[3][left[row]]) for table in tables for row in [_rows_of(merged, table)]]
    blocks = [(row[left[row]], count) for row, count in parts if count.size]
    if len(blocks) < _LEAST or resamples < 1:
        raise ConfigError(
            f"an interval needs at least one resample, got {resamples}, and {_LEAST} blocks with labels, got "
            f"{len(blocks)}: choose smaller blocks"
        )
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        times = rng.multinomial(len(blocks), np.full(len(blocks), 1 / len(blocks)))
        count = np.zeros(label.size, np.uint64)
        for (row, voxels), n in zip(blocks, times.tolist(), strict=True):
            if n:
                count[row] += voxels * np.uint64(n)  # no row repeats within a block
        there = count > 0
        found.append(measure(Contingency(segment[there], label[there], count[there])))
    tail = (1 - LEVEL) / 2
    ends = {name: np.quantile([one[name] for one in found], (tail, 1 - tail)) for name in found[0]}
    return {name: [float(low), float(high)] for name, (low, high) in ends.items()}


def _rows_of(merged: Rows, table: Rows) -> NDArray[np.intp]:
    """Return where the keys of a table are among those of the sum of all."""
    both = np.concatenate((merged[:3], table[:3]), axis=1)
    order = np.lexsort(both[::-1])  # stable: the row of the sum comes first among equals
    inverse = np.empty(order.size, np.intp)
    inverse[order] = np.cumsum(order < merged.shape[1]) - 1
    return inverse[merged.shape[1] :]
