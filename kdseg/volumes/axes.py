"""Order of axes: which axes of an array are c, z, y and x, by the names that its metadata give them.

Volumes are (z, y, x), channels first if there are any. An array in another order is read as if it were in this one: a
region is cut out as it lies in the file, then its axes are moved. Other axes, such as time, have to be of length 1, and
are left out. An array of y and x alone, an image, is one section.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdseg.errors import ShapeError

Value = TypeVar("Value")
SPACE = ("z", "y", "x")
_CHANNEL = "c"
_ROLES = {name: name for name in (*SPACE, _CHANNEL, "t")} | {"channel": _CHANNEL, "channels": _CHANNEL, "time": "t"}
_UNNAMED = re.compile(r"(phony_)?dim_?\d+|axis_?\d+|d\d+")
"""Names that say nothing, as xarray, netCDF and funlib give them."""


@dataclass(frozen=True)
class Layout:
    """Place of the axes of a volume among those of its array.

    Attributes:
        order: the array's axis of each axis of the volume, (c,) z, y, x; None if both have the same. In it, None is the
            z of an image, which has no such axis.
    """

    order: tuple[int | None, ...] | None = None

    def of(self, values: Sequence[Value], of_image: Value) -> tuple[Value, ...]:
        """Return values of the array's axes as those of the volume's; ``of_image`` is that of the z of an image."""
        if self.order is None:
            return tuple(values)
        return tuple(of_image if axis is None else values[axis] for axis in self.order)

    def back(self, values: Sequence[Value], ndim: int, rest: Value) -> tuple[Value, ...]:
        """Return values of the volume's axes as those of an array of ``ndim`` axes; axes left out get ``rest``."""
        if self.order is None:
            return tuple(values)
        found = [rest] * ndim
        for axis, value in zip(self.order, values, strict=True):
            if axis is not None:
                found[axis] = value
        return tuple(found)

    def space(self, values: Sequence[Value], ndim: int) -> tuple[Value, ...] | None:
        """Return values of an array's axes, or of those in space alone, as z, y, x; None if they are neither many."""
        axes = [axis for axis in (self.order or range(ndim))[-3:] if axis is not None]
        if len(axes) < 3:
            return tuple(values) if len(values) == 3 else None
        if len(values) == ndim:
            return tuple(values[axis] for axis in axes)
        return tuple(values[sorted(axes).index(axis)] for axis in axes) if len(values) == 3 else None

    def read(self, array: Any, key: Sequence[slice]) -> NDArray[Any]:
        """Return a box of an array, as axes of the volume.

        Args:
            array: zarr or HDF5; nothing but the box is read.
            key: one slice for each axis of the volume.
        """
        found = np.asarray(array[self.back(key, array.ndim, slice(0, 1))])
        if self.order is None:
            return found
        kept = [axis for axis in self.order if axis is not None]
        left_out = [axis for axis in range(array.ndim) if axis not in kept]
        moved = found.transpose(*kept, *left_out)
        moved = moved.reshape(moved.shape[: len(kept)])
        if len(kept) < len(self.order):
            place = self.order.index(None)
            moved = np.expand_dims(moved, place)[(slice(None),) * place + (key[place],)]
        return np.ascontiguousarray(moved)


def layout(shape: Sequence[int], said: Mapping[str, Sequence[str]], where: str, *, single: bool) -> Layout:
    """Return the place of the axes of a volume in an array.

    Args:
        shape: of the array.
        said: names of all its axes, by what gives them; an axis of no name is "". Upper and lower case are the same.
        where: name of the array, for messages.
        single: take one channel only: an axis of channels of length 1 is left out, too.

    Raises:
        ShapeError: if there are not z, y and x, or names are not understood or contradict each other, or there are
            several channels where one is wanted, or an axis that is to be left out is longer than 1.
    """
    order: tuple[int | None, ...]
    roles = _roles(shape, said, where)
    if any(roles):
        by = " and ".join(said)
        order = _named(shape, roles, f"{where} has the shape {tuple(shape)} and, by its {by}, the axes {_told(roles)}")
    else:
        order = _unnamed(shape, 3 if single or len(shape) < 4 else 4, where)
    if single and len(order) == 4:
        if order[0] is None or shape[order[0]] != 1:
            raise ShapeError(f"{where} has the shape {tuple(shape)}, expected (z, y, x) of one channel: extract it")
        order = order[1:]
    return Layout(None if order == tuple(range(len(shape))) else order)


def _roles(shape: Sequence[int], said: Mapping[str, Sequence[str]], where: str) -> list[str]:
    """Return what each axis is: one of z, y, x, c and t, or nothing where nobody says."""
    roles = [""] * len(shape)
    for by, names in said.items():
        if len(names) != len(shape):
            raise ShapeError(f"{where} has {len(shape)} axes, but its {by} names {list(names)}: correct them")
        for axis, name in enumerate(names):
            role = _role(name)
            if role is None:
                raise ShapeError(
                    f"the {by} of {where} names the axes {list(names)}, expected z, y and x, perhaps c and t: rename "
                    f"{name!r} to what it is"
                )
            if role and roles[axis] and role != roles[axis]:
                others = " and ".join(other for other in said if other != by)
                raise ShapeError(
                    f"{where} is not of one mind: its {by} names the axes {list(names)}, its {others} "
                    f"{_told(roles)}: correct one"
                )
            roles[axis] = role or roles[axis]
    return roles


def _role(name: str) -> str | None:
    """Return what an axis of some name is, nothing if the name does not say, None if that is not known."""
    plain = name.strip().lower()
    if plain.endswith("^"):  # as funlib marks axes that are not in space
        return "t" if plain in ("t^", "time^") else _CHANNEL
    return "" if not plain or _UNNAMED.fullmatch(plain) else _ROLES.get(plain)


def _told(roles: Sequence[str]) -> list[str]:
    return [role or "?" for role in roles]


def _named(shape: Sequence[int], roles: list[str], told: str) -> tuple[int | None, ...]:
    """Return the axes c, if there is one, z, y and x; axes without a name are z, y and x if no other order is said."""
    free = [axis for axis, role in enumerate(roles) if not role]
    lacking = [name for name in SPACE if name not in roles]
    if len(free) != len(lacking):
        free = [axis for axis in free if shape[axis] > 1]
    filled = list(roles)
    channels = [axis for axis, role in enumerate(roles) if role == _CHANNEL]
    kept = [axis for axis in channels if shape[axis] > 1] or channels[:1]
    for axis in set(channels) - set(kept):
        filled[axis] = ""  # of several axes of channels all but one have length 1
    if len(free) == len(lacking):
        for axis, name in zip(free, lacking, strict=True):
            filled[axis] = name
    in_space = [role for role in filled if role in SPACE]
    image = lacking == ["z"] and not free and sorted(in_space) == ["x", "y"]
    in_space, lacking = (["z", *in_space], []) if image else (in_space, lacking)
    known = sorted(in_space) == sorted(SPACE) and filled.count(_CHANNEL) < 2
    if not known or (lacking and in_space != list(SPACE)):
        raise ShapeError(f"{told}, expected z, y and x once each, perhaps c and t: name all axes")
    for axis, role in enumerate(filled):
        if role in ("t", "") and shape[axis] != 1:
            raise ShapeError(f"{told}, expected a length of 1 of those that are none of c, z, y, x: extract one")
    wanted = [name for name in (_CHANNEL, *SPACE) if name in filled or name == "z"]
    return tuple(filled.index(name) if name in filled else None for name in wanted)


def _unnamed(shape: Sequence[int], wanted: int, where: str) -> tuple[int | None, ...]:
    """Return the last axes, or those that remain without the axes of length 1 before and behind them."""
    if len(shape) == 2 and wanted == 3:
        return (None, 0, 1)
    extra, found = len(shape) - wanted, dict[tuple[int, ...], tuple[int, ...]]()
    for before in range(extra + 1):
        kept = tuple(range(before, before + wanted))
        if all(n == 1 for axis, n in enumerate(shape) if axis not in kept):
            found.setdefault(tuple(shape[axis] for axis in kept), kept)
    if len(found) == 1:
        return next(iter(found.values()))
    expected = "(z, y, x) of one channel: extract it" if wanted == 3 else "(c, z, y, x)"
    hint = ", or name the axes: which of those of length 1 is none?" if found else ""
    raise ShapeError(f"{where} has the shape {tuple(shape)}, expected {expected}{hint}")
