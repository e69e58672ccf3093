"""Model files that explain themselves, and the state of a run that can be continued.

A model file is a safetensors file: the weights, and in its header, under ``kdseg``, everything that is needed to use
them, as JSON: the architecture, the heads, the offsets and the voxel size. Its ``sha256`` is over both, and compared
whenever the file is read. Nothing in it can run code.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor

from kdseg.config.networks import HeadOptions, NetworkOptions
from kdseg.errors import KdsegError, MissingError, UnreadableError
from kdseg.geometry import Offsets, VoxelSize
from kdseg.networks.models import Network, build
from kdseg.networks.models.base import placed
from kdseg.results.files import replacing

FORMAT = "kdseg-model"
VERSION = 1
_DIGEST_BYTES = hashlib.sha256().digest_size
_NETWORK: TypeAdapter[NetworkOptions] = TypeAdapter(NetworkOptions)


@dataclass(frozen=True)
class LoadedModel:
    """A network with its weights, and what one must know to use it.

    Attributes:
        network: in evaluation mode, on the device that was asked for.
        options: its architecture.
        heads: what it predicts beside affinities.
        offsets: one affinity channel each.
        voxel_size: nm (z, y, x) of the data it was trained on.
        meta: ``name``, ``step`` and ``scores`` of the training, as far as they were given.
    """

    network: Network
    options: NetworkOptions
    heads: HeadOptions
    offsets: Offsets
    voxel_size: VoxelSize
    meta: dict[str, Any] = field(default_factory=dict)


def save_model(path: Path, model: LoadedModel, *, half: bool = False) -> None:
    """Write a model file, atomically.

    Args:
        path: replaced if it is there.
        model: the network may lie on any device.
        half: store the weights as float16, for shipping; statistics of BatchNorm stay float32.
    """
    weights = {name: _stored(name, value, half) for name, value in model.network.state_dict().items()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "network": model.options.model_dump(mode="json"),
        "heads": model.heads.model_dump(mode="json"),
        "offsets": [list(offset) for offset in model.offsets],
        "voxel_size": list(model.voxel_size),
        "meta": dict(model.meta),
    }
    # one entry, since safetensors writes several in any order, and equal models are to be equal files
    about = json.dumps({**content, "sha256": _digest(content, weights)})
    with replacing(path, (OSError,)) as file:
        file.write(serialized(weights, {"kdseg": about}))


def load_model(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """Read a model file and build its network.

    Raises:
        MissingError: if there is no such file.
        UnreadableError: if it is not a model file, is damaged, has another version, or its parts do not fit together.
    """
    content, weights = _read(path)
    if content.get("format") != FORMAT:
        raise UnreadableError(f"{path} is not a model file of kdseg; `kdseg train` writes one")
    if content.get("version") != VERSION:
        raise UnreadableError(
            f"{path} has version {content.get('version')} of the format, this program reads {VERSION}: update it"
        )
    try:
        options = _NETWORK.validate_python(content["network"])
        heads = HeadOptions.model_validate(content["heads"])
        offsets = tuple((int(z), int(y), int(x)) for z, y, x in content["offsets"])
        z, y, x = content["voxel_size"]
        network = build(options, heads, offsets)
        network.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
        )
    except KdsegError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnreadableError(f"{path} does not fit together: {' '.join(str(error).split()):.300}") from None
    return LoadedModel(
        placed(network.eval(), device), options, heads, offsets, (float(z), float(y), float(x)), dict(content["meta"])
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what the header of a model file says, and the weights, which are those that were written."""
    if not path.is_file():
        raise MissingError(f"no model file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        content = json.loads(header.get("kdseg", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        line = str(error).splitlines()[0]
        raise UnreadableError(f"{path} is no model file of kdseg, or damaged ({line}): make it again") from None
    if not isinstance(content, dict):
        raise UnreadableError(f"{path} is not a model file of kdseg; `kdseg train` writes one")
    if content.pop("sha256", None) != _digest(content, weights):
        raise UnreadableError(f"{path} is damaged: its content is not what its checksum says; make it again")
    return content, weights


def _digest(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of what a model file says and of its weights, in hex."""
    found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def save(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, and a SHA-256 of them, so that a reader sees the old file or the new one."""
    archive = BytesIO()
    torch.save(content, archive)
    with replacing(path) as file:
        file.write(archive.getbuffer())
        file.write(hashlib.sha256(archive.getbuffer()).digest())


def load(path: Path) -> dict[str, Any]:
    """Read what `save` wrote, and nothing else, onto the CPU.

    Raises:
        MissingError: if there is no such file.
        UnreadableError: if it is cut off, damaged or something else.
    """
    if not path.is_file():
        raise MissingError(f"no checkpoint at {path}")
    try:
        whole = memoryview(path.read_bytes())
    except OSError as error:
        raise UnreadableError(f"cannot read {path}: {error}") from error
    archive, digest = whole[:-_DIGEST_BYTES], whole[-_DIGEST_BYTES:]
    if hashlib.sha256(archive).digest() != digest:
        raise UnreadableError(f"{path} is damaged, cut off, or not a checkpoint of kdseg: remove it and train again")
    try:
        content: dict[str, Any] = torch.load(BytesIO(archive), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:  # written by another version of torch, or to run code
        line = str(error).splitlines()[0]
        raise UnreadableError(f"{path} cannot be read ({line}): remove it and train again") from None
    return content


def _stored(name: str, value: Tensor, half: bool) -> Tensor:
    value = value.detach().cpu().contiguous()
    convolution = value.is_floating_point() and value.ndim == 5
    return value.half() if half and convolution else value
