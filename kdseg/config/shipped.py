"""Trained networks that come with kdseg, each with a card that says what it is; they are used by name."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from pydantic import Field, ValidationError

from kdseg.config.base import Extent, Nanometres, Section
from kdseg.config.segmentation import AgglomerateOptions, EdgesOptions, FragmentsOptions, SegmentOptions
from kdseg.errors import ConfigError, MissingError, UnreadableError
from kdseg.geometry import knows_voxels

FOLDER = Path(__file__).resolve().parents[1] / "shipped"
SUFFIX = ".safetensors"


class Card(Section):
    """All that one must know of a trained network."""

    name: str
    """By which it is used; its weights lie beside the card as NAME.safetensors."""
    title: str
    """A line."""
    parameters: int
    kmac_per_voxel: float
    voxel_size: Nanometres
    """nm, (z, y, x), of the data it was trained on."""
    sha256: str
    """Of the file of the weights, in hex."""
    data: str
    """Volumes that it was trained on."""
    attribution: str
    """Source and licence of the data."""
    licence: str
    """Licence of the weights."""
    recipe: str
    """Way in which it was trained."""
    command: str
    """Line that trains it again."""
    scores: dict[str, str] = Field(default_factory=dict)
    """By volume, in words."""
    limits: str
    """Uses that it was not made or tried for."""
    fragments: FragmentsOptions = FragmentsOptions()
    """Post-processing that was chosen for it."""
    edges: EdgesOptions = EdgesOptions()
    agglomerate: AgglomerateOptions = AgglomerateOptions()
    segment: SegmentOptions = SegmentOptions()
    tile: Extent = (128, 128, 128)
    """Voxels that one forward pass yields."""

    @property
    def file(self) -> Path:
        """Path of the weights."""
        return FOLDER / f"{self.name}{SUFFIX}"

    @property
    def block(self) -> Extent:
        """Voxels that one task predicts: some tiles."""
        z, y, x = self.tile
        return (2 * z, 2 * y, 2 * x)

    def knows(self, voxel_size: Nanometres) -> bool:
        """Return whether it is of use for voxels of a size, nm."""
        return knows_voxels(self.voxel_size, voxel_size)

    def fits(self, fragments: FragmentsOptions, edges: EdgesOptions, agglomerate: AgglomerateOptions) -> bool:
        """Return whether its threshold was chosen with these options; extents of blocks do not count."""
        pairs: tuple[tuple[Section, Section, set[str]], ...] = (
            (self.fragments, fragments, {"block", "halo"}),
            (self.edges, edges, {"block"}),
            (self.agglomerate, agglomerate, {"chunk", "thresholds"}),
        )
        return all(
            ours.model_dump(exclude=extent) == theirs.model_dump(exclude=extent) for ours, theirs, extent in pairs
        )

    @property
    def threshold(self) -> float:
        """Score up to which its fragments are merged.

        Raises:
            UnreadableError: if the card does not say it.
        """
        if self.segment.threshold is None:
            raise UnreadableError(f"the card of {self.name!r} names no threshold: install kdseg again")
        return self.segment.threshold


@cache
def cards() -> dict[str, Card]:
    """Return the cards of all shipped networks by name, in alphabetical order.

    Raises:
        UnreadableError: if a card is damaged.
    """
    found = {}
    for path in sorted(FOLDER.glob("*.json")):
        try:
            card = Card.model_validate_json(path.read_text())
        except (OSError, ValidationError) as error:
            raise UnreadableError(f"{path} is no card of a network ({error}): install kdseg again") from None
        found[card.name] = card
    return dict(sorted(found.items()))


def unknown(name: str) -> ConfigError:
    """Return the error for a name that no shipped network has."""
    return ConfigError(
        f"no network {name!r} comes with kdseg: expected one of {', '.join(cards())}, or the path of a {SUFFIX} file"
    )


def named(model: str | Path) -> Path:
    """Return the path of a shipped network that is given by its name; any other path as it is."""
    return cards()[str(model)].file if str(model) in cards() else Path(model)


def model_file(model: str | Path) -> Path:
    """Return the path of a model file that is named by its path, or by the name of a shipped network.

    Raises:
        ConfigError: if it is a name that no shipped network has.
        MissingError: if there is no such file.
        UnreadableError: if the weights of a shipped network are not those that its card is of.
    """
    path = named(model)
    if path.suffix != SUFFIX and len(path.parts) == 1 and not path.is_file():
        raise unknown(str(model))
    if str(model) in cards() and not path.is_file():
        raise MissingError(f"the weights of {str(model)!r} are gone from {path}: install kdseg again")
    if not path.is_file():
        raise MissingError(f"no model file at {path}: expected one, or the name of a network that `kdseg models` lists")
    if str(model) in cards() and hashlib.sha256(path.read_bytes()).hexdigest() != cards()[str(model)].sha256:
        raise UnreadableError(f"{path} is not the network that its card is of: install kdseg again")
    return path
