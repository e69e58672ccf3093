"""Blocks of an earlier result that would come out the same: taken from there, not made again.

A stage has a function that names all that one block follows from: voxels within the halo, how the volume cuts that,
offsets. It is called with the work of now, and with the same work on the inputs of the earlier run. Where both see the
same, to the byte, the block is taken; elsewhere it is made. A result with ``reuse`` is that without, so ``reuse`` is
no part of what a result is made of.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from kdseg.config.tasks import ReusingTask
from kdseg.errors import DataError, KdsegError, UnreadableError
from kdseg.geometry import Block
from kdseg.results.claims import differences
from kdseg.results.manifests import Manifest, read
from kdseg.running.attempt import BlockWork, Clock, Reused
from kdseg.volumes.inputs import Input, open_input

log = logging.getLogger(__name__)

_given_up = set[frozenset[str]]()
"""Executions of whose results this process reuses nothing more."""

Work = TypeVar("Work")
Result = TypeVar("Result")
Sees = Callable[[Work, Block], Iterator[Any]]
"""Yields all that a block follows from beside the options, arrays or values; nothing if there is nothing to do. What is
cheap comes first."""


class Earlier(NamedTuple):
    """A finished result of an earlier run, made with the options of now.

    Attributes:
        manifest: of the result.
        inputs: volumes that it was made of, by their roles.
        runs: executions that made all of them, by their manifests.
    """

    manifest: Manifest
    inputs: dict[str, Input]
    runs: dict[Path, str]


@dataclass(frozen=True)
class Reuse(Generic[Work, Result]):
    """Blocks of an earlier result, for those of a stage; small, sent with every block.

    Attributes:
        manifest: of the earlier result.
        runs: executions that made it and its inputs, by their manifests.
        was: the work of the stage on the inputs of the earlier run, with its result.
        now: the work of the stage.
        sees: names what a block follows from.
        load: returns a block of the result ``was``, as it is to be in that of ``now``.
        save: writes it, and returns what `kdseg.volumes.volume.Volume.write` says.
    """

    manifest: Path
    runs: dict[Path, str]
    was: Work
    now: Work
    sees: Sees[Work]
    load: Callable[[Work, Work, Block], Result]
    save: Callable[[Work, Block, Result], bytes]

    def block(self, block: Block) -> Result | None:
        """Return the earlier result of a block; None if it has to be made, as where the earlier one cannot be read."""
        runs = frozenset(self.runs.values())
        if runs in _given_up:
            return None
        try:
            if not _same(self.sees(self.was, block), self.sees(self.now, block)):
                return None
            result = self.load(self.was, self.now, block)
        except KdsegError as error:
            log.warning("block %s is made, since the earlier one cannot be reused: %s", block.roi, error)
            result = None
        try:
            expect_runs(self.runs)  # afterwards: what was read meanwhile may be of two runs
        except KdsegError as error:
            log.warning("from block %s on this process reuses nothing: %s", block.roi, error)
            _given_up.add(runs)
            return None
        return result


def expect_runs(runs: Mapping[Path, str]) -> None:
    """Refuse manifests that are not those of some executions any more.

    Raises:
        UnreadableError: if one was made again.
    """
    for manifest, run in runs.items():
        if read(manifest).run != run:
            raise UnreadableError(f"{manifest} was made again meanwhile")


def earlier(
    task: ReusingTask,
    stage: str,
    made_of: Mapping[str, Any],
    inputs: Mapping[str, str],
    volumes: Mapping[str, Path | None],
) -> Earlier | None:
    """Return the earlier result that a task names; None if there is none, or none of use, which the log says.

    Args:
        task: of the stage.
        stage: name of the stage.
        made_of: options that determine the result, as of its claim.
        inputs: fingerprint of each input, likewise; all but the volumes must be what they were.
        volumes: manifests of those inputs whose voxels are compared block by block; None stands for no input.
    """
    if task.reuse is None:
        return None
    try:
        found = _found(task.reuse, task.manifest, stage, made_of, inputs, volumes)
    except KdsegError as error:
        log.warning("%s: nothing is reused: %s", stage, error)
        return None
    log.info("%s: blocks that follow from the same as those of %s are taken from there", stage, task.reuse)
    return found


def reusing(work: BlockWork, reuse: Reuse[Work, Result] | None) -> BlockWork:
    """Return work that takes those blocks from an earlier result that it can."""
    return work if reuse is None else partial(_reuse_or_make, work, reuse)


def _reuse_or_make(work: BlockWork, reuse: Reuse[Work, Result], block: Block, clock: Clock) -> bytes | Reused | None:
    with clock("read"):
        found = reuse.block(block)
    if found is None:
        return work(block, clock)
    with clock("write"):
        return Reused(reuse.save(reuse.now, block, found))


def _same(was: Iterator[Any], now: Iterator[Any]) -> bool:
    """Return whether both yield the same, and anything at all."""
    seen = False
    for a, b in zip_longest(was, now, fillvalue=...):
        seen = True
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            if a.dtype != b.dtype or not np.array_equal(a, b):
                return False
        elif isinstance(a, np.ndarray) or isinstance(b, np.ndarray) or a != b:
            return False
    return seen


def _found(
    reuse: Path,
    manifest: Path,
    stage: str,
    made_of: Mapping[str, Any],
    inputs: Mapping[str, str],
    volumes: Mapping[str, Path | None],
) -> Earlier:
    if reuse.resolve() == manifest.resolve():
        raise DataError(f"{reuse} is the result itself: name that of another folder")
    made = read(reuse)
    _ = made.result  # refused if it is gone
    was = {"stage": made.stage, "options": made.options, "inputs": _without(made.inputs, volumes)}
    now = {"stage": stage, "options": json.loads(json.dumps(made_of)), "inputs": _without(inputs, volumes)}
    if difference := next(differences(was, now), None):
        raise DataError(f"{reuse} was made of something else: {difference}")
    places = {
        role: _place(made, made.inputs[role], path, manifest) for role, path in volumes.items() if path is not None
    }
    runs = {made.path: made.run, **{place: read(place).run for place in places.values()}}
    opened = {role: open_input(place) for role, place in places.items()}
    expect_runs(runs)
    return Earlier(made, opened, runs)


def _without(inputs: Mapping[str, str], volumes: Mapping[str, Path | None]) -> dict[str, str]:
    """Return inputs with nothing said of volumes but that they are there."""
    return {role: "a volume" if role in volumes else mark for role, mark in inputs.items()}


def _place(made: Manifest, fingerprint: str, path: Path, manifest: Path) -> Path:
    """Return the manifest of an input of an earlier result: it lies as that of now does, or is the same one.

    Raises:
        DataError: if it is not there, or was made again since.
    """
    place = Path(os.path.normpath(made.path.parent / os.path.relpath(path, manifest.parent)))
    for one in (place, path):
        if one.is_file() and (there := read(one)).fingerprint == fingerprint and there.finished <= made.finished:
            return one
    raise DataError(f"{made.path} was not made of {place}, or that is gone or was made again since")
