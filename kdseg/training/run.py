"""Parts of a training run: assembled from options and data, saved, and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from kdseg.config.networks import ModelOptions, TrainOptions
from kdseg.config.segmentation import Watershed
from kdseg.config.shipped import SUFFIX, model_file
from kdseg.config.teachers import NetworkTeacher
from kdseg.errors import ClaimError, ConfigError, VoxelSizeError
from kdseg.geometry import Offsets, Triple, VoxelSize, in_sections, is_cubic, is_multiple, knows_voxels
from kdseg.networks.checkpoint import load, load_model
from kdseg.networks.models import Network, Widths, build, fold, resolve_precision, widths
from kdseg.networks.models.base import channels_last, placed
from kdseg.networks.models.device import Ranks
from kdseg.networks.models.guard import check_convolutions
from kdseg.results.manifests import file_fingerprint
from kdseg.training.agreement import taught_crop
from kdseg.training.foreign import ForeignNetwork, check, open_teacher
from kdseg.training.losses import Context, Objective, build_terms
from kdseg.training.sampling import Addresses, Crops, Guide, Source, collate
from kdseg.training.sampling.source import check_guide
from kdseg.training.start import start
from kdseg.training.teaching import Teachers, teachers_of
from kdseg.training.validation import NO_SCORE, Scored, Validation, validation_crop


class Data(NamedTuple):
    """Paths of all inputs; see `train`."""

    volumes: Addresses
    guides: Mapping[str, Guide]
    teachers: tuple[Path | NetworkTeacher, ...]


@dataclass
class Run:
    """All that changes during a run, and all that it is made from.

    Attributes:
        identity: of what it is made from; the state of another run is refused.
        judge: makes ``validation``.
        steps: to do; infinite until `kdseg.training.budget` has found how many fit into ``train.seconds``.
        step: steps done.
        seconds: that the steps done took.
    """

    options: ModelOptions
    offsets: Offsets
    watershed: Watershed
    name: str
    identity: str
    ranks: Ranks
    crops: Crops
    teachers: Teachers | None
    judge: Callable[[], Validation]
    objective: Objective
    trained: nn.Module
    average: Network
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    scales: dict[str, float] = field(default_factory=dict)
    steps: float = inf
    step: int = 0
    best: Scored = NO_SCORE
    best_step: int = 0
    seconds: float = 0.0

    @cached_property
    def validation(self) -> Validation:
        """The crop that is validated on."""
        return self.judge()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint has to hold so that the run can go on."""
        return {
            "options": self.identity,
            "objective": self.objective.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "scales": self.scales,
            "steps": self.steps,
            "step": self.step,
            "best": list(self.best),
            "best_step": self.best_step,
            "seconds": self.seconds,
        }


def prepare(options: ModelOptions, offsets: Offsets, data: Data, name: str, ranks: Ranks, watershed: Watershed) -> Run:
    """Return a run before its first step.

    Args:
        options: network, heads and training.
        offsets: one affinity channel each.
        data: where volumes and teachers lie.
        name: stored in the model file.
        ranks: this process among those that train together.
        watershed: how validation makes fragments.
    """
    device = ranks.device
    dtype = resolve_precision(options.train.precision, device)
    if device.type == "cuda":
        check_convolutions(device, dtype)
    sigma = options.heads.lsd_sigma if options.heads.lsd else None
    crops = Crops(options.train, data.volumes, data.guides, offsets, lsd_sigma=sigma)
    _check_judge(options.train.validate_on, data, crops.voxel_size)
    torch.manual_seed(options.train.seed)
    network = placed(build(options.network, options.heads, offsets), device)
    if options.train.start_from is not None:
        start(network, model_file(options.train.start_from), options, offsets, crops.voxel_size)
    identity = _identity(options, offsets, watershed)
    average = placed(build(options.network, options.heads, offsets), device)
    average.load_state_dict(network.state_dict())
    average.requires_grad_(False).eval()
    _check_crop(network, "network", options.train.crop)
    guides = [_teacher(one, offsets, crops.voxel_size, device) for one in data.teachers]
    for guide in guides:
        _check_teacher(guide, options.train, crops, ranks)
    teachers = teachers_of(
        guides, options.train, offsets, dtype, cubic=is_cubic(crops.voxel_size), stored=_stored_widths(crops)
    )
    context = Context(
        offsets,
        crops.voxel_size,
        widths(network),
        None if teachers is None else teachers.widths,
    )
    terms = build_terms(options.train.active_terms, context).to(device)
    if ranks.together and device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    features = any(term.features_used for term in options.train.active_terms)
    objective = Objective(network, terms, dtype, options.train.margin, features=features)
    trained: nn.Module = objective
    if ranks.together:
        trained = DistributedDataParallel(objective, [device] if device.type == "cuda" else None)
    return Run(
        options=options,
        offsets=offsets,
        watershed=watershed,
        name=name,
        identity=identity,
        ranks=ranks,
        crops=crops,
        teachers=teachers,
        judge=partial(validation, data, options.train, teachers, offsets, watershed, ranks),
        objective=objective,
        trained=trained,
        average=average,
        optimiser=_optimiser(objective, options.train),
        steps=inf if options.train.steps is None else options.train.steps,
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
    )


def validation(
    data: Data,
    options: TrainOptions,
    teachers: Teachers | None,
    offsets: Offsets,
    watershed: Watershed,
    ranks: Ranks,
) -> Validation:
    """Return the crop that a run validates on.

    Args:
        data: where volumes lie, and what teachers stored of them.
        options: of the training.
        teachers: their own segmentation stands for ground truth that there is not.
        offsets: one affinity channel each.
        watershed: how fragments are made.
        ranks: this process.
    """
    name = options.validate_on
    raw, labels = data.volumes[name]
    if labels is None and teachers is not None:
        guide = data.guides.get(name, Guide())
        check_guide(name, guide, () if teachers.networks else options.teachers, offsets)
        source = Source(name, raw, None, guide)
        return taught_crop(source, teachers, options, offsets, watershed, ranks)
    shape, sections = options.validate_shape, in_sections(offsets)
    return validation_crop(Source(name, raw, labels), shape, options.boundary, sections=sections)


def _check_crop(network: Network, role: str, crop: Triple) -> None:
    if not is_multiple(crop, network.stride):
        raise ConfigError(f"a crop of {crop} is not a multiple of the {role}'s pooling {network.stride}")


def _check_judge(name: str, data: Data, voxel_size: VoxelSize) -> None:
    found = Source(name, data.volumes[name][0], None).voxel_size
    if not knows_voxels(voxel_size, found):
        raise VoxelSizeError(
            f"{name!r} has voxels of {found} nm, the volumes to train on {voxel_size} nm: validate on one of these, or "
            "convert another resolution level"
        )


def _check_teacher(teacher: Network, options: TrainOptions, crops: Crops, ranks: Ranks) -> None:
    _check_crop(teacher, "teacher", options.crop)
    if isinstance(teacher, ForeignNetwork):
        batch = collate([crops[number] for number in range(options.batch // ranks.ranks)]).to(ranks.device)
        alone = len(options.teachers) == 1 and options.teaching.average == "none"
        check(teacher, channels_last(batch.raw), alone=alone)


def _stored_widths(crops: Crops) -> Widths | None:
    """Return the channels of what teachers stored, the same for all volumes; None if they are not stored."""
    if not crops.stored:
        return None
    taught = crops[0].taught
    if taught is None:
        raise ConfigError("teachers are stored, but the crops carry nothing of theirs")
    logits = {"affinities": taught.affinities.shape[2], "embedding": taught.embedding.shape[1]}
    return Widths({name: channels for name, channels in logits.items() if channels}, (), ())


def _teacher(path: Path | NetworkTeacher, offsets: Offsets, voxel_size: VoxelSize, device: torch.device) -> Network:
    if not isinstance(path, Path):
        return open_teacher(path, offsets, voxel_size, device)
    loaded = load_model(path, device)
    if not loaded.heads.affinities:
        raise ConfigError(
            f"the teacher {path} has no head for affinities, which are the cosines of its embedding: use "
            "`teaching: {outputs: stored, average: none}`"
        )
    if loaded.offsets != offsets:
        raise ConfigError(f"the teacher {path} predicts the offsets {loaded.offsets}, the student {offsets}")
    if not knows_voxels(loaded.voxel_size, voxel_size):
        raise VoxelSizeError(
            f"the teacher {path} knows voxels of {loaded.voxel_size} nm, the data have {voxel_size} nm: take another "
            "teacher, or convert another resolution level"
        )
    return fold(loaded.network)


def _optimiser(objective: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """Return the optimiser; biases and norms do not decay."""
    ours = [p for p in objective.parameters() if p.requires_grad]  # a term may train some in another way
    weights = [p for p in ours if p.ndim > 1]
    rest = [p for p in ours if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    asked = options.optimiser
    kind = torch.optim.AdamW if asked.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=options.learning_rate, eps=asked.epsilon, amsgrad=asked.amsgrad)


def _identity(options: ModelOptions, offsets: Offsets, watershed: Watershed) -> str:
    # how the work is shared out and how often it is saved does not change the result
    said = options.model_dump_json(exclude={"train": {"loader_workers", "checkpoint_every", "start_from"}})
    begun = options.train.start_from
    weights = None if begun is None else file_fingerprint(model_file(begun))
    return f"{said} {offsets} {watershed} {weights} {SUFFIX}"


def resume(run: Run, path: Path) -> None:
    """Go on from the state that ``path`` holds, if there is one.

    Raises:
        ClaimError: if it is of a run with other options, or one that started from other weights.
    """
    if not path.is_file():
        return
    state = load(path)
    if state.get("options") != run.identity:
        raise ClaimError(f"{path} is the state of a run with other options or another start: remove its folder")
    run.objective.load_state_dict(state["objective"])
    run.average.load_state_dict(state["average"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.scaler.load_state_dict(state["scaler"])
    run.scales = dict(state["scales"])
    run.steps, run.step = state["steps"], state["step"]
    run.best_step, run.seconds = state["best_step"], state["seconds"]
    run.best = Scored(*state["best"])
