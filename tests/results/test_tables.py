"""Tables on disk: complete or not there, and damage is seen."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from kdseg.errors import DataError, MissingError, UnreadableError
from kdseg.results.claims import claim
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.results.tables import read_table, write_table
from kdseg.segmentation.graph.rag import Edges

EDGES = Edges(*(np.arange(k, k + 50, dtype=np.uint64) + np.uint64(2**63) for k in range(4)))


def test_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "edges.npz"
    write_table(path, EDGES._asdict())
    back = read_table(path)
    assert list(back) == ["u", "v", "affinity_sum", "contact"]
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(Edges(**back), EDGES, strict=True))
    write_table(path, {"empty": np.empty((0, 3), np.float32), "file": np.array([True])})
    assert read_table(path)["empty"].shape == (0, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["edges.npz"]


def test_equal_tables_are_equal_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.npz"
    write_table(path, EDGES._asdict())
    before, now = path.read_bytes(), time.time()
    monkeypatch.setattr("time.time", lambda: now + 1e6)
    write_table(path, EDGES._asdict())
    assert path.read_bytes() == before


def test_a_table_is_not_read_in_the_place_of_another_one(tmp_path: Path) -> None:
    write_table(tmp_path / "one.npz", EDGES._asdict())
    (tmp_path / "one.npz").rename(tmp_path / "two.npz")
    with pytest.raises(UnreadableError, match=r"it is 'one\.npz of no stage', in the place of 'two\.npz of"):
        read_table(tmp_path / "two.npz")


def test_every_cut_and_every_flipped_byte_of_the_data_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "edges.npz"
    write_table(path, EDGES._asdict())
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UnreadableError, match=r"edges\.npz"):
            read_table(path)
    start = whole.index(EDGES.u.tobytes())
    for place in range(start, start + EDGES.u.nbytes, 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UnreadableError):
            read_table(path)


def test_failed_writing_leaves_the_old_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "edges.npz"
    write_table(path, {"a": np.ones(3)})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UnreadableError, match="No space left"):
        write_table(path, {"a": np.zeros(3)})
    assert read_table(path)["a"].tolist() == [1, 1, 1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["edges.npz"]


def test_refuses_what_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere"):
        read_table(tmp_path / "nowhere.npz")
    with pytest.raises(MissingError, match="no folder"):
        write_table(tmp_path / "nowhere" / "edges.npz", EDGES._asdict())
    with pytest.raises(DataError, match="object"):
        write_table(tmp_path / "objects.npz", {"a": np.array([None])})
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(UnreadableError, match="single"):
        read_table(tmp_path / "single.npy")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], object))
    with pytest.raises(UnreadableError):
        read_table(tmp_path / "pickled.npz")
    with pytest.raises(UnreadableError):
        read_table(tmp_path)


def test_a_damaged_shape_cuts_no_column_short(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_table(path, {"a": np.arange(500)})
    path.write_bytes(path.read_bytes().replace(b"(500,)", b"(400,)"))
    with pytest.raises(UnreadableError, match=r"a\.npz is cut off, damaged"):
        read_table(path)


@pytest.mark.parametrize(
    ("table", "manifest"),
    [
        ("edges.tables/0_0_0.npz", "edges.json"),
        (".segmentation/luts/0_0_0_0.npz", "segmentation.json"),
        ("fragments.checksums.npz", "fragments.json"),
        ("links.npz", "links.json"),
    ],
)
def test_a_damaged_table_names_the_manifest_to_verify(tmp_path: Path, table: str, manifest: str) -> None:
    path = tmp_path / table
    path.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / ".segmentation").mkdir(exist_ok=True)
    write_sealed(tmp_path / ".segmentation" / "claim.json", {"fingerprint": "a1"})
    path.write_bytes(b"no table")
    with pytest.raises(UnreadableError, match=rf"kdseg verify {tmp_path / manifest} --repair says"):
        read_table(path)


PLACES = ("edges.tables/0_0_0.npz", ".edges/8x8x8/parts/0_0_0.npz", "edges.checksums.npz", "edges.npz")
DOTTED = [
    ("edges.v2.tables/0_0_0.npz", "edges.v2"),
    ("edges.v2.checksums.npz", "edges.v2"),
    ("edges.v2.npz", "edges.v2"),
]
"""Results may have dots in their names."""


@pytest.mark.parametrize(("place", "stem"), [(place, "edges") for place in PLACES] + DOTTED)
def test_a_table_is_not_read_in_another_result(tmp_path: Path, place: str, stem: str) -> None:
    """Of the same name in the same place, as of a run with other options; moved with its result it is read."""
    for run, fingerprint in (("one", "a1"), ("two", "b2"), ("same", "a1")):
        path = tmp_path / run / place
        path.parent.mkdir(parents=True)
        (tmp_path / run / f".{stem}").mkdir(exist_ok=True)
        write_sealed(tmp_path / run / f".{stem}" / "claim.json", {"fingerprint": fingerprint})
        write_table(path, EDGES._asdict())
    paths = [tmp_path / run / place for run in ("one", "two", "same")]
    assert paths[0].read_bytes() == paths[2].read_bytes()
    shutil.copy(paths[0], paths[1])
    with pytest.raises(UnreadableError, match=rf"{place} of a1', in the place of '{place} of b2'"):
        read_table(paths[1])
    (tmp_path / "one").rename(tmp_path / ".hidden")
    assert read_table(tmp_path / ".hidden" / place).keys() == EDGES._asdict().keys()


@pytest.mark.parametrize("place", PLACES[:1] + PLACES[2:])
def test_a_finished_result_is_known_without_its_claim(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    with claim(tmp_path / "edges.json", "edges", {"a": 1}, {}):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, EDGES._asdict())
    shutil.rmtree(tmp_path / ".edges")
    assert read_table(path).keys() == EDGES._asdict().keys()
    values = read_sealed(tmp_path / "edges.json")
    write_sealed(tmp_path / "edges.json", {**values, "fingerprint": "another"})
    with pytest.raises(UnreadableError, match="in the place of"):
        read_table(path)


def test_something_behind_the_end_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "edges.npz"
    write_table(path, EDGES._asdict())
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UnreadableError, match="something follows its end"):
        read_table(path)
