"""Formats that are not read: the lines that a message names convert files which their own libraries wrote."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdseg.errors import UnreadableError
from kdseg.volumes.sources import FORMATS, open_channels, open_source
from kdseg.volumes.unread import FORMATS as UNREAD

DATA = np.random.default_rng(0).integers(0, 2**15, (5, 7, 9), dtype=np.int16)


def nrrd(path: Path) -> None:
    library = pytest.importorskip("nrrd", reason="pynrrd writes NRRD")
    library.write(str(path), DATA.T, {"space directions": np.diag([4.0, 5.0, 40.0]), "space dimension": 3})


def nifti(path: Path) -> None:
    library: Any = pytest.importorskip("nibabel", reason="nibabel writes NIfTI")
    library.save(library.Nifti1Image(DATA.T, np.diag([4e-6, 5e-6, 4e-5, 1])), path)


def npz(path: Path) -> None:
    np.savez_compressed(path, raw=DATA)


def raw(path: Path) -> None:
    path.write_bytes(DATA.tobytes())


WRITE: dict[str, Callable[[Path], None]] = {
    ".nrrd": nrrd,
    ".nhdr": nrrd,
    ".nii": nifti,
    ".nii.gz": nifti,
    ".npz": npz,
    ".raw": raw,
}


def test_all_of_them_are_tested() -> None:
    assert set(WRITE) == set(UNREAD)


@pytest.mark.parametrize("ending", WRITE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning:nrrd|nibabel")
def test_the_lines_convert_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"it's my.data{ending}"
    WRITE[ending](path)
    with pytest.raises(UnreadableError, match=r"is .*, which is not read: convert it in Python") as caught:
        open_source(str(path))
    text = str(caught.value)
    assert "\n" not in text
    assert "voxel_size" in text
    lines = re.search(r"import .*(?=; and set)", text)
    assert lines is not None
    code = lines[0].replace("'uint8', 'r', shape=(Z, Y, X)", "'int16', 'r', shape=(5, 7, 9)")
    assert code.count("; ") == 2  # the import, and two lines
    exec(code, {})
    source = open_source(f"{tmp_path}/it's my.data.npy")
    np.testing.assert_array_equal(source.read(source.roi), DATA)


@pytest.mark.parametrize("ending", WRITE)
def test_it_is_refused_whatever_is_in_it(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(b"nothing"))
    for opening in (open_source, open_channels):
        with pytest.raises(UnreadableError, match=r"convert it in Python"):
            opening(str(path))


def test_other_files_list_what_is_read(tmp_path: Path) -> None:
    for name in ("a.xyz", "a", "a.zip"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(UnreadableError, match=r"of no known format; expected path\.zarr, .*path\.n5.*path\.npy"):
            open_source(f"{tmp_path}/{name}")
    assert len({form.name for form in FORMATS}) == len(FORMATS)
