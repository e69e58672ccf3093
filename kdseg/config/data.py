"""Sources of volumes, and their storage."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.addresses import Address, files_of
from kdseg.config.base import BUCKET, Count, Extent, Nanometres, Place, Section, Step


class PhantomOptions(Section):
    """A procedural neurite phantom; any block of it follows from the seed alone."""

    shape: Extent = (128, 256, 256)
    """Extent in voxels, (z, y, x)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Two phantoms of different seed show unrelated tissue."""
    voxel_size: Nanometres = (10.0, 10.0, 10.0)
    """nm; a coarser z than y and x gives serial-section statistics (jitter, thicker sections)."""
    offset: Step = (0, 0, 0)
    """First voxel: a window into the endless volume of this seed."""
    stored: bool = True
    """Write the volume. If not, it takes no room: every region is computed anew whenever it is read."""


class RoiOptions(Section):
    """A box of voxels of the source volume."""

    offset: Step = (0, 0, 0)
    """First voxel, (z, y, x), counted from the first voxel of the raw data."""
    shape: Extent
    """Extent in voxels, (z, y, x)."""


class SectionsOptions(Section):
    """Order of the files in a folder of TIFF, PNG or JPEG sections, and what becomes of sections that are not there."""

    order: Literal["number", "name"] = "number"
    """`number`: by the one number in which the names differ, each section once; `name`: unchecked, by name, numbers
    in it by value, of images that do not follow each other (default where the configuration says `sections: true`)."""
    missing: Literal["refuse", "leave_out", "fill"] = "refuse"
    """Sections that the numbers of a folder, or the metadata of OME-TIFF, leave out: `leave_out`: the next one lies
    directly behind; `fill`: a section of zeros, which `train.augment.missing_section` teaches networks to bridge."""


class PlacesOptions(Section):
    """Places of first voxels, nm, (z, y, x), of the datasets of a volume whose files do not say them."""

    raw: Place | None = None
    """Of the raw data."""
    labels: Place | None = None
    """Of the ground truth."""
    baseline: Place | None = None
    """Of the segmentation to compare with."""
    mask: Place | None = None
    """Of the mask."""


Background = Literal["unknown", "boundary", "object"]
"""Meanings of label 0 in ground truth."""


class VolumeOptions(Section):
    """One volume: raw data, perhaps ground truth, a segmentation to compare with, a mask of the tissue.

    Datasets are addressed as `path.zarr`, `path.zarr/group`, `s3://bucket/path.zarr/group`, `path.h5:/volumes/raw`,
    `path.zarr.zip`, `path.n5/dataset`, `path.npy`, `stack.tif` or a folder of TIFF, PNG or JPEG files.
    """

    phantom: PhantomOptions | None = None
    """Compute the volume instead of reading it."""
    raw: Address | None = None
    """Address of the raw data, (z, y, x)."""
    labels: Address | None = None
    """Address of the ground truth; 0 is unlabelled. May cover a part of the raw data."""
    background: Background = "unknown"
    """Meaning of label 0 in training: `unknown`: nobody looked, no pair that touches it counts; `boundary`: membrane
    between neurons, every pair that touches it is negative; `object`: one more object, such as outer space. Scores
    leave voxels of label 0 out."""
    baseline: Address | None = None
    """Address of somebody else's segmentation of the same tissue, scored beside ours."""
    mask: Address | None = None
    """Address of a mask, integers or bools: 0 is not tissue and never a fragment. Covers all raw data that are used."""
    voxel_size: Nanometres | None = None
    """nm, (z, y, x); needed where the file does not say, refused where the file says otherwise."""
    offset: PlacesOptions = PlacesOptions()
    """Where datasets lie; refused where the file says otherwise. One that neither says has to have the shape of the raw
    data, and is taken to lie where they do."""
    roi: RoiOptions | None = None
    """Part of the source to use; default all."""
    intensity: tuple[float, float] | None = None
    """Raw values that become 0 and 255; default: the range of the data type (required for floats)."""
    sections: SectionsOptions | None = None
    """Order and gaps of sections, of all datasets of this volume; default: by number, without gaps."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.phantom is None) == (self.raw is None):
            raise ValueError("a volume needs either `raw` (an address) or `phantom`, and not both")
        given = (self.labels, self.baseline, self.mask, self.voxel_size, self.roi, self.intensity, self.sections)
        places = [kind for kind, place in self.offset if place is not None]
        if self.phantom is not None and (places or any(value is not None for value in given)):
            raise ValueError("a phantom brings its own labels, voxel size, shape and intensities: remove all but it")
        if without := [kind for kind in places if getattr(self, kind) is None]:
            raise ValueError(f"`offset` says where {without[0]} lies, but the volume has no `{without[0]}`: remove one")
        if self.intensity is not None and not -math.inf < self.intensity[0] < self.intensity[1] < math.inf:
            raise ValueError(f"intensity must be (low, high) with low < high, got {self.intensity}")
        return self

    def files(self, kind: str) -> list[str]:
        """Return the files or folders that a dataset of this volume is made from; none for a phantom or in a bucket."""
        return files_of(self.raw, getattr(self, kind))

    @property
    def shape(self) -> Extent | None:
        """Extent in voxels where the configuration tells it, else None: only the file knows."""
        if self.phantom is not None:
            return self.phantom.shape
        return None if self.roi is None else self.roi.shape

    @property
    def labelled(self) -> bool:
        """Whether there is ground truth."""
        return self.phantom is not None or self.labels is not None


class StorageOptions(Section):
    """Layout of volumes (OME-Zarr 0.5, sharded), and where they lie."""

    chunk: Extent = (64, 64, 64)
    """Unit of reading."""
    shard: Extent = (128, 128, 128)
    """Unit of writing: one file. Every block is a multiple of it."""
    levels: Count = 3
    """Resolution levels of the pyramids of raw data and segmentations, for viewers."""
    remote: Annotated[str | None, Field(pattern=BUCKET, exclude=True)] = None
    """URL such as `s3://bucket/prefix`, below which volumes are made; tables, manifests and networks stay here."""
    # Left out of what is made of the options: it says where, not what, so changing it makes no result stale.

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if any(s % c for s, c in zip(self.shard, self.chunk, strict=True)):
            raise ValueError(f"shard {self.shard} must be a multiple of chunk {self.chunk} along every axis")
        return self
