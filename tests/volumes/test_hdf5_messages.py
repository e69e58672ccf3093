"""HDF5 that is whole, but needs a filter or a lock: messages that say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z

from kdseg.errors import MissingError, UnreadableError
from kdseg.volumes import hdf5, hdf5_filters
from kdseg.volumes.sources import open_channels, open_source

DATA = np.random.default_rng(0).integers(0, 40, (6, 8, 10), dtype=np.uint8)
BLOSC, UNKNOWN = 32001, 299


def packed(path: Path, number: int, name: str = "raw") -> str:
    """Write a dataset whose chunk was packed by a filter that HDF5 lacks; what is in the chunk is of no matter."""
    with h5py.File(path, "a") as file:
        made = h5p.create(h5p.DATASET_CREATE)
        made.set_chunk(DATA.shape)
        made.set_filter(number, h5z.FLAG_OPTIONAL, (1, 2))
        node = h5d.create(file.id, name.encode(), h5t.NATIVE_UINT8, h5s.create_simple(DATA.shape), made)
        node.write_direct_chunk((0, 0, 0), DATA.tobytes())
    return f"{path}:/{name}"


def test_a_filter_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = packed(tmp_path / "a.h5", BLOSC)
    if h5z.filter_avail(BLOSC):
        pytest.skip("hdf5plugin was imported in this process: blosc is there")
    monkeypatch.setattr(hdf5_filters, "find_spec", lambda name: None)
    said = r"a\.h5:/raw is packed by the filter 32001 \(blosc\), which is not installed: .*pip install hdf5plugin"
    for opening in (open_source, open_channels):
        with pytest.raises(MissingError, match=said) as caught:
            opening(address)
        assert "\n" not in str(caught.value)


def test_a_filter_that_was_left_out_is_not_missed(tmp_path: Path) -> None:
    """As HDF5 leaves it out where it is optional, and failed."""
    for name, masks in (("raw", (2, 2)), ("used", (2, 1))):
        with h5py.File(tmp_path / "a.h5", "a") as file:
            made = h5p.create(h5p.DATASET_CREATE)
            made.set_chunk((3, 8, 10))
            made.set_filter(h5z.FILTER_SHUFFLE, h5z.FLAG_OPTIONAL)
            made.set_filter(UNKNOWN, h5z.FLAG_OPTIONAL, (1, 2))
            node = h5d.create(file.id, name.encode(), h5t.NATIVE_UINT8, h5s.create_simple(DATA.shape), made)
            for z, mask in zip((0, 3), masks, strict=True):
                node.write_direct_chunk((z, 0, 0), DATA[z : z + 3].tobytes(), filter_mask=mask)
    source = open_source(f"{tmp_path}/a.h5:/raw")
    np.testing.assert_array_equal(source.read(source.roi), DATA)
    with pytest.raises(MissingError, match="is packed by the filter 299"):
        open_source(f"{tmp_path}/a.h5:/used")


def test_a_filter_of_a_virtual_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed(tmp_path / "a.h5", UNKNOWN)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        layout = h5py.VirtualLayout(DATA.shape, DATA.dtype)
        layout[...] = h5py.VirtualSource("a.h5", "raw", DATA.shape)
        file.create_virtual_dataset("all", layout)
    monkeypatch.setattr(hdf5_filters, "find_spec", lambda name: None)
    source = open_source(f"{tmp_path}/b.h5:/all")
    with pytest.raises(MissingError, match=r"a\.h5:/raw is packed by the filter 299 \(\?\), which is not installed"):
        source.read(source.roi)


def test_a_filter_that_nobody_has_is_named(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin", reason="hdf5plugin has further filters")
    with pytest.raises(MissingError, match=r"filter 299 \(\?\), which hdf5plugin lacks, too: repack it"):
        open_source(packed(tmp_path / "a.h5", UNKNOWN))


WRITE = """
import sys, h5py, hdf5plugin, numpy
with h5py.File(sys.argv[1], "w") as file:
    for name in ("Blosc", "Bitshuffle", "Zstd", "LZ4"):
        data = numpy.random.default_rng(0).integers(0, 40, (6, 8, 10), dtype="u1")
        file.create_dataset(name, data=data, chunks=(4, 4, 4), **getattr(hdf5plugin, name)())
"""
READ = """
import sys, numpy
from kdseg.volumes.sources import open_source
source = open_source(sys.argv[1])
assert "hdf5plugin" in sys.modules or not sys.argv[1].endswith("Blosc")
numpy.save(sys.argv[2], source.read(source.roi))
"""


@pytest.mark.parametrize("name", ["Blosc", "Bitshuffle", "Zstd", "LZ4"])
def test_filters_of_hdf5plugin_are_found_where_it_is_installed(tmp_path: Path, name: str) -> None:
    """In processes of their own: this one may have it imported already."""
    if hdf5_filters.find_spec("hdf5plugin") is None:
        pytest.skip("hdf5plugin, which has these filters, is not installed")
    subprocess.run([sys.executable, "-c", WRITE, tmp_path / "a.h5"], check=True, timeout=300)
    subprocess.run(
        [sys.executable, "-c", READ, f"{tmp_path}/a.h5:/{name}", tmp_path / "a.npy"], check=True, timeout=300
    )
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), DATA)


HOLD = """
import sys, h5py
with h5py.File(sys.argv[1], "r+", **({"libver": "latest"} if sys.argv[2:] else {})) as file:
    if sys.argv[2:]:
        file.swmr_mode = True
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path, *swmr: str) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a file open for writing."""
    command = [sys.executable, "-c", HOLD, str(path), *swmr]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process


def written(path: Path, **how: str) -> str:
    with h5py.File(path, "w", **how) as file:
        file["raw"] = DATA
    return f"{path}:/raw"


def test_a_file_that_another_program_writes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    address = written(tmp_path / "a.h5")
    source = open_source(address)
    said = "another program has it open for writing: close it there; .*HDF5_USE_FILE_LOCKING=FALSE"
    with held(tmp_path / "a.h5") as process:
        for reading in (lambda: open_source(address), lambda: source.read(source.roi)):
            with pytest.raises(UnreadableError, match=said) as caught:
                reading()
            assert "damaged" not in str(caught.value)
            assert "\n" not in str(caught.value)
        environment = {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE", "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(
            [sys.executable, "-c", READ.replace("assert", "#"), address, tmp_path / "a.npy"],
            check=True,
            timeout=300,
            env=environment,
        )
        np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), DATA)
        process.communicate(timeout=60)
    np.testing.assert_array_equal(source.read(source.roi), DATA)


def test_a_file_whose_writer_was_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    address = written(tmp_path / "a.h5", libver="latest")
    with held(tmp_path / "a.h5", "swmr") as process:
        process.kill()
        process.wait(timeout=60)
    with pytest.raises(UnreadableError, match=r"was ended while it did: .*h5clear -s"):
        open_source(address)


def test_a_file_system_without_locks(tmp_path: Path) -> None:
    """No such file system is at hand: HDF5 says so in the words of a lock that is held, with another number."""
    for number, words in (
        (37, "No locks available"),
        (110, "Connection timed out"),
        (524, "Unknown error 524"),
        (95, "Operation not supported"),
    ):
        said = f"[Errno {number}] Unable to synchronously open file (unable to lock file, errno = {number}, '{words}')"
        with (
            pytest.raises(UnreadableError, match=r"its file system has no locks.*HDF5_USE_FILE_LOCKING=FALSE"),
            hdf5._readable("cannot open a.h5", "it is damaged"),
        ):
            raise OSError(said)


def test_a_file_that_is_damaged_is_still_called_so(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"no")
    with pytest.raises(UnreadableError, match="the file is damaged or no HDF5"):
        open_source(f"{tmp_path}/a.h5:/raw")
