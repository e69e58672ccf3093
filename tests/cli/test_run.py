"""`kdseg run`: what it prints of a run, its exit code, and Ctrl-C."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command import interruptible
from workflow import ROOT

from kdseg.cli.progress import Progress, in_a_line
from kdseg.config.workflow import FOLDER, profile
from kdseg.results.sealed import write_sealed

RAW = "results/test/volumes/tune/raw.json"


def started(*arguments, cwd):
    command = [sys.executable, "-m", "kdseg", "run", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, process_group=0,
        preexec_fn=interruptible, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def run(*arguments, cwd):
    process = started(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, told(err)


def told(err):
    """Return the lines of the standard error, but those that break a silence, of which there are more if it is slow."""
    return [line for line in err.splitlines() if not line.startswith("at work  ")]


@pytest.fixture
def damaged(tmp_path, values):
    """A configuration whose raw data are in a file that is no HDF5."""
    (tmp_path / "junk.h5").write_text("junk")
    values["volumes"]["tune"] = {"raw": "junk.h5:/raw", "labels": "junk.h5:/labels", "voxel_size": [8, 8, 8]}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def record(event, level=logging.INFO, text="", **fields):
    made = logging.LogRecord("snakemake.logging", level, "", 0, text, None, None)
    made.__dict__.update(event=event, created=100.0, **fields)
    return made


def test_the_error_of_a_stage_is_one_line_with_the_place_of_its_log(damaged):
    code, out, lines = run(damaged, RAW, cwd=damaged.parent)
    assert code == 1
    assert out == ""
    log = "results/test/volumes/tune/logs/raw.log"
    assert lines[0] == f"started  convert {RAW}"
    assert re.fullmatch(rf"failed   convert {RAW}: cannot open junk\.h5 as HDF5: .* \(log: {log}\)", lines[1])
    kept = r"kdseg run: what is done is kept: mend what failed, and run it again; all that Snakemake said: (.*)"
    (place,) = re.fullmatch(kept, lines[2]).groups()
    assert len(lines) == 3
    assert "Error in rule convert:" in (damaged.parent / place).read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["none.html"], 1, "kdseg run: No rule to produce none.html"),
        (["--", "--bogus"], 2, "kdseg run: unrecognized arguments: --bogus"),
        (["--", "--configfile", "other.yaml"], 2, "kdseg run: --configfile: one configuration is given before `--`"),
        (["--profile", "absent"], 2, "kdseg run: Error: profile directory given (absent)"),
    ],
)
def test_what_snakemake_refuses_is_a_line(damaged, words, code, line):
    found, _, lines = run(damaged, *words, cwd=damaged.parent)
    assert found == code
    assert lines[0].startswith(line)
    assert len(lines) <= 2


@pytest.mark.slow
def test_a_profile_comes_with_the_workflow(damaged):
    code, out, lines = run(damaged, RAW, "--profile", "slurm", "--", "--dry-run", cwd=damaged.parent)
    assert code == 0, lines
    assert out == f"would run convert {RAW}: Missing output files: {RAW}\n1 jobs would run\n"


def test_a_profile_of_ones_own_has_a_path(tmp_path, monkeypatch):
    """Even if its folder has the name of one of ours."""
    monkeypatch.chdir(tmp_path)
    assert Path(profile("slurm")).is_relative_to(FOLDER)
    assert [profile(name) for name in ("./slurm", str(tmp_path / "slurm"), "mine")] == [
        "./slurm",
        str(tmp_path / "slurm"),
        "mine",
    ]


@pytest.mark.slow
def test_ctrl_c_is_one_line(tmp_path, values):
    values["volumes"]["train"] = {"phantom": {"shape": [512, 1024, 1024]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    raw = "results/test/volumes/train/raw.json"
    process = started("config.yaml", raw, "--cores", "1", cwd=tmp_path)
    while (line := process.stderr.readline()).startswith("at work  "):
        pass
    assert line == f"started  convert {raw}\n"
    log = tmp_path / "results" / "test" / "volumes" / "train" / "logs" / "raw.log"
    while not (log.is_file() and "blocks to do" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=200)
    assert told(err) == ["kdseg run: interrupted; what is done is kept, run it again to go on"]
    assert process.returncode == 130


def test_jobs_are_counted_and_those_without_output_are_not_named(capsys):
    progress = Progress()
    progress.record(record("run_info", stats={"edges": 1, "all": 1, "total": 2}), dry=False)
    progress.record(record("job_info", jobid=3, rule_name="edges", output=["a/edges.json"]), dry=False)
    progress.record(record("job_finished", job_id=3), dry=False)
    progress.record(record("progress", done=1, total=2), dry=False)
    progress.record(record("job_info", jobid=0, rule_name="all", output=[]), dry=False)
    progress.record(record("job_finished", job_id=0), dry=False)
    progress.record(record("progress", done=2, total=2), dry=False)
    assert capsys.readouterr().err == "started  edges a/edges.json\nfinished edges a/edges.json, 0.0 s (1 of 2)\n"
    assert (progress.done, progress.total) == (2, 2)


def test_idle_runs_are_known_and_errors_of_groups_told_by_their_jobs(tmp_path, capsys):
    progress = Progress()
    progress.record(record("group_error", logging.ERROR, "Error in group x:"), dry=False)
    progress.record(record("info", logging.INFO, "Building DAG of jobs..."), dry=False)
    progress.end()
    assert (capsys.readouterr().err, progress.idle) == ("", False)
    progress.record(record("info", logging.INFO, "Nothing to be done (all is there)."), dry=False)
    assert progress.idle


def test_a_failed_command_is_told_once_and_other_errors_of_rules_are_not_lost(tmp_path, capsys):
    log = tmp_path / "x.log"
    log.write_text("2026-01-01 INFO begun\nkdseg predict: no room on s3://user:secret@host/x\nsome other line\n")
    text = "RuleException:\nCalledProcessError in file x, line 1:\nCommand 'python …' returned 1."
    progress = Progress()
    progress.record(record("error", logging.ERROR, text, exception="RuleException"), dry=False)
    progress.record(record("job_error", logging.ERROR, rule_name="predict", output=["a"], log=[str(log)]), dry=False)
    progress.record(record("error", logging.ERROR, text, exception="RuleException"), dry=False)
    progress.end()
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"failed   predict a: no room on s3://***@host/x (log: {log})"
    assert second.startswith("kdseg run: CalledProcessError in file x")


def test_an_error_of_several_lines_is_put_in_one():
    text = 'MissingInputException in rule convert in file "a", line 4:\nMissing input files:\n    output: a\n    b.h5'
    assert in_a_line(text) == "Missing input files: output: a; b.h5"
    assert in_a_line('Traceback (most recent call last):\n  File "x"\nKeyError: 3') == "KeyError: 3"


def test_a_silence_is_broken_by_how_far_jobs_are(tmp_path, capsys):
    progress = Progress()
    progress.at_work()
    for number, name in enumerate(("train", "edges", "score", "sweep", "report")):
        job = {"jobid": number, "rule_name": name, "output": [str(tmp_path / f"{name}.json")]}
        progress.record(record("job_info", **job), dry=False)
    steps = {"steps": {"done": 3, "total": 9}, "loss": 0.5, "best": {}, "steps_per_s_now": 2.0, "eta_s": 3}
    write_sealed(tmp_path / "train.status.json", steps)
    write_sealed(tmp_path / "edges.status.json", steps)
    os.utime(tmp_path / "edges.status.json", (99, 99))  # of an earlier job: this one began at 100
    progress.record(record("job_error", jobid=4, log=[], rule_name="report", output=["x"]), dry=False)
    capsys.readouterr()
    assert progress.at_work() == ""
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"at work  train {tmp_path}/train.json: step 3 of 9, loss 0.5, 2 steps/s, 3 s left"
    assert re.fullmatch(r"at work  edges \S+/edges\.json: [\d.]+ h", lines[1])
    assert lines[3:] == ["at work  1 more jobs"]
    progress.interrupted = True  # they are being ended
    assert progress.at_work() == ""
    assert capsys.readouterr().err == ""
