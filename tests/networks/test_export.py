"""Exported networks: they run without kdseg, give the network's probabilities, and say what they are."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn
from toy_volumes import cells, write_volume
from workflow import ROOT

from kdseg.config import ModelOptions
from kdseg.config.networks import DynUNetOptions, HeadOptions, NetworkOptions, UNetOptions
from kdseg.errors import ClaimError, ConfigError, KdsegError
from kdseg.networks.checkpoint import LoadedModel, load, load_model, save_model
from kdseg.networks.export import export, facts
from kdseg.networks.models import build, fold, only_heads
from kdseg.prediction.tiles import predictor
from kdseg.results.claims import claim
from kdseg.results.manifests import file_fingerprint, write_json
from kdseg.training import train
from kdseg.training.losses import affinity
from kdseg.training.losses.affinity import SoftAffinityTerm

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 3, -3))
HEADS = HeadOptions(lsd=True, lsd_sigma=60.0, embedding=2)
NETWORKS: dict[str, NetworkOptions] = {
    "unet": UNetOptions(
        widths=(3, 4, 4), downsample=((1, 2, 2), (2, 3, 2)), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3)), residual=True
    ),
    "dynunet": DynUNetOptions(widths=(3, 4, 4), downsample=((1, 2, 2), (2, 2, 2))),
}
Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


def model(options: NetworkOptions, heads: HeadOptions = HEADS) -> LoadedModel:
    """Return a network whose BatchNorms have the statistics of a trained one."""
    torch.manual_seed(0)
    network = build(options, heads, OFFSETS).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return LoadedModel(network, options, heads, OFFSETS, (40.0, 9.7, 8.0), {"name": "student", "step": 7})


def voxels(saved: LoadedModel, n: int, *strides: int) -> NDArray[np.uint8]:
    shape = (n, 1, *(k * s for k, s in zip(strides, saved.network.stride, strict=True)))
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


def expected(saved: LoadedModel, raw: NDArray[np.uint8], head: str = "affinities") -> NDArray[np.float32]:
    with torch.no_grad():
        logits = saved.network(torch.from_numpy(raw).float() / 127.5 - 1).logits[head]
    return (logits if head == "embedding" else logits.sigmoid()).numpy()


def opened(path: Path) -> tuple[Run, str]:
    """Return how to run an exported network, by what its users have, and the facts in its file."""
    if path.suffix == ".onnx":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda raw: session.run(None, {"raw": raw}), session.get_modelmeta().custom_metadata_map["kdseg"]
    extra = {"kdseg.json": ""}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r".*is deprecated", (DeprecationWarning, FutureWarning)[path.suffix == ".pt2"]
        )
        if path.suffix == ".pt2":
            loaded = torch.export.load(path, extra_files=extra).module()
        else:
            loaded = torch.jit.load(path, _extra_files=extra)

    def run(raw: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        with torch.no_grad():
            outputs = loaded(torch.from_numpy(raw))
        return [one.numpy() for one in (outputs if isinstance(outputs, tuple) else (outputs,))]

    text = extra["kdseg.json"]
    return run, text.decode() if isinstance(text, bytes) else text


@pytest.fixture(scope="module", params=NETWORKS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    if request.param == "dynunet" and importlib.util.find_spec("monai") is None:
        pytest.skip("MONAI is not installed")
    made = model(NETWORKS[request.param])
    path = tmp_path_factory.mktemp(request.param) / "model.safetensors"
    save_model(path, made)
    return made, path


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ts"])
def test_an_export_gives_the_probabilities_at_any_shape(
    saved: tuple[LoadedModel, Path], tmp_path: Path, suffix: str
) -> None:
    made, path = saved
    out = tmp_path / f"deep/student{suffix}"
    export(path, out)
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    run, text = opened(out)
    for raw in (voxels(made, 2, 2, 3, 4), voxels(made, 1, 5, 2, 3), voxels(made, 3, 2, 2, 2)):
        (affinities,) = run(raw)
        assert affinities.dtype == np.float32
        np.testing.assert_allclose(affinities, expected(made, raw), rtol=0, atol=1e-5)
    for axis in range(3):
        if made.network.stride[axis] > 1:
            raw = np.pad(voxels(made, 1, 2, 2, 2), [(0, a == axis + 2) for a in range(5)])
            with pytest.raises((RuntimeError, AssertionError, onnxruntime.capi.onnxruntime_pybind11_state.Fail)):
                run(raw)
    about = json.loads(text)
    assert about == facts(made, ["affinities"])
    assert about["offsets"] == [list(offset) for offset in OFFSETS]
    assert (about["name"], about["voxel_size_nm"]) == ("student", [40.0, 9.7, 8.0])
    assert (tuple(about["stride"]), tuple(about["halo"])) == (made.network.stride, made.network.halo)


@pytest.mark.slow
def test_an_onnx_file_names_its_ends(saved: tuple[LoadedModel, Path], tmp_path: Path) -> None:
    export(saved[1], tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    (raw,), (affinities,) = session.get_inputs(), session.get_outputs()
    assert (raw.name, raw.shape, raw.type) == ("raw", ["n", 1, "z", "y", "x"], "tensor(uint8)")
    assert (affinities.name, affinities.shape[:2], affinities.type) == ("affinities", ["n", 4], "tensor(float)")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".ts"])
def test_other_heads_are_exported_on_demand(tmp_path: Path, suffix: str) -> None:
    made = model(UNetOptions(widths=(2, 3)))
    save_model(tmp_path / "model.safetensors", made)
    export(tmp_path / "model.safetensors", tmp_path / f"a{suffix}", also=["embedding", "lsd"])
    run, text = opened(tmp_path / f"a{suffix}")
    raw = voxels(made, 1, 2, 3, 2)
    outputs = run(raw)
    names = ["affinities", "embedding", "lsd"]
    assert list(json.loads(text)["outputs"]) == names
    for name, found in zip(names, outputs, strict=True):
        np.testing.assert_allclose(found, expected(made, raw, name), rtol=0, atol=1e-5)


def test_a_model_to_ship_has_half_the_bytes_and_the_same_affinities(
    saved: tuple[LoadedModel, Path], tmp_path: Path
) -> None:
    made, path = saved
    export(path, tmp_path / "a.safetensors")
    shipped = load_model(tmp_path / "a.safetensors")
    assert (shipped.offsets, shipped.voxel_size, shipped.meta) == (OFFSETS, made.voxel_size, made.meta)
    weights = load_file(tmp_path / "a.safetensors")
    assert {value.dtype for value in weights.values() if value.ndim == 5} == {torch.float16}
    raw = voxels(made, 1, 3, 3, 3)
    np.testing.assert_allclose(expected(shipped, raw), expected(made, raw), rtol=0, atol=2e-3)
    assert list(shipped.network(torch.zeros(1, 1, *shipped.network.stride)).logits) == ["affinities"]
    export(path, tmp_path / "b.safetensors", also=["embedding"])
    assert load_model(tmp_path / "b.safetensors").heads == HEADS.model_copy(update={"lsd": False})


def test_dropping_heads_changes_no_bit_of_the_others(saved: tuple[LoadedModel, Path]) -> None:
    made, _ = saved
    raw = torch.from_numpy(voxels(made, 1, 3, 3, 3)).float() / 127.5 - 1
    for network in (made.network, fold(made.network)):
        less = only_heads(network, ["affinities"])
        with torch.no_grad():
            whole, part = network(raw), less(raw)
        assert list(part.logits) == ["affinities"]
        assert torch.equal(part.logits["affinities"], whole.logits["affinities"])
        assert list(whole.logits) == ["affinities", "lsd", "embedding"]  # the original is as it was
    with pytest.raises(ConfigError, match=r"no heads \['skeleton'\].*'lsd'"):
        only_heads(made.network, ["skeleton"])


def test_what_cannot_be_exported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model.safetensors", model(UNetOptions(widths=(2, 3)), HeadOptions()))
    source = tmp_path / "model.safetensors"
    before = source.read_bytes()
    with pytest.raises(ConfigError, match=r"a\.trt: expected .*\.onnx, \.pt2, \.ts, \.safetensors"):
        export(source, tmp_path / "a.trt")
    with pytest.raises(ConfigError, match=r"no heads \['lsd'\]"):
        export(source, tmp_path / "a.ts", also=["lsd"])
    with pytest.raises(ClaimError, match="not an export"):
        export(source, tmp_path / "x" / ".." / "model.safetensors", overwrite=True)
    write_json(tmp_path / ".other" / "claim.json", {})
    with pytest.raises(ClaimError, match="not an export"):
        export(source, tmp_path / "other.safetensors", overwrite=True)
    monkeypatch.setattr("kdseg.networks.export.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install onnx onnxscript"):
        export(source, tmp_path / "a.onnx")
    (tmp_path / "a.ts").write_text("mine")
    with pytest.raises(ClaimError, match=r"a\.ts is there already.*--overwrite"):
        export(source, tmp_path / "a.ts")
    assert (tmp_path / "a.ts").read_text() == "mine"
    export(source, tmp_path / "a.ts", overwrite=True)
    opened(tmp_path / "a.ts")
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other", "a.ts", "model.safetensors"]


def test_a_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model.safetensors", model(UNetOptions(widths=(2, 3)), HeadOptions()))
    (tmp_path / "a.ts").write_text("mine")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(KdsegError, match="No space left"):
        export(tmp_path / "model.safetensors", tmp_path / "a.ts", overwrite=True)
    assert (tmp_path / "a.ts").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ts", "model.safetensors"]


@pytest.mark.slow
def test_the_commands_and_the_program_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "export.md").read_text()
    commands = [line.split("#")[0].split() for line in text.splitlines() if line.startswith("kdseg export ")]
    assert commands
    folder = tmp_path / "results" / "phantom" / "student"
    made = model(UNetOptions(widths=(2, 3)))
    with claim(folder / "model.json", "train", {}, {}) as held:
        save_model(held.model, made)
        held.stats["weights"] = file_fingerprint(held.model)
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (tmp_path / command[-1]).exists()
        assert done.stdout.startswith(f"wrote {command[-1]}, ")
        assert done.stderr == ""
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    raw = voxels(made, 1, 3, 3, 3)
    names = {"raw": raw[0, 0]}
    exec(program, names)
    np.testing.assert_allclose(names["affinities"], expected(made, raw), rtol=0, atol=1e-5)
    assert names["facts"]["offsets"] == [list(offset) for offset in OFFSETS]


class Heavy(SoftAffinityTerm):
    """A term with learned parts, trained with the student and frozen."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.projector = nn.Conv3d(3, 5, 1)
        self.discriminator = nn.Conv3d(5, 1, 1).requires_grad_(False)

    def values(self, *arguments: object) -> object:
        found = super().values(*arguments)
        return {name: value + 0 * self.projector.weight.sum() for name, value in found.items()}


ALONE = """
import sys
import numpy as np

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("kdseg.training", "monai")):
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
try:
    import kdseg.training.losses
except ImportError:
    pass
else:
    raise SystemExit("the blocker does not block")
import torch
from pathlib import Path
from kdseg.networks.checkpoint import load_model
from kdseg.prediction.tiles import predictor

torch.set_num_threads(1)
network = load_model(Path(sys.argv[1])).network
raw = np.load(sys.argv[2])
np.save(sys.argv[3], predictor(network, (4, 4, 4), torch.device("cpu"), torch.float32)(raw))
"""


def test_a_distilled_student_needs_nothing_of_its_teaching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file holds the student's weights and no others, and it predicts where no loss can be imported."""
    monkeypatch.setattr(affinity, "SoftAffinityTerm", Heavy)
    teacher = model(UNetOptions(widths=(2, 3, 2)), HeadOptions())
    teacher = LoadedModel(teacher.network, teacher.options, teacher.heads, OFFSETS, (10.0, 10.0, 10.0))
    save_model(tmp_path / "teacher.safetensors", teacher)
    raw, labels = cells((16, 16, 16), 5)
    volumes = {"a": (write_volume(tmp_path / "raw.zarr", raw), write_volume(tmp_path / "labels.zarr", labels))}
    options = ModelOptions.model_validate({
        "network": {"kind": "unet", "widths": [3, 4]},
        "train": {
            "volumes": ["a"], "validate_on": "a", "steps": 2, "crop": [8, 8, 8], "validate_every": 2, "batch": 1,
            "validate_shape": [8, 8, 8], "checkpoint_every": 2, "precision": "float32", "teacher": "t",
            "terms": [{"name": "affinity"}, {"name": "soft_affinity"}],
        },
    })  # fmt: skip
    path = tmp_path / "student" / "model.safetensors"
    train(
        options, offsets=OFFSETS, volumes=volumes, out=path, folder=tmp_path / "run", device="cpu",
        teachers=[tmp_path / "teacher.safetensors"],
    )  # fmt: skip
    trained = "\n".join(load(tmp_path / "run" / "state.pt")["objective"])
    assert "projector" in trained  # there was something to leave out
    assert "discriminator" in trained
    content = load_file(path)
    student = build(options.network, options.heads, OFFSETS).state_dict()
    assert {name: value.shape for name, value in content.items()} == {k: v.shape for k, v in student.items()}

    network = load_model(path).network
    tile = np.random.default_rng(0).integers(0, 256, [4 + 2 * h for h in network.halo], dtype=np.uint8)
    np.save(tmp_path / "raw.npy", tile)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ours = predictor(network, (4, 4, 4), torch.device("cpu"), torch.float32)(tile)
    torch.set_num_threads(threads)
    (tmp_path / "alone.py").write_text(ALONE)
    done = subprocess.run(
        [sys.executable, tmp_path / "alone.py", path, tmp_path / "raw.npy", tmp_path / "out.npy"],
        cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), ours)
