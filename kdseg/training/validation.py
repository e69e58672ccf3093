"""Score a network while it trains: segment a crop of a labelled volume and compare it with ground truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kdseg.config.segmentation import VALIDATED, Watershed
from kdseg.config.terms.supervised import Boundary
from kdseg.errors import DataError
from kdseg.geometry import Offsets, Roi, Triple, VoxelSize, in_sections, nearest_count
from kdseg.networks.models import Network
from kdseg.prediction.tiles import predict_roi, predictor
from kdseg.training.heldout import Truth, affinity_loss, truth
from kdseg.training.sampling import Source
from kdseg.training.sampling.arrays import OUTSIDE

if TYPE_CHECKING:
    from kdseg.evaluation.metrics.contingency import Contingency
    from kdseg.segmentation.agglomeration.linkage import Dendrogram

See = Callable[[NDArray[np.uint8]], object]
"""Is given the affinities of a crop, uint8 (c, z, y, x), and only looks at them."""
TILE = 128
"""Largest extent of a tile in voxels, without its halo."""


class Scored(NamedTuple):
    """Scores of affinities and their segmentation against ground truth; all but the threshold are better if lower.

    Attributes:
        voi: variation of information, bits.
        voi_split: its part from false splits.
        voi_merge: its part from false merges.
        arand: adapted Rand error.
        threshold: of the agglomeration.
        affinity_loss: of the affinities, the same at all thresholds; see `kdseg.training.heldout`.
    """

    voi: float
    voi_split: float
    voi_merge: float
    arand: float
    threshold: float
    affinity_loss: float


NO_SCORE = Scored(*[float("inf")] * 6)
"""Before the first validation."""


class Validation(NamedTuple):
    """A crop to segment.

    Attributes:
        source: the volume.
        roi: the crop, in voxels of the volume's raw data.
        labels: int64 (z, y, x), ground truth of the crop, or what stands for it.
        truth: the same for the affinity loss.
        agreement: the labels are the teachers' own segmentation; see `kdseg.training.agreement`.
    """

    source: Source
    roi: Roi
    labels: NDArray[np.int64]
    truth: Truth
    agreement: bool = False

    def named(self, scores: Scored) -> dict[str, float]:
        """Return scores by names that say what they are of: ``agreement_voi`` is no accuracy."""
        agreed = {*scores._fields} - {"threshold"} if self.agreement else set()
        return {f"agreement_{key}" if key in agreed else key: value for key, value in scores._asdict().items()}


def validation_crop(
    source: Source, shape: Triple, boundary: Boundary = "auto", *, sections: bool = False
) -> Validation:
    """Return the central crop of the labelled part of a volume.

    Args:
        source: a labelled volume.
        shape: extent in voxels; cut to what is labelled.
        boundary: the option of the term `affinity`, for the loss.
        sections: whether each is an image of its own.

    Raises:
        DataError: if nothing in the crop is labelled.
    """
    roi = source.labelled_roi.central(shape)
    crop = source.crop(roi, supervised=True)
    learned, labels = truth(crop, boundary, source.voxel_size, sections=sections), crop.labels
    labels[labels == OUTSIDE] = 0  # scores leave the background out, whatever it is in training
    if not labels.any():
        raise DataError(f"the central crop {roi} of {source.name!r} has no labels: validate on another volume or shape")
    return Validation(source, roi, labels, learned)


def validate(
    network: Network,
    crop: Validation,
    offsets: Offsets,
    dtype: torch.dtype,
    device: torch.device,
    watershed: Watershed,
    see: See | None = None,
) -> Scored:
    """Return the scores of the segmentation at the threshold that suits it best, of `sweep`'s; ``see`` affinities."""
    affinities = predicted(network, crop, offsets, dtype, device)
    if see is not None:
        see(affinities)
    return least(_swept(affinities, crop, offsets, watershed, dust=0))


def least(found: Sequence[Scored]) -> Scored:
    """Return the scores of least VOI, the first of equals; ``NO_SCORE`` where none is finite."""
    return min((NO_SCORE, *found), key=lambda scored: scored.voi)


def sweep(
    network: Network,
    crop: Validation,
    offsets: Offsets,
    dtype: torch.dtype,
    device: torch.device,
    watershed: Watershed,
    *,
    dust: int = 0,
) -> list[Scored]:
    """Return the scores of the segmentation at each of ``VALIDATED``.

    The crop is segmented in one piece as a volume is in blocks: the run's own fragments, cleaned, and
    mean-affinity agglomeration.

    Args:
        network: on ``device``.
        crop: what to segment.
        offsets: of the network's affinities, nearest first.
        dtype: what convolutions compute in.
        device: where.
        watershed: how fragments are made.
        dust: ground-truth objects of fewer voxels of the crop are left out.
    """
    return _swept(predicted(network, crop, offsets, dtype, device), crop, offsets, watershed, dust=dust)


def _swept(
    affinities: NDArray[np.uint8], crop: Validation, offsets: Offsets, watershed: Watershed, *, dust: int
) -> list[Scored]:
    table, dendrogram = tabled(affinities, crop, offsets, watershed, dust=dust)
    return scored(table, dendrogram, affinity_loss(affinities, crop.truth, offsets))


def predicted(
    network: Network, crop: Validation, offsets: Offsets, dtype: torch.dtype, device: torch.device
) -> NDArray[np.uint8]:
    """Return the affinities of a crop, uint8 (c, z, y, x) in 1/255; see `sweep`."""
    roi = crop.roi
    z, y, x = (-(-min(n, TILE) // s) * s for n, s in zip(roi.shape, network.stride, strict=True))
    run = predictor(network, (z, y, x), device, dtype, offsets=offsets)
    return predict_roi(run, crop.source.raw.read, crop.source.raw.roi, roi)


def tabled(
    affinities: NDArray[np.uint8], crop: Validation, offsets: Offsets, watershed: Watershed, *, dust: int
) -> tuple[Contingency, Dendrogram]:
    """Return the overlaps of a crop's fragments with ground truth, and the merges of the fragments; see `sweep`."""
    # they compile, or need scipy: only validation has to wait for that
    from kdseg.evaluation.metrics.contingency import block_contingency, by_section, drop_small_labels, own_background

    pieces, dendrogram = agglomerated(affinities, offsets, watershed, crop.source.voxel_size)
    labels: NDArray[np.integer] = crop.labels
    if in_sections(offsets):
        labels, pieces = by_section(labels), own_background(pieces, np.arange(len(pieces))[:, None, None])
    return drop_small_labels(block_contingency(pieces, labels), dust), dendrogram


def scored(table: Contingency, dendrogram: Dendrogram, loss: float) -> list[Scored]:
    """Return the scores at each of ``VALIDATED`` of what `tabled` returned, with the loss of the affinities."""
    from kdseg.evaluation.metrics.scores import scores
    from kdseg.evaluation.thresholds import tables_at

    found = []
    for threshold, there in zip(VALIDATED, tables_at(table, dendrogram, VALIDATED), strict=True):
        at = scores(there)
        found.append(Scored(at.voi, at.voi_split, at.voi_merge, at.arand, threshold, loss))
    return found


def agglomerated(
    affinities: NDArray[np.uint8], offsets: Offsets, watershed: Watershed, voxel_size: VoxelSize
) -> tuple[NDArray[np.uint64], Dendrogram]:
    """Return fragments of a crop, and their merges in order.

    Args:
        affinities: uint8 (c, z, y, x) in 1/255.
        offsets: one per channel, nearest first.
        watershed: how fragments are made.
        voxel_size: nm, (z, y, x).
    """
    from kdseg.segmentation.agglomeration.linkage import agglomerate
    from kdseg.segmentation.fragments.watershed import clean, fragments
    from kdseg.segmentation.graph.rag import block_edges

    z, y, x = affinities.shape[1:]
    owned = Roi((0, 0, 0), (z, y, x)).slices()
    pieces = clean(fragments(affinities, offsets, watershed, voxel_size=voxel_size), owned, 0)
    count = nearest_count(offsets)
    return pieces, agglomerate(block_edges(pieces, affinities[:count], offsets[:count], owned=owned), 1.0)
