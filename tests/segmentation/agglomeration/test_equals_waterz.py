"""Blockwise edges and the agglomeration tree against waterz in one shot, on real data and on the phantom."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from kdseg.config.data import PhantomOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores
from kdseg.geometry import Roi, blocks
from kdseg.segmentation.agglomeration.linkage import Dendrogram, cut, rows_of, sort_merges
from kdseg.segmentation.agglomeration.tree import decide, layout
from kdseg.segmentation.fragments.watershed import clean, fragments
from kdseg.segmentation.graph.edge_table import join
from kdseg.segmentation.graph.rag import block_edges
from kdseg.segmentation.lut import apply, lut
from kdseg.segmentation.waterz import waterz_segments
from kdseg.volumes.phantom import phantom_block

NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))
THRESHOLDS = [0.2013, 0.2517, 0.3019, 0.3523]
"""Between the scores that fractions of 255 give: at such a score itself, rounding decides what waterz does."""
BLOCK = (32, 32, 32)


def of_labels(labels: NDArray[np.generic], seed: int) -> NDArray[np.uint8]:
    """Return affinities of labels, blurred and noisy."""
    rng = np.random.default_rng(seed)
    affinities = np.ones((3, *labels.shape))
    for axis in range(3):
        here = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
        there = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
        affinities[(axis, *here)] = labels[here] == labels[there]
        affinities[axis] = gaussian_filter(affinities[axis], 0.8)
    # saturated ones would give equal scores, of which waterz takes any one first
    return np.clip(20 + 190 * affinities + rng.normal(0, 15, affinities.shape), 0, 255).astype(np.uint8)


def source(name: str, request: pytest.FixtureRequest) -> NDArray[np.uint8]:
    if name == "phantom":
        shape = (64, 96, 96)
        return of_labels(phantom_block(PhantomOptions(shape=shape, seed=5), Roi((0, 0, 0), shape))[1], 0)
    data: Path = request.getfixturevalue("em_data")
    with h5py.File(data / f"{name}.h5") as file:
        if name == "connectomics_512":
            return of_labels(file["volumes/labels/neuron_ids"][200:264, 200:296, 200:296], 1)
        boundary = file["volumes/boundary_probability"][:]
    links = np.zeros((3, *boundary.shape), np.uint8)
    for axis in range(3):
        links[axis] = np.round(225 * (1 - np.maximum(boundary, np.roll(boundary, 1, axis))))
    return links + np.random.default_rng(2).integers(0, 30, links.shape, np.uint8)  # few different values: many ties


def in_blocks(affinities: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return fragments per block with their halos, as the stage makes them."""
    z, y, x = affinities.shape[1:]
    volume, out = Roi((0, 0, 0), (z, y, x)), np.zeros((z, y, x), np.uint64)
    for number, block in enumerate(blocks(volume, BLOCK)):
        read = block.roi.grow(BLOCK).intersect(volume)
        found = fragments(affinities[(slice(None), *read.slices())], NEAREST, WatershedOptions())
        core = clean(found, block.roi.slices(read), 0)
        out[block.roi.slices()] = np.where(core > 0, core + np.uint64(number * 32**3), 0)
    return out


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["phantom", "gala_train", "connectomics_512"])
def test_the_tree_is_waterz_in_one_shot(name: str, request: pytest.FixtureRequest) -> None:
    affinities = source(name, request)
    ids = in_blocks(affinities)
    volume = Roi((0, 0, 0), ids.shape)  # type: ignore[arg-type]
    where = layout(volume.shape, BLOCK, BLOCK)
    left, parts = {}, []
    for block in blocks(volume, BLOCK):
        read = block.roi.grow((1, 1, 1)).intersect(volume)
        cells = read.slices()
        table = block_edges(ids[cells], affinities[(slice(None), *cells)], NEAREST, block.roi.slices(read))
        merges, left[block.index] = decide(rows_of(table), where, 0, block.index, THRESHOLDS[-1])
        parts.append(merges)
    for level in range(1, where.levels):
        children, left = left, {}
        for z, y, x in sorted({(z // 2, y // 2, x // 2) for z, y, x in children}):
            below = [(2 * z + i, 2 * y + j, 2 * x + k) for i, j, k in product((0, 1), repeat=3)]
            rows = join(children[child] for child in below if child in children)
            merges, left[z, y, x] = decide(rows, where, level, (z, y, x), THRESHOLDS[-1])
            parts.append(merges)
    dendrogram: Dendrogram = sort_merges(parts)
    known = np.unique(ids[ids > 0])
    assert known.size > 100
    counts = []
    for threshold, theirs in zip(THRESHOLDS, waterz_segments(affinities, ids, NEAREST, THRESHOLDS), strict=True):
        ours = apply(ids, known, lut(known, *cut(dendrogram, threshold)))
        assert scores(block_contingency(theirs, ours)).voi <= 0.005
        counts.append(np.unique(ours).size)
    assert known.size > counts[0] > counts[-1] > 2
