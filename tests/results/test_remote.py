"""Volumes in a bucket: the same bytes as on disk, links to them, and what is said when the bucket refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import yaml
from bucket_server import forget, on_disk, serving
from command import invoke
from pipeline import STORAGE, voxels
from toy_models import TILE, save
from toy_volumes import cells, write_volume
from workflow import jobs

from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    FragmentsOptions,
    PredictOptions,
    SegmentOptions,
    VolumeOptions,
)
from kdseg.config.questions import EvaluateTask
from kdseg.config.tasks import AgglomerateTask, ConvertTask, EdgesTask, FragmentsTask, PredictTask, SegmentTask
from kdseg.errors import ClaimError, ConfigError, KdsegError, MissingError, StageError, UnreadableError
from kdseg.evaluation import evaluate
from kdseg.prediction import stage as predict
from kdseg.results.claims import claim, clear
from kdseg.results.manifests import read, source_fingerprint
from kdseg.results.remote import read_link, resolve
from kdseg.segmentation.agglomeration import stage as agglomerate
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.segments import stage as segment
from kdseg.volumes import convert
from kdseg.volumes.inputs import open_input
from kdseg.volumes.sources import open_source
from kdseg.volumes.volume import create_volume, open_volume

# fsspec closes no sessions when it forgets a file system
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*ClientSession:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*StorePath:pytest.PytestUnraisableExceptionWarning"),
]

SHAPE = (40, 64, 33)
BLOCK = (32, 32, 32)
IN_BUCKET = STORAGE.model_copy(update={"remote": "s3://bucket/results"})
FRAGMENTS = FragmentsOptions(block=(32, 64, 64), halo=(8, 8, 8))


@pytest.fixture(scope="module")
def bucket():
    with serving() as found:
        yield found


@pytest.fixture
def anew():
    """The file systems that are remembered keep the credentials that they began with."""
    forget()
    yield
    forget()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, bucket):
    """A folder with a network; raw data and labels lie there and in the bucket."""
    folder = tmp_path_factory.mktemp("inputs")
    raw, labels = cells(SHAPE, 6)
    bucket.upload(write_volume(folder / "raw.zarr", raw), "in/raw.zarr")
    bucket.upload(write_volume(folder / "labels.zarr", labels), "in/labels.zarr")
    save(folder / "model.json")
    return folder


def run_all(folder, inputs, raw, storage, workers):
    """Run the stages from the raw data to the segmentation."""
    paths = {
        name: folder / f"{name}.json"
        for name in ("raw", "affinities", "fragments", "edges", "agglomeration", "segmentation")
    }
    convert.run(
        ConvertTask(kind="raw", manifest=paths["raw"], options=VolumeOptions(raw=raw), storage=storage, workers=workers)
    )
    predict_all(folder, inputs, storage)
    fragments.run(
        FragmentsTask(
            affinities=paths["affinities"],
            manifest=paths["fragments"],
            options=FRAGMENTS,
            storage=storage,
            workers=workers,
        )
    )
    graph = {name: paths[name] for name in ("affinities", "fragments")}
    edges.run(EdgesTask(**graph, manifest=paths["edges"], options=EdgesOptions(block=BLOCK), workers=workers))
    how = AgglomerateOptions(thresholds=(0.1, 0.5), chunk=(64, 64, 64))
    graph["edges"] = paths["edges"]
    agglomerate.run(AgglomerateTask(**graph, manifest=paths["agglomeration"], options=how, workers=workers))
    segment.run(
        SegmentTask(
            **{name: paths[name] for name in ("fragments", "edges", "agglomeration")},
            manifest=paths["segmentation"],
            options=SegmentOptions(block=BLOCK, threshold=0.5),
            storage=storage,
        )
    )
    return paths


def predict_all(folder, inputs, storage):
    how = PredictOptions(block=BLOCK, tile=TILE)
    predict.run(
        PredictTask(
            raw=folder / "raw.json",
            model=inputs / "model.json",
            manifest=folder / "affinities.json",
            options=how,
            storage=storage,
            device="cpu",
        )
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory, inputs):
    folder = tmp_path_factory.mktemp("local")
    return run_all(folder, inputs, str(inputs / "raw.zarr"), STORAGE, 1)


@pytest.fixture(scope="module")
def remote(tmp_path_factory, inputs):
    """The same from and to the bucket, by two processes that are forks of one that has reached it already."""
    folder = tmp_path_factory.mktemp("remote")
    return run_all(folder, inputs, "s3://bucket/in/raw.zarr", IN_BUCKET, 2)


def test_all_volumes_have_the_bytes_of_a_run_on_disk(bucket, local, remote):
    for name in ("raw", "affinities", "fragments", "segmentation"):
        url = read_link(read(remote[name]).result)
        assert re.fullmatch(rf"s3://bucket/results/{name}-[0-9a-f]{{12}}\.zarr", url)
        files, there = on_disk(read(local[name]).result), bucket.files(url)
        assert len(files) > 2
        if name == "affinities":  # whose chunks are not compressed, and have a checksum only where they lie in a bucket
            np.testing.assert_array_equal(voxels(remote[name]), voxels(local[name]))
            assert there.keys() == files.keys()
        else:
            assert there == files
        assert [p for p in remote[name].parent.glob(f"{name}.*") if p.is_dir()] == []
    assert np.ptp(voxels(local["affinities"])) > 50
    assert len(np.unique(voxels(local["segmentation"]))) > 2


def test_scores_read_from_the_bucket(local, remote, inputs):
    def scores(segmentation, labels):
        return evaluate.run(EvaluateTask(segmentation=str(segmentation), labels=str(labels), block=BLOCK))["scores"]

    expected = scores(read(local["segmentation"]).result, inputs / "labels.zarr")
    link = read(remote["segmentation"]).result
    assert scores(link, "s3://bucket/in/labels.zarr") == expected
    assert scores(read_link(link), "s3://bucket/in/labels.zarr/0") == expected
    same = invoke("same", str(link), str(read(local["segmentation"]).result))
    assert same.exit_code == 0, same.output


def test_a_level_below_a_link(local, remote):
    link = read(remote["segmentation"]).result
    assert resolve(link / "1") == f"{read_link(link)}/1"
    expected = open_volume(read(local["segmentation"]).result, level=1)
    found = open_volume(link / "1")
    np.testing.assert_array_equal(found.read(found.roi), expected.read(expected.roi))


@pytest.mark.slow
def test_a_killed_run_goes_on_where_its_link_points(tmp_path, bucket, inputs, remote):
    convert.run(
        ConvertTask(
            kind="raw",
            manifest=tmp_path / "raw.json",
            options=VolumeOptions(raw="s3://bucket/in/raw.zarr"),
            storage=IN_BUCKET,
        )
    )
    program = (
        "import sys; from pathlib import Path; import test_remote as t; "
        "t.predict_all(Path(sys.argv[1]), Path(sys.argv[2]), t.IN_BUCKET)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(inputs)], env=environment)
    marks = tmp_path / ".affinities" / "32x32x32" / "predict.txt"
    while not (marks.exists() and "\n" in marks.read_text()):
        assert child.poll() is None, "the run ended before it was killed"
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    url = read_link(tmp_path / "affinities.zarr")
    elsewhere = STORAGE.model_copy(update={"remote": "s3://bucket/elsewhere"})
    deadline = time.monotonic() + 30
    while True:
        try:
            predict_all(tmp_path, inputs, elsewhere)
            break
        except ClaimError:  # the worker of the killed run ends by itself
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert read_link(read(tmp_path / "affinities.json").result) == url
    assert bucket.files(url) == bucket.files(read_link(read(remote["affinities"]).result))
    assert not bucket.files("elsewhere")


def test_where_volumes_lie_is_not_what_they_are(local):
    assert "remote" not in json.dumps([read(path).options for path in local.values()])
    assert "remote" not in IN_BUCKET.model_dump_json()


def test_what_is_damaged_in_the_bucket(tmp_path, bucket, inputs, remote):
    url = f"{read_link(read(remote['fragments']).result)}/0/c/0/0/0"
    key = url.removeprefix("s3://bucket/")
    whole = bucket.get(key)
    ways = {name: remote[name] for name in ("fragments", "edges", "agglomeration")}
    how = SegmentOptions(block=BLOCK, threshold=0.5)
    try:
        bucket.put(key, whole[: len(whole) // 2])
        volume = open_input(remote["fragments"]).volume
        with pytest.raises(UnreadableError, match=f"{url} has {len(whole) // 2} bytes, {len(whole)} were written"):
            volume.read(volume.roi)
        bucket.delete(key)
        with pytest.raises(StageError, match="0/c/0/0/0 is gone since it was written; kdseg verify"):
            segment.run(SegmentTask(**ways, manifest=tmp_path / "segmentation.json", options=how, storage=IN_BUCKET))
    finally:
        bucket.put(key, whole)


def claimed(manifest, bucket_url, value=1):
    """Make a volume of one value in a bucket."""
    with claim(manifest, "test", {"value": value}, {}, volume=True, bucket=bucket_url) as held:
        shape = (16, 16, 16)
        volume = create_volume(held.store, shape=shape, dtype="u1", chunk=shape, shard=shape, voxel_size=(1, 1, 1))
        if value:
            volume.write(volume.roi, np.full(shape, value, np.uint8))
    return held.store


def test_clear_removes_what_was_made_in_the_bucket_and_nothing_else(tmp_path, bucket):
    link = claimed(tmp_path / "a.json", "s3://bucket/clear/")
    url = read_link(link)
    bucket.put(f"{url}x", b"mine")
    before = bucket.files("clear")
    assert len(before) > 2
    done = invoke("clear", str(tmp_path / "a.json"))
    assert f"removed {url}\n" in done.output
    assert list(bucket.files("clear").values()) == [b"mine"]
    assert list(tmp_path.iterdir()) == []


def test_every_claim_gets_a_place_of_its_own(tmp_path, bucket):
    first = read_link(claimed(tmp_path / "a.json", "s3://bucket/own", 1))
    (tmp_path / "a.zarr").unlink()  # the user says that it is gone, its chunks are not
    second = claimed(tmp_path / "a.json", "s3://bucket/own", 1)
    assert read_link(second) != first
    with pytest.raises(ClaimError, match=r"value was 1, is 0"):
        claimed(tmp_path / "a.json", "s3://bucket/own", 0)
    clear(tmp_path / "a.json")
    third = claimed(tmp_path / "a.json", "s3://bucket/own", 0)
    assert len({first, read_link(third)}) == 2
    volume = open_volume(third)
    assert not volume.read(volume.roi).any()


def test_what_is_gone_from_the_bucket_is_made_again(tmp_path, bucket):
    link = claimed(tmp_path / "a.json", "s3://bucket/gone")
    url = read_link(link)
    (tmp_path / ".a" / "16x16x16").mkdir()  # a marker
    for name in bucket.files(url):
        bucket.delete(url + name)
    with pytest.raises(MissingError, match=f"no zarr at {url}"):
        open_volume(link)
    assert read_link(claimed(tmp_path / "a.json", "s3://bucket/gone")) != url
    assert not (tmp_path / ".a" / "16x16x16").exists()


def test_a_link_that_was_changed_by_hand_deletes_nothing(tmp_path, bucket):
    bucket.put("theirs/raw.zarr/zarr.json", b"{}")
    link = claimed(tmp_path / "a.json", "s3://bucket/changed")
    for url in ("s3://bucket/theirs/raw.zarr", "s3://bucket/theirs", "s3://bucket"):
        link.write_text(json.dumps({"url": url}))
        with pytest.raises(UnreadableError, match="not deleted"):
            clear(tmp_path / "a.json")
    assert bucket.files("theirs")
    for wrong in ("", "[]", '{"url": "/etc"}', '{"url": 1}'):
        link.write_text(wrong)
        with pytest.raises(UnreadableError, match=r"cannot open .*a\.zarr as zarr: it is"):
            open_volume(link)


def test_a_fingerprint_follows_the_metadata(bucket, inputs):
    url = "s3://bucket/marked/raw.zarr"
    bucket.upload(inputs / "raw.zarr", url)
    prints = [source_fingerprint(url)]
    assert source_fingerprint(url) == prints[0]
    for name in ("zarr.json", "0/zarr.json"):
        values = json.loads((inputs / "raw.zarr" / name).read_text())
        values["attributes"] = {**values.get("attributes", {}), "new": 1}
        bucket.put(f"{url}/{name}", json.dumps(values).encode())
        prints.append(source_fingerprint(url))
    bucket.upload(inputs / "raw.zarr", "s3://bucket/marked/other.zarr")
    prints.append(source_fingerprint("s3://bucket/marked/other.zarr"))
    assert len(set(prints)) == len(prints)
    with pytest.raises(MissingError, match="no zarr at"):
        source_fingerprint("s3://bucket/marked")


@pytest.mark.parametrize("address", ["s3://bucket/nothing.zarr", "s3://bucket/in", "s3://no-such-bucket/raw.zarr"])
def test_nothing_there(bucket, inputs, address):
    with pytest.raises(MissingError, match=f"no zarr at {address}, or no such bucket"):
        open_source(address)


@pytest.mark.parametrize("address", ["s3://bucket/raw.h5:/volumes/raw", "s3://bucket/raw.tif"])
def test_other_formats_in_a_bucket(address):
    with pytest.raises(UnreadableError, match=f"{address}: only zarr is read"):
        open_source(address)


def test_a_bucket_that_is_not_there_takes_nothing(tmp_path, bucket):
    with pytest.raises(MissingError, match=r"no zarr at s3://no-such-bucket/a-\w+\.zarr, or no such bucket"):
        claimed(tmp_path / "a.json", "s3://no-such-bucket")


WRONG = {
    "secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, r"s3://bucket/\S+ is refused: .*check the credentials"),
    "key": ({"AWS_ACCESS_KEY_ID": "wrong"}, r"s3://bucket/\S+ is refused: .*check the credentials"),
    "none": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        "to locate credentials; .*FSSPEC_S3_ANON",
    ),
    "server": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot reach s3://bucket/.*AWS_ENDPOINT_URL"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_a_bucket_refuses_is_said_in_one_line(tmp_path, bucket, inputs, anew, monkeypatch, what):
    changes, message = WRONG[what]
    for name, value in changes.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    actions = [lambda: open_source("s3://bucket/in/raw.zarr")]
    if what != "server":  # which is tried again for 5 s each time
        actions.append(lambda: source_fingerprint("s3://bucket/in/raw.zarr"))
        actions.append(lambda: claimed(tmp_path / "a.json", "s3://bucket/refused"))
    for action in actions:
        with pytest.raises(UnreadableError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_a_package_that_is_not_installed(bucket, anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # if no test read from one
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ConfigError, match=r"pip install 'kdseg\[s3\]'"):
        open_source("s3://bucket/in/raw.zarr")
    with pytest.raises(ConfigError, match="pip install gcsfs"):
        open_source("gs://bucket/in/raw.zarr")


class Quiet(SimpleHTTPRequestHandler):
    def send_head(self):
        if self.path.startswith("/forbidden"):
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *_):
        pass


def test_a_web_server(inputs):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(inputs))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        source, expected = open_source(f"{address}/raw.zarr"), open_source(str(inputs / "raw.zarr"))
        np.testing.assert_array_equal(source.read(source.roi), expected.read(expected.roi))
        with pytest.raises(KdsegError, match=r"no zarr at .*/nothing\.zarr"):
            open_source(f"{address}/nothing.zarr")
        with pytest.raises(UnreadableError, match=r"cannot reach .*/forbidden\.zarr: 403"):
            open_source(f"{address}/forbidden.zarr")
        volume = open_volume(f"{address}/raw.zarr")
        server.shutdown()
    with pytest.raises(UnreadableError, match=f"cannot reach {address}/raw.zarr/0: "):  # which is no damage
        volume.read(volume.roi)


@pytest.mark.slow
def test_the_workflow_waits_for_no_files_in_a_bucket(tmp_path, values):
    changed = json.loads(json.dumps(values))  # others use them, too
    changed["volumes"]["train"] = {"raw": "s3://bucket/in/raw.zarr", "labels": "s3://bucket/in/labels.zarr"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(changed))
    assert "convert" in jobs(tmp_path, tmp_path / "config.yaml")


def test_the_command_takes_the_bucket_beside_the_task(tmp_path, bucket, inputs):
    options = VolumeOptions(raw="s3://bucket/in/raw.zarr")
    task = ConvertTask(kind="raw", manifest=tmp_path / "raw.json", options=options, storage=STORAGE)
    done = invoke("convert", "--task", task.model_dump_json(), "--storage.remote", "s3://bucket/command")
    assert done.exit_code == 0, done.output
    assert read_link(tmp_path / "raw.zarr").startswith("s3://bucket/command/raw-")
