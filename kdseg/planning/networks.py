"""Networks of a configuration timed on samples: their predictions, and the first steps of their trainings."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import ceil, prod
from pathlib import Path
from statistics import median
from typing import Any

from kdseg.config import tasks
from kdseg.config.tasks import Product, VolumeInputs
from kdseg.errors import ConfigError
from kdseg.geometry import Triple, VoxelSize, triple
from kdseg.networks.checkpoint import LoadedModel, save_model
from kdseg.networks.models import build
from kdseg.planning.actual import stored_bytes
from kdseg.planning.bench import Cost
from kdseg.planning.extents import Extents, conversion
from kdseg.planning.samples import MOST, Samples
from kdseg.planning.timings import Timing, enough, of_two
from kdseg.results.curve import read_curve

WARM, AT_LEAST_S, AT_MOST = 3, 10.0, 300
"""Steps of a first training that warms up, seconds that the second one should take of a core, and its most steps."""
_SAMPLE = 2**20
"""Voxels of the first larger sample of a prediction, in 2 to 8 tiles."""


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


def time_network(samples: Samples, model: str, needed: Mapping[str, float], voxel_size: VoxelSize) -> dict[str, Timing]:
    """Time predictions of one network: of one tile, and of as many as tell what a tile takes.

    Args:
        samples: of the run.
        model: name of the network.
        needed: voxels of the largest job, by the names of the work: ``predict MODEL PRODUCT``.
        voxel_size: nm, (z, y, x).
    """
    tile = samples.config.predict.tile
    many = min(max(_SAMPLE // prod(tile), 2), 8)
    file = Path(weights_of(samples, model, voxel_size))

    def predicted(product: Any, count: int) -> dict[str, float]:
        shape = (tile[0], tile[1], tile[2] * count)
        raw = samples.grey(shape, voxel_size)
        manifest = samples.bench.folder / model / f"{product}-{count}" / f"{product}.json"
        cost = samples.bench.run("predict", _prediction(samples, raw, file, manifest, product))
        return {
            **cost._asdict(),
            **{"work": float(prod(shape)), "voxels": float(prod(shape)), "bytes": float(stored_bytes(manifest))},
        }

    found = {}
    for name, work in needed.items():
        product, count = name.rsplit(" ", 1)[1], many
        one = predicted(product, 1)
        more = predicted(product, count)
        while not enough(one, more, work) and 4 * count * prod(tile) <= MOST:
            count *= 4
            more = predicted(product, count)
        found[name] = of_two(one, more)
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
    """Time steps and validations of a training, on parts of its volumes.

    A few steps with one validation are what it takes to start; many more with three tell what a step takes.

    Raises:
        ConfigError: if it learns from what cannot be made of a sample.
    """
    bench = samples.bench
    task = _training(samples, extents, model)

    def trained(steps: int) -> tuple[tasks.TrainTask, Cost]:
        every = steps if steps == WARM else steps // 3
        short = {"steps": steps, "seconds": None, "validate_every": every, "checkpoint_every": steps, "warmup": 1}
        train = task.options.train.model_copy(update=short)
        folder = bench.folder / "trained" / f"{model}-{steps}"
        options = task.options.model_copy(update={"train": train})
        made = task.model_copy(update={"manifest": folder / "model.json", "options": options})
        return made, bench.run("train", made, workers=bench.threads)

    short, before = trained(WARM)
    # on cores that others use, too, a second has less than one of CPU time
    second = _times(short.manifest)[1] * min(before.cpu_s / before.seconds, 1.0)
    steps = 3 * min(max(ceil(AT_LEAST_S / second / 3), WARM), AT_MOST // 3)
    long, after = trained(steps)
    took = _times(long.manifest)
    every = steps // 3
    validated = [seconds for number, seconds in enumerate(took, 1) if number % every == 0]
    step = median(seconds for number, seconds in enumerate(took, 1) if number % every)
    validation = max(median(validated) - step, 0.0)
    spent, more = WARM * step + validation, (steps - WARM) * step + 2 * validation
    # CPU seconds per second of steps alone: the start is done by one thread, steps by several
    busy = max(after.cpu_s - before.cpu_s, 0.0) / more
    start, start_cpu = max(before.seconds - spent, 0.0), max(before.cpu_s - busy * spent, 0.0)
    common = {
        **{"start_s": start, "start_cpu_s": start_cpu},
        **{"fixed_bytes": float(stored_bytes(long.manifest)), "mb": max(before.mb, after.mb)},
    }
    return {
        f"train {model}": Timing(unit_s=step, unit_cpu_s=step * busy, **common),
        f"validate {model}": Timing(unit_s=validation, unit_cpu_s=validation * busy),
        f"budget {model}": Timing(unit_s=1.0, unit_cpu_s=busy, **common),
    }


def _times(manifest: Path) -> list[float]:
    """Return the seconds of each step of a training, some with a validation."""
    curve = read_curve(manifest.with_name("model.training") / "curve.csv")
    return [after - before for before, after in pairwise([0.0, *(float(row["seconds"]) for row in curve)])]


def _training(samples: Samples, extents: Mapping[str, Extents], model: str) -> tasks.TrainTask:
    """Return the training of a model on parts of its volumes."""
    config, bench, options = samples.config, samples.bench, samples.config.all_models[model]
    train = options.train
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
    return tasks.TrainTask(
        manifest=bench.folder / "trained" / model / "model.json",
        name=model,
        options=options,
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
