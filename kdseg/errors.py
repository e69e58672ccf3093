"""The errors that kdseg raises on purpose.

Every error is a `KdsegError` and also the builtin that fits it, so that callers can catch either::

    KdsegError
    ├── ConfigError(ValueError)        a configuration that cannot be run
    ├── DataError(ValueError)          data that is not what a stage needs (NaN, negative labels, ...)
    │   ├── ShapeError                 shapes, axes or regions that do not fit each other
    │   └── VoxelSizeError             a voxel size that is missing, wrong, or does not fit
    ├── MissingError(FileNotFoundError)  a file, dataset or manifest that is not there
    ├── UnreadableError(OSError)       a file that is there but cannot be read, or a disk that cannot be written
    ├── ClaimError(RuntimeError)       a store that holds something else, or that another run is writing
    ├── DeviceError(RuntimeError)      a device that was asked for and is not there
    └── StageError(RuntimeError)       a stage that stopped before all of its blocks were done

A message says what was got, what was expected, and what to do, in one line where it can.

Docstrings list what their function raises itself. Any stage may raise besides, and does not say so:

- `ClaimError`: its result holds something else, or another run is writing it;
- `MissingError`, `UnreadableError`: an input is not there or damaged, or the disk or a bucket does not answer;
- `DataError`, `ShapeError`, `VoxelSizeError`: inputs do not fit each other, or their manifests are of several runs;
- `ConfigError`, `DeviceError`: an option does not fit the inputs, a library is not installed, a device is not there;
- `StageError`: a block failed; finished blocks are kept.
"""

from __future__ import annotations

import re

_URL = r"(?i)(?<![\w.])([a-z][\w+-]*://|(?:https?|ftp|s3|gs):/)"
"""Beginning of a URL; one that was taken for a path has a slash less."""
_SECRETS = (
    # before the last @ of the host; a password may hold a slash by mistake, where a port would not
    (re.compile(_URL + r"(?:[^\s/]*|[^\s/:]*:(?!\d*/)\S*)@"), r"\1***@"),
    (re.compile(_URL + r"([^\s?]*)\?\S*"), r"\1\2?***"),
)


def masked(text: str) -> str:
    """Return a text as it may be shown: addresses in it lose user and password, and what follows a question mark."""
    for secret, shown in _SECRETS:
        text = secret.sub(shown, text)
    return text


class KdsegError(Exception):
    """Base of every error raised on purpose; the command line prints it in one line and exits with 1.

    Its message is `masked`.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(masked(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(KdsegError, ValueError):
    """A configuration that cannot be run."""


class DataError(KdsegError, ValueError):
    """Data that is not what a stage needs."""


class ShapeError(DataError):
    """Shapes, axes or regions that do not fit each other."""


class VoxelSizeError(DataError):
    """A voxel size that is missing, not positive, or does not fit another one."""


class MissingError(KdsegError, FileNotFoundError):
    """A file, dataset or manifest that is not there."""


class UnreadableError(KdsegError, OSError):
    """A file that is there but cannot be read, or a disk that cannot be written."""


class ClaimError(KdsegError, RuntimeError):
    """A store that holds another result, or that another run is writing."""


class DeviceError(KdsegError, RuntimeError):
    """A device that was asked for and is not there."""


class StageError(KdsegError, RuntimeError):
    """A stage that stopped before all of its blocks were done."""
