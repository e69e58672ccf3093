"""Notes on voxels that the run trained on, or chose on, and scored as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdseg.config import Config
from kdseg.config.overlap import Cover, leaks, phantom_cover, placed, source_of
from kdseg.geometry import Roi, triple
from kdseg.results.manifests import read


def overlaps(config: Config, *, compare: bool = False) -> list[str]:
    """Return a sentence per use of voxels that makes scores better than they mean.

    Args:
        config: of the run, whose volumes have been converted; of others only what they share with themselves is known.
        compare: the uses of the comparison of methods.
    """
    found = {name: _cover(config, name) for name in config.volumes}
    covers = {name: cover for name, cover in found.items() if cover is not None}
    return [f"{leak.text}." for leak in leaks(config, covers, compare=compare)]


def _cover(config: Config, volume: str) -> Cover | None:
    options = config.volumes[volume]
    if options.phantom is not None:
        return phantom_cover(options, options.phantom)
    raw, labels = (_converted(Path(config.results) / "volumes" / volume / f"{kind}.json") for kind in ("raw", "labels"))
    if raw is None:
        return None
    roi = Roi(triple(raw["roi"]["offset"]), triple(raw["roi"]["shape"]))
    within = None
    if labels is not None:
        shape = triple(labels["roi"]["shape"])
        within = placed(shape, triple(labels["offset"]), roi, triple(raw["offset"]), triple(raw["voxel_size"]))
    return Cover(source_of(options), roi, within)


def _converted(manifest: Path) -> dict[str, Any] | None:
    """Return what a dataset was made of, None if it is not there, or was not read from a file."""
    options = dict(read(manifest).options) if manifest.exists() else {}
    return options if "roi" in options else None
