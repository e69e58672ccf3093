"""Addresses: the workflow finds the files that the readers open, whatever the names."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_volumes import DATA, write_hdf5, write_volume, write_zarr
from workflow import ROOT

from kdseg.config import load, validate
from kdseg.config.addresses import files_of, local, locate
from kdseg.config.data import VolumeOptions
from kdseg.config.questions import AdoptTask, EvaluateTask
from kdseg.config.tasks import ConvertTask
from kdseg.errors import ConfigError, DataError, KdsegError, MissingError, UnreadableError
from kdseg.evaluation.skeleton_files import read_skeletons
from kdseg.results.manifests import read
from kdseg.segmentation import adopt
from kdseg.segmentation.agglomeration.edits import read_edits
from kdseg.volumes import convert
from kdseg.volumes.sources import open_channels, open_source, source_member, source_path

SMALL = DATA[:4, :8, :8]
NAMES = st.text(st.sampled_from("ab :{}[]#%?&=*~.,'\"$()é"), min_size=1, max_size=8).filter(
    lambda name: name.strip(".") and name != "~"
)


def write_precomputed(folder: Path) -> None:
    scale = {"key": "8_8_8", "size": [8, 8, 4], "resolution": [8, 8, 8], "voxel_offset": [0, 0, 0]}
    scale |= {"chunk_sizes": [[8, 8, 4]], "encoding": "raw"}
    info = {"type": "image", "data_type": "uint16", "num_channels": 1, "scales": [scale]}
    (folder / "8_8_8").mkdir(parents=True)
    (folder / "info").write_text(json.dumps(info))
    (folder / "8_8_8" / "0-8_0-8_0-4").write_bytes(SMALL.tobytes())


def write_as(kind: str, folder: Path, name: str) -> tuple[str, Path, str]:
    """Write a volume; return its address, its file or folder, and what the address names in there."""
    if kind.startswith("hdf5"):
        path = folder / f"{name}.h5"
        with h5py.File(path, "w") as file:
            file["raw"], file["in/raw.h5"] = SMALL, SMALL
        member = {"hdf5": "/raw", "hdf5 without slash": "raw", "hdf5 of an odd name": "in/raw.h5"}[kind]
        return f"{path}:{member}", path, member.strip("/")
    if kind.startswith("precomputed"):
        write_precomputed(folder / name)
        key = "8_8_8" if kind.endswith("key") else ""
        return f"{folder / name}{':' if key else ''}{key}", folder / name, key
    if kind == "zarr":
        return f"{write_zarr(folder / f'{name}.zarr', 2, SMALL)}/", folder / f"{name}.zarr", ""
    if kind == "tiff":
        tifffile.imwrite(folder / f"{name}.tif", SMALL, photometric="minisblack")
        return str(folder / f"{name}.tif"), folder / f"{name}.tif", ""
    (folder / name).mkdir()
    for z, section in enumerate(SMALL):
        tifffile.imwrite(folder / name / f"{z}.tif", section)
    return str(folder / name), folder / name, ""


KINDS = (
    "hdf5", "hdf5 without slash", "hdf5 of an odd name", "zarr", "tiff", "sections", "precomputed", "precomputed key"
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(NAMES, NAMES)
def test_the_files_are_found_that_are_read(kind: str, above: str, name: str) -> None:
    if kind.startswith("precomputed"):
        pytest.importorskip("tensorstore")
    with TemporaryDirectory() as place:
        folder = Path(place) / above
        folder.mkdir()
        address, path, member = write_as(kind, folder, name)
        assert files_of(address, None, address, "s3://bucket/x.zarr") == [str(path)]
        assert (source_path(address), source_member(address)) == (path, member)
        source = open_source(address)
        if not kind.startswith("precomputed"):  # a process that read these can no longer fork
            np.testing.assert_array_equal(source.read(source.roi), SMALL)
        url = Path(str(path)).as_uri() + address.removeprefix(str(path)).rstrip("/")
        assert (source_path(url), source_member(url)) == (path, member)
        assert open_source(url).data.shape == SMALL.shape
        assert VolumeOptions(raw=url).raw == address.rstrip("/")


def test_where_a_folder_is_named_like_a_file_of_hdf5_the_file_counts(tmp_path: Path) -> None:
    (tmp_path / "old.h5:copy.hdf").mkdir()
    address = write_hdf5(tmp_path / "old.h5:copy.hdf" / "A.HDF5", SMALL, "raw")
    assert locate(address) == (tmp_path / "old.h5:copy.hdf" / "A.HDF5", "/raw", True)
    np.testing.assert_array_equal(open_source(address).read(open_source(address).roi), SMALL)


def test_below_a_link_the_link_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.zarr").write_text('{"url": "s3://bucket/x-3f9a12c07b44.zarr"}')
    assert files_of(f"{tmp_path}/x.zarr/0") == files_of(f"{tmp_path}/./x.zarr/") == [f"{tmp_path}/x.zarr"]
    assert files_of(f"{tmp_path}/nothing.zarr/0") == [f"{tmp_path}/nothing.zarr/0"]


def test_home_and_urls_of_files_are_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nobody")
    assert local("~/a.h5:/raw") == "/nobody/a.h5:/raw"
    assert local("~") == "~"
    assert local("file:///a%20b/%7Bx%7D.h5:raw") == local("FILE://localhost/a%20b/%7Bx%7D.h5:raw") == "/a b/{x}.h5:raw"
    for url in ("s3://bucket/a%20b.zarr", "gs://b/x", "https://host/x?key=1", "http://host/x", "a.h5://raw"):
        assert local(url) == url


@pytest.mark.parametrize(
    "address",
    ["file://host/x.zarr", "file://x.zarr", "file:///x?y", "ftp://host/x", "precomputed://gs://b/x", "S3://b"],
)
def test_what_nothing_is_read_from_is_refused_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match=r"expected file:///|is not a path"):
        local(address)
    with pytest.raises(KdsegError, match=r"expected file:///|is not a path"):
        open_source(address)
    values = {"volumes": {"a": {"raw": address}}, "pretrained": {"n": "fib25-s"}, "evaluate": {"models": ["n"]}}
    with pytest.raises(ConfigError, match=r"volumes\.a\.raw: .*(expected file:///|is not a path)"):
        validate(values)


def test_all_paths_of_a_configuration_may_be_urls(values: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nobody")
    values |= {"results": "file:///res/x/", "reuse": "~/old/.", "pretrained": {"given": "file:///n%20n.safetensors"}}
    values["volumes"]["real"] = dict.fromkeys(("raw", "labels", "baseline", "mask"), "file:///a.h5:/x")
    values["agglomerate"]["edits"] = "file:///e.csv"
    values["models"]["student"]["train"]["start_from"] = "~/s.safetensors"
    values["teachers"] = {
        "a": {"affinities": {"real": "file:///a.zarr"}, "offsets": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]]},
        "b": {"segmentation": {"real": "file:///b.zarr"}},
        "c": {"file": "file:///c.onnx"},
    }
    config = validate(values)
    assert (config.results, config.reuse, config.pretrained["given"]) == ("/res/x", "/nobody/old", "/n n.safetensors")
    real = config.volumes["real"]
    assert {real.raw, real.labels, real.baseline, real.mask} == {"/a.h5:/x"}
    assert config.agglomerate.edits == "/e.csv"
    assert config.models["student"].train.start_from == "/nobody/s.safetensors"
    assert (config.teachers["a"].files("real"), config.teachers["b"].files("real")) == (["/a.zarr"], ["/b.zarr"])
    assert config.teachers["c"].address == "/c.onnx"


@pytest.mark.parametrize(
    ("written", "short"),
    [
        ("results/t/", "results/t"), ("./results/t", "results/t"), ("results//t/.", "results/t"), ("./", "."),
        ("a/../results/t", "results/t"), ("../t/", "../t"), ("//tmp//t", "/tmp/t"), ("/tmp/x/../t/", "/tmp/t"),
    ],
)  # fmt: skip
def test_a_folder_of_results_has_one_name(values: dict, written: str, short: str) -> None:
    assert validate(values | {"results": written}).results == short
    with pytest.raises(ConfigError, match="is the folder `results`"):
        validate(values | {"results": written, "reuse": str(Path(short).absolute())})


def test_two_dots_behind_a_link_are_not_guessed_at(tmp_path: Path, values: dict) -> None:
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    with pytest.raises(ConfigError, match=f"results: `..` follows a link.*it is {tmp_path}/far/t: name it so"):
        validate(values | {"results": f"{tmp_path}/link/../t"})
    assert validate(values | {"results": f"{tmp_path}/link/t/"}).results == f"{tmp_path}/link/t"


def test_a_manifest_stands_for_its_volume(tmp_path: Path) -> None:
    raw = write_volume(tmp_path / "a.zarr", SMALL.astype(np.uint8))
    made = tmp_path / "made" / "raw.json"
    convert.run(ConvertTask(kind="raw", manifest=made, options=VolumeOptions(raw=str(raw))))
    source = open_source(str(made))
    np.testing.assert_array_equal(source.read(source.roi), SMALL.astype(np.uint8))
    assert source.voxel_size == (10.0, 10.0, 10.0)
    assert files_of(str(made)) == [str(made)]
    again = tmp_path / "again" / "raw.json"
    convert.run(ConvertTask(kind="raw", manifest=again, options=VolumeOptions(raw=str(made))))
    assert read(again).inputs == {"source/raw": read(made).fingerprint}
    assert EvaluateTask(segmentation=f"file://{made}", labels="x").segmentation == str(made)

    values = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8), dtype=np.uint8)
    address = write_hdf5(tmp_path / "a.h5", values, "affinities", resolution=(10.0, 10.0, 10.0))
    steps = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
    adopt.run(AdoptTask(manifest=tmp_path / "one.json", address=address, offsets=steps))
    adopt.run(AdoptTask(manifest=tmp_path / "two.json", address=f"{tmp_path}/one.json", offsets=steps))
    adopted = open_channels(f"{tmp_path}/two.json")
    np.testing.assert_array_equal(adopted.read(source.roi), values)

    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UnreadableError, match="not a manifest"):
        open_source(f"{tmp_path}/x.json")
    with pytest.raises(MissingError, match="nothing at"):
        open_source(f"{tmp_path}/y.json")


def test_a_manifest_of_something_else_is_named(tmp_path: Path) -> None:
    from kdseg.results.claims import claim

    with claim(tmp_path / "scores.json", "score", {}, {}):
        pass
    with pytest.raises(UnreadableError, match=r"scores\.json is a result of `kdseg score`, which is no volume"):
        open_source(f"{tmp_path}/scores.json")


TWICE = {
    "title: a\nworkers: 1\ntitle: b\n": r"c\.yaml:3: the key 'title' is given in line 1, too",
    "volumes:\n  a: {raw: x}\n  b: {raw: y}\n  'a': {raw: z}\n": r"c\.yaml:4: the key 'a' is given in line 2, too",
    "x: [{a: 1, b: 2, a: 3}]\n": r"c\.yaml:1: the key 'a' is given in line 1, too",
    "x: &x {a: 1}\ny: *x\nz:\n  <<: *x\n  b: 1\n  b: 2\n": r"c\.yaml:6: the key 'b' is given in line 5, too",
}


@pytest.mark.parametrize("text", TWICE)
def test_a_key_that_is_given_twice_is_refused_with_its_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=TWICE[text]):
        load(tmp_path / "c.yaml")


def test_keys_may_say_otherwise_than_what_they_merge(tmp_path: Path) -> None:
    text = (ROOT / "config" / "test.yaml").read_text()
    extra = "volumes:\n  other: &o {phantom: {shape: [32, 32, 32]}}\n  more:\n    <<: *o\n    phantom: {seed: 3}\n"
    (tmp_path / "c.yaml").write_text("\ufeff" + text.replace("volumes:\n", extra, 1))
    assert load(tmp_path / "c.yaml").volumes["more"].phantom.seed == 3


def test_text_in_another_encoding_is_refused_in_a_line(tmp_path: Path) -> None:
    for name, reader in (
        ("c.yaml", load), ("e.csv", read_edits), ("s.csv", read_skeletons), ("s.swc", read_skeletons)
    ):  # fmt: skip
        (tmp_path / name).write_bytes("# x\ntitle: Münster\n".encode("latin-1"))
        with pytest.raises(UnreadableError) as caught:
            reader(tmp_path / name)
        said = str(caught.value)
        assert said.startswith(f"{tmp_path / name} is not text in UTF-8: byte 0xfc in line 2; save it as UTF-8")
        assert "\n" not in said
        (tmp_path / name).write_bytes("title: a\n".encode("utf-16"))
        with pytest.raises(UnreadableError, match="byte 0xff in line 1; save it"):
            reader(tmp_path / name)


def test_tables_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_bytes("\ufeffneuron,node,parent,z,y,x\r\n1,1,-1,0,0,0\r\n".encode())
    assert read_skeletons(tmp_path / "s.csv").neuron.tolist() == [1]
    (tmp_path / "s.csv").write_text("neuron,node\n1,1\n")
    with pytest.raises(DataError, match="needs the columns"):
        read_skeletons(tmp_path / "s.csv")
