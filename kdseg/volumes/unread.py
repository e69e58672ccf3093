"""Formats that are not read, and the lines of Python that convert them to one that is.

A package for each of them would be one more dependency, for files that are small as a rule: these are read as a whole
by theirs, in every worker anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from kdseg.errors import UnreadableError


class Unread(NamedTuple):
    """A format that is not read.

    Attributes:
        name: of the format.
        package: to be installed; empty if NumPy does it.
        lines: of Python, in which SOURCE and TARGET stand for the files.
        size: what then says the voxel size, in its order and unit.
    """

    name: str
    package: str
    lines: str
    size: str


_NRRD = Unread(
    "NRRD",
    "pynrrd",
    "import nrrd, numpy; data, head = nrrd.read(SOURCE); numpy.save(TARGET, data.T)",
    "head['space directions'] or head['spacings'], x first",
)
_NIFTI = Unread(
    "NIfTI",
    "nibabel",
    "import nibabel, numpy; image = nibabel.load(SOURCE); numpy.save(TARGET, numpy.asarray(image.dataobj).T)",
    "image.header.get_zooms(), x first, in mm as a rule, and image.affine, which may turn or flip it",
)
_NPZ = Unread(
    "several arrays of NumPy",
    "",
    "import numpy; arrays = numpy.load(SOURCE); numpy.save(TARGET, arrays[arrays.files[0]])",
    "what you know of it",
)
_RAW = Unread(
    "voxels without a header",
    "",
    "import numpy; data = numpy.memmap(SOURCE, 'uint8', 'r', shape=(Z, Y, X)); numpy.save(TARGET, data)",
    "what you know of it",
)
FORMATS = {
    ".nrrd": _NRRD,
    ".nhdr": _NRRD,
    ".nii": _NIFTI,
    ".nii.gz": _NIFTI,
    ".npz": _NPZ,
    ".raw": _RAW,
}
"""Formats by the endings of their files, in lower case."""


def unread(path: Path) -> Unread | None:
    """Return the format of a file that is not read, by its ending; None if it is another one."""
    name = path.name.lower()
    return next((found for ending, found in FORMATS.items() if name.endswith(ending)), None)


def refusal(path: Path, found: Unread) -> UnreadableError:
    """Return the error that says how to convert a file."""
    name = path.name
    while Path(name).suffix.lower() in (".gz", ".nii", *FORMATS):
        name = Path(name).stem
    lines = found.lines.replace("SOURCE", repr(str(path))).replace("TARGET", repr(str(path.with_name(name + ".npy"))))
    package = f" (pip install {found.package})" if found.package else ""
    return UnreadableError(
        f"{path} is {found.name}, which is not read: convert it in Python{package}: {lines}; and set `voxel_size` "
        f"(z, y, x in nm) by {found.size}"
    )
