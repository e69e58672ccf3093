"""Model files: nothing else is needed to use them, and nothing but a whole one is accepted."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdseg.config.networks import DynUNetOptions, HeadOptions, NetworkOptions, UNetOptions
from kdseg.errors import ConfigError, KdsegError, MissingError, UnreadableError
from kdseg.networks import checkpoint
from kdseg.networks.checkpoint import LoadedModel, load, load_model, save, save_model
from kdseg.networks.models import build

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 3, -3))
UNET = UNetOptions(widths=(2, 3), kernels=((1, 3, 3), (3, 3, 3)), downsample=((1, 2, 2),), residual=True)


def model(options: NetworkOptions = UNET, seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    heads = HeadOptions(lsd=True, lsd_sigma=60.0, embedding=2)
    network = build(options, heads, OFFSETS).eval()
    network(torch.randn(1, 1, *(4 * s for s in network.stride)))
    return LoadedModel(network, options, heads, OFFSETS, (40.0, 9.7, 8.0), {"name": "student", "step": 7})


@pytest.mark.slow
@pytest.mark.parametrize("options", [UNET, DynUNetOptions(widths=(2, 2, 2))], ids=["unet", "dynunet"])
def test_a_file_is_all_one_needs(tmp_path: Path, options: NetworkOptions) -> None:
    saved = model(options)
    save_model(tmp_path / "deep" / "model.safetensors", saved)
    loaded = load_model(tmp_path / "deep" / "model.safetensors")
    raw = torch.randn(1, 1, *(4 * s for s in saved.network.stride))
    with torch.no_grad():
        for name, expected in saved.network(raw).logits.items():
            torch.testing.assert_close(loaded.network(raw).logits[name], expected, rtol=1e-5, atol=1e-5)
    assert not loaded.network.training
    assert (loaded.options, loaded.heads, loaded.offsets) == (options, saved.heads, OFFSETS)
    assert (loaded.voxel_size, loaded.meta) == (saved.voxel_size, saved.meta)
    assert loaded.network.halo == saved.network.halo


def test_half_precision_halves_the_file_and_hardly_changes_it(tmp_path: Path) -> None:
    saved = model(UNetOptions(widths=(16, 32)))
    save_model(tmp_path / "full.safetensors", saved)
    save_model(tmp_path / "half.safetensors", saved, half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    loaded = load_model(tmp_path / "half.safetensors").network
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    raw = torch.randn(1, 1, 8, 8, 8)
    with torch.no_grad():
        expected = saved.network(raw).logits["affinities"]
        torch.testing.assert_close(loaded(raw).logits["affinities"], expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_file_is_said_to_be_one(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnreadableError, match="or damaged") as error:
        load_model(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    text, foreign, tensor, weights = (tmp_path / name for name in ("a.txt", "b.pt", "c.pt", "d.safetensors"))
    text.write_text("some text")
    torch.save({"state_dict": {}}, foreign)
    torch.save(torch.ones(3), tensor)
    save_file({"a": torch.ones(3)}, weights)
    for path in (text, foreign, tensor, weights):
        with pytest.raises(UnreadableError, match=r"no model file of kdseg|not a model file of kdseg"):
            load_model(path)
    with pytest.raises(MissingError, match="no model file at"):
        load_model(tmp_path / "absent.safetensors")


def test_states_that_are_cut_off_or_something_else_are_refused(tmp_path: Path) -> None:
    text, tensor, state = tmp_path / "a.txt", tmp_path / "c.pt", tmp_path / "state.pt"
    text.write_text("some text")
    torch.save(torch.ones(3), tensor)
    save(state, {"step": 1})
    state.write_bytes(state.read_bytes()[:-30])
    for path in (text, tensor, state):
        with pytest.raises(UnreadableError, match="not a checkpoint"):
            load(path)
    with pytest.raises(MissingError, match="no checkpoint at"):
        load(tmp_path / "absent.pt")


def test_each_flipped_byte_of_a_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save(path, {"step": 1, "weights": torch.arange(100)})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UnreadableError, match=r"state\.pt is damaged.*remove it and train again"):
            load(path)
    path.write_bytes(whole)
    assert load(path)["weights"].tolist() == list(range(100))


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.safetensors" for n in range(8)]
    for path in paths:
        save_model(path, model())
    assert len({path.read_bytes() for path in paths}) == 1


def test_the_same_bytes_as_other_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model(), half=True)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    same = {k: v.view(torch.bfloat16) if v.dtype == torch.float16 else v for k, v in load_file(path).items()}
    save_file(same, path, header)
    with pytest.raises(UnreadableError, match="is damaged"):
        load_model(path)


def test_each_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """The header is JSON, whose blanks at the end alone carry nothing."""
    path = tmp_path / "model.safetensors"
    save_model(path, model())
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    said = whole[:header].rstrip(b" ")
    places = [*range(8), *range(8, len(said), 7), *range(header, len(whole), 97), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(UnreadableError, match=path.name):
            load_model(path)
    path.write_bytes(whole)
    load_model(path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("owned",)


def test_a_file_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "kdseg-model", "weights": Evil()}, tmp_path / "zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Evil()))
    save(tmp_path / "state.pt", {"step": Evil()})
    for name in ("zip.pt", "pickle.pt", "state.pt"):
        for read in (load, load_model):
            with pytest.raises(UnreadableError):
                read(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "version 2"),
        ("offsets", [[1, 2]], "does not fit"),
        ("offsets", [[-1, 0, 0]], "does not fit"),
        ("network", {"kind": "unet", "widths": [2, 4]}, "does not fit"),
        ("network", {"kind": "perceptron"}, "does not fit"),
        ("weights", {}, "does not fit"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model())
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["kdseg"])
    tensors: Any = load_file(path)
    if key == "weights":
        tensors = value
    else:
        content[key] = value
    del content["sha256"]
    save_file(tensors, path, {"kdseg": json.dumps({**content, "sha256": checkpoint._digest(content, tensors)})})
    with pytest.raises(UnreadableError, match=message):
        load_model(path)


def test_a_missing_library_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model.safetensors", model(DynUNetOptions(widths=(2, 2, 2))))
    monkeypatch.setitem(sys.modules, "monai.networks.nets.dynunet", None)
    with pytest.raises(ConfigError, match="pip install monai"):
        load_model(tmp_path / "model.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnreadableError, match="No space left"):
        save_model(path, model(seed=1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_errors_are_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KdsegError):
        save(tmp_path / "file" / "model.safetensors", {})
