"""The workflow as a module of another one."""

import json
import subprocess
import sys

import pytest
from workflow import ROOT

OUTER = """
module kdseg:
    snakefile: {snakefile!r}
    config: config["kdseg"]

use rule * from kdseg as kdseg_*

rule mine:
    default_target: True
    input: "results/test/report.html", "results/test/compare.html"
    output: "mine.txt"
    shell: "wc -c {{input}} > {{output}}"
"""


@pytest.mark.slow
def test_another_workflow_takes_it_as_a_module(tmp_path, values):
    values["compare"]["learning_rates"] = [0.001, 0.01]  # with a checkpoint
    (tmp_path / "Snakefile").write_text(OUTER.format(snakefile=str(ROOT / "Snakefile")))
    (tmp_path / "config.json").write_text(json.dumps({"kdseg": values}))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--configfile", "config.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    counts = dict(line.split() for line in done.stdout.splitlines() if len(line.split()) == 2)
    assert counts["mine"] == counts["kdseg_report"] == counts["kdseg_compare"] == "1"
    assert counts["kdseg_choose"] == "3"
    assert "not present" not in done.stdout + done.stderr  # local rules, by names that they have no more
