"""A picture of the crop that a training validates on: raw data, ground truth, and what the network makes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdseg.geometry import Offsets, Roi, in_sections, nearest_count, triple
from kdseg.report.colours import CONTOUR, colour_numbers, contours, palette
from kdseg.results.files import replacing
from kdseg.training.validation import Validation

_GAP = 4
"""White pixels between two parts."""
_SMALL = 256
"""Pixels that the sides of a part have about, if it is not larger."""


def write_picture(path: Path, crop: Validation, affinities: NDArray[np.uint8] | None, offsets: Offsets) -> None:
    """Write a picture as a PNG file that is there whole or not at all.

    Raises:
        UnreadableError: if the disk does not take it.
    """
    with replacing(path) as file:
        Image.fromarray(picture(crop, affinities, offsets)).save(file, "png")


def middle(crop: Validation) -> Validation:
    """Return the middle section of a crop alone, which is predicted in a part of the time."""
    depth, *plane = crop.roi.shape
    z, y, x = crop.roi.offset
    section = depth // 2
    return crop._replace(roi=Roi((z + section, y, x), triple([1, *plane])), labels=crop.labels[section : section + 1])


def picture(crop: Validation, affinities: NDArray[np.uint8] | None, offsets: Offsets) -> NDArray[np.uint8]:
    """Return uint8 (height, width, 3): the middle planes xy and xz, from left to right raw, labels and affinities.

    In stacks of unrelated images, and of a section, there is no xz. Affinities are the means of the nearest ones, 255
    is inside of a neuron.

    Args:
        crop: what to show.
        affinities: uint8 (c, z, y, x) of all of it; None if nothing is predicted yet, and that part is left out.
        offsets: one per channel.
    """
    raw: NDArray[np.uint8] = crop.source.raw.read(crop.roi)
    parts = [_grey(raw), _coloured(raw, crop.labels)]
    if affinities is not None:
        parts.append(_grey(affinities[: nearest_count(offsets)].mean(axis=0).round().astype(np.uint8)))
    depth, height, width = raw.shape
    z, _, x = crop.source.voxel_size
    scale = max(1, _SMALL // max(height, width))
    rows = [_beside([part[depth // 2] for part in parts], scale, scale)]
    if depth > 1 and not in_sections(offsets):
        rows.append(_beside([part[:, height // 2] for part in parts], max(1, round(scale * z / x)), scale))
    return np.concatenate([rows[0], *(part for row in rows[1:] for part in (_white(_GAP, row.shape[1]), row))])


def _grey(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(values[..., None], 3, axis=-1)


def _coloured(raw: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return colours of labels over raw data, with the contours of sections."""
    numbers = colour_numbers(labels)
    numbers[np.stack([contours(section) for section in labels])] = CONTOUR
    colours = palette()[numbers].astype(np.uint16)
    opacity = colours[..., 3:]
    mixed = (opacity * colours[..., :3] + (255 - opacity) * raw[..., None]) // 255
    return mixed.astype(np.uint8)


def _beside(planes: list[NDArray[np.uint8]], down: int, across: int) -> NDArray[np.uint8]:
    """Return planes (height, width, 3) beside each other, each pixel so many pixels high and wide."""
    large = [plane.repeat(down, axis=0).repeat(across, axis=1) for plane in planes]
    gap = _white(large[0].shape[0], _GAP)
    return np.concatenate([large[0], *(part for plane in large[1:] for part in (gap, plane))], axis=1)


def _white(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, np.uint8)
