"""Draw a section of raw data, and beside it the same with its segments.

python benchmarks/picture.py RAW.zarr SEGMENTATION.zarr Z OUT.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdseg.geometry import Roi
from kdseg.report.colours import CONTOUR, colour_numbers, contours, palette, png
from kdseg.volumes.volume import open_volume


def main() -> None:
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    raw, segments = (section(Path(path), int(sys.argv[3])) for path in sys.argv[1:3])
    numbers = colour_numbers(segments)
    numbers[contours(segments)] = CONTOUR
    # 6 x 6 x 6 colours and 40 greys: an image of one palette is a tenth of one in full colour
    colours = palette()
    opacity = colours[numbers][..., 3:].astype(float) / 255
    shown = (colours[numbers][..., :3] * opacity + raw[..., None] * (1 - opacity)) / 255
    cube = np.round(shown * 5).astype(np.uint8)
    overlay = 36 * cube[..., 0] + 6 * cube[..., 1] + cube[..., 2]
    grey = (216 + raw.astype(int) * 39 // 255).astype(np.uint8)
    table = np.zeros((256, 4), np.uint8)
    steps = np.arange(216)
    table[:216] = np.stack([steps // 36 * 51, steps // 6 % 6 * 51, steps % 6 * 51, np.full(216, 255)], axis=-1)
    table[216:] = np.concatenate([np.tile((np.arange(40) * 255 // 39)[:, None], 3), np.full((40, 1), 255)], axis=1)
    Path(sys.argv[4]).write_bytes(png(np.hstack([grey, overlay.astype(np.uint8)]), table))


def section(path: Path, z: int) -> NDArray[np.generic]:
    """Return one section of a volume."""
    volume = open_volume(path)
    _, y, x = volume.roi.shape
    return volume.read(Roi((z, 0, 0), (1, y, x)))[0]


if __name__ == "__main__":
    main()
