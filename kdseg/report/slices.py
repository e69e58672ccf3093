"""Central sections of the scored volumes: raw data, ground truth, and what each model makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import VoxelSizeError
from kdseg.geometry import Roi, VoxelSize, nearest_count, triple
from kdseg.report.colours import CONTOUR, colour_keys, colour_numbers, contours, data_uri, palette, png
from kdseg.report.results import Results
from kdseg.volumes.volume import Volume, open_volume

BUDGET = 1_100_000
"""Pixels of greyscale in all sections together: a pixel takes about a byte of the page."""
LARGEST, SMALLEST = 320, 64
"""Voxels along a side of a section."""
_AXES = {"xy": 0, "xz": 1}
"""Plane → the axis that it cuts."""


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        caption: what it is.
        alt: the same for readers who do not see it.
        image: data address of the image that lies on top; None shows the raw data alone.
        on_raw: whether the raw data lie below.
    """

    caption: str
    alt: str
    image: str | None
    on_raw: bool


@dataclass(frozen=True)
class Section:
    """One plane through one volume; every column belongs to one model.

    Attributes:
        name: unique on the page, fit for a CSS class.
        title: volume and plane.
        detail: where it lies, and its extent.
        aspect: width over height in nm.
        raw: data address of the raw data; None if they are not there.
        columns: a heading, then what lies below it.
    """

    name: str
    title: str
    detail: str
    aspect: float
    raw: str | None
    columns: tuple[tuple[str, tuple[Picture, ...]], ...]


_Column = tuple[str, list[tuple[Picture, ...]]]
"""A heading, and its pictures in each plane."""


@dataclass(frozen=True)
class _View:
    """The sections of one volume; ``rois`` count the voxels of ``frame``, one per plane."""

    results: Results
    volume: str
    frame: Volume
    rois: tuple[Roi, ...]

    def planes(self, key: str) -> list[NDArray[Any]] | None:
        """Return the sections of a store, None if it is not there."""
        path = self.results.store(key)
        if path is None:
            return None
        volume = open_volume(path)
        return [read_section(volume, self.frame, roi) for roi in self.rois]


def sections(results: Results) -> list[Section]:
    """Return two sections, xy and xz, through the centre of each scored volume whose data are there.

    In stacks of unrelated images there is no xz.
    """
    evaluate = results.config.evaluate
    images = max(1, len(evaluate.volumes) * len(_axes(results)) * (1 + len(evaluate.models)))
    side = int(np.clip((BUDGET / images) ** 0.5, SMALLEST, LARGEST))
    return [section for volume in evaluate.volumes for section in _volume_sections(results, volume, side)]


def _axes(results: Results) -> dict[str, int]:
    """Return the axis across each plane that is shown, by its name."""
    return {plane: axis for plane, axis in _AXES.items() if axis == 0 or not results.config.sections}


def window(frame: Roi, axis: int, side: int) -> Roi:
    """Return the central section of a box: one voxel along ``axis``, at most ``side`` along the others."""
    return frame.central(triple(1 if a == axis else side for a in range(3)))


def read_section(volume: Volume, frame: Volume, roi: Roi) -> NDArray[Any]:
    """Return the voxels of one volume at a section given in the voxels of another one.

    Args:
        volume: what to read.
        frame: the volume whose voxels ``roi`` counts; both have a voxel size.
        roi: one voxel thick along one axis; voxels that ``volume`` does not have read 0.

    Returns:
        (height, width), channels first if there are any.

    Raises:
        VoxelSizeError: if the voxel sizes differ.
    """
    size = frame.voxel_size
    if size is None or volume.voxel_size is None or not np.allclose(size, volume.voxel_size, rtol=1e-3):
        raise VoxelSizeError(f"{volume.where} has voxels of {volume.voxel_size} nm, expected {size} nm")
    shift = [round((a - b) / s) for a, b, s in zip(frame.offset, volume.offset, size, strict=True)]
    wanted = roi.shift((shift[0], shift[1], shift[2]))
    common = wanted.intersect(volume.roi)
    lead = () if volume.channels is None else (volume.channels,)
    found = np.zeros((*lead, *roi.shape), volume.dtype)
    if common.size:
        found[(..., *common.slices(wanted))] = volume.read(common)
    return found.squeeze(len(lead) + roi.shape.index(1))


def _volume_sections(results: Results, volume: str, side: int) -> list[Section]:
    stores = (results.store(f"volumes/{volume}/{kind}") for kind in ("labels", "raw"))
    path = next((path for path in stores if path is not None), None)
    frame = None if path is None else open_volume(path)
    if frame is None or frame.voxel_size is None:
        return []
    axes = _axes(results)
    rois = tuple(window(frame.roi, axis, side) for axis in axes.values())
    view = _View(results, volume, frame, rois)
    raw, truth = view.planes(f"volumes/{volume}/raw"), view.planes(f"volumes/{volume}/labels")
    columns = [_data_column(view, raw is not None, truth)]
    columns += [_model_column(view, model, truth) for model in results.config.evaluate.models]
    columns += _baseline_column(view, truth)
    return [
        Section(
            f"{volume}-{plane}",
            f"{volume}, {plane} plane",
            _detail(frame.voxel_size, roi, axis),
            _aspect(frame.voxel_size, roi, axis),
            None if raw is None else data_uri(png(raw[k].astype(np.uint8))),
            tuple((heading, pictures[k]) for heading, pictures in columns if pictures[k]),
        )
        for k, ((plane, axis), roi) in enumerate(zip(axes.items(), rois, strict=True))
    ]


def _data_column(view: _View, has_raw: bool, truth: list[NDArray[Any]] | None) -> _Column:
    raw = Picture("raw data", f"Raw data of {view.volume}", None, True)
    pictures = []
    for k in range(len(view.rois)):
        found = [raw] if has_raw else []
        if truth is not None:
            found.append(
                Picture("ground truth", f"Ground truth of {view.volume} over the raw data", _overlay(truth[k]), True)
            )
        pictures.append(tuple(found))
    return "data", pictures


def _model_column(view: _View, model: str, truth: list[NDArray[Any]] | None) -> _Column:
    key = f"{model}/{view.volume}"
    affinities, segments = view.planes(f"{key}/affinities"), view.planes(f"{key}/segmentation")
    overlays = _matched(segments, truth)
    threshold = view.results.number(f"{key}/segmentation", "threshold")
    at = "" if threshold is None else f" at {threshold:g}"
    pictures = []
    for k in range(len(view.rois)):
        found = []
        if affinities is not None:
            alt = f"Mean nearest affinity that {model} predicts on {view.volume}; bright is inside of a neuron"
            nearest = affinities[k][: nearest_count(view.results.config.offsets)]
            found.append(Picture("mean nearest affinity", alt, _grey(nearest), False))
        if overlays:
            alt = f"Segmentation by {model}{at} of {view.volume}, over the raw data"
            found.append(Picture(f"segmentation{at}", alt, overlays[k], True))
        pictures.append(tuple(found))
    return model, pictures


def _baseline_column(view: _View, truth: list[NDArray[Any]] | None) -> list[_Column]:
    overlays = _matched(view.planes(f"volumes/{view.volume}/baseline"), truth)
    alt = f"Baseline segmentation of {view.volume}, over the raw data"
    return [("baseline", [(Picture("segmentation", alt, overlay, True),) for overlay in overlays])] if overlays else []


def _matched(segments: list[NDArray[Any]] | None, truth: list[NDArray[Any]] | None) -> list[str]:
    if segments is None:
        return []
    # Both planes are matched together, so that a segment has one colour in both.
    ids, keys = colour_keys(segments, truth or [np.zeros_like(s) for s in segments])
    return [_overlay(segment, ids, keys) for segment in segments]


def _overlay(ids: NDArray[Any], known: NDArray[np.uint64] | None = None, keys: NDArray[np.uint64] | None = None) -> str:
    numbers = colour_numbers(ids, known, keys)
    numbers[contours(ids)] = CONTOUR
    return data_uri(png(numbers, palette()))


def _grey(affinities: NDArray[Any]) -> str:
    mean = affinities.mean(axis=0).round().astype(np.uint8)
    # 32 grey levels are enough to look at, and take half of the bytes.
    return data_uri(png(mean // 8 * 8))


def _detail(voxel_size: VoxelSize, roi: Roi, axis: int) -> str:
    width, height = (roi.shape[a] * voxel_size[a] / 1000 for a in _plane_axes(axis))
    return f"{'zyx'[axis]} = {roi.offset[axis]} voxels, {width:.3g} x {height:.3g} µm"


def _aspect(voxel_size: VoxelSize, roi: Roi, axis: int) -> float:
    across, down = _plane_axes(axis)
    return round(roi.shape[across] * voxel_size[across] / (roi.shape[down] * voxel_size[down]), 4)


def _plane_axes(axis: int) -> tuple[int, int]:
    """Return the axes that run across and down a section."""
    down, across = (a for a in range(3) if a != axis)
    return across, down
