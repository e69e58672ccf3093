"""Which manifests a stage reads, each under the name of its role."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from kdseg.config.base import Section

Product = Literal["affinities", "affinities_flips", "affinities_all", "embedding"]
"""What a network predicts: affinities, as they are or averaged over images of each tile, or the embedding."""


class VolumeInputs(Section):
    """The manifests of one volume."""

    raw: Path
    """Of raw data."""
    labels: Path | None = None
    """Of ground truth, if there is any."""


class TrainInputs(Section):
    """The manifests that a network is trained on."""

    volumes: dict[str, VolumeInputs]
    """By name."""
    teachers: dict[str, Path] = Field(default_factory=dict)
    """Networks to distil from, by name, where they predict online."""
    stored: dict[str, dict[str, dict[Product, Path]]] = Field(default_factory=dict)
    """What teachers predicted, where that is stored: by teacher, volume and product."""
    instances: dict[str, Path] = Field(default_factory=dict)
    """Segmentations by the first teacher, of volumes without ground truth, by volume."""
