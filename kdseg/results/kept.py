"""Manifests of finished results, kept in their hidden folders too.

Snakemake removes the manifest of an earlier result before it starts the job that makes it again. If the stage is then
refused, since that result was made of something else, the result is still there, and known by this copy: it is no
output that Snakemake could take for one of the options at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdseg.errors import KdsegError
from kdseg.results.files import replacing
from kdseg.results.manifests import private_folder
from kdseg.results.sealed import read_sealed

_KEPT = "manifest.json"
_COSTS = {"seconds", "cpu_s", "peak_mb", "mvox_per_s", "blocks"}
"""Names of what a stage says of its own run."""


def keep(manifest: Path) -> None:
    """Keep the manifest of a stage that has finished."""
    with replacing(_place(manifest)) as file:
        file.write(manifest.read_bytes())


def take(manifest: Path) -> dict[str, Any] | None:
    """Return what is kept of a manifest that was removed, and keep it no longer: its result is about to change."""
    found = None if manifest.exists() else kept(manifest)
    _place(manifest).unlink(missing_ok=True)
    return found


def kept(manifest: Path) -> dict[str, Any] | None:
    """Return the manifest of a result that is as it was when it finished; None if it is not."""
    try:
        return read_sealed(_place(manifest))
    except KdsegError:
        return None


def same(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether two manifests are of the same bytes; those of tables follow from what they are made of.

    What was measured may differ in the time that it took, but where it is all of the result.
    """
    if earlier["store"] is None:
        return False
    found = [{key: value for key, value in made["stats"].items() if key not in _COSTS} for made in (earlier, now)]
    return found[0] == found[1] and all(earlier[part] == now[part] for part in ("fingerprint", "store", "files"))


def _place(manifest: Path) -> Path:
    return private_folder(manifest) / _KEPT
