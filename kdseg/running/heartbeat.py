"""Lines of the log that say what goes on, whenever nothing else was logged for some seconds.

What takes long says how far it is by `doing`; the command line has it told. Workers are silent: they have no heart.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

log = logging.getLogger(__name__)

EVERY_S = 8.0
"""Seconds of silence after which something is said."""
_LOOK_S = 1.0
"""Seconds between two looks at how long it is silent."""

Say = Callable[[], str]
"""Returns how far something is, in a line; empty, where it is seen in another way, e.g. by a bar."""
_doing: list[Say] = []
"""All that goes on, the innermost last."""
_last = [time.monotonic()]
"""When something was said last."""


@contextmanager
def doing(say: Say) -> Iterator[None]:
    """Have a line told of the body, and not of what it is part of, as long as it runs.

    Args:
        say: called by another thread while the body runs.
    """
    _doing.append(say)
    try:
        yield
    finally:
        _doing.remove(say)


def said() -> None:
    """Note that something was said just now."""
    _last[0] = time.monotonic()


class _Listening(logging.Handler):
    """Notes whatever is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Note that a line is written."""
        said()


@contextmanager
def beating(command: str) -> Iterator[None]:
    """Log how far the innermost thing is, or how long a command runs, after each silence of ``EVERY_S``."""
    begun, ended, listening = time.monotonic(), threading.Event(), _Listening()

    def beat() -> None:
        while not ended.wait(_LOOK_S):
            if time.monotonic() - _last[0] < EVERY_S:
                continue
            said()
            # what it tells of may end meanwhile, and there may be nobody to listen: no reason to end a stage, or a beat
            with suppress(Exception):
                say = [lambda: f"{command}: at work for {span(time.monotonic() - begun)}", *_doing][-1]
                if line := say():
                    log.info("%s", line)

    said()
    logging.getLogger().addHandler(listening)
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        logging.getLogger().removeHandler(listening)


def span(seconds: float) -> str:
    """Return a time in the unit that tells it best."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
