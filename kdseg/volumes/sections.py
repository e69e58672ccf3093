"""Order of sections by the names of their files: a claim, which is checked.

Names are read as text with numbers in it. One of these numbers has to count the sections: it differs from file to file,
no value is there twice, and none between the first and the last is missing.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kdseg.config.data import SectionsOptions
from kdseg.errors import ShapeError

_WHOLE = r"[0-9]+"
_DECIMAL = r"(?<![0-9.])[0-9]+\.[0-9]+(?!\.?[0-9])|[0-9]+"
_SIGN = r"(?:(?<![0-9])[+-])?"
_READINGS = tuple(tuple(re.compile(f"({sign}(?:{number}))") for number in (_WHOLE, _DECIMAL)) for sign in ("", _SIGN))
"""Ways to read numbers in names. A hyphen is a minus only where some names have none: z-1, z0; but slice-1, slice-2."""
_LISTED = 8
"""Files or runs of numbers that a message lists."""
_BY_NAME = "or set `sections.order: name` to take them by name, unchecked"

log = logging.getLogger(__name__)


class Stack(NamedTuple):
    """Files in the order of their sections.

    Attributes:
        files: one per section; None: not there, and to be filled.
        numbers: of the sections, rising; None if the names have not been checked.
    """

    files: tuple[Path | None, ...]
    numbers: tuple[Fraction, ...] | None


@dataclass(frozen=True)
class Numbers:
    """Numbers of the sections that are there, rising.

    Attributes:
        found: no value twice.
        step: from one section to the next.
        first: number of the first section, there or not.
        last: likewise.
    """

    found: tuple[Fraction, ...]
    step: Fraction
    first: Fraction
    last: Fraction

    @property
    def total(self) -> int:
        """Sections from the first to the last, with those that are missing."""
        return 1 + int((self.last - self.first) / self.step)

    @property
    def gaps(self) -> Iterator[tuple[Fraction, Fraction]]:
        """First and last number of each run of missing ones."""
        around = (self.first - self.step, *self.found, self.last + self.step)
        return ((a + self.step, b - self.step) for a, b in pairwise(around) if b - a > self.step)

    @property
    def missing(self) -> str:
        """Numbers that are missing, in words."""
        runs = [_shown(a) if a == b else f"{_shown(a)} to {_shown(b)}" for a, b in self.gaps]
        return ", ".join(runs[:_LISTED]) + (" …" if len(runs) > _LISTED else "")

    def indices(self, name: str, missing: str) -> list[int | None]:
        """Return the section of ``found`` at each z, None for one to be filled; log what is missing.

        Args:
            name: of the folder or file, for messages.
            missing: as `SectionsOptions.missing`.

        Raises:
            ShapeError: if some are missing and that is refused, or more are to be filled than there are.
        """
        there, lost = len(self.found), self.total - len(self.found)
        if not lost:
            return list(range(there))
        if missing == "leave_out":
            log.warning("%s: %d sections are missing, %s: they are left out", name, lost, self.missing)
            return list(range(there))
        if missing == "refuse":
            raise ShapeError(
                f"{name} has {there} of the {self.total} sections {_shown(self.first)} to {_shown(self.last)}; "
                f"missing: {self.missing}. Add them, or set `sections.missing` to leave_out, after which the next one "
                "follows directly, or to fill, after which they are zeros"
            )
        if lost > there:
            raise ShapeError(
                f"{name} has {there} of {self.total} sections; missing: {self.missing}: more than half are not filled. "
                "Do these numbers count sections? If not, rename the files, or set `sections.missing: leave_out`"
            )
        log.warning("%s: %d sections are missing, %s: they are filled with zeros", name, lost, self.missing)
        at = {int((number - self.first) / self.step): k for k, number in enumerate(self.found)}
        return [at.get(z) for z in range(self.total)]

    def kept(self, missing: str) -> tuple[Fraction, ...]:
        """Return the number of the section at each z."""
        if missing != "fill":
            return self.found
        return tuple(self.first + z * self.step for z in range(self.total))


def counted(found: Sequence[Fraction]) -> Numbers:
    """Return numbers with their step: the largest of which all differences are multiples."""
    shared = math.lcm(*(number.denominator for number in found))
    step = math.gcd(*(int((b - a) * shared) for a, b in pairwise(found)))
    return Numbers(tuple(found), Fraction(step or shared, shared), found[0], found[-1])


def in_order(files: Sequence[Path], options: SectionsOptions) -> Stack:
    """Return the files of one folder in the order of their sections, and log what was found.

    Raises:
        ShapeError: if the names do not say one order, a section is there twice, or one is missing and that is refused.
    """
    folder = files[0].parent
    if options.order == "name":
        named = sorted(files, key=_by_name)
        log.info("%s: %d sections by name, %s to %s", folder, len(named), named[0].name, named[-1].name)
        return Stack(tuple(named), None)
    if len(files) == 1:
        log.info("%s: 1 section, %s", folder, files[0].name)
        return Stack(tuple(files), None)
    order, numbers, _ = _read(files)
    indices = numbers.indices(str(folder), options.missing)
    first, last = files[order[0]].name, files[order[-1]].name
    log.info("%s: %d sections, %s to %s, in steps of %s", folder, len(files), first, last, _shown(numbers.step))
    return Stack(tuple(None if k is None else files[order[k]] for k in indices), numbers.kept(options.missing))


class _Reading(NamedTuple):
    order: tuple[int, ...]
    numbers: Numbers
    varying: int


def _read(files: Sequence[Path]) -> _Reading:
    readings, problems = [], []
    for patterns in _READINGS:
        split = [columns for pattern in patterns if (columns := _columns(files, pattern)) is not None]
        for columns in split:
            try:
                readings.append(_counting(files, columns))
            except ShapeError as problem:
                problems.append(problem)
        if split:
            break
    else:
        raise _unlike(files)
    if not readings:
        raise problems[0]
    least = min(reading.varying for reading in readings)  # 0.50, 0.75, 1.00: read as whole numbers, two of them vary
    readings = [reading for reading in readings if reading.varying == least]
    if len({reading.order for reading in readings}) > 1:  # 0.05, 0.1, 0.15: read as decimals, none is missing
        readings = [reading for reading in readings if reading.numbers.total == len(files)] or readings
    if len({reading.order for reading in readings}) > 1:
        a, b = (files[one.order[next(_differing(readings))]].name for one in (readings[0], readings[-1]))
        raise ShapeError(
            f"{files[0].parent} holds names whose numbers can be read as whole or as decimals, after which {a} or {b} "
            "is next: give all of them as many digits"
        )
    return min(readings, key=lambda reading: reading.numbers.total)


def _differing(readings: Sequence[_Reading]) -> Iterator[int]:
    a, b = readings[0].order, readings[-1].order
    return (k for k in range(len(a)) if a[k] != b[k])


def _columns(files: Sequence[Path], pattern: re.Pattern[str]) -> list[list[Fraction]] | None:
    """Return the numbers of all names, place by place; None if the text between them differs."""
    parts = [pattern.split(file.stem) for file in files]
    if len({tuple(text.casefold() for text in part[::2]) for part in parts}) > 1 or len(parts[0]) == 1:
        return None
    return [[Fraction(number) for number in column] for column in list(zip(*parts, strict=True))[1::2]]


def _counting(files: Sequence[Path], columns: list[list[Fraction]]) -> _Reading:
    """Return the order by the one number that counts.

    Raises:
        ShapeError: if none does, or several do in another order.
    """
    varying = [column for column in columns if len(set(column)) > 1]
    found = []
    for column in varying:
        if len(set(column)) == len(files):
            order = tuple(sorted(range(len(files)), key=column.__getitem__))
            found.append(_Reading(order, counted([column[k] for k in order]), len(varying)))
    if not found:
        raise _repeated(files, columns, len(varying))
    if len({reading.order for reading in found}) > 1:
        raise ShapeError(
            f"{files[0].parent} holds names that differ in {len(varying)} numbers, such as {files[0].name} and "
            f"{files[1].name}, expected one that counts sections: leave one in the names, {_BY_NAME}"
        )
    return min(found, key=lambda reading: reading.numbers.total)


def _repeated(files: Sequence[Path], columns: list[list[Fraction]], varying: int) -> ShapeError:
    seen: dict[tuple[Fraction, ...], Path] = {}
    for file, numbers in zip(files, zip(*columns, strict=True), strict=True):
        if numbers in seen:
            return ShapeError(
                f"{file.parent} holds one section twice: {seen[numbers].name} and {file.name} have the same number; "
                "remove one of them"
            )
        seen[numbers] = file
    return ShapeError(
        f"{files[0].parent} holds names that differ in {varying} numbers, such as {files[0].name} and {files[1].name}, "
        f"none of which counts sections: expected one section each; leave one number in the names, {_BY_NAME}"
    )


def _unlike(files: Sequence[Path]) -> ShapeError:
    texts = [tuple(part.casefold() for part in _READINGS[0][0].split(file.stem)[::2]) for file in files]
    usual = Counter(texts).most_common(1)[0][0]
    like = next(file.name for file, text in zip(files, texts, strict=True) if text == usual)
    odd = [file.name for file, text in zip(files, texts, strict=True) if text != usual]
    more = f" and {len(odd) - _LISTED} more" if len(odd) > _LISTED else ""
    listed = ", ".join(odd[:_LISTED]) + more
    if len(usual) == 1:
        return ShapeError(f"{files[0].parent} holds {like}, whose name has no number: number the files, {_BY_NAME}")
    return ShapeError(
        f"{files[0].parent} holds {listed} beside {len(files) - len(odd)} files named like {like}; expected names that "
        f"differ in one number: remove or rename these, {_BY_NAME}"
    )


def _by_name(path: Path) -> list[tuple[int, int | str]]:
    parts = re.split(f"({_WHOLE})", path.stem.casefold())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts] + [(1, path.name)]


def _shown(number: Fraction) -> str:
    return str(number) if number.denominator == 1 else f"{float(number):g}"
