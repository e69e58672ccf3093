"""Volumes, tables, networks and manifests of a run, compared with what the stages that wrote them say of them."""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from kdseg.errors import DataError, KdsegError, MissingError, UnreadableError
from kdseg.geometry import Triple, block_name, cell_with, grid_shape, triple
from kdseg.results import remote
from kdseg.results.claims import CLAIMED, Claim
from kdseg.results.curve import read_curve
from kdseg.results.locks import locked
from kdseg.results.manifests import (
    Manifest,
    expect_made_of,
    file_fingerprint,
    finished,
    private_folder,
    read,
    read_json,
)
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.results.tables import read_table
from kdseg.running.heartbeat import doing
from kdseg.running.progress import forget, listed
from kdseg.volumes.shards import checksums, difference, known_levels
from kdseg.volumes.volume import open_volume

_THREADS = 2
"""Threads of a worker: one sums up what it has read while the other waits for the disk."""
_AHEAD = 4096
"""Files that are known at a time: memory does not grow with the volume."""
_NAME = re.compile(r"(?:(\d+)_)?(\d+)_(\d+)_(\d+)\.npz")
"""Names of the tables of blocks; those of the nodes of an agglomeration begin with a level."""


class Done(NamedTuple):
    """A finished block: the list that it is in, and its place in the grid."""

    blocks: Path
    cell: Triple


class File(NamedTuple):
    """A file of a stage.

    Attributes:
        path: of the file; a URL, if it lies in a bucket.
        said: value of `kdseg.volumes.shards.SHARD` or `OBJECT`; None of a table, which has its checksums inside.
        made_by: returns the blocks that make it again, which is slower than to read a small file.
    """

    path: Path | str
    said: np.void | None
    made_by: Callable[[], tuple[Done, ...]]


class Fault(NamedTuple):
    """A file that is not as it was written.

    Attributes:
        what: is wrong with which file, in words.
        made_by: blocks that make it again; none if its stage writes it whenever it ends.
        claim: what it says of the result, if the claim is lost, but not the manifest.
    """

    what: str
    made_by: tuple[Done, ...] = ()
    claim: Mapping[str, Any] | None = None


Reader = Callable[[list[File]], Iterable[tuple[int, str | None]]]
"""Returns size in bytes and fault, if there is one, of each file, in their order."""


class _Far:
    """Progress of a comparison: the manifest at hand, by its number from 1, and the bytes that were read."""

    def __init__(self, manifests: list[Path]) -> None:
        self.manifests, self.number, self.size, self.began = manifests, 0, 0, time.monotonic()

    def count(self, size: int, bar: tqdm[Any]) -> None:
        """Count bytes that were read."""
        self.size += size
        bar.update(size)

    def line(self) -> str:
        """Return it in words."""
        seconds, manifest = time.monotonic() - self.began, self.manifests[self.number - 1]
        speed = f"{self.size / 1e9:.1f} GB, {self.size / seconds / 1e6:.0f} MB/s"
        return f"verify: {manifest}, {self.number} of {len(self.manifests)} results, {speed}"


def verify(run: Path, workers: int) -> Iterator[tuple[Path, list[Fault]]]:
    """Yield the manifests of finished stages, and what is wrong with the files of each.

    Args:
        run: folder of results, or one manifest.
        workers: cores that are kept busy, by threads: Python waits neither for a disk nor for a sum.

    Raises:
        MissingError: if no stage has finished.
    """
    quiet = not sys.stderr.isatty()
    far = _Far(finished(run))
    with (
        ThreadPoolExecutor(_THREADS * workers) as pool,
        tqdm(unit="B", unit_scale=True, disable=quiet) as bar,
        doing(lambda: far.line() if quiet else ""),
    ):
        for manifest in far.manifests:
            far.number += 1
            bar.set_description(str(manifest))
            yield manifest, list(_faults(manifest, partial(pool.map, _wrong), lambda size: far.count(size, bar)))


def _faults(manifest: Path, reader: Reader, count: Callable[[int], object]) -> Iterator[Fault]:
    """Yield what is wrong with a manifest, and with the files that its stage left; ``count`` is told of bytes read."""
    try:
        made = read(manifest)
    except KdsegError as error:
        yield Fault(str(error))
        yield from _of_the_claim(manifest)
        return
    # of a network the weights are the input, not the manifest
    beside = {name: manifest.parent / f"{name}.json" for name in made.inputs if name != "model"}
    for name, path in ((name, path) for name, path in beside.items() if path.exists()):
        try:
            expect_made_of(manifest, **{name: path})
        except DataError as error:
            yield Fault(str(error))
        except UnreadableError:
            continue  # of which its own result tells
    small = list(_small(made))
    yield from small
    yield from _of_the_stage(made, sound=not small)
    try:
        files = _files(made)
        while some := list(islice(files, _AHEAD)):
            for file, (size, wrong) in zip(some, reader(some), strict=True):
                count(size)
                if wrong:
                    yield Fault(wrong, file.made_by())
    except KdsegError as error:
        yield Fault(f"{error}; the files of this result were not all compared")


def repair(manifest: Path, found: list[Fault]) -> None:
    """Have the next run of a stage do the blocks of faults again, and those only; nothing is removed.

    A claim that is lost is written anew.
    """
    held = Claim(manifest, "")
    lost = defaultdict[Path, set[Triple]](set)
    for fault in found:
        for done in fault.made_by:
            lost[done.blocks].add(done.cell)
    with locked(held.private):
        for path, indices in lost.items():
            forget(path, indices)
        for fault in found:
            if fault.claim is not None and _lost(held, fault.claim):
                write_sealed(held.claimed, fault.claim)


def _lost(held: Claim, claim: Mapping[str, Any]) -> bool:
    """Return whether a claim is still not there, and the manifest still that of the same result."""
    try:
        read_sealed(held.claimed)
    except KdsegError:
        return read(held.manifest).fingerprint == claim.get("fingerprint")
    return False


def _small(made: Manifest) -> Iterator[Fault]:
    """Yield what is wrong with files that a stage writes when it ends."""
    files = dict(made.files)
    if made.store is not None and "weights" in made.stats:
        files[made.store.name] = made.stats["weights"]
    for name, said in files.items():
        path = made.path.parent / name
        try:
            if file_fingerprint(path) != said:
                yield Fault(f"{path} is damaged or another one: its SHA-256 is not the one in {made.path}")
        except MissingError:
            yield Fault(f"{path} is gone since it was written")
        except UnreadableError as error:
            yield Fault(str(error))


def _of_the_claim(manifest: Path) -> Iterator[Fault]:
    """Yield what is wrong with a claim beside a damaged manifest; if there is anything, no part can be kept."""
    try:
        read_sealed(Claim(manifest, "").claimed)
    except KdsegError as error:
        yield Fault(f"{error}, nor says the manifest what it is made of: kdseg clear {manifest}, then rerun its stage")


def _of_the_stage(made: Manifest, sound: bool) -> Iterator[Fault]:
    """Yield what is wrong with what a stage reads when it goes on; a ``sound`` manifest tells what was claimed."""
    claimed = Claim(made.path, "").claimed
    try:
        if read_sealed(claimed).get("fingerprint") != made.fingerprint:
            yield Fault(f"{claimed} is that of another result than {made.path}: kdseg clear {made.path}")
    except KdsegError as error:
        if sound:
            values = {key: value for key, value in read_json(made.path).items() if key in CLAIMED}
            yield Fault(f"{error}; kdseg verify {made.path} --repair writes it anew", claim=values)
        else:
            yield Fault(f"{error}; kdseg clear {made.path}, then rerun its stage")
    try:
        read_curve(made.path.with_suffix(".training") / "curve.csv")
    except KdsegError as error:
        yield Fault(str(error))


def _files(made: Manifest) -> Iterator[File]:
    """Yield the files that blocks of a stage have written, there or not."""
    if made.store is None:
        return
    if not made.store.exists():
        raise MissingError(f"{made.store} is gone since it was written")
    if remote.is_link(made.store) or (made.store.is_dir() and made.store.suffix == ".zarr"):
        yield from _shards(made, made.store)
    tables = made.path.with_suffix(".tables")
    names = {path.name for path in tables.iterdir()} if tables.is_dir() else set()
    for written in sorted(names | set(_expected_tables(made))):
        if name := _NAME.fullmatch(written):
            yield File(tables / written, None, partial(_table_made_by, made, name))


def _expected_tables(made: Manifest) -> Iterator[str]:
    """Yield the names of the tables that a stage has left for its blocks, or for cells of a grid of its own."""
    private, kept = private_folder(made.path), made.stats.get("kept")
    if kept is not None and made.store is not None:
        cells = np.ndindex(grid_shape(open_volume(made.store).shape, triple(kept["unit"])))
        yield from (block_name(triple(cell)) for cell in cells)
    for path in private.glob("*x*x*/edges.txt"):
        yield from (block_name(cell) for cell in listed(path))
    for path in private.glob("level*/agglomerate*.txt"):
        level = path.parent.name.removeprefix("level")
        yield from (f"{level}_{block_name(cell)}" for cell in listed(path))


def _shards(made: Manifest, store: Path) -> Iterator[File]:
    for level in range(known_levels(store)):  # a table that is gone is found by the manifest
        volume = open_volume(store, level=level)
        unit = volume.write_unit
        known = checksums(store, level, grid_shape(volume.shape, unit))
        if known is None:
            return
        for index, path in volume.files(volume.roi):
            yield File(path, known[index], partial(_shard_made_by, made, level, index, unit))


def _shard_made_by(made: Manifest, level: int, index: Triple, unit: Triple) -> tuple[Done, ...]:
    if level:
        return (Done(private_folder(made.path) / f"level{level}.txt", index),)
    return _cell_made_by(made, index, unit)


def _table_made_by(made: Manifest, name: re.Match[str]) -> tuple[Done, ...]:
    level, *index = name.groups()
    cell = triple(int(i) for i in index)
    if level is not None:
        return tuple(Done(path, cell) for path in (private_folder(made.path) / f"level{level}").glob("*.txt"))
    kept = made.stats.get("kept")
    return _cell_made_by(made, cell, made.block if kept is None else triple(kept["unit"]))


def _cell_made_by(made: Manifest, index: Triple, unit: Triple) -> tuple[Done, ...]:
    """Return the blocks, of one extent for each attempt, that hold a cell of a grid of ``unit`` voxels."""
    found = list[Done]()
    for path in private_folder(made.path).glob("*x*x*/*.txt"):
        block = triple(int(n) for n in path.parent.name.split("x"))
        found.append(Done(path, cell_with(index, unit, block)))
    return tuple(found)


def _wrong(file: File) -> tuple[int, str | None]:
    """Return the size of a file in bytes, and what is wrong with it, in words."""
    if file.said is not None:
        wrong = difference(file.path, file.said)
        return max(int(file.said["size"]), 0), f"{file.path} {wrong}" if wrong else None
    path = Path(file.path)
    size = path.stat().st_size if path.exists() else 0
    try:
        read_table(path)
    except KdsegError as error:
        return size, str(error)
    return size, None
