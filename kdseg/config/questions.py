"""Tasks of the stages that people call by hand; see `kdseg.config.tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from kdseg.config import explain
from kdseg.config.addresses import Address
from kdseg.config.base import BUCKET, Count, Extent, Nanometres, Place, Probability, Section, Step, Weight
from kdseg.config.data import PhantomOptions, RoiOptions, SectionsOptions, StorageOptions
from kdseg.config.tasks import BlockTask, Device, region, steps
from kdseg.errors import ConfigError

Least = Annotated[int, Field(ge=0)]
Steps = Annotated[tuple[Step, ...] | None, BeforeValidator(steps)]
Region = Annotated[RoiOptions | None, BeforeValidator(region)]
Position = tuple[float, float, float]
"""nm, (z, y, x)."""


def _ids(values: Any) -> Any:
    """Return the ids of a list of words, none for the word ``none`` alone."""
    if isinstance(values, str):
        values = values.split()
    if list(values) == ["none"]:
        return ()
    wrong = [value for value in values if not (str(value).isdecimal() and int(value) < 1 << 64)]
    if wrong:
        raise ValueError(f"expected ids, 0 to 2**64 - 1, or `none` alone; got {wrong[0]!r}")
    return tuple(int(value) for value in values)


Ids = Annotated[tuple[int, ...], BeforeValidator(_ids)]


class PhantomTask(Section):
    """Write a neurite phantom to OUT/raw.zarr and OUT/labels.zarr."""

    out: Path
    """Folder."""
    shape: Extent = (128, 256, 256)
    """Voxels, z y x."""
    seed: Least = 0
    """Two phantoms of different seed show unrelated tissue."""
    voxel_size: Nanometres = (10.0, 10.0, 10.0)
    """nm, z y x."""
    offset: Step = (0, 0, 0)
    """First voxel of the endless volume."""
    unstored: bool = False
    """Write small files only: regions are computed whenever they are read."""
    workers: Count = 1
    """Processes; changes no result."""
    overwrite: bool = False
    """Clear what other options made."""

    @property
    def options(self) -> PhantomOptions:
        """The phantom as a section of the configuration."""
        values = self.model_dump(include={"shape", "seed", "voxel_size", "offset"})
        return PhantomOptions(stored=not self.unstored, **values)


class DistilTask(Section):
    """TEACHER, a network in a file, and RAW, without labels → a student, its segmentation of RAW, a report.

    Killed or not, the same command goes on where it stopped.
    """

    teacher: Path
    """net.pt2 (torch.export), net.onnx, net.ts or net.pt (TorchScript), a model file of kdseg, or the name of a shipped
    network."""
    raw: Address
    """Address of raw data: path.zarr/group, path.h5:/dataset, path.n5/dataset, path.npy, a folder of TIFFs or PNGs."""
    out: Path = Path("distilled")
    """Folder to write to."""
    offsets: Steps = None
    """Steps of the teacher's channels, '-1,0,0 0,-1,0 0,0,-1', where its file does not say."""
    outputs: Literal["probabilities", "logits"] | None = None
    """Values that the teacher returns, where its file does not say."""
    input_range: tuple[float, float] | None = None
    """Values that the teacher takes for the voxels 0 and 255; default -1 1, or as its file says."""
    voxel_size: Nanometres | None = None
    """nm, z y x, of raw data and teacher, where their files do not say."""
    intensity: tuple[float, float] | None = None
    """Raw values that become 0 and 255; needed of floats."""
    roi: Region = None
    """Part of the raw data to use: z0:z1,y0:y1,x0:x1."""
    sections: SectionsOptions | None = None
    """Order and gaps of raw data in sections; default: by number, without gaps."""
    widths: Annotated[tuple[Count, ...], Field(min_length=2)] = (8, 16, 32)
    """Channels of the student per level, finest first; repeat."""
    steps: Count = 5000
    """Of the training."""
    crop: Extent | None = None
    """Voxels of a crop, where the teacher takes one shape only; default: up to 64 along each axis."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Count = 1
    """CPU processes; changes no result."""
    overwrite: bool = False
    """Clear what another call made in the folder."""


class NeuronsTask(Section):
    """RAW, and a network that is trained already → neurons, below the folder OUT.

    Killed or not, the same command goes on where it stopped.
    """

    raw: Address
    """Address of raw data: path.zarr/group, path.h5:/dataset, path.n5/dataset, path.npy, a folder of TIFFs or PNGs."""
    out: Path
    """Folder to write to."""
    model: Address
    """The name of a shipped network (`kdseg models` lists them), a model file, or the manifest of a training."""
    threshold: Probability | None = None
    """Score up to which fragments are merged; default: that of the network's card. Lower: fewer false merges."""
    voxel_size: Nanometres | None = None
    """nm, z y x, where the file does not say."""
    intensity: tuple[float, float] | None = None
    """Raw values that become 0 and 255; needed of all but 8-bit data."""
    roi: Region = None
    """Part of the raw data to segment: z0:z1,y0:y1,x0:x1."""
    sections: SectionsOptions | None = None
    """Order and gaps of raw data in sections; default: by number, without gaps."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Count | None = None
    """CPU processes; default: one per core. Changes no result."""
    overwrite: bool = False
    """Make again what other options of an earlier call concern; the rest is kept."""


DEFAULT = Path("config.yaml")
"""File that `kdseg init` writes if none is named."""


class InitTask(Section):
    """RAW, and LABELS if some of it has ground truth → a commented configuration, made from what the files say.

    Labelled data are cut into parts to learn from, to tune on and to score; without LABELS, RAW is segmented with a
    network that comes with kdseg, if one knows such voxels. Headers and a few voxels are read, however large the data.
    """

    raw: Address
    """Address of raw data: path.zarr/group, path.h5:/dataset, stack.tif or a folder of TIFFs."""
    labels: Address | None = None
    """Address of its ground truth, an id per neuron, 0 where nobody looked."""
    out: Path = DEFAULT
    """File to write; one that is there stays as it is."""
    voxel_size: Nanometres | None = None
    """nm, z y x, where the file does not say."""
    labels_offset: Place | None = None
    """nm, z y x, of the first voxel of LABELS, where files do not say it and LABELS has another shape than RAW: from
    the first voxel of RAW, or, if RAW says where it lies, as that does."""
    intensity: tuple[float, float] | None = None
    """Raw values that become 0 and 255; default: what a sample of the voxels suggests."""
    sections: SectionsOptions | None = None
    """Order and gaps of TIFF sections; default: by number, without gaps."""
    no_timing: bool = False
    """Do not time the training, which takes a minute: its steps are then not chosen for this machine."""


class PlanTask(Section):
    """CONFIG → time, storage, memory and cost of its run, from a few blocks that are timed here and now.

    Of a run that has finished stages, these stand beside what was planned.
    """

    config: Path
    """YAML file."""
    workers: Count | None = None
    """Cores that the jobs share, and processes of each; default: the cores of this machine, and `workers`."""
    shape: Extent | None = None
    """Plan as if a volume had so many voxels, z y x: none of them is read or made."""
    volume: str | None = None
    """Name of that volume; default: the first that is scored."""
    timings: Path | None = None
    """Take the timings of this file, which --save wrote, instead of timing anything."""
    save: Path | None = None
    """Write the timings to this file."""
    cpu_price: Weight | None = None
    """Price of an hour of one core, in any currency."""
    gpu_price: Weight | None = None
    """Price of an hour of one GPU."""
    storage_price: Weight | None = None
    """Price of a GB of storage for a month."""


class AdoptTask(BlockTask):
    """Affinities that another program made → affinities for kdseg."""

    address: Address
    """path.zarr/group or path.h5:/dataset, (c, z, y, x); uint8 in 1/255, or floats in 0..1."""
    offsets: Annotated[tuple[tuple[int, ...], ...], BeforeValidator(steps)]
    """One step z,y,x in voxels per channel: '-1,0,0 0,-1,0 0,0,-1'."""
    voxel_size: Nanometres | None = None
    """nm, z y x, where the file does not say."""
    invert: bool = False
    """Values are high between neurons, not within."""
    raw: Path | None = None
    """Manifest of the raw data that they are of: take its voxels, refuse others."""
    keep: Steps = None
    """Steps to take, in this order; default: all."""
    storage: StorageOptions = StorageOptions()


class LikeOldOptions(Section):
    """Layout of a volume that takes the place of another one, OLD, and where it lies."""

    chunk: Extent | None = None
    """Unit of reading; default: that of OLD."""
    shard: Extent | None = None
    """Unit of writing: one file. Every block is a multiple of it. Default: that of OLD."""
    levels: Count | None = None
    """Resolution levels of the pyramid, for viewers; default: those of OLD."""
    remote: Annotated[str | None, Field(pattern=BUCKET)] = None
    """URL such as `s3://bucket/prefix`, below which the volume is made; default: it is made here."""

    def like(self, old: StorageOptions) -> StorageOptions:
        """Return the storage of OLD, but for what is given.

        Raises:
            ConfigError: if these do not fit each other.
        """
        given = {name: value for name, value in self if value is not None}
        try:
            return StorageOptions.model_validate({**dict(old), **given})
        except ValidationError as error:
            raise ConfigError(f"{explain(error, 'storage')}; what is not given is that of OLD: give both") from None


class PatchTask(BlockTask):
    """The segmentation OLD, and NEW, of a region that was segmented again → OLD with that region, ids kept outside."""

    old: Path
    """Manifest of the segmentation of the whole."""
    new: Path
    """Manifest of that of the region; what it covers around the region says which object is which."""
    region: Region = None
    """Region to replace, z0:z1,y0:y1,x0:x1 in voxels of OLD; default: all that both cover."""
    least: Count = 1
    """Voxels outside of the region that an overlap must have to be listed as a wanted merge or split."""
    block: Extent | None = None
    """Voxels per task; a multiple of the shard, by default the least of 128 or more. Does not change the result."""
    storage: LikeOldOptions = LikeOldOptions()


class GraphTask(Section):
    """Region graph, merge tree and fragments → Parquet files in the folder OUT."""

    edges: Path
    """Manifest of the region graph."""
    agglomeration: Path
    """Manifest of the dendrogram."""
    fragments: Path
    """Manifest of the fragments."""
    out: Path
    """Folder to write to."""
    spatial_bits: Count | None = None
    """Of PyChunkedGraph's chunk coordinates; default the fewest."""


class PropertiesTask(Section):
    """Size, place and bounding box of segments → neuroglancer's segment properties in the folder OUT."""

    segmentation: Path
    """Manifest of the segmentation, with its table of segments beside it."""
    out: Path
    """Folder to write to; it is made."""
    least: Least = 0
    """Leave out segments of fewer voxels."""


class EvaluateTask(Section):
    """Score SEGMENTATION against LABELS, addresses as in docs/evaluation.md; a killed run goes on if OUT is given."""

    segmentation: Address
    """Address of the segments."""
    labels: Address
    """Address of the ground truth."""
    out: Path | None = None
    """Folder for the tables of blocks, the table of overlaps and the result; default: a temporary one."""
    mask: Address | None = None
    """Address of a volume; voxels where it is 0, or which it does not cover, are left out."""
    roi: str | None = None
    """voxels:z0:z1,y0:y1,x0:x1 or nm:…; voxels are those of the labels. Default: all that the volumes cover."""
    ignore_labels: Ids = (0,)
    """Labels to leave out instead of 0; repeat, or `none`."""
    ignore_segments: Ids = ()
    """Segments to leave out; repeat, or `none`."""
    dust: Least = 0
    """Leave out labels of fewer scored voxels."""
    per_section: bool = False
    """Score each z as an image of its own."""
    components: bool = False
    """Split labels into connected components of the region first."""
    block: Extent = (128, 128, 128)
    """Voxels per task, and per unit of the bootstrap; changes no score."""
    ignore_border: float | None = None
    """Leave out voxels within so many nm of labels' borders in their section, as CREMI."""
    boundaries: float | None = None
    """Score boundary voxels, too, with this tolerance in nm."""
    bootstrap: Least = 0
    """Resamples of blocks, for 95 % intervals."""
    voxel_size: Position | None = None
    """nm, z y x, of files that do not say."""
    segmentation_offset: Position | None = None
    """nm, z y x, of the first voxel, instead of what the file says."""
    labels_offset: Position | None = None
    """nm, z y x, of the first voxel, instead of what the file says."""
    sections: SectionsOptions | None = None
    """Order and gaps of sections; default: by number, without gaps."""
    workers: Count = 1
    """Processes; changes no result."""
    overwrite: bool = False
    """Clear what other options or inputs left in OUT."""


class RunlengthTask(Section):
    """Expected run length of SEGMENTATION along SKELETONS (.swc, a folder of these, .csv or .npz)."""

    segmentation: Address
    """Address of the segments."""
    skeletons: Path
    """File or folder."""
    nm_per_unit: float = 1.0
    """Unit of SWC and CSV files, in nm; 1000 for micrometres."""
    tolerance: Least = 0
    """Nodes of another neuron that are no merge yet."""
    runs: Literal["segment", "path"] = "segment"
    """Definition of one run: all correct edges of a neuron in one segment, or those that are connected."""
    voxel_size: Position | None = None
    """nm, z y x, of files that do not say."""
    offset: Position | None = None
    """nm, z y x, of the first voxel's centre, instead of what the file says."""
    sections: SectionsOptions | None = None
    """Order and gaps of sections; default: by number, without gaps."""


class SameTask(Section):
    """Compare the segmentations A and B: exit 0 if they are the same but for ids, 1 if they differ, 2 on trouble."""

    a: Address
    """Address of the first."""
    b: Address
    """Address of the second."""
    roi: str | None = None
    """voxels:z0:z1,y0:y1,x0:x1 or nm:…; voxels are those of B. Default: all, which must be the same voxels of both."""
    sections: SectionsOptions | None = None
    """Order and gaps of sections; default: by number, without gaps."""
    block: Extent = (128, 128, 128)
    """Voxels per task; changes no result."""
    pairs: Least = 10
    """Pairs of ids to list."""
    workers: Count = 1
    """Processes; changes no result."""


class DiffTask(Section):
    """Compare the results OLD and NEW: exit 0 if they are the same but for ids, 1 if they differ, 2 on trouble."""

    old: Path
    """Manifest of a result, or a folder of results, all of which are compared with those of NEW of the same path."""
    new: Path
    """Likewise."""
    out: Path | None = None
    """CSV file for all objects that changed; see docs/reprocessing-compare.md."""
    block: Extent = (128, 128, 128)
    """Voxels per task; changes no result."""
    changes: Least = 10
    """Overlaps of changed objects to list, of each segmentation."""
    workers: Count = 1
    """Processes; changes no result."""


class TuneTask(Section):
    """Measure which tile and precision MODEL (model.json, a model file or a name) predicts fastest with here.

    The tile and the precision are part of what the affinities are: with others, their last bits may change, and what
    was predicted before is predicted anew.
    """

    model: Path
    """Manifest of a network (.json), a model file, or the name of a shipped network."""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N; on a CPU a single thread, as workers have."""
    memory: Annotated[float, Field(ge=0)] = 2000.0
    """MB that a tile may take."""
    seconds: Annotated[float, Field(ge=0)] = 2.0
    """To spend on each tile and precision, at least."""
