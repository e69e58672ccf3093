"""Proposals as YAML, each value with a word on where it comes from, or when to change it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kdseg.config.questions import DEFAULT
from kdseg.config.secrets import hidden
from kdseg.config.workflow import EXAMPLES
from kdseg.geometry import Roi, Triple, triple
from kdseg.planning.proposal.grey import TAILS
from kdseg.planning.proposal.network import FAR, LIGHT, WIDTHS, even_box
from kdseg.planning.proposal.pace import VALIDATIONS, Pace
from kdseg.planning.proposal.proposal import Proposal, Trained, folder_name
from kdseg.planning.proposal.split import AXES
from kdseg.planning.units import count_text

NETWORK, LIGHTER, _RAW = "network", "student", "raw"
"""Names of the models, and of a volume without labels."""
_DUST, _VALIDATED, _TRY = 100, 2**21, 2**24
"""Voxels of objects too small to score, of what is validated on, and of a part to begin with."""


def text(proposal: Proposal, pace: Pace | None, out: Path) -> str:
    """Return the configuration.

    Args:
        proposal: what it says.
        pace: steps of the training; None if there is none.
        out: file that it is for.
    """
    lines = [*_head(proposal, out), *_volumes(proposal), ""]
    if proposal.trained is None or pace is None:
        lines += [f"pretrained: # networks that are trained already; `kdseg models {proposal.shipped}` says on what"]
        lines += [f"  {proposal.shipped}: {proposal.shipped}", "", *_layout(proposal), ""]
        lines += [f"evaluate: {{models: [{proposal.shipped}], volumes: [{_RAW}]}} # its threshold is that of its card"]
    else:
        lines += [*_models(proposal, proposal.trained, pace), "", *_layout(proposal), "", *_evaluate(proposal)]
    return "\n".join([*lines, ""])


def scalar(value: Any) -> str:
    """Return a value in one line of YAML, whatever is in it."""
    style = '"' if isinstance(value, str) and not re.fullmatch(r"[\w./~-][\w./:~ -]*\w", value) else None
    made = yaml.safe_dump(value, default_style=style, default_flow_style=True, allow_unicode=True, width=inf)
    return made.removesuffix("\n").removesuffix("\n...")


def _comment(value: str) -> str:
    """Return a text of others for a comment, which a line break would end."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in value).split())


def _head(proposal: Proposal, out: Path) -> Iterable[str]:
    schema = EXAMPLES / "schema.json"
    if schema.is_file() and _comment(str(schema)) == str(schema):
        yield f"# yaml-language-server: $schema={schema}"
    file = _comment(shlex.quote(str(out)))
    yield "# Written by `kdseg init` from what the files say; change what you like. Relative paths are those of"
    yield "# the folder in which kdseg is called. Next:"
    yield f"#   kdseg check {file}    # would it run? In seconds"
    yield f"#   kdseg run {file}      # to the report; goes on where it was stopped"
    yield "# All options: docs/data.md, and the schema, with which editors complete and check."
    yield f"title: {scalar(proposal.name)}"
    # of another file of the same data, another folder
    name = proposal.name if out.name == DEFAULT.name else folder_name(out.stem)
    yield f"results: {scalar(f'results/{name}')} # folder of all that is written"
    yield 'device: auto # a GPU if there is one; "cuda" on a GPU cluster, where "auto" asks SLURM for none'
    why = "small volumes: jobs run side by side" if proposal.workers == 1 else "the cores of this machine"
    yield f"workers: {proposal.workers} # processes per job; {why}"
    yield ""


def _volumes(proposal: Proposal) -> Iterable[str]:
    data, trained = proposal.data, proposal.trained
    shape = _by(data.raw.data.shape)
    if trained is None:
        yield f"volumes: # {shape} voxels without ground truth"
        yield f"  {_RAW}:"
        yield from (f"    {line}" for line in _source(proposal))
        whole = data.raw.roi
        if whole.size > 4 * _TRY:
            part = whole.central(_within(proposal, _TRY))
            yield f"    # roi: {_roi(part)} # a part, to begin with: remove the first # of this line"
        return
    axis, parts = AXES[trained.parts.axis], trained.parts
    labelled = "" if data.region == data.raw.roi else f"; labels: {data.region}"
    yield f"volumes: # {shape} voxels{labelled}. Cut along {axis}: no voxel is in two parts"
    yield "  train: &volume # half of it, to learn from; more labels help more than anything else"
    yield from (f"    {line}" for line in _source(proposal))
    yield f"    roi: {_roi(parts.train)}"
    luck = "; so thin that the best one is partly luck: docs/segmentation.md" if proposal.thin else ""
    yield f"  tune: # a quarter: checkpoints and thresholds are chosen on it{luck}"
    yield "    <<: *volume"
    yield f"    roi: {_roi(parts.tune)}"
    yield "  test: # a quarter that nothing else looks at, for the scores"
    yield "    <<: *volume"
    yield f"    roi: {_roi(parts.test)}"
    place = "" if data.options.offset.labels is None else ", offset: {}"
    yield f"  # whole: {{<<: *volume, labels: null, roi: null{place}}} # to segment all: add it to evaluate.volumes"


def _source(proposal: Proposal) -> Iterable[str]:
    data, options = proposal.data, proposal.data.options
    raw, labels = hidden(options.raw), hidden(options.labels)
    if (raw, labels) != (options.raw, options.labels):
        yield "# ${NAME}: set an environment variable of that name to the part of your address that stands there"
    yield f"raw: {scalar(raw)} # {data.raw.data.dtype}"
    if labels is not None:
        yield f"labels: {scalar(labels)}"
        why = data.membrane or "never counts; `boundary` if it is membrane between neurons, `object` if outer space"
        yield f"background: {data.background} # label 0: {_comment(why)}"
    said = f"{scalar(list(map(_short, data.voxel_size)))}"
    if options.voxel_size is None:
        yield f"# voxel_size: {said} # nm, z y x, as the file says"
    else:
        yield f"voxel_size: {said} # nm, z y x, by --voxel-size: the file does not say"
    if places := options.offset.model_dump(exclude_none=True):
        kept = {name: list(map(_short, place)) for name, place in places.items()}
        yield f"offset: {scalar(kept)} # nm, of first voxels, by --labels-offset: files do not say"
    if options.sections is not None:
        yield f"sections: {scalar(options.sections.model_dump(exclude_unset=True))}"
    yield from _intensity(proposal)


def _intensity(proposal: Proposal) -> Iterable[str]:
    grey, chosen = proposal.data.grey, proposal.intensity
    there = f"a sample of {grey.voxels:,} voxels has {grey.low:.4g} to {grey.high:.4g}, mean {grey.mean:.4g}"
    if chosen is None:
        least = f"looked at were only voxels of {grey.low:g}" if grey.flat else there
        limits = np.iinfo(proposal.data.raw.data.dtype)
        yield f"# intensity: [{limits.min}, {limits.max}] # become 0 and 255, by default these of the type; {least}"
        return
    values = scalar(list(map(_short, chosen)))
    if proposal.data.options.intensity is not None:
        why = "as --intensity says"
    elif proposal.shipped is not None:
        why = f"the contrast that {proposal.shipped} knows; {there}"
    else:
        why = f"{TAILS[0]:g} and {TAILS[1]:g} % of the voxels; {there}"
    yield f"intensity: {values} # become 0 and 255: {why}"


def _models(proposal: Proposal, trained: Trained, pace: Pace) -> Iterable[str]:
    shape, parts = trained.shape, trained.parts
    if shape.offsets != FAR:
        yield f"offsets: {_steps(shape.offsets)} # affinities; shorter along z, whose sections are coarse or few"
        yield ""
    if proposal.shipped is not None:
        yield f"pretrained: # as it is, to compare with; `kdseg models {proposal.shipped}` says on what it was trained"
        yield f"  {proposal.shipped}: {proposal.shipped}"
        yield ""
    yield "models:"
    yield f"  {NETWORK}:"
    why = "" if shape.even else "coarse axes are pooled later. "
    yield f"    network: {_network(WIDTHS, trained)} # {why}Wider, [16, 32, 64]: slower, for more labels than these"
    yield "    train: &recipe"
    yield "      volumes: [train]"
    yield "      validate_on: tune"
    validated = triple(map(min, _within(proposal, _VALIDATED), parts.tune.shape))
    yield f"      validate_shape: {list(validated)} # the middle of tune"
    yield f"      validate_every: {pace.steps // VALIDATIONS}"
    if proposal.shipped is not None:
        yield f"      start_from: {proposal.shipped} # it knows such voxels; without this line, some 5,000 steps"
    yield f"      steps: {pace.steps} # {_comment(pace.said)}"
    yield f"      crop: {list(shape.crop)} # at most the extent of train, a multiple of the pooling"
    yield f"      batch: {8 if trained.gpu else 2}"
    if trained.gpu:
        yield "      loader_workers: 2 # processes that prepare crops, so that the GPU need not wait"
    rate, when = (
        ("5.0e-3", "less if the loss jumps") if proposal.shipped is None else ("1.0e-3", "of a trained network")
    )
    yield f"      learning_rate: {rate} # {when}"
    yield "      warmup: 50"
    yield f"      augment: {{rotate: {shape.rotate}}} # quarter turns that leave voxels as they are"
    yield from (f"  # {line}" for line in _student(proposal, trained))


def _student(proposal: Proposal, trained: Trained) -> Iterable[str]:
    """Yield a student, as lines that are a comment until somebody wants it."""
    yield f"To distil it into a lighter network, remove the # of the lines below, and add {LIGHTER} to evaluate.models:"
    yield f"{LIGHTER}:"
    yield f"  network: {_network(LIGHT, trained)} # a quarter of the multiplications"
    yield "  train:"
    yield "    <<: *recipe"
    if proposal.shipped is not None:
        yield "    start_from: null"
    yield f"    teacher: {NETWORK}"
    yield "    teaching: {outputs: stored} # it predicts each volume once, not each crop of each step"
    yield "    terms: [{name: affinity}, {name: soft_affinity}] # more: docs/distillation.md"


def _network(widths: Sequence[int], trained: Trained) -> str:
    shape = trained.shape
    levels = "" if shape.even else f", downsample: {_steps(shape.downsample)}, kernels: {_steps(shape.kernels)}"
    return f"{{kind: unet, widths: {list(widths)}{levels}}}"


def _layout(proposal: Proposal) -> Iterable[str]:
    blocks = proposal.blocks
    yield "# Blocks suit these volumes; of much larger ones, multiples are faster. `kdseg tune` finds the fastest tile."
    yield f"storage: {{chunk: {list(blocks.chunk)}, shard: {list(blocks.shard)}}}"
    if proposal.fused:
        size = count_text(proposal.data.raw.roi.size * len(FAR))
        yield f"predict: {{fused: true, tile: [32, 32, 32]}} # affinities, {size}B, do not fit: docs/fused.md"
        yield "fragments: {block: [256, 256, 256], halo: [32, 32, 32]}"
    else:
        yield f"predict: {{block: {list(blocks.predict)}, tile: {list(blocks.tile)}}}"
        flat = ", watershed: {method: watershed, per_section: true, seed_distance: 8}" if blocks.flat else ""
        why = " # flat: neurons cross such sections steeply" if blocks.flat else ""
        yield f"fragments: {{block: {list(blocks.fragments)}, halo: {list(blocks.halo)}{flat}}}{why}"
    yield f"edges: {{block: {list(blocks.shard)}}}"
    yield f"segment: {{block: {list(blocks.shard)}}} # `threshold`: a lower one than is chosen makes fewer false merges"


def _evaluate(proposal: Proposal) -> Iterable[str]:
    models = [NETWORK] if proposal.shipped is None else [proposal.shipped, NETWORK]
    yield "evaluate:"
    yield f"  models: [{', '.join(models)}]"
    yield "  volumes: [test]"
    yield "  tune_on: tune"
    yield f"  dust: {_DUST} # labels of fewer voxels are not scored"
    yield f"  block: {list(proposal.blocks.shard)}"


def _within(proposal: Proposal, voxels: int) -> Triple:
    """Return the extent of a cube of so many voxels."""
    return triple(max(round(n), 1) for n in even_box(proposal.data.voxel_size, voxels))


def _roi(roi: Roi) -> str:
    return f"{{offset: {list(roi.offset)}, shape: {list(roi.shape)}}}"


def _steps(steps: Sequence[Triple]) -> str:
    return f"[{', '.join(str(list(step)) for step in steps)}]"


def _by(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _short(value: float) -> float | int:
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)
