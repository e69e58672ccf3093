"""A procedural neurite phantom: endless electron microscopy of neuropil with its dense ground truth.

Not a picture of any real tissue, but hard for the same reasons: thin and tortuous neurites, membranes
that fade, mitochondria, vesicles and reticulum with outlines of their own, noise, and misaligned sections
where z is coarse. Grey value and label of a voxel are a pure function of the seed, the voxel size and the
position, so that any block can be computed alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdseg.config.data import PhantomOptions
from kdseg.errors import ShapeError
from kdseg.geometry import Roi

VERSION = 1
"""Of the values; raised with any change of them, since phantoms that are not stored are computed again and again."""


def phantom_block(options: PhantomOptions, roi: Roi) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Compute a block of the phantom.

    Args:
        options: seed, voxel size in nm, and offset of the volume in the endless tissue; ``shape`` is
            not used, as the tissue goes on behind it.
        roi: the block in voxels of the volume, (z, y, x), anywhere.

    Returns:
        Raw uint8 (z, y, x), membranes dark, and labels uint64 (z, y, x): dense, without background, unique
        in the whole tissue, between 1 and 2**63. The same voxel has the same values in every block.

    Raises:
        ShapeError: if the block is empty.
    """
    from kdseg.volumes.phantom import image, microscope, tissue
    from kdseg.volumes.phantom.hashing import mix

    if min(roi.shape) < 1:
        raise ShapeError(f"phantom block {roi} is empty: ask for at least one voxel along every axis")
    key = np.uint64(mix(np.uint64(options.seed % 2**64)))
    voxel_size = np.array(options.voxel_size, np.float64)
    first = np.array(roi.offset, np.int64) + np.array(options.offset, np.int64)
    shift = np.array([0.0, 1.0, 1.0]) * microscope.largest_shift(voxel_size) + 1.0
    low = first * voxel_size - shift
    high = (first + np.array(roi.shape)) * voxel_size + shift
    near, far = image.warped_box(low, high)
    segments = tissue.tissue(key, tuple(near), tuple(far))
    section = microscope.sections(key, voxel_size, int(first[0]), roi.shape[0])
    scene = image.scene(key, voxel_size, first, section, segments, tuple(low), tuple(high))
    raw = np.empty(roi.shape, np.uint8)
    labels = np.empty(roi.shape, np.uint64)
    image.render(scene, raw, labels)
    return raw, labels
