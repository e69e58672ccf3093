"""Small volumes whose overlaps are counted, on disk, in any blocks and with any options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from toy_volumes import write_volume

from kdseg.evaluation.alignment import align
from kdseg.evaluation.counting import Count
from kdseg.geometry import Roi
from kdseg.volumes.sources import open_source

SHAPE = (7, 9, 8)
BLOCKS = st.tuples(*[st.integers(2, 9)] * 3)
Voxels = NDArray[np.uint64]
OPTIONS = st.fixed_dictionaries(
    {
        "per_section": st.booleans(),
        "components": st.booleans(),
        "ignore_labels": st.sampled_from([(0,), (), (0, 2)]),
        "ignore_segments": st.sampled_from([(), (0,), (0, 2**63 + 2)]),
        "roi": st.sampled_from([Roi((0, 0, 0), SHAPE), Roi((2, 3, 1), (4, 5, 6))]),
    }
)


def volumes(seed: int) -> tuple[Voxels, Voxels, Voxels]:
    """Return segments with large ids, labels in several pieces, and a mask."""
    rng = np.random.default_rng(seed)
    names = np.array([0, 3, 2**63 + 1, 2**63 + 2, 2**64 - 4], np.uint64)
    segments = names[rng.integers(0, 5, (4, 3, 4)).repeat(2, 0).repeat(3, 1).repeat(2, 2)[:7]]
    labels = rng.integers(0, 3, (7, 5, 8)).repeat(2, 1)[:, :9].astype(np.uint64)
    return segments, labels, rng.integers(0, 5, SHAPE).astype(np.uint64)


def made(folder: Path, seed: int, **options: object) -> Count:
    for name, voxels in zip(("segments", "labels", "mask"), volumes(seed), strict=True):
        if not (folder / f"{name}.zarr").exists():
            write_volume(folder / f"{name}.zarr", voxels)
    paths = [str(folder / f"{name}.zarr") for name in ("labels", "segments", "mask")]
    labels, segments, mask = align(*[open_source(path) for path in paths]).placed
    what = Count(segments, labels, labels.roi, (16, 16, 16), mask)
    return replace(what, **options)


def named_components(labels: Voxels, per_section: bool) -> Voxels:
    """Name each component by its first voxel, plus 1."""
    out = np.zeros(labels.shape, np.uint64)
    faces = ndimage.generate_binary_structure(3, 1)
    if per_section:
        faces[0] = faces[2] = False
    for label in np.unique(labels[labels > 0]):
        found, count = ndimage.label(labels == label, faces)
        for one in range(1, count + 1):
            out[found == one] = np.flatnonzero(found == one)[0] + 1
    return out
