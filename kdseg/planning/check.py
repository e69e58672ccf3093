"""A check of a configuration against the files that it names: headers are opened, hardly a voxel is read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kdseg.config import Config
from kdseg.config.overlap import leaks
from kdseg.errors import ConfigError, KdsegError
from kdseg.geometry import Triple
from kdseg.planning.extents import Headers
from kdseg.planning.findings import Finding, refusal
from kdseg.planning.fits import fits
from kdseg.planning.named_files import Networks, others
from kdseg.planning.room import devices, disk, folders
from kdseg.results.remote import is_remote
from kdseg.running.earlier import expect_earlier
from kdseg.volumes.bounded import decoded_bytes, sampled
from kdseg.volumes.foreign import Source
from kdseg.volumes.plan import Plan
from kdseg.volumes.resemblance import like_grey, like_ids
from kdseg.volumes.values import RESERVED

_SAMPLES: tuple[Triple, ...] = ((1, 128, 128), (1, 512, 512), (16, 512, 512))
"""Voxels in the middle of labels that are looked at, the larger ones where the smaller ones have one id: neurons are
large, and not every section may be labelled."""
_MOST_BYTES = 2**26
"""Of chunks or strips that are decoded for a sample, about; labels with larger ones are not looked at."""


def check(config: Config) -> list[Finding]:
    """Return all findings, errors first."""
    headers, networks = Headers(config), Networks(config)
    found = [refusal(option, error) for option, error in headers.refused.items()]
    try:
        expect_earlier(config)
    except ConfigError as error:
        found.append(Finding("reuse", str(error).removeprefix("reuse: ")))
    found += networks.findings
    found += others(config, headers.extents)
    found += fits(config, headers.extents, networks.voxel_sizes, networks.starts)
    if not found:  # else the jobs, whose bytes are counted, are not all known
        found += disk(config, headers.extents)
    found += _warm_ups(config)
    found += devices(config)
    found += folders(config)
    for option, (source, plan) in headers.used.items():
        if is_remote(source.address):  # a bucket is not asked again
            continue
        if option.endswith(".labels"):
            found += _one_id(option, source, plan)
        found += _swapped(option, source, plan)
    found += _leaks(config, headers)
    return sorted(dict.fromkeys(found), key=lambda one: not one.error)


def _warm_ups(config: Config) -> Iterator[Finding]:
    """Yield warnings of trainings that end before their learning rate has reached its peak."""
    for name, model in config.models.items():
        steps, warmup = model.train.steps, model.train.warmup
        if steps is not None and warmup >= steps:
            text = f"{warmup} of {steps} steps are warm-up: lower it, e.g. to {steps // 10}, or train for more steps"
            yield Finding(f"models.{name}.train.warmup", text, False)


def _swapped(option: str, source: Source, plan: Plan) -> Iterator[Finding]:
    """Yield a warning if raw data look like labels, or labels like raw data."""
    if plan.kind == "raw":
        looks = like_ids
    elif option.endswith(".labels"):
        looks = like_grey
    else:
        return
    try:
        warning = looks(sampled(source, plan.roi), source.address)
    except (KdsegError, OSError) as error:
        yield refusal(option, error)
        return
    if warning:
        yield Finding(option, warning, False)


def _one_id(option: str, source: Source, plan: Plan) -> Iterator[Finding]:
    """Yield a warning if the labels in the middle are all one id."""
    for shape in _SAMPLES:
        roi = plan.roi.central(shape)
        if decoded_bytes(source, roi) > _MOST_BYTES:
            return
        try:
            values = source.read(roi)
        except (KdsegError, OSError) as error:
            yield refusal(option, error)
            return
        ids = np.unique(values)
        if len(ids) > 1:
            return
    unlabelled = ids[0] == 0 or (values.dtype == np.uint64 and ids[0] >= RESERVED)
    name = "0, unlabelled: take a part that has labels (`roi`), or" if unlabelled else f"{ids[0]}:"
    text = f"the middle of {source.address}, {roi.shape} voxels, is all one id, {name} name the dataset of the neurons"
    yield Finding(option, text, False)


def _leaks(config: Config, headers: Headers) -> Iterator[Finding]:
    covers = {name: one.cover for name, one in headers.extents.items()}
    for leak in (*leaks(config, covers), *(leaks(config, covers, compare=True) if config.compare else ())):
        first, second = leak.options
        yield Finding(second, f"{leak.text}; change it, {first} or the `roi` of a volume", False)
