"""Threads, time, memory and partitions that rules ask for; what is pure in it is in kdseg/running/resources.py.

None of it changes what a job calculates, or makes one run again.
"""

import os

from kdseg.running import resources as estimates


def partition(gpu):
    """Return SLURM's partition of jobs with or without a GPU, if the configuration names it."""
    return RUN.partitions.gpu or RUN.partitions.cpu if gpu else RUN.partitions.cpu


@cache
def slurm_limits(name):
    """Return what a job may have in a partition, as SLURM says, which is asked once."""
    if name is None and "slurm_partition" in (
        workflow.resource_settings.default_resources or {}
    ):
        return estimates.Limits()  # the profile names one, by an expression perhaps
    return estimates.limits(name, estimates.ask_slurm())


def on_slurm():
    """Return whether jobs are submitted to SLURM; it is known when they are planned, not while rules are read."""
    plugin = workflow.executor_plugin
    return plugin is not None and plugin.name == "slurm"


def cores(wanted, gpu=False):
    """Return the threads of a rule, at most those of a node, and in a job of SLURM those that it has."""

    def threads(wildcards):
        if on_slurm():
            return estimates.capped(wanted, 1, slurm_limits(partition(gpu)).cores)
        return min(wanted, int(os.environ.get("SLURM_CPUS_PER_TASK", wanted)))

    return threads


def asks(minutes, mem_mb, gpu=0, sharing=1):
    """Return the resources of a rule: each attempt asks for more, and none for more than there is.

    Args:
        minutes: a number, or a function of wildcards.
        mem_mb: likewise.
        gpu: how many.
        sharing: rules that the profile may group into one job, whose times add up.
    """

    def resource(wanted, limit):
        def value(wildcards, attempt):
            most = limit(slurm_limits(partition(gpu))) if on_slurm() else None
            first = wanted(wildcards) if callable(wanted) else wanted
            return estimates.capped(first, attempt, most)

        return value

    name = {"slurm_partition": partition(gpu)} if partition(gpu) else {}
    return {
        "gpu": gpu,
        "runtime": resource(
            minutes, lambda most: most.minutes and most.minutes // sharing
        ),
        "mem_mb": resource(mem_mb, lambda most: most.mem_mb),
        **name,
    }


def train_minutes(wildcards):
    """Return how long a training may take."""
    return estimates.training_minutes(RUN.all_models[wildcards.model].train)


def train_mb(wildcards):
    """Return the memory of a training."""
    return estimates.training_mb(RUN.all_models[wildcards.model].train)


HOUR, DAY = 60, estimates.DAY
PREDICT_MB = estimates.stage_mb(RUN, "predict", PREDICT_CORES)
FRAGMENTS_GPUS, FRAGMENTS_CORES = (
    (PREDICT_GPUS, PREDICT_CORES) if RUN.predict.fused else (0, CPU_CORES)
)
FRAGMENTS_MB = estimates.stage_mb(RUN, "fragments", FRAGMENTS_CORES)
EDGES_MB, AGGLOMERATE_MB, RELABEL_MB = (
    estimates.stage_mb(RUN, stage, CPU_CORES)
    for stage in ("edges", "agglomerate", "relabel")
)
