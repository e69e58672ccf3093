"""Voxel size and position in the metadata of images: OME-Zarr, and attributes of arrays in zarr and HDF5."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdseg.errors import MissingError, ShapeError, VoxelSizeError
from kdseg.geometry import VoxelSize, triple
from kdseg.volumes.axes import SPACE, Layout

_PREFIXES = {
    **{"yocto": -24, "zepto": -21, "atto": -18, "femto": -15, "pico": -12, "nano": -9, "micro": -6, "milli": -3},
    **{"centi": -2, "deci": -1, "": 0, "hecto": 2, "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "peta": 15, "exa": 18},
    **{"zetta": 21, "yotta": 24},
}
TO_NM = {f"{prefix}meter": 10.0 ** (power + 9) for prefix, power in _PREFIXES.items()}
TO_NM |= {"angstrom": 0.1, "inch": 2.54e7, "foot": 3.048e8, "yard": 9.144e8, "mile": 1.609344e12}
TO_NM |= {"parsec": 3.0856775814913673e25}
TO_NM |= {"pm": 1e-3, "å": 0.1, "Å": 0.1, "\u212b": 0.1, "nm": 1.0, "mm": 1e6, "cm": 1e7, "m": 1e9, "km": 1e12}
TO_NM |= dict.fromkeys(("micron", "um", "µm", "μm", "\\u00b5m"), 1e3)
"""Units of length: all names of OME-Zarr, and symbols of OME-TIFF, ImageJ and funlib; one is how ImageJ escapes µm."""
_READ = re.compile(r"0\.[456](?!\d)")
"""Versions of OME-Zarr; release candidates of 0.6 begin so, too."""
_SIZES = ("resolution", "voxel_size")
"""Attributes with the size of voxels, of CREMI and funlib."""
_SIZE_UM = "element_size_um"
"""Attribute with the size of voxels in µm, of ImageJ's HDF5."""


class Unscaled(NamedTuple):
    """Metadata in units that are no lengths, or in none.

    Attributes:
        units: (z, y, x), as the metadata name them.
        start: voxels, (z, y, x), position of the first voxel; None if the metadata do not say.
    """

    units: tuple[Any, ...]
    start: VoxelSize | None


@dataclass(frozen=True)
class Place:
    """Voxel size and position of a volume, as far as its metadata say.

    Attributes:
        voxel_size: nm, (z, y, x); None if they do not say.
        offset: nm, (z, y, x), position of the first voxel; 0 if they do not say.
        placed: whether they say where it lies.
        unscaled: what they say in other units than those of length.
    """

    voxel_size: VoxelSize | None = None
    offset: VoxelSize = (0.0, 0.0, 0.0)
    placed: bool = False
    unscaled: Unscaled | None = None

    def sized(self, voxel_size: VoxelSize) -> Place:
        """Return it with a voxel size in nm, where it has none."""
        start = None if self.unscaled is None else self.unscaled.start
        if start is None:
            return Place(voxel_size, self.offset, self.placed)
        return Place(voxel_size, triple(n * v for n, v in zip(start, voxel_size, strict=True)), placed=True)


class Level(NamedTuple):
    """Metadata of one resolution level of an OME-Zarr image.

    Attributes:
        path: of its array, below the image.
        names: of all axes, in order.
        units: of all axes, None where there is none.
        scale: of one voxel, in units.
        translation: of the first voxel, in units.
    """

    path: str
    names: list[str]
    units: list[Any]
    scale: list[float]
    translation: list[float]


def image_attributes(
    name: str, voxel_size: VoxelSize, offset: VoxelSize, levels: int, *, channels: bool, labels: bool
) -> dict[str, Any]:
    """Return the metadata of an OME-Zarr 0.5 image whose levels are halved along all axes.

    Args:
        name: of the image.
        voxel_size: nm, (z, y, x).
        offset: nm, (z, y, x), position of the first voxel.
        levels: number of them.
        channels: whether it has an axis of channels, the first one.
        labels: whether its voxels are ids, which viewers then show in colours of their own. The image that they are
            labels of is not named: the path to it, which is relative, would lead nowhere in a copy or in a bucket.
    """
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}] if channels else []
    axes += [{"name": axis, "type": "space", "unit": "nanometer"} for axis in SPACE]
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
    image = {"version": "0.5", "multiscales": [{"name": name, "axes": axes, "datasets": datasets}]}
    # its version is that of the whole: some readers refuse one of its own, which 0.5 does not have
    return image | {"image-label": {}} if labels else image


def level_of(ome: Mapping[str, Any], level: int, where: str | Path) -> Level:
    """Return what the metadata of an image of OME-Zarr 0.4, 0.5 or 0.6 say of one of its levels.

    Raises:
        MissingError: if there is no such level.
        VoxelSizeError: if they are of another version, or not understood.
    """
    try:
        image = ome["multiscales"][0]
        version = str(ome.get("version", image.get("version", "0.4")))
        if not _READ.match(version):
            raise VoxelSizeError(
                f"{where} says that it is of OME-Zarr {version}, which is not read: write it as 0.4, 0.5 or 0.6"
            )
        datasets = image["datasets"]
        if level >= len(datasets):
            raise MissingError(f"{where} has {len(datasets)} resolution levels, level {level} was asked for")
        dataset = datasets[level]
        steps = list(dataset["coordinateTransformations"])
        if "coordinateSystems" in image:  # 0.6
            axes = _axes_of(image, steps)
        else:
            axes = image["axes"]
            steps += image.get("coordinateTransformations", [])  # applied after those of the level
        scale, translation = _applied(steps, len(axes), where)
        names, units = [str(axis["name"]) for axis in axes], [axis.get("unit") for axis in axes]
        return Level(str(dataset["path"]), names, units, scale, translation)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, MissingError | VoxelSizeError):
            raise
        raise VoxelSizeError(
            f"the OME metadata of {where} are not understood: {error!r}; expected those of 0.4, 0.5 or 0.6"
        ) from error


def _axes_of(image: Mapping[str, Any], steps: list[Any]) -> list[Any]:
    """Return the axes that the transformations of a level lead to; add the one that gives array axes a unit."""
    systems = {system["name"]: system["axes"] for system in image["coordinateSystems"]}
    (only,) = steps
    axes: list[Any] = systems[_system(only["output"])]
    outer = image.get("coordinateTransformations", [])
    if len(outer) == 1 and all(axis.get("type") == "array" for axis in axes):
        steps += outer
        axes = systems[_system(outer[0]["output"])]
    return axes


def _system(end: Any) -> str:
    """Return the coordinate system at one end of a transformation: its name, or an object with it, as drafts differ."""
    return str(end["name"] if isinstance(end, dict) else end)


def _applied(steps: Sequence[Any], ndim: int, where: str | Path) -> tuple[list[float], list[float]]:
    """Return scale and translation of a sequence of transformations.

    Raises:
        VoxelSizeError: if there are others among them.
    """
    scale, translation = [1.0] * ndim, [0.0] * ndim
    for step in steps:
        kind = step["type"]
        if kind == "sequence":
            more, shift = _applied(step["transformations"], ndim, where)
        elif kind in ("scale", "translation", "identity"):
            more = [float(v) for v in step["scale"]] if kind == "scale" else [1.0] * ndim
            shift = [float(v) for v in step["translation"]] if kind == "translation" else [0.0] * ndim
        else:
            raise VoxelSizeError(
                f"the OME metadata of {where} have a transformation of type {kind!r}, expected scale and translation "
                "alone: resample it"
            )
        scale = [a * b for a, b in zip(scale, more, strict=True)]
        translation = [a * b + c for a, b, c in zip(translation, more, shift, strict=True)]
    return scale, translation


def placed(
    scale: Sequence[float] | None, translation: Sequence[float] | None, units: Sequence[Any], where: str | Path
) -> Place:
    """Return voxel size and position in nm.

    Args:
        scale: of one voxel, (z, y, x), in units; None if nobody says.
        translation: of the first voxel, (z, y, x), in units; None if nobody says.
        units: (z, y, x).
        where: name of the array, for messages.

    Raises:
        VoxelSizeError: if the scale is not positive.
    """
    if scale is not None and not all(0 < v < float("inf") for v in scale):
        raise VoxelSizeError(f"{where} has the voxel size {tuple(scale)}, expected three positive numbers")
    factors = [nm_per(unit) for unit in units]
    if None not in factors:
        size, offset = (
            None if values is None else triple(v * float(f or 0) for v, f in zip(values, factors, strict=True))
            for values in (scale, translation)
        )
        return Place(size, offset or (0.0, 0.0, 0.0), translation is not None)
    start = None
    if translation is not None and any(translation):
        # a place without a unit is one in voxels; without a place, 0 is as little known as the scale
        start = triple(t / s for t, s in zip(translation, scale or (1.0, 1.0, 1.0), strict=True))
    return Place(unscaled=Unscaled(tuple(units), start))


def nm_per(unit: Any) -> float | None:
    """Return the nm of a unit of length; symbols as they are, names in any spelling."""
    if not isinstance(unit, str):
        return None
    symbol = unit.strip()
    name = symbol.lower().replace("metre", "meter").removesuffix("s")
    return TO_NM.get(symbol, TO_NM.get(name) if len(name) > 3 else None)


def axis_names(attributes: Mapping[str, Any], where: str | Path) -> dict[str, list[str]]:
    """Return the names of the axes in the attributes of an array, by what gives them: xarray, funlib or vigra.

    Raises:
        ShapeError: if they are not understood.
    """
    found = {f"`{key}`": _texts(attributes[key]) for key in ("_ARRAY_DIMENSIONS", "axis_names") if key in attributes}
    if "axistags" in attributes:
        try:
            tags = json.loads(_texts(attributes["axistags"])[0])
            found["`axistags`"] = [str(tag["key"]) for tag in tags["axes"]]
        except (ValueError, TypeError, KeyError) as error:
            raise ShapeError(f"the attribute axistags of {where} is not understood: {error!r}; remove it") from error
    return found


def _texts(value: Any) -> list[str]:
    """Return a text, or a list of texts, of JSON or of HDF5, as a list."""
    several = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [value]
    return [
        one.decode(errors="replace") if isinstance(one, bytes) else "" if one is None else str(one) for one in several
    ]


def plain(attributes: Mapping[str, Any], order: Layout, ndim: int, where: str | Path) -> Place:
    """Return what the attributes of an array say of voxel size and position, in nm or in `units`.

    Args:
        attributes: of an array of zarr or HDF5.
        order: of its axes; attributes have one value for each axis in space, or for each axis, as they lie in the file.
        ndim: number of its axes.
        where: name of the array, for messages.

    Raises:
        VoxelSizeError: if there are not three numbers each, or they contradict each other.
    """

    def numbers(name: str) -> VoxelSize:
        value = attributes[name]
        try:
            found = order.space([float(v) for v in value], ndim)
        except (TypeError, ValueError):
            found = None
        if found is None:
            raise VoxelSizeError(f"the attribute {name} of {where} is {value!r}, expected three numbers (z, y, x)")
        return triple(found)

    said = _texts(attributes.get("units", "nm"))
    units = order.space(said * 3 if len(said) == 1 else said, ndim)
    if units is None:
        raise VoxelSizeError(f"the attribute units of {where} is {said}, expected one, or one for each axis")
    sizes = {name: numbers(name) for name in _SIZES if name in attributes}
    offset = numbers("offset") if "offset" in attributes else None
    _expect_alike(sizes, where)
    place = placed(next(iter(sizes.values()), None), offset, units, where)
    if _SIZE_UM in attributes:
        size = triple(1e3 * v for v in numbers(_SIZE_UM))
        place = place if place.voxel_size else place.sized(size)
        _expect_alike({"voxel size, nm": place.voxel_size or size, f"{_SIZE_UM}, in nm": size}, where)
    return place


def _expect_alike(sizes: Mapping[str, VoxelSize], where: str | Path) -> None:
    for size in sizes.values():
        if any(not math.isclose(a, b, rel_tol=1e-3) for a, b in zip(size, next(iter(sizes.values())), strict=True)):
            raise VoxelSizeError(f"the attributes of {where} contradict each other: {dict(sizes)}; remove all but one")
