"""The manifests that stages leave: read, checked against each other; and fingerprints of what they are made of."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kdseg.errors import DataError, KdsegError, MissingError, UnreadableError, masked
from kdseg.geometry import Triple
from kdseg.results import remote
from kdseg.results.files import CHECKSUMS, again, write_text
from kdseg.results.sealed import read_sealed

_N5 = "attributes.json"
"""Name of a user's file of JSON that is no manifest: of attributes of N5."""
CLAIM = "claim.json"
"""Name of the file, in the hidden folder of a stage, that says what its result is made of."""


class Manifest(BaseModel):
    """The small JSON file that a finished stage leaves: what its result is made of, and what was measured.

    Attributes:
        path: of the file.
        stage: that made the result.
        options: that determine the result, as JSON values.
        inputs: fingerprint of each input.
        fingerprint: hash of stage, options and inputs.
        store: where the result lies, whether it is still there or not; None if all of it is in ``stats``.
        files: SHA-256 of each small file of the result, by its path from the folder of the manifest: tables, metadata
            of volumes.
        run: unique to this execution of the stage.
        finished: time, ISO 8601, UTC.
        version: of kdseg.
        stats: what the stage measured or found.
    """

    model_config = ConfigDict(frozen=True)

    path: Path
    stage: str
    options: Mapping[str, Any]
    inputs: Mapping[str, str]
    fingerprint: str
    store: Path | None
    files: Mapping[str, str]
    run: str
    finished: str
    version: str
    stats: Mapping[str, Any]

    @property
    def result(self) -> Path:
        """Path of the result.

        Raises:
            MissingError: if it is gone.
            UnreadableError: if the stage has no result but the manifest, or if a volume's metadata or checksums are not
                those that it left.
        """
        if self.store is None:
            raise UnreadableError(f"{self.path} ({self.stage}) has no store beside it; name another manifest")
        if not self.store.exists():
            raise MissingError(f"{self.path} stands for {self.store}, which is gone: {again(self.path)}")
        for name in self.files:
            if name.endswith(("zarr.json", ".zarr", CHECKSUMS)):
                self.sound(name)
        return self.store

    def table(self, suffix: str) -> Path:
        """Return the path of a table beside the manifest, which is the one that the stage left.

        Args:
            suffix: of its name, e.g. ``.parquet``.

        Raises:
            MissingError: if it is gone.
            UnreadableError: if it is another one: damaged, changed, or of another run.
        """
        return self.sound(self.path.with_suffix(suffix).name)

    def sound(self, name: str) -> Path:
        """Return the path of a small file of the result, which is the one that the stage left.

        Args:
            name: its path from the folder of the manifest, one of ``files``.

        Raises:
            MissingError: if it is gone.
            UnreadableError: if it is another one: damaged, changed, or of another run.
        """
        path = self.path.parent / name
        try:
            found = file_fingerprint(path)
        except MissingError:
            raise MissingError(
                f"{path} is gone, which `kdseg {self.stage}` left beside {self.path}: {again(self.path)}"
            ) from None
        if self.files.get(name) != found:
            raise UnreadableError(
                f"{path} is not the file that `kdseg {self.stage}` left, whose SHA-256 is in {self.path}: it was "
                f"changed, damaged, or is of another run; {again(self.path)}"
            )
        return path

    @property
    def block(self) -> Triple:
        """Extent in voxels of the blocks that the result was made in."""
        z, y, x = _found(self, "options", "block")
        return (z, y, x)

    def stat(self, name: str) -> Any:
        """Return one thing that the stage measured or found, by its name."""
        return _found(self, "stats", name)


def _found(manifest: Manifest, part: str, name: str) -> Any:
    values = getattr(manifest, part)
    if name not in values:
        raise DataError(
            f"{manifest.path} is a result of `kdseg {manifest.stage}`, whose {part} have no {name!r}: name another one"
        )
    return values[name]


def fingerprint(stage: str, options: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the SHA-256 of what determines a result, in hex.

    Args:
        stage: name of the stage.
        options: its options as JSON values; not those that cannot change the result (workers, device).
        inputs: fingerprint of each input.
    """
    text = json.dumps([stage, options, inputs], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex; below a link to a bucket, of the object that lies there.

    Raises:
        MissingError: if there is no such file.
    """
    folder = remote.resolve(path.parent)
    if isinstance(folder, str):
        data = remote.content(f"{folder}/{path.name}")
        if data is None:
            raise MissingError(f"no object at {folder}/{path.name}")
        return hashlib.sha256(data).hexdigest()
    if not path.is_file():
        raise MissingError(f"no file at {path}")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_fingerprint(path: Path | str) -> str:
    """Return a hash of names, sizes and times of a user's file or folder, which may be too large to read.

    Links are followed. Of a manifest it is the fingerprint that this says. Of a URL it is a hash of the URL, without
    passwords, and the metadata there: voxels that change in a bucket are not noticed.

    Raises:
        MissingError: if there is nothing.
        UnreadableError: if there is a pipe, a socket or a device, which a reader would wait for.
    """
    if isinstance(path, str):
        return fingerprint("source", {"url": masked(path), "metadata": remote.metadata(path)}, {})
    if not path.exists():
        raise MissingError(f"nothing at {path}")
    if path.suffix == ".json" and path.name != _N5 and path.is_file():
        return read(path).fingerprint
    files = _files(str(path), path.name) if path.is_dir() else [(path.name, path.stat())]
    facts = dict[str, list[int]]()
    for name, one in files:
        if not stat.S_ISREG(one.st_mode):
            raise UnreadableError(f"{path.parent / name} is no file, but a pipe, socket or device: remove it")
        facts[name] = [one.st_size, one.st_mtime_ns]
    return fingerprint("source", facts, {})


def _files(folder: str, name: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what is in a folder and below, but folders, by its name from there; links to nothing are left out.

    Not by `Path`, which takes most of the time, since zarr has a file per chunk.

    Args:
        folder: path.
        name: of the folder, for the names in it.
        above: folders that it lies in, to which a link may lead back.
    """
    here = Path(folder).stat()
    above = (*above, (here.st_dev, here.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                facts = entry.stat()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ELOOP):
                    continue
                raise
            if not stat.S_ISDIR(facts.st_mode):
                yield f"{name}/{entry.name}", facts
            elif (facts.st_dev, facts.st_ino) not in above:
                yield from _files(entry.path, f"{name}/{entry.name}", above)


def read(manifest: Path) -> Manifest:
    """Return what a finished stage says of its result.

    Raises:
        UnreadableError: if the file is no manifest.
    """
    values = read_json(manifest)
    store = values.get("store")
    if store is not None and Path(str(store)).stem != manifest.stem:
        raise UnreadableError(
            f"{manifest} is that of {store}, in the place of another one: put it back, or {again(manifest)}"
        )
    try:
        return Manifest.model_validate(
            {
                **values,
                "path": manifest,
                "store": None if store is None else manifest.with_name(str(store)),
                "version": values.get("kdseg"),
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnreadableError(
            f"{manifest} is not a manifest: {where}: {first['msg']}; name that of a stage, or rerun its stage"
        ) from None


def owner(file: Path) -> Path:
    """Return the manifest, be it there or not, of the result that a file of a stage is part of."""
    for folder in file.parents:
        if folder.name.startswith(".") and (folder / CLAIM).exists():  # users have hidden folders, too
            return folder.with_name(f"{folder.name[1:]}.json")
    if file.parent.suffix == ".tables":
        return file.parent.with_suffix(".json")
    stem = file.name.removesuffix(CHECKSUMS) if file.name.endswith(CHECKSUMS) else file.stem
    return file.with_name(f"{stem}.json")


def fingerprint_of(manifest: Path) -> str | None:
    """Return the fingerprint of options and inputs of a result, whose stage may be at work; None if there is none.

    Raises:
        UnreadableError: if the file that says it is damaged.
    """
    for path in (manifest, private_folder(manifest) / CLAIM):
        try:
            facts = path.stat()
            return _fingerprint_in(path, facts.st_ino, facts.st_mtime_ns)
        except (FileNotFoundError, MissingError):  # a stage that begins takes the manifest away
            continue
    return None


@lru_cache(maxsize=64)
def _fingerprint_in(path: Path, _file: int, _changed: int) -> str | None:
    return read_sealed(path).get("fingerprint")


def private_folder(manifest: Path) -> Path:
    """Return the hidden folder that belongs to a manifest."""
    return manifest.with_name(f".{manifest.stem}")


def begun(path: Path) -> list[Path]:
    """Return the manifests of stages that have begun below a folder, be they finished, and written, or not.

    Raises:
        MissingError: if there is no folder.
    """
    if not path.is_dir():
        raise MissingError(f"no folder at {path}: name the configuration's `results`")
    found = list[Path]()
    for folder, names, _ in os.walk(path):
        names[:] = sorted(name for name in names if not name.endswith((".zarr", ".tables")))  # millions of files
        # the stage's own folder, not its claim: that may be what is gone
        found += [Path(folder) / f"{name[1:]}.json" for name in names if name.startswith(".")]
    return found


def finished(path: Path) -> list[Path]:
    """Return the manifests of finished stages: of all below a folder, or the one that is named.

    Raises:
        MissingError: if there is none.
    """
    if path.suffix == ".json":
        return [path]
    there = {manifest for manifest in begun(path) if manifest.exists()}
    there |= set(_alone(path, there))
    if not there:
        raise MissingError(f"no stage of kdseg has finished in {path}: name the configuration's `results`")
    return sorted(there)


def _alone(path: Path, known: Collection[Path]) -> Iterator[Path]:
    """Yield the manifests below a folder whose hidden folder is gone: whoever copies results may leave that behind."""
    for folder, names, files in os.walk(path):
        names[:] = [name for name in names if not name.startswith(".") and not name.endswith((".zarr", ".tables"))]
        for found in (Path(folder) / name for name in files if name.endswith(".json")):
            if found not in known and (_is_manifest(found) or _has_a_result(found)):
                yield found


def _is_manifest(path: Path) -> bool:
    with suppress(KdsegError):
        return read(path).path == path
    return False


def _has_a_result(path: Path) -> bool:
    """Return whether beside a file, which may be a damaged manifest, lies what a stage leaves."""
    return any(path.with_suffix(end).exists() for end in (".zarr", ".tables", CHECKSUMS, ".parquet", ".safetensors"))


def read_json(path: Path) -> dict[str, Any]:
    """Return the values of a manifest.

    Raises:
        MissingError: if the stage has not finished.
        UnreadableError: if the file is no manifest, or not as it was written.
    """
    if path.is_dir():
        raise UnreadableError(f"{path} is a folder, expected a manifest: name the .json beside it")
    try:
        values = read_sealed(path)
    except MissingError:
        raise MissingError(f"no manifest at {path}: run the stage that makes it") from None
    except UnreadableError as error:
        raise UnreadableError(f"not a manifest: {error}; name the .json of a stage, or {again(path)}") from error
    if "fingerprint" not in values:
        raise UnreadableError(
            f"{path} is not a manifest: it has no fingerprint; name that of a stage, or rerun its stage"
        )
    return values


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file so that it is there whole or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def expect_stage(manifest: Path, stage: str) -> None:
    """Refuse a manifest of another stage.

    Raises:
        DataError: if it is; the message names both.
    """
    found = read(manifest).stage
    if found != stage:
        raise DataError(f"{manifest} is a result of `kdseg {found}`, expected one of `kdseg {stage}`")


def expect_made_of(manifest: Path, **inputs: Path) -> None:
    """Refuse results of two runs, which do not fit each other.

    Args:
        manifest: of a result.
        inputs: by name, the manifests of what it must have been made of; names that it does not know are not compared.

    Raises:
        DataError: if one of them is another one, or was made again since.
    """
    was = read(manifest).inputs
    for name, made_of in inputs.items():
        if name in was and was[name] != read(made_of).fingerprint:
            raise DataError(
                f"{manifest} was not made of {made_of}, or that was made again since: name the manifests of one run, "
                f"or make it again: kdseg clear {manifest}, then rerun its stage"
            )
