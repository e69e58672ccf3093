"""Every bit of every small file of a run that flips is noticed or changes nothing, and each message names a way out."""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command import invoke
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdseg.errors import KdsegError, UnreadableError
from kdseg.geometry import Block, Roi, blocks
from kdseg.results.claims import claim
from kdseg.results.curve import Curve, read_curve
from kdseg.results.manifests import Manifest, read
from kdseg.results.parquet import Column, read_parquet, write_parquet
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.results.tables import read_table, write_table
from kdseg.running.progress import FinishedBlocks
from kdseg.running.runner import Place, run_blocks

TOTAL, BLOCK = Roi((3, 0, 5), (20, 17, 30)), (8, 8, 8)
EVERY = [block.index for block in blocks(TOTAL, BLOCK)]


def flipped(whole: bytes) -> Iterator[bytes]:
    """Yield a file with one bit of each of its bytes flipped, in turn."""
    draw = random.Random(3)
    for place in range(len(whole)):
        yield whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]


def refusal(read: Callable[[], object]) -> str | None:
    """Return in which words a reader refuses a file, in one line; None if it does not."""
    try:
        read()
    except KdsegError as error:
        return str(error)
    return None


def table_stage(manifest: Path, value: int, *, overwrite: bool = False) -> Manifest:
    """Leave a result as a stage does: blocks, tables of both kinds, a number."""
    with claim(manifest, "sweep", {"value": value}, {"raw": "abc"}, overwrite=overwrite) as held:
        held.progress(BLOCK)
        write_table(held.table, {"a": np.arange(value)})
        with write_parquet(held.parquet, [Column("a", "int64", "", "")]) as file:
            file.append({"a": np.arange(value)})
        held.stats["best"] = value / 7
    return read(manifest)


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists)
    )
)
def test_what_was_sealed_is_read_as_json_has_it(tmp_path_factory: pytest.TempPathFactory, values: dict) -> None:
    values.pop("checksum", None)
    path = tmp_path_factory.mktemp("sealed") / "a.json"
    write_sealed(path, values)
    assert json.dumps(read_sealed(path)) == json.dumps(json.loads(json.dumps(values)))


def test_a_flipped_bit_of_a_manifest_is_refused_or_is_in_a_blank(tmp_path: Path) -> None:
    manifest = tmp_path / "a.json"
    before, whole = table_stage(manifest, 5), manifest.read_bytes()
    refused = 0
    for damaged in flipped(whole):
        manifest.write_bytes(damaged)
        said = refusal(lambda: read(manifest))
        if said is None:
            assert read(manifest) == before
        else:
            assert "\n" not in said
            assert f"kdseg verify {manifest} --repair says how" in said
            refused += 1
    assert refused > 0.8 * len(whole)
    manifest.write_text(json.dumps({**json.loads(whole), "stats": {}}))
    with pytest.raises(UnreadableError, match=r"a\.json was changed or damaged.*kdseg verify \S*a\.json --repair"):
        read(manifest)
    manifest.unlink()
    assert table_stage(manifest, 5).stats["best"] == before.stats["best"]


def test_a_flipped_bit_of_a_claim_is_refused_and_cleared_as_the_message_says(tmp_path: Path) -> None:
    manifest, claimed = tmp_path / "a.json", tmp_path / ".a" / "claim.json"
    table_stage(manifest, 5)
    whole = claimed.read_bytes()
    for damaged in list(flipped(whole))[::9]:
        claimed.write_bytes(damaged)
        said = refusal(lambda: table_stage(manifest, 5))
        if said is not None:
            command = said.partition("kdseg clear ")[2].partition("  (")[0]
            assert shlex.split(command) == [str(manifest)]
            assert "\n" not in said
            result = invoke("clear", *shlex.split(command))
            assert (result.exit_code, result.stderr) == (0, "")
            assert list(tmp_path.iterdir()) == []
            table_stage(manifest, 5)
        assert claimed.read_bytes() == whole
    claimed.write_text("")
    table_stage(manifest, 6, overwrite=True)
    assert read(manifest).stats["best"] == 6 / 7


def test_a_status_tells_of_damage(tmp_path: Path) -> None:
    table_stage(tmp_path / "a.json", 5)
    table_stage(tmp_path / "b.json", 5)
    for file in ("a.json", ".b/claim.json"):
        path = tmp_path / file
        path.write_bytes(path.read_bytes().replace(b"5", b"6"))
    result = invoke("status", tmp_path)
    assert result.exit_code == 1
    for name in "ab":
        assert f"kdseg verify {tmp_path / name}.json --repair says how" in result.stdout
    assert result.stdout.splitlines()[-1] == "2 damaged"


def test_lists_whose_claim_was_lost_are_not_gone_on_with(tmp_path: Path) -> None:
    manifest = tmp_path / "a.json"
    table_stage(manifest, 5)
    (tmp_path / ".a" / "8x8x8" / "note.txt").write_text("0 0 0\n")
    for path in (tmp_path / ".a" / "claim.json", manifest, tmp_path / "a.npz", tmp_path / "a.parquet"):
        path.unlink()
    with claim(manifest, "sweep", {"value": 6}, {"raw": "abc"}) as held:
        assert not held.resumed
        assert list(held.progress(BLOCK).iterdir()) == []


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_table_that_is_not_the_one_of_its_manifest_is_refused(tmp_path: Path, suffix: str) -> None:
    made, other = (table_stage(tmp_path / f"{name}.json", value) for name, value in (("a", 5), ("b", 6)))
    path = made.table(suffix)
    whole = path.read_bytes()
    for wrong in [other.table(suffix).read_bytes(), *list(flipped(whole))[::5]]:
        path.write_bytes(wrong)
        with pytest.raises(UnreadableError, match=rf"a\{suffix} is not the file.*kdseg verify \S*a\.json --repair"):
            made.table(suffix)
    path.unlink()
    with pytest.raises(KdsegError, match=rf"a\{suffix} is gone.*kdseg verify \S*a\.json --repair"):
        made.table(suffix)


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_flipped_bit_of_a_table_is_refused_or_changes_no_number(tmp_path: Path, suffix: str) -> None:
    made = table_stage(tmp_path / "a.json", 500)
    path = made.table(suffix)
    whole, reader = path.read_bytes(), read_table if suffix == ".npz" else read_parquet
    refused = 0
    for damaged in list(flipped(whole))[::3]:
        path.write_bytes(damaged)
        said = refusal(lambda: reader(path))
        if said is None:
            (found,) = reader(path).values()  # perhaps by another name
            assert np.array_equal(found, np.arange(500))
        else:
            assert str(path) in said
            refused += 1
    assert refused > len(whole) / 6


def listed(folder: Path) -> Path:
    """Return a list of all blocks."""
    grid = FinishedBlocks(folder / "note.txt", TOTAL, BLOCK)
    for index in EVERY:
        grid.add(index)
    return grid.path


@pytest.mark.slow
def test_a_flipped_bit_of_a_list_of_finished_blocks_costs_two_blocks_at_most(tmp_path: Path) -> None:
    path = listed(tmp_path)
    whole = path.read_bytes()
    for damaged in flipped(whole):
        path.write_bytes(damaged)
        grid = FinishedBlocks(path, TOTAL, BLOCK)
        assert 1 <= len(list(grid.missing())) <= 2
        assert set(path.read_bytes().splitlines()) < set(whole.splitlines())
        for block in grid.missing():
            grid.add(block.index)
        assert not list(FinishedBlocks(path, TOTAL, BLOCK).missing())
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.integers(0, 2000), st.integers(0, 2000), st.binary(max_size=40))
def test_of_a_list_with_any_bytes_put_in_only_what_was_written_counts(
    tmp_path: Path, low: int, length: int, put: bytes
) -> None:
    path = tmp_path / "note.txt"
    path.unlink(missing_ok=True)
    grid = FinishedBlocks(path, TOTAL, BLOCK)
    for index in EVERY[::2]:
        grid.add(index)
    whole = path.read_bytes()
    path.write_bytes(whole[:low] + put + whole[low + length :])
    found = FinishedBlocks(path, TOTAL, BLOCK)
    assert not (found.finished & ~grid.finished).any()


@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_that_a_damaged_list_no_longer_names_are_done_again(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = listed(tmp_path)
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*whole[:3], whole[3].replace(b" ", b"!", 1), *whole[4:]]))
    out = tmp_path / "out"
    out.mkdir()

    def note(block: Block) -> None:
        (out / "_".join(map(str, block.index))).touch()

    run_blocks("note", TOTAL, BLOCK, note, Place(workers), tmp_path)
    assert [one.name for one in out.iterdir()] == ["_".join(map(str, EVERY[3]))]
    assert f"{path} is damaged or of another result: 1 of {len(EVERY)} lines" in caplog.text


def test_a_list_of_another_grid_counts_nothing(tmp_path: Path) -> None:
    path = listed(tmp_path)
    assert FinishedBlocks(path, Roi((3, 0, 5), (20, 17, 31)), BLOCK).finished.sum() == 0


def test_a_list_of_another_result_counts_nothing(tmp_path: Path) -> None:
    paths = []
    for run, fingerprint in (("one", "a1"), ("two", "b2"), ("same", "a1")):
        folder = tmp_path / run / ".edges" / "8x8x8"
        folder.mkdir(parents=True)
        write_sealed(folder.parent / "claim.json", {"fingerprint": fingerprint})
        paths.append(listed(folder))
    one, two, same = paths
    two.write_bytes(one.read_bytes())
    assert FinishedBlocks(two, TOTAL, BLOCK).finished.sum() == 0
    same.write_bytes(one.read_bytes())
    assert FinishedBlocks(same, TOTAL, BLOCK).finished.sum() == len(EVERY)


def test_a_flipped_bit_of_a_curve_is_a_row_less_a_line_or_a_digit(tmp_path: Path) -> None:
    path = tmp_path / "curve.csv"
    with Curve(path, ["step", "total", "seconds"], keep=0) as curve:
        for step in range(1, 8):
            curve.append({"step": step, "total": 1 / step, "seconds": 1.5 * step})
    rows, whole = read_curve(path), path.read_bytes()
    refused = 0
    for damaged in flipped(whole):
        path.write_bytes(damaged)
        said = refusal(lambda: read_curve(path))
        if said is None:
            found = read_curve(path)
            assert len(found) >= len(rows) - 2
            assert all(float(value or 0) >= -1e9 for row in found for value in row.values())
        else:
            assert "\n" not in said
            assert "delete it" in said
            refused += 1
    assert refused > 0.5 * len(whole)
