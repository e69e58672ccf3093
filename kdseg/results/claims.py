"""Files that a stage leaves behind, and the right to write them.

Beside the manifest ``x.json`` of a stage lie::

    x.zarr, x.tables, …  the result (never an output of Snakemake: it deletes the outputs of failed jobs);
                         x.zarr is a file where the volume lies in a bucket (see `kdseg.results.remote`), or is computed
                         when it is read (see `kdseg.volumes.phantom.unstored`)
    .x/claim.json     what the result is made of: options and inputs, written before the first block
    .x/64x64x64/      list and parts of finished blocks, for blocks of this extent
    .x/lock           who is writing

A stage that finds its own claim goes on where it stopped. One that finds another claim refuses, and says
what differs and how to clear it; with ``overwrite`` it clears by itself. A claim of which nothing was made yet, as of a
first try that failed at once, gives way. The manifest comes last.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdseg import __version__
from kdseg.errors import ClaimError, MissingError, UnreadableError
from kdseg.geometry import Triple
from kdseg.results import remote
from kdseg.results.files import CHECKSUMS, expect_removable, remove_unfinished
from kdseg.results.kept import keep, kept, same, take
from kdseg.results.locks import locked
from kdseg.results.manifests import CLAIM, file_fingerprint, fingerprint, private_folder, write_json
from kdseg.results.sealed import read_sealed, write_sealed
from kdseg.results.usage import cpu_seconds, peak_mb

log = logging.getLogger(__name__)

CLEARING = "clearing"
"""Fingerprint of a claim whose result is being removed; what is left of it is worth nothing."""
CLAIMED = ("fingerprint", "stage", "options", "inputs")
"""Keys of a claim; the manifest has them, too."""


@dataclass
class Claim:
    """A stage's hold on its result.

    Attributes:
        manifest: path of the manifest.
        fingerprint: hash of stage, options and inputs.
        resumed: whether an earlier attempt had begun; speeds are then not those of the whole.
        stats: what the stage wants to be in the manifest.
    """

    manifest: Path
    fingerprint: str
    resumed: bool = False
    stats: dict[str, Any] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """The volume beside the manifest."""
        return self.manifest.with_suffix(".zarr")

    @property
    def table(self) -> Path:
        """The table beside the manifest."""
        return self.manifest.with_suffix(".npz")

    @property
    def tables(self) -> Path:
        """The folder of tables beside the manifest."""
        return self.manifest.with_suffix(".tables")

    @property
    def parquet(self) -> Path:
        """The table for other programs beside the manifest."""
        return self.manifest.with_suffix(".parquet")

    @property
    def checksums(self) -> Path:
        """The checksums of the files of the volume beside the manifest."""
        return self.manifest.with_suffix(CHECKSUMS)

    @property
    def edits(self) -> Path:
        """The table of edits beside the manifest."""
        return self.manifest.with_suffix(".edits.csv")

    @property
    def model(self) -> Path:
        """The network beside the manifest."""
        return self.manifest.with_suffix(".safetensors")

    @property
    def claimed(self) -> Path:
        """The claim itself."""
        return self.private / CLAIM

    @property
    def results(self) -> tuple[Path, ...]:
        """Paths where the result of a stage may lie."""
        return (self.store, self.table, self.tables, self.model, self.parquet, self.checksums, self.edits)

    @property
    def private(self) -> Path:
        """Folder of the claim, the lists of finished blocks and what else the stage keeps for itself."""
        return private_folder(self.manifest)

    def progress(self, block: Triple) -> Path:
        """Return the folder of what is known of finished blocks of this extent; it is made."""
        folder = self.private / "x".join(str(n) for n in block)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def claim(
    manifest: Path,
    stage: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, str],
    *,
    volume: bool = False,
    tables: bool = False,
    bucket: str | None = None,
    overwrite: bool = False,
) -> Iterator[Claim]:
    """Hold a stage's result while the body makes it, and write the manifest when the body is done.

    Args:
        manifest: path of the manifest; the result lies beside it.
        stage: name of the stage.
        options: what determines the result, as JSON values.
        inputs: fingerprint of each input.
        volume: the result is a volume that grows block by block; if it is gone, so is the progress.
        tables: likewise, a folder of tables.
        bucket: URL below which a new volume is made, with a link to it beside the manifest; None: it is made here.
        overwrite: clear what other options or inputs made, instead of refusing.

    Yields:
        The claim; fill its ``stats``.

    Raises:
        ClaimError: if the result is of other options or inputs, or another run is writing it.
    """
    mark = fingerprint(stage, options, inputs)
    held = Claim(manifest, mark)
    with locked(held.private):
        made_of = {"fingerprint": mark, "stage": stage, "options": dict(options), "inputs": dict(inputs)}
        if held.claimed.exists():
            before = _before(held, overwrite)
            if before["fingerprint"] == CLEARING or (
                (volume and _gone(held.store)) or (tables and not held.tables.exists())
            ):
                _remove(held)
            elif before["fingerprint"] != mark:
                if _is_worth_something(held):
                    _refuse_or_clear(held, before, made_of, overwrite)
                else:
                    log.info("nothing was made yet of an earlier try with other options or inputs: it gives way")
                    _remove(held)
            else:
                held.resumed = True
        elif unclaimed := [path for path in held.results if path.exists()]:
            raise ClaimError(
                f"{unclaimed[0]} is there, but no claim says what it is made of; kdseg verify {manifest} --repair "
                "writes one if its manifest is sound; else move it away or delete it"
            )
        else:
            _forget_progress(held)
        write_sealed(held.claimed, made_of)
        earlier = take(manifest)
        for path in (held.manifest, held.checksums):  # blocks may be done again, and read, before they are known anew
            path.unlink(missing_ok=True)
        if volume and bucket is not None and not held.store.exists():
            write_json(held.store, {"url": remote.new_url(bucket, manifest.stem)})
        started = time.monotonic()
        yield held
        seconds = time.monotonic() - started
        remove_unfinished(held.tables)
        _finish(held, made_of, seconds, earlier if held.resumed else None)


def clear(manifest: Path) -> list[Path | str]:
    """Remove a manifest and all that its stage made, in a bucket too, and return what was removed: paths and URLs.

    Nothing is removed where a part of it may not be. A removal that fails otherwise, e.g. because a bucket does not
    answer, is completed by the next one.

    Raises:
        MissingError: if there is nothing to remove.
    """
    held = Claim(manifest, "")
    if not held.claimed.exists():
        raise MissingError(f"nothing to clear at {manifest}: no stage of kdseg has claimed it")
    with locked(held.private):
        found: list[Path | str] = [*_made(held)]
        found += [remote.read_link(held.store)] if remote.is_link(held.store) else []
        _remove(held)
        # The lock goes while it is held: who waits for it finds another file at its path, and takes that.
        shutil.rmtree(held.private)
    return found


def _finish(held: Claim, made_of: dict[str, Any], seconds: float, earlier: dict[str, Any] | None) -> None:
    """Write the manifest: the ``earlier`` one, if the result is as it was when that was written."""
    voxels = held.stats.get("voxels")
    speed = None if held.resumed or voxels is None else round(voxels / max(seconds, 1e-9) / 1e6, 3)
    used = {"seconds": round(seconds, 3), "cpu_s": round(cpu_seconds(), 2), "peak_mb": round(peak_mb(), 1)}
    stats = {**used, "mvox_per_s": speed, **held.stats}
    small = [path for path in (held.table, held.parquet, held.checksums, held.edits) if path.is_file()]
    small += [held.store] if held.store.is_file() else []
    small += [held.store / name for name in _metadata(held.store)]
    store = next((path.name for path in held.results if path.exists()), None)
    values = {
        **made_of,
        "store": store,
        "files": {path.relative_to(held.manifest.parent).as_posix(): file_fingerprint(path) for path in small},
        "run": uuid.uuid4().hex,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "kdseg": __version__,
        "stats": stats,
    }
    write_sealed(held.manifest, earlier if earlier is not None and same(earlier, values) else values)
    keep(held.manifest)


def _metadata(store: Path) -> list[str]:
    """Return the names of the files, here or in a bucket, in which a volume says what it is."""
    if remote.is_link(store):
        return remote.metadata_names(remote.read_link(store))
    found = [*store.glob("zarr.json"), *store.glob("*/zarr.json")]
    return [path.relative_to(store).as_posix() for path in found]


def _before(held: Claim, overwrite: bool) -> dict[str, Any]:
    """Return the claim that is there; one that is damaged, and may be overwritten, as one that is being cleared."""
    try:
        return read_sealed(held.claimed)
    except UnreadableError as error:
        if not overwrite:
            raise ClaimError(
                f"{error}; nobody knows what {held.manifest.with_suffix('')} is made of, unless its manifest is sound: "
                f"kdseg verify {held.manifest} --repair; else remove it by: kdseg clear {held.manifest}  (or set "
                "`overwrite: true`, by hand `--overwrite`)"
            ) from error
        log.warning("clearing %s, since nobody knows what it is made of: %s", held.manifest.with_suffix(""), error)
    return {"fingerprint": CLEARING}


def _refuse_or_clear(held: Claim, before: dict[str, Any], now: dict[str, Any], overwrite: bool) -> None:
    changes = "; ".join(differences(before, now)) or "its fingerprint"
    if not overwrite:
        raise ClaimError(
            f"{held.manifest.with_suffix('')} was made of something else: {changes}. Keep it by setting another "
            f"`results:` folder, or remove it by: kdseg clear {held.manifest}  (or set "
            "`overwrite: true`, by hand `--overwrite`)"
        )
    log.warning("clearing %s, since it was made of something else: %s", held.manifest.with_suffix(""), changes)
    _remove(held)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """Yield what differs in what two results are made of, one option or input each, in words.

    Args:
        before: ``stage``, ``options`` and ``inputs`` of one result.
        now: those of the other.
        where: the key that both are the values of, with a dot at its end.
    """
    keys = before.keys() | now.keys() if where else ("stage", "options", "inputs")
    for key in sorted(keys):
        a, b = before.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from differences(a, b, f"{where}{key}.")
        elif a != b:
            yield f"{where}{key} was {_short(a)}, is {_short(b)}"


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _made(held: Claim) -> list[Path]:
    """Return the manifest and the results that are there; nothing else in the folder is kdseg's."""
    beside = [held.manifest.with_name(f"{held.manifest.stem}.{what}") for what in ("training", "status.json")]
    made = (held.manifest, *held.results, *beside)
    return [path for path in made if path.exists()]


def _is_worth_something(held: Claim) -> bool:
    """Return whether any work went into what is there: a result, finished blocks, or steps of a training."""
    training = held.manifest.with_name(f"{held.manifest.stem}.training")
    made = (held.manifest, held.table, held.parquet, held.checksums, held.edits, held.model, training / "state.pt")
    if kept(held.manifest) is not None or any(path.exists() for path in made):
        return True
    if held.tables.is_dir() and any(held.tables.iterdir()):
        return True
    return any(path.stat().st_size for path in held.private.rglob("*.txt"))  # lists of finished blocks


def _gone(store: Path) -> bool:
    """Return whether a volume is not there, be it here or in a bucket."""
    return not store.exists() or (remote.is_link(store) and not remote.exists(remote.read_link(store)))


def _forget_progress(held: Claim) -> None:
    """Remove lists and parts of finished blocks whose claim was lost: nobody knows of what result they are."""
    for path in held.private.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def _remove(held: Claim) -> None:
    made = _made(held)
    expect_removable([*made, held.private])
    # A removal that is killed must be taken up again, not be mistaken for a result: the claim says so first.
    write_sealed(held.claimed, {"fingerprint": CLEARING})
    if remote.is_link(held.store):
        remote.remove(remote.read_link(held.store))
    private = [path for path in held.private.iterdir() if path.name not in ("lock", held.claimed.name)]
    for path in [*made, *private]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    held.claimed.unlink()
