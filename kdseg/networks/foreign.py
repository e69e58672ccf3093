"""Networks of others: opened from files and from Python functions, as functions of a tensor."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from kdseg.config.shipped import named
from kdseg.config.teachers import ModuleTeacher, NetworkTeacher
from kdseg.errors import ConfigError, MissingError, UnreadableError
from kdseg.networks.checkpoint import load_model
from kdseg.networks.models import fold

FACTS = "kdseg.json"
"""Extra file of an exported network, which says what it is; see `kdseg.networks.export.facts`."""
Call = Callable[[Tensor], Any]
"""A network on its device, from (n, 1, z, y, x) to what it returns."""


def opened(about: NetworkTeacher, device: torch.device) -> tuple[Call, Mapping[str, Any]]:
    """Return a network of others on a device, and what its file says of it.

    Args:
        about: where it is.
        device: to compute on.

    Returns:
        The network in evaluation mode, and values of fields of ``about``; none where the file says nothing.

    Raises:
        ConfigError: if it is a file of another kind, or the function makes no network.
        MissingError: if it is not there.
        UnreadableError: if the file holds no network.
    """
    if isinstance(about, ModuleTeacher):
        return _made(about, device), {}
    path = named(about.file)
    if path.suffix not in (".safetensors", ".pt", ".ts", ".pt2", ".onnx"):
        raise ConfigError(
            f"the teacher {path} is of no known kind, expected net.pt2, net.ts, net.pt, net.onnx, net.safetensors or "
            "the name of a network that `kdseg models` lists"
        )
    if not path.is_file():
        raise MissingError(f"no teacher at {path}")
    if path.suffix == ".onnx":
        return _onnx(path, device)
    if path.suffix == ".safetensors":
        return _ours(path, device)
    if not zipfile.is_zipfile(path):
        raise _unreadable(path, "no archive")
    with quiet():
        return _exported(path, device) if path.suffix == ".pt2" else _scripted(path, device)


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out that TorchScript is deprecated: people have networks in it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", r".*is deprecated", FutureWarning)
        yield


def _made(about: ModuleTeacher, device: torch.device) -> Call:
    module, _, function = about.module.partition(":")
    source = about.source
    make = getattr(import_module(module), function, None)
    if not callable(make):
        raise ConfigError(f"the teacher {about.module}: {source} has no function {function!r}")
    network = make()
    if not isinstance(network, nn.Module):
        raise ConfigError(f"the teacher {about.module} returned a {type(network).__name__}, expected a torch.nn.Module")
    return network.eval().requires_grad_(False).to(device).__call__


def _scripted(path: Path, device: torch.device) -> tuple[Call, Mapping[str, Any]]:
    extra = {FACTS: ""}
    try:
        network = torch.jit.load(path, map_location=device, _extra_files=extra)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise _unreadable(path, error) from None
    network.eval()

    def call(raw: Tensor) -> Any:
        # else it is compiled anew after some calls, and its last bits would depend on how many there were
        with optimized_execution(False):
            return network(raw)

    return call, _facts(extra[FACTS])


def _exported(path: Path, device: torch.device) -> tuple[Call, Mapping[str, Any]]:
    extra = {FACTS: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except (RuntimeError, ValueError, KeyError, AssertionError, OSError) as error:
        raise _unreadable(path, error) from None
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return program.module().__call__, _facts(extra[FACTS])


def _onnx(path: Path, device: torch.device) -> tuple[Call, Mapping[str, Any]]:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError:
        raise ConfigError(f"the teacher {path} is ONNX, which onnxruntime runs: pip install onnxruntime") from None
    refusals = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NotImplemented)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    kinds = ("CUDAExecutionProvider", "CPUExecutionProvider")[device.type != "cuda" :]
    there = [kind for kind in kinds if kind in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=there)
    except refusals as error:
        raise _unreadable(path, error) from None
    name = session.get_inputs()[0].name

    def call(raw: Tensor) -> Any:
        try:
            found = session.run(None, {name: raw.cpu().numpy()})
        except refusals as error:
            raise ValueError(str(error)) from None
        return torch.from_numpy(found[0]).to(raw.device)

    return call, _facts(session.get_modelmeta().custom_metadata_map.get("kdseg", ""))


def _ours(path: Path, device: torch.device) -> tuple[Call, Mapping[str, Any]]:
    try:
        loaded = load_model(path, device)
    except UnreadableError as error:
        raise _unreadable(path, error) from None
    if not loaded.heads.affinities:
        raise ConfigError(
            f"the teacher {path} has no head for affinities, which are the cosines of its embedding: predict the "
            "volumes with it, and name what is stored as `affinities`"
        )
    network = fold(loaded.network)
    facts = {
        "offsets": loaded.offsets,
        "voxel_size": loaded.voxel_size,
        "outputs": "logits",
        "input": (-1.0, 1.0),
    }
    return lambda raw: network(raw).logits["affinities"], facts


def _unreadable(path: Path, error: Exception | str) -> UnreadableError:
    line = " ".join(str(error).split())
    return UnreadableError(
        f"the teacher {path} is damaged, or neither TorchScript, torch.export, ONNX nor a model file of kdseg; weights "
        f"alone are no network ({line:.200})"
    )


def _facts(text: str | bytes) -> Mapping[str, Any]:
    """Return what a network that kdseg exported says of itself; nothing of others."""
    if not text:
        return {}
    values = json.loads(text)
    return {
        "offsets": tuple((int(z), int(y), int(x)) for z, y, x in values["offsets"]),
        "voxel_size": tuple(float(v) for v in values["voxel_size_nm"]),
        "outputs": "probabilities",
        "input": "uint8",
    }
