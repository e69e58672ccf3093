"""Networks as float16 safetensors in files small enough to travel.

A network `NAME` is `NAME-1of2.safetensors` and so on. Each file holds whole tensors, and as metadata all that is needed
to build the network; statistics of BatchNorm stay float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdseg.config.networks import HeadOptions, NetworkOptions
from kdseg.errors import UnreadableError
from kdseg.networks.checkpoint import LoadedModel
from kdseg.networks.models import build

LARGEST = 15 * 2**20
"""Bytes of tensors in a file, less than the 16 MiB that come back."""


def write_weights(folder: Path, name: str, model: LoadedModel) -> list[Path]:
    """Write a network, replacing what is there of that name; return its files."""
    tensors = {
        key: (value.half() if value.is_floating_point() and value.ndim > 1 else value).cpu().contiguous()
        for key, value in model.network.state_dict().items()
    }
    about = {
        "network": model.options.model_dump(mode="json"),
        "heads": model.heads.model_dump(mode="json"),
        "offsets": [list(offset) for offset in model.offsets],
        "voxel_size": list(model.voxel_size),
        "meta": model.meta,
    }
    parts = _parts(tensors)
    files = []
    for number, part in enumerate(parts, 1):
        path = folder / f"{name}-{number}of{len(parts)}.safetensors"
        hidden = path.with_name(f".{path.name}")
        save_file(part, hidden, {"kdseg": json.dumps(about)})
        hidden.replace(path)
        files.append(path)
    for old in set(folder.glob(f"{name}-*of*.safetensors")) - set(files):
        old.unlink()
    return files


def read_weights(folder: Path, name: str) -> LoadedModel:
    """Return a network that `write_weights` wrote, on the CPU.

    Raises:
        UnreadableError: if a file is missing or damaged.
    """
    files = sorted(folder.glob(f"{name}-*of*.safetensors"))
    tensors: dict[str, Tensor] = {}
    about = None
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()["kdseg"])
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no mapping)
    except SafetensorError as error:
        raise UnreadableError(f"{path} is damaged ({error}): copy it again") from None
    if about is None or not files[0].stem.endswith(f"of{len(files)}"):
        raise UnreadableError(f"{folder} has {len(files)} files of the network {name!r}, not all of them")
    adapter: TypeAdapter[NetworkOptions] = TypeAdapter(NetworkOptions)
    options, heads = adapter.validate_python(about["network"]), HeadOptions.model_validate(about["heads"])
    offsets = tuple((z, y, x) for z, y, x in about["offsets"])
    network = build(options, heads, offsets)
    network.load_state_dict(
        {key: value.float() if value.dtype == torch.half else value for key, value in tensors.items()}
    )
    z, y, x = about["voxel_size"]
    return LoadedModel(network.eval(), options, heads, offsets, (z, y, x), about["meta"])


def names(folder: Path) -> list[str]:
    """Return the names of the networks in a folder."""
    return sorted({path.stem.rpartition("-")[0] for path in folder.glob("*-*of*.safetensors")})


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return tensors in parts of at most ``LARGEST`` bytes, or of one tensor."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        if parts[-1] and size + value.nbytes > LARGEST:
            parts.append({})
            size = 0
        parts[-1][key] = value
        size += value.nbytes
    return parts
