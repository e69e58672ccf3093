"""The worst objects, against entropies of single objects computed voxel by voxel."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.errors import DataError
from kdseg.evaluation.metrics.contingency import block_contingency, block_located
from kdseg.evaluation.metrics.objects import Overlap, merge_shares, split_shares, worst_merges, worst_splits
from kdseg.evaluation.metrics.scores import variation_of_information

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def bits_of(pairs: list[tuple[int, int]], which: int) -> dict[int, float]:
    """Entropy of the partner of a random voxel of each object, times the object's share of the voxels."""
    found = {}
    for name in {pair[which] for pair in pairs}:
        partners = Counter(pair[1 - which] for pair in pairs if pair[which] == name)
        total = sum(partners.values())
        found[name] = sum(n / len(pairs) * math.log2(total / n) for n in partners.values())
    return found


@settings(deadline=None, max_examples=50)
@given(pairs=PAIRS)
def test_shares_are_entropies_of_objects_and_add_up(pairs: list[tuple[int, int]]) -> None:
    segment, label = np.array(pairs, np.uint64).T
    table = block_contingency(segment, label, None)
    whole = variation_of_information(table)
    for shares, which, total in ((merge_shares(table), 0, whole.merge), (split_shares(table), 1, whole.split)):
        assert dict(zip(shares.id.tolist(), shares.bits.tolist(), strict=True)) == pytest.approx(bits_of(pairs, which))
        assert shares.bits.sum() == pytest.approx(total, abs=1e-12)
        assert shares.size.tolist() == [sum(p[which] == name for p in pairs) for name in shares.id]
        assert shares.parts.tolist() == [len({p for p in pairs if p[which] == name}) for name in shares.id]


@settings(deadline=None, max_examples=50)
@given(pairs=PAIRS, k=st.integers(0, 6), overlaps=st.integers(0, 6))
def test_the_worst_are_all_that_are_worse_than_the_rest(pairs: list[tuple[int, int]], k: int, overlaps: int) -> None:
    segment, label = np.array(pairs, np.uint64).T
    table = block_contingency(segment, label, None)
    for which, worst in ((0, worst_merges), (1, worst_splits)):
        want = {name: bits for name, bits in bits_of(pairs, which).items() if bits > 0}
        found = worst(table, k, overlaps)
        assert [fault.bits for fault in found] == pytest.approx(sorted(want.values(), reverse=True)[:k])
        for fault in found:
            assert fault.bits == pytest.approx(want[fault.id])
            partners = Counter(p[1 - which] for p in pairs if p[which] == fault.id)
            assert (fault.size, fault.parts) == (partners.total(), len(partners))
            by_size = sorted(partners.items(), key=lambda item: (-item[1], item[0]))[:overlaps]
            assert fault.overlaps == tuple(Overlap(name, n, None) for name, n in by_size)


def test_places_say_where_to_look() -> None:
    labels = np.array([[[9, 9, 1, 1, 1], [2, 2, 2, 2, 2]]])
    segmentation = np.array([[[9, 9, 5, 6, 6], [7, 7, 7, 7, 7]]])
    table = block_located(segmentation, labels, (0, 0, 0), labels.shape)
    (split,) = worst_splits(table, 5)
    assert (split.id, split.size, split.overlaps) == (1, 3, (Overlap(6, 2, 3), Overlap(5, 1, 2)))
    assert worst_merges(table, 5) == []
    with pytest.raises(DataError, match="-1"):
        worst_splits(table, -1)
