"""All numbers that a segmentation is scored with, by name, each with its convention.

What is added here is in the stages' manifests, in `kdseg evaluate`, its JSON and its intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from kdseg.metrics.contingency import Contingency, Located
from kdseg.metrics.scores import scores


class Measure(NamedTuple):
    """Numbers of one kind.

    Attributes:
        of: returns them by name, from the contingency table of the whole region.
        conventions: what each number is: unit, definition, what is best.
    """

    of: Callable[[Contingency | Located], Mapping[str, float]]
    conventions: Mapping[str, str]


MEASURES: Mapping[str, Measure] = {
    "partition": Measure(
        lambda table: scores(table)._asdict(),
        {
            "voi_split": "bits; H(segmentation | labels), false splits; 0 is best",
            "voi_merge": "bits; H(labels | segmentation), false merges; 0 is best",
            "voi": "bits; sum of the two (Meila 2007)",
            "arand": "1 - F of precision and recall, pairs of different voxels, as scikit-image; 0 is best",
            "arand_precision": "share of pairs of one segment that have one label; 1 is best",
            "arand_recall": "share of pairs of one label that have one segment; 1 is best",
        },
    ),
}


def measure(table: Contingency | Located) -> dict[str, float]:
    """Return all numbers by name.

    Args:
        table: of the whole region, without the voxels that are left out.

    Raises:
        DataError: if the table is empty, or too large to be scored.
    """
    return {name: value for one in MEASURES.values() for name, value in one.of(table).items()}


def conventions() -> dict[str, str]:
    """Return what each number of `measure` is, by name."""
    return {name: text for one in MEASURES.values() for name, text in one.conventions.items()}
