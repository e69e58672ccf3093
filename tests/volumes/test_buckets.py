"""Volumes in a bucket: an object that is not the one that was written is never read, is found, and is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from bucket_server import Bucket, forget, serving
from command import invoke
from toy_volumes import write_volume

from kdseg.config.data import StorageOptions, VolumeOptions
from kdseg.config.tasks import ConvertTask
from kdseg.errors import MissingError, StageError, UnreadableError
from kdseg.geometry import Roi, blocks
from kdseg.results.claims import Claim
from kdseg.results.files import CHECKSUMS
from kdseg.results.remote import etag, read_link
from kdseg.results.tables import read_table, write_table
from kdseg.volumes import convert, stores
from kdseg.volumes.inputs import open_input
from kdseg.volumes.shards import OBJECT
from kdseg.volumes.verify import repair, verify
from kdseg.volumes.volume import Volume, create_volume, open_volume

# fsspec closes no sessions when it forgets a file system
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*ClientSession:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*StorePath:pytest.PytestUnraisableExceptionWarning"),
]

SHAPE = (16, 32, 48)
STORAGE = StorageOptions(chunk=(8, 8, 8), shard=(16, 16, 16), levels=2, remote="s3://bucket/results")
EMPTY = "0/c/0/0/2"
"""Shard of zeros, which is not written."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with serving() as found:
        yield found


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each test begin as a process does that has compared nothing."""
    monkeypatch.setattr(stores, "_sound", {})


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    noise = np.random.default_rng(0).integers(1, 256, SHAPE, dtype=np.uint8)
    noise[:16, :16, 32:] = 0
    return write_volume(tmp_path_factory.mktemp("raw") / "raw.zarr", noise)


def make(folder: Path, raw: Path) -> Path:
    """Convert raw data into the bucket, with a second level, and return the manifest."""
    manifest = folder / "raw.json"
    options = VolumeOptions(raw=str(raw))
    convert.run(ConvertTask(kind="raw", manifest=manifest, options=options, storage=STORAGE))
    return manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, bucket: Bucket, raw: Path) -> Path:
    return make(tmp_path_factory.mktemp("whole"), raw)


@contextmanager
def a_copy(whole: Path, folder: Path, bucket: Bucket) -> Iterator[tuple[Path, str, dict[str, bytes]]]:
    """Yield the manifest of a copy, with the volume where it was, its URL and its objects, which are put back."""
    shutil.copytree(whole.parent, folder, dirs_exist_ok=True)
    url = read_link(whole.with_suffix(".zarr"))
    before = bucket.files(f"{url}/")
    try:
        yield folder / whole.name, url, before
    finally:
        for name in bucket.files(f"{url}/"):
            bucket.delete(f"{url}/{name}")
        for name, data in before.items():
            bucket.put(f"{url}/{name}", data)


def readable(manifest: Path, level: int = 0) -> np.ndarray:
    open_input(manifest)
    volume = open_volume(manifest.with_suffix(".zarr"), level=level)
    return volume.read(volume.roi)


def readable_in_parts(manifest: Path, level: int = 0) -> None:
    """Read one voxel of each object."""
    open_input(manifest)
    volume = open_volume(manifest.with_suffix(".zarr"), level=level)
    for block in blocks(volume.roi, volume.write_unit):
        volume.read(Roi(block.roi.offset, (1, 1, 1)))


def damaged(how: str, key: str, before: dict[str, bytes]) -> bytes | None:
    """Return what is to be in the place of an object."""
    data = before.get(key, before["0/c/0/0/0"])
    middle = len(data) // 2
    other = next(one for name, one in before.items() if "/c/" in name and one != data)
    flipped = data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]
    return {"gone": None, "cut": data[:middle], "flipped": flipped, "swapped": other, "empty": b"", "there": data}[how]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "how"),
    [
        ("0/c/0/1/1", "gone"),
        ("0/c/0/1/1", "cut"),
        ("0/c/0/1/1", "flipped"),
        ("0/c/0/1/1", "swapped"),
        ("0/c/0/1/1", "empty"),
        ("1/c/0/0/0", "gone"),
        ("1/c/0/0/0", "swapped"),
        (EMPTY, "there"),
        (EMPTY, "empty"),
    ],
)
def test_what_is_damaged_is_not_read_but_found_and_made_again(
    whole: Path, tmp_path: Path, bucket: Bucket, raw: Path, key: str, how: str
) -> None:
    with a_copy(whole, tmp_path, bucket) as (manifest, url, before):
        assert EMPTY not in before
        data = damaged(how, key, before)
        if data is None:
            bucket.delete(f"{url}/{key}")
        else:
            bucket.put(f"{url}/{key}", data)
        for read in (readable, readable_in_parts):
            with pytest.raises(UnreadableError, match=rf"{key} .*kdseg verify {manifest} --repair"):
                read(manifest, int(key[0]))
            read(manifest, 1 - int(key[0]))
        ((_, (fault,)),) = verify(tmp_path, 2)
        assert f"{url}/{key} " in fault.what
        repair(manifest, [fault])
        make(tmp_path, raw)
        assert bucket.files(f"{url}/") == before
        status = json.loads((tmp_path / "raw.status.json").read_text())
        assert status["blocks"]["done"] <= 1
        assert readable(manifest).shape == SHAPE
        assert list(verify(tmp_path, 1)) == [(manifest, [])]


def test_what_is_whole_is_read_and_found_whole(whole: Path, raw: Path) -> None:
    np.testing.assert_array_equal(readable(whole), readable_raw(raw))
    assert invoke("verify", whole.parent).stdout == "1 results, 0 damaged\n"
    columns = read_table(whole.with_suffix(CHECKSUMS))
    assert (columns["size_0"] < 0).sum() == 1
    assert (columns["etag_0"] != 0).sum() == columns["size_0"].size - 1


def readable_raw(raw: Path) -> np.ndarray:
    volume = open_volume(raw)
    return volume.read(volume.roi)


def test_an_object_that_goes_while_a_process_reads(whole: Path, tmp_path: Path, bucket: Bucket) -> None:
    with a_copy(whole, tmp_path, bucket) as (manifest, url, _):
        readable_in_parts(manifest)
        bucket.delete(f"{url}/0/c/0/1/1")
        with pytest.raises(UnreadableError, match=rf"^{url}/0/c/0/1/1 is gone since it was written"):
            readable_in_parts(manifest)


def test_an_object_that_was_copied_is_the_same(whole: Path, tmp_path: Path, bucket: Bucket) -> None:
    with a_copy(whole, tmp_path, bucket) as (manifest, url, before):
        key, name = f"{url}/0/c/0/1/1".removeprefix("s3://bucket/"), "0/c/0/1/1"
        where = {"Bucket": "bucket", "Key": key}
        begun = bucket.client.create_multipart_upload(**where)["UploadId"]
        part = bucket.client.upload_part(**where, UploadId=begun, PartNumber=1, Body=before[name])["ETag"]
        parts = {"Parts": [{"ETag": part, "PartNumber": 1}]}
        made = bucket.client.complete_multipart_upload(**where, UploadId=begun, MultipartUpload=parts)
        assert made["ETag"].strip('"').endswith("-1")  # no longer the MD5 of its bytes
        assert readable(manifest).any()
        readable_in_parts(manifest)
        assert list(verify(tmp_path, 1)) == [(manifest, [])]


def test_what_lies_where_all_blocks_left_nothing_is_removed(
    whole: Path, tmp_path: Path, bucket: Bucket, raw: Path
) -> None:
    with a_copy(whole, tmp_path, bucket) as (manifest, url, before):
        bucket.put(f"{url}/{EMPTY}", before["0/c/0/0/0"])  # as of an attempt with other blocks
        make(tmp_path, raw)
        assert bucket.files(f"{url}/") == before
        assert readable(manifest).shape == SHAPE


@pytest.mark.slow
@pytest.mark.parametrize("cut", [False, True])
def test_no_manifest_stands_over_a_hole(whole: Path, tmp_path: Path, bucket: Bucket, raw: Path, cut: bool) -> None:
    with a_copy(whole, tmp_path, bucket) as (manifest, url, before):
        manifest.unlink()  # as if the run had been killed
        bucket.delete(f"{url}/0/c/0/1/0")
        if cut:
            bucket.put(f"{url}/0/c/0/1/0", before["0/c/0/1/0"][:-1])
        with pytest.raises(StageError, match=rf"1 finished blocks of {url}/0 are gone or cut.*rerun"):
            make(tmp_path, raw)
        assert not manifest.exists()
        assert not manifest.with_suffix(CHECKSUMS).exists()
        make(tmp_path, raw)
        assert bucket.files(f"{url}/") == before
        assert list(verify(tmp_path, 1)) == [(manifest, [])]


@pytest.mark.parametrize(
    ("name", "how"),
    [("zarr.json", "changed"), ("zarr.json", "text"), ("0/zarr.json", "changed"), ("1/zarr.json", "gone")],
)
def test_metadata_that_were_damaged_are_written_again(
    whole: Path, tmp_path: Path, bucket: Bucket, raw: Path, name: str, how: str
) -> None:
    with a_copy(whole, tmp_path, bucket) as (manifest, url, before):
        text = before[name].replace(b'"fill_value": 0', b'"fill_value": 3').replace(b'"scale"', b'"scalE"')
        assert text != before[name]
        bucket.delete(f"{url}/{name}")
        if how != "gone":
            bucket.put(f"{url}/{name}", text if how == "changed" else b"[1")
        with pytest.raises((MissingError, UnreadableError), match=f"{name} is "):
            open_input(manifest)
        found = {fault.what.split()[0] for _, faults in verify(tmp_path, 1) for fault in faults}
        assert f"{manifest.with_suffix('.zarr')}/{name}" in found
        make(tmp_path, raw)
        assert bucket.files(f"{url}/") == before
        assert list(verify(tmp_path, 1)) == [(manifest, [])]


def noise_in(folder: Path, bucket: Bucket) -> tuple[Volume, np.ndarray]:
    """Write two shards of one size, uncompressed as affinities are, and the table of what is known of them."""
    (folder / "a.zarr").write_text(json.dumps({"url": f"s3://bucket/noise/{folder.name}.zarr"}))
    chunk, shard = STORAGE.chunk, STORAGE.shard
    volume = create_volume(
        folder / "a.zarr",
        shape=(16, 16, 32),
        dtype=np.uint8,
        chunk=chunk,
        shard=shard,
        voxel_size=(1, 1, 1),
        compress=False,
    )
    noise = np.random.default_rng(0).integers(0, 256, volume.shape, dtype=np.uint8)
    known = np.frombuffer(volume.write(volume.roi, noise), OBJECT).reshape(1, 1, 2)
    write_table(folder / f"a{CHECKSUMS}", {f"{name}_0": known[name] for name in OBJECT.names or ()})
    return open_volume(folder / "a.zarr"), known


def test_two_objects_of_one_size_are_not_taken_for_each_other(tmp_path: Path, bucket: Bucket) -> None:
    volume, known = noise_in(tmp_path, bucket)
    assert known["size"][0, 0, 0] == known["size"][0, 0, 1]
    volume.read(volume.roi)
    first, second = (str(file).removeprefix("s3://bucket/") for _, file in volume.files(volume.roi))
    data = bucket.get(first), bucket.get(second)
    bucket.put(first, data[1])
    bucket.put(second, data[0])
    for part in (volume.roi, Roi((0, 0, 0), (1, 1, 1))):
        with pytest.raises(UnreadableError, match=r"0/c/0/0/[01] is damaged or another one: its CRC-32"):
            volume.read(part)


def test_a_bit_that_the_bucket_itself_flipped(tmp_path: Path, bucket: Bucket) -> None:
    volume, known = noise_in(tmp_path, bucket)
    url = str(next(volume.files(volume.roi))[1])
    data = bytearray(bucket.get(url.removeprefix("s3://bucket/")))
    data[100] ^= 1
    bucket.put(url, bytes(data))
    facts = bucket.client.head_object(Bucket="bucket", Key=url.removeprefix("s3://bucket/"))
    changed = known.copy()
    changed["etag"][0, 0, 0] = etag(facts)  # as if the bucket still told of what was written
    write_table(tmp_path / f"a{CHECKSUMS}", {f"{name}_0": changed[name] for name in OBJECT.names or ()})
    with pytest.raises(UnreadableError, match=r"cannot read .*\.zarr/0: .*the chunk is damaged"):
        volume.read(Roi((0, 0, 0), (8, 8, 8)))


def test_an_empty_object_of_somebody_else(tmp_path: Path, bucket: Bucket) -> None:
    bucket.upload(write_volume(tmp_path / "x.zarr", np.ones((16, 16, 16), np.uint8)), "theirs/x.zarr")
    volume = open_volume("s3://bucket/theirs/x.zarr")
    assert volume.read(volume.roi).all()
    bucket.put("theirs/x.zarr/0/c/0/0/0", b"")
    with pytest.raises(UnreadableError, match=r"0/c/0/0/0 is empty; copy or compute it again"):
        volume.read(volume.roi)


@pytest.mark.slow
def test_a_bucket_that_does_not_answer_costs_no_blocks(
    whole: Path, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_copy(whole, tmp_path, bucket) as (manifest, _, _):
        forget()
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            ((_, faults),) = verify(tmp_path, 1)
            forget()
        assert faults
        assert all("cannot reach s3://" in fault.what and fault.made_by == () for fault in faults)
        listed = list(Claim(manifest, "").private.rglob("*.txt"))
        was = [path.read_bytes() for path in listed]
        repair(manifest, faults)
        assert [path.read_bytes() for path in listed] == was
