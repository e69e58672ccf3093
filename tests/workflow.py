"""The workflow as a command, for tests."""

import os
import subprocess
import sys
from pathlib import Path

from kdseg.volumes.inputs import open_input

ROOT = Path(__file__).parents[1]


def snakemake(folder, config, *arguments, check=True):
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder, "--cores", "2",
        "--configfile", config, "--workflow-profile", ROOT / "profiles" / "default", *arguments,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    logs = "\n".join(path.read_text() for path in folder.rglob("*.log") if ".snakemake" not in path.parts)
    if check:
        assert done.returncode == 0, done.stderr[-3000:] + logs[-3000:]
    return done.stdout + done.stderr + logs


def jobs(folder, config):
    """Return the rules that would run now."""
    text = snakemake(folder, config, "--dry-run")
    return {line.split()[1].rstrip(":") for line in text.splitlines() if line.startswith(("rule ", "localrule "))}


def voxels(folder, path="student/tune/segmentation.json"):
    """Return all voxels of a volume of a run of config/test.yaml."""
    volume = open_input(folder / "results" / "test" / path).volume
    return volume.read(volume.roi)
