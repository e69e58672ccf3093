"""kdseg: distil a heavy EM segmentation network into a light one, run it blockwise, score the result."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdseg.notebook import evaluate, load_model, open, predict, segment

__all__ = ["evaluate", "load_model", "open", "predict", "segment"]

try:
    __version__ = version("kdseg")
except PackageNotFoundError:  # a source tree that is not installed: benchmarks/gpu runs from one
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    """Return a function for notebooks; what it imports is not loaded for the commands."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kdseg import notebook

    return getattr(notebook, name)
