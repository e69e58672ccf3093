"""Checksums: a file that is not the one that was written is never read, is found, and is made again as it was."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from command import invoke
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline import NEAREST, perfect_affinities, store
from workflow import ROOT

from kdseg.cli.again import forced
from kdseg.config import validate
from kdseg.config.data import PhantomOptions, StorageOptions, VolumeOptions
from kdseg.config.segmentation import EdgesOptions, FragmentsOptions
from kdseg.config.tasks import ConvertTask, EdgesTask, FragmentsTask
from kdseg.errors import MissingError, StageError, UnreadableError
from kdseg.geometry import Triple
from kdseg.results.claims import Claim
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.results.tables import read_table, write_table
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.volumes import convert
from kdseg.volumes.inputs import open_input
from kdseg.volumes.verify import repair, verify
from kdseg.volumes.volume import Volume, create_volume, open_volume

SHAPE = (24, 40, 40)
STORAGE = StorageOptions(chunk=(8, 8, 8), shard=(16, 16, 16), levels=2)


def make(folder: Path, workers: int = 1, storage: StorageOptions = STORAGE) -> Path:
    """Convert a phantom, which has two levels, and return its manifest."""
    options = VolumeOptions(phantom=PhantomOptions(shape=SHAPE))
    manifest = folder / "raw.json"
    task = ConvertTask(kind="raw", manifest=manifest, options=options, storage=storage, workers=workers)
    convert.run(task)
    return manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("whole"))


def created(path: Path, shape: Triple, *, compress: bool = True) -> Volume:
    """Return a volume that no stage has made."""
    chunk, shard = STORAGE.chunk, STORAGE.shard
    size = (1.0, 1.0, 1.0)
    return create_volume(
        path, shape=shape, dtype=np.uint8, chunk=chunk, shard=shard, voxel_size=size, compress=compress
    )


def copy(manifest: Path, folder: Path) -> Path:
    """Return the manifest of a copy of a result."""
    shutil.copytree(manifest.parent, folder, dirs_exist_ok=True)
    return folder / manifest.name


def shards(manifest: Path, level: int = 0) -> list[Path]:
    return sorted(path for path in (manifest.with_suffix(".zarr") / str(level) / "c").rglob("*") if path.is_file())


def contents(manifest: Path) -> dict[str, bytes]:
    """Return the bytes of all results beside a manifest."""
    found = [path for path in manifest.parent.rglob("*") if path.is_file()]
    names = {path: str(path.relative_to(manifest.parent)) for path in found}
    results = {path: name for path, name in names.items() if not name.endswith(".json") and "/." not in f"/{name}"}
    return {name: path.read_bytes() for path, name in results.items()}


def readable(manifest: Path, level: int = 0) -> np.ndarray:
    open_input(manifest)
    volume = open_volume(manifest.with_suffix(".zarr"), level=level)
    return volume.read(volume.roi)


def flip(path: Path, place: float, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_flipped_bit_is_read(whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    manifest = copy(whole, tmp_path_factory.mktemp("flipped"))
    level = data.draw(st.integers(0, 1))
    file = data.draw(st.sampled_from(shards(manifest, level)))
    flip(file, data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.integers(0, 7)))
    with pytest.raises(UnreadableError, match=str(file)):
        readable(manifest, level)


def test_what_is_whole_is_read_and_found_whole(whole: Path) -> None:
    raw = readable(whole)
    assert raw.shape == SHAPE
    assert len(np.unique(raw)) > 100
    assert readable(whole, 1).shape == (12, 20, 20)
    assert list(verify(whole.parent, 2)) == [(whole, [])]


def test_a_shard_that_is_gone_is_not_read_as_zeros(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path)
    shards(manifest)[3].unlink()
    with pytest.raises(UnreadableError, match=r"gone since it was written.*kdseg verify .*raw.json --repair"):
        readable(manifest)


def test_no_way_to_open_a_level_goes_past_its_checksums(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path)
    shards(manifest)[0].unlink()
    volume = open_volume(manifest.with_suffix(".zarr") / "0")
    with pytest.raises(UnreadableError, match="gone since it was written"):
        volume.read(volume.roi)


def test_metadata_that_were_damaged_are_written_again(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path)
    for name in ("zarr.json", "1/zarr.json"):
        path = manifest.with_suffix(".zarr") / name
        path.write_text(path.read_text().replace('"fill_value": 0', '"fill_value": 3').replace('"unit"', '"unlt"'))
    with pytest.raises(UnreadableError, match="SHA-256"):
        readable(manifest)
    found = {fault.what.split()[0] for _, faults in verify(tmp_path, 1) for fault in faults}
    assert {str(manifest.with_suffix(".zarr") / name) for name in ("1/zarr.json", "zarr.json")} <= found
    make(tmp_path)
    assert contents(manifest) == contents(whole)


@pytest.mark.parametrize("name", ["zarr.json", "0/zarr.json"])
@pytest.mark.parametrize("text", ["", "{}", "\x00", "[1"])
def test_metadata_that_are_no_metadata_are_written_again(whole: Path, tmp_path: Path, name: str, text: str) -> None:
    manifest = copy(whole, tmp_path)
    (manifest.with_suffix(".zarr") / name).write_text(text)
    make(tmp_path)
    assert contents(manifest) == contents(whole)


@pytest.mark.parametrize("emptied", [False, True])
def test_no_level_is_made_of_a_hole(whole: Path, tmp_path: Path, emptied: bool) -> None:
    manifest = copy(whole, tmp_path)
    shutil.rmtree(manifest.with_suffix(".zarr") / "1" / "c")
    (tmp_path / ".raw" / "level1.txt").unlink()
    manifest.unlink()  # as if the machine had crashed before the second level was begun
    lost = shards(manifest)[5]
    lost.unlink()
    if emptied:
        lost.touch()
    with pytest.raises(StageError, match=r"1 finished blocks.*rerun"):
        make(tmp_path)
    make(tmp_path)
    assert contents(manifest) == contents(whole)


def test_a_phantom_that_is_not_stored_is_the_one_of_its_manifest(tmp_path: Path) -> None:
    options = VolumeOptions(phantom=PhantomOptions(shape=SHAPE, stored=False))
    manifest = tmp_path / "raw.json"
    convert.run(ConvertTask(kind="raw", manifest=manifest, options=options, storage=STORAGE))
    file = manifest.with_suffix(".zarr")
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UnreadableError, match="SHA-256"):
        open_input(manifest)
    ((_, faults),) = verify(tmp_path, 1)
    assert len(faults) == 1


def test_converted_data_of_a_user_are_whole(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["raw"] = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
        file["raw"].attrs["resolution"] = (10.0, 10.0, 10.0)
    options = VolumeOptions(raw=f"{tmp_path}/mine.h5:/raw")
    manifest = tmp_path / "run" / "raw.json"
    convert.run(ConvertTask(kind="raw", manifest=manifest, options=options, storage=STORAGE))
    assert list(verify(manifest, 1)) == [(manifest, [])]


@pytest.mark.slow
def test_two_shards_of_one_size_are_not_taken_for_each_other(tmp_path: Path) -> None:
    storage = STORAGE.model_copy(update={"levels": 1})
    manifest = make(tmp_path / "a", storage=storage)
    first, second = shards(manifest)[:2]
    # uncompressed, so that both have one size: the checksum alone tells them apart
    volume = created(tmp_path / "b.zarr", (16, 16, 32), compress=False)
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 32), dtype=np.uint8)
    known = np.frombuffer(volume.write(volume.roi, noise), "<i8,<u4")
    assert known["f0"][0] == known["f0"][1]
    assert known["f1"][0] != known["f1"][1]
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    with pytest.raises(UnreadableError, match=str(first)):
        readable(manifest)


def test_a_file_that_was_cut(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path)
    file = shards(manifest)[2]
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    with pytest.raises(UnreadableError, match=f"has {size // 2} bytes, {size} were written"):
        readable(manifest)


def test_checksums_of_another_volume(whole: Path, tmp_path: Path) -> None:
    volume = created(tmp_path / "raw.zarr", (16, 16, 48))
    known = whole.with_suffix(".checksums.npz")
    shutil.copy(known, tmp_path)
    with pytest.raises(UnreadableError, match=r"it is 'raw\.checksums\.npz of \w+', in the place of"):
        volume.read(volume.roi)
    write_table(tmp_path / known.name, read_table(known))
    with pytest.raises(
        UnreadableError, match=r"checksums\.npz is not of .*raw\.zarr, whose level 0 has \(1, 1, 3\) files"
    ):
        volume.read(volume.roi)


def test_a_file_is_compared_again_when_it_changes(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path)
    readable(manifest)
    flip(shards(manifest)[0], 0.5, 0)
    with pytest.raises(UnreadableError, match="damaged or another one"):
        readable(manifest)


def test_a_file_where_none_was_written(tmp_path: Path) -> None:
    affinities = store(tmp_path / "affinities.json", perfect_affinities(np.ones(SHAPE, np.uint8)), offsets=NEAREST)
    tissue = np.zeros(SHAPE, np.uint8)
    tissue[:, :, :16] = 1
    mask = store(tmp_path / "mask.json", tissue)
    manifest = tmp_path / "fragments.json"
    options = FragmentsOptions(block=(32, 16, 16), halo=(4, 4, 4))
    fragments.run(FragmentsTask(affinities=affinities, mask=mask, manifest=manifest, options=options, storage=STORAGE))
    columns = read_table(manifest.with_suffix(".checksums.npz"))
    there = {path.relative_to(manifest.with_suffix(".zarr") / "0/c").as_posix() for path in shards(manifest)}
    written = {"/".join(map(str, index)) for index in np.argwhere(columns["size_0"] >= 0)}
    assert there == written
    assert 0 < len(there) < columns["size_0"].size
    foreign = manifest.with_suffix(".zarr") / "0/c/0/0/2"
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_bytes(shards(manifest)[0].read_bytes())
    with pytest.raises(UnreadableError, match="was not written by the stage"):
        readable(manifest)
    # a file of an earlier attempt with other blocks, where this one had nothing to do
    fragments.run(FragmentsTask(affinities=affinities, mask=mask, manifest=manifest, options=options, storage=STORAGE))
    assert not foreign.exists()
    assert readable(manifest).any()


@pytest.mark.slow
def test_checksums_do_not_depend_on_workers(whole: Path, tmp_path: Path) -> None:
    assert contents(make(tmp_path, workers=2)) == contents(whole)


def test_a_table_of_checksums_that_was_changed_or_lost(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path)
    table = manifest.with_suffix(".checksums.npz")
    flip(table, 0.6, 1)
    with pytest.raises(UnreadableError, match="SHA-256"):
        readable(manifest)
    table.unlink()
    with pytest.raises(MissingError, match=r"checksums\.npz is gone"):
        readable(manifest)


@pytest.mark.parametrize("cut", [False, True])
def test_no_manifest_stands_over_a_hole(whole: Path, tmp_path: Path, cut: bool) -> None:
    manifest = copy(whole, tmp_path)
    before = contents(manifest)
    lost = shards(manifest)[5]
    if cut:
        lost.write_bytes(lost.read_bytes()[:-1])
    else:
        lost.unlink()
    with pytest.raises(StageError, match=r"1 finished blocks.*rerun"):
        make(tmp_path)
    assert not manifest.exists()
    assert not manifest.with_suffix(".checksums.npz").exists()  # what is done again may be read before it is known
    make(tmp_path)
    assert contents(manifest) == before


def planted(folder: Path, affinities: Path) -> tuple[Path, Path]:
    """Make fragments and edges, and return their manifests."""
    cut, joined = folder / "fragments.json", folder / "edges.json"
    options = FragmentsOptions(block=(32, 16, 16), halo=(4, 4, 4))
    fragments.run(FragmentsTask(affinities=affinities, manifest=cut, options=options, storage=STORAGE))
    how = EdgesOptions(block=(16, 16, 16))
    edges.run(EdgesTask(affinities=affinities, fragments=cut, manifest=joined, options=how))
    return cut, joined


def test_every_planted_fault_is_found_and_only_its_blocks_are_made_again(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(1, 4, (6, 10, 10)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    affinities = store(tmp_path / "affinities.json", perfect_affinities(labels), offsets=NEAREST)
    cut, joined = planted(tmp_path, affinities)
    before = contents(cut)
    files = shards(cut)
    flip(files[0], 0.3, 2)
    files[-1].unlink()  # not the block of its own place: a block is two shards high
    tables = sorted(joined.with_suffix(".tables").iterdir())
    flip(tables[1], 0.5, 0)
    tables[3].unlink()
    found = {manifest.name: faults for manifest, faults in verify(tmp_path, 2) if faults}
    assert sorted(found) == ["edges.json", "fragments.json"]
    named = [fault.what for fault in found["fragments.json"] + found["edges.json"]]
    planted_in = (files[0], files[-1], tables[1], tables[3])
    assert all(str(path) in what for what, path in zip(named, planted_in, strict=True))
    for name, faults in found.items():
        repair(tmp_path / name, faults)
    assert files[0].exists()  # nothing is removed
    (lists,) = (tmp_path / ".fragments").glob("*x*x*/*.txt")
    lists.write_bytes(lists.read_bytes() + b"no block\n\xff\n")
    repair(cut, found["fragments.json"])  # a list may be damaged, too
    planted(tmp_path, affinities)
    assert contents(cut) == before
    status = [json.loads((tmp_path / f"{name}.status.json").read_text()) for name in ("fragments", "edges")]
    assert [one["blocks"]["done"] for one in status] == [2, 2]
    assert not any(faults for _, faults in verify(tmp_path, 1))


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("damage", ["cut", "zeros", "empty", "longer"])
def test_a_shard_is_made_again_whatever_is_in_its_place(whole: Path, tmp_path: Path, level: int, damage: str) -> None:
    manifest = copy(whole, tmp_path)
    file = shards(manifest, level)[1]
    data = file.read_bytes()
    file.write_bytes({"cut": data[:-5], "zeros": bytes(len(data)), "empty": b"", "longer": data + b"more"}[damage])
    ((_, faults),) = verify(tmp_path, 1)
    assert [fault.what.split()[0] for fault in faults] == [str(file)]
    repair(manifest, faults)
    make(tmp_path)
    assert contents(manifest) == contents(whole)


def test_results_of_another_run_are_found(whole: Path, tmp_path: Path) -> None:
    affinities = store(tmp_path / "affinities.json", perfect_affinities(np.ones(SHAPE, np.uint8)), offsets=NEAREST)
    planted(tmp_path, affinities)
    other = tmp_path / "other"
    other.mkdir()
    labels = np.eye(40, dtype=np.uint8)[None].repeat(24, 0)
    store(other / "affinities.json", perfect_affinities(labels), offsets=NEAREST)
    shutil.copy(other / "affinities.json", affinities)
    found = {manifest.name: faults for manifest, faults in verify(tmp_path, 1)}
    assert any("was not made of" in fault.what for fault in found["fragments.json"])


@pytest.mark.parametrize("claimed", [True, False])
def test_a_damaged_manifest_is_one_fault_whose_cure_keeps_all_blocks(tmp_path: Path, claimed: bool) -> None:
    labels = np.eye(40, dtype=np.uint8)[None].repeat(24, 0)
    affinities = store(tmp_path / "affinities.json", perfect_affinities(labels), offsets=NEAREST)
    cut, _ = planted(tmp_path, affinities)
    before = contents(cut)
    flip(cut, 0.5, 1)
    if not claimed:
        Claim(cut, "").claimed.unlink()
    found = {manifest.name: [fault.what for fault in faults] for manifest, faults in verify(tmp_path, 1) if faults}
    assert found.keys() == {"fragments.json"}
    assert f"kdseg verify {cut} --repair says how" in found["fragments.json"][0]
    if not claimed:  # nobody knows what the blocks are made of
        assert f"kdseg clear {cut}, then rerun" in found["fragments.json"][1]
        return
    planted(tmp_path, affinities)
    assert contents(cut) == before
    assert json.loads((tmp_path / "fragments.status.json").read_text())["blocks"]["done"] == 0


@pytest.mark.parametrize("damage", ["gone", "flipped", "another"])
def test_a_claim_that_no_longer_holds_the_result_is_found(whole: Path, tmp_path: Path, damage: str) -> None:
    manifest = copy(whole, tmp_path / "run")
    claimed = Claim(manifest, "").claimed
    if damage == "gone":
        claimed.unlink()
    elif damage == "flipped":
        flip(claimed, 0.5, 1)
    else:
        write_sealed(claimed, {**read_sealed(claimed), "fingerprint": "0" * 64})
    ((found, (fault,)),) = verify(tmp_path, 1)
    assert found == manifest
    assert str(claimed) in fault.what
    repair(manifest, [fault])
    mended = not any(faults for _, faults in verify(tmp_path, 1))
    assert mended == (damage != "another")  # of two that are sound nobody knows which one is right


@pytest.mark.slow
def test_no_claim_is_made_of_a_manifest_of_another_result(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path / "run")
    other = tmp_path / "other" / "raw.json"
    options = VolumeOptions(phantom=PhantomOptions(shape=SHAPE, seed=1))
    convert.run(ConvertTask(kind="raw", manifest=other, options=options, storage=STORAGE))
    shutil.copy(other, manifest)
    claimed = Claim(manifest, "").claimed
    claimed.unlink()
    found = [fault for _, faults in verify(tmp_path / "run", 1) for fault in faults]
    assert any(str(claimed) in fault.what and "kdseg clear" in fault.what for fault in found)
    repair(manifest, found)
    assert not claimed.exists()


@pytest.mark.slow
def test_no_claim_is_written_over_that_of_a_result_made_meanwhile(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path / "run")
    claimed = Claim(manifest, "").claimed
    claimed.unlink()
    ((_, found),) = verify(tmp_path, 1)
    shutil.rmtree(tmp_path / "run")
    options = VolumeOptions(phantom=PhantomOptions(shape=SHAPE, seed=1))
    convert.run(ConvertTask(kind="raw", manifest=manifest, options=options, storage=STORAGE))
    now = claimed.read_bytes()
    repair(manifest, found)
    assert claimed.read_bytes() == now
    claimed.unlink()
    repair(manifest, found)
    assert not claimed.exists()


def test_a_damaged_curve_is_found(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path / "run")
    curve = manifest.with_suffix(".training") / "curve.csv"
    curve.parent.mkdir()
    curve.write_text("step,total\n1,0.5\n2,0.4\n")
    assert list(verify(tmp_path, 1)) == [(manifest, [])]
    curve.write_text("step,total\n1,0.5\n1,0.4\n")
    ((_, (fault,)),) = verify(tmp_path, 1)
    assert "steps do not rise" in fault.what


def test_the_command_says_what_to_run(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path / "run")
    said = invoke("verify", tmp_path / "run")
    assert said.exit_code == 0
    assert said.stdout == "1 results, 0 damaged\n"
    shards(manifest, 1)[0].unlink()
    said = invoke("verify", tmp_path / "run", "--repair", "--workers", "1")
    assert said.exit_code == 1
    assert said.stdout.splitlines()[-1].endswith(f"your configuration for CONFIG: {forced('CONFIG', [manifest])}")
    make(tmp_path / "run")
    assert contents(manifest) == contents(whole)


def test_the_command_to_run_can_be_pasted(tmp_path: Path, values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("config").mkdir()
    for name, results in (("other", "results/other"), ("of me", "results/test")):
        (tmp_path / "config" / f"{name}.yaml").write_text(yaml.safe_dump({**values, "results": results}))
    config = validate(values)
    manifest = Path("results/test/volumes/tune/raw.json")
    task = ConvertTask(kind="raw", manifest=manifest, options=config.volumes["tune"], storage=config.storage)
    convert.run(task)
    before, file = contents(manifest), shards(manifest)[1]
    file.write_bytes(b"damaged")
    (tmp_path / "elsewhere").mkdir()
    for folder, run in (("elsewhere", "../results/test"), (".", str(tmp_path / "results" / "test" / "volumes"))):
        monkeypatch.chdir(tmp_path / folder)
        said = invoke("verify", run, "--repair", "--workers", "1")
    command = said.stdout.splitlines()[-1]
    assert shlex.split(command) == ["kdseg", "run", "config/of me.yaml", str(manifest), "--", "--force"]
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert before.items() <= contents(manifest).items()  # there is a log, too
    (tmp_path / "results" / "test" / "config.yaml").write_text(yaml.safe_dump({**values, "results": "results/test"}))
    Path(f"{manifest}").write_text("{")
    assert f"kdseg run {tmp_path}/results/test/config.yaml " in invoke("verify", manifest, "--repair").stdout


def test_of_a_claim_that_was_mended_nothing_is_to_be_made_again(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path / "run")
    Claim(manifest, "").claimed.unlink()
    said = invoke("verify", tmp_path / "run", "--repair")
    assert said.exit_code == 1
    assert "1 results, 1 damaged" in said.stdout
    assert "--force" not in said.stdout
    assert invoke("verify", tmp_path / "run").exit_code == 0


def test_a_manifest_that_is_gone_is_told_of(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "run" / "b")
    manifest.unlink()
    said = invoke("verify", tmp_path / "run")
    assert said.exit_code == 0
    assert said.stdout.splitlines() == [
        f"{manifest} is not there: its stage has not finished, or the manifest is lost; run it again",
        "1 results, 0 damaged, 1 not finished",
    ]


@pytest.mark.slow
def test_results_without_their_hidden_folders_are_found_and_said_to_lack_them(whole: Path, tmp_path: Path) -> None:
    manifest = copy(whole, tmp_path / "run")
    copied = tmp_path / "copied"
    shutil.copytree(tmp_path / "run", copied / "part", ignore=shutil.ignore_patterns(".*"))
    (copied / "package.json").write_text('{"stage": "another program"}')
    twin, claimed = copied / "part" / manifest.name, copied / "part" / f".{manifest.stem}" / "claim.json"
    assert list(verify(copied / "part", 1)) == list(verify(copied, 1))
    said = invoke("verify", copied)
    assert said.exit_code == 1
    assert said.stdout.splitlines() == [
        f"no file at {claimed}; kdseg verify {twin} --repair writes it anew",
        "1 results, 1 damaged",
    ]
    assert invoke("verify", copied, "--repair").exit_code == 1
    assert invoke("verify", copied).stdout == "1 results, 0 damaged\n"
    shards(twin)[0].unlink()
    assert [len(faults) for _, faults in verify(copied, 1)] == [1]
    make(twin.parent)
    shutil.rmtree(copied / "part" / f".{manifest.stem}")
    flip(twin, 0.5, 0)
    assert [path for path, faults in verify(copied, 1) if faults] == [twin]
    flip(twin, 0.5, 0)
    assert contents(twin) == contents(whole)


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no stage of kdseg has finished"):
        list(verify(tmp_path, 1))
    with pytest.raises(MissingError, match=r"no folder at .*nowhere"):
        list(verify(tmp_path / "nowhere", 1))
