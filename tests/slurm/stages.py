"""All stages from affinities on, whose clusters wait until they are complete; beside the results lie the statuses.

    stages.py FOLDER AFFINITIES CLUSTER

There is a file `here` in FOLDER when the first cluster is complete; it begins when a file `go` is beside AFFINITIES.
"""

import json
import shutil
import sys
import time
from pathlib import Path

from distributed import Client
from pipeline import results_of_stages

from kdseg.running import runner
from kdseg.running.telemetry import Telemetry

BLOCK = (32, 32, 32)


class Kept(Telemetry):
    """One that leaves a copy of its status: a stage of several parts overwrites it."""

    def __init__(self, path, stage, **counts):
        super().__init__(path, stage, **counts)
        self.path = path

    def __exit__(self, *error):
        super().__exit__(*error)
        shutil.copyfile(self.path, self.path.parent / f"{self.stage}.kept.json")


def main(folder, affinities, cluster):
    wait_for_some, here, go = Client.wait_for_workers, folder / "here", affinities.with_name("go")

    def wait_for_all(client, _, timeout):  # a fast one could have done all blocks before the others come
        wait_for_some(client, len(client.cluster.worker_spec), timeout)
        here.touch()
        while not go.exists():
            time.sleep(0.1)

    runner.Telemetry, Client.wait_for_workers = Kept, wait_for_all
    results_of_stages(folder, affinities, BLOCK, cluster)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
