"""The training loop, of teachers and students alike."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdseg.checkpoint import LoadedModel, load, load_model, save, save_model
from kdseg.config.networks import ModelOptions, TrainOptions
from kdseg.config.segmentation import Watershed, WatershedOptions
from kdseg.curve import Curve
from kdseg.errors import ClaimError, ConfigError, StageError, VoxelSizeError
from kdseg.geometry import Offsets, is_multiple
from kdseg.losses import Context, Objective, build_terms, term_weight
from kdseg.models import Batch, Network, Outputs, autocast, build, fold, resolve_precision
from kdseg.models.base import channels_last, placed
from kdseg.models.device import Ranks, deterministic, joined
from kdseg.sampling import Addresses, Crops, Source, loader
from kdseg.validation import NO_SCORE, Scored, Validation, validate, validation_crop


class Result(NamedTuple):
    """What a training run came to.

    Attributes:
        model: the checkpoint of the best validation.
        step: after how many steps that was.
        scores: of the validation crop.
    """

    model: Path
    step: int
    scores: Scored


def train(
    options: ModelOptions,
    *,
    offsets: Offsets,
    volumes: Addresses,
    out: Path,
    folder: Path,
    teacher: Path | None = None,
    watershed: Watershed | None = None,
    name: str = "",
    device: str = "auto",
    progress: bool | None = None,
) -> Result:
    """Train one network and write the checkpoint of its best validation; continue where a killed run stopped.

    The run is a function of its arguments: crop ``i`` follows from (seed, i), the learning rate from the step,
    and ``folder/state.pt`` holds all the rest, so that a killed and continued run ends with the weights of an
    uninterrupted one. Under ``torchrun`` each process computes its share of every batch.

    Args:
        options: network, heads and training.
        offsets: one affinity channel each, nearest first.
        volumes: addresses of raw data and labels, by the names that the options use.
        out: model file to write at the end.
        folder: for ``state.pt``, ``best.pt`` and ``curve.csv``.
        teacher: model file to distil from.
        watershed: how validation makes fragments; default: `WatershedOptions`.
        name: stored in the model file.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: show a progress bar; default: where standard error is a terminal.

    Raises:
        ConfigError: if crop, teacher, terms or processes do not fit each other.
        ClaimError: if ``folder`` holds the state of a run with other options.
        StageError: if the loss is not finite.
    """
    steps = options.train.steps
    with joined(device) as ranks, deterministic():
        run = _prepare(options, offsets, volumes, teacher, name, ranks, watershed or WatershedOptions())
        _resume(run, folder / "state.pt")
        columns = ["step", "learning_rate", *run.objective.terms, "total", *Scored._fields, "seconds"]
        curve = Curve(folder / "curve.csv", columns, keep=run.step) if ranks.first else None
        with curve or nullcontext(), _bar(steps, run.step, name, progress if ranks.first else False) as bar:
            batches = iter(loader(run.crops, run.step, rank=ranks.rank, ranks=ranks.ranks))
            started = time.monotonic() - run.seconds
            while run.step < steps:
                row = _step(run, batches)
                if curve is not None:
                    if run.step % options.train.validate_every == 0 or run.step == steps:
                        row |= _validate(run, folder / "best.pt")._asdict()
                    run.seconds = time.monotonic() - started
                    curve.append({**row, "seconds": run.seconds})
                    if run.step % options.train.checkpoint_every == 0 or run.step == steps:
                        save(folder / "state.pt", run.state())
                bar.set_postfix(loss=f"{row['total']:.4f}", voi=f"{run.best.voi:.3f}", refresh=False)
                bar.update()
        if ranks.first:
            _publish(folder / "best.pt", out)
        return Result(out, run.best_step, run.best)


def learning_rate(step: int, options: TrainOptions) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine that ends at 0."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    done = (step - options.warmup) / max(options.steps - options.warmup, 1)
    return options.learning_rate * (1 + cos(pi * min(done, 1))) / 2


@dataclass
class _Run:
    """All that changes during a run, and all that it is made from."""

    options: ModelOptions
    offsets: Offsets
    watershed: Watershed
    name: str
    ranks: Ranks
    crops: Crops
    teacher: Network | None
    validation: Validation
    objective: Objective
    trained: nn.Module
    average: Network
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0
    best: Scored = NO_SCORE
    best_step: int = 0
    seconds: float = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "options": _fingerprint(self),
            "objective": self.objective.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "best": list(self.best),
            "best_step": self.best_step,
            "seconds": self.seconds,
        }


def _prepare(
    options: ModelOptions,
    offsets: Offsets,
    volumes: Addresses,
    teacher: Path | None,
    name: str,
    ranks: Ranks,
    watershed: Watershed,
) -> _Run:
    device = ranks.device
    dtype = resolve_precision(options.train.precision, device)
    crops = Crops(options.train, volumes)
    torch.manual_seed(options.train.seed)
    network = placed(build(options.network, options.heads, offsets), device)
    average = placed(build(options.network, options.heads, offsets), device)
    average.load_state_dict(network.state_dict())
    average.requires_grad_(False).eval()
    guide = None if teacher is None else _teacher(teacher, offsets, crops.voxel_size, device)
    for role, net in (("network", network), ("teacher", guide)):
        if net is not None and not is_multiple(options.train.crop, net.stride):
            raise ConfigError(f"a crop of {options.train.crop} is no multiple of the {role}'s pooling {net.stride}")
    if guide is None and any(term.from_teacher for term in options.train.terms):
        raise ConfigError("a term distils from a teacher, but no teacher checkpoint was given")
    context = Context(offsets, crops.voxel_size, options.heads.lsd_sigma)
    terms = build_terms(options.train.terms, context).to(device)
    if ranks.ranks > 1 and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    objective = Objective(network, terms, dtype)
    trained: nn.Module = objective
    if ranks.ranks > 1:
        trained = DistributedDataParallel(objective, [device] if device.type == "cuda" else None)
    source = Source(options.train.validate_on, *volumes[options.train.validate_on])
    return _Run(
        options=options,
        offsets=offsets,
        watershed=watershed,
        name=name,
        ranks=ranks,
        crops=crops,
        teacher=guide,
        validation=validation_crop(source, options.train.validate_shape),
        objective=objective,
        trained=trained,
        average=average,
        optimiser=_optimiser(objective, options.train),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
    )


def _teacher(path: Path, offsets: Offsets, voxel_size: tuple[float, ...], device: torch.device) -> Network:
    loaded = load_model(path, device)
    if loaded.offsets != offsets:
        raise ConfigError(f"the teacher {path} predicts the offsets {loaded.offsets}, the student {offsets}")
    if any(abs(a - b) > 1e-3 * b for a, b in zip(loaded.voxel_size, voxel_size, strict=True)):
        raise VoxelSizeError(f"the teacher {path} knows voxels of {loaded.voxel_size} nm, the data have {voxel_size}")
    return fold(loaded.network)


def _optimiser(objective: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Return AdamW (Loshchilov & Hutter 2019); biases and norms do not decay."""
    weights = [p for p in objective.parameters() if p.ndim > 1]
    rest = [p for p in objective.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _step(run: _Run, batches: Iterator[Batch]) -> dict[str, float]:
    """Do one step of the optimiser; return its row of the curve."""
    train = run.options.train
    weights = {term.name: term_weight(term, run.step, train.steps) for term in train.terms}
    rate = learning_rate(run.step, train)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.optimiser.zero_grad()
    run.trained.train()
    values = torch.zeros(len(weights), device=run.ranks.device)
    for part in range(train.accumulate):
        batch = next(batches).to(run.ranks.device)
        batch = batch._replace(raw=channels_last(batch.raw))
        last = part == train.accumulate - 1
        # gradients of the parts add up locally; processes exchange them once
        with run.trained.no_sync() if isinstance(run.trained, DistributedDataParallel) and not last else nullcontext():
            terms = run.trained(batch, _teach(run, batch))
            total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
            run.scaler.scale(total / train.accumulate).backward()  # type: ignore[no-untyped-call]
        values += torch.stack([term.detach() for term in terms.values()]) / train.accumulate
    if run.ranks.ranks > 1:
        dist.all_reduce(values)
        values /= run.ranks.ranks
    raw = dict(zip(weights, values.tolist(), strict=True))
    loss = sum(weights[name] * value for name, value in raw.items())
    run.scaler.unscale_(run.optimiser)
    norm = nn.utils.clip_grad_norm_(run.objective.parameters(), train.gradient_clip).item()
    if not isfinite(loss) or not (isfinite(norm) or run.scaler.is_enabled()):
        raise StageError(
            f"the loss is {loss} and its gradient {norm} at step {run.step + 1} ({raw}): lower learning_rate, or "
            "use precision float32; the state of the last checkpoint is kept"
        )
    run.scaler.step(run.optimiser)
    run.scaler.update()
    run.step += 1
    _update_average(run)
    return {"step": run.step, "learning_rate": rate, **raw, "total": loss}


def _teach(run: _Run, batch: Batch) -> Outputs | None:
    if run.teacher is None:
        return None
    with torch.no_grad(), autocast(run.objective.dtype, batch.raw.device):
        outputs: Outputs = run.teacher(batch.raw)
    return outputs


def _update_average(run: _Run) -> None:
    """Move the averaged weights towards the trained ones; the average is young, hence shorter, at first."""
    decay = min(run.options.train.ema, run.step / (9 + run.step))
    with torch.no_grad():
        for slow, fast in zip(run.average.parameters(), run.objective.network.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)
        for kept, seen in zip(run.average.buffers(), run.objective.network.buffers(), strict=True):
            kept.copy_(seen)


def _validate(run: _Run, best: Path) -> Scored:
    dtype, device = run.objective.dtype, run.ranks.device
    scores = validate(run.average, run.validation, run.offsets, dtype, device, run.watershed)
    if run.best_step == 0 or scores.voi < run.best.voi:
        run.best, run.best_step = scores, run.step
        meta = {"name": run.name, "step": run.step, "scores": scores._asdict()}
        model = LoadedModel(
            run.average, run.options.network, run.options.heads, run.offsets, run.crops.voxel_size, meta
        )
        save_model(best, model)
    return scores


def _publish(best: Path, out: Path) -> None:
    part = out.with_name(f".{out.name}.part")
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(best, part)
    part.replace(out)


def _fingerprint(run: _Run) -> str:
    # how the work is shared out and how often it is saved does not change the result
    options = run.options.model_dump_json(exclude={"train": {"loader_workers", "checkpoint_every"}})
    return f"{options} {run.offsets} {run.watershed}"


def _resume(run: _Run, path: Path) -> None:
    if not path.is_file():
        return
    state = load(path)
    if state.get("options") != _fingerprint(run):
        raise ClaimError(f"{path} is the state of a run with other options: remove its folder to train anew")
    run.objective.load_state_dict(state["objective"])
    run.average.load_state_dict(state["average"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.scaler.load_state_dict(state["scaler"])
    run.step, run.best_step, run.seconds = state["step"], state["best_step"], state["seconds"]
    run.best = Scored(*state["best"])


def _bar(steps: int, done: int, name: str, progress: bool | None) -> Any:
    from tqdm import tqdm

    return tqdm(total=steps, initial=done, desc=name or "train", disable=None if progress is None else not progress)
