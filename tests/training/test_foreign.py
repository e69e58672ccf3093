"""Teachers that were not trained here, from the files of other programs to a trained student."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import zarr
from pipeline import STORAGE, store, voxels
from safetensors.torch import save_file
from small_trainings import NEVER, OFFSETS, numbers, options
from torch import Tensor, nn
from toy_volumes import cells

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.config.questions import AdoptTask
from kdseg.config.tasks import TrainTask, VolumeInputs
from kdseg.config.teachers import FileTeacher, ModuleTeacher, NetworkTeacher
from kdseg.errors import (
    ClaimError,
    ConfigError,
    DataError,
    KdsegError,
    MissingError,
    ShapeError,
    UnreadableError,
    VoxelSizeError,
)
from kdseg.networks.checkpoint import LoadedModel, load_model, save_model
from kdseg.networks.export import export
from kdseg.networks.foreign import quiet
from kdseg.networks.models import build, fold
from kdseg.results.manifests import file_fingerprint, read
from kdseg.segmentation import adopt
from kdseg.training import stage, train
from kdseg.training.foreign import check, open_teacher
from kdseg.volumes.affinities import affinity_offsets
from kdseg.volumes.volume import open_volume

SHAPE = (20, 24, 24)
THEIRS = (OFFSETS[3], OFFSETS[0], (0, -9, 0), OFFSETS[2], OFFSETS[1])
"""Ours in another order, and one that we have not."""
ORDER = [THEIRS.index(offset) for offset in OFFSETS]
SOFT = [{"name": "affinity"}, {"name": "soft_affinity"}]


@pytest.fixture
def volume(tmp_path: Path) -> VolumeInputs:
    raw, labels = cells(SHAPE, 8)
    inputs = {"raw": raw, "labels": labels}
    return VolumeInputs(**{name: store(tmp_path / f"{name}.json", array) for name, array in inputs.items()})


def stored(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, (len(THEIRS), *shape), dtype=np.uint8)


def adopted(manifest: Path, address: str, raw: Path, **more: Any) -> Path:
    values = {"offsets": THEIRS, "keep": OFFSETS, "raw": raw, "storage": STORAGE}
    adopt.run(AdoptTask(manifest=manifest, address=address, **values | more))
    return manifest


def train_task(manifest: Path, volume: VolumeInputs, changes: dict[str, Any], **more: Any) -> TrainTask:
    made = options(**{"terms": SOFT, "teacher": "lab", "augment": NEVER, **changes})
    values = {"offsets": OFFSETS, "volumes": {"a": volume}, "device": "cpu"}
    return TrainTask(manifest=manifest, name="m", options=made, **values | more)


def test_a_student_learns_from_affinities_of_another_program(tmp_path: Path, volume: VolumeInputs) -> None:
    """Plain zarr without a voxel size, other channels in another order: they become ours on the raw data's voxels."""
    theirs = stored()
    zarr.create_array(str(tmp_path / "lab.zarr"), data=theirs, chunks=(1, 8, 8, 8))
    manifest = adopted(tmp_path / "t.json", str(tmp_path / "lab.zarr"), volume.raw)
    found = open_volume(read(manifest).result)
    assert affinity_offsets(found) == OFFSETS
    np.testing.assert_array_equal(voxels(manifest), theirs[ORDER])
    losses = {}
    for name, taught in (("m", manifest), ("n", adopted(tmp_path / "o.json", str(tmp_path / "lab.zarr"), volume.raw,
                                                       invert=True))):  # fmt: skip
        place = tmp_path / name / "model.json"
        how = {"teaching": {"outputs": "stored"}, "steps": 2}
        stage.run(train_task(place, volume, how, stored={"lab": {"a": {"affinities": taught}}}))
        made = read(place)
        assert made.inputs["lab/a/affinities.json"] == read(taught).fingerprint
        place.with_name("model.training").rename(place.with_name("run"))
        losses[name] = float(numbers(place.parent)[0]["soft_affinity"])
    assert losses["m"] != losses["n"]


def test_affinities_that_say_where_they_lie_are_cut_to_the_volume(tmp_path: Path) -> None:
    raw = store(tmp_path / "raw.json", np.zeros(SHAPE, np.uint8), offset=(20.0, 0.0, 50.0))
    theirs = stored((25, 24, 30))
    with h5py.File(tmp_path / "lab.h5", "w") as file:
        made = file.create_dataset("affs", data=(theirs / 255).astype(np.float32))
        made.attrs.update(resolution=(10.0, 10.0, 10.0), offset=(0.0, 0.0, 0.0))
    manifest = adopted(tmp_path / "lab.json", f"{tmp_path / 'lab.h5'}:/affs", raw)
    np.testing.assert_array_equal(voxels(manifest), theirs[ORDER][:, 2:22, :, 5:29])
    assert open_volume(read(manifest).result).offset == (20.0, 0.0, 50.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": (20, 24, 25)}, ShapeError, r"expected those of .*raw\.json, \(20, 24, 24\) from .* nm: cut them"),
        ({"axes": (1, 0, 2, 3)}, ShapeError, r"has 20 channels, expected one step z,y,x for each"),
        ({"keep": (*OFFSETS, (0, 5, 0))}, ConfigError, r"lab\.h5:/affs has no channel for the offsets \[\[0, 5, 0\]\]"),
        ({"resolution": (10.0, 10.0, 12.0)}, VoxelSizeError, r"has voxels of .*12.* nm, got .*10"),
        ({"resolution": (10.0, 10.0, 10.0), "offset": (5.0, 0.0, 0.0)}, ShapeError, "cut them out"),
    ],
)
def test_affinities_that_do_not_fit_are_refused(
    tmp_path: Path, volume: VolumeInputs, change: dict[str, Any], error: type[KdsegError], message: str
) -> None:
    values = stored(change.pop("shape", SHAPE)).transpose(change.pop("axes", (0, 1, 2, 3)))
    keep = {"keep": change.pop("keep", OFFSETS)}
    with h5py.File(tmp_path / "lab.h5", "w") as file:
        file.create_dataset("affs", data=values).attrs.update(change)
    with pytest.raises(error, match=message) as caught:
        adopted(tmp_path / "lab.json", f"{tmp_path / 'lab.h5'}:/affs", volume.raw, **keep)
    assert "\n" not in str(caught.value)


CPU = torch.device("cpu")
SIZE = (10.0, 10.0, 10.0)


class Logits(nn.Module):
    """A network as a lab has it: from a tensor to a tensor."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.network = fold(load_model(path).network)

    def forward(self, raw: Tensor) -> Tensor:
        found: Tensor = self.network(raw).logits["affinities"]
        return found


def saved(path: Path, offsets: Any = OFFSETS, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    options_of = UNetOptions(widths=(2, 3))
    network = build(options_of, HeadOptions(), offsets)
    save_model(path, LoadedModel(network, options_of, HeadOptions(), offsets, SIZE))
    return path


def scripted(path: Path, network: nn.Module, shape: tuple[int, ...] = (2, 1, 8, 12, 12)) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; and our check of the shape is not traced
        torch.jit.save(torch.jit.trace(network, torch.zeros(shape)), path)
    return path


def trained(place: Path, volume: VolumeInputs, *teachers: Path | NetworkTeacher) -> tuple[list[dict[str, str]], bytes]:
    volumes = {"a": (read(volume.raw).result, read(volume.labels or volume.raw).result)}
    made = options(terms=SOFT, teacher="lab", augment=NEVER | {"noise": 1}, steps=4)
    out = place / "model.safetensors"
    train(made, offsets=OFFSETS, volumes=volumes, out=out, folder=place / "run", teachers=teachers, device="cpu")
    return numbers(place), out.read_bytes()


def test_a_network_from_elsewhere_teaches_as_it_would_as_a_model(
    tmp_path: Path, volume: VolumeInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and weights are those of the same network as an own teacher, to the bit."""
    model = saved(tmp_path / "teacher.safetensors")
    expected = trained(tmp_path / "own", volume, model)
    known: dict[str, Any] = {"offsets": OFFSETS, "voxel_size": SIZE, "outputs": "logits"}
    (tmp_path / "lab_networks.py").write_text(
        f"from pathlib import Path\nfrom test_foreign import Logits\n\n"
        f"def net():\n    return Logits(Path({str(model)!r}))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    teachers: dict[str, NetworkTeacher] = {
        "script": FileTeacher(file=str(scripted(tmp_path / "lab.ts", Logits(model))), **known),
        "model": FileTeacher(file=str(model)),
        "module": ModuleTeacher(module="lab_networks:net", **known),
    }
    for name, teacher in teachers.items():
        assert trained(tmp_path / name, volume, teacher) == expected, name
    assert trained(tmp_path / "other", volume, saved(tmp_path / "other.safetensors", seed=4)) != expected


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".ts", ".pt2", ".onnx"])
def test_what_kdseg_exported_says_all_by_itself(tmp_path: Path, suffix: str) -> None:
    model, path = saved(tmp_path / "teacher.safetensors", THEIRS), tmp_path / f"net{suffix}"
    export(model, path)
    teacher = open_teacher(FileTeacher(file=str(path)), OFFSETS, SIZE, CPU)
    raw = torch.randint(0, 256, (2, 1, 8, 12, 12), generator=torch.Generator().manual_seed(0)).float() / 127.5 - 1
    check(teacher, raw, alone=True)
    outputs = teacher(raw)
    own = Logits(model)(raw).detach()[:, ORDER]
    assert outputs.known is None
    torch.testing.assert_close(outputs.logits["affinities"].sigmoid(), own.sigmoid(), atol=2e-6, rtol=0)


def test_a_network_that_pads_nothing_is_not_known_at_the_border(tmp_path: Path) -> None:
    torch.manual_seed(0)
    valid = nn.Conv3d(1, len(OFFSETS), (3, 5, 5))
    path = scripted(tmp_path / "valid.ts", valid)
    known: dict[str, Any] = {"file": str(path), "offsets": OFFSETS, "voxel_size": SIZE, "outputs": "logits"}
    raw = torch.rand(1, 1, 8, 12, 12) * 2 - 1
    outputs = open_teacher(FileTeacher(**known, input=(0, 255)), OFFSETS, SIZE, CPU)(raw)
    expected = valid((raw + 1) * 127.5).detach()
    assert outputs.known is not None
    assert outputs.known.sum() == expected.numel()
    assert outputs.known[:, :, 1:7, 2:10, 2:10].all()
    torch.testing.assert_close(outputs.logits["affinities"][:, :, 1:7, 2:10, 2:10], expected)
    narrower = open_teacher(FileTeacher(**known, input=(0, 255), halo=(2, 0, 3)), OFFSETS, SIZE, CPU)(raw)
    assert narrower.known is not None
    assert torch.equal(narrower.known[:, :, 2:6, 2:10, 3:9], torch.ones_like(expected[:, :, 1:-1, :, 1:-1]).bool())
    assert narrower.known.sum() == expected[:, :, 1:-1, :, 1:-1].numel()
    torch.testing.assert_close(narrower.logits["affinities"][:, :, 2:6, 2:10, 3:9], expected[:, :, 1:-1, :, 1:-1])


def test_a_student_learns_from_a_torchscript_network(tmp_path: Path, volume: VolumeInputs) -> None:
    """What is in the file counts, and not where it lies; its offsets are found among others."""

    def run(path: Path) -> None:
        lab = FileTeacher(file=str(path), offsets=THEIRS, voxel_size=SIZE, outputs="logits")
        stage.run(train_task(tmp_path / "model.json", volume, {"steps": 2}, foreign={"lab": lab}))

    first = scripted(tmp_path / "lab.ts", Logits(saved(tmp_path / "lab.safetensors", THEIRS)))
    run(first)
    made, before = read(tmp_path / "model.json"), (tmp_path / "model.safetensors").read_bytes()
    assert made.inputs["lab/file0"] == file_fingerprint(first)
    assert float(made.stats["steps"]) == 2
    run(first.rename(tmp_path / "moved.ts"))
    assert (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(ClaimError, match=r"inputs\.lab/file0 was"):
        run(scripted(tmp_path / "lab.ts", Logits(saved(tmp_path / "other.safetensors", THEIRS, seed=4))))


def frozen(path: Path) -> str:
    """Return a network that torch.export froze to one shape."""
    with quiet():
        torch.export.save(torch.export.export(nn.Conv3d(1, 4, 1), (torch.zeros(2, 1, 8, 8, 8),)), path)
    return str(path)


def onnx_of_one_shape(path: Path) -> str:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of torch's own
        torch.onnx.export(nn.Conv3d(1, 4, 1), (torch.zeros(2, 1, 8, 8, 8),), path, dynamo=True, verbose=False)
    return str(path)


def conv(path: Path, scale: float = 1.0, offsets: int = 4, *after: nn.Module) -> str:
    torch.manual_seed(0)
    first = nn.Conv3d(1, offsets, 1)
    with torch.no_grad():
        first.weight *= scale
    return str(scripted(path, nn.Sequential(first, *after)))


def garbled(path: Path) -> str:
    path.write_bytes(b"no archive")
    return str(path)


def weights(path: Path) -> str:
    torch.save(nn.Conv3d(1, 4, 1).state_dict(), path)
    return str(path)


def safe(path: Path) -> str:
    save_file(nn.Conv3d(1, 4, 1).state_dict(), path)
    return str(path)


LOGITS: dict[str, Any] = {"offsets": OFFSETS, "voxel_size": SIZE, "outputs": "logits"}
BAD: dict[str, tuple[Any, dict[str, Any], type[KdsegError], str]] = {
    "missing": (lambda p: str(p / "none.ts"), {}, MissingError, "no teacher at"),
    "kind": (lambda p: str(p / "net.h5"), {}, ConfigError, r"expected net\.pt2, net\.ts, net\.pt, net\.onnx, net"),
    "no archive": (lambda p: garbled(p / "net.pt2"), {}, UnreadableError, "is damaged, or neither"),
    "no graph": (lambda p: garbled(p / "net.onnx"), {}, UnreadableError, "is damaged, or neither"),
    "weights": (lambda p: weights(p / "net.pt"), {}, UnreadableError, "weights alone are no network"),
    "safe weights": (lambda p: safe(p / "net.safetensors"), {}, UnreadableError, "weights alone are no network"),
    "nothing said": (
        lambda p: conv(p / "net.ts"),
        {"offsets": None, "outputs": None},
        ConfigError,
        "offsets and outputs",
    ),
    "other offsets": (
        lambda p: conv(p / "net.ts"),
        {"offsets": (*OFFSETS[:3], (0, 0, 3))},
        ConfigError,
        r"offsets \[\[0, 0, -3\]\]",
    ),
    "channels": (
        lambda p: conv(p / "net.ts", 1, 5),
        {},
        ShapeError,
        r"returns \(2, 5, 8, 12, 12\) .*expected \(n, 4, z, y, x\)",
    ),
    "axes": (lambda p: conv(p / "net.ts", 1, 4, nn.Flatten(2, 3)), {}, ShapeError, r"returns \(2, 4, 96, 12\)"),
    "voxels": (lambda p: conv(p / "net.ts"), {"voxel_size": (40.0, 10.0, 10.0)}, VoxelSizeError, "knows voxels of"),
    "logits": (lambda p: conv(p / "net.ts", 9), {"outputs": "probabilities"}, DataError, "set `outputs: logits`"),
    "probabilities": (lambda p: conv(p / "net.ts", 1, 4, nn.Sigmoid()), {}, DataError, "set `outputs: probabilities`"),
    "fixed shape": (lambda p: frozen(p / "net.pt2"), {}, ShapeError, r"does not take crops of \(2, 1, 8, 12, 12\)"),
    "fixed shape of ONNX": (
        lambda p: onnx_of_one_shape(p / "net.onnx"),
        {},
        ShapeError,
        r"does not take crops of \(2, 1, 8, 12, 12\)",
    ),
    "nothing known": (lambda p: conv(p / "net.ts"), {"halo": (4, 0, 0)}, ShapeError, "knows nothing of a crop"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_network_that_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    made, changes, error, message = BAD[case]
    about = FileTeacher(file=made(tmp_path), **LOGITS | changes)

    def used() -> None:
        check(open_teacher(about, OFFSETS, SIZE, CPU), torch.rand(2, 1, 8, 12, 12) * 2 - 1, alone=True)

    with pytest.raises(error, match=message) as caught:
        used()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"input": (0.0, 1.0)}, r"its input is \(-1\.0, 1\.0\), `teachers` says \(0\.0, 1\.0\)"),
        ({"voxel_size": (20.0, 10.0, 10.0)}, "its voxel_size is"),
        ({"offsets": OFFSETS[::-1]}, "its offsets is"),
        ({"outputs": "probabilities"}, "its outputs is logits"),
    ],
)
def test_what_a_file_says_of_itself_is_not_overruled(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    torch.manual_seed(0)
    network, heads = UNetOptions(widths=(2, 3)), HeadOptions()
    path = tmp_path / "ours.safetensors"
    save_model(path, LoadedModel(build(network, heads, OFFSETS), network, heads, OFFSETS, SIZE))
    assert open_teacher(FileTeacher(file=str(path), voxel_size=SIZE), OFFSETS, SIZE, CPU).about.input == (-1.0, 1.0)
    with pytest.raises(ConfigError, match=message):
        open_teacher(FileTeacher(file=str(path), **said), OFFSETS, SIZE, CPU)


def test_a_network_without_an_affinity_head_is_no_online_teacher(tmp_path: Path) -> None:
    network, heads = UNetOptions(widths=(2, 3)), HeadOptions(affinities=False, embedding=4)
    path = tmp_path / "ours.safetensors"
    save_model(path, LoadedModel(build(network, heads, OFFSETS), network, heads, OFFSETS, SIZE))
    with pytest.raises(ConfigError, match="no head for affinities"):
        open_teacher(FileTeacher(file=str(path)), OFFSETS, SIZE, CPU)


def test_onnx_without_its_runtime_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match="pip install onnxruntime"):
        open_teacher(FileTeacher(file=garbled(tmp_path / "net.onnx")), OFFSETS, SIZE, CPU)


def test_a_border_that_is_not_known_is_not_averaged(tmp_path: Path) -> None:
    teacher = open_teacher(FileTeacher(file=conv(tmp_path / "n.ts"), halo=(1, 1, 1), **LOGITS), OFFSETS, SIZE, CPU)
    raw = torch.rand(2, 1, 8, 12, 12) * 2 - 1
    check(teacher, raw, alone=True)
    with pytest.raises(ConfigError, match="cannot be averaged"):
        check(teacher, raw, alone=False)


def test_functions_that_make_no_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_nothing.py").write_text("def net():\n    return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name, error, message in (
        ("lab_nothing:net", ConfigError, "returned a int"),
        ("lab_nothing:neat", ConfigError, "no function 'neat'"),
        ("lab_nowhere:net", MissingError, "no Python module 'lab_nowhere'"),
    ):
        with pytest.raises(error, match=message):
            open_teacher(ModuleTeacher(module=name, **LOGITS), OFFSETS, SIZE, CPU)
