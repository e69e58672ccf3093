"""Segment properties for neuroglancer: a table of segments that the viewer lists, searches and sorts.

The format is neuroglancer's precomputed segment properties: a folder with one file `info`, JSON, that holds
all ids and values inline. Source: neuroglancer, `src/datasource/precomputed/segment_properties.md`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import DataError, ShapeError
from kdseg.results.files import write_text

NUMBERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32")
"""Types of numbers that the format knows."""


class Property(NamedTuple):
    """A property of all segments.

    Attributes:
        id: name shown in the viewer (not of a label or description).
        type: ``label`` is shown beside the id, ``description`` below it, each at most once; ``string``; ``number``.
        values: one per segment: strings, or an array (s,) of one of `NUMBERS`.
        description: shown as help.
    """

    id: str
    type: Literal["label", "description", "string", "number"]
    values: Sequence[str] | NDArray[Any]
    description: str = ""


def write_segment_properties(folder: Path, ids: NDArray[np.uint64], properties: Sequence[Property]) -> None:
    """Write segment properties so that ``precomputed://…/folder`` can be added to a segmentation layer.

    The viewer reads the file whole: at some 100 bytes per segment, a million segments are 100 MB. Choose
    those worth listing.

    Args:
        folder: to write `info` to; it is made.
        ids: uint64 (s,), segments, without repeats.
        properties: of these segments.
    """
    text = json.dumps(segment_properties(ids, properties), separators=(",", ":"), allow_nan=False)
    write_text(folder / "info", text + "\n")


def segment_properties(ids: NDArray[np.uint64], properties: Sequence[Property]) -> dict[str, Any]:
    """Return the content of `info`, as JSON values; see `write_segment_properties`."""
    if ids.dtype != np.uint64 or np.unique(ids).size != ids.size:
        raise DataError(f"segment ids must be uint64 without repeats, got {ids.size} ids of {ids.dtype}")
    names = [one.id for one in properties]
    once = [one.type for one in properties if one.type in ("label", "description")]
    if len(set(names)) != len(names) or len(set(once)) != len(once):
        raise DataError(f"properties need different names, at most one label and one description; got {names}, {once}")
    return {
        "@type": "neuroglancer_segment_properties",
        # JavaScript's numbers are exact up to 2**53 only: the format asks for text
        "inline": {"ids": [str(i) for i in ids.tolist()], "properties": [_entry(one, len(ids)) for one in properties]},
    }


def statistics_properties(
    size: NDArray[np.uint64], begin: NDArray[np.int64], end: NDArray[np.int64], centroid: NDArray[np.float64]
) -> tuple[Property, ...]:
    """Return size, centroid and bounding box of segments as properties.

    Sizes are uint32, or float32 (7 digits) where a segment has 2**32 voxels or more. Centroids are float32 and
    boxes int32, in voxels of the volume, one property per axis, x first, as the viewer shows positions.

    Args:
        size: uint64 (s,), number of voxels.
        begin: int64 (s, 3), first voxel of the bounding box, zyx.
        end: int64 (s, 3), first voxel behind it, zyx.
        centroid: float64 (s, 3), mean voxel, zyx.

    Raises:
        DataError: if a coordinate exceeds 2**31.
    """
    if end.size and int(end.max()) >= 2**31:
        raise DataError(f"a bounding box ends at {end.max()}, more than neuroglancer's int32 holds")
    fits = not size.size or int(size.max()) < 2**32
    found = [Property("size", "number", size.astype(np.uint32 if fits else np.float32), "voxels")]
    columns = (
        ("centroid", centroid.astype(np.float32), "mean voxel"),
        ("begin", begin.astype(np.int32), "first voxel of the bounding box"),
        ("end", end.astype(np.int32), "first voxel behind the bounding box"),
    )
    for name, values, meaning in columns:
        for axis, letter in ((2, "x"), (1, "y"), (0, "z")):
            found.append(Property(f"{name}_{letter}", "number", values[:, axis], meaning))
    return tuple(found)


def _entry(one: Property, segments: int) -> dict[str, Any]:
    if len(one.values) != segments:
        raise ShapeError(f"property {one.id!r} has {len(one.values)} values for {segments} segments")
    entry: dict[str, Any] = {"id": one.id, "type": one.type}
    if one.description:
        entry["description"] = one.description
    if one.type != "number":
        return {**entry, "values": [str(value) for value in one.values]}
    values = np.asarray(one.values)
    if values.dtype.name not in NUMBERS:
        raise DataError(f"property {one.id!r} is {values.dtype}; neuroglancer knows {', '.join(NUMBERS)}")
    if not np.isfinite(values).all():
        raise DataError(f"property {one.id!r} holds NaN or infinity, which JSON cannot: leave these segments out")
    return {**entry, "data_type": values.dtype.name, "values": values.tolist()}
