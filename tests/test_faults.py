"""Faults planted in every file that a stage reads: no result is ever silently another one, each is refused in words.

Each stage from raw data to scores has run once. Of every file that the next one reads, one copy is damaged, cut,
emptied, removed, swapped with another, replaced by garbage or by the same file of another run, and the stage is run
anew: it has to make the same bytes,
since it did not need what was lost, or to say what is wrong as an error of kdseg. `make test` plants a sample,
`make test-slow` all.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pipeline import STORAGE
from toy_models import save

from kdseg.config import (
    AgglomerateOptions,
    EdgesOptions,
    EvaluateOptions,
    FragmentsOptions,
    PredictOptions,
    SegmentOptions,
    VolumeOptions,
)
from kdseg.config.data import PhantomOptions
from kdseg.config.tasks import (
    AgglomerateTask,
    ConvertTask,
    EdgesTask,
    FragmentsTask,
    PredictTask,
    ScoreTask,
    SegmentTask,
    SweepTask,
)
from kdseg.errors import KdsegError
from kdseg.evaluation import score, sweep
from kdseg.prediction import stage as predict
from kdseg.segmentation.agglomeration import stage as agglomerate
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.segments import stage as relabel
from kdseg.volumes import convert
from kdseg.volumes.verify import verify

BLOCK = (32, 32, 32)
SCORING = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=BLOCK)


def chain(folder: Path, seed: int = 0) -> dict[str, tuple[Callable[[], None], tuple[str, ...]]]:
    """Return the stages by the manifests that they make, and the manifests that each of them reads."""
    at = {name: folder / f"{name}.json" for name in MADE}
    volume = VolumeOptions(phantom=PhantomOptions(shape=(40, 64, 64), seed=seed))
    converted = {
        kind: partial(convert.run, ConvertTask(kind=kind, manifest=at[kind], options=volume, storage=STORAGE))
        for kind in ("raw", "labels")
    }
    predicted = PredictTask(
        raw=at["raw"],
        model=at["model"],
        manifest=at["affinities"],
        options=PredictOptions(block=BLOCK, tile=(16, 16, 16)),
        storage=STORAGE,
        device="cpu",
    )
    cut = FragmentsTask(
        affinities=at["affinities"],
        manifest=at["fragments"],
        options=FragmentsOptions(block=(32, 32, 64), halo=(4, 4, 4)),
        storage=STORAGE,
    )
    joined = EdgesTask(
        affinities=at["affinities"],
        fragments=at["fragments"],
        manifest=at["edges"],
        options=EdgesOptions(block=BLOCK),
    )
    merged = AgglomerateTask(
        fragments=at["fragments"],
        edges=at["edges"],
        manifest=at["agglomeration"],
        options=AgglomerateOptions(thresholds=(0.2, 0.5, 0.8), chunk=(32, 32, 64)),
    )
    labelled = SegmentTask(
        fragments=at["fragments"],
        edges=at["edges"],
        agglomeration=at["agglomeration"],
        manifest=at["segmentation"],
        options=SegmentOptions(block=BLOCK, threshold=0.5),
        storage=STORAGE,
    )
    swept = SweepTask(
        fragments=at["fragments"],
        agglomeration=at["agglomeration"],
        labels=at["labels"],
        manifest=at["sweep"],
        options=SCORING,
    )
    scored = ScoreTask(
        segmentation=at["segmentation"],
        labels=at["labels"],
        manifest=at["scores"],
        model="a",
        volume="a",
        options=SCORING,
        sweep=at["sweep"],
    )
    return {
        "raw": (converted["raw"], ()),
        "labels": (converted["labels"], ()),
        "model": (lambda: save(at["model"], seed=seed + 1) and None, ()),
        "affinities": (partial(predict.run, predicted), ("raw", "model")),
        "fragments": (partial(fragments.run, cut), ("affinities",)),
        "edges": (partial(edges.run, joined), ("affinities", "fragments")),
        "agglomeration": (partial(agglomerate.run, merged), ("fragments", "edges")),
        "segmentation": (partial(relabel.run, labelled), ("fragments", "edges", "agglomeration")),
        "sweep": (partial(sweep.run, swept), ("fragments", "agglomeration", "labels")),
        "scores": (partial(score.run, scored), ("segmentation", "labels", "sweep")),
    }


MADE = (
    "raw",
    "labels",
    "model",
    "affinities",
    "fragments",
    "edges",
    "agglomeration",
    "segmentation",
    "sweep",
    "scores",
)
READ = {
    "affinities": ("raw", "model"),
    "fragments": ("affinities",),
    "edges": ("affinities", "fragments"),
    "agglomeration": ("fragments", "edges"),
    "segmentation": ("fragments", "edges", "agglomeration"),
    "sweep": ("fragments", "agglomeration", "labels"),
    "scores": ("segmentation", "labels", "sweep"),
}
"""Manifests that each stage reads, by the one that it makes."""
MADE = ("raw", "labels", "model", *READ)


def flipped(file: Path, draw: random.Random, _: list[Path]) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def cut_off(file: Path, draw: random.Random, _: list[Path]) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(1, len(data))])


def longer(file: Path, draw: random.Random, _: list[Path]) -> None:
    file.write_bytes(file.read_bytes() + draw.randbytes(7))


def zeros(file: Path, *_: object) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def noise(file: Path, draw: random.Random, _: list[Path]) -> None:
    file.write_bytes(draw.randbytes(file.stat().st_size))


def empty(file: Path, *_: object) -> None:
    file.write_bytes(b"")


def gone(file: Path, *_: object) -> None:
    file.unlink()


def swapped(file: Path, draw: random.Random, others: list[Path]) -> None:
    """Put another file of its kind in its place."""
    others = [other for other in others if other.read_bytes() != file.read_bytes()]
    alike = [other for other in others if other.suffix == file.suffix]
    file.write_bytes(draw.choice(alike or others).read_bytes())


def foreign(file: Path, _: random.Random, others: list[Path]) -> None:
    """Put the file of this name of another run in its place."""
    (other,) = others
    file.write_bytes(other.read_bytes())


FAULTS = (flipped, cut_off, longer, zeros, noise, empty, gone, swapped, foreign)


def kinds(name: str) -> tuple[str, ...]:
    """Return the kinds of files of a result: its manifest, and what lies beside that, by patterns."""
    volume = (f"{name}.zarr/0/c/**/*", f"{name}.zarr/0/zarr.json", f"{name}.zarr/zarr.json", f"{name}.checksums.npz")
    found = {
        "model": (f"{name}.safetensors",),
        "edges": (f"{name}.tables/*",),
        "agglomeration": (f"{name}.tables/*",),
        "sweep": (),
    }
    return (f"{name}.json", *found.get(name, volume))


CASES = [
    (made, read, kind, fault)
    for made, inputs in READ.items()
    for read in inputs
    for kind in kinds(read)
    for fault in FAULTS
    if not (kind == f"{read}.json" and fault is gone)  # it has not finished, and the workflow runs it
    and not (kind.endswith("zarr.json") and fault is foreign)  # those of volumes of one shape are the same
]
NAMES = [f"{made}-{kind}-{fault.__name__}" for made, _, kind, fault in CASES]
WAYS_OUT = ("kdseg clear", "kdseg verify", "rerun", "run the stage")
EVERY = 11
"""Every so many faults are planted by `make test`: all kinds of faults and of files come up."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for run, _ in chain(folder).values():
        run()
    return folder


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of other data with another network."""
    folder = tmp_path_factory.mktemp("another")
    for run, _ in chain(folder, 7).values():
        run()
    return folder


def result(folder: Path, made: str) -> dict[str, str]:
    """Return the digests of what a stage has made."""
    files = [path for path in folder.glob(f"{made}.*/**/*") if path.is_file()]
    files += [folder / f"{made}.parquet"] if (folder / f"{made}.parquet").exists() else []
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def planted(whole: Path, another: Path, folder: Path, made: str, kind: str, fault: Callable[..., None]) -> Path:
    """Return the file that was damaged, of a kind, in a copy in which the stage has not run."""
    shutil.copytree(whole, folder, dirs_exist_ok=True)
    for path in [*folder.glob(f"{made}.*"), folder / f".{made}"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    draw = random.Random(f"{made}{kind}{fault.__name__}")
    files = sorted(path for path in folder.glob(kind) if path.is_file())
    others = [path for path in folder.rglob("*") if path.is_file() and "/." not in str(path)]
    alike = files if len(files) > 1 else others
    if fault is foreign:
        files = [path for path in files if (another / path.relative_to(folder)).exists()]
    file = draw.choice(files)
    if fault is foreign:
        alike = [another / file.relative_to(folder)]
    fault(file, draw, alike)
    return file


def check(whole: Path, another: Path, folder: Path, made: str, kind: str, fault: Callable[..., None]) -> None:
    file = planted(whole, another, folder, made, kind, fault)
    found = [one.what for _, faults in verify(folder, 1) for one in faults]
    assert any(str(file) in what for what in found), f"{file} was {fault.__name__}, `kdseg verify` found only {found}"
    try:
        chain(folder)[made][0]()
    except KdsegError as error:
        said = str(error)
    else:
        assert result(folder, made) == result(whole, made), f"{file} was {fault.__name__}, and {made} is another one"
        return
    assert any(way in said for way in WAYS_OUT), f"{file} was {fault.__name__}, and nobody knows what to do: {said}"
    assert not (folder / f"{made}.json").exists()


@pytest.mark.parametrize(("made", "read", "kind", "fault"), CASES[::EVERY], ids=NAMES[::EVERY])
def test_a_fault_is_never_silent(
    whole: Path, another: Path, tmp_path: Path, made: str, read: str, kind: str, fault: Callable[..., None]
) -> None:
    check(whole, another, tmp_path, made, kind, fault)


@pytest.mark.slow
@pytest.mark.parametrize(("made", "read", "kind", "fault"), CASES, ids=NAMES)
def test_no_fault_is_silent(
    whole: Path, another: Path, tmp_path: Path, made: str, read: str, kind: str, fault: Callable[..., None]
) -> None:
    check(whole, another, tmp_path, made, kind, fault)


def test_the_table_of_stages_is_that_of_the_chain(whole: Path, tmp_path: Path) -> None:
    assert {name: inputs for name, (_, inputs) in chain(tmp_path).items() if inputs} == READ
    assert not [fault for _, faults in verify(whole, 1) for fault in faults]
    assert all(result(whole, made) for made in READ if made not in ("sweep", "scores"))
