"""The commands that only make and run a task: those of the workflow's rules, and a few for other programs."""

from __future__ import annotations

from cyclopts import App, Group

from kdseg.cli.generated import add, runs
from kdseg.config import questions, tasks
from kdseg.config.base import Section

STAGES: dict[str, tuple[type[Section], str]] = {
    "convert": (tasks.ConvertTask, "kdseg.volumes.convert"),
    "train": (tasks.TrainTask, "kdseg.training.stage"),
    "pretrained": (tasks.PretrainedTask, "kdseg.networks.pretrained"),
    "rate": (tasks.RateTask, "kdseg.training.rate"),
    "predict": (tasks.PredictTask, "kdseg.prediction.stage"),
    "fragments": (tasks.FragmentsTask, "kdseg.segmentation.fragments.stage"),
    "edges": (tasks.EdgesTask, "kdseg.segmentation.graph.stage"),
    "agglomerate": (tasks.AgglomerateTask, "kdseg.segmentation.agglomeration.stage"),
    "relabel": (tasks.SegmentTask, "kdseg.segmentation.segments.stage"),
    "sweep": (tasks.SweepTask, "kdseg.evaluation.sweep"),
    "score": (tasks.ScoreTask, "kdseg.evaluation.score"),
    "tune-segmentation": (tasks.TuneSegmentationTask, "kdseg.evaluation.tune_segmentation"),
    "trial": (tasks.TrialTask, "kdseg.training.trial"),
    "choose": (tasks.ChooseTask, "kdseg.training.choose"),
    "report": (tasks.ReportTask, "kdseg.report.stage"),
    "compare": (tasks.CompareTask, "kdseg.report.compare_stage"),
}
"""Stages that the rules of the workflow call, in the order of a run: the task, and the module that runs it."""


def add_stages(app: App, stages: Group, tools: Group, *, whole: bool) -> None:
    """Add the commands."""
    for name, (task, module) in STAGES.items():
        add(app, name, task, runs(module), stages, whole=whole)
    add(app, "adopt", questions.AdoptTask, runs("kdseg.segmentation.adopt"), tools, "address", whole=whole)
    add(app, "patch", questions.PatchTask, runs("kdseg.evaluation.patching.stage"), tools, "old", "new", whole=whole)
    add(app, "graph", questions.GraphTask, runs("kdseg.segmentation.proofreading.graph"), tools, "out", whole=whole)
