"""Trainings that start from a model file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import OFFSETS, options
from toy_volumes import cells, write_volume

from kdseg.config.segmentation import WatershedOptions
from kdseg.config.tasks import TrainTask, VolumeInputs
from kdseg.errors import ClaimError, ConfigError, KdsegError, MissingError, VoxelSizeError
from kdseg.networks.checkpoint import LoadedModel, load_model, save_model
from kdseg.networks.models import build
from kdseg.networks.models.device import Ranks
from kdseg.results.claims import claim
from kdseg.training import stage, train
from kdseg.training.run import Data, Run, prepare

BOTH = [{"name": "affinity"}, {"name": "lsd"}, {"name": "embedding"}]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("volumes")
    raw, labels = cells((20, 24, 24), 8)
    return {"a": (write_volume(folder / "raw.zarr", raw), write_volume(folder / "labels.zarr", labels))}


def saved(path: Path, seed: int = 5, voxel_size: Any = (10.0, 10.0, 10.0), offsets: Any = OFFSETS, **made: Any) -> Path:
    values = options(**made)
    torch.manual_seed(seed)
    network = build(values.network, values.heads, offsets)
    save_model(path, LoadedModel(network, values.network, values.heads, offsets, voxel_size))
    return path


def prepared(volumes: Any, **changes: Any) -> Run:
    made = options(**changes)
    return prepare(made, OFFSETS, Data(volumes, {}, ()), "x", Ranks(torch.device("cpu")), WatershedOptions())


def test_the_first_weights_are_those_of_the_file(tmp_path: Path, volumes: Any) -> None:
    path = saved(tmp_path / "first.safetensors")
    state, other = prepared(volumes, start_from=str(path)), prepared(volumes)
    expected = load_model(path).network.state_dict()
    for network in (state.objective.network, state.average):
        assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
    drawn = other.objective.network.state_dict()
    assert not all(torch.equal(drawn[name], value) for name, value in expected.items())


def test_what_is_made_by_default_may_be_spelled_out(tmp_path: Path, volumes: Any) -> None:
    spelled: dict[str, Any] = {"kind": "unet", "widths": [2, 3], "downsample": [[2, 2, 2]], "kernels": [[3, 3, 3]] * 2}
    path = saved(tmp_path / "spelled.safetensors", network=spelled)
    found = prepared(volumes, start_from=str(path)).objective.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in load_model(path).network.state_dict().items())
    flat = saved(tmp_path / "flat.safetensors", network={**spelled, "kernels": [[1, 3, 3], [3, 3, 3]]})
    with pytest.raises(ConfigError, match=r"kernels .*\(1, 3, 3\)"):
        prepared(volumes, start_from=str(flat))


def test_heads_are_added_and_dropped(tmp_path: Path, volumes: Any) -> None:
    path = saved(tmp_path / "lsd.safetensors", heads={"lsd": True, "embedding": 4}, terms=BOTH)
    terms = [{"name": "affinity"}, {"name": "embedding"}]
    found = prepared(volumes, start_from=str(path), heads={"embedding": 6}, terms=terms).objective.network.state_dict()
    plain = prepared(volumes, heads={"embedding": 6}, terms=terms).objective.network.state_dict()
    theirs = load_model(path).network.state_dict()
    new = [name for name in found if "embedding" in name]
    assert new
    for name, value in found.items():
        assert torch.equal(value, plain[name] if name in new else theirs[name]), name
    assert not [name for name in found if "lsd" in name]


OTHER = {"kind": "unet", "widths": [2, 4]}


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        ({"network": OTHER}, ConfigError, r"another network .*: widths \(2, 3\) \(there \(2, 4\)\)$"),
        ({"offsets": OFFSETS[:3]}, ConfigError, "predicts the offsets"),
        ({"voxel_size": (10.0, 10.0, 11.0)}, VoxelSizeError, "was trained on voxels of"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, volumes: Any, made: Any, error: type[KdsegError], message: str
) -> None:
    path = saved(tmp_path / "other.safetensors", **made)
    with pytest.raises(error, match=message):
        prepared(volumes, start_from=str(path))
    with pytest.raises(MissingError, match="no model file at"):
        prepared(volumes, start_from=str(tmp_path / "none.safetensors"))


def test_what_is_in_the_file_counts_and_not_where_it_lies(tmp_path: Path, volumes: Any) -> None:
    inputs = {}
    for kind, store in zip(("raw", "labels"), volumes["a"], strict=True):
        with claim(tmp_path / f"{kind}.json", "convert", {}, {}) as held:
            held.store.symlink_to(store)
        inputs[kind] = tmp_path / f"{kind}.json"

    def run(path: Path) -> None:
        values = {"name": "x", "offsets": OFFSETS, "volumes": {"a": VolumeInputs(**inputs)}, "device": "cpu"}
        stage.run(TrainTask(manifest=tmp_path / "model.json", options=options(start_from=str(path)), **values))

    run(saved(tmp_path / "one.safetensors"))
    before = (tmp_path / "model.safetensors").read_bytes()
    run(saved(tmp_path / "moved.safetensors"))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(ClaimError, match=r"inputs\.start_from was"):
        run(saved(tmp_path / "two.safetensors", seed=6))


def test_a_state_of_another_start_is_refused(tmp_path: Path, volumes: Any) -> None:
    def run(path: Path) -> None:
        made = options(start_from=str(path), steps=1)
        out = {"out": tmp_path / "model.safetensors", "folder": tmp_path / "run"}
        train(made, offsets=OFFSETS, volumes=volumes, device="cpu", **out)

    run(saved(tmp_path / "one.safetensors"))
    run(saved(tmp_path / "moved.safetensors"))
    with pytest.raises(ClaimError, match="another start"):
        run(saved(tmp_path / "two.safetensors", seed=6))


def test_a_training_that_has_begun_needs_its_start_no_more(tmp_path: Path, volumes: Any) -> None:
    path = saved(tmp_path / "one.safetensors")
    run = prepared(volumes, start_from=str(path))
    before = run.state()["options"]
    path.unlink()
    assert run.state()["options"] == before


def test_a_training_goes_on_from_what_it_learned(tmp_path: Path, volumes: Any) -> None:
    """The loss begins where the first training's ended, not where a random network's does."""
    made = {"learning_rate": 1e-2, "steps": 40, "validate_every": 40, "checkpoint_every": 40, "warmup": 5, "ema": 0.0}

    def trained(name: str, **more: Any) -> list[float]:
        place = tmp_path / name
        out = {"out": place / "model.safetensors", "folder": place}
        train(options(**made, **more), offsets=OFFSETS, volumes=volumes, device="cpu", **out)
        rows = [line.split(",") for line in (place / "curve.csv").read_text().splitlines()]
        return [float(row[rows[0].index("affinity")]) for row in rows[1:]]

    first = trained("first")
    second = trained("second", start_from=str(tmp_path / "first" / "model.safetensors"), seed=1)
    assert sum(second[:3]) / 3 < (sum(first[:3]) + sum(first[-3:])) / 6
