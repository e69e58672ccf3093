"""Addresses of volumes and files, as people write them: the file or folder that one leads to, and a member of it.

The workflow, which has to find the files, and the readers of `kdseg.volumes` take an address apart by this module, so
that what one of them accepts the others find.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

from kdseg.config.base import FOLDER
from kdseg.errors import ConfigError

REMOTE = ("s3", "gs", "https", "http")
"""Schemes of the URLs that zarr is read from."""
_SCHEME = re.compile(r"([a-z][a-z0-9+-]*)://", re.IGNORECASE)
_HDF5 = re.compile(r"\.(?:h5|hdf5|hdf)(?=:|\Z)", re.IGNORECASE)
_ZIP = re.compile(r"\.(?:zarr\.zip|ozx)(?=/|\Z)", re.IGNORECASE)

N5_ATTRIBUTES = "attributes.json"
"""File of the attributes of a group or dataset of N5."""
N5_FINEST = ("", "s0", "data/s0", "data")
"""Where in a folder of N5 its finest dataset may lie, which the folder then stands for; the first one counts."""


class Location(NamedTuple):
    """Place that an address leads to.

    Attributes:
        path: file or folder.
        member: name in it: the dataset of HDF5, the group of a zipped zarr, the key of a scale of precomputed; else
            empty.
        hdf5: whether the file is HDF5 by its name.
    """

    path: Path
    member: str
    hdf5: bool


def is_url(address: str) -> bool:
    """Return whether an address is a URL, of whatever scheme."""
    return _SCHEME.match(address) is not None


def local(address: str) -> str:
    """Return an address without what only people write: ``file://`` and ``~/`` become paths, other URLs stay.

    Raises:
        ConfigError: if it is a URL of a scheme that nothing is read from, or a file of another host.
    """
    scheme = _SCHEME.match(address)
    if scheme is None:
        return str(Path(address).expanduser()) if address.startswith("~/") else address
    if scheme[1] in REMOTE:
        return address
    if scheme[1].lower() != "file":
        raise ConfigError(
            f"{address} is not a path, nor a URL that begins with {'://, '.join(REMOTE)}://: give one of these; "
            "precomputed volumes are read from folders, copy them to one"
        )
    url = urlsplit(address)
    if url.netloc.lower() not in ("", "localhost") or not url.path.startswith("/") or url.query or url.fragment:
        raise ConfigError(f"{address} is no file of this machine: expected file:///path, with %23 for # and %3F for ?")
    return unquote(url.path)


def locate(address: str) -> Location:
    """Return where an address leads that is no URL.

    Where names hold what could also part them, as a folder ``old.h5:copy`` does, the file that is there counts.
    """
    ends = [match.end() for match in _HDF5.finditer(address)]
    if ends:
        end = next((end for end in ends if Path(address[:end]).is_file()), ends[0])
        return Location(Path(address[:end]), address[end + 1 :], True)
    for match in _ZIP.finditer(address):
        if Path(address[: match.end()]).is_file():
            return Location(Path(address[: match.end()]), address[match.end() + 1 :], False)
    folder, colon, key = address.rpartition(":")
    if colon and not is_precomputed(Path(address)) and is_precomputed(Path(folder)):
        return Location(Path(folder), key, False)
    return Location(Path(address), "", False)


def is_precomputed(path: Path) -> bool:
    """Return whether a folder holds the `info` of Neuroglancer's precomputed format."""
    return (path / "info").is_file()


def above(path: Path) -> list[Path]:
    """Return the files that say more of a dataset of N5 in the folders above it; none for other formats."""
    folders = [path, *path.absolute().parents]
    root = next((k for k, one in enumerate(folders) if one.suffix == ".n5"), None)
    if not path.is_dir() or (root is None and not (path / N5_ATTRIBUTES).is_file()):
        return []
    end = None if root is None else root + 1
    return [folder / N5_ATTRIBUTES for folder in folders[1:end] if (folder / N5_ATTRIBUTES).is_file()]


def n5_dataset(path: Path) -> Path | None:
    """Return the dataset of N5 that a folder stands for; None if there is none, or its attributes are not understood.

    `kdseg.volumes.n5_metadata` says what is wrong with them.
    """
    for folder in map(path.joinpath, N5_FINEST):
        file = folder / N5_ATTRIBUTES
        try:
            if file.is_file() and "dimensions" in json.loads(file.read_text(encoding="utf-8")):
                return folder
        except (OSError, ValueError, TypeError, RecursionError):
            return None
    return None


def files_of(*addresses: str | None) -> list[str]:
    """Return the files or folders that addresses lead to, each once; none of those in buckets.

    Of a path below a file, which links to a bucket, it is that file; of N5, attributes above it are files of their own.
    """
    paths = [locate(address).path for address in addresses if address is not None and not is_url(address)]
    found = [next((one for one in (path, *path.parents) if one.is_file()), path) for path in paths]
    return [str(path) for path in dict.fromkeys(one for path in found for one in (path, *above(path)))]


def _local(text: Any) -> Any:
    return local(text) if isinstance(text, str) else text


def _normal(path: str) -> str:
    """Return a path by its shortest name, without ``.``, ``..`` and slashes in excess."""
    short = os.path.normpath(path)
    short = f"/{short.lstrip('/')}" if short.startswith("/") else short
    if Path(short).resolve() != Path(path).resolve():
        raise ValueError(f"`..` follows a link there, so that it is {Path(path).resolve()}: name it so")
    return short


Address = Annotated[str, AfterValidator(local)]
"""Address of a volume, or path of a file, as `local` returns it."""
Folder = Annotated[str, Field(pattern=FOLDER), AfterValidator(_normal), BeforeValidator(_local)]
"""Path of a folder of results, in one spelling: it is compared with the names that people give to Snakemake."""
