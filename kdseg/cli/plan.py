"""Plan of a run: its time, storage, memory and cost before it starts, beside what finished jobs took."""

from __future__ import annotations

import json
import os
from pathlib import Path

from kdseg.config import load
from kdseg.config.questions import PlanTask
from kdseg.errors import ConfigError
from kdseg.planning.estimate import Prices
from kdseg.planning.extents import read_extents, resized
from kdseg.planning.jobs import jobs
from kdseg.planning.plan import Plan, make_plan, table
from kdseg.planning.timings import Timings, read_timings, write_timings
from kdseg.running.earlier import expect_earlier


def plan(task: PlanTask, *, as_json: bool) -> None:
    """Time a few blocks, unless that was done before, and print what the whole run takes."""
    config = load(task.config)
    expect_earlier(config)
    cores = task.workers or len(os.sched_getaffinity(0))
    if task.workers is not None:
        config = config.model_copy(update={"workers": task.workers})
    extents = read_extents(config)
    planned = extents
    if task.shape is not None:  # before anything is timed: the name of the volume may be wrong
        planned = resized(extents, task.volume or config.evaluate.volumes[0], task.shape)
    elif task.volume is not None:
        raise ConfigError(f"--volume {task.volume} is the one that gets another --shape: give that, too")
    gpus = config.gpus if _on_gpu(config.device) else 0
    if task.timings is None:
        from kdseg.planning.measure import measure

        timings = measure(config, extents, jobs(config, extents, gpus), cores)
    else:
        timings = read_timings(task.timings, config)
    if task.save is not None:
        write_timings(task.save, timings)
    prices = Prices(task.cpu_price, task.gpu_price, task.storage_price)
    results = None if task.shape is not None else Path(config.results)
    found = make_plan(jobs(config, planned, gpus), timings, results, cores, prices)
    if as_json:
        print(json.dumps({**found.as_json(), "timed": timings.model_dump(mode="json")}, indent=2))
    else:
        print(table(found))
        for line in _notes(timings, found):
            print(f"# {line}")


def _on_gpu(device: str) -> bool:
    from kdseg.networks.models import resolve_device

    return device.startswith("cuda") or (device == "auto" and resolve_device("auto").type == "cuda")


def _notes(timings: Timings, found: Plan) -> list[str]:
    sample = " x ".join(map(str, timings.sample))
    reasons = dict[str, list[str]]()
    for name, why in timings.missing.items():
        reasons.setdefault(why, []).append(name)
    elsewhere = dict.fromkeys(one.job.stage for one in found.estimates if one.job.workers is None)
    flat = [name for name, one in timings.timings.items() if one.most is not None]
    return [
        f"timed on {timings.machine}, with samples of up to {sample} voxels",
        *(f"not measured: {', '.join(names)}: {why}" for why, names in reasons.items()),
        *(
            [f"wall time of a Dask scheduler's workers, whose number is not known: {', '.join(elsewhere)}"]
            if elsewhere
            else []
        ),
        *([f"known of small volumes alone, since both samples took equally long: {', '.join(flat)}"] if flat else []),
    ]
