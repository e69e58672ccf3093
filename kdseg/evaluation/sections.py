"""Scores of sections that are images of their own: each by itself, and the mean over them.

The table of all sections, with ids of their own in each (`counting.scored`), has as its VOI the mean of theirs weighted
by their scored voxels, since a label tells its section: H(S | L) is the sum of p(section) H(S | L, section). In its
adapted Rand error pairs of all sections are added up. Papers on images (CVPPP, BBBC039) weight each image alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import fsum

import numpy as np

from kdseg.evaluation.counting import Rows, labelled, objects, scored
from kdseg.evaluation.measures import instances, measure


def section_scores(rows: Rows, dust: int) -> dict[int, dict[str, float]]:
    """Return all numbers of `measures.measure` and `measures.instances` of each section, by its z in voxels.

    Where nothing is labelled there are those of instances alone; a section without labels and segments has no numbers.

    Args:
        rows: of sections that were counted by themselves. Label 0 is no label but background of instances, if it was
            counted.
        dust: labels of fewer voxels of a section are left out.
    """
    return {z: dict(_numbers(rows[:, rows[0] == z], dust)) for z in np.unique(rows[0]).tolist()}


def means(found: dict[int, dict[str, float]]) -> dict[str, float]:
    """Return the mean of each number over the sections that have it, each weighted alike."""
    names = dict.fromkeys(name for one in found.values() for name in one)
    values = {name: [one[name] for one in found.values() if name in one] for name in names}
    return {name: fsum(some) / len(some) for name, some in values.items()}


def _numbers(rows: Rows, dust: int) -> Iterator[tuple[str, float]]:
    """Yield the numbers of one section."""
    known = objects(rows, dust)
    if (known.label > 0).any():
        yield from measure(scored(labelled(rows), dust)).items()
    if (known.label > 0).any() or (known.segment > 0).any():
        yield from instances(known).items()
