"""Crops of volumes. Crop number ``i`` of a run follows from (seed, i) alone, whoever prepares it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import ceil, floor
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdseg.config.networks import TrainOptions
from kdseg.errors import ConfigError, MissingError, ShapeError, VoxelSizeError
from kdseg.geometry import Offsets, Roi, Triple, VoxelSize, in_sections, inner_slices, is_cubic, triple
from kdseg.networks.models import Batch, Taught
from kdseg.training.augment import (
    Crop,
    Symmetry,
    augment,
    channel_plan,
    draw_symmetry,
    symmetries,
    turn_margin,
)
from kdseg.training.sampling.segmented import inner, seen_voxels, segmented_outputs
from kdseg.training.sampling.source import Addresses, Guide, Source, check_guide
from kdseg.training.sampling.taught import deformed_outputs, stored_outputs
from kdseg.training.targets import REACH, local_shape_descriptors

LABELLED_SHARE = 0.1
"""Least share of labelled voxels in a supervised crop, if it can be found in a few tries."""
TRIES = 8


class Crops(Dataset[Batch]):
    """Random augmented crops; item ``i`` is a pure function of the seed and ``i``."""

    def __init__(
        self,
        options: TrainOptions,
        volumes: Addresses,
        guides: Mapping[str, Guide] | None = None,
        offsets: Offsets = (),
        *,
        lsd_sigma: float | None = None,
    ) -> None:
        """Open the volumes.

        Args:
            options: names the volumes to use, the crop, the augmentation and the seed.
            volumes: addresses by name; others than those named are not opened.
            guides: by the same names, what stored teachers made of the volumes.
            offsets: one affinity channel each; needed with stored affinities.
            lsd_sigma: nm, width of the window of the local shape descriptors; None leaves them out.

        Raises:
            ConfigError: if all axes are to be rotated, but the voxels are not cubes, or are sections of their own.
            ShapeError: if a volume is smaller than a crop.
            VoxelSizeError: if the volumes have different voxel sizes.
        """
        self.options, self.offsets = options, offsets
        self.stored = bool(options.teachers) and options.teaching.outputs == "stored"
        self.pieces = any(term.instances_used for term in options.active_terms)
        guides = guides or {}
        # where no term needs ground truth, a volume goes without, and where none looks at labels, every volume does
        every, some = not options.labels_used, not options.supervised
        without = [name for name in options.volumes if every or (some and not _labelled(name, volumes))]
        labelled = [name for name in options.volumes if name not in without]
        self.supervised = [self._open(name, volumes, guides, labelled=True) for name in labelled]
        rest = dict.fromkeys((*without, *options.active_unlabelled))
        self.unlabelled = [self._open(name, volumes, guides, labelled=False) for name in rest]
        sources = [*self.supervised, *self.unlabelled]
        self.voxel_size = sources[0].voxel_size
        for source in sources:
            if not np.allclose(source.voxel_size, self.voxel_size, rtol=1e-3):
                raise VoxelSizeError(
                    f"{source.name!r} has voxels of {source.voxel_size} nm, {sources[0].name!r} of {self.voxel_size}: "
                    "a network is trained for one voxel size"
                )
            if any(n < c for n, c in zip(source.raw.roi.shape, options.crop, strict=True)):
                raise ShapeError(f"{source.name!r} has {source.raw.roi.shape} voxels, less than a crop {options.crop}")
        self.lsd_sigma = lsd_sigma
        self.margin = (0, 0, 0) if lsd_sigma is None else _margin(lsd_sigma, self.voxel_size, options.augment.rotate)
        if options.augment.turn:
            seen = triple(n + 2 * m for n, m in zip(options.crop, self.margin, strict=True))
            corners = turn_margin(seen, options.augment.rotate)
            self.margin = triple(m + more for m, more in zip(self.margin, corners, strict=True))
        if in_sections(offsets):  # the next section is another image
            self.margin = (0, *self.margin[1:])
        if any(source.affinities for source in sources):  # refused now rather than at the first crop that is turned so
            for symmetry in symmetries(options.crop, options.augment.flip, options.augment.rotate):
                channel_plan(offsets, symmetry)
        # in a single section there is nowhere to go along z
        self.isotropic = self.voxel_size[0] <= 1.5 * max(self.voxel_size[1:]) and options.crop[0] > 1
        if options.augment.rotate == "zyx" and not is_cubic(self.voxel_size):
            raise ConfigError(f"augment.rotate 'zyx' needs cubic voxels, got {self.voxel_size} nm: use 'yx'")
        _, y, x = self.voxel_size
        if options.augment.rotate == "yx" and not is_cubic((x, y, x)):
            raise ConfigError(f"augment.rotate 'yx' needs voxels as wide as high, got {self.voxel_size} nm: use 'none'")
        if options.augment.turn and options.augment.rotate == "zyx" and in_sections(offsets):
            raise ConfigError("augment.turn would leave the section with augment.rotate 'zyx': use 'yx'")

    def __getitem__(self, index: int) -> Batch:
        """Return crop ``index``, a batch of one."""
        rng = np.random.default_rng([self.options.seed, index])
        supervised = not self.is_unlabelled(index)
        source, roi, drawn = self.draw(rng, supervised=supervised)
        symmetry = draw_symmetry(self.options.crop, rng, self.options.augment)
        crop = augment(drawn, symmetry, rng, self.options.augment, isotropic=self.isotropic, margin=self.margin)
        descriptors = None if self.lsd_sigma is None else self._descriptors(crop, self.lsd_sigma)
        core = inner_slices(crop.raw.shape, self.margin)
        parts = (crop.raw[core], crop.labels[core], crop.mask[core])
        raw, labels, mask = (torch.from_numpy(np.ascontiguousarray(array))[None] for array in parts)
        # those of an unlabelled crop are a teacher's, all of which count that voxels show
        shown = torch.ones_like(mask) if crop.places is None else torch.from_numpy(crop.places[core] >= 0)[None]
        known = torch.where(mask if supervised else shown, labels, 0)
        instances = self._pieces(known[0])[None] if self.pieces else None
        taught = self._taught(source, roi, symmetry, crop.places) if self.stored else None
        return Batch(raw[None], labels, mask, instances, taught, descriptors)

    def _pieces(self, labels: Tensor) -> Tensor:
        """Return the connected pieces of a crop, of what terms see of it."""
        found = torch.zeros_like(labels)
        seen = inner_slices(labels.shape, self.options.margin)
        found[seen] = connected_pieces(labels[seen].contiguous())
        return found

    def _taught(self, source: Source, roi: Roi, symmetry: Symmetry, places: NDArray[np.int64] | None) -> Taught:
        """Return what stored teachers say about a crop that was turned and deformed, a batch of one."""
        if source.segmentation is not None:
            # a pair may reach beyond a crop that was not deformed
            flat = in_sections(self.offsets)
            reach = max((abs(step) for offset in self.offsets for step in offset), default=0)
            margin = (0 if flat else reach, reach, reach) if places is None else self.margin
            seen = seen_voxels(source.segmentation, roi.grow(margin), source.rim, source.voxel_size, sections=flat)
            return inner(segmented_outputs(seen, source.rim, self.offsets, symmetry, places), margin)
        if places is None:
            return stored_outputs(source, roi, self.offsets, symmetry)
        turned = stored_outputs(source, roi.grow(self.margin), self.offsets, symmetry)
        return inner(deformed_outputs(turned, places, self.offsets), self.margin)

    def _descriptors(self, crop: Crop, sigma: float) -> Tensor:
        """Return the descriptors of a crop with a margin, a batch of one."""
        labels = torch.from_numpy(np.where(crop.mask, crop.labels, 0))
        core = inner_slices(labels.shape, self.margin)
        return local_shape_descriptors(labels, self.voxel_size, sigma, core)[0][None]

    def draw(self, rng: np.random.Generator, *, supervised: bool) -> tuple[Source, Roi, Crop]:
        """Return a random crop as it was imaged, with ground truth or without, and where it comes from.

        The crop reaches beyond the place by the margin.
        """
        sources = self.supervised if supervised else self.unlabelled
        sizes = np.array([(s.labelled_roi if supervised else s.taught_roi).size for s in sources], float)
        source = sources[int(rng.choice(len(sources), p=sizes / sizes.sum()))]
        within = source.labelled_roi if supervised else source.taught_roi
        for attempt in range(TRIES):
            roi = Roi(_place(rng, within, self.options.crop, source.raw.roi), self.options.crop)
            crop = source.crop(roi, supervised=supervised)
            if not supervised or crop.mask.mean() >= LABELLED_SHARE or attempt == TRIES - 1:
                break
        grown = roi.grow(self.margin)
        return source, roi, crop if grown == roi else source.crop(grown, supervised=supervised)

    def labelled(self, step: int) -> int:
        """Return the number of crops with ground truth in a step of the optimiser.

        They are shared out evenly over the steps: each has as many, or one more.
        """
        size = self.options.batch * self.options.accumulate
        if not self.unlabelled or not self.supervised:
            return size if self.supervised else 0
        share = Fraction(repr(self.options.unlabelled_fraction)) * size
        return size - (floor(share * (step + 1)) - floor(share * step))

    def is_unlabelled(self, index: int) -> bool:
        """Return whether a crop is drawn from the unlabelled volumes."""
        size = self.options.batch * self.options.accumulate
        step, place = divmod(index, size)
        # which of a step's crops they are is drawn, or with as many processes one would have all of them
        order = np.random.default_rng([self.options.seed, step, 1]).permutation(size)
        return bool(order[place] >= self.labelled(step))

    def _open(self, name: str, volumes: Addresses, guides: Mapping[str, Guide], *, labelled: bool) -> Source:
        if name not in volumes:
            raise MissingError(f"no data were given for the volume {name!r}, only for {sorted(volumes)}")
        raw, labels = volumes[name]
        if labelled and labels is None:
            raise MissingError(f"the volume {name!r} has no labels, but is trained on")
        guide = guides.get(name, Guide())
        check_guide(name, guide, self.options.teachers if self.stored else (), self.offsets)
        return Source(name, raw, labels if labelled else None, guide)


def loader(crops: Crops, start: int, *, rank: int = 0, ranks: int = 1) -> DataLoader[Any]:
    """Return the batches from optimiser step ``start`` on, one per pass through the network.

    Each process takes every ``ranks``-th crop, so that all of them together see the crops that one would. Once this
    process has a GPU, batches come in pinned memory, from where they are copied while the GPU computes.

    Raises:
        ConfigError: if the batch cannot be shared out evenly.
    """
    options = crops.options
    if options.batch % ranks:
        raise ConfigError(f"a batch of {options.batch} cannot be shared out to {ranks} processes: use a multiple")
    per_step = options.batch * options.accumulate
    context = None
    if options.loader_workers:
        # not forks of this process: it has threads by now, and CUDA, whose locks a fork would inherit for good
        context = get_context("forkserver")
        context.set_forkserver_preload([__name__])
    return DataLoader(
        crops,
        batch_size=options.batch // ranks,
        sampler=range(start * per_step + rank, sys.maxsize, ranks),  # the loop knows when to stop
        num_workers=options.loader_workers,
        collate_fn=collate,
        multiprocessing_context=context,
        pin_memory=torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]
    )


def collate(items: Sequence[Batch]) -> Batch:
    """Return one batch of several; instances are numbered through."""
    raw, labels, mask, instances, taught, descriptors, *_ = zip(*items, strict=True)
    return Batch(
        torch.cat(raw),
        torch.cat(labels),
        torch.cat(mask),
        None if instances[0] is None else torch.cat(numbered_through(instances)),
        None if taught[0] is None else Taught(*(torch.cat(parts) for parts in zip(*taught, strict=True))),
        None if descriptors[0] is None else torch.cat(descriptors),
    )


def numbered_through(instances: Sequence[Tensor]) -> list[Tensor]:
    """Return numbers from 1 to k in each item as numbers from 1 to the sum of all k; 0 stays 0."""
    first, out = 0, []
    for item in instances:
        out.append(torch.where(item > 0, item + first, 0))
        first += int(item.max())
    return out


def connected_pieces(labels: Tensor) -> Tensor:
    """Return the pieces of neurons that hang together within a crop, numbered from 1; 0 stays 0.

    A neuron that leaves the crop and comes back is two pieces: what lies between is not there to be seen.

    Args:
        labels: int64 (z, y, x), neuron ids.

    Returns:
        int64 (z, y, x); pieces are connected by faces.
    """
    import cc3d  # training without terms on instances does not need it

    pieces = cc3d.connected_components(labels.numpy(), connectivity=6, out_dtype=np.uint32)
    return torch.from_numpy(pieces.astype(np.int64))


def _labelled(name: str, volumes: Addresses) -> bool:
    return name not in volumes or volumes[name][1] is not None


def _margin(sigma: float, voxel_size: VoxelSize, rotate: str) -> Triple:
    """Return the voxels around a crop that its descriptors see; as many along axes that may change places."""
    z, y, x = (ceil(REACH * sigma / size) for size in voxel_size)
    widest = max(z, y, x)
    return (widest, widest, widest) if rotate == "zyx" else (z, max(y, x), max(y, x))


def _place(rng: np.random.Generator, within: Roi, crop: Triple, limits: Roi) -> Triple:
    """Return the first voxel of a crop in ``within``, or around it where it is smaller, and always in ``limits``."""
    first = []
    for o, n, c, limit in zip(within.offset, within.shape, crop, limits.shape, strict=True):
        low, high = (o, o + n - c) if n >= c else (o + n - c, o)
        first.append(int(rng.integers(max(low, 0), min(high, limit - c) + 1)))
    return (first[0], first[1], first[2])
