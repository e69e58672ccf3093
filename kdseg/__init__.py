"""kdseg: distil a heavy EM segmentation network into a light one, run it blockwise, score the result."""

from __future__ import annotations

__version__ = "0.1.0"
