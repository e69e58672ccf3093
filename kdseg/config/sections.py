"""Stacks of unrelated images: options that no section can look beyond by default, and refusals of those that do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kdseg.config.terms.affinity import CadOptions
from kdseg.config.terms.relation import SkdOptions, SpkdOptions

if TYPE_CHECKING:
    from kdseg.config import Config
    from kdseg.config.networks import ModelOptions
    from kdseg.config.terms import TermOptions

_BLOCK = [4, 1024, 1024]
_DEFAULTS: dict[str, Any] = {
    "offsets": [[0, -1, 0], [0, 0, -1], [0, -3, 0], [0, 0, -3], [0, -9, 0], [0, 0, -9]],
    "storage": {"chunk": [1, 256, 256], "shard": [4, 512, 512]},
    "predict": {"block": _BLOCK, "tile": [1, 256, 256]},
    "fragments": {"block": _BLOCK, "halo": [0, 16, 16]},
    "edges": {"block": _BLOCK},
    "agglomerate": {"chunk": [512, 1024, 1024]},
    "segment": {"block": _BLOCK},
    "evaluate": {"block": _BLOCK},
}
_TRAIN = {
    "crop": [1, 128, 128],
    "validate_shape": [16, 256, 256],
    "augment": {"missing_section": 0, "misaligned_section": 0},
}


def within_sections(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a configuration, before they are checked, with what `sections: true` makes of defaults."""
    volumes = values.get("volumes")
    if isinstance(volumes, dict):
        values = {**values, "volumes": {name: _volume(volume) for name, volume in volumes.items()}}
    models = values.get("models")
    if isinstance(models, dict):
        values = {**values, "models": {name: _model(model) for name, model in models.items()}}
    filled: dict[str, Any] = _filled(values, _DEFAULTS)
    return filled


def reaches(config: Config) -> Iterator[str]:
    """Yield what of a configuration looks beyond a section, each in one line that says what to do."""
    if leaving := [list(offset) for offset in config.offsets if offset[0]]:
        yield f"offsets {leaving} leave their section: remove them"
    if config.predict.tile[0] > 1:
        yield f"predict.tile {list(config.predict.tile)} has more than one section: use [1, h, w]"
    if config.fragments.halo[0]:
        yield f"fragments.halo {list(config.fragments.halo)} reaches into other sections: use [0, h, w]"
    if config.tune_segmentation and (deep := [list(halo) for halo in config.tune_segmentation.halo if halo[0]]):
        yield f"tune_segmentation.halo {deep} reaches into other sections: use [0, h, w]"
    waterz = {
        "fragments.premerge": config.fragments.premerge is not None,
        "fragments.watershed.method: waterz": config.fragments.watershed.method == "waterz",
        "agglomerate.engine: waterz": config.agglomerate.engine == "waterz",
    }
    for option in (option for option, given in waterz.items() if given):
        yield f"{option} is waterz', which joins voxels along z: remove it"
    for name, model in config.models.items():
        for problem in (*_reaches(model), *_joined(model.train.terms)):
            yield f"models.{name}: {problem}"
    for name, method in config.compare.methods.items() if config.compare else ():
        for problem in _joined(method.terms):
            yield f"compare.methods.{name}: {problem}"


def _reaches(model: ModelOptions) -> Iterator[str]:
    network, train = model.network, model.train
    if deep := [list(kernel) for kernel in network.level_kernels if kernel[0] > 1]:
        yield f"network.kernels {deep} reach across sections: use [1, 3, 3]"
    if deep := [list(step) for step in network.steps if step[0] > 1]:
        yield f"network.downsample {deep} pools sections: use [1, 2, 2]"
    if train.crop[0] > 1:
        yield f"train.crop {list(train.crop)} has more than one section: use [1, h, w]"
    if train.augment.rotate == "zyx":
        yield "train.augment.rotate 'zyx' turns sections out of their plane: use 'yx'"
    for option in ("missing_section", "misaligned_section"):
        if value := getattr(train.augment, option):
            yield f"train.augment.{option} {value} is of sections that follow each other: set it to 0"


def _joined(terms: tuple[TermOptions, ...]) -> Iterator[str]:
    for term in terms:
        if isinstance(term, CadOptions) and term.graft:
            yield "the term 'cad' grafts sections of one network between those of another: set its graft to 0"
        if isinstance(term, SpkdOptions) and term.parts[0] > 1:
            yield f"the term 'spkd' cuts features into {list(term.parts)} parts: use [1, h, w]"
        if isinstance(term, SkdOptions) and term.pool[0] > 1:
            yield f"the term 'skd' pools features by {list(term.pool)}: use [1, h, w]"


def _volume(volume: Any) -> Any:
    if not isinstance(volume, dict) or volume.get("phantom") is not None:
        return volume
    return _filled(volume, {"sections": {"order": "name"}})


def _model(model: Any) -> Any:
    network = model.get("network") if isinstance(model, dict) else None
    widths = network.get("widths") if isinstance(network, dict) else None
    if not isinstance(widths, list | tuple):
        return model  # a mistake, of which the check tells
    levels = {"downsample": [[1, 2, 2]] * (len(widths) - 1), "kernels": [[1, 3, 3]] * len(widths)}
    return _filled(model, {"network": levels, "train": _TRAIN})


def _filled(values: Any, defaults: dict[str, Any]) -> Any:
    """Return values with defaults where nothing is said, section by section."""
    if not isinstance(values, dict):
        return values
    filled = {
        key: _filled(values.get(key, {}), default) if isinstance(default, dict) else values.get(key, default)
        for key, default in defaults.items()
    }
    return {**values, **filled}
