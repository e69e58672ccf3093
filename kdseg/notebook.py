"""Functions for Python and notebooks, on arrays in memory: the voxels and scores are those of the stages.

`import kdseg` has them as `kdseg.open`, `kdseg.load_model`, `kdseg.predict`, `kdseg.segment` and `kdseg.evaluate`. What
does not fit into memory, or takes long enough to be killed, is for the commands and the workflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdseg.config import AgglomerateOptions, EdgesOptions, FragmentsOptions, SegmentOptions, StorageOptions
from kdseg.config.data import SectionsOptions
from kdseg.config.questions import EvaluateTask
from kdseg.config.segmentation import PredictOptions
from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, SegmentTask
from kdseg.errors import DataError, ShapeError, VoxelSizeError
from kdseg.geometry import Offsets, Roi, Triple, VoxelSize, is_cubic, knows_voxels, triple
from kdseg.results.claims import claim
from kdseg.volumes.inputs import open_input
from kdseg.volumes.opened import Opened, open_array
from kdseg.volumes.volume import create_volume

if TYPE_CHECKING:
    from kdseg.networks.checkpoint import LoadedModel

_STORAGE = StorageOptions(levels=1)


def open(address: str | Path, sections: SectionsOptions | Mapping[str, Any] | None = None) -> Opened:
    """Open a volume: of any address that a configuration takes, or by the manifest (`.json`) of a stage.

    Args:
        address: of it.
        sections: order and gaps of sections, as of a volume of a configuration; default: by number, without gaps.

    Raises:
        MissingError: if it is not there.
        UnreadableError: if it is damaged, or of no known format.
        ShapeError: if it has neither three axes nor these and one of channels.
    """
    return open_array(address, SectionsOptions.model_validate(_values(sections)))


def load_model(model: str | Path, device: str = "cpu") -> LoadedModel:
    """Load a network: ``network`` is a module of torch, ``offsets`` and ``voxel_size`` are what it knows.

    Args:
        model: name of a shipped network, see `kdseg models`, a model file, or the manifest of a training.
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.

    Raises:
        MissingError: if there is no such network.
        DeviceError: if the device is not there.
    """
    from kdseg.networks import checkpoint
    from kdseg.networks.models import resolve_device
    from kdseg.networks.weights import weights

    return checkpoint.load_model(weights(Path(model)), resolve_device(device))


def predict(
    raw: ArrayLike | Opened,
    model: str | Path | LoadedModel,
    *,
    voxel_size: VoxelSize | None = None,
    options: PredictOptions | None = None,
    device: str = "auto",
) -> NDArray[np.uint8]:
    """Return the affinities of raw data, uint8 (c, z, y, x) in 1/255: those that `kdseg predict` stores.

    Args:
        raw: uint8 (z, y, x).
        model: as of `load_model`, or what it returned.
        voxel_size: nm, (z, y, x); default: what ``raw`` says, else what the network knows.
        options: tile and precision count; default: those of the stage.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        DataError: if the raw data are not uint8.
        ShapeError: if they are not (z, y, x).
        VoxelSizeError: if the network knows voxels of another size.
    """
    import torch

    from kdseg.networks.models import resolve_device, resolve_precision
    from kdseg.prediction.tiles import predict_roi, predictor

    loaded = load_model(model) if isinstance(model, str | Path) else model
    said = voxel_size or (raw.voxel_size if isinstance(raw, Opened) else None)
    if said is not None and not knows_voxels(loaded.voxel_size, said):
        raise VoxelSizeError(f"the network knows voxels of {loaded.voxel_size} nm, got {said}: resample the data")
    voxels = np.asarray(raw)
    if voxels.ndim != 3:
        raise ShapeError(f"raw data have the shape {voxels.shape}, expected (z, y, x)")
    if voxels.dtype != np.uint8:
        raise DataError(f"raw data are {voxels.dtype}, expected uint8: map the values that count to 0..255")
    how = options or PredictOptions()
    where = resolve_device(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the stage: threads may change the last bit
    try:
        made = predictor(
            loaded.network,
            how.tile,
            where,
            resolve_precision(how.precision, where),
            offsets=loaded.offsets,
            product={"none": "affinities", "flips": "affinities_flips", "all": "affinities_all"}[how.average],  # type: ignore[arg-type]
            cubic=is_cubic(loaded.voxel_size),
        )
        whole = Roi((0, 0, 0), triple(voxels.shape))
        found: NDArray[np.uint8] = predict_roi(made, lambda roi: voxels[roi.slices()], whole, whole)
    finally:
        torch.set_num_threads(threads)
    return found


def segment(
    affinities: ArrayLike | Opened,
    offsets: Offsets,
    *,
    voxel_size: VoxelSize,
    threshold: float,
    fragments: FragmentsOptions | Mapping[str, Any] | None = None,
    edges: EdgesOptions | Mapping[str, Any] | None = None,
    agglomerate: AgglomerateOptions | Mapping[str, Any] | None = None,
    workers: int = 1,
) -> NDArray[np.uint64]:
    """Return the neurons of affinities, uint64 (z, y, x), 0 for background: those of the stages, block by block.

    The stages run in a temporary folder (`TMPDIR`), which takes the room of the affinities and some more.

    Args:
        affinities: uint8 (c, z, y, x) in 1/255, as of `predict`.
        offsets: one ``(z, y, x)`` step in voxels per channel.
        voxel_size: nm, (z, y, x).
        threshold: score up to which fragments are merged, in 0..1.
        fragments: options of that section of a configuration; likewise the next two.
        edges: of the region graph.
        agglomerate: of the agglomeration; its ``thresholds`` are set.
        workers: processes; change no result.

    Raises:
        DataError: if the affinities are not uint8.
        ShapeError: if they are not (c, z, y, x) with one offset per channel.
    """
    from kdseg.segmentation.agglomeration import stage as agglomeration_stage
    from kdseg.segmentation.fragments import stage as fragments_stage
    from kdseg.segmentation.graph import stage as edges_stage
    from kdseg.segmentation.segments import stage as segments_stage

    values = np.asarray(affinities)
    if values.ndim != 4 or len(offsets) != len(values):
        raise ShapeError(f"affinities have the shape {values.shape} and {len(offsets)} offsets, expected (c, z, y, x)")
    if values.dtype != np.uint8:
        raise DataError(f"affinities are {values.dtype}, expected uint8 in 1/255: np.rint(255 * affinities)")
    joined = AgglomerateOptions.model_validate(_values(agglomerate) | {"thresholds": [threshold]})
    with TemporaryDirectory(prefix="kdseg-") as name:
        at = {part: Path(name) / f"{part}.json" for part in ("given", "fragments", "edges", "tree", "segmentation")}
        _store(at["given"], values, voxel_size, {"offsets": [list(step) for step in offsets]})
        made = {"affinities": at["given"], "fragments": at["fragments"]}
        fragments_stage.run(
            FragmentsTask(
                manifest=at["fragments"],
                affinities=at["given"],
                options=FragmentsOptions.model_validate(_values(fragments)),
                storage=_STORAGE,
                workers=workers,
            )
        )
        how = EdgesOptions.model_validate(_values(edges))
        edges_stage.run(EdgesTask(manifest=at["edges"], **made, options=how, workers=workers))
        agglomeration_stage.run(
            AgglomerateTask(manifest=at["tree"], **made, edges=at["edges"], options=joined, workers=workers)
        )
        segments_stage.run(
            SegmentTask(
                manifest=at["segmentation"],
                fragments=at["fragments"],
                edges=at["edges"],
                agglomeration=at["tree"],
                options=SegmentOptions(threshold=threshold),
                storage=_STORAGE,
                workers=workers,
            )
        )
        volume = open_input(at["segmentation"]).volume
        return volume.read(volume.roi)


def evaluate(
    segmentation: ArrayLike | Opened,
    labels: ArrayLike | Opened,
    *,
    voxel_size: VoxelSize | None = None,
    **options: Any,
) -> dict[str, float]:
    """Return the scores of a segmentation by their names, as `kdseg evaluate` has them, such as ``voi`` and ``arand``.

    Two volumes that were opened lie on each other by their places, as for the command; arrays voxel on voxel.

    Args:
        segmentation: integers (z, y, x).
        labels: likewise; 0 is left out unless ``ignore_labels`` says otherwise.
        voxel_size: nm, (z, y, x), for what is asked in nm; default: what an opened volume says.
        **options: fields of `kdseg.config.questions.EvaluateTask`, e.g. ``dust``, ``components``, ``per_section``.

    Raises:
        ShapeError: if arrays are not integers of one shape (z, y, x).
        VoxelSizeError: if something is asked in nm, and nobody says the voxel size.
    """
    from kdseg.evaluation import evaluate as stage

    if isinstance(segmentation, Opened) and isinstance(labels, Opened):
        addresses = {"segmentation": segmentation.address, "labels": labels.address}
        return _scores(stage.run(EvaluateTask.model_validate({**addresses, "voxel_size": voxel_size, **options})))
    pair = {"segmentation": np.asarray(segmentation), "labels": np.asarray(labels)}
    shapes = [one.shape for one in pair.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 3:
        raise ShapeError(f"segmentation and labels are {shapes[0]} and {shapes[1]}, expected one shape (z, y, x)")
    known = (one.voxel_size for one in (segmentation, labels) if isinstance(one, Opened))
    size = voxel_size or next((one for one in known if one is not None), None)
    if size is None and any(options.get(name) is not None for name in ("boundaries", "ignore_border")):
        raise VoxelSizeError("a distance in nm needs voxels of a known size: give `voxel_size`, in nm")
    with TemporaryDirectory(prefix="kdseg-") as name:
        addresses = {part: str(Path(name) / f"{part}.zarr") for part in pair}
        for part, values in pair.items():
            _store(Path(name) / f"{part}.json", values, size or (1.0, 1.0, 1.0), {})
        return _scores(stage.run(EvaluateTask.model_validate({**addresses, **options})))


def _scores(answer: Mapping[str, Any]) -> dict[str, float]:
    """Return all scores of an evaluation, those of boundaries among them."""
    boundaries: dict[str, float] = answer.get("boundaries", {}).get("scores", {})
    return {**answer["scores"], **boundaries}


def _values(options: Any) -> dict[str, Any]:
    """Return options as a mapping of those that were given."""
    if options is None:
        return {}
    return dict(options) if isinstance(options, Mapping) else options.model_dump(exclude_unset=True)


def _store(manifest: Path, values: NDArray[Any], voxel_size: VoxelSize, attributes: dict[str, Any]) -> None:
    """Write an array as the result of a stage."""
    shape: Triple = triple(values.shape[-3:])
    with claim(manifest, "notebook", {}, {}, volume=True) as held:
        volume = create_volume(
            held.store,
            shape=shape,
            dtype=values.dtype,
            chunk=_STORAGE.chunk,
            shard=_STORAGE.shard,
            voxel_size=voxel_size,
            channels=len(values) if values.ndim == 4 else None,
            compress=values.ndim == 3,
            attributes=attributes,
        )
        volume.write(volume.roi, values)
