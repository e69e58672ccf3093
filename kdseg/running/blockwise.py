"""Blocks over CPU workers, resumable. The only module that knows daisy.

daisy schedules the *indices* of the grid cells, and `kdseg.geometry` says which voxels a cell holds. So a
block at the border of the volume is an ordinary block (daisy's own ``fit`` rules would drop or shrink it),
halos are the business of the block function, and two blocks never write the same voxel.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import daisy

from kdseg.errors import KdsegError, StageError
from kdseg.geometry import Block, Roi, Triple
from kdseg.running import forks

BlockFunction = Callable[[Block], None]
CellFunction = Callable[[daisy.Block], None]

log = logging.getLogger(__name__)

_RETRIES = 1
_RESTARTS = 8
"""Crashed workers (killed, out of memory, failing block) that a stage survives before it gives up."""
_MANY = 16
"""Attempts at blocks that may fail before those that are left are not tried."""
_DAY = 24 * 3600.0
_CONTEXT = "DAISY_CONTEXT"
"""Variable in which daisy tells a worker where its server is."""


def run_blocks(name: str, total: Roi, block: Triple, function: BlockFunction, *, workers: int, done: Path) -> None:
    """Run ``function`` once on every block that is not done yet.

    Args:
        name: of the task, for messages and progress.
        total: voxels to cover.
        block: grid cell in voxels; the grid is anchored at voxel 0.
        function: called with each block, in any order, in any process; it must be idempotent. Where processes
            cannot fork it is pickled, so it holds paths and options, not open volumes.
        workers: processes; with 1 the blocks run in this process.
        done: folder of the done markers; keep one per options and inputs.

    Raises:
        StageError: if a block failed, with the first error; what is done stays done.
    """
    first = Roi(total.offset, (1, 1, 1))
    low = tuple(o // b for o, b in zip(first.offset, block, strict=True))
    count = tuple(-(-e // b) - lo for e, b, lo in zip(total.end, block, low, strict=True))
    done.mkdir(parents=True, exist_ok=True)
    _drop_half_written(done)
    errors = done.with_name(f"{done.name}.error")
    errors.unlink(missing_ok=True)
    workers = min(workers, max(count[0] * count[1] * count[2], 1))
    daisy.logging.set_log_basedir(None)
    unit = daisy.Roi((0, 0, 0), (1, 1, 1))
    try:
        with _process_function(_on_cell(function, total, block, errors), workers) as process:
            task = daisy.Task(
                name,
                total_roi=daisy.Roi(low, count),
                read_roi=unit,
                write_roi=unit,
                process_function=process,
                read_write_conflict=False,
                fit="shrink",
                max_workers=workers,
                max_retries=_RETRIES,
                max_worker_restarts=_RESTARTS + workers,
                timeout=_DAY,
                tracking_path=str(done),
            )
            states = daisy.run_blockwise(
                task,
                multiprocessing=workers > 1,
                progress=sys.stderr.isatty(),
                return_states=True,
                host="127.0.0.1" if workers > 1 else None,
                summary=False,
            )
    except (KdsegError, RuntimeError) as error:
        cause = _cause(errors, str(error))
        raise StageError(f"{name}: {cause}; finished blocks are kept; fix the cause and rerun") from error
    state = states[name]
    finished = state.completed_count
    log.info(
        "%s: %d of %d blocks done, %d of them before", name, finished, state.total_block_count, state.skipped_count
    )
    if finished != state.total_block_count:
        raise StageError(
            f"{name}: {state.total_block_count - finished} of {state.total_block_count} blocks are not done: "
            f"{_cause(errors, state.first_worker_error)}; finished blocks are kept; fix the cause and rerun"
        )


def _drop_half_written(done: Path) -> None:
    """Remove the metadata of daisy's markers where a kill left a part of it; daisy writes it anew, the markers stay."""
    for metadata in done.rglob("zarr.json"):
        try:
            json.loads(metadata.read_text())
        except ValueError:
            metadata.unlink()


def _cause(errors: Path, reported: str | None) -> str:
    """Return the first error of a block; daisy itself reports the last of many, or its own advice."""
    noted = errors.read_text().splitlines() if errors.exists() else []
    return noted[0] if noted else _last_line(reported or "a worker was killed: by hand, or because memory ran out")


def _on_cell(function: BlockFunction, total: Roi, block: Triple, errors: Path) -> CellFunction:
    def on_cell(cell: daisy.Block) -> None:
        if _many_failed(errors):
            cell.status = daisy.BlockStatus.FAILED
            return
        z, y, x = (int(i) for i in cell.write_roi.offset)
        roi = Roi((z * block[0], y * block[1], x * block[2]), block).intersect(total)
        try:
            function(Block((z, y, x), roi))
        except Exception as error:
            said = str(error) if isinstance(error, KdsegError) else f"{type(error).__name__}: {_last_line(str(error))}"
            if not _noted(errors, f"block {roi}: {_last_line(said)}\n") or not isinstance(error, KdsegError):
                raise
            cell.status = daisy.BlockStatus.FAILED  # told in one line at the end; raised it would be a page for each

    return on_cell


def _noted(errors: Path, line: str) -> bool:
    try:
        with errors.open("a") as file:
            file.write(line)
    except OSError:  # the disk is full, perhaps: then daisy has to tell
        return False
    return True


def _many_failed(errors: Path) -> bool:
    """Return whether so many blocks have failed that the others need not be tried; most stages end with one error."""
    return errors.exists() and errors.read_text().count("\n") >= _MANY


@contextmanager
def _process_function(on_cell: CellFunction, workers: int) -> Iterator[Callable[..., None]]:
    """Yield what daisy runs: in this process with one block, else without arguments in a process per worker."""
    if workers == 1:
        yield on_cell
    elif forks.POSSIBLE:
        with forks.forks(partial(_work, on_cell)) as ask:
            yield lambda: ask(os.environ[_CONTEXT])
    else:
        yield lambda: _work(on_cell, os.environ[_CONTEXT])


def _work(on_cell: CellFunction, context: str) -> None:
    """Run blocks until the server has none left."""
    logging.getLogger("daisy").setLevel(logging.ERROR)  # it warns of a server that ended before this worker began
    os.environ[_CONTEXT] = context
    client = daisy.Client()
    while True:
        with client.acquire_block() as cell:
            if cell is None:
                return
            on_cell(cell)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else text
