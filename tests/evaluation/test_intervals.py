"""Intervals, against all tables of blocks in memory at once."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.errors import ConfigError
from kdseg.evaluation import intervals as module
from kdseg.evaluation.counting import Rows, added, numbered
from kdseg.evaluation.intervals import intervals
from kdseg.evaluation.measures import measure
from kdseg.evaluation.metrics.contingency import Contingency, drop_small_labels

IDS = np.array([0, 1, 5, 2**63 + 1, 2**63 + 2, 2**64 - 1], np.uint64)


def whole(tables: list[Rows]) -> Rows:
    return added(np.concatenate(tables, axis=1))


def some_tables(seed: int, blocks: int, sections: bool) -> list[Rows]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(blocks):
        rows = int(rng.integers(0, 9))
        keys = [rng.integers(0, 3 if sections else 1, rows).astype(np.uint64), *IDS[rng.integers(0, 6, (2, rows))]]
        found.append(added(np.stack([*keys, rng.integers(1, 50, rows).astype(np.uint64), np.zeros(rows, np.uint64)])))
    return found


def brute_force(tables: list[Rows], resamples: int, dust: int) -> dict[str, list[float]] | None:
    """Draw tables, put them one behind the other, add them up and score them."""
    merged = whole(tables)
    segment, label = numbered(merged)
    names = dict(
        zip(map(tuple, merged[:3].T.tolist()), zip(segment.tolist(), label.tolist(), strict=True), strict=True)
    )
    kept = set(drop_small_labels(Contingency(segment, label, merged[3]), dust).label.tolist())
    named = []
    for table in tables:
        rows = [(*names[tuple(row[:3])], row[3]) for row in table.T.tolist()]
        rows = [row for row in rows if row[1] in kept]
        if rows:
            named.append(np.array(rows, np.uint64).T)
    if len(named) < 2:
        return None
    rng = np.random.default_rng(0)
    found = []
    for _ in range(resamples):
        times = rng.multinomial(len(named), np.full(len(named), 1 / len(named)))
        s, t, n = np.concatenate([one for one, k in zip(named, times, strict=True) for _ in range(k)], axis=1)
        none = np.zeros_like(s)
        sums = added(np.stack([none, s, t, n, none]))
        found.append(measure(Contingency(*sums[1:4])))
    tail = (1 - 0.95) / 2  # in this order of rounding
    return {name: np.quantile([one[name] for one in found], (tail, 1 - tail)).tolist() for name in found[0]}


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(2, 12),
    sections=st.booleans(),
    dust=st.sampled_from([0, 30, 60]),
    values=st.sampled_from([1, 60, 1 << 20]),
)
def test_equals_all_tables_at_once(seed: int, blocks: int, sections: bool, dust: int, values: int) -> None:
    """To the last bit, whatever the batches."""
    tables = some_tables(seed, blocks, sections)
    expected = brute_force(tables, 7, dust)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_VALUES", values)
        if expected is None:
            with pytest.raises(ConfigError, match="2 blocks with labels"):
                intervals(whole(tables), lambda: tables, 7, dust=dust)
        else:
            assert intervals(whole(tables), lambda: tables, 7, dust=dust) == expected


def test_blocks_without_labels_are_not_drawn() -> None:
    tables = [np.array([[0, 0], [1, 2], [1, n], [9, n], [0, 9]], np.uint64) for n in (1, 2, 3)]
    expected = intervals(whole(tables), lambda: tables, 20)
    assert expected["voi"][0] < expected["voi"][1]
    assert intervals(whole(tables), lambda: [tables[0], tables[0][:, :0], *tables[1:]], 20) == expected
    with pytest.raises(ConfigError, match="2 blocks with labels, got 1"):
        intervals(tables[0], lambda: tables[:1], 20)
    with pytest.raises(ConfigError, match="at least one resample, got 0"):
        intervals(whole(tables), lambda: tables, 0)


def test_memory_does_not_grow_with_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_VALUES", 1 << 14)
    keys = np.stack(
        [np.zeros(1000, np.uint64), np.arange(1000, dtype=np.uint64), np.arange(1000, dtype=np.uint64) // 7]
    )

    def tables(blocks: int) -> Iterator[Rows]:
        for k in range(blocks):
            yield np.concatenate([keys, np.full((1, 1000), k + 1, np.uint64), np.zeros((1, 1000), np.uint64)])

    def peak(blocks: int) -> int:
        merged = next(tables(1))
        merged[3] = blocks * (blocks + 1) // 2
        tracemalloc.start()
        intervals(merged, lambda: tables(blocks), 20)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(10), peak(400)  # 400 tables take 16 MB
    assert many < few + 400_000
