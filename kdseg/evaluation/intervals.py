"""Variation of scores over other parts of the same tissue: the bootstrap over blocks.

Voxels are not independent samples, nor are neurons cut at faces; blocks are nearly so where they are larger than the
errors. Each resample draws as many blocks as there are, with replacement, and adds up their tables.

In memory are the table of the region, one table of a block, and the sums of a batch of resamples, one number per row of
the first: the tables of blocks are read anew for each batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ConfigError
from kdseg.evaluation.counting import Rows, numbered
from kdseg.evaluation.measures import measure
from kdseg.evaluation.metrics.contingency import Contingency, drop_small_labels

LEVEL = 0.95
SEED = 0
_LEAST = 2
_VALUES = 1 << 25
"""Numbers of 8 bytes that a batch of resamples holds, about; one resample at least."""


def intervals(
    merged: Rows, tables: Callable[[], Iterable[Rows]], resamples: int, *, dust: int = 0, seed: int = SEED
) -> dict[str, list[float]]:
    """Return an interval of each number of `measures.measure`: 95 % of the resamples lie in it.

    Blocks in which nothing is counted are not drawn. Labels that are dust in the volume are left out of every resample.

    Args:
        merged: the whole region, `counting.read_rows`.
        tables: called once per batch of resamples, and once before; the same tables each time, `counting.block_counts`,
            which add up to ``merged``. One is in memory at a time.
        resamples: how many.
        dust: labels of fewer voxels, in the whole region, are left out.
        seed: of the draws; equal seeds give equal intervals.

    Returns:
        Lower and upper end by name; percentiles, interpolated linearly.

    Raises:
        ConfigError: if fewer than two blocks hold something, or ``resamples`` is not positive.
    """
    segment, label = numbered(merged)
    left = np.isin(label, drop_small_labels(Contingency(segment, label, merged[3]), dust).label)
    rows = _Rows(merged)
    count = sum(1 for _ in _blocks(rows, tables(), left))
    if count < _LEAST or resamples < 1:
        raise ConfigError(
            f"an interval needs at least one resample, got {resamples}, and {_LEAST} blocks with labels, got "
            f"{count}: choose smaller blocks"
        )
    rng = np.random.default_rng(seed)
    batch = max(_VALUES // max(label.size, count), 1)
    found = []
    for low in range(0, resamples, batch):
        times = rng.multinomial(count, np.full(count, 1 / count), min(batch, resamples - low))
        sums = np.zeros((len(times), label.size), np.uint64)
        for k, (row, voxels) in enumerate(_blocks(rows, tables(), left)):
            for drawn in np.flatnonzero(times[:, k]):
                sums[drawn, row] += voxels * np.uint64(times[drawn, k])  # no row repeats within a block
        for one in sums:
            there = one > 0
            found.append(measure(Contingency(segment[there], label[there], one[there])))
    tail = (1 - LEVEL) / 2
    ends = {name: np.quantile([one[name] for one in found], (tail, 1 - tail)) for name in found[0]}
    return {name: [float(low), float(high)] for name, (low, high) in ends.items()}


def _blocks(
    rows: _Rows, tables: Iterable[Rows], left: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint64]]]:
    """Yield, of each block that holds something, the rows that are left, and their voxels."""
    for table in tables:
        row = rows.of(table)
        kept = left[row]
        if kept.any():
            yield row[kept], table[3][kept]


class _Rows:
    """Finds keys in a sorted table."""

    def __init__(self, merged: Rows) -> None:
        # Numbers of three ids need not fit into one of 64 bits, but those of two do, as there are fewer than 2**32
        # rows; and then that of the pair and the third.
        self._ids = [np.unique(column) for column in merged[:3]]
        self._pairs = np.unique(self._two(merged))
        self._keys = self._key(merged)

    def of(self, table: Rows) -> NDArray[np.intp]:
        """Return where the keys of ``table``, all of which are there, are."""
        return np.searchsorted(self._keys, self._key(table))

    def _key(self, table: Rows) -> NDArray[np.int64]:
        pair = np.searchsorted(self._pairs, self._two(table))
        key: NDArray[np.int64] = pair * self._ids[2].size + np.searchsorted(self._ids[2], table[2])
        return key

    def _two(self, table: Rows) -> NDArray[np.int64]:
        section, segment = (np.searchsorted(ids, column) for ids, column in zip(self._ids[:2], table[:2], strict=True))
        pair: NDArray[np.int64] = section * self._ids[1].size + segment
        return pair
