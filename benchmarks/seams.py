"""Seams at the faces of blocks: the same crop from volara at two block sizes, and from kdseg at two chunkings.

    python benchmarks/seams.py SYNTH.zarr WORK VOLARA_PYTHON VOLARA_BASELINE.py [--picture PNG] [--section 100]

Arguments as in `against_volara.py`. volara runs at blocks of 128 and 64; kdseg's fragments are of one grid (64), its
agglomeration runs in chunks of 128 and of 64. For each variant one line: pairs of voxels across faces of its blocks
that are of one true object and got two segments (splits), or of two objects and got one (joins); beside it the same at
planes midway between the faces, which tells what is owed to the faces. Then, how far the two variants of a tool are
from each other. The picture has volara above, kdseg below, larger blocks on the left.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import numpy as np
import zarr
from against_volara import DUST, STORAGE, WORKERS, put
from numpy.typing import NDArray

from kdseg.config import AgglomerateOptions, EdgesOptions, EvaluateOptions, FragmentsOptions, SegmentOptions
from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, SegmentTask, SweepTask
from kdseg.evaluation import sweep as sweep_stage
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.metrics.scores import scores
from kdseg.report.colours import colour_keys, colour_numbers, palette, png
from kdseg.results.manifests import read
from kdseg.segmentation.agglomeration import stage as agglomerate
from kdseg.segmentation.fragments import stage as fragments
from kdseg.segmentation.graph import stage as edges
from kdseg.segmentation.segments import stage as segment
from kdseg.volumes.inputs import open_input

Ids = NDArray[np.uint64]
GRID = 64
GAP, SCALE = 8, 2
BORDER, SPLIT, JOIN = 252, 253, 254
COLOURS = {BORDER: (255, 255, 255, 255), SPLIT: (230, 0, 0, 255), JOIN: (0, 0, 0, 255)}


def kdseg(work: Path, chunks: list[int]) -> list[Ids]:
    """Segment with each chunk of the agglomeration; the threshold is the one of least VOI."""
    cube = (GRID, GRID, GRID)
    affinities, labels = work / "affinities.json", work / "labels.json"
    fragment, edge, sweep = (work / f"{name}.json" for name in ("fragments", "edges", "sweep"))
    fragments.run(
        FragmentsTask(
            affinities=affinities,
            manifest=fragment,
            options=FragmentsOptions(block=cube, dust=DUST),
            storage=STORAGE,
            workers=WORKERS,
        )
    )
    edges.run(
        EdgesTask(
            affinities=affinities, fragments=fragment, manifest=edge, options=EdgesOptions(block=cube), workers=WORKERS
        )
    )
    found = []
    for chunk in chunks:
        tree, segmentation = work / f"tree{chunk}.json", work / f"segmentation{chunk}.json"
        options = AgglomerateOptions(chunk=(chunk, chunk, chunk))
        agglomerate.run(
            AgglomerateTask(
                affinities=affinities, fragments=fragment, edges=edge, manifest=tree, options=options, workers=WORKERS
            )
        )
        if not sweep.exists():
            scoring = EvaluateOptions(volumes=("a",), tune_on="a", models=("a",), block=cube)
            sweep_stage.run(
                SweepTask(
                    fragments=fragment,
                    agglomeration=tree,
                    labels=labels,
                    manifest=sweep,
                    options=scoring,
                    workers=WORKERS,
                )
            )
        cut = SegmentOptions(block=cube, threshold=read(sweep).stats["best"])
        segment.run(
            SegmentTask(
                fragments=fragment,
                edges=edge,
                agglomeration=tree,
                manifest=segmentation,
                options=cut,
                storage=STORAGE,
                workers=WORKERS,
            )
        )
        volume = open_input(segmentation).volume
        found.append(volume.read(volume.roi))
    return found


def volara(options: argparse.Namespace, block: int) -> Ids:
    out = options.work / f"volara{block}"
    command = [options.python, options.script, str(options.synth), str(out), str(block), str(WORKERS)]
    subprocess.run(command, check=True, capture_output=True)
    return np.asarray(zarr.open_array(str(out / "seg.zarr" / "segs"), mode="r")[:])


def wrong(ids: Ids, labels: Ids, axis: int, plane: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], int]:
    """Return the pairs across one plane that are split and joined wrongly, and how many pairs there are."""
    (a, b), (s, t) = (np.moveaxis(one, axis, 0)[plane - 1 : plane + 1] for one in (ids, labels))
    known = (a > 0) & (b > 0) & (s > 0) & (t > 0)
    return known & (s == t) & (a != b), known & (s != t) & (a == b), int(known.sum())


def errors(ids: Ids, labels: Ids, block: int, start: int) -> str:
    splits = joins = pairs = 0
    for axis, n in enumerate(ids.shape):
        for plane in range(start, n, block):
            split, join, known = wrong(ids, labels, axis, plane)
            splits, joins, pairs = splits + int(split.sum()), joins + int(join.sum()), pairs + known
    return f"{splits} split, {joins} joined ({100 * (splits + joins) / pairs:.2f} % of {pairs} pairs)"


def panel(ids: Ids, labels: Ids, block: int, section: int) -> NDArray[np.uint8]:
    """One section with borders of blocks, and seams in the two pixels on either side of them."""
    image = colour_numbers(ids[section], *colour_keys([ids[section]], [labels[section]]))
    image[image >= BORDER] -= 100  # colours that mean something else here
    image = np.repeat(np.repeat(image, SCALE, 0), SCALE, 1)
    for axis in (0, 1):
        turned = image if axis == 0 else image.T
        for plane in range(block, ids.shape[axis + 1], block):
            split, join, _ = wrong(ids[section], labels[section], axis, plane)
            line = np.where(split, SPLIT, np.where(join, JOIN, BORDER)).repeat(SCALE)
            marked = line != BORDER
            turned[SCALE * plane - 1] = line
            for row in range(SCALE * plane - 3, SCALE * plane + 2):
                turned[row, marked] = line[marked]
    return image


def picture(rows: list[list[NDArray[np.uint8]]]) -> bytes:
    height, width = rows[0][0].shape
    sheet = np.zeros((2 * height + GAP, 2 * width + GAP), np.uint8)
    for k, row in enumerate(rows):
        for m, one in enumerate(row):
            top, left = k * (height + GAP), m * (width + GAP)
            sheet[top : top + height, left : left + width] = one
    colours = palette()
    colours[1:, 3] = 255
    colours[0] = (255, 255, 255, 255)
    for number, colour in COLOURS.items():
        colours[number] = colour
    return png(sheet, colours)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("synth", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("python")
    parser.add_argument("script")
    parser.add_argument("--picture", type=Path, default=Path("docs/seams.png"))
    parser.add_argument("--section", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    shutil.rmtree(options.work, ignore_errors=True)
    options.work.mkdir(parents=True)
    group = zarr.open_group(str(options.synth), mode="r")
    labels, affs = np.asarray(group["labels"]), group["affs"]
    put(options.work / "labels.json", labels)
    put(options.work / "affinities.json", affs[:], offsets=[list(offset) for offset in affs.attrs["offsets"]])
    sizes = [2 * GRID, GRID]
    found = {"volara": [volara(options, block) for block in sizes], "kdseg": kdseg(options.work, sizes)}
    for tool, variants in found.items():
        for size, ids in zip(sizes, variants, strict=True):
            block = size if tool == "volara" else GRID
            what = f"block {size}" if tool == "volara" else f"fragments' block {GRID}, agglomeration's chunk {size}"
            print(f"{tool}, {what}: at faces {errors(ids, labels, block, block)}; midway "
                  f"{errors(ids, labels, block, block // 2)}")  # fmt: skip
        one, other = variants
        apart = scores(block_contingency(one, other))
        print(f"{tool}, one from the other: VI {apart.voi:.4f} bits, {np.count_nonzero(one != other)} ids differ")
    rows = [
        [
            panel(ids, labels, size if tool == "volara" else GRID, options.section)
            for size, ids in zip(sizes, one, strict=True)
        ]
        for tool, one in found.items()
    ]
    png = picture(rows)
    options.picture.write_bytes(png)
    print(f"{options.picture}: {len(png)} bytes, section {options.section}")


if __name__ == "__main__":
    main()
