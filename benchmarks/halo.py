"""Fragments by halo: VOI against the truth, and the distance from fragments of the whole volume.

    python benchmarks/halo.py [--size 256] [--blocks 128 64] [--halos 4 8 12 16 24 32] [--synth SYNTH.zarr]

Affinities of the phantom's labels (as in `fragments.py`), or those of `SYNTH.zarr` (`labels`, and `affs` with their
offsets). The fragments of all blocks are joined by the region graph of the volume and cut where the VOI is least. "From
one block" is the VI in bits between that segmentation and the one whose fragments were made in one block.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import zarr
from fragments import NEAREST, tissue
from numpy.typing import NDArray

from kdseg.config.segmentation import WatershedOptions
from kdseg.evaluation.metrics.contingency import block_contingency, relabel
from kdseg.evaluation.metrics.scores import Scores, scores
from kdseg.geometry import Offsets, Roi, Triple, blocks
from kdseg.segmentation.agglomeration.linkage import agglomerate, cut
from kdseg.segmentation.fragments.watershed import clean, fragments
from kdseg.segmentation.graph.rag import block_edges
from kdseg.segmentation.lut import lut

Ids = NDArray[np.uint64]
DUST = 32
THRESHOLDS = [0.05 * k for k in range(1, 20)]


def blockwise(affinities: NDArray[np.uint8], offsets: Offsets, block: int, halo: int) -> tuple[Ids, int]:
    """Fragments of all blocks, and the voxels that were flooded for them."""
    z, y, x = affinities.shape[1:]
    total = Roi((0, 0, 0), (z, y, x))
    found, last, flooded = np.zeros(total.shape, np.uint64), 0, 0
    for one in blocks(total, (block, block, block)):
        read = one.roi.grow((halo, halo, halo)).intersect(total)
        near = np.ascontiguousarray(affinities[(slice(None), *read.slices())])
        pieces = clean(fragments(near, offsets, WatershedOptions()), one.roi.slices(read), DUST)
        found[one.roi.slices()] = np.where(pieces > 0, pieces + np.uint64(last), np.uint64(0))
        last += int(pieces.max(initial=0))
        flooded += read.size
    return found, flooded


def best(ids: Ids, affinities: NDArray[np.uint8], offsets: Offsets, labels: Ids) -> tuple[Scores, Scores]:
    """Scores of the fragments, and of their agglomeration at the best threshold."""
    names = np.unique(ids[ids > 0])
    whole = Roi((0, 0, 0), shape_of(ids)).slices()
    tree = agglomerate(block_edges(ids, affinities, offsets, whole), THRESHOLDS[-1])
    tables = [lut(names, *cut(tree, threshold)) for threshold in THRESHOLDS]
    own = block_contingency(ids, labels)
    found = [scores(relabel(own, names, table)) for table in tables]
    return scores(own), min(found, key=lambda one: one.voi)


def shape_of(ids: Ids) -> Triple:
    z, y, x = ids.shape
    return (z, y, x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--halos", type=int, nargs="+", default=[4, 8, 12, 16, 24, 32])
    parser.add_argument("--synth", type=Path)
    parser.add_argument("--noise", type=float, default=30.0, help="of the phantom's affinities, in 1/255")
    options = parser.parse_args()
    if options.synth is None:
        affinities, labels = tissue(options.size, 1.0, options.noise)
        affinities, offsets = affinities[: len(NEAREST)], NEAREST
    else:
        group = zarr.open_group(str(options.synth), mode="r")
        labels, affinities = np.asarray(group["labels"]), np.asarray(group["affs"][:3])
        offsets = tuple(tuple(o) for o in group["affs"].attrs["offsets"][:3])
    print(f"{' '.join(sys.argv)}\n| block | halo | voxels flooded per voxel | fragments | their split + merge | "
          "VOI | ARAND | from the widest |\n" + "| --- " * 8 + "|")  # fmt: skip
    for block in options.blocks:
        widest: Ids | None = None
        for halo in sorted(options.halos, reverse=True):
            ids, flooded = blockwise(affinities, offsets, block, halo)
            widest = ids if widest is None else widest
            raw, score = best(ids, affinities, offsets, labels)
            apart = scores(block_contingency(ids, widest)).voi
            print(
                f"| {block} | {halo} | {flooded / ids.size:.2f} | {len(np.unique(ids)) - 1} | {raw.voi_split:.3f} + "
                f"{raw.voi_merge:.4f} | {score.voi:.4f} | {score.arand:.4f} | {apart:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
