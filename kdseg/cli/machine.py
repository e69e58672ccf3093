"""Errors that are the machine's, not the program's: no room, no memory, a disk that went away."""

from __future__ import annotations

import errno

from kdseg.running.attempt import FULL

_LOST = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EROFS)
_TORCH = ("DefaultCPUAllocator", "CUDA out of memory", "unable to allocate shared memory")
"""Parts of what torch says where memory runs out, in errors of no class of their own."""


def of_the_machine(error: Exception) -> str | None:
    """Return in one line what happened and what to do, None if the error is none of the machine."""
    said = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(part in said for part in _TORCH):
        return (
            f"out of memory ({said:.300}): take fewer workers, smaller blocks or a larger machine; what is done is "
            "kept, run it again to go on"
        )
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        return f"{said}: make room; what is done is kept, run it again to go on"
    if error.errno in _LOST:
        return f"{said}: the disk does not answer as it should; run it again when it does, what is done is kept"
    return said
