"""All numbers that a segmentation is scored with, by name, each with its convention.

What is added here is in the stages' manifests, in `kdseg evaluate`, its JSON and its intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kdseg.evaluation.metrics.contingency import Contingency, Located
from kdseg.evaluation.metrics.instances import aggregated_jaccard, average_precision, best_dice, pairs, panoptic
from kdseg.evaluation.metrics.scores import cremi_score, rand, scores, variation_of_information

_ROUNDING = 1e-9  # bits, far above what sums of logarithms are rounded by, far below what anyone cares about


class Measure(NamedTuple):
    """Numbers of one kind.

    Attributes:
        of: returns them by name, from the contingency table of the whole region.
        conventions: what each number is: unit, definition, what is best.
    """

    of: Callable[[Contingency | Located], Mapping[str, float]]
    conventions: Mapping[str, str]


class Detail(NamedTuple):
    """Numbers of one kind, of which some take id 0 for background.

    Attributes:
        of: returns them by name, from the table of the whole region, and from its rows with background as id 0, which
            `counting.objects` returns: where sections were counted by themselves, the first has other ids for it.
        conventions: as of `Measure`.
    """

    of: Callable[[Contingency | Located, Contingency | Located], Mapping[str, float]]
    conventions: Mapping[str, str]


def _rand(table: Contingency | Located, objects: Contingency | Located) -> dict[str, float]:
    return {
        "rand_index": rand(table).rand_index,
        "arand_all": rand(table, pairs="all").error,
        # a label 0 that is scored is a label like others
        "cremi_score": cremi_score(Contingency(objects.segment, table.label, table.count), of=table).score,
    }


def instances(objects: Contingency | Located) -> dict[str, float]:
    """Return the numbers that match instances one to one or best to best, by name.

    Args:
        objects: table in which id 0 is background on both sides.
    """
    found = pairs(objects)
    quality, precision, dice = panoptic(found), average_precision(found), best_dice(found)
    return {
        **quality._asdict(),
        "ap_50": precision.at[0],
        "ap": precision.mean,
        "sbd": dice.symmetric,
        "count_difference": float(dice.count_difference),
        "aji": aggregated_jaccard(found),
    }


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

DETAILS: Mapping[str, Detail] = {
    "information": Detail(
        lambda table, _: {
            f"voi_{name}_nats": value
            for name, value in variation_of_information(table, unit="nats")._asdict().items()
            if name != "total"
        },
        {
            "voi_split_nats": "nats; voi_split times ln 2, as scikit-image of logarithms to base e",
            "voi_merge_nats": "nats; voi_merge times ln 2",
        },
    ),
    "rand": Detail(
        _rand,
        {
            "rand_index": "share of pairs of different voxels on which both agree; 1 is best",
            "arand_all": "adapted Rand error with pairs of a voxel with itself, as python-elf and waterz; 0 is best",
            "cremi_score": "square root of VOI (bits) times adapted Rand error, as the CREMI challenge; 0 is best",
        },
    ),
    "instances": Detail(
        lambda _, objects: instances(objects),
        {
            "pq": "panoptic quality, matches of IoU above 0.5 (Kirillov 2019); 1 is best",
            "sq": "mean IoU of these matches; 1 is best",
            "rq": "F1 of these matches; 1 is best",
            "ap_50": "TP / (TP + FP + FN) at IoU 0.5, as StarDist and DSB 2018; 1 is best",
            "ap": "mean of the same at IoU 0.5 to 0.95; 1 is best",
            "sbd": "symmetric best Dice (Scharr 2016); 1 is best",
            "count_difference": "|DiC|: absolute difference of the numbers of objects (Scharr 2016); 0 is best",
            "aji": "aggregated Jaccard index (Kumar 2017); 1 is best",
        },
    ),
}
"""Measures of one segmentation that no sweep or bootstrap needs. Instances: 0 is background on both sides,
and voxels that are left out belong to no object."""


def details(table: Contingency | Located, objects: Contingency | Located | None = None) -> dict[str, float]:
    """Return the numbers of `DETAILS` by name; see `measure`.

    Args:
        table: of the whole region.
        objects: its rows with id 0 as background, `counting.objects`; default: those of ``table`` are.
    """
    background = table if objects is None else objects
    return {name: value for one in DETAILS.values() for name, value in one.of(table, background).items()}


def measure(table: Contingency | Located) -> dict[str, float]:
    """Return all numbers by name.

    Args:
        table: of the whole region, without the voxels that are left out.
    """
    return {name: value for one in MEASURES.values() for name, value in one.of(table).items()}


def least_voi(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the row of least VOI; of those that rounding cannot tell apart, the first.

    Args:
        rows: from `measure`, at least one, by ascending threshold.
    """
    most = min(row["voi"] for row in rows) + _ROUNDING
    return next(row for row in rows if row["voi"] <= most)


def conventions() -> dict[str, str]:
    """Return what each number of `measure` and `details` is, by name."""
    kinds = [one.conventions for one in MEASURES.values()] + [one.conventions for one in DETAILS.values()]
    return {name: text for one in kinds for name, text in one.items()}
