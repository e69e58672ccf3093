"""`kdseg init`: configurations made from files, of each kind that people have."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
import zarr
from command import invoke
from toy_volumes import cells, write_hdf5
from workflow import ROOT

from kdseg.cli import init as command
from kdseg.config import Config, load, validate
from kdseg.config.data import SectionsOptions
from kdseg.config.matching import pooling
from kdseg.geometry import Roi, is_multiple
from kdseg.planning.check import check
from kdseg.planning.extents import read_extents
from kdseg.planning.findings import Finding

SIZE = (10.0, 10.0, 10.0)
COARSE = (40.0, 8.0, 8.0)
Pair = tuple[np.ndarray, np.ndarray]
Place = tuple[float, float, float] | None


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have each test in a folder of its own, where the configuration is written by default."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tissue() -> Pair:
    return cells((64, 72, 96), 60)


def init(*words: object) -> Config:
    """Return what was written, which has to pass the check without errors."""
    done = invoke("init", *words)
    assert done.exit_code == 0, done.output
    out = Path(str(words[words.index("--out") + 1])) if "--out" in words else Path("config.yaml")
    assert f"kdseg run {out}" in done.stdout or "'" in done.stdout
    config = load(out)
    assert errors(config) == []
    return config


def test_a_file_that_appears_meanwhile_stays_as_it_is(
    tmp_path: Path, tissue: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a second call, while the first one times a training."""
    made, out = command.text, tmp_path / "config.yaml"
    monkeypatch.setattr(command, "text", lambda *given: out.write_text("a: b\n") and made(*given))
    raw, labels = (
        write_hdf5(tmp_path / "a.h5", data, name, resolution=SIZE) for data, name in zip(tissue, "rl", strict=True)
    )
    done = invoke("init", raw, labels, "--no-timing")
    assert done.exit_code == 1
    assert "config.yaml is there already, and stays as it is" in done.stderr
    assert out.read_text() == "a: b\n"


def errors(config: Config) -> list[Finding]:
    return [one for one in check(config) if one.error]


def refused(*words: object) -> str:
    done = invoke("init", *words)
    assert done.exit_code == 1, done.output
    assert not Path("config.yaml").exists()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("kdseg init: ")]
    return line


def parts(config: Config) -> dict[str, Roi]:
    rois = {name: volume.roi for name, volume in config.volumes.items()}
    return {name: Roi(roi.offset, roi.shape) for name, roi in rois.items() if roi is not None}


def expect_sensible(config: Config) -> None:
    """Expect parts that share no voxel, with all labels within, and a network that fits them."""
    found = parts(config)
    assert list(found) == ["train", "tune", "test"]
    assert not any(one.intersect(other).size for one, other in combinations(found.values(), 2))
    extents = read_extents(config)
    for name, roi in found.items():
        assert extents[name].raw == roi.shape
        assert extents[name].cover.labels == roi
    train = config.models["network"].train
    assert train.steps is not None
    assert train.steps % train.validate_every == 0
    assert is_multiple(train.crop, pooling(config.models["network"].network))
    assert all(c <= n for c, n in zip(train.crop, found["train"].shape, strict=True))
    assert all(abs(n) < c for step in config.offsets for n, c in zip(step, train.crop, strict=True))


@pytest.mark.parametrize("name", ["fib25_dev", "fib25_tiny", "gala_train", "fib25_test"])
def test_real_data_with_labels(em_data: Path, name: str) -> None:
    file = em_data / f"{name}.h5"
    config = init(f"{file}:/volumes/raw", f"{file}:/volumes/labels/neuron_ids", "--no-timing")
    expect_sensible(config)
    assert check(config) == []  # though of the last, only every fifth section has labels
    whole = {"fib25_dev": (160, 250, 250), "fib25_tiny": (64, 96, 96), "fib25_test": (250, 250, 250)}
    shape = whole.get(name, (50, 100, 200))
    axis = 2 if name == "gala_train" else 1
    sizes = [roi.shape[axis] for roi in parts(config).values()]
    assert sum(sizes) == shape[axis]
    assert sizes[0] == shape[axis] // 2
    assert abs(sizes[1] - sizes[2]) <= 1
    assert config.results == f"results/{name}"
    assert config.models["network"].train.start_from == "fib25-m"
    assert config.pretrained == {"fib25-m": "fib25-m"}
    assert config.models["network"].train.augment.rotate == "zyx"
    assert config.volumes["train"].intensity is None  # their grey values are near those that the network knows


def test_real_data_without_labels(em_data: Path) -> None:
    config = init(f"{em_data}/fib25_raw_400.h5:/volumes/raw")
    assert config.pretrained == {"fib25-m": "fib25-m"}
    assert config.evaluate.volumes == ("raw",)
    assert not config.models
    assert "# roi: {offset: [72, 72, 72], shape: [256, 256, 256]}" not in Path("config.yaml").read_text()
    assert not config.predict.fused


def test_real_data_that_no_network_knows(em_data: Path) -> None:
    line = refused(f"{em_data}/connectomics_512.h5:/volumes/labels/neuron_ids")
    assert "knows voxels of 40 x 32 x 32 nm (fib25-m: 10 x 10 x 10 nm): give ground truth of a part as LABELS" in line
    assert (
        "looks like ids of neurons"
        in invoke("init", f"{em_data}/connectomics_512.h5:/volumes/labels/neuron_ids").stdout
    )


def sections(folder: Path, voxels: np.ndarray) -> Path:
    folder.mkdir()
    for z, section in enumerate(voxels):
        tifffile.imwrite(folder / f"s{z}.tif", section)
    return folder


@pytest.fixture
def coarse(here: Path) -> tuple[Path, Path]:
    """Return folders of sections, and of their labels."""
    raw, labels = cells((24, 160, 128), 80)
    return sections(here / "raw", raw), sections(here / "labels", labels.astype(np.uint16))


def test_coarse_sections_of_tiff(coarse: tuple[Path, Path]) -> None:
    config = init(*coarse, "--voxel-size", *COARSE, "--no-timing")
    expect_sensible(config)
    assert config.volumes["train"].voxel_size == COARSE
    assert [roi.shape for roi in parts(config).values()] == [(24, 80, 128), (24, 40, 128), (24, 40, 128)]
    network, train = config.models["network"].network, config.models["network"].train
    assert network.downsample == ((1, 2, 2), (1, 2, 2))
    assert network.kernels == ((1, 3, 3), (3, 3, 3), (3, 3, 3))
    assert train.augment.rotate == "yx"
    assert train.start_from is None
    assert not config.pretrained
    assert max(-z for z, _, _ in config.offsets) == 4
    assert config.fragments.watershed.model_dump()["per_section"]
    assert config.fragments.halo[0] == 0


def test_sections_that_are_missing_are_left_to_the_user(coarse: tuple[Path, Path]) -> None:
    (coarse[0] / "s7.tif").unlink()
    words = (*coarse, "--voxel-size", *COARSE, "--no-timing")
    assert "sections.missing" in refused(*words)
    config = init(*words, "--sections.missing", "fill")
    expect_sensible(config)
    assert config.volumes["test"].sections == SectionsOptions(missing="fill")


def test_a_missing_voxel_size_is_asked_for_by_its_option(coarse: tuple[Path, Path]) -> None:
    line = refused(*coarse)
    assert line.endswith("raw does not say how large its voxels are: give it, --voxel-size Z Y X, in nm")


def test_a_voxel_size_that_the_file_says_need_not_be_said_and_no_other_may(here: Path) -> None:
    raw, labels = cells((32, 32, 64), 20)
    file = here / "a.h5"
    pair = (write_hdf5(file, raw, "raw", resolution=SIZE), write_hdf5(file, labels, "labels", resolution=SIZE))
    assert "--voxel-size says (12.0, 10.0, 10.0): leave it out, or correct the file" in refused(
        *pair, "--voxel-size", 12, 10, 10
    )
    config = init(*pair, "--voxel-size", *SIZE, "--no-timing")
    assert config.volumes["train"].voxel_size is None


@pytest.fixture
def vast(here: Path) -> Path:
    """Return a zarr of 10^14 voxels, none of which is there."""
    group = zarr.open_group(here / "vast.zarr", mode="w")
    for name, dtype in (("raw", "uint8"), ("labels", "uint64"), ("wide", "float32")):
        array = group.create_array(name, shape=(10**4, 10**5, 10**5), chunks=(64, 128, 128), dtype=dtype)
        array.attrs["resolution"] = SIZE
    return here / "vast.zarr"


def test_a_vast_volume_without_data(vast: Path) -> None:
    config = init(f"{vast}/raw")
    assert config.predict.fused  # 900 TB of affinities
    assert config.volumes["raw"].roi is None
    written = Path("config.yaml").read_text()
    assert "looked at were only voxels of 0" in written
    part = next(line for line in written.splitlines() if "# roi:" in line)
    with_part = validate(yaml.safe_load(written.replace(part, part.replace("# roi", "roi", 1))))
    assert with_part.volumes["raw"].shape == (256, 256, 256)
    assert errors(with_part) == []


def test_vast_labels_are_used_in_part(vast: Path) -> None:
    config = init(f"{vast}/raw", f"{vast}/labels", "--no-timing")
    expect_sensible(config)
    found = parts(config)
    assert found["train"].shape == (512, 512, 512)
    assert found["tune"].offset == (5000 - 256, 50_000, 50_000 - 256)


def test_a_range_that_no_voxel_tells_is_asked_for_by_its_option(vast: Path) -> None:
    assert "holds float32, and all that was looked at is one value" in refused(f"{vast}/wide")
    config = init(f"{vast}/wide", "--intensity", -1, 2.5)
    assert config.volumes["raw"].intensity == (-1, 2.5)


def test_options_that_cannot_be_are_refused_in_a_line(here: Path, tissue: Pair) -> None:
    raw, labels = pair(here, tissue)
    assert "intensity must be (low, high) with low < high, got (5.0, 2.0)" in refused(raw, labels, "--intensity", 5, 2)
    assert "the volume has no `labels`: remove one" in refused(raw, "--labels-offset", 0, 0, 0)


def pair(here: Path, voxels: Pair, raw: Place = None, labels: Place = None) -> tuple[str, str]:
    """Write raw data and labels, perhaps with places; return their addresses."""
    raw_at, labels_at = ({} if place is None else {"offset": place} for place in (raw, labels))
    return (
        write_hdf5(here / "a.h5", voxels[0], "raw", resolution=SIZE, **raw_at),
        write_hdf5(here / "a.h5", voxels[1], "labels", resolution=SIZE, **labels_at),
    )


def test_labels_of_a_part_lie_where_the_files_say(here: Path, tissue: Pair) -> None:
    raw, labels = tissue
    some = pair(here, (raw, labels[10:50, 4:68, 16:80]), raw=(100, 0, 0), labels=(200, 40, 160))
    config = init(*some, "--no-timing")
    expect_sensible(config)
    found = parts(config)
    assert found["train"] == Roi((10, 4, 16), (40, 32, 64))
    assert found["test"].end == (50, 68, 80)


def test_labels_of_a_part_that_say_no_place_need_one(here: Path, tissue: Pair) -> None:
    raw, labels = tissue
    some = pair(here, (raw, labels[10:50, 4:68, 16:80]))
    assert "give --labels-offset Z Y X, nm from the first voxel" in refused(*some)
    config = init(*some, "--labels-offset", 100, 40, 160, "--no-timing")
    expect_sensible(config)
    assert config.volumes["tune"].offset.labels == (100, 40, 160)
    assert config.volumes["tune"].offset.raw == (0, 0, 0)
    assert parts(config)["train"] == Roi((10, 4, 16), (40, 32, 64))


def test_labels_of_raw_data_without_a_place_need_one(here: Path, tissue: Pair) -> None:
    raw, labels = tissue
    some = pair(here, (raw, labels[:40]), labels=(240.0, 0.0, 0.0))
    assert refused(*some).endswith("; the labels say (240.0, 0.0, 0.0), without a place of the raw data")
    config = init(*some, "--labels-offset", 240, 0, 0, "--no-timing")
    assert parts(config)["train"].offset == (24, 0, 0)


def test_unlabelled_borders_are_left_out(here: Path, tissue: Pair) -> None:
    raw, labels = tissue
    inside = np.zeros_like(labels)
    inside[8:56, 12:60, 6:90] = labels[8:56, 12:60, 6:90]
    inside[0] = 2**64 - 1  # as CREMI marks what is outside
    config = init(*pair(here, (raw, inside)), "--no-timing")
    expect_sensible(config)
    found = parts(config)
    assert found["train"].offset == (8, 12, 6)
    assert found["test"].end == (56, 60, 90)


def test_labels_without_a_label(here: Path, tissue: Pair) -> None:
    raw, labels = tissue
    assert "nothing but label 0: name the dataset of the neurons" in refused(*pair(here, (raw, 0 * labels)))


def test_labels_that_are_none(here: Path, tissue: Pair) -> None:
    raw, labels = tissue
    assert "a.h5:/labels: labels are float32 and not whole numbers" in refused(
        *pair(here, (raw, (labels / 3).astype(np.float32)))
    )


def test_raw_data_and_labels_that_were_mixed_up(here: Path, tissue: Pair) -> None:
    raw, labels = pair(here, tissue)
    said = invoke("init", labels, raw, "--no-timing").stdout
    assert f"warning: {labels} looks like ids of neurons, not like grey values" in said
    assert f"warning: {raw} looks like grey values, not like ids" in said
    assert "looks like" not in invoke("init", raw, labels, "--no-timing", "--out", "right.yaml").stdout


def test_each_option_in_a_comment_is_valid_without_its_first_sign(here: Path, tissue: Pair) -> None:
    raw, labels = pair(here, tissue)
    vast = zarr.create_array(here / "vast.zarr", shape=(10**4, 10**4, 10**4), chunks=(64, 64, 64), dtype="int16")
    vast.attrs["resolution"] = SIZE
    found = set()
    for number, words in enumerate([(raw, labels), (raw,), (here / "vast.zarr",)]):
        written = here / f"{number}.yaml"
        assert invoke("init", *words, "--no-timing", "--out", written).exit_code == 0
        lines = written.read_text().splitlines()
        for k, line in enumerate(lines):
            if option := re.fullmatch(r"\s*# (\w+): .+", line):
                found.add(option[1])
                without = line.replace("# ", "", 1)
                validate(yaml.safe_load("\n".join([*lines[:k], without, *lines[k + 1 :]])))
    assert found == {"voxel_size", "intensity", "roi", "whole"}


def test_results_have_the_name_of_the_file_that_is_named(here: Path, tissue: Pair) -> None:
    raw, labels = pair(here, tissue)
    assert init(raw, labels, "--no-timing").results == "results/a"
    assert init(raw, "--out", "my first.yaml").results == "results/my-first"


def test_label_0_that_looks_like_membrane(here: Path) -> None:
    raw, labels = cells((64, 64, 96), 40)
    labels[raw < 100] = 0
    config = init(*pair(here, (raw, labels)), "--no-timing")
    assert config.volumes["train"].background == "boundary"
    assert "like membrane" in Path("config.yaml").read_text()


def test_too_small_to_be_cut(here: Path) -> None:
    raw, labels = cells((3, 100, 100), 5)
    assert "too few to learn from one part" in refused(*pair(here, (raw, labels)), "--no-timing")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_range_of_grey_values_is_that_of_a_sample(here: Path, dtype: type, tissue: Pair) -> None:
    raw, labels = tissue
    some = (write_hdf5(here / "b.h5", (raw.astype(np.float64) * 8 + 300).astype(dtype), "raw", resolution=COARSE),
            write_hdf5(here / "b.h5", labels, "labels", resolution=COARSE))  # fmt: skip
    config = init(*some, "--no-timing")
    low, high = config.volumes["train"].intensity or (0, 0)
    assert 300 <= low < 8 * 50 + 300 < 8 * 190 + 300 < high <= 8 * 255 + 300
    shutil.copy("config.yaml", "before.yaml")
    other = init(*some, "--intensity", 5, 6, "--no-timing", "--out", "other.yaml")
    assert other.volumes["train"].intensity == (5, 6)


def test_a_shipped_network_gets_the_contrast_that_it_knows(here: Path, tissue: Pair) -> None:
    raw, _ = tissue
    dark = (40 + raw.astype(np.float32) / 8).astype(np.uint8)
    config = init(write_hdf5(here / "d.h5", dark, "raw", resolution=SIZE))
    low, high = config.volumes["raw"].intensity or (0, 0)
    seen = (dark.astype(np.float64) - low) * 255 / (high - low)
    assert abs(seen.mean() - 128) < 12
    assert abs(seen.std() - 33) < 8


def test_a_file_that_is_there_stays_as_it_is(here: Path, tissue: Pair) -> None:
    some = pair(here, tissue)
    for out in (Path("config.yaml"), Path("mine.yaml")):
        out.write_text("mine: yes\n")
        done = invoke("init", *some, "--no-timing", "-o", out)
        assert done.exit_code == 1
        assert f"{out} is there already, and stays as it is: name another file, --out FILE" in done.stderr
        assert out.read_text() == "mine: yes\n"
    Path("link.yaml").symlink_to("nowhere")
    assert invoke("init", *some, "--no-timing", "-o", "link.yaml").exit_code == 1
    assert not Path("nowhere").exists()
    init(*some, "--no-timing", "--out", "new/folder.yaml")


ODD = [
    *("a b.h5", "ü é.h5", "x#y: {z}.h5", 'it\'s "so".h5'),
    *("%7E&*!.h5", "new\nline # x.h5", "- dash.h5", "\U0001f9e0.h5"),
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names_and_relative_paths(here: Path, name: str, tissue: Pair) -> None:
    raw, labels = tissue
    (here / "some where").mkdir()
    file = here / "some where" / name
    write_hdf5(file, raw, "vol/raw 1", resolution=SIZE)
    write_hdf5(file, labels, "lab#els", resolution=SIZE)
    given = (f"some where/{name}:/vol/raw 1", f"./some where/{name}:lab#els")
    config = init(*given, "--no-timing")
    expect_sensible(config)
    assert (config.volumes["train"].raw, config.volumes["train"].labels) == given
    assert re.fullmatch(r"results/[A-Za-z0-9_-]+", config.results)


def test_paths_mean_what_they_mean_to_the_rest_of_kdseg(here: Path, tissue: Pair) -> None:
    """Relative to the working folder, also if the configuration is written elsewhere."""
    write_hdf5(here / "a.h5", tissue[0], "raw", resolution=SIZE)
    (here / "below").mkdir()
    config = init("a.h5:/raw", "--out", here / "below" / "config.yaml")
    assert config.volumes["raw"].raw == "a.h5:/raw"
    assert init(f"file://{here}/a.h5:/raw", "--out", "url.yaml").volumes["raw"].raw == f"{here}/a.h5:/raw"


@pytest.mark.parametrize("part", [False, True])
def test_what_stands_there_as_a_comment_can_be_used(here: Path, tissue: Pair, part: bool) -> None:
    """The student, and all of the raw data to segment."""
    raw, labels = tissue
    some = pair(here, (raw, labels[10:50] if part else labels))
    init(*some, *(("--labels-offset", 100, 0, 0) if part else ()), "--no-timing")
    written, whole = re.subn(r"^  # whole:", "  whole:", Path("config.yaml").read_text(), flags=re.MULTILINE)
    assert whole == 1
    lines = written.replace("volumes: [test]", "volumes: [test, whole]").splitlines()
    first = next(k for k, line in enumerate(lines) if line.strip() == "# student:")
    for k in range(first, len(lines)):
        if not lines[k].startswith("  # "):
            break
        lines[k] = "  " + lines[k].removeprefix("  # ")
    text = re.sub(r"models: \[(.*)\]", r"models: [\1, student]", "\n".join(lines))
    config = validate(yaml.safe_load(text))
    assert config.models["student"].train.teachers == ("network",)
    assert config.models["student"].train.start_from is None
    assert config.evaluate.models == ("fib25-m", "network", "student")
    assert read_extents(config)["whole"].raw == raw.shape
    assert not config.volumes["whole"].labelled
    assert errors(config) == []


def test_steps_are_those_of_a_machine_of_which_nothing_is_known(here: Path, tissue: Pair) -> None:
    config = init(*pair(here, tissue), "--no-timing")
    assert config.models["network"].train.steps == 500
    assert "steps: 500 # not timed" in Path("config.yaml").read_text()


def test_a_training_that_cannot_be_timed_is_no_obstacle(here: Path, tissue: Pair) -> None:
    raw, labels = tissue[0], tissue[1].astype(np.int32)
    labels[20, 10, 10] = -5  # where a sample does not look
    done = invoke("init", *pair(here, (raw, labels)))
    assert done.stdout.startswith("timing some steps of the training, a minute or two (--no-timing leaves that out) …")
    config = load(Path("config.yaml"))
    assert errors(config) == []
    assert config.models["network"].train.steps == 500
    assert re.search(r"steps: 500 # .*there is the negative label -5.*`kdseg plan`", Path("config.yaml").read_text())


@pytest.mark.slow
def test_steps_are_timed(here: Path) -> None:
    """On data that are not cubic, else a trained network would be adapted, in fewer steps."""
    raw, labels = cells((24, 96, 48), 40)
    some = (write_hdf5(here / "t.h5", raw, "raw", resolution=COARSE), write_hdf5(here / "t.h5", labels, "labels"))
    done = invoke("init", *some)
    assert done.exit_code == 0, done.output
    steps, said = re.findall(r"steps: (\d+) # (.*)", Path("config.yaml").read_text())[0]
    assert re.fullmatch(r"about [\d.]+ (s|min|h) on this machine \(.* cores.*\), [\d.e-]+ s per step", said)
    assert f"training: {steps} steps, {said}" in done.stdout
    assert 500 <= int(steps) <= 5000


@pytest.mark.slow
def test_the_workflow_runs_from_raw_data_to_a_report(here: Path) -> None:
    raw, labels = cells((64, 64, 96), 60)
    init(*pair(here, (raw, labels)), "--no-timing")
    text = Path("config.yaml").read_text()
    for option, value in (("steps", 2), ("validate_every", 1)):
        text, changed = re.subn(rf"^(      {option}): \d+", rf"\1: {value}", text, flags=re.MULTILINE)
        assert changed == 1
    Path("config.yaml").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "kdseg", "run", "config.yaml", "--cores", "2"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert Path("results/a/report.html").exists()
    assert Path("results/a/network/test/segmentation.zarr").exists()
