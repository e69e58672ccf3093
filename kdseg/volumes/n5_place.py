"""Size and place in attributes of N5, which has no standard for them: those of neuroglancer, n5-viewer, Paintera, COSEM.

All have one value for each axis of a dataset, in the order of `dimensions`: x, y, z, unless `axes` says another. They
are inherited: what a dataset lacks, the groups say that it lies in.

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
from kdseg.volumes.metadata import Place, placed

Attributes = Mapping[str, Any]
_LEVEL = re.compile(r"s(\d+)\Z")
"""Name of a dataset of a group of resolutions."""

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
        a, b = transformed, plain
        sizes_differ = a.voxel_size and b.voxel_size and not _alike(a.voxel_size, b.voxel_size)
        if sizes_differ or (a.placed and b.placed and not _alike(a.offset, b.offset)):
            raise VoxelSizeError(
                f"the attributes of {self.folder} contradict each other: voxels of {a.voxel_size} nm at {a.offset} by "
                f"`transform`, {b.voxel_size} nm at {b.offset} by the others: remove one"
            )
        return transformed if transformed.voxel_size or not plain.voxel_size else plain

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
        except (KeyError, TypeError, ValueError, AttributeError) as error:
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
        start = next((one["offset"] for one in self.chain if "offset" in one), None)
        if level is None and start is None:
            return None
        sizes, units = ([1.0] * len(self.names), ["nm"] * len(self.names)) if level is None else self._sizes(level)
        factors = self._factors(inherited=bool(level))
        scale = [v * f for v, f in zip(sizes, factors, strict=True)]
        if start is not None:  # its first voxel is the mean of several: its centre is not that of the finest's first
            begin = self._numbers("offset", start)
            start = [o + (f - 1) / 2 * v for o, f, v in zip(begin, factors, sizes, strict=True)]
        found = None if start is None else self._in_space(order, start, 0.0)
        return placed(
            None if level is None else self._in_space(order, scale, 1.0),
            found,
            self._in_space(order, units, None),
            self.folder,
        )

    def _sizes(self, level: int) -> tuple[list[float], list[Any]]:
        """Return the size of voxels that one of the attributes says, and its units."""
        said, ndim = self.chain[level], len(self.names)
        units = next((one["units"] for one in self.chain if "units" in one), None)
        found: dict[str, list[float]] = {}
        if "resolution" in said:
            found["resolution"] = self._numbers("resolution", said["resolution"])
        default: Any = "nm"
        if "pixelResolution" in said:
            value = said["pixelResolution"]
            of_object = isinstance(value, dict)
            found["pixelResolution"] = self._numbers("pixelResolution", value.get("dimensions") if of_object else value)
            default = value.get("unit") if of_object else None  # of a list nobody knows
            units = [default] * ndim if of_object else units
        if len(found) == 2 and not _alike(*found.values()):
            raise VoxelSizeError(f"the attributes of {self.folder} contradict each other: {found}; remove one")
        units = [default] * ndim if units is None else [units] * ndim if isinstance(units, str) else units
        if not isinstance(units, list) or len(units) != ndim:
            raise VoxelSizeError(f"the attribute units of {self.folder} is {units!r}, expected one for each axis")
        return next(iter(found.values())), units

    def _factors(self, *, inherited: bool) -> list[float]:
        """Return how much coarser the dataset is than what its size is said of.

        Args:
            inherited: it is that of the finest of its group.
        """
        named = _LEVEL.match(self.folder.name)
        number = int(named[1]) if named else 0
        own = self.own.get("downsamplingFactors")
        group = next((one[key] for one in self.above for key in ("scales", "downsamplingFactors") if key in one), None)
        if inherited and isinstance(group, list) and named and number < len(group) and isinstance(group[number], list):
            return self._numbers("downsamplingFactors", group[number])
        if own is not None:
            return self._numbers("downsamplingFactors", own)
        if inherited and number:
            raise VoxelSizeError(
                f"{self.folder} is coarser than the first dataset of its group, but nobody says how much: add the "
                "attribute downsamplingFactors"
            )
        return [1.0] * len(self.names)

    def _expect_understood(self) -> None:
        if "transform" not in self.own and "coordinateTransformations" in self._of_group():
            raise VoxelSizeError(
                f"the group of {self.folder} has OME metadata, which are read in zarr only: say axes, resolution and "
                "units in the attributes of the dataset, and remove multiscales"
            )
        if any(any(one.get("translate") or ()) for one in self.chain):
            log.warning("%s has an attribute translate, which is not read: set `offset` if it counts", self.folder)
        for one in self.chain:
            if "affineTransform" in one and not _identity(one["affineTransform"]):
                raise VoxelSizeError(
                    f"{self.folder} has an affineTransform, which is not read: resample it, or remove that attribute"
                )

    def _numbers(self, name: str, value: Any) -> list[float]:
        """Return one number for each axis; axes that are not in space may be left out."""
        try:
            found = [float(v) for v in value]
        except (TypeError, ValueError):
            found = []
        if len(found) == 3 < len(self.names):
            found += [1.0 if name != "offset" else 0.0] * (len(self.names) - 3)
        if len(found) != len(self.names):
            raise VoxelSizeError(
                f"the attribute {name} of {self.folder} is {value!r}, expected a number for each of {list(self.names)}"
            )
        return found

    def _in_space(self, order: Layout, values: Sequence[Any], of_image: Any) -> Any:
        """Return values of the axes of the file as z, y, x; ``of_image`` is that of the z of an image."""
        return order.of([*reversed(values)], of_image)[-3:]


def _alike(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(math.isclose(m, n, rel_tol=1e-3, abs_tol=1e-9) for m, n in zip(a, b, strict=True))


def _identity(value: Any) -> bool:
    try:
        return all(float(v) == (row == column) for row, line in enumerate(value) for column, v in enumerate(line))
    except (TypeError, ValueError):
        return False
