"""Progress of a stage, over blocks or steps, as JSON beside its store, for `kdseg status` and other observers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from kdseg.errors import UnreadableError
from kdseg.geometry import Block
from kdseg.results.sealed import write_sealed
from kdseg.running.attempt import Clock, Outcome
from kdseg.running.heartbeat import span

log = logging.getLogger(__name__)

EVERY_S = 2.0
"""Seconds between two writes."""
_RECENT_S = 60.0
"""Seconds that the present speed, and the time that is left, are taken over."""
_BETWEEN_S = 0.5
"""Seconds between two of the counts that it is taken from."""
_LISTED = 1000
"""Failed blocks that are listed."""

State = Literal["running", "finished", "failed"]
"""State of a stage."""


def status_path(manifest: Path) -> Path:
    """Return where the status of a stage lies."""
    return manifest.with_name(f"{manifest.stem}.status.json")


def how_far(facts: Mapping[str, Any], *, running: bool) -> list[str]:
    """Return in words how far a stage is, with its speed and the time that is left if it is running.

    Args:
        facts: of a status, which tells of blocks or of steps of a training.
        running: whether it is.
    """
    parts, speed, left = [], "", facts.get("eta_s")
    if "blocks" in facts:
        blocks = facts["blocks"]
        done = blocks["before"] + blocks["done"]
        parts.append(f"{done} of {blocks['total']} blocks ({100 * done / max(blocks['total'], 1):.1f} %)")
        parts += [f"{blocks['reused']} of {blocks['total']} blocks reused"] if blocks.get("reused") else []
        parts += [f"{blocks['failed']} failed"] if blocks["failed"] else []
        speed = f"{facts['mvox_per_s_now']:g} Mvox/s" if facts.get("mvox_per_s_now") else ""
    elif "steps" in facts:
        steps = facts["steps"]
        parts.append(f"step {steps['done']}" + (f" of {steps['total']}" if steps["total"] else ""))
        parts += [f"loss {facts['loss']:.4g}"] if facts["loss"] is not None else []
        parts += [f"{name} {value:.4g}" for name, value in facts["best"].items()]
        speed = f"{facts['steps_per_s_now']:.3g} steps/s" if facts["steps_per_s_now"] else ""
    if running:
        parts += [speed, f"{span(facts['seconds'])} so far" if left is None else f"{span(left)} left"]
    return [part for part in parts if part]


class StatusFile:
    """Status of a stage, written every other second, and at the end, while its context is open."""

    def __init__(self, path: Path | None, values: Callable[[State], dict[str, Any]]) -> None:
        """Write to ``path``, if there is one, what ``values`` returns; another thread calls it."""
        self.path, self._values = path, values
        self._ended = threading.Event()
        self._writer = threading.Thread(target=self._keep_writing, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        """Begin to write."""
        self._write("running")
        self._writer.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Write how it ended."""
        self._ended.set()
        self._writer.join()
        self._write("finished" if error is None else "failed")

    def _keep_writing(self) -> None:
        # not when a block finishes: that may take minutes, or workers wait for hours in a queue
        while not self._ended.wait(EVERY_S):
            self._write("running")

    def _write(self, state: State) -> None:
        """Write all that is known; a run does not end because its status cannot be written."""
        if self.path is None:
            return
        try:
            write_sealed(self.path, self._values(state))
        except UnreadableError as error:
            log.warning("the status is not up to date: %s", error)


class Telemetry:
    """Counts what finishes, and writes it down while its context is open.

    Attributes:
        failures: blocks that were given up, with their errors.
        reused: blocks that were taken from an earlier result, those finished before included.
        peak_mb: most memory that one worker had.
    """

    def __init__(
        self,
        path: Path | None,
        stage: str,
        *,
        blocks: int,
        before: int,
        voxels: int,
        announced_mb: float,
        reused: int = 0,
    ) -> None:
        """Begin a run of ``blocks`` blocks; ``before`` were finished, ``reused`` of them; ``voxels`` are left to do."""
        self.stage, self._file = stage, StatusFile(path, self._values)
        self.blocks, self.before, self.reused, self.voxels = blocks, before, reused, voxels
        self.announced_mb = announced_mb
        self.failures: list[dict[str, Any]] = []
        self.peak_mb, self.gpu_mb = 0.0, None
        self._workers: dict[str, dict[str, Any]] = {}
        self._done = self._voxels = self._skipped = self._retries = 0
        self._started = time.monotonic()
        self._first: float | None = None
        self._since = datetime.now(UTC).isoformat(timespec="seconds")
        self._recent: deque[tuple[float, int]] = deque([(self._started, 0)])
        self._counting = threading.Lock()

    def __enter__(self) -> Self:
        """Begin to write."""
        self._file.__enter__()
        return self

    def __exit__(self, error: type[BaseException] | None, *rest: object) -> None:
        """Write how it ended."""
        self._file.__exit__(error, *rest)

    def line(self) -> str:
        """Return how far the stage is, in a line."""
        return f"{self.stage}: {', '.join(how_far(self._values('running'), running=True))}"

    def add(self, block: Block, outcome: Outcome) -> None:
        """Note one attempt at a block."""
        with self._counting:
            self._add(block, outcome)

    def _add(self, block: Block, outcome: Outcome) -> None:
        self.peak_mb = max(self.peak_mb, outcome.peak_mb)
        worker = self._workers.setdefault(
            outcome.worker, {"blocks": 0, "voxels": 0, "seconds": asdict(Clock()), "peak_mb": 0.0, "gpu_mb": None}
        )
        worker["peak_mb"], worker["gpu_mb"] = outcome.peak_mb, outcome.gpu_mb
        for what, seconds in asdict(outcome.clock).items():
            worker["seconds"][what] = round(worker["seconds"][what] + seconds, 3)
        if outcome.trouble is None:
            worker["blocks"] += 1
            worker["voxels"] += block.roi.size
            self._done += 1
            self._skipped += outcome.skipped
            self.reused += outcome.reused
            self._voxels += block.roi.size
        now = time.monotonic()
        self._first = self._first or now
        if now - self._recent[-1][0] > _BETWEEN_S:
            self._recent.append((now, self._voxels))

    def retry(self) -> None:
        """Note that a block will be tried again."""
        with self._counting:
            self._retries += 1

    def give_up(self, block: Block, error: str, attempts: int) -> None:
        """Note a block that failed for good."""
        failure = {"block": list(block.index), "region": str(block.roi), "attempts": attempts, "error": error}
        with self._counting:
            self.failures.append(failure)

    @property
    def done(self) -> int:
        """Blocks that were finished in this run."""
        return self._done

    @property
    def of_reuse(self) -> dict[str, Any]:
        """Facts for the manifest: how many blocks there are and were reused; the stage has no speed if some were."""
        counted = {"blocks": {"total": self.blocks, "reused": self.reused}}
        return {**counted, "mvox_per_s": None} if self.reused else counted

    @property
    def busy_s(self) -> float:
        """Seconds of reading, computing and writing of the mean worker, as if one came after the other."""
        parts = [worker["seconds"][what] for worker in self._workers.values() for what in ("read", "compute", "write")]
        return float(sum(parts)) / max(len(self._workers), 1)

    def _values(self, state: State) -> dict[str, Any]:
        with self._counting:
            return self._known(state)

    def _known(self, state: State) -> dict[str, Any]:
        now = time.monotonic()
        while now - self._recent[0][0] > _RECENT_S and len(self._recent) > 2:
            self._recent.popleft()
        seconds = now - self._started
        then, before = self._recent[0]
        lasted = now - then
        speed = (self._voxels - before) / lasted if lasted > 0 else None
        left = self.voxels - self._voxels
        return {
            "stage": self.stage,
            "state": state,
            "started": self._since,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "first_block_s": None if self._first is None else round(self._first - self._started, 3),
            "blocks": {
                "total": self.blocks,
                "before": self.before,
                "done": self._done,
                "skipped": self._skipped,
                "reused": self.reused,
                "retries": self._retries,
                "failed": len(self.failures),
            },
            "voxels": {"done": self._voxels, "left": left},
            "mvox_per_s": round(self._voxels / seconds / 1e6, 3) if seconds else None,
            "mvox_per_s_now": None if speed is None else round(speed / 1e6, 3),
            "eta_s": round(left / speed) if speed else None,
            "memory_mb": {"announced": round(self.announced_mb, 1), "peak": round(self.peak_mb, 1)},
            "workers": {name: {**worker, "seconds": {**worker["seconds"]}} for name, worker in self._workers.items()},
            "failures": self.failures[:_LISTED],
        }
