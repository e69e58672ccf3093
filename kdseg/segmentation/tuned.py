"""Options that a search chose, in the place of those of the configuration."""

from __future__ import annotations

from typing import TypeVar

from kdseg.config.tasks import AgglomerateTask, EdgesTask, FragmentsTask, SegmentTask
from kdseg.results.manifests import expect_stage, read

T = TypeVar("T", FragmentsTask, EdgesTask, AgglomerateTask, SegmentTask)


def with_tuned_options(task: T, section: str) -> T:
    """Return a task with the options of a section that its search chose; as it is, if it names none.

    Raises:
        DataError: if what it names is no search.
    """
    if task.tuned is None:
        return task
    expect_stage(task.tuned, "tune-segmentation")
    chosen = read(task.tuned).stat("chosen")["options"].get(section, {})
    options = type(task.options).model_validate({**task.options.model_dump(), **chosen})
    return task.model_copy(update={"options": options})
