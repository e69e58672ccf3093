"""Stores that stages left, as other programs open them: voxels, places, and which of them are ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from ome_zarr.io import parse_url
from ome_zarr.reader import Label, Node, Reader
from pipeline import NEAREST, STORAGE, FragmentsOptions, perfect_affinities, run_fragments, run_rest
from toy_volumes import cells, write_hdf5

from kdseg.config.data import VolumeOptions
from kdseg.config.questions import AdoptTask
from kdseg.config.tasks import ConvertTask
from kdseg.results.manifests import read
from kdseg.segmentation import adopt
from kdseg.volumes import convert
from kdseg.volumes.volume import open_volume

SIZE, OFFSET = (40.0, 8.0, 9.5), (80.0, 0.0, -19.0)
IDS = ("labels", "baseline", "mask", "fragments", "segmentation")
STORES = ("raw", "affinities", *IDS)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What stages make of raw data, labels and affinities."""
    folder = tmp_path_factory.mktemp("stores")
    raw, labels = cells((9, 40, 44), 8)
    place, file = {"resolution": SIZE, "offset": OFFSET}, folder / "given.h5"
    options = VolumeOptions(
        raw=write_hdf5(file, raw, "raw", **place),
        labels=write_hdf5(file, labels + 2**62, "labels", **place),
        baseline=write_hdf5(file, labels, "baseline", **place),
        mask=write_hdf5(file, labels > 1, "mask", **place),
    )
    kinds: Any = ("raw", "labels", "baseline", "mask")
    for kind in kinds:
        task = ConvertTask(kind=kind, manifest=folder / f"{kind}.json", options=options, storage=STORAGE)
        convert.run(task)
    affinities = folder / "affinities.json"
    address = write_hdf5(file, perfect_affinities(labels), "affinities", **place)
    given = {"manifest": affinities, "raw": folder / "raw.json", "storage": STORAGE}
    adopt.run(AdoptTask(address=address, offsets=[list(step) for step in NEAREST], **given))
    made = run_fragments(folder, affinities, FragmentsOptions(block=(32, 32, 32), halo=(4, 8, 8)))
    run_rest(folder, affinities, made, block=(32, 32, 32))
    return {name: read(folder / f"{name}.json").result for name in STORES}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, stores: dict[str, Path]) -> Path:
    """One of them."""
    return stores[request.param]


def levels(store: Path) -> Iterator[tuple[str, NDArray[Any], list[float], list[float]]]:
    """Yield path, voxels, voxel size and place of each resolution level; channels have the size 1 and the place 0."""
    for level in range(len(list(store.glob("*/zarr.json")))):
        volume = open_volume(store, level=level)
        lead = 0 if volume.channels is None else 1
        size = [v * 2**level for v in SIZE]
        place = [o + (s - v) / 2 for o, s, v in zip(OFFSET, size, SIZE, strict=True)]
        yield str(level), volume.read(volume.roi), [1.0] * lead + size, [0.0] * lead + place


def is_of_ids(store: Path) -> bool:
    return store.stem in IDS


def names(store: Path) -> str:
    return "czyx" if store.stem == "affinities" else "zyx"


def placed(transformations: list[Any]) -> list[tuple[str, list[float]]]:
    """Return types and values of transformations, be they mappings or models."""
    found = [one if isinstance(one, dict) else one.model_dump() for one in transformations]
    return [(one["type"], list(one[one["type"]])) for one in found]


def test_what_is_asked_of_them(stores: dict[str, Path]) -> None:
    assert {store.stem for store in stores.values()} == set(STORES)
    deep = {name: len(list(levels(store))) for name, store in stores.items()}
    assert deep == dict.fromkeys(STORES, 2) | {"affinities": 1, "fragments": 1}
    voxels = {name: next(levels(store))[1] for name, store in stores.items()}
    assert voxels["labels"].max() > 2**62
    assert all(len(np.unique(found)) > 1 for found in voxels.values())


def test_zarr(store: Path) -> None:
    group = zarr.open_group(str(store), mode="r")
    assert group.metadata.zarr_format == 3
    for path, voxels, *_ in levels(store):
        array = group[path]
        assert isinstance(array, zarr.Array)
        assert array.metadata.dimension_names == tuple(names(store))  # type: ignore[union-attr]
        np.testing.assert_array_equal(np.asarray(array[...]), voxels)


def test_dask(store: Path) -> None:
    for path, voxels, *_ in levels(store):
        array = dask.array.from_zarr(str(store), component=path)
        np.testing.assert_array_equal(array.compute(scheduler="synchronous"), voxels)


def test_tensorstore(store: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for path, voxels, *_ in levels(store):
        place = {"driver": "file", "path": f"{store}/{path}/"}
        array = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True).result()
        assert array.domain.labels == tuple(names(store))
        np.testing.assert_array_equal(array.read().result(), voxels)


def test_ome_zarr(store: Path) -> None:
    (node,) = list(Reader(parse_url(str(store)))())
    assert isinstance(node, Node)
    assert (node.load(Label) is not None) == is_of_ids(store)
    assert [(axis["name"], axis.get("unit")) for axis in node.metadata["axes"]] == [
        (name, None if name == "c" else "nanometer") for name in names(store)
    ]
    found = zip(node.data, node.metadata["coordinateTransformations"], levels(store), strict=True)
    for data, steps, (_, voxels, size, place) in found:
        np.testing.assert_array_equal(np.asarray(data), voxels)
        assert placed(steps) == [("scale", size), ("translation", place)]


def test_ome_zarr_models(store: Path) -> None:
    models = pytest.importorskip("ome_zarr_models.v05")  # with older Python, ome-zarr comes without it
    group = zarr.open_group(str(store), mode="r")
    datasets = models.Image.from_zarr(group).ome_attributes.multiscales[0].datasets
    for dataset, (path, _, size, place) in zip(datasets, levels(store), strict=True):
        assert dataset.path == path
        assert placed(list(dataset.coordinateTransformations)) == [("scale", size), ("translation", place)]
    labels = models.image_label.ImageLabelAttrs.model_validate(group.attrs["ome"])
    assert (labels.image_label is not None) == is_of_ids(store)


def test_ngff_zarr_with_the_schemas_of_the_format(store: Path) -> None:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    pytest.importorskip("jsonschema")
    metadata = dict(zarr.open_group(str(store), mode="r").attrs)
    for model in ("image", "label") if is_of_ids(store) else ("image",):
        ngff_zarr.validate(metadata, version="0.5", model=model)
    images = ngff_zarr.from_ngff_zarr(str(store), validate=True, version="0.5").images
    for image, (_, voxels, size, place) in zip(images, levels(store), strict=True):
        np.testing.assert_array_equal(image.data.compute(scheduler="synchronous"), voxels)
        assert [image.scale[name] for name in names(store)] == size
        assert [image.translation[name] for name in names(store)] == place


def test_napari_ome_zarr(store: Path) -> None:
    reader = pytest.importorskip("napari_ome_zarr")
    ((data, shown, kind),) = reader.napari_get_reader(str(store))(str(store))
    assert kind == ("labels" if is_of_ids(store) else "image")
    for level, (_, voxels, *_) in zip(data, levels(store), strict=True):
        np.testing.assert_array_equal(np.asarray(level), voxels)
    _, _, size, _ = next(levels(store))
    # channels become layers of their own, without an axis
    assert shown.get("channel_axis") == (0 if names(store) == "czyx" else None)
    assert list(shown["scale"]) == size[-3:]
    assert list(shown["units"]) == ["nanometer"] * 3
    # not the place: of the transformations of a level, 0.10.0 takes the first one only
    np.testing.assert_array_equal(shown["affine"].affine_matrix[:3, :3], np.eye(3))


def test_neuroglancer_knows_codecs_units_and_types(store: Path) -> None:
    """By its `src/datasource/zarr`: it runs in browsers alone, and takes 64-bit ids for a segmentation."""
    group = zarr.open_group(str(store), mode="r")
    known = {"blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"}
    for path, *_ in levels(store):
        array = group[path]
        (codec,) = array.metadata.to_dict()["codecs"]
        inner = [*codec["configuration"]["codecs"], *codec["configuration"]["index_codecs"]]
        assert {codec["name"], *(one["name"] for one in inner)} <= known
        assert array.dtype in (np.uint8, np.uint64)
        assert (array.dtype == np.uint64) == (is_of_ids(store) and store.stem != "mask")
    assert group.attrs["ome"]["version"] == "0.5"
