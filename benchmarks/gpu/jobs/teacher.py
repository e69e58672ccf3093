"""The teacher of `config/models/fib25_teacher.yaml`, for as long as there is time."""

from job import begin
from trainings import TEACHER, Training, configuration, run_trainings


def main() -> None:
    job = begin("teacher", __doc__)
    config = configuration(job, TEACHER)
    run_trainings(job, config, [Training("teacher", config.models["teacher"])])


if __name__ == "__main__":
    main()
