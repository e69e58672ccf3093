"""A table of corrections: what it means, and that each mistake in it is named with its line."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.errors import DataError, KdsegError, MissingError, UnreadableError, VoxelSizeError
from kdseg.segmentation.agglomeration.edits import Edit, Links, check_known, fragments_at, read_edits, resolve
from kdseg.volumes.volume import Volume, create_volume

HEADER = "edit,u,v,z1,y1,x1,z2,y2,x2,comment\n"


def lookup(points: NDArray[np.float64]) -> NDArray[np.uint64]:
    """A world in which the fragment at a point is its z, and 0 below z = 0."""
    assert points.shape[1:] == (3,)
    assert points.dtype == np.float64
    return np.maximum(points[:, 0], 0).astype(np.uint64)


def read(tmp_path: Path, text: str) -> tuple[Edit, ...]:
    (tmp_path / "edits.csv").write_text(text)
    return read_edits(tmp_path / "edits.csv")


def test_ids_and_points_become_sorted_pairs_without_repeats(tmp_path: Path) -> None:
    big = 2**63 + 1
    edits = read(
        tmp_path,
        HEADER
        + f"merge,{big},7,,,,,,,\n"
        + 'split,,,3,0,0,2,1,1,"two, cells"\n'
        + "\n"
        + "merge,,,9,1.5,-4,4,0,0,\n"
        + " merge , 4 , 9 ,,,,,,,twice\n"
        + "merge,,,5,0,0,5,8,8,within one fragment\n"
        + "split,2,7,,,,,,,\n",
    )
    assert [edit.where.rsplit(":", 1)[1] for edit in edits] == ["2", "3", "5", "6", "7", "8"]
    assert edits[1].comment == "two, cells"
    assert edits[2].points == ((9.0, 1.5, -4.0), (4.0, 0.0, 0.0))
    assert edits[0].ids == (big, 7)
    links = resolve(edits, lookup)
    assert links.merge.tolist() == [[4, 9], [7, big]]
    assert links.split.tolist() == [[2, 3], [2, 7]]
    assert links.merge.dtype == links.split.dtype == np.uint64


def test_columns_that_are_not_used_may_be_missing(tmp_path: Path) -> None:
    (edit,) = read(tmp_path, "\ufeffv,edit,u\n2,split,1\n")
    assert edit.ids == (1, 2)
    (edit,) = read(tmp_path, "edit,x1,y1,z1,x2,y2,z2\r\nmerge,1,2,3,4,5,6\r\n")
    assert edit.points == ((3.0, 2.0, 1.0), (6.0, 5.0, 4.0))
    links = resolve(read(tmp_path, "edit,u,v\n"), lookup)
    assert links.merge.shape == links.split.shape == (0, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("cut,1,2,,,,,,,", "'cut', expected merge or split"),
        ("merge,1,,,,,,,,", "v is missing"),
        ("merge,,,1,2,3,4,,6,", "y2 is missing"),
        ("merge,,,,,,,,,", "no ids and points"),
        ("merge,1,2,1,2,3,4,5,6,", "both ids and points"),
        ("merge,1,2.5,,,,,,,", r"v is '2\.5', expected a fragment id"),
        ("merge,-1,2,,,,,,,", "u is '-1'"),
        (f"merge,{2**64},2,,,,,,,", "u is '18446744073709551616'"),
        ("split,,,1,nan,3,4,5,6,", "y1 is 'nan', expected a number of nm"),
        ("merge,1,2", "3 values for 10 columns"),
        ("merge,0,2,,,,,,,", "fragment 0 is background"),
        ("merge,,,1,2,3,-4,5,6,", r"point \(-4\.0, 5\.0, 6\.0\) nm.*background or outside"),
        ("split,,,-1,2,3,4,5,6,", r"point \(-1\.0, 2\.0, 3\.0\) nm.*background or outside"),
        ("split,8,8,,,,,,,", "fragment 8, and fragments are never cut"),
        ("split,,,8,0,0,8,1,1,", "fragment 8, and fragments are never cut"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"edits\.csv:3: .*{message}"):
        resolve(read(tmp_path, f"{HEADER}merge,1,2,,,,,,,\n{row}\n"), lookup)


def test_a_split_that_merges_undo_names_the_chain(tmp_path: Path) -> None:
    text = "edit,u,v\nsplit,1,4\nmerge,3,2\nmerge,1,2\nmerge,9,1\nmerge,4,3\n"
    with pytest.raises(DataError, match=r"edits\.csv:2: keeps 1 and 4 apart, .*csv:4, .*csv:3, .*csv:6; remove one"):
        resolve(read(tmp_path, text), lookup)
    with pytest.raises(DataError, match=r"edits\.csv:3: .*join them: \S*edits\.csv:2;"):
        resolve(read(tmp_path, "edit,u,v\nmerge,5,6\nsplit,6,5\n"), lookup)


@settings(deadline=None, max_examples=80)
@given(pairs=st.lists(st.tuples(st.booleans(), st.integers(1, 7), st.integers(1, 7)), max_size=9))
def test_contradictions_are_those_of_the_components(pairs: list[tuple[bool, int, int]]) -> None:
    edits = [Edit("merge" if m else "split", "x", (u, v)) for m, u, v in pairs if m or u != v]
    segment = list(range(8))
    for edit in edits:
        one, other = edit.ids or (0, 0)
        if edit.kind == "merge":
            segment = [segment[one] if s == segment[other] else s for s in segment]
    apart = all(segment[e.ids[0]] != segment[e.ids[1]] for e in edits if e.ids and e.kind == "split")
    try:
        links = resolve(edits, lookup)
    except DataError:
        assert not apart
        return
    assert apart
    for kind, found in links._asdict().items():
        wanted = {(min(e.ids), max(e.ids)) for e in edits if e.ids and e.kind == kind}
        assert found.tolist() == [list(pair) for pair in sorted(wanted) if pair[0] != pair[1]]


def test_unknown_ids_are_named() -> None:
    links = Links(np.array([[1, 2], [2, 5]], np.uint64), np.array([[3, 4]], np.uint64))
    check_known(links, np.array([5, 4, 3, 2, 1], np.uint64))
    with pytest.raises(DataError, match=r"fragment 5 does not exist.*merge 2,5"):
        check_known(links, np.array([1, 2, 3, 4], np.uint64))
    with pytest.raises(DataError, match=r"fragment 3 does not exist.*split 3,4"):
        check_known(links, np.array([1, 2, 4, 5], np.uint64))


def test_points_are_looked_up_in_a_volume(tmp_path: Path) -> None:
    shape, size, offset = (3, 4, 5), (40.0, 8.0, 10.0), (100.0, -16.0, 5.0)
    place = {"chunk": (2, 2, 2), "shard": (2, 2, 2), "voxel_size": size, "offset": offset}
    volume = create_volume(tmp_path / "f.zarr", shape=shape, dtype=np.uint64, **place)  # type: ignore[arg-type]
    ids = np.arange(60, dtype=np.uint64).reshape(shape)
    volume.write(volume.roi, ids)
    places = np.argwhere(ids >= 0)
    for shift in (0.0, -0.49, 0.49):
        found = fragments_at(volume, offset + (places + shift) * size)
        np.testing.assert_array_equal(found, ids.ravel())
    outside = np.array([[-0.6, 1, 1], [2.6, 1, 1], [1, 1, 4.6], [1, -0.6, 1], [1e30, 0, 0]])
    assert fragments_at(volume, offset + outside * size).tolist() == [0] * 5
    assert partial(fragments_at, volume)(np.empty((0, 3))).tolist() == []
    with pytest.raises(VoxelSizeError, match="no voxel size"):
        fragments_at(Volume(volume.array, None, offset), outside)


def test_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no table of edits"):
        read_edits(tmp_path / "edits.csv")
    for text in ("", "u,v\n1,2\n", "edit;u;v\nmerge;1;2\n", "edit,u,w\nmerge,1,2\n", "edit,u,u\nmerge,1,2\n"):
        with pytest.raises(DataError, match=r"edits\.csv:1: got the columns"):
            read(tmp_path, text)
    (tmp_path / "edits.csv").write_bytes(b"edit,u,v,comment\nmerge,1,2,\xff\xfe\n")
    with pytest.raises(UnreadableError, match="UTF-8"):
        read_edits(tmp_path / "edits.csv")
    with pytest.raises(KdsegError, match="not a CSV"):
        read(tmp_path, 'edit,u,v\nmerge,"1,2\n')
