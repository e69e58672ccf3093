"""Progress and failures of the stages of a run; reads only, and takes no lock."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from kdseg.errors import MissingError, UnreadableError
from kdseg.results.files import again
from kdseg.results.kept import kept
from kdseg.results.locks import holder
from kdseg.results.manifests import CLAIM, begun, private_folder
from kdseg.results.sealed import read_sealed
from kdseg.running.heartbeat import span
from kdseg.running.telemetry import how_far, status_path


class Standing(NamedTuple):
    """Progress of one result.

    Attributes:
        name: path of its manifest below the run, without suffix.
        stage: that makes it.
        state: ``finished``, ``running``, ``stopped``: killed or failed, and resumed by the next run, ``kept``: as it
            was, though its manifest is gone, since a rerun was refused, or ``damaged``: its claim or its manifest is
            not as it was written, see ``facts["damage"]``.
        facts: of the manifest (``stats``) or of the telemetry, see `kdseg.running.telemetry`; empty if there are none.
    """

    name: str
    stage: str
    state: str
    facts: dict[str, Any]


def run(folder: Path) -> list[Standing]:
    """Return how far all results below a folder are, those that were claimed first first.

    Args:
        folder: of a run, e.g. `results/mine`, or of a part of it.

    Raises:
        MissingError: if no stage of kdseg has begun in it.
    """
    claimed = (private_folder(manifest) / CLAIM for manifest in begun(folder))
    claims = sorted((path for path in claimed if path.exists()), key=lambda path: path.stat().st_mtime)
    if not claims:
        raise MissingError(f"no stage of kdseg has begun in {folder}: name the configuration's `results`")
    found = [_standing(folder, claim) for claim in claims]
    return [one for one in found if one is not None]


def _standing(folder: Path, claim: Path) -> Standing | None:
    manifest = claim.parent.with_name(f"{claim.parent.name.removeprefix('.')}.json")
    name = str(manifest.relative_to(folder).with_suffix(""))
    try:
        claimed, made = _sealed(claim), _sealed(manifest)
    except UnreadableError as error:
        return Standing(name, "", "damaged", {"damage": f"{error}; {again(manifest)}"})
    if claimed is None:  # it was removed since
        return None
    stage = claimed.get("stage", "clear")
    if made is not None and made.get("fingerprint") == claimed["fingerprint"]:
        return Standing(name, stage, "finished", made.get("stats", {}))
    state = "running" if holder(claim.parent) else "stopped" if kept(manifest) is None else "kept"
    try:
        facts = _sealed(status_path(manifest)) or {}
    except UnreadableError:
        facts = {}
    return Standing(name, stage, state, facts)


def _sealed(path: Path) -> dict[str, Any] | None:
    """Return a file that others may be replacing or removing; None if it is not there."""
    try:
        return read_sealed(path)
    except MissingError:
        return None


def described(standing: Standing) -> str:
    """Return one line about a result."""
    facts, parts = standing.facts, [f"{standing.name:40} {standing.state:9}"]
    if standing.state == "finished":
        speed = facts.get("mvox_per_s")
        parts += [span(facts["seconds"])] if "seconds" in facts else []
        parts += [f"{speed:g} Mvox/s"] if speed else []
        parts += _reused(facts)
        return "  ".join(parts)
    if standing.state == "damaged":
        parts.append(facts["damage"])
    running = standing.state == "running"
    parts += how_far(facts, running=running)
    if running and "workers" in facts:
        parts.append(_shares(facts["workers"]))
    return "  ".join(part for part in parts if part)


def failures(standing: Standing, most: int) -> list[str]:
    """Return a line about each of the first blocks that failed."""
    listed = standing.facts.get("failures", [])[:most] if standing.state != "finished" else []
    return [f"  block {one['region']}, {one['attempts']} attempts: {one['error']}" for one in listed]


def _reused(facts: dict[str, Any]) -> list[str]:
    """Return how many blocks were taken from an earlier result, if any were."""
    blocks = facts.get("blocks", {})
    return [f"{blocks['reused']} of {blocks['total']} blocks reused"] if blocks.get("reused") else []


def _shares(workers: dict[str, dict[str, Any]]) -> str:
    """Return how the workers' time is shared."""
    sums = {what: sum(one["seconds"][what] for one in workers.values()) for what in ("read", "compute", "write")}
    total = sum(sums.values())
    return ", ".join(f"{what} {100 * seconds / total:.0f} %" for what, seconds in sums.items()) if total else ""
