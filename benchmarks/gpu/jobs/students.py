"""Students of `config/models/fib25_students.yaml`, alone and distilled, five seeds each, side by side on one card."""

import sys
from collections.abc import Sequence

from job import begin
from trainings import STUDENTS, TEACHER, Training, configuration, run_trainings
from weights import names

from kdseg.config import Config

SEEDS = (0, 1, 2, 3, 4)


def trainings(config: Config, seeds: Sequence[int]) -> list[Training]:
    """Return what to train; seeds alternate between alone and distilled."""
    found = []
    for seed in seeds:
        for name in ("student_alone", "student"):
            model = config.models[name]
            seeded = model.model_copy(update={"train": model.train.model_copy(update={"seed": seed})})
            found.append(Training(f"{name}.seed{seed}", seeded, "teacher" if model.train.teachers else None))
    return found


def main() -> None:
    job = begin("students", __doc__)
    if "teacher" not in names(job.rows.path.parent):
        sys.exit("no teacher to learn from: run the job `teacher` first, or put its files into the folder of results")
    config = configuration(job, TEACHER, STUDENTS)
    run_trainings(job, config, trainings(config, SEEDS[:1] if job.rehearse else SEEDS))


if __name__ == "__main__":
    main()
