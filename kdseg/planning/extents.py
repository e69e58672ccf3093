"""Shapes of a configuration's volumes, from headers of their files: no voxel is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath

from kdseg.config import Config, VolumeOptions
from kdseg.config.tasks import Kind
from kdseg.errors import ConfigError
from kdseg.geometry import Triple
from kdseg.planning.jobs import Extents
from kdseg.volumes.plan import block_shape, plan_labels, plan_mask, plan_raw
from kdseg.volumes.sources import open_source

KINDS: tuple[Kind, ...] = ("raw", "labels", "baseline", "mask")


def read_extents(config: Config) -> dict[str, Extents]:
    """Return the extents of all volumes, by name."""
    return {name: _extents(options, config.storage.shard) for name, options in config.volumes.items()}


def resized(extents: Mapping[str, Extents], volume: str, shape: Triple) -> dict[str, Extents]:
    """Return extents of which one volume has another shape, all of its datasets alike.

    Raises:
        ConfigError: if there is no volume of that name.
    """
    if volume not in extents:
        raise ConfigError(f"there is no volume {volume!r} to give another shape, only {sorted(extents)}")
    one = extents[volume]
    return {**extents, volume: replace(one, shapes=dict.fromkeys(one.shapes, shape))}


def _extents(options: VolumeOptions, shard: Triple) -> Extents:
    if options.phantom is not None:
        kinds: tuple[Kind, ...] = ("raw", "labels")
        shape = options.phantom.shape
        return Extents(dict.fromkeys(kinds, shape), dict.fromkeys(kinds, shard), "phantom", options.phantom.voxel_size)
    raw = open_source(str(options.raw))
    plan = plan_raw(raw, options)
    shapes: dict[Kind, Triple] = {"raw": plan.roi.shape}
    units: dict[Kind, Triple] = {"raw": raw.unit}
    for kind in KINDS[1:]:
        if (address := getattr(options, kind)) is not None:
            source = open_source(address)
            shapes[kind] = (plan_mask if kind == "mask" else plan_labels)(source, options, raw).roi.shape
            units[kind] = source.unit
    blocks = {kind: block_shape(shard, units[kind], shape) for kind, shape in shapes.items()}
    suffix = PurePath(str(options.raw).partition(":/")[0]).suffix.lstrip(".") or "folder"
    return Extents(shapes, blocks, suffix, plan.voxel_size)
