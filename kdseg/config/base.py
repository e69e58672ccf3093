"""Base of all configuration sections."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Extent = tuple[Count, Count, Count]
"""A positive extent in voxels, ``(z, y, x)``."""
Border = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
"""Voxels at both ends of each axis, ``(z, y, x)``."""
Step = tuple[int, int, int]
"""A signed step in voxels, ``(z, y, x)``."""
Nanometres = tuple[
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
]
Place = tuple[
    Annotated[float, Field(allow_inf_nan=False)],
    Annotated[float, Field(allow_inf_nan=False)],
    Annotated[float, Field(allow_inf_nan=False)],
]
"""A position in nm, ``(z, y, x)``."""
Probability = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
FOLDER = r"^[\w./+=,@][\w./+=,@-]*$"
"""Paths that mean themselves to a shell, to Snakemake, and to a program that takes flags: each of them gets it."""
WORD = r"^[\w.+=,@:][\w.+=,@:-]*$"
LINE = r"^-.*$"
BUCKET = r"^(s3|gs)://[^/\s@:?]+(/[^\s?]+)?$"
EXPECTED = {
    NAME: "expected letters from A to Z, digits, _ and -, the first one a letter or digit, since it becomes a folder",
    FOLDER: "expected a path of letters, digits and ./_+=,@- that does not begin with -",
    WORD: "expected letters, digits and ._+=,@:- that do not begin with -, since it becomes a line of a job's script",
    LINE: "expected one option of sbatch, in one line that begins with -, e.g. --gres=gpu:1",
    BUCKET: "expected s3://bucket/prefix or gs://bucket/prefix, without credentials: these belong in the environment",
}
"""Messages by the pattern that a text does not match."""
Name = Annotated[str, Field(pattern=NAME)]
"""Names of volumes, models and methods become folders."""


def exact(option: float) -> Fraction:
    """Return the fraction that an option means: 0.3 is 3/10, not the nearest binary number.

    It is the nearest one with a denominator up to a million, and never falls where options rise.
    """
    return Fraction(option).limit_denominator(10**6)


class Section(BaseModel):
    """A frozen section of the configuration; unknown keys are errors."""

    # built when first used: terms of other packages import this package
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)
