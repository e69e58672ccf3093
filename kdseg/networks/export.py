"""Networks as files that run without kdseg: ONNX, torch.export, TorchScript.

Of each format the graph is the same::

    raw uint8 (n, 1, z, y, x) -> raw / 127.5 - 1 -> network, BatchNorms folded -> sigmoid -> float32 (n, c, z, y, x)

It takes voxels as they lie on disk, so that nobody can scale them in another way than in training. All axes but
the channel are free; z, y and x must be multiples of the stride, at least two of them, or the graph refuses. The
outermost ``halo`` voxels of an output have seen the padding: tiles overlap by it, and it is cut away.

The file explains itself: `facts` lie in it as JSON, in ONNX as the metadata property ``kdseg``, in the others as the
extra file ``kdseg.json``.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from kdseg import __version__
from kdseg.errors import ClaimError, ConfigError
from kdseg.networks.checkpoint import LoadedModel, load_model, save_model
from kdseg.networks.models import Network, fold, only_heads
from kdseg.networks.weights import weights
from kdseg.results.files import replacing
from kdseg.results.manifests import private_folder

FORMAT = "kdseg-export"
VERSION = 1


class Graph(nn.Module):
    """The exported graph: from stored voxels to probabilities."""

    def __init__(self, network: Network, heads: Sequence[str]) -> None:
        super().__init__()
        folded = fold(only_heads(network, heads))
        self.network = folded.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.heads = tuple(heads)

    def forward(self, raw: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what each head predicts.

        Args:
            raw: uint8 (n, 1, z, y, x).

        Returns:
            float32 (n, c, z, y, x): of affinities and descriptors in [0, 1], of an embedding as it is. A tuple if
            there are several heads, in their order.
        """
        logits = self.network(raw.float() / 127.5 - 1).logits
        found = tuple(logits[name] if name == "embedding" else torch.sigmoid(logits[name]) for name in self.heads)
        return found if len(found) > 1 else found[0]

    def example(self) -> Tensor:
        """Return an input to trace with; no two axes are alike, and none is 1, which tracers take for constant."""
        z, y, x = self.network.stride
        return torch.zeros(2, 1, 2 * z, 3 * y, 4 * x, dtype=torch.uint8)


def export(model: Path, out: Path, *, also: Sequence[str] = (), overwrite: bool = False) -> None:
    """Write a network to a file that its suffix decides about, atomically.

    Args:
        model: manifest of a network, a model file, or the name of a shipped network.
        out: ``.onnx``, ``.pt2`` (torch.export), ``.ts`` (TorchScript), or ``.safetensors``: a model file of kdseg
            with float16 weights, to ship.
        also: heads beside the affinities, ``lsd`` or ``embedding``; all others are left out.
        overwrite: replace ``out``.

    Raises:
        ConfigError: if the suffix is unknown.
        ClaimError: if ``out`` is there, or is the result of a stage.
    """
    if out.suffix not in (".safetensors", *WRITERS):
        raise ConfigError(
            f"cannot export to {out}: expected a file that ends with {', '.join((*WRITERS, '.safetensors'))}"
        )
    source = weights(model)
    if out.resolve() == source.resolve() or (private_folder(out) / "claim.json").exists():
        raise ClaimError(f"{out} is a network that was trained, not an export of one: name another file")
    if out.exists() and not overwrite:
        raise ClaimError(f"{out} is there already: name another file, or give --overwrite")
    loaded = load_model(source)
    heads = ("affinities", *dict.fromkeys(also))
    if out.suffix == ".safetensors":
        save_model(out, _shipped(loaded, heads), half=True)
        return
    about = json.dumps(facts(loaded, heads), indent=2)
    graph = Graph(loaded.network, heads).eval()
    with replacing(out, (OSError, RuntimeError)) as file, torch.no_grad():
        WRITERS[out.suffix](graph, about, file)


def facts(model: LoadedModel, heads: Sequence[str]) -> dict[str, Any]:
    """Return what one must know to use an exported network, as JSON values; lengths are (z, y, x)."""
    outputs = {
        "affinities": "probability that a voxel and the voxel at +offset are of one neuron; one channel per offset",
        "lsd": "local shape descriptors in [0, 1]",
        "embedding": "voxel embedding, as it is",
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "kdseg": __version__,
        "name": str(model.meta.get("name", "")),
        "input": "raw: uint8 (n, 1, z, y, x), the voxels as stored; z, y, x are multiples of stride, at least twice it",
        "outputs": {name: f"float32 (n, c, z, y, x): {outputs[name]}" for name in heads},
        "offsets": [list(offset) for offset in model.offsets],
        "voxel_size_nm": list(model.voxel_size),
        "stride": list(model.network.stride),
        "halo": list(model.network.halo),
        "use": "overlap tiles by halo on every side, start them at multiples of stride, cut the halo away",
    }


def _shipped(model: LoadedModel, heads: Sequence[str]) -> LoadedModel:
    embedding = model.heads.embedding if "embedding" in heads else 0
    options = model.heads.model_copy(update={"lsd": "lsd" in heads, "embedding": embedding})
    network = only_heads(model.network, heads)
    return LoadedModel(network, model.options, options, model.offsets, model.voxel_size, model.meta)


def _write_onnx(graph: Graph, about: str, file: BinaryIO) -> None:
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ConfigError(f"export to .onnx needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    with _quiet():
        program = torch.onnx.export(
            graph,
            (graph.example(),),
            dynamo=True,
            dynamic_shapes={"raw": {0: "n", 2: "z", 3: "y", 4: "x"}},
            input_names=["raw"],
            output_names=list(graph.heads),
            external_data=False,
            verbose=False,
        )
        assert program is not None  # None is for the older exporter
        program.model.metadata_props["kdseg"] = about
        file.write(program.model_proto.SerializeToString())


def _write_exported(graph: Graph, about: str, file: BinaryIO) -> None:
    free, fixed = torch.export.Dim.DYNAMIC, torch.export.Dim.STATIC
    with _quiet():
        axes = {"raw": (free, fixed, free, free, free)}
        program = torch.export.export(graph, (graph.example(),), dynamic_shapes=axes)
        torch.export.save(program, file, extra_files={"kdseg.json": about})


def _write_torchscript(graph: Graph, about: str, file: BinaryIO) -> None:
    with _quiet():
        traced = torch.jit.trace(graph, graph.example(), check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, file, _extra_files={"kdseg.json": about})


WRITERS: dict[str, Callable[[Graph, str, BinaryIO], None]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_exported,
    ".ts": _write_torchscript,
}
"""Writes a graph and its facts, by the suffix of the file."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what exporters tell about themselves, and that our check of the shape is not traced."""
    # torch.onnx warns that torchvision is not installed; the others log each simplification
    quieter = {"torch.onnx": logging.ERROR, "onnxscript": logging.WARNING, "onnx_ir": logging.WARNING}
    before = {name: logging.getLogger(name).level for name in quieter}
    try:
        for name, level in quieter.items():
            logging.getLogger(name).setLevel(level)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`torch\.jit\.\w+` is deprecated", DeprecationWarning)
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            warnings.filterwarnings(
                "ignore", "Converting a tensor to a Python boolean", module=r"kdseg\.networks\.models\.base"
            )
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
