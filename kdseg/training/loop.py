"""The training loop, of teachers and students alike."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from math import cos, inf, isfinite, pi
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdseg.config.networks import ModelOptions, TrainOptions
from kdseg.config.segmentation import Watershed, WatershedOptions
from kdseg.config.teachers import NetworkTeacher
from kdseg.errors import StageError
from kdseg.geometry import Offsets
from kdseg.networks.checkpoint import LoadedModel, save, save_model
from kdseg.networks.models import Batch
from kdseg.networks.models.base import channels_last
from kdseg.networks.models.device import deterministic, joined, keep_memory
from kdseg.results.curve import Curve
from kdseg.results.files import replacing
from kdseg.training.budget import Pace, expect_time, fixed_steps
from kdseg.training.losses import active_terms, term_weight
from kdseg.training.progress import Progress
from kdseg.training.pull import due, factors, gradients, looks, pulls, record
from kdseg.training.run import Data, Run, prepare, resume
from kdseg.training.sampling import Addresses, Guide, loader
from kdseg.training.validation import Scored, See, validate

log = logging.getLogger(__name__)


class Result(NamedTuple):
    """Result of a training run.

    Attributes:
        model: the checkpoint of the best validation.
        step: after how many steps that was.
        scores: of the validation crop.
        steps: of the whole run.
        named: the scores by name: against ground truth or, as ``agreement_…``, against the teachers' segmentation.
    """

    model: Path
    step: int
    scores: Scored
    steps: int
    named: dict[str, float]


def train(
    options: ModelOptions,
    *,
    offsets: Offsets,
    volumes: Addresses,
    out: Path,
    folder: Path,
    teachers: Sequence[Path | NetworkTeacher] = (),
    guides: Mapping[str, Guide] | None = None,
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
        folder: for ``state.pt``, ``best.safetensors`` and ``curve.csv``, of this run alone: a state of other options
            or of other weights to start from is refused, one of other volumes or teachers is not.
        teachers: model files to distil from, or networks of others, in the order of the options; none if they are
            stored.
        guides: by the same names, what stored teachers made of the volumes.
        watershed: how validation makes fragments; default: `WatershedOptions`.
        name: stored in the model file.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: show a progress bar; default: where standard error is a terminal.
    """
    with joined(device) as ranks, deterministic():
        if ranks.device.type == "cpu":
            keep_memory()
        data = Data(volumes, guides or {}, tuple(teachers))
        run = prepare(options, offsets, data, name, ranks, watershed or WatershedOptions())
        resume(run, folder / "state.pt")
        _say_what_never_acts(run)
        scores = run.validation.named(run.best)
        columns = ["step", "learning_rate", *run.objective.part_weights(), "total", *scores, "seconds"]
        columns += [f"pull.{name}" for name in run.objective.part_weights() if options.train.normalise]
        curve = Curve(folder / "curve.csv", columns, keep=run.step) if ranks.first else None
        with curve or nullcontext(), Progress(run, out, folder, progress) as seen:
            if run.steps == inf and ranks.first:
                _scores(run)  # validations compile at first, which says nothing about the later ones
            batches = iter(loader(run.crops, run.step, rank=ranks.rank, ranks=ranks.ranks))
            started, pace = time.monotonic() - run.seconds, Pace()
            while run.step < run.steps:
                with pace.step(looking=options.train.normalise and looks(run.step, run.step + 1) > 0):
                    row = step(run, batches)
                fixing = run.steps == inf and run.step == options.train.full_rate_steps
                if curve is not None:
                    if fixing or run.step % options.train.validate_every == 0 or run.step == run.steps:
                        with pace.validation(), seen.validation() as see:
                            row |= run.validation.named(_validate(run, folder / "best.safetensors", see))
                    run.seconds = time.monotonic() - started
                    curve.append({**row, "seconds": run.seconds})
                    if run.steps == inf and not fixing:
                        expect_time(run)
                if fixing:
                    run.steps = fixed_steps(run, pace)
                    _say_what_never_acts(run)
                # timed steps are not saved: those of a run that goes on would be too few to measure
                saving = run.step % options.train.checkpoint_every == 0 and run.steps < inf
                if curve is not None and (fixing or saving or run.step == run.steps):
                    save(folder / "state.pt", run.state())
                seen.step(row)
        if ranks.first:
            _publish(folder / "best.safetensors", out)
        return Result(out, run.best_step, run.best, run.step, run.validation.named(run.best))


def learning_rate(step: int, options: TrainOptions, steps: float) -> float:
    """Return the learning rate of a step: linear warm-up, then the fall that `OptimiserOptions` describes.

    Args:
        step: from 0.
        options: with ``seconds``, the fall begins when the number of steps is known.
        steps: of the whole run; infinite as long as it is not known.
    """
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    done = min(max((step - options.full_rate_steps) / max(steps - options.full_rate_steps, 1), 0), 1)
    left = {"cosine": (1 + cos(pi * done)) / 2, "polynomial": (1 - done) ** 0.9, "none": 1.0}[options.optimiser.decay]
    return float(options.learning_rate * left * 0.1 ** sum(done >= drop for drop in options.optimiser.drops))


def step(run: Run, batches: Iterator[Batch], rate: float | None = None) -> dict[str, float]:
    """Do one step of the optimiser; return its row of the curve.

    Args:
        run: before the step.
        batches: from those of the step on.
        rate: of learning; default: that of the schedule.

    Raises:
        StageError: if the loss, or its gradient, is not finite.
    """
    train = run.options.train
    rate = learning_rate(run.step, train, run.steps) if rate is None else rate
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.optimiser.zero_grad()
    run.trained.train()
    weights = scheduled(run, run.step)
    names, acting = list(weights), [name for name, weight in weights.items() if weight]
    before = [name for name, weight in scheduled(run, run.step - 1).items() if weight]
    pull = pulls(run.scales, acting)
    weights = weighed(run, weights)
    looked_at = due(run.step, acting, before) if train.normalise else []
    measured: dict[str, Tensor] = {}
    values = torch.zeros(len(names), device=run.ranks.device)
    for part in range(train.accumulate):
        last = part == train.accumulate - 1
        # gradients of the parts add up locally; processes exchange them once
        with run.trained.no_sync() if isinstance(run.trained, DistributedDataParallel) and not last else nullcontext():
            parts = _parts(run, next(batches))
            for name, gradient in gradients(run, parts, looked_at).items():
                measured[name] = measured[name] + gradient if part else gradient
            total = torch.stack([weights[name] * parts[name] for name in names]).sum()
            run.scaler.scale(total / train.accumulate).backward()  # type: ignore[no-untyped-call]
        values += torch.stack([parts[name].detach() for name in names]) / train.accumulate
    values = _shared(run, values)
    raw = dict(zip(names, values.tolist(), strict=True))
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
    record(run, measured)
    run.step += 1
    _update_average(run)
    shown = {f"pull.{name}": each for name, each in pull.items()} if train.normalise else {}
    return {"step": run.step, "learning_rate": rate, **raw, "total": loss, **shown}


def scheduled(run: Run, step: int) -> dict[str, float]:
    """Return what each part of each term counts at a step by its options."""
    terms: dict[str, float] = {term.name: term_weight(term, step, run.steps) for term in run.options.train.active_terms}
    return {name: terms[term] * weight for name, (term, weight) in run.objective.part_weights().items()}


def weighed(run: Run, weights: Mapping[str, float]) -> dict[str, float]:
    """Return what each part is multiplied by, of what it counts: with `normalise` so that all pull alike."""
    if not run.options.train.normalise:
        return dict(weights)
    acting = [name for name, weight in weights.items() if weight]
    known = factors(pulls(run.scales, acting), acting)
    return {name: weight * known.get(name, 0.0) for name, weight in weights.items()}


def _parts(run: Run, batch: Batch) -> dict[str, Tensor]:
    """Return the parts of the loss of one batch; those of terms that do not act are 0."""
    train = run.options.train
    # a mean over labelled crops is divided by those of the whole step: none counts more for having fewer beside it
    labelled = run.crops.labelled(run.step) / train.accumulate / run.ranks.ranks
    instanced = labelled if train.teaching.instances == "none" else train.batch / run.ranks.ranks
    batch = batch.to(run.ranks.device)
    batch = batch._replace(raw=channels_last(batch.raw), labelled=labelled, instanced=instanced)
    active = active_terms(train.active_terms, run.step, run.steps, train.accumulate)
    taught = any(term.from_teacher and term.name in active for term in train.active_terms)
    teacher = run.teachers(batch) if taught and run.teachers is not None else None
    found: dict[str, Tensor] = run.trained(batch, teacher, active)
    return found


def _shared(run: Run, values: Tensor) -> Tensor:
    """Return the mean over all processes."""
    if run.ranks.together:
        dist.all_reduce(values)
        values = values / run.ranks.ranks
    return values


def _update_average(run: Run) -> None:
    """Move the averaged weights towards the trained ones; the average is young, hence shorter, at first."""
    decay = min(run.options.train.ema, run.step / (9 + run.step))
    with torch.no_grad():
        for slow, fast in zip(run.average.parameters(), run.objective.network.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)
        for kept, seen in zip(run.average.buffers(), run.objective.network.buffers(), strict=True):
            kept.copy_(seen)


def _say_what_never_acts(run: Run) -> None:
    train = run.options.train
    for term in train.active_terms if run.ranks.first else ():
        if run.steps <= train.all_parts_act(term):
            log.warning(
                "the term %r relates to earlier crops after %d steps, but the training has %d: this part never acts; "
                "lower its `memory_start`",
                term.name,
                train.all_parts_act(term),
                run.steps,
            )


def _scores(run: Run, see: See | None = None) -> Scored:
    dtype, device = run.objective.dtype, run.ranks.device
    return validate(run.average, run.validation, run.offsets, dtype, device, run.watershed, see)


def _validate(run: Run, best: Path, see: See) -> Scored:
    scores = _scores(run, see)
    if run.best_step == 0 or scores.voi < run.best.voi:
        run.best, run.best_step = scores, run.step
        meta = {"name": run.name, "step": run.step, "scores": run.validation.named(scores)}
        model = LoadedModel(
            run.average, run.options.network, run.options.heads, run.offsets, run.crops.voxel_size, meta
        )
        save_model(best, model)
    return scores


def _publish(best: Path, out: Path) -> None:
    with best.open("rb") as found, replacing(out) as file:
        shutil.copyfileobj(found, file)
