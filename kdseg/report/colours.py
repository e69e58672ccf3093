"""Colours of objects: the same id has the same colour everywhere, and errors stand out."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CONTOUR = 255
"""Number of the contour's colour in the palette; 0 is transparent, 1 to 254 are objects."""
_FREE = np.uint64(1) << np.uint64(63)
"""Set in the colour key of a segment that stands for no ground-truth object."""


def palette() -> NDArray[np.uint8]:
    """Return uint8 (256, 4): transparent, 254 half-transparent object colours, and the contour's."""
    colours = np.zeros((256, 4), np.uint8)
    for k in range(1, CONTOUR):
        # Steps of the golden ratio around the colour wheel keep successive colours apart.
        rgb = colorsys.hls_to_rgb(k * 0.61803398875 % 1, (0.45, 0.6, 0.7)[k % 3], (0.95, 0.75)[k % 2])
        colours[k] = [*(round(255 * c) for c in rgb), 120]
    colours[CONTOUR] = (255, 255, 255, 235)
    return colours


def png(image: NDArray[np.uint8], colours: NDArray[np.uint8] | None = None) -> bytes:
    """Return an image as the bytes of a PNG file.

    Args:
        image: uint8 (height, width): grey values, or numbers of colours.
        colours: uint8 (256, 4), red, green, blue, opacity.
    """
    picture, transparency = Image.fromarray(image), None
    if colours is not None:
        picture.putpalette(colours[:, :3].tobytes())
        transparency = colours[:, 3].tobytes()
    file = io.BytesIO()
    picture.save(file, "png", optimize=True, transparency=transparency)
    return file.getvalue()


def data_uri(image: bytes) -> str:
    """Return a PNG as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def colour_keys(
    segments: Sequence[NDArray[Any]], labels: Sequence[NDArray[Any]]
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Match segments with ground-truth objects by overlap, so that a correct segment has its object's colour.

    Each segment goes for the object it overlaps most; of those that go for one object, the one of largest
    overlap gets its colour. So the smaller parts of a split object, and the smaller objects of a merge, show
    in another colour than the ground truth.

    Args:
        segments: integer arrays, e.g. one per section; 0 is background.
        labels: ground truth of the same shapes; 0 is unlabelled.

    Returns:
        Segment ids, ascending, and a uint64 key per id: the matched object's id, else the segment's own id
        with the highest bit set.
    """
    ours = np.concatenate([s.ravel() for s in segments]).astype(np.uint64)
    truth = np.concatenate([t.ravel() for t in labels]).astype(np.uint64)
    ids = np.unique(ours[ours > 0])
    keys = ids | _FREE
    both = (ours > 0) & (truth > 0)
    if not both.any():
        return ids, keys
    pairs, counts = np.unique(np.stack([ours[both], truth[both]]), axis=1, return_counts=True)
    taken_ids, taken_labels = set(), set()
    best = {}
    for k in np.argsort(-counts, kind="stable"):
        segment, label = pairs[:, k].tolist()
        if segment in taken_ids:
            continue
        taken_ids.add(segment)
        if label not in taken_labels:
            taken_labels.add(label)
            best[segment] = label
    for segment, label in best.items():
        keys[np.searchsorted(ids, np.uint64(segment))] = label
    return ids, keys


def colour_numbers(
    ids: NDArray[Any], known: NDArray[np.uint64] | None = None, keys: NDArray[np.uint64] | None = None
) -> NDArray[np.uint8]:
    """Return uint8 numbers of the palette for an image of ids: 0 for 0, else 1 to 254 by hash of the key.

    Args:
        ids: integer (height, width).
        known: ids that have a key, ascending, as ``colour_keys`` returns them; default: an id is its own key.
        keys: the keys of ``known``.
    """
    wide = ids.astype(np.uint64)
    key = wide
    if known is not None and keys is not None and len(known):
        key = keys[np.minimum(np.searchsorted(known, wide), len(known) - 1)]
    return np.where(wide == 0, 0, 1 + _mix(key) % np.uint64(CONTOUR - 1)).astype(np.uint8)


def contours(ids: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels whose id differs from that of the next pixel to the right or below."""
    lines = np.zeros(ids.shape, bool)
    lines[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    lines[:-1] |= ids[:-1] != ids[1:]
    return lines


def _mix(key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele et al. 2014): neighbouring ids get unrelated colours."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
