"""Parquet files: complete or not there, the same whatever the pieces, and they say what they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.errors import DataError, MissingError, ShapeError, UnreadableError
from kdseg.results.parquet import Column, read_batches, read_notes, read_parquet, write_parquet

COLUMNS = (
    Column("fragment", np.uint64, "id"),
    Column("begin", np.int64, "first voxel of the box", "voxel", triple=True),
    Column("score", np.float64, "of the merge"),
)
N = 23
TABLE = {
    "score": np.linspace(0, 1, N),
    "fragment": np.arange(N, dtype=np.uint64) + np.uint64(2**63),
    "begin": np.arange(3 * N).reshape(N, 3) - 5,
}


def write(path: Path, cuts: list[int], row_group: int = 5) -> None:
    with write_parquet(path, COLUMNS, {"voxel_size": [4, 4, 4]}, row_group=row_group) as file:
        for start, stop in zip([0, *cuts], [*cuts, N], strict=True):
            file.append({name: values[start:stop] for name, values in TABLE.items()})
        assert file.rows == N


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [4, 4, 20])
    back = read_parquet(path)
    assert list(back) == ["fragment", "begin_z", "begin_y", "begin_x", "score"]
    expected = [TABLE["fragment"], *TABLE["begin"].T, TABLE["score"]]
    for found, wanted in zip(back.values(), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("rows", [1, 4, 7, 100])
def test_parts_are_the_whole(tmp_path: Path, rows: int) -> None:
    write(tmp_path / "a.parquet", [])
    parts = list(read_batches(tmp_path / "a.parquet", rows))
    assert max(len(part["score"]) for part in parts) == min(rows, N)
    for name, values in read_parquet(tmp_path / "a.parquet").items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)
    with pytest.raises(MissingError, match=r"b\.parquet"):
        next(read_batches(tmp_path / "b.parquet", 1))


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, N), max_size=6).map(sorted))
def test_equal_rows_are_equal_files(cuts: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    write(folder / "one.parquet", [])
    write(folder / "two.parquet", cuts)
    assert (folder / "one.parquet").read_bytes() == (folder / "two.parquet").read_bytes()
    groups = pyarrow.parquet.ParquetFile(folder / "two.parquet").metadata
    assert [groups.row_group(k).num_rows for k in range(groups.num_row_groups)] == [5, 5, 5, 5, 3]


def test_equal_rows_are_equal_files_where_a_row_group_has_many_pages(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**63, 400_000, dtype=np.uint64)
    for name, cuts in (("one", []), ("two", [1001, 150_001, 260_007])):
        with write_parquet(tmp_path / name, COLUMNS[:1]) as file:
            for part in np.split(values, cuts):
                file.append({"fragment": part})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_rows_are_written_while_more_come(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with write_parquet(tmp_path / "a.parquet", COLUMNS[:1], row_group=10_000) as file:
        sizes = []
        for _ in range(3):
            file.append({"fragment": rng.integers(0, 2**63, 20_000, dtype=np.uint64)})
            (partial,) = tmp_path.iterdir()
            sizes.append(partial.stat().st_size)
    assert 100_000 < sizes[0] < sizes[1] - 100_000 < sizes[2] - 200_000


def test_says_what_it_holds_and_is_compressed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [])
    notes = read_notes(path)
    assert notes["voxel_size"] == [4, 4, 4]
    assert notes["axes"] == "zyx"
    assert notes["columns"]["begin_y"] == {"unit": "voxel", "meaning": "first voxel of the box"}
    assert list(notes["columns"]) == sorted(read_parquet(path))
    assert pyarrow.parquet.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "b.parquet")
    with pytest.raises(UnreadableError, match="another program"):
        read_notes(tmp_path / "b.parquet")


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    with write_parquet(tmp_path / "a.parquet", COLUMNS) as file:
        file.append({name: values[:0] for name, values in TABLE.items()})
    back = read_parquet(tmp_path / "a.parquet")
    assert back["begin_x"].shape == (0,)
    assert back["fragment"].dtype == np.uint64


def test_an_error_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    write(path, [])
    before = path.read_bytes()

    def stop(error: Exception) -> None:
        with write_parquet(path, COLUMNS) as file:
            file.append(TABLE)
            raise error

    for error in (RuntimeError("stop"), MissingError("a table is gone")):
        with pytest.raises(type(error), match=str(error)):
            stop(error)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UnreadableError, match="No space left"):
        write(path, [])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.parquet"]


def test_refuses_what_does_not_fit(tmp_path: Path) -> None:
    def append(**changes: object) -> None:
        with write_parquet(tmp_path / "a.parquet", COLUMNS) as file:
            file.append({**TABLE, **changes})  # type: ignore[arg-type]

    with pytest.raises(DataError, match="got the columns"):
        append(more=TABLE["score"])
    with pytest.raises(DataError, match=r"'score' is float32, expected float64"):
        append(score=TABLE["score"].astype(np.float32))
    with pytest.raises(ShapeError, match="'begin' has the shape"):
        append(begin=TABLE["begin"][:, :2])
    with pytest.raises(ShapeError, match="23 rows"):
        append(score=TABLE["score"][1:])
    with pytest.raises(MissingError, match="no folder"), write_parquet(tmp_path / "b" / "a.parquet", COLUMNS):
        pass
    with pytest.raises(MissingError, match="no Parquet file"):
        read_parquet(tmp_path / "a.parquet")


def test_a_cut_file_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, [])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UnreadableError, match=r"a\.parquet is cut off"):
        read_parquet(path)
