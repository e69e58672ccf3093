"""Segment properties, against the rules of neuroglancer's documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdseg.errors import DataError, ShapeError
from kdseg.segmentation.graph.statistics import Statistics, block_statistics, centroid
from kdseg.segmentation.proofreading.segment_properties import (
    Property,
    segment_properties,
    statistics_properties,
    write_segment_properties,
)

IDS = np.array([2**63 + 1, 5, 2**53 + 1], np.uint64)
LIMITS = {kind: np.iinfo(kind) for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32")}


def follows_the_documentation(info: dict[str, Any]) -> None:
    """The rules of segment_properties.md, one by one."""
    assert info["@type"] == "neuroglancer_segment_properties"
    assert set(info) == {"@type", "inline"}
    ids, properties = info["inline"]["ids"], info["inline"]["properties"]
    assert all(isinstance(i, str) and 0 <= int(i) < 2**64 for i in ids)
    types = [one["type"] for one in properties]
    assert types.count("label") <= 1
    assert types.count("description") <= 1
    for one in properties:
        assert isinstance(one["id"], str)
        assert one["type"] in ("label", "description", "string", "number")
        assert len(one["values"]) == len(ids)
        assert ("data_type" in one) == (one["type"] == "number")
        assert set(one) <= {"id", "type", "description", "data_type", "values"}
        if one["type"] != "number":
            assert all(isinstance(value, str) for value in one["values"])
        elif one["data_type"] in LIMITS:
            limits = LIMITS[one["data_type"]]
            assert all(isinstance(value, int) and limits.min <= value <= limits.max for value in one["values"])
        else:
            assert one["data_type"] == "float32"
            assert all(isinstance(value, float) for value in one["values"])


def statistics() -> Statistics:
    ids = np.zeros((4, 5, 6), np.uint64)
    ids[1:3, 2, 1:5] = IDS[1]
    ids[0, 0, 0] = IDS[0]
    return block_statistics(ids, (slice(0, 4), slice(0, 5), slice(0, 6)), (10, 20, 30))


def columns(found: Statistics) -> Any:
    return found.size, found.begin, found.end, centroid(found)


def test_writes_what_the_documentation_asks_for(tmp_path: Path) -> None:
    properties = (
        Property("name", "label", ["axon", "soma", "gröẞe"]),
        Property("about", "description", ["a", "", "c"], "what it is"),
        Property("group", "string", ["1", "2", "3"]),
        Property("area", "number", np.array([1, 2, 2**32 - 1], np.uint32), "nm"),
        Property("length", "number", np.array([0.5, 1, 2], np.float32)),
    )
    write_segment_properties(tmp_path / "new" / "properties", IDS, properties)
    (file,) = (tmp_path / "new" / "properties").iterdir()
    info = json.loads(file.read_text())
    assert file.name == "info"
    follows_the_documentation(info)
    assert info["inline"]["ids"] == ["9223372036854775809", "5", "9007199254740993"]
    assert info["inline"]["properties"] == [
        {"id": "name", "type": "label", "values": ["axon", "soma", "gröẞe"]},
        {"id": "about", "type": "description", "description": "what it is", "values": ["a", "", "c"]},
        {"id": "group", "type": "string", "values": ["1", "2", "3"]},
        {"id": "area", "type": "number", "description": "nm", "data_type": "uint32", "values": [1, 2, 4294967295]},
        {"id": "length", "type": "number", "data_type": "float32", "values": [0.5, 1.0, 2.0]},
    ]


def test_statistics_become_numbers() -> None:
    found = statistics()
    info = segment_properties(found.fragment, statistics_properties(*columns(found)))
    follows_the_documentation(info)
    assert info["inline"]["ids"] == ["5", "9223372036854775809"]
    values = {one["id"]: one["values"] for one in info["inline"]["properties"]}
    assert values == {
        "size": [8, 1],
        "centroid_x": [32.5, 30.0],
        "centroid_y": [22.0, 20.0],
        "centroid_z": [11.5, 10.0],
        "begin_x": [31, 30],
        "begin_y": [22, 20],
        "begin_z": [11, 10],
        "end_x": [35, 31],
        "end_y": [23, 21],
        "end_z": [13, 11],
    }


def test_sizes_beyond_32_bits_become_floats() -> None:
    found = statistics()
    for size, kind in ((2**32 - 1, "uint32"), (2**32, "float32")):
        large = found._replace(size=np.array([1, size], np.uint64))
        entry = segment_properties(found.fragment, statistics_properties(*columns(large))[:1])["inline"]["properties"][
            0
        ]
        assert entry["data_type"] == kind
        assert entry["values"][1] == pytest.approx(size, rel=1e-6)
    with pytest.raises(DataError, match="int32"):
        statistics_properties(*columns(found._replace(end=found.end + 2**31)))


def test_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    number = Property("a", "number", np.zeros(3, np.float32))
    cases = [
        (IDS, [number._replace(values=np.zeros(3))], "'a' is float64; neuroglancer knows"),
        (IDS, [number._replace(values=np.array([0, 1, np.nan], np.float32))], "NaN"),
        (IDS, [number, number], "different names"),
        (IDS, [Property("a", "label", "xyz"), Property("b", "label", "xyz")], "at most one label"),
        (IDS[[0, 0, 1]], [number], "without repeats"),
        (IDS.astype(np.int64), [number], "int64"),
    ]
    for ids, properties, message in cases:
        with pytest.raises(DataError, match=message):
            write_segment_properties(tmp_path, ids, properties)
    with pytest.raises(ShapeError, match="2 values for 3"):
        write_segment_properties(tmp_path, IDS, [number._replace(values=np.zeros(2, np.float32))])
    assert not list(tmp_path.iterdir())
