"""kdseg: distil a heavy EM segmentation network into a light one, run it blockwise, score the result."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kdseg")
except PackageNotFoundError:  # a source tree that is not installed: benchmarks/gpu runs from one
    __version__ = "unknown"
