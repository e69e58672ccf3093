"""Volumes in a bucket: their addresses, the links that stand for them, and what the network does wrong.

Where a volume ``x.zarr`` would lie beside its manifest lies a small file of that name instead, a link::

    {"url": "s3://bucket/prefix/x-3f9a12c07b44.zarr"}

A file there that has the key ``phantom`` is no link: it says how to compute the volume (see
`kdseg.volumes.phantom.unstored`).

The name in the bucket is new for every claim, so that chunks of an earlier result can never shine through. All access
is by fsspec, whose file systems survive a fork of the process (those of obstore hang: its threads stay behind).
"""

from __future__ import annotations

import json
import os
import re
import uuid
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdseg.errors import ConfigError, KdsegError, MissingError, UnreadableError

_REMOTE = re.compile(r"^(s3|gs|https?)://")
_OURS = re.compile(r"^(s3|gs)://[^/]+/(.+/)?[^/]+-[0-9a-f]{12}\.zarr$")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
COMPUTED = "phantom"
"""Key of a file that stands for a volume which is computed when it is read."""
OPTIONS = {"use_listings_cache": False}
"""Of fsspec's file systems: a listing that is remembered does not know what another process wrote."""


def is_remote(address: str | Path) -> bool:
    """Return whether an address names something in a bucket or on a web server: s3://, gs://, https:// or http://."""
    return isinstance(address, str) and _REMOTE.match(address) is not None


def resolve(address: str | Path) -> str | Path:
    """Return where a zarr really is: the path itself, or the URL that it, or a folder above it, is a link to.

    Args:
        address: path or URL of a zarr store, or of a group or array in it.

    Returns:
        A URL as a string, or a path.

    Raises:
        ConfigError: if a URL names a variable of the environment that is not set, or has credentials of a bucket.
        UnreadableError: if a URL has a query.
    """
    if isinstance(address, str) and is_remote(address):
        return _revealed(address.rstrip("/"))
    path = Path(address)
    for link in (path, *path.parents):
        if is_link(link):
            inside = path.relative_to(link).as_posix()
            return _revealed(read_link(link) if inside == "." else f"{read_link(link)}/{inside}")
    return path


def _revealed(url: str) -> str:
    """Return a URL with the values of the environment variables that it names, ``${NAME}``."""
    missing = [name for name in _VARIABLE.findall(url) if name not in os.environ]
    if missing:
        raise ConfigError(f"{url} needs the environment variables {missing}, which are not set: set them")
    found = _VARIABLE.sub(lambda name: os.environ[name[1]], url)
    scheme, _, rest = found.partition("://")
    if "?" in rest:
        raise UnreadableError(
            f"{found} has a query, so it is the address of one file, but a zarr is many: copy it here"
        )
    if "@" in rest.partition("/")[0] and not scheme.startswith("http"):
        raise ConfigError(
            f"{found}: credentials of a bucket come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE), not from the address: remove them"
        )
    return found


def is_link(store: Path) -> bool:
    """Return whether a file that links to a bucket lies where a zarr store would."""
    return store.suffix == ".zarr" and store.is_file() and COMPUTED not in stand_in(store)


def stand_in(store: Path) -> dict[str, Any]:
    """Return what the file says that lies where a zarr store would.

    Raises:
        UnreadableError: if it cannot be read, or says neither where the volume is nor how to compute it.
    """
    try:
        values = json.loads(store.read_text())
        if not isinstance(values, dict) or not values.keys() & {"url", COMPUTED}:
            raise ValueError(f"expected a JSON object with the key 'url' or {COMPUTED!r}")
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableError(
            f"cannot open {store} as zarr: it is neither that nor a link to one ({error!r}); if nothing else is to be "
            "there, delete the file and make the volume again"
        ) from error
    return values


def read_link(link: Path) -> str:
    """Return the URL that a link stands for.

    Raises:
        UnreadableError: if the file is no link.
    """
    url = stand_in(link).get("url")
    if not isinstance(url, str) or not is_remote(url):
        raise UnreadableError(f"cannot open {link} as zarr: it is a link to {url!r}, expected s3://bucket/…")
    return url.rstrip("/")


def new_url(prefix: str, name: str) -> str:
    """Return a URL below ``prefix`` where nothing lies yet."""
    return f"{prefix.rstrip('/')}/{name}-{uuid.uuid4().hex[:12]}.zarr"


def exists(url: str) -> bool:
    """Return whether a zarr begins at ``url``."""
    return any(True for _ in _metadata(url))


def metadata(url: str) -> dict[str, str]:
    """Return what a zarr says of itself, as text by the name of the object; for an image, of its full resolution too.

    Raises:
        MissingError: if there is no zarr.
    """
    found = dict(_metadata(url))
    if not found:
        raise _nothing(url)
    for text in list(found.values()):
        level = _full_resolution(text)
        if level is not None:
            found |= {f"{level}/{name}": inner for name, inner in _metadata(f"{url}/{level}")}
    return found


def metadata_names(url: str) -> list[str]:
    """Return the names of the objects in which a volume that kdseg made says what it and its levels are."""
    with reaching(url):
        system, path = _system(url)
        below = [str(name).rpartition("/")[2] for name in system.ls(path, detail=False)]
    return [name for name in below if name == _METADATA[0]] + [
        f"{name}/{_METADATA[0]}" for name in below if name.isdecimal()
    ]


def content(url: str) -> bytes | None:
    """Return the bytes of an object; None if it is not there."""
    with reaching(url):
        system, path = _system(url)
        try:
            return bytes(system.cat_file(path))
        except FileNotFoundError:
            return None


def sizes(folder: str) -> dict[str, int]:
    """Return the sizes in bytes of all objects below a URL, by their URLs: a request for each thousand."""
    with reaching(folder):
        system, path = _system(folder)
        found = system.find(path, detail=True).items()
    return {f"{folder}{name.removeprefix(path)}": int(facts["size"]) for name, facts in found}


def etag(facts: Mapping[str, Any]) -> int:
    """Return the CRC-32 of the ETag among the facts that fsspec tells of an object; 0 if there is none."""
    tag = facts.get("ETag") or facts.get("etag") or ""
    return zlib.crc32(str(tag).encode())


def delete(url: str) -> None:
    """Delete an object of a volume that kdseg made in a bucket, if it is there."""
    with reaching(url):
        system, path = _system(url)
        if system.exists(path):
            system.rm_file(path)


def remove(url: str) -> None:
    """Delete a volume that kdseg made in a bucket.

    Raises:
        UnreadableError: if its name is none that kdseg gives: it may be somebody else's.
    """
    if not _OURS.match(url):
        raise UnreadableError(f"{url} does not look like a volume that kdseg made, so it is not deleted: do it by hand")
    with reaching(url):
        system, path = _system(url)
        if system.exists(path):
            system.rm(path, recursive=True)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn what a bucket or the network refuses into errors of kdseg, while the body runs.

    Raises:
        ConfigError: if the package that reaches it is not installed.
        MissingError: if there is no such bucket or object.
        UnreadableError: if there are no credentials, the wrong ones, or the network does not answer.
    """
    try:
        yield
    except ImportError as error:
        hint = "gcsfs" if url.startswith("gs:") else "'kdseg[s3]'"
        raise ConfigError(f"{url} cannot be reached without another package: pip install {hint} ({error})") from error
    except FileNotFoundError as error:
        raise _nothing(url) from error
    except PermissionError as error:
        raise UnreadableError(
            f"{url} is refused: {error}; check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) "
            "and what they may do"
        ) from error
    except Exception as error:
        if isinstance(error, KdsegError) or not _of_the_network(error):
            raise
        raise UnreadableError(
            f"cannot reach {url}: {error}; check the network, AWS_ENDPOINT_URL and the credentials (AWS_ACCESS_KEY_ID, "
            "AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true)"
        ) from error


def _nothing(url: str) -> MissingError:
    return MissingError(f"no zarr at {url}, or no such bucket; expected e.g. s3://bucket/path.zarr/group")


def _of_the_network(error: Exception) -> bool:
    # not by class: neither library need be installed, and their errors have no common base
    packages = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return isinstance(error, OSError) or bool(packages & {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google"})


def _system(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url, **OPTIONS)
    return system, path


def _metadata(url: str) -> Iterator[tuple[str, str]]:
    with reaching(url):
        system, path = _system(url)
        for name in _METADATA:
            try:
                yield name, system.cat_file(f"{path}/{name}").decode(errors="replace")
            except FileNotFoundError:
                continue


def _full_resolution(text: str) -> str | None:
    try:
        values = json.loads(text)
        attributes = values.get("attributes", values)
        return str(attributes.get("ome", attributes)["multiscales"][0]["datasets"][0]["path"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
