"""Raw data that look like ids of neurons, and labels that look like grey values: somebody swapped them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

_IDS, _GREY = 0.85, 0.5
"""Shares of equal neighbours: ids have more, grey values have less."""


def like_ids(sample: Iterable[NDArray[Any]], address: str) -> str:
    """Return a warning if raw data look like ids of neurons, else nothing.

    Args:
        sample: parts of sections, (1, y, x).
        address: of the raw data.
    """
    if (alike(sample) or 0) <= _IDS:
        return ""
    return f"{address} looks like ids of neurons, not like grey values: is it the raw data?"


def like_grey(sample: Iterable[NDArray[Any]], address: str) -> str:
    """Return a warning if labels look like grey values, else nothing; see `like_ids`."""
    share = alike(sample)
    if share is None or share >= _GREY:
        return ""
    return f"{address} looks like grey values, not like ids of neurons: are these the labels?"


def alike(sample: Iterable[NDArray[Any]]) -> float | None:
    """Return the share of neighbours in a section that have the same value: most of ids, few of grey values.

    None: there is nothing but one value in each part.
    """
    same = total = 0
    for part in sample:
        if part.min() < part.max():
            for pairs in (part[:, 1:] == part[:, :-1], part[:, :, 1:] == part[:, :, :-1]):
                same, total = same + int(pairs.sum()), total + pairs.size
    return same / total if total else None
