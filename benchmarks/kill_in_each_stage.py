"""Kill a run with SIGKILL in each of its stages, finish it, and compare with an uninterrupted run.

    python benchmarks/kill_in_each_stage.py CONFIG.yaml UNINTERRUPTED_RESULTS

CONFIG's `results:` must be another, empty folder. Each stage is killed, with its whole process group, a moment
after it claimed its result; training after its first checkpoint. Prints one line per kill, then whether every
segmentation is the same to the byte; the exit code tells too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kdseg.config import load
from kdseg.volumes.inputs import open_input


def main(path: Path, reference: Path) -> int:
    config = load(path)
    results = Path(config.results)
    claims = [f"volumes/{next(iter(config.volumes))}/.raw", *(f"{model}/.model" for model in config.models)]
    model, volume = config.evaluate.models[-1], config.evaluate.volumes[-1]
    stages = ("affinities", "fragments", "edges", "agglomeration", "segmentation", "scores")
    claims += [f"{model}/{volume}/.{stage}" for stage in stages]
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", str(path)]
    for claim in claims:
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        sign = results / claim / "claim.json"
        if claim.endswith("/.model"):
            sign = results / claim.removesuffix("/.model") / "model.training" / "state.pt"
        while not sign.exists() and run.poll() is None:
            time.sleep(0.02)
        time.sleep(0.3)
        alive = run.poll() is None
        if alive:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        print(f"{'killed in' if alive else 'was done before a kill in'} {claim}", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    same = True
    for model in config.evaluate.models:
        for volume in config.evaluate.volumes:
            one, other = (
                open_input(root / model / volume / "segmentation.json").volume for root in (results, reference)
            )
            equal = np.array_equal(one.read(one.roi), other.read(other.roi))
            print(f"{model}/{volume}: segmentation {'identical' if equal else 'DIFFERS'}")
            same &= equal
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
