"""Results that are there below the folder of a run: manifests, training curves and stores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdseg.config import Config
from kdseg.errors import MissingError, UnreadableError
from kdseg.results.curve import read_curve
from kdseg.results.manifests import Manifest, read

Points = tuple[tuple[float, float | None], ...]
Curve = Mapping[str, Points]
"""Column of a training curve → its points (step, value), None where a step has no value."""
VALIDATED = tuple(f"{what}{key}" for what in ("", "agreement_") for key in ("voi", "arand", "affinity_loss"))
"""Columns that are measured now and then: an empty cell is no gap."""

STAGES = ("affinities", "fragments", "edges", "agglomeration", "sweep", "segmentation", "scores")
"""Manifests of one model on one volume, in the order in which they are made."""
VOLUME_KINDS = ("raw", "labels", "baseline", "mask")
CURVE = "model.training/curve.csv"


@dataclass(frozen=True)
class Results:
    """Everything the report is made of.

    Attributes:
        config: configuration of the run.
        manifests: finished manifests by their path below ``config.results`` without suffix, e.g.
            ``"student/cube/affinities"``; those that are not there are left out.
        curves: training curves by model; a model without one is left out.
    """

    config: Config
    manifests: Mapping[str, Manifest]
    curves: Mapping[str, Curve]

    def stats(self, key: str) -> Mapping[str, Any]:
        """Return what a stage measured; empty if it has not finished."""
        manifest = self.manifests.get(key)
        return {} if manifest is None else manifest.stats

    def number(self, key: str, name: str) -> float | None:
        """Return a finite number that a stage measured, else None."""
        return finite(self.stats(key).get(name))

    def rate(self, key: str) -> float | None:
        """Return how fast a stage was in million voxels per second, None if it did not measure it."""
        return self.number(key, "mvox_per_s")

    def prediction(self, model: str, volume: str) -> str:
        """Return the key of the stage that ran the network on a volume."""
        return f"{model}/{volume}/{'fragments' if self.config.predict.fused else 'affinities'}"

    def store(self, key: str) -> Path | None:
        """Return the result that lies beside a finished manifest, None if there is none."""
        manifest = self.manifests.get(key)
        store = None if manifest is None else manifest.store
        return store if store is not None and store.exists() else None


def collect(config: Config) -> Results:
    """Read all manifests and training curves that ``config`` leads to and that are there.

    Raises:
        MissingError: if there is not one.
    """
    folder = Path(config.results)
    manifests = {key: read(folder / f"{key}.json") for key in expected(config) if (folder / f"{key}.json").exists()}
    if not manifests:
        raise MissingError(f"no results below {folder}: run the workflow first, `kdseg run <this run's YAML>`")
    paths = {model: folder / model / CURVE for model in config.models}
    curves = {model: curve_points(path) for model, path in paths.items() if path.exists()}
    return Results(config, manifests, curves)


def expected(config: Config) -> list[str]:
    """Return the keys of all manifests that a run of ``config`` may leave, in the order of its stages."""
    volumes = [f"volumes/{volume}/{kind}" for volume in config.volumes for kind in VOLUME_KINDS]
    names = (*config.models, *config.pretrained)
    models = [f"{model}/model" for model in names]
    stages = [f"{model}/{volume}/{stage}" for model in names for volume in config.volumes for stage in STAGES]
    searches = [*(f"{model}/tuned" for model in names), "tuned"]
    return [*volumes, *models, *stages, *searches, *(f"baseline/{volume}/scores" for volume in config.volumes)]


def curve_points(path: Path) -> dict[str, Points]:
    """Read the curve of a training run.

    Args:
        path: CSV file with the columns ``step`` and ``total``; empty and non-finite cells have no value.

    Returns:
        Points (step, value) per column other than ``step``; columns without any value are left out.

    Raises:
        UnreadableError: if a column is missing, or a cell is no number.
    """
    points: dict[str, list[tuple[float, float | None]]] = {}
    try:
        for row in read_curve(path):
            step = float(row.pop("step"))
            for name, cell in row.items():
                if cell or name not in VALIDATED:
                    points.setdefault(name, []).append((step, finite(float(cell)) if cell else None))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path} is not a training curve: {error}; delete it and train again") from error
    if points and "total" not in points:
        raise UnreadableError(f"{path} has the columns {sorted(points)}, expected step, total, …")
    return {name: tuple(values) for name, values in points.items() if any(y is not None for _, y in values)}


def finite(value: Any) -> float | None:
    """Return ``value`` as a float where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
