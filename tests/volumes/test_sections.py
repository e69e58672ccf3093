"""Folders of sections: what their names claim, in real files whose voxels tell which section they are."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from command import invoke
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdseg.config import Config, validate
from kdseg.config.data import SectionsOptions, StorageOptions, VolumeOptions
from kdseg.config.tasks import ConvertTask
from kdseg.errors import MissingError, ShapeError
from kdseg.evaluation.alignment import align
from kdseg.geometry import Roi
from kdseg.volumes import convert
from kdseg.volumes.inputs import open_input
from kdseg.volumes.sources import open_source

SHAPE = (6, 7)
STORAGE = StorageOptions(chunk=(8, 8, 8), shard=(8, 8, 8), levels=1)


def section(k: int) -> NDArray[np.uint16]:
    """Return the voxels of section k; none is 0, no two sections are alike."""
    return (np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint16) + 1000 * (k + 1)).reshape(SHAPE)


def folder(path: Path, names: Mapping[str, int] | Sequence[str], **options: Any) -> str:
    """Write sections by the names of their files, which come in order unless their numbers are given."""
    path.mkdir(parents=True)
    numbered = names if isinstance(names, Mapping) else {name: k for k, name in enumerate(names)}
    for name, k in numbered.items():
        tifffile.imwrite(path / name, section(k), **options)
    return str(path)


def order(address: str, **options: Any) -> list[int | None]:
    """Return the section at each z as it is read; None is one of zeros."""
    source = open_source(address, SectionsOptions(**options))
    return [None if not (k := int(voxels[0, 0]) // 1000) else k - 1 for voxels in source.read(source.roi)]


IN_ORDER = {
    "padded": ["s000.tif", "s001.tif", "s002.tif"],
    "not padded": ["s1.tif", "s2.tif", "s10.tif", "s11.tif"],
    "case": ["s000.tif", "S001.tif", "s002.TIF", "S003.tiff"],
    "decimals": ["z0.05.tif", "z0.1.tif", "z0.15.tif", "z0.2.tif"],
    "decimals and whole": ["z0.tif", "z0.5.tif", "z1.tif", "z1.5.tif"],
    "decimals of one width": ["z9.50.tif", "z10.00.tif", "z10.50.tif"],
    "versions": ["v1.8.tif", "v1.9.tif", "v1.10.tif", "v1.11.tif"],
    "negative": ["z-2.tif", "z-1.tif", "z0.tif", "z1.tif"],
    "signs": ["z-1.0.tif", "z-0.5.tif", "z+0.tif", "z+0.5.tif"],
    "hyphens": ["slice-1.tif", "slice-2.tif", "slice-3.tif"],
    "dates": ["2020-01-02_9.tif", "2020-01-02_10.tif", "2020-01-02_11.tif"],
    "dots": ["2020.01.02.0009.tif", "2020.01.02.0010.tif"],
    "constant number": ["tile3_x100_9.tif", "tile3_x100_10.tif"],
    "a number beside it": ["s9_20200103.tif", "s10_20200104.tif", "s11_20200107.tif"],
    "runs of sections": ["run1_9.tif", "run1_10.tif", "run2_11.tif"],
    "steps": ["z000.tif", "z050.tif", "z100.tif"],
    "decimals with runs": ["z1.8.tif", "z1.9.tif", "z2.0.tif", "z2.1.tif"],
    "large": [f"{10**30 + k}.tif" for k in (8, 9, 10)],
    "one": ["a.tif"],
}


@pytest.mark.parametrize("names", [k for k in IN_ORDER if k != "not padded"])
def test_sections_are_ordered_by_the_number_that_counts_them(tmp_path: Path, names: str) -> None:
    assert order(folder(tmp_path / "s", IN_ORDER[names])) == list(range(len(IN_ORDER[names])))


def test_hidden_files_and_other_files_are_no_sections(tmp_path: Path) -> None:
    address = folder(tmp_path / "s", ["s0.tif", "s1.tif"])
    for name in ("._s0.tif", ".s1.tif", "Thumbs.db", ".DS_Store", "s2.txt"):
        (tmp_path / "s" / name).write_bytes(b"no image")
    assert order(address) == [0, 1]
    assert order(address, order="name") == [0, 1]
    for file in (tmp_path / "s").glob("s?.tif"):
        file.unlink()
    with pytest.raises(MissingError, match="no TIFF"):
        open_source(address)


REFUSED = {
    "gap": (
        ["s0000.tif", "s0001.tif", "s0005.tif", "s0006.tif"],
        r"4 of the 7 sections 0 to 6; missing: 2 to 4\.",
    ),
    "gaps": (["s1.tif", "s3.tif", "s4.tif", "s7.tif"], r"missing: 2, 5 to 6\."),
    "gap in decimals": (["z0.25.tif", "z0.50.tif", "z1.00.tif"], r"missing: 0\.75\."),
    "gap in steps": (["z0.tif", "z10.tif", "z30.tif", "z40.tif"], r"missing: 20\."),
    "copy": (["s000.tif", "s001.tif", "s001 (copy).tif", "s002.tif"], r"holds s001 \(copy\)\.tif beside 3 files named"),
    "other copy": (["s000.tif", "s001.tif", "Copy of s001.tif", "s002.tif"], r"holds Copy of s001\.tif beside 3 files"),
    "twice": (["s000.tif", "s001.tif", "s1.tif"], r"twice: s001\.tif and s1\.tif .* remove one"),
    "twice by case": (["s000.tif", "s001.tif", "S001.tif"], r"twice: S001\.tif and s001\.tif"),
    "twice by ending": (["s0.tif", "s1.tif", "s1.tiff"], r"twice: s1\.tif and s1\.tiff"),
    "all one": (["s1.tif", "s01.tif"], r"twice"),
    "two numbers": (
        ["z1_t1.tif", "z1_t2.tif", "z2_t1.tif", "z2_t2.tif"],
        r"differ in 2 numbers, .* none of which",
    ),
    "two orders": (["s1_t9.tif", "s2_t2.tif", "s3_t4.tif"], r"differ in 2 numbers, .* expected one that counts"),
    "decimals or not": (["z0.05.tif", "z0.1.tif", "z0.2.tif"], r"whole or as decimals, .* as many digits"),
    "no number": (["a.tif", "b.tif"], r"whose name has no number: .*sections\.order: name"),
    "other names": (["s0.tif", "s1.tif", "overview.tif"], r"holds overview\.tif beside 2 files named like s0\.tif"),
    "suffixes": (["s1a.tif", "s1b.tif", "s2a.tif"], r"holds s1b\.tif beside 2 files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_do_not_say_one_order_without_gaps_are_refused(tmp_path: Path, case: str) -> None:
    names, said = REFUSED[case]
    with pytest.raises(ShapeError, match=said) as caught:
        open_source(folder(tmp_path / "s", names))
    assert "\n" not in str(caught.value)


def test_long_lists_are_cut_short(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match=r"missing: 2, 8, .* …\.") as caught:
        open_source(folder(tmp_path / "gaps", [f"s{3 * k + k % 2}.tif" for k in range(40)]))
    assert len(str(caught.value)) < 600
    with pytest.raises(ShapeError, match=r"and 12 more beside 30 files"):
        open_source(folder(tmp_path / "odd", [f"s{k}.tif" for k in range(30)] + [f"s{k} (2).tif" for k in range(20)]))


def test_gaps_are_closed_or_filled_where_that_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = folder(tmp_path / "s", {"s0010.tif": 0, "s0011.tif": 1, "s0015.tif": 5, "s0016.tif": 6, "s0014.tif": 4})
    with caplog.at_level(logging.INFO):
        assert order(address, missing="leave_out") == [0, 1, 4, 5, 6]
        assert order(address, missing="fill") == [0, 1, None, None, 4, 5, 6]
    text = caplog.text
    assert "5 sections, s0010.tif to s0016.tif, in steps of 1" in text
    assert "2 sections are missing, 12 to 13: they are left out" in text
    assert "2 sections are missing, 12 to 13: they are filled with zeros" in text
    numbers = open_source(address, SectionsOptions(missing="leave_out")).numbers
    assert numbers is not None
    assert [int(number) for number in numbers] == [10, 11, 14, 15, 16]


def test_more_zeros_than_sections_are_not_made_up(tmp_path: Path) -> None:
    address = folder(tmp_path / "s", ["20200101.tif", "20200102.tif", "20200909.tif"])
    with pytest.raises(ShapeError, match="more than half are not filled"):
        open_source(address, SectionsOptions(missing="fill"))
    huge = folder(tmp_path / "t", ["1.tif", "2.tif", f"{10**15}.tif"])
    with pytest.raises(ShapeError, match="more than half are not filled"):
        open_source(huge, SectionsOptions(missing="fill"))
    assert order(huge, missing="leave_out") == [0, 1, 2]


def test_images_that_do_not_follow_each_other_are_taken_by_name(tmp_path: Path) -> None:
    address = folder(tmp_path / "s", {"B10_w1.tif": 2, "a_7 (copy).tif": 0, "b9_w1.tif": 1})
    assert order(address, order="name") == [0, 1, 2]
    assert open_source(address, SectionsOptions(order="name")).numbers is None


@settings(deadline=None, max_examples=60)
@given(
    numbers=st.sets(st.integers(0, 40), min_size=2, max_size=9),
    digits=st.sampled_from([1, 2, 4]),
    missing=st.sampled_from(["leave_out", "fill"]),
    compression=st.sampled_from([None, "zlib"]),
    data=st.data(),
)
def test_any_region_of_any_folder(numbers: set[int], digits: int, missing: Any, compression: Any, data: Any) -> None:
    step = int(np.gcd.reduce(np.diff(sorted(numbers))))
    wanted = list(range(min(numbers), max(numbers) + 1, step)) if missing == "fill" else sorted(numbers)
    assume(len(wanted) <= 2 * len(numbers))
    whole = np.stack([section(k) if k in numbers else np.zeros(SHAPE, np.uint16) for k in wanted])
    with tempfile.TemporaryDirectory() as name:
        address = folder(Path(name) / "s", {f"s{k:0{digits}}.tif": k for k in numbers}, compression=compression)
        source = open_source(address, SectionsOptions(missing=missing))
        assert source.data.shape == whole.shape
        for _ in range(3):
            low = [data.draw(st.integers(0, n - 1)) for n in whole.shape]
            size = [data.draw(st.integers(1, n - k)) for n, k in zip(whole.shape, low, strict=True)]
            roi = Roi((low[0], low[1], low[2]), (size[0], size[1], size[2]))
            np.testing.assert_array_equal(source.read(roi), whole[roi.slices()])


def converted(path: Path, kind: Any, **options: Any) -> NDArray[Any]:
    manifest = path / "out" / f"{kind}.json"
    volume = VolumeOptions.model_validate({"voxel_size": [30, 8, 8], "intensity": [0, 65280], **options})
    convert.run(ConvertTask(kind=kind, manifest=manifest, options=volume, storage=STORAGE))
    found = open_input(manifest).volume
    return found.read(found.roi)


def test_all_datasets_of_a_volume_are_read_alike(tmp_path: Path) -> None:
    names = {f"s{k:02}.tif": k for k in (0, 1, 3, 4)}
    raw, labels = folder(tmp_path / "raw", names), folder(tmp_path / "labels", {f"l{k}.tif": k for k in (0, 1, 3, 4)})
    given = {"raw": raw, "labels": labels, "mask": labels, "sections": {"missing": "fill"}}
    found = converted(tmp_path, "labels", **given)
    np.testing.assert_array_equal(found[3], section(3))
    assert not found[2].any()
    assert converted(tmp_path, "mask", **given).any((1, 2)).tolist() == [True, True, False, True, True]
    assert converted(tmp_path, "raw", **given).any((1, 2)).tolist() == [True, True, False, True, True]
    # other options are another result
    with pytest.raises(Exception, match="sections"):
        converted(tmp_path, "raw", **{**given, "sections": {"missing": "leave_out"}})


def test_sections_of_raw_data_and_labels_have_the_same_numbers(tmp_path: Path) -> None:
    raw = folder(tmp_path / "raw", {f"s{k}.tif": k for k in (0, 1, 2, 4, 5)})
    other = folder(tmp_path / "labels", {f"l{k}.tif": k for k in (0, 1, 3, 4, 5)})
    shifted = folder(tmp_path / "shifted", {f"l{k}.tif": k for k in range(1, 6)})
    for missing, labels, said in (
        ("leave_out", other, r"raw has a section 2, which .*labels lacks"),
        ("leave_out", shifted, r"raw has a section 0, which .*shifted lacks"),
    ):
        with pytest.raises(ShapeError, match=said):
            converted(tmp_path, "labels", raw=raw, labels=labels, sections={"missing": missing})
        with pytest.raises(ShapeError, match=said):
            align(*(open_source(address, SectionsOptions(missing="leave_out")) for address in (raw, labels)))
    assert converted(tmp_path, "labels", raw=raw, labels=other, sections={"missing": "fill"}).shape == (6, *SHAPE)
    by_name = converted(tmp_path / "name", "labels", raw=raw, labels=shifted, sections={"order": "name"})
    np.testing.assert_array_equal(by_name, np.stack([section(k) for k in range(1, 6)]))


def test_sections_that_run_apart_are_not_laid_on_each_other(tmp_path: Path) -> None:
    """Where both say their places, too, which only tell where the first section is."""
    raw = folder(tmp_path / "raw", [f"z{k:03}.tif" for k in (0, 1, 2, 4, 5)])
    gap = {"raw": raw, "voxel_size": (40, 4, 4), "sections": {"missing": "leave_out"}}
    for numbers, first, fits in (
        (range(6), 0, False),
        (range(3), 0, True),
        ((4, 5), 120, True),
        ((1, 2, 4), 40, True),
        ((11, 12, 14), 40, True),
    ):
        part = tmp_path / f"labels{len(list(tmp_path.iterdir()))}"
        labels = folder(part, [f"z{k:03}.tif" for k in numbers])
        options = {**gap, "labels": labels, "offset": {"raw": (0, 0, 0), "labels": (first, 0, 0)}}
        if fits:
            assert len(converted(part, "labels", **options)) == len(numbers)
        else:
            with pytest.raises(ShapeError, match=r"section 0 of .* lies on 0 of .*, but 3 on 4: one of them lacks"):
                converted(part, "labels", **options)


def test_commands_on_folders_take_the_options_of_sections(tmp_path: Path) -> None:
    address = folder(tmp_path / "s", {f"s{k}.tif": k for k in (0, 1, 3, 4)})
    swc = tmp_path / "1.swc"
    swc.write_text("1 0 0 0 0 1 -1\n2 0 8 8 30 1 1\n")
    size = ["--voxel-size", 30, 8, 8]
    for command in (
        ["evaluate", address, address, "--block", 8, 8, 8],
        ["same", address, address, "--block", 8, 8, 8],
        ["runlength", address, swc, *size],
    ):
        refused = invoke(*command)
        assert refused.exit_code != 0
        assert "4 of the 5 sections" in refused.output
        assert invoke(*command, "--sections.missing", "leave_out").exit_code == 0
    invoke("evaluate", address, address, "--sections.missing", "fill", "--json", tmp_path / "answer.json")
    told = json.loads((tmp_path / "answer.json").read_text())
    assert told["what"]["volumes"]["labels"]["shape"] == [5, *SHAPE]


def configuration(**more: Any) -> Config:
    volume = {"raw": "images", "labels": "labels", "voxel_size": [10, 10, 10], "background": "boundary"}
    return validate(
        {
            "results": "results",
            "volumes": {"a": {**volume, **more}, "b": volume, "c": {"phantom": {"shape": [64, 64, 64]}}},
            "sections": True,
            "evaluate": {"models": ["m"], "volumes": ["b"]},
            "models": {
                "m": {"network": {"kind": "unet", "widths": [4, 6]}, "train": {"volumes": ["a"], "validate_on": "b"}}
            },
            "fragments": {"watershed": {"method": "mutex"}},
        }
    )


def test_a_configuration_of_single_images_takes_them_by_name() -> None:
    volumes = configuration().volumes
    assert volumes["a"].sections == SectionsOptions(order="name")
    assert volumes["c"].sections is None
    said = configuration(sections={"order": "number", "missing": "fill"}).volumes["a"]
    assert said.sections == SectionsOptions(missing="fill")


def test_a_phantom_has_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a phantom brings its own"):
        VolumeOptions.model_validate({"phantom": {}, "sections": {"missing": "fill"}})
