"""Refusals of trainings whose network, teachers and terms do not go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from kdseg.config.shipped import cards, model_file
from kdseg.config.teachers import SegmentationTeacher
from kdseg.errors import ConfigError, MissingError
from kdseg.geometry import Triple, fits_or_covers, is_multiple

if TYPE_CHECKING:
    from kdseg.config import Config
    from kdseg.config.networks import NetworkOptions


def mismatches(config: Config, name: str) -> Iterator[str]:
    """Yield what of a model's training does not go together, each in one line that says what to do.

    Args:
        config: all names in it exist.
        name: of the model, one of ``config.all_models``.
    """
    yield from _read(config, name)
    yield from _instances(config, name)
    yield from _cycle(config, name)
    yield from _embeddings(config, name)
    yield from _affinities(config, name)
    yield from _levels(config, name)


def _read(config: Config, name: str) -> Iterator[str]:
    phantoms = [volume for volume in config.taught_volumes(name) if config.volumes[volume].phantom]
    for teacher in config.all_models[name].train.teachers:
        if phantoms and isinstance(config.teachers.get(teacher), SegmentationTeacher):
            yield (
                f"the teacher {teacher!r} is a segmentation of the volumes {phantoms}, which are phantoms and bring "
                "their own: learn from their labels, or give `raw`"
            )


def _instances(config: Config, name: str) -> Iterator[str]:
    train = config.all_models[name].train
    using = [term.name for term in train.active_terms if term.instances_used]
    unlabelled = not any(config.volumes[volume].labelled for volume in train.volumes)
    if using and unlabelled and train.teaching.instances == "none":
        yield (
            f"models.{name}: the terms {using} look at neurons, but no volume has labels: set "
            "`teaching.instances: segmentation`, or leave them out"
        )


def _cycle(config: Config, name: str) -> Iterator[str]:
    seen: set[str] = set()
    ahead = [*_trained(config, name)]
    while ahead:
        teacher = ahead.pop()
        if teacher == name:
            yield f"the model {name!r} is, through its teachers, its own teacher"
        if teacher not in seen:
            seen.add(teacher)
            ahead.extend(_trained(config, teacher))


def unfit(config: Config) -> Iterator[str]:
    """Yield what is wrong with pretrained networks: a name that is none, or a threshold that nobody chose.

    Args:
        config: all names of models in it exist.
    """
    for name, model in config.pretrained.items():
        try:
            model_file(model)
        except ConfigError as error:
            yield f"pretrained.{name}: {error}"
        except MissingError:
            pass  # as of raw data, it may be made later, or lie elsewhere
    if config.evaluate.tune_on is not None or config.segment.threshold is not None or config.tuned_options != "none":
        return
    hint = "name a labelled volume as evaluate.tune_on, or fix segment.threshold"
    for name in (name for name in _segmenting(config) if name in config.pretrained):
        card = cards().get(config.pretrained[name])
        if card is None:
            yield f"nobody knows a threshold of the network {name!r}, which is a file: {hint}"
        elif not card.fits(config.fragments, config.edges, config.agglomerate):
            yield (
                f"the threshold on the card of the network {name!r} was chosen with other options of fragments, edges "
                f"or agglomerate than these: {hint}"
            )


def pooling(network: NetworkOptions) -> Triple:
    """Return the total pooling of a network, (z, y, x)."""
    z, y, x = (prod(step[axis] for step in network.steps) for axis in range(3))
    return (z, y, x)


def predicting(config: Config) -> dict[str, None]:
    """Return the names of the networks that predict volumes: to segment them, or because what they say is stored."""
    found = dict.fromkeys(_segmenting(config))
    for name, model in config.all_models.items():
        if model.train.teaching.outputs == "stored":
            found |= dict.fromkeys(config.own_teachers(name))
    return {name: None for name in found if name not in config.teachers}


def uneven_tiles(config: Config) -> Iterator[str]:
    """Yield which networks that are trained here cannot predict tiles of the configured extent.

    Args:
        config: all names of models in it exist.
    """
    tile = config.predict.tile
    for name in (name for name in predicting(config) if name in config.models):
        stride = pooling(config.models[name].network)
        if not is_multiple(tile, stride):
            yield f"predict.tile {list(tile)} must be a multiple of the pooling {list(stride)} of {name!r}"


def uneven_chunks(config: Config, shapes: Mapping[str, Triple | None]) -> Iterator[str]:
    """Yield volumes, of those that are segmented for certain, which `agglomerate.chunk` neither divides nor covers.

    Args:
        config: all names of volumes in it exist.
        shapes: extents of volumes, by name; None where only the file knows.
    """
    if config.agglomerate.engine != "exact":
        return
    chunk = config.agglomerate.chunk
    segmented = dict.fromkeys((*config.evaluate.volumes, *config.evaluate.tuned))
    for model in config.models.values():
        if model.train.teachers and model.train.teaching.instances == "segmentation":
            segmented |= dict.fromkeys(config.unlabelled_of(model.train))
    for name in segmented:
        shape = shapes.get(name)
        for where, block in (("fragments", config.fragments.block), ("edges", config.edges.block)):
            if shape is not None and not fits_or_covers(chunk, block, shape):
                yield (
                    f"agglomerate.chunk {chunk} must be a multiple of {where}.block {block}, or cover the volume "
                    f"{name!r} of {shape} voxels"
                )


def _segmenting(config: Config) -> Iterator[str]:
    """Yield the names of the networks that volumes are segmented with: to be scored, or to teach neurons."""
    yield from config.evaluate.models
    for model in config.all_models.values():
        if model.train.teaching.instances == "segmentation":
            yield from model.train.teachers[:1]


def _trained(config: Config, name: str) -> Iterator[str]:
    """Yield the teachers of a model that are trained here; files of others say themselves what they are."""
    return (teacher for teacher in config.own_teachers(name) if teacher in config.models)


def _embeddings(config: Config, name: str) -> Iterator[str]:
    train = config.all_models[name].train
    tapped = [term.name for term in train.active_terms if term.from_teacher and "embedding" in term.taps_used]
    without = [teacher for teacher in _trained(config, name) if not config.models[teacher].heads.embedding]
    if tapped and without:
        yield (
            f"models.{name}: the terms {tapped} compare embeddings, but the teachers {without} have none: give "
            "them heads.embedding, or tap a decoder level (e.g. 0) or the affinities"
        )


def _affinities(config: Config, name: str) -> Iterator[str]:
    train = config.all_models[name].train
    teaching = train.teaching
    ids = [isinstance(config.teachers.get(teacher), SegmentationTeacher) for teacher in train.teachers]
    if train.augment.turn and teaching.outputs == "stored" and not all(ids):
        yield (
            f"models.{name}: of a crop that is turned by any angle, stored affinities say nothing: use "
            "`teaching.outputs: online`, or augment.turn 0"
        )
    without = [teacher for teacher in _trained(config, name) if not config.models[teacher].heads.affinities]
    if without and (teaching.outputs != "stored" or teaching.average != "none"):
        yield (
            f"models.{name}: the teachers {without} have no head for affinities, which are the cosines of their "
            "embedding: use `teaching: {outputs: stored, average: none}`"
        )


def _levels(config: Config, name: str) -> Iterator[str]:
    train = config.all_models[name].train
    seeing = () if train.teaching.outputs == "stored" else _trained(config, name)
    for model in (name, *seeing):
        network = config.all_models[model].network
        stride = pooling(network)
        if any(c % s for c, s in zip(train.crop, stride, strict=True)):
            yield (
                f"models.{name}.train.crop {list(train.crop)} must be a multiple of the pooling {list(stride)} of "
                f"{model!r}"
            )
        looking = [term.name for term in train.active_terms if term.features_used]
        if looking and any(m % s for m, s in zip(train.margin, stride, strict=True)):
            yield (
                f"models.{name}.train.margin {list(train.margin)} must be a multiple of the pooling {list(stride)} "
                f"of {model!r}, since the terms {looking} look at features"
            )
        levels = len(network.widths)
        for term in (term for term in train.active_terms if model == name or term.from_teacher):
            unknown = [tap for tap in term.taps_used if isinstance(tap, int) and not -levels <= tap < levels]
            if unknown:
                yield (
                    f"models.{name}: the term {term.name!r} looks at the levels {unknown}, but {model!r} has "
                    f"only 0 to {levels - 1}"
                )
