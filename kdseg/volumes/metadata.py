"""Voxel size and position in the metadata of images: OME-Zarr, and attributes of plain arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdseg.errors import VoxelSizeError
from kdseg.geometry import VoxelSize, triple

AXES = ("z", "y", "x")
TO_NM = {"angstrom": 0.1, "mm": 1e6, "meter": 1e9}
TO_NM |= {"pm": 1e-3, "å": 0.1, "\u00c5": 0.1, "\u212b": 0.1, "cm": 1e7, "m": 1e9, "inch": 2.54e7}
TO_NM |= dict.fromkeys(("nm", "nanometer"), 1.0)
TO_NM |= dict.fromkeys(("micrometer", "micron", "um", "µm", "μm", "\\u00b5m"), 1e3)
"""Units of length as OME-Zarr, OME-TIFF and ImageJ name them; the last one is how ImageJ escapes it."""


def image_attributes(
    name: str, voxel_size: VoxelSize, offset: VoxelSize, levels: int, channels: bool
) -> dict[str, Any]:
    """Return the metadata of an OME-Zarr 0.5 image whose levels are halved along all axes."""
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channels else []
    axes += [{"name": axis, "type": "space", "unit": "nanometer"} for axis in AXES]
    one, zero = ([1.0], [0.0]) if channels else ([], [])
    datasets = []
    for level in range(levels):
        scale = [v * 2**level for v in voxel_size]
        # A halved voxel's centre lies between those of the voxels it stands for.
        shift = [o + (s - v) / 2 for o, s, v in zip(offset, scale, voxel_size, strict=True)]
        transforms = [
            {"type": "scale", "scale": one + scale},
            {"type": "translation", "translation": zero + shift},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    return {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}


def in_nm(
    scale: list[float], translation: list[float], units: list[str | None], path: str | Path
) -> tuple[VoxelSize | None, VoxelSize]:
    """Return voxel size, None where nobody knows the unit, and position in nm.

    Raises:
        VoxelSizeError: if a unit is not one of length.
    """
    if None in units and not any(translation):
        # A scale without a unit is a number of nobody knows what: as good as no voxel size.
        return None, (0.0, 0.0, 0.0)
    unknown = [unit for unit in units if unit not in TO_NM]
    if unknown:
        raise VoxelSizeError(f"{path} has axes in {unknown}, expected units of length such as 'nanometer'")
    factors = [TO_NM[str(unit)] for unit in units]
    voxel_size = triple(s * f for s, f in zip(scale, factors, strict=True))
    return voxel_size, triple(t * f for t, f in zip(translation, factors, strict=True))


def transforms(image: dict[str, Any], dataset: dict[str, Any], ndim: int) -> tuple[list[float], list[float]]:
    """Return scale and translation of a resolution level, in the units of the axes."""
    scale, translation = [1.0] * ndim, [0.0] * ndim
    # The image's own transforms are applied after those of its resolution level.
    for step in [*dataset["coordinateTransformations"], *image.get("coordinateTransformations", [])]:
        if step["type"] == "scale":
            scale = [a * b for a, b in zip(scale, step["scale"], strict=True)]
            translation = [a * b for a, b in zip(translation, step["scale"], strict=True)]
        elif step["type"] == "translation":
            translation = [a + b for a, b in zip(translation, step["translation"], strict=True)]
    return scale, translation


def plain(attributes: dict[str, Any]) -> tuple[VoxelSize | None, VoxelSize]:
    """Return voxel size and position in nm from the attributes of a plain array, as funlib writes them."""
    size = attributes.get("voxel_size", attributes.get("resolution"))
    offset = attributes.get("offset", (0.0, 0.0, 0.0))
    return (None if size is None else _three(size)), _three(offset)


def _three(values: Any) -> VoxelSize:
    try:
        return triple(float(v) for v in values)
    except (TypeError, ValueError) as error:
        raise VoxelSizeError(f"expected three numbers (z, y, x) in nm, got {values!r}") from error
