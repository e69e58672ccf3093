"""The teachers' own segmentation of a crop, in place of ground truth that nobody has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product

import numpy as np
import torch
from numpy.typing import NDArray

from kdseg.config.networks import TrainOptions
from kdseg.config.segmentation import Watershed
from kdseg.errors import DataError, ShapeError
from kdseg.geometry import Offsets, Roi, Triple, in_sections, triple
from kdseg.networks.models import Batch
from kdseg.networks.models.base import channels_last
from kdseg.networks.models.device import Ranks
from kdseg.networks.symmetry import symmetries
from kdseg.training.augment import Crop
from kdseg.training.heldout import truth
from kdseg.training.sampling import Source
from kdseg.training.sampling.arrays import OUTSIDE, Labels
from kdseg.training.sampling.taught import stored_outputs
from kdseg.training.teaching import Teachers
from kdseg.training.validation import Validation, agglomerated


def taught_crop(
    source: Source, teachers: Teachers, options: TrainOptions, offsets: Offsets, watershed: Watershed, ranks: Ranks
) -> Validation:
    """Return the central crop of a volume, labelled by its teachers.

    Scores against it are an agreement with the teachers, whatever their faults.

    Args:
        source: a volume; with what they stored of it, if they are stored.
        teachers: of the training.
        options: of the training: the crops, the extent of this one, and the threshold of the teachers.
        offsets: one affinity channel each, nearest first.
        watershed: how fragments are made.
        ranks: this process.

    Raises:
        DataError: if the teachers see one object at most.
    """
    from kdseg.segmentation.agglomeration.linkage import cut
    from kdseg.segmentation.lut import apply, lut

    if source.segmentation is not None:
        return _segmented(source, source.segmentation, options, sections=in_sections(offsets))
    roi = source.raw.roi.central(options.validate_shape)
    affinities = (
        _stored(source, teachers, roi, offsets)
        if not teachers.networks
        else _online(source, teachers, roi, options, ranks)
    )
    pieces, dendrogram = agglomerated(affinities, offsets, watershed, source.voxel_size)
    ids = np.unique(pieces[pieces > 0])
    threshold = options.teaching.threshold
    labels = apply(pieces, ids, lut(ids, *cut(dendrogram, threshold))).astype(np.int64)
    if len(np.unique(labels[labels > 0])) < 2:
        raise DataError(
            f"the teachers see one object at most in the central crop {roi} of {source.name!r}, merging up to "
            f"{threshold}: validate on another volume or shape, or set another `teaching.threshold`"
        )
    shown = Crop(source.crop(roi, supervised=False).raw, labels, labels > 0)
    learned = truth(shown, options.boundary, source.voxel_size, sections=in_sections(offsets))
    return Validation(source, roi, labels, learned, agreement=True)


def _segmented(source: Source, segmentation: Labels, options: TrainOptions, *, sections: bool) -> Validation:
    """Return the central crop of what a segmentation that teaches covers, labelled by it."""
    roi = segmentation.roi.central(options.validate_shape)
    labels, known = segmentation.read(roi)
    shown = Crop(source.crop(roi, supervised=False).raw, labels, known)
    learned = truth(shown, options.boundary, source.voxel_size, sections=sections)
    labels = np.where(labels == OUTSIDE, 0, labels)
    if len(np.unique(labels[labels > 0])) < 2:
        raise DataError(
            f"the segmentation that teaches has one object at most in the central crop {roi} of {source.name!r}: "
            "validate on another volume or shape"
        )
    return Validation(source, roi, labels, learned, agreement=True)


def _stored(source: Source, teachers: Teachers, roi: Roi, offsets: Offsets) -> NDArray[np.uint8]:
    """Return what the teachers stored, combined, uint8 (c, z, y, x)."""
    taught = stored_outputs(source, roi, offsets, symmetries(roi.shape, False, "none")[0])
    none = torch.zeros(1, *roi.shape, dtype=torch.int64)
    outputs = teachers(Batch(none[None].float(), none, none.bool(), taught=taught))
    return _as_uint8(outputs.logits["affinities"][0])


def _online(source: Source, teachers: Teachers, roi: Roi, options: TrainOptions, ranks: Ranks) -> NDArray[np.uint8]:
    """Return what the teachers predict, uint8 (c, z, y, x): the middle of crops like those of the training.

    Of each crop the middle half along each axis is kept, and as many are predicted at once: a network of others may
    take nothing else.
    """
    step: Triple = triple(max(c // 2, 1) for c in options.crop)
    before: Triple = triple((c - s) // 2 for c, s in zip(options.crop, step, strict=True))
    starts = product(*(range(o, e, s) for o, e, s in zip(roi.offset, roi.end, step, strict=True)))
    places = (Roi((z, y, x), step) for z, y, x in starts)
    out = np.zeros((len(teachers.offsets), *roi.shape), np.uint8)
    a, b, c = (slice(m, m + s) for m, s in zip(before, step, strict=True))
    for some in _batches(places, options.batch // ranks.ranks):
        around = (Roi(triple(o - m for o, m in zip(place.offset, before, strict=True)), options.crop) for place in some)
        crops = [source.crop(roi_of_crop, supervised=False).raw for roi_of_crop in around]
        raw = channels_last(torch.from_numpy(np.stack(crops))[:, None].to(ranks.device))
        none = torch.zeros(len(raw), *options.crop, dtype=torch.int64, device=ranks.device)
        outputs = teachers(Batch(raw, none, none.bool()))
        if outputs.known is not None and not outputs.known[..., a, b, c].all():
            raise ShapeError(
                f"the teachers leave out more than a quarter of a crop of {options.crop} along its border, so that no "
                "whole volume can be segmented: use larger crops, or validate on a labelled volume"
            )
        found = _as_uint8(outputs.logits["affinities"][..., a, b, c])
        for place, values in zip(some, found, strict=True):
            inside = place.intersect(roi)
            out[(slice(None), *inside.slices(roi))] = values[(slice(None), *inside.slices(place))]
    return out


def _batches(places: Iterator[Roi], size: int) -> Iterator[list[Roi]]:
    """Yield batches of one size; the last place fills up the last one."""
    while some := list(islice(places, size)):
        yield some + some[-1:] * (size - len(some))


def _as_uint8(logits: torch.Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = (torch.sigmoid(logits.float()) * 255).round().to(torch.uint8).cpu().numpy()
    return found
