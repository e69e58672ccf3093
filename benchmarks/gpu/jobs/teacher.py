"""The teachers of `config/models/fib25_teacher.yaml`, side by side, for as long as there is time."""

from job import begin
from trainings import TEACHER, Training, configuration, run_trainings


def main() -> None:
    job = begin("teacher", __doc__)
    config = configuration(job, TEACHER)
    run_trainings(job, config, [Training(name, model) for name, model in config.models.items()])


if __name__ == "__main__":
    main()
