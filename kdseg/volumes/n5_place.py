"""Size and place in attributes of N5, which has no standard for them: as neuroglancer, Paintera and others say them.

All have one value for each axis of a dataset, or for each in space alone, in the order of `dimensions`: x, y, z, unless
`axes` says another. They are inherited: what a dataset lacks, the groups say that it lies in.

- `axes`: names.
- `resolution` with `units` (nm if there are none), or `pixelResolution` with its unit: of the dataset that says so, or
  of the finest of a group.
- `downsamplingFactors`: of a dataset, how much coarser it is than that; of a group, also called `scales`, of each of
  its datasets `s0`, `s1`, ….
- `offset`: where the finest one begins, in the unit of `resolution`.
- `transform` of a dataset, or of `multiscales` of its group: `scale`, `translate` and `units` by the names of the axes.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdseg.errors import VoxelSizeError
from kdseg.volumes.axes import Layout
from kdseg.volumes.metadata import Place, nm_per, placed

Attributes = Mapping[str, Any]
_LEVEL = re.compile(r"s(\d+)\Z")
"""Name of a dataset of a group of resolutions."""
_OF_ZARR = ("axis_names", "voxel_size", "_ARRAY_DIMENSIONS")
"""Attributes of funlib and xarray, which stand in N5 that was written by zarr for Python."""
_SHOWN = 100
"""Characters of a value in messages."""

log = logging.getLogger(__name__)


class Reader:
    """Size and place of one dataset."""

    def __init__(self, folder: Path, names: Sequence[str], chain: Sequence[Attributes]) -> None:
        self.folder, self.names, self.chain = folder, names, chain
        self.own, self.above = chain[0], chain[1:]

    def place(self, order: Layout) -> Place:
        """Return size and place.

        Args:
            order: of the axes in the opposite order of the file.
        """
        self._expect_understood()
        transformed, plain = self._of_transform(order), self._of_resolution(order)
        if transformed is None or plain is None:
            return transformed or plain or Place()
        size = transformed.voxel_size or plain.voxel_size
        if size is None:
            return plain if plain.placed else transformed
        a, b = (one if one.voxel_size else one.sized(size) for one in (transformed, plain))
        sizes_differ = a.voxel_size and b.voxel_size and not _alike(a.voxel_size, b.voxel_size)
        if sizes_differ or (a.placed and b.placed and not _alike(a.offset, b.offset)):
            raise VoxelSizeError(
                f"the attributes of {self.folder} contradict each other: voxels of {a.voxel_size} nm at {a.offset} by "
                f"`transform`, {b.voxel_size} nm at {b.offset} by the others: remove one"
            )
        return a if a.placed or not b.placed else b

    def _of_transform(self, order: Layout) -> Place | None:
        """Return what `transform` says, of this dataset or in `multiscales` of its group."""
        found = self.own.get("transform")
        if found is None:
            found = self._of_group().get("transform")
        if found is None:
            return None
        try:
            axes = [str(axis) for axis in found["axes"]]
            kinds = {"scale": found["scale"], "translate": found.get("translate"), "units": found.get("units")}
            by_name = {key: dict(zip(axes, values, strict=True)) for key, values in kinds.items() if values is not None}
            scale = self._in_space(order, [float(by_name["scale"][name]) for name in self.names], 1.0)
            units = self._in_space(order, [by_name.get("units", {}).get(name) for name in self.names], None)
            start = by_name.get("translate")
            place = None if start is None else self._in_space(order, [float(start[name]) for name in self.names], 0.0)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise VoxelSizeError(
                f"the attribute transform of {self.folder} is {found!r}, expected axes {list(self.names)}, scale, "
                "translate and units: correct it"
            ) from error
        return placed(scale, place, units, self.folder)

    def _of_group(self) -> Attributes:
        """Return what `multiscales` of the group says of this dataset; nothing if it is not understood."""
        images: Any = self.above[0].get("multiscales") if self.above else None
        try:
            return next((dict(one) for one in images[0]["datasets"] if one["path"].strip("/") == self.folder.name), {})
        except (LookupError, TypeError, AttributeError, ValueError):
            return {}

    def _of_resolution(self, order: Layout) -> Place | None:
        """Return what `resolution` or `pixelResolution`, `downsamplingFactors` and `offset` say."""
        level = next((k for k, one in enumerate(self.chain) if {"resolution", "pixelResolution"} & one.keys()), None)
        first = next((k for k, one in enumerate(self.chain) if "offset" in one), None)
        if level is None and first is None:
            return None
        size, units = (None, self._units(order, len(self.names), "nm")) if level is None else self._sizes(level, order)
        if size is not None:
            size = [v * f for v, f in zip(size, self._factors(order, inherited=bool(level)), strict=True)]
        begin = None if first is None else self._numbers("offset", self.chain[first]["offset"], order, 0.0)
        if begin is not None and size is not None:
            # its first voxel is the mean of several: its centre is not that of the finest's first
            factors = self._factors(order, inherited=bool(level or first))
            begin = [o + (f - 1) / 2 * v / f for o, f, v in zip(begin, factors, size, strict=True)]
        return placed(size, begin, units, self.folder)

    def _sizes(self, level: int, order: Layout) -> tuple[list[float], Sequence[Any]]:
        """Return the size of voxels, (z, y, x), that one of the attributes says, and its units."""
        said = self.chain[level]
        found: list[tuple[list[float], Sequence[Any]]] = []
        if "resolution" in said:
            value = said["resolution"]
            found.append((self._numbers("resolution", value, order, 1.0), self._units(order, len(value), "nm")))
        if "pixelResolution" in said:
            value = said["pixelResolution"]
            numbers: Any = value.get("dimensions") if isinstance(value, dict) else value
            size = self._numbers("pixelResolution", numbers, order, 1.0)
            if isinstance(value, dict):
                found.append((size, self._in_space(order, [value.get("unit")] * len(numbers), None)))
            else:  # the unit of a list nobody knows, unless `units` say it
                found.append((size, self._units(order, len(numbers), None)))
        (one, its), (other, others) = found[0], found[-1]
        known = [None not in map(nm_per, units) for units in (its, others)]
        # those that are not lengths are compared as they are
        a, b = (_in_nm(*pair) for pair in found[:1] + found[-1:]) if all(known) else (one, other)
        if not _alike(a, b):
            raise VoxelSizeError(
                f"the attributes of {self.folder} contradict each other: resolution {one} in {[*its]}, pixelResolution "
                f"{other} in {[*others]}, (z, y, x); remove one"
            )
        return found[0] if known[0] or not known[1] else found[-1]

    def _units(self, order: Layout, many: int, default: str | None) -> Any:
        """Return `units`, (z, y, x).

        Args:
            order: of the axes.
            many: numbers that one unit is that of.
            default: that of numbers if nobody says one.
        """
        said = next((one["units"] for one in self.chain if "units" in one), default)
        found = self._in_space(order, [said] * many if said is None or isinstance(said, str) else said, None)
        if found is None:
            raise VoxelSizeError(f"the attribute units of {self.folder} is {said!r}, expected one for each axis")
        return found

    def _factors(self, order: Layout, *, inherited: bool) -> list[float]:
        """Return how much coarser, (z, y, x), the dataset is than what its size or place is said of.

        Args:
            order: of the axes.
            inherited: it is that of the finest of its group.
        """
        named = _LEVEL.match(self.folder.name)
        number = int(named[1]) if named else 0
        found = self.own.get("downsamplingFactors")
        group = next((one[key] for one in self.above for key in ("scales", "downsamplingFactors") if key in one), None)
        if inherited and isinstance(group, list) and named and number < len(group) and isinstance(group[number], list):
            found = group[number]
        if found is None:
            if inherited and number:
                raise VoxelSizeError(
                    f"{self.folder} is coarser than the first dataset of its group, but nobody says how much: add the "
                    "attribute downsamplingFactors"
                )
            return [1.0, 1.0, 1.0]
        factors = self._numbers("downsamplingFactors", found, order, 1.0)
        if not all(0 < f < math.inf for f in factors):
            raise VoxelSizeError(f"the factors by which {self.folder} is coarser are {found}, expected positive ones")
        return factors

    def _expect_understood(self) -> None:
        if "transform" not in self.own and "coordinateTransformations" in self._of_group():
            raise VoxelSizeError(
                f"the group of {self.folder} has OME metadata, which are read in zarr only: say axes, resolution and "
                "units in the attributes of the dataset, and remove multiscales"
            )
        if any(_moves(one.get("translate")) for one in self.chain):
            log.warning("%s has an attribute translate, which is not read: set `offset` if it counts", self.folder)
        if odd := [name for name in _OF_ZARR if name in self.own]:
            raise VoxelSizeError(
                f"{self.folder} has the attributes {odd} of zarr, whose order in N5 programs differ in: say axes, "
                f"resolution and offset in the order of dimensions, {list(self.names)}, and remove these"
            )
        for one in self.chain:
            if "affineTransform" in one and not _identity(one["affineTransform"]):
                raise VoxelSizeError(
                    f"{self.folder} has an affineTransform, which is not read: resample it, or remove that attribute"
                )

    def _numbers(self, name: str, value: Any, order: Layout, of_image: float) -> list[float]:
        """Return numbers, (z, y, x), of an attribute that has one for each axis, or for each in space."""
        try:
            found = self._in_space(order, [float(v) for v in value] if isinstance(value, list) else value, of_image)
        except (TypeError, ValueError, OverflowError):
            found = None
        if found is None:
            raise VoxelSizeError(
                f"the attribute {name} of {self.folder} is {_short(value)}, expected a number for each of "
                f"{list(self.names)}, or for x, y and z"
            )
        return list(found)

    def _in_space(self, order: Layout, values: Any, of_image: Any) -> Any:
        """Return values of the axes of the file, or of those in space, as z, y, x; None if they are neither many.

        Args:
            order: of the axes.
            values: a list.
            of_image: that of the z of an image.
        """
        if not isinstance(values, list):
            return None
        turned = values[::-1]
        if len(turned) == len(self.names):
            return order.of(turned, of_image)[-3:]
        return order.space(turned, len(self.names))


def _in_nm(size: Sequence[float], units: Sequence[Any]) -> list[float]:
    return [v * (nm_per(unit) or 0.0) for v, unit in zip(size, units, strict=True)]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _moves(value: Any) -> bool:
    """Return whether a translation is one, or not understood."""
    return bool(value) and not (isinstance(value, list) and not any(value))


def _alike(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(m, n, rel_tol=1e-3, abs_tol=1e-9) for m, n in zip(a, b, strict=True))


def _identity(value: Any) -> bool:
    try:
        return all(float(v) == (row == column) for row, line in enumerate(value) for column, v in enumerate(line))
    except (TypeError, ValueError):
        return False
