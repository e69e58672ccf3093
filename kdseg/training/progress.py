"""A training as people see it while it goes on: a bar or lines of the log, `kdseg status`, and a picture."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kdseg.errors import UnreadableError
from kdseg.running.heartbeat import doing
from kdseg.running.telemetry import State, StatusFile, how_far, status_path
from kdseg.training.picture import middle, write_picture
from kdseg.training.run import Run
from kdseg.training.validation import See, Validation, predicted

log = logging.getLogger(__name__)

PICTURE = "validation.png"
"""Name of the picture in the folder of a training."""
EARLY_S = 60.0
"""Seconds after which there is a picture of what the network predicts, if it was not validated until then."""
_RECENT_S = 60.0
"""Seconds that the present speed, and the time that is left, are taken over."""
_BETWEEN_S = 0.5
"""Seconds between two of the counts that it is taken from."""


class Progress:
    """Progress of a training; only the first of several processes tells of it.

    Attributes:
        picture: path of the picture of the crop that is validated on.
    """

    def __init__(self, run: Run, out: Path, folder: Path, bar: bool | None) -> None:
        """Begin to tell of ``run``, before its first step; ``bar``: whether one is shown, None: on a terminal."""
        self.run, self.picture = run, folder / PICTURE
        self._status = StatusFile(status_path(out) if run.ranks.first else None, self._values)
        self._loss: float | None = None
        self._began, self._since = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
        self._seen = False
        self._recent: deque[tuple[float, int]] = deque([(self._began, run.step)])
        hidden = True if not run.ranks.first else None if bar is None else not bar
        self._bar = tqdm(total=self._steps, initial=run.step, desc=run.name or "train", disable=hidden)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        """Begin to write, and draw raw data and labels."""
        with ExitStack() as opened:  # closed again if it cannot be drawn
            for one in (self._bar, self._status, doing(self.line)):
                opened.enter_context(one)
            if self.run.ranks.first and not self.picture.exists():
                self._draw(self.run.validation, None)
                log.info("%s: raw data and labels that are validated on: %s", self._name, self.picture)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        """Write how it ended."""
        self._open.__exit__(*error)

    @property
    def _name(self) -> str:
        return f"training {self.run.name}".rstrip()

    @property
    def _steps(self) -> int | None:
        return None if self.run.steps == inf else int(self.run.steps)

    def line(self) -> str:
        """Return how far it is, in a line; empty if a bar or the first process shows it."""
        if not self.run.ranks.first:
            return ""
        if self._bar.disable:
            return f"{self._name}: {', '.join(how_far(self._values('running'), running=True))}"
        self._bar.refresh()
        return ""

    def step(self, row: Mapping[str, float]) -> None:
        """Note a step that is done; ``row`` is that of the curve."""
        self._loss, now = row["total"], time.monotonic()
        if now - self._recent[-1][0] > _BETWEEN_S:
            self._recent.append((now, self.run.step))
        while now - self._recent[0][0] > _RECENT_S and len(self._recent) > 2:
            self._recent.popleft()
        best = next(f"{name}={value:.3f}" for name, value in self.run.validation.named(self.run.best).items())
        self._bar.total = self._steps
        self._bar.set_postfix_str(f"loss={self._loss:.4f}, {best}", refresh=False)
        self._bar.update()
        if self.run.ranks.first and not self._seen and now - self._began > EARLY_S:
            self._look()

    @contextmanager
    def validation(self) -> Iterator[See]:
        """Tell of a validation, the body; yield what draws the affinities that it predicts."""
        before, self._seen = self.run.best_step, True
        yield partial(self._draw, self.run.validation)
        found = "the best so far" if self.run.best_step != before else f"the best was after {before}"
        log.info("%s: validated after step %d, %s; picture: %s", self._name, self.run.step, found, self.picture)

    def _look(self) -> None:
        """Draw what the network predicts of the middle section, where its first validation is far away."""
        run, crop, self._seen = self.run, middle(self.run.validation), True
        self._draw(crop, predicted(run.average, crop, run.offsets, run.objective.dtype, run.ranks.device))
        log.info("%s: what it predicts after step %d: %s", self._name, run.step, self.picture)

    def _draw(self, crop: Validation, affinities: NDArray[np.uint8] | None) -> None:
        """Write the picture; a training does not end because that cannot be written."""
        try:
            write_picture(self.picture, crop, affinities, self.run.offsets)
        except UnreadableError as error:
            log.warning("the picture is not up to date: %s", error)

    def _values(self, state: State) -> dict[str, Any]:
        run, (then, before), now = self.run, self._recent[0], time.monotonic()
        _, last = self._recent[-1]
        speed = (last - before) / (now - then) if now > then and last > before else None
        left = None if speed is None or self._steps is None else (self._steps - run.step) / speed
        if self._steps is None and run.options.train.seconds is not None:
            left = max(run.options.train.seconds - run.seconds, 0.0)
        return {
            "stage": "train",
            "state": state,
            "started": self._since,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(now - self._began, 3),
            "steps": {"done": run.step, "total": self._steps},
            "loss": self._loss,
            "best": dict(list(run.validation.named(run.best).items())[:1]) if run.best_step else {},
            "steps_per_s_now": speed,
            "eta_s": None if left is None else round(left),
        }
