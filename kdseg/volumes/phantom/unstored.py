"""A phantom that is not stored: a file says what to compute, where the volume would lie.

Beside its manifest lies a small ``raw.zarr`` or ``labels.zarr``, a file and no folder::

    {"phantom": {"shape": [2048, 2048, 2048], "seed": 0, …}, "kind": "raw", "version": 1}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from kdseg.config.data import PhantomOptions
from kdseg.errors import UnreadableError
from kdseg.geometry import Roi, Triple
from kdseg.results.remote import COMPUTED, stand_in
from kdseg.volumes.phantom import VERSION, phantom_block

Rendered = Literal["raw", "labels"]
_UNIT = (128, 128, 128)
_TISSUE_BYTES = 130 * 2**20
"""Most that the trees around a piece take; measured."""
_LONGEST_NM, _LONGEST = 3300.0, 330
"""Of what is computed at once, in nm and in voxels: the tissue around it takes memory with the cube of its extent."""


@dataclass(frozen=True)
class Computed:
    """The voxels of a phantom, in the place of an array: any region is computed when it is read.

    Attributes:
        path: file that says what to compute.
        options: the phantom.
        kind: ``raw``, uint8, or ``labels``, uint64.
    """

    path: Path
    options: PhantomOptions
    kind: Rendered
    ndim: int = 3
    chunks: Triple = _UNIT
    """Voxels that are read together at best; nothing lies in chunks here."""
    shards: None = None

    @property
    def shape(self) -> Triple:
        """Extent in voxels, (z, y, x)."""
        return self.options.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        return np.dtype(np.uint8 if self.kind == "raw" else np.uint64)

    def working_bytes(self, roi: Roi) -> int:
        """Return the most memory in bytes that is taken while ``roi`` is computed, beside the voxels returned."""
        pieces = (_cut(n, size) for n, size in zip(roi.shape, self.options.voxel_size, strict=True))
        largest = math.prod(max(map(len, pieces_of_axis)) for pieces_of_axis in pieces)
        # grey value and label of each voxel, whichever is wanted
        return _TISSUE_BYTES + 9 * largest

    def read(self, roi: Roi) -> NDArray[Any]:
        """Return the voxels of ``roi``, (z, y, x); piece by piece if it is large."""
        values = np.empty(roi.shape, self.dtype)
        pieces = (_cut(n, size) for n, size in zip(roi.shape, self.options.voxel_size, strict=True))
        for z, y, x in product(*pieces):
            piece = Roi((z.start, y.start, x.start), (len(z), len(y), len(x)))
            raw, labels = phantom_block(self.options, piece.shift(roi.offset))
            values[piece.slices()] = raw if self.kind == "raw" else labels
        return values


def description(options: PhantomOptions, kind: Rendered) -> dict[str, Any]:
    """Return what the file of an unstored phantom says, as JSON values."""
    return {COMPUTED: options.model_dump(mode="json", exclude={"stored"}), "kind": kind, "version": VERSION}


def open_computed(path: Path) -> Computed:
    """Open an unstored phantom by its file.

    Raises:
        UnreadableError: if the file is damaged, or of another version of the phantom, which has other values.
    """
    values = stand_in(path)
    if values.get("version") != VERSION:
        raise UnreadableError(
            f"{path} is a phantom of version {values.get('version')!r}, this kdseg computes version {VERSION}, with "
            f"other values: kdseg clear {path.with_suffix('.json')}, then make it again"
        )
    kind = values.get("kind")
    try:
        options = PhantomOptions.model_validate(values[COMPUTED])
    except (ValidationError, KeyError) as error:
        raise UnreadableError(f"{path} does not say which phantom to compute: {error}") from error
    if kind not in ("raw", "labels"):
        raise UnreadableError(f"{path} is a phantom of kind {kind!r}, expected 'raw' or 'labels'")
    return Computed(path, options, kind)


def _cut(length: int, size: float) -> list[range]:
    """Return equal pieces of an axis of ``length`` voxels of ``size`` nm."""
    count = math.ceil(length / max(min(_LONGEST_NM // size, _LONGEST), 1))
    ends = [length * k // max(count, 1) for k in range(count + 1)]
    return [range(a, b) for a, b in pairwise(ends)]
