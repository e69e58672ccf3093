"""A network and its training → the learning rate to train it at."""

from __future__ import annotations

import csv
import io
import logging
from math import isfinite

from kdseg.config.tasks import RateTask
from kdseg.networks.models import resolve_device
from kdseg.report.figures import standalone
from kdseg.report.range_chart import range_chart
from kdseg.results.claims import claim
from kdseg.results.files import write_text
from kdseg.training.inputs import data, expect_named, fingerprints, learned_from
from kdseg.training.range_test import Advice, advice, losses, rising, smooth

log = logging.getLogger(__name__)


def run(task: RateTask) -> None:
    """Train for some steps at rising rates, and say which one lets the loss fall the fastest.

    Beside the manifest come the losses as a table, ``.csv``, and a chart, ``.svg``; ``stats`` hold the
    `kdseg.training.range_test.Advice`.
    """
    import torch

    options = task.options
    expect_named(task, options.train.teachers)
    inputs, where = fingerprints(task, options.train.teachers), resolve_device(task.device)
    made_of = {**learned_from(task, where), "rates": [task.low, task.high, task.steps]}
    with claim(task.manifest, "rate", made_of, inputs, overwrite=task.overwrite) as held:
        torch.set_num_threads(task.workers)
        rates = rising(task.low, task.high, task.steps)
        found = losses(options, task.offsets, data(task), rates, task.device)
        finite = [loss for loss in found if isfinite(loss)]
        smoothed = smooth(finite, len(rates)).tolist()
        tried = rates[: len(finite)]
        write_text(task.manifest.with_suffix(".csv"), _table(tried, finite, smoothed))  # also where nothing is advised
        told = advice(rates, found)
        write_text(task.manifest.with_suffix(".svg"), standalone([range_chart(tried, finite, smoothed, told.steepest)]))
        held.stats.update(model=task.name, **told._asdict())
    log.info("%s", sentence(told))


def sentence(told: Advice) -> str:
    """Return the advice in words."""
    ended = "it did not diverge" if told.diverged is None else f"it diverged at {told.diverged:.2g}"
    fastest = f"learning_rate: {told.steepest:.2g} # the loss falls the fastest there"
    return f"{fastest}; it is least at {told.least:.2g}, and {ended}"


def _table(rates: list[float], losses: list[float], smoothed: list[float]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("learning_rate", "loss", "smoothed"))
    writer.writerows(zip(rates, losses, smoothed, strict=True))
    return text.getvalue()
