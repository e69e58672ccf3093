"""Sources of affinities of a whole volume for the stage that makes fragments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kdseg.config.tasks import FragmentsTask
from kdseg.geometry import Offsets, Roi, Triple
from kdseg.results.claims import Claim
from kdseg.running.attempt import BlockWork
from kdseg.running.runner import place_of, run_work
from kdseg.segmentation.fragments.checks import doubts
from kdseg.segmentation.links import nearest_channels
from kdseg.volumes.affinities import Affinities, StoredAffinities, affinity_offsets
from kdseg.volumes.inputs import Input, fingerprints, open_input, open_mask
from kdseg.volumes.volume import Volume

_SAMPLE = 64
"""Voxels along each axis of the sample that is looked at before work begins."""


class Source(NamedTuple):
    """Affinities of a volume, opened and checked.

    Attributes:
        volume: the affinities, or the raw data that they are computed from.
        affinities: for the workers.
        offsets: of all affinities.
        mask: 0 where there is no tissue; None if all is.
        inputs: fingerprints of all that is read.
        run: does every block and notes in the claim what the manifest is to say.
        doubts: warnings.
        made_of: what else determines the affinities, as JSON values.
        kept: extent in voxels of the cells whose edges are kept, if the affinities are not.
        beside: another block is computed while fragments are made: on a GPU, not on the same core.
    """

    volume: Volume
    affinities: Affinities
    offsets: Offsets
    mask: Input | None
    inputs: dict[str, str]
    run: Callable[[BlockWork, Claim], None]
    doubts: list[str]
    made_of: dict[str, Any]
    kept: Triple | None
    beside: bool


def stored(task: FragmentsTask, manifest: Path) -> Source:
    """Return the affinities that a stage left beside its manifest."""
    found = open_input(manifest)
    offsets = affinity_offsets(found.volume)
    nearest_channels(offsets)
    mask = open_mask(task.mask, found.volume)
    return Source(
        volume=found.volume,
        affinities=StoredAffinities(found.store),
        offsets=offsets,
        mask=mask,
        inputs=fingerprints(affinities=found, mask=mask),
        run=partial(_run, task, found.volume.roi),
        doubts=_doubts(found.volume, offsets),
        made_of={},
        kept=None,
        beside=False,
    )


def _run(task: FragmentsTask, roi: Roi, work: BlockWork, held: Claim) -> None:
    block = task.options.block
    counted = run_work("fragments", roi, block, work, place_of(task), held.progress(block))
    held.stats.update(counted.of_reuse)


def _doubts(source: Volume, offsets: Offsets) -> list[str]:
    low = [max((n - _SAMPLE) // 2, 0) for n in source.shape]
    extent = [min(n, _SAMPLE) for n in source.shape]
    middle = Roi((low[0], low[1], low[2]), (extent[0], extent[1], extent[2]))
    channels = nearest_channels(offsets)
    return doubts(source.read(middle, channels), tuple(offsets[c] for c in channels))
