"""Networks of a configuration timed on samples: their predictions, and the first steps of their trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from kdseg.config import ModelOptions, tasks
from kdseg.config.tasks import Product, VolumeInputs
from kdseg.errors import ConfigError
from kdseg.geometry import Triple, VoxelSize, triple
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.planning.actual import stored_bytes
from kdseg.planning.extents import Extents, conversion
from kdseg.planning.samples import Samples
from kdseg.planning.timings import Timing, of_two
from kdseg.results.curve import read_curve

STEPS, VALIDATE_EVERY = 9, 3
"""Steps that are timed, and the validations among them; the first third warms up."""
_SAMPLE = 2**20
"""Voxels of the larger sample of a prediction, in 2 to 8 tiles."""


def weights_of(samples: Samples, model: str, voxel_size: VoxelSize) -> str:
    """Return the file, or the name, of a network to time: trained ones cost as much as new ones."""
    config = samples.config
    if model in config.pretrained:
        return config.pretrained[model]
    path = samples.bench.folder / f"{model}.safetensors"
    if not path.exists():
        options = config.all_models[model]
        network = build(options.network, options.heads, config.offsets).eval()
        save_model(path, LoadedModel(network, options.network, options.heads, config.offsets, voxel_size))
    return str(path)


def time_pretrained(samples: Samples) -> dict[str, Timing]:
    """Time the adoption of a network that is trained already."""
    config, name = samples.config, next(iter(samples.config.pretrained))
    manifest = samples.bench.folder / "adopted" / "model.json"
    task = tasks.PretrainedTask(manifest=manifest, file=config.pretrained[name], offsets=config.offsets)
    cost = samples.bench.run("pretrained", task, workers=None)
    return {"pretrained": Timing(start_s=cost.seconds, start_cpu_s=cost.cpu_s, mb=cost.mb)}


def time_network(samples: Samples, model: str, names: Sequence[str], voxel_size: VoxelSize) -> dict[str, Timing]:
    """Time predictions of one network, of one tile and of several.

    Args:
        samples: of the run.
        model: name of the network.
        names: of the work: ``predict MODEL PRODUCT``.
        voxel_size: nm, (z, y, x).
    """
    config = samples.config
    tile = config.predict.tile
    many = min(max(_SAMPLE // prod(tile), 2), 8)
    file = weights_of(samples, model, voxel_size)
    found = {}
    for name in names:
        product: Any = name.rsplit(" ", 1)[1]
        parts = []
        for count in (1, many):
            shape = (tile[0], tile[1], tile[2] * count)
            raw = samples.grey(shape, voxel_size)
            manifest = samples.bench.folder / model / f"{product}-{count}" / f"{product}.json"
            cost = samples.bench.run("predict", _prediction(samples, raw, Path(file), manifest, product))
            facts = {"work": float(prod(shape)), "voxels": float(prod(shape)), "bytes": stored_bytes(manifest)}
            parts.append({**cost._asdict(), **facts})
        found[name] = of_two(*parts)
    return found


def _prediction(samples: Samples, raw: Path, model: Path, manifest: Path, product: Product) -> tasks.PredictTask:
    config = samples.config
    return tasks.PredictTask(
        manifest=manifest,
        raw=raw,
        model=model,
        product=product,
        options=config.predict.model_copy(update={"fused": False}),
        storage=config.storage.model_copy(update={"remote": None}),
        device=config.device,
    )


def time_training(samples: Samples, extents: Mapping[str, Extents], model: str) -> dict[str, Timing]:
    """Time the first steps and validations of a training, on parts of its volumes.

    Raises:
        ConfigError: if it learns from what cannot be made of a sample.
    """
    config, bench = samples.config, samples.bench
    options = config.all_models[model]
    task = _training(samples, extents, model, options)
    cost = bench.run("train", task, workers=bench.threads)
    times = _times(task.manifest.with_name("model.training") / "curve.csv")
    step, validation, first = times
    spent = STEPS * step + STEPS // VALIDATE_EVERY * validation
    busy = cost.cpu_s / max(cost.seconds, 1e-9)
    start = max(cost.seconds - spent, first)
    common = {"fixed_bytes": float(stored_bytes(task.manifest)), "mb": cost.mb}
    return {
        f"train {model}": Timing(
            start_s=start, start_cpu_s=start * busy, unit_s=step, unit_cpu_s=step * busy, **common
        ),
        f"validate {model}": Timing(unit_s=validation, unit_cpu_s=validation * busy),
        f"budget {model}": Timing(start_s=start, start_cpu_s=start * busy, unit_s=1.0, unit_cpu_s=busy, **common),
    }


def _times(curve: Path) -> tuple[float, float, float]:
    """Return the seconds of a step, of a validation, and of the first step; those of the first third do not count."""
    at = [0.0, *(float(row["seconds"]) for row in read_curve(curve))]
    took = [after - before for before, after in pairwise(at)]
    late = list(enumerate(took, 1))[VALIDATE_EVERY:]
    plain = [seconds for step, seconds in late if step % VALIDATE_EVERY]
    step = sum(plain) / len(plain)
    validated = [seconds for number, seconds in late if number % VALIDATE_EVERY == 0]
    return step, max(sum(validated) / len(validated) - step, 0.0), took[0]


def _training(samples: Samples, extents: Mapping[str, Extents], model: str, options: ModelOptions) -> tasks.TrainTask:
    config, bench, train = samples.config, samples.bench, options.train
    if train.teaching.instances != "none":
        raise ConfigError("a training on segmentations by its teacher is not timed on samples")
    if any(name in config.teachers and train.teaching.outputs == "stored" for name in train.teachers):
        raise ConfigError("a training on stored affinities of others is not timed on samples")
    fields = {name: _inputs(samples, extents, train, name) for name in (*train.drawn, train.validate_on)}
    size = extents[train.validate_on].voxel_size
    own = [name for name in train.teachers if name not in config.teachers]
    taught: dict[str, Any] = {}
    products: tuple[Any, ...] = train.stored_products
    if train.teaching.outputs == "stored":
        taught["stored"] = {
            teacher: {
                volume: {product: _stored(samples, teacher, fields[volume].raw, product, size) for product in products}
                for volume in config.taught_volumes(model)
            }
            for teacher in own
        }
    else:
        taught["teachers"] = {teacher: _adopted(samples, teacher, size) for teacher in own}
    short = {"steps": STEPS, "seconds": None, "validate_every": VALIDATE_EVERY, "checkpoint_every": STEPS, "warmup": 1}
    return tasks.TrainTask(
        manifest=bench.folder / "trained" / model / "model.json",
        name=model,
        options=options.model_copy(update={"train": train.model_copy(update=short)}),
        offsets=config.offsets,
        volumes=fields,
        foreign={name: config.teachers[name] for name in train.teachers if name not in own},
        fragments=config.fragments,
        device=config.device,
        **taught,
    )


def _inputs(samples: Samples, extents: Mapping[str, Extents], train: Any, name: str) -> VolumeInputs:
    """Return a part of a volume that crops are drawn from, or that is validated on."""
    whole, shard = extents[name], samples.config.storage.shard
    needed: list[Triple] = [triple(2 * n for n in train.crop)] if name in train.drawn else []
    needed += [train.validate_shape] if name == train.validate_on else []
    shape = triple(
        min(n, -(-max(one[axis] for one in needed) // shard[axis]) * shard[axis]) for axis, n in enumerate(whole.raw)
    )
    labelled = "labels" in whole.datasets and name in (*train.volumes, train.validate_on)
    raw = samples.part(conversion(samples.config, extents, name, "raw"), shape)
    labels = samples.part(conversion(samples.config, extents, name, "labels"), shape) if labelled else None
    return VolumeInputs(raw=raw, labels=labels)


def _adopted(samples: Samples, teacher: str, voxel_size: VoxelSize) -> Path:
    manifest = samples.bench.folder / "teachers" / teacher / "model.json"
    if not manifest.exists():
        file = weights_of(samples, teacher, voxel_size)
        task = tasks.PretrainedTask(manifest=manifest, file=file, offsets=samples.config.offsets)
        samples.bench.run("pretrained", task, workers=None)
    return manifest


def _stored(samples: Samples, teacher: str, raw: Path, product: Product, voxel_size: VoxelSize) -> Path:
    manifest = samples.bench.folder / "teachers" / teacher / raw.parent.name / f"{product}.json"
    if not manifest.exists():
        model = _adopted(samples, teacher, voxel_size)
        samples.bench.run("predict", _prediction(samples, raw, model, manifest, product))
    return manifest
