"""The GPU programme's own machinery: rows, limits, weights that travel, tables. Its jobs: `make rehearse`."""

from __future__ import annotations

import sys
from pathlib import Path

import collect
import job
import pytest
import run
import torch
import weights

from kdseg.config.networks import HeadOptions, UNetOptions
from kdseg.errors import UnreadableError
from kdseg.networks.checkpoint import LoadedModel, load_model
from kdseg.networks.models import build

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


def network(seed: int = 0) -> LoadedModel:
    torch.manual_seed(seed)
    options = UNetOptions(widths=(3, 5), residual=True)
    made = build(options, HeadOptions(), OFFSETS)
    with torch.no_grad():
        for value in made.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn_like(value).half() if value.ndim > 1 else torch.rand_like(value) + 1e-7)
            else:
                value.fill_(3)
    meta = {"name": "x", "step": 7, "scores": {"voi": 1.0}}
    return LoadedModel(made.eval(), options, HeadOptions(), OFFSETS, (10.0, 9.7, 10.0), meta)


def test_rows_survive_a_write_that_was_cut_off(tmp_path: Path) -> None:
    rows = job.Rows(tmp_path, "rates")
    rows.add("a", speed=1.5)
    with (tmp_path / job.RESULTS).open("a") as file:
        file.write('{"job": "rates", "key": "b", "sp')
    again = job.Rows(tmp_path, "rates")
    assert "a" in again
    assert "b" not in again
    again.add("b", speed=2)
    assert [(row["key"], row["speed"]) for row in job.read_rows(tmp_path / job.RESULTS)] == [("a", 1.5), ("b", 2)]
    assert "a" not in job.Rows(tmp_path, "tests")


@pytest.mark.parametrize("largest", [10**9, 700, 1])
def test_weights_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    monkeypatch.setattr(weights, "LARGEST", largest)
    model = network()
    files = weights.write_weights(tmp_path, "net", model)
    assert (len(files) > 1) == (largest < 10**9)
    found = weights.read_weights(tmp_path, "net")
    assert (found.options, found.heads, found.offsets) == (model.options, model.heads, model.offsets)
    assert (found.voxel_size, found.meta) == (model.voxel_size, model.meta)
    assert not found.network.training
    ours, theirs = model.network.state_dict(), found.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert weights.names(tmp_path) == ["net"]


def test_fewer_files_leave_none_of_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGEST", 700)
    weights.write_weights(tmp_path, "net", network())
    weights.write_weights(tmp_path, "net2", network())
    before = set(tmp_path.glob("net2-*"))
    monkeypatch.undo()
    (only,) = weights.write_weights(tmp_path, "net", network(1))
    assert set(tmp_path.iterdir()) == {only, *before}
    assert torch.equal(
        weights.read_weights(tmp_path, "net").network.state_dict()["encoders.0.0.first.0.weight"],
        network(1).network.state_dict()["encoders.0.0.first.0.weight"],
    )


def test_missing_and_damaged_weights_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "LARGEST", 700)
    first, *rest = weights.write_weights(tmp_path, "net", network())
    content = first.read_bytes()
    first.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableError, match="damaged"):
        weights.read_weights(tmp_path, "net")
    first.unlink()
    with pytest.raises(UnreadableError, match=f"has {len(rest)} files"):
        weights.read_weights(tmp_path, "net")


JOB = """
import sys, time
from job import begin
job = begin("guard", None)
job.rows.add("first", value=1)
{rest}
"""


def programme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: str, *arguments: str, limit: float = 60) -> int:
    """Run a programme of one job, whose first row is written at once."""
    (tmp_path / "jobs").mkdir(exist_ok=True)
    (tmp_path / "jobs" / "guard.py").write_text(JOB.format(rest=rest))
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "PROGRAMME", (run.Part("guard", limit, limit),))
    monkeypatch.setattr(run, "GRACE_S", 0.5)
    monkeypatch.setattr(run, "LEAST_S", 0.0)
    monkeypatch.setenv("PYTHONPATH", str(Path(job.__file__).parent))
    monkeypatch.setattr(sys, "argv", ["run.py", str(tmp_path / "out"), *arguments])
    return run.main()


def ended(tmp_path: Path) -> list[tuple[str, str]]:
    rows = job.read_rows(tmp_path / "out" / job.RESULTS)
    return [(row["outcome"], row["said"]) for row in rows if row.get("of") == "guard"]


@pytest.mark.slow
def test_a_job_that_hangs_is_cut_off_and_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert programme(tmp_path, monkeypatch, "time.sleep(600)", "--rehearse", limit=8) == 0
    assert ended(tmp_path) == [("out of time", "")]
    assert "first" in job.Rows(tmp_path / "out", "guard")
    assert programme(tmp_path, monkeypatch, "", "--rehearse") == 0  # it is run again, and ends
    assert programme(tmp_path, monkeypatch, "sys.exit('not again')", "--rehearse") == 0
    assert ended(tmp_path) == [("out of time", ""), ("done", "")]


def test_a_job_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert programme(tmp_path, monkeypatch, "sys.exit('the card is on fire')", "--rehearse") == 1
    assert ended(tmp_path) == [("failed", "the card is on fire")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert programme(tmp_path, monkeypatch, "") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--rehearse" in line
    assert not (tmp_path / "out").exists()


def test_what_was_not_measured_says_so() -> None:
    text = collect.report([])
    assert text.count("| not measured |") >= 8


def test_tables_name_card_versions_and_outcomes(tmp_path: Path) -> None:
    rows = [
        {"job": "run", "key": "machine 1", "at": "2026-01-02T03:04:05Z", "card": "Card X", "driver": "5.1",
         "cudnn": 91002, "torch": "2.9", "python": "3.12", "cores": 16, "commit": "abc", "rehearsal": False},
        {"job": "run", "key": "guard 2", "at": "", "of": "guard", "outcome": "failed", "seconds": 3.2, "said": "no"},
        {"job": "guard", "key": "bf16", "extent": [1, 2, 3], "pieces": 0.5, "exact": 0.1, "wrong": True},
        {"job": "tests", "key": "test_a[x]", "at": "", "outcome": "failed", "seconds": 1, "message": "no"},
        {"job": "tests", "key": "test_a[x]", "at": "", "outcome": "passed", "seconds": 2, "message": None, "most": 0.5},
        {"job": "tests", "key": "test_a[y]", "at": "", "outcome": "passed", "seconds": 3, "message": None, "most": 0.7},
        {"job": "tests", "key": "test_b", "at": "", "outcome": "crashed", "message": "its process ended"},
        {"job": "teacher", "key": "teacher", "parameters": 12795657, "kmac_per_voxel": 489.4, "steps": 4000,
         "seconds": 500.4, "finished": False, "best": {"step": 3500, "scores": {"voi": 0.91, "arand": 0.1}}},
    ]  # fmt: skip
    text = collect.report(rows)
    assert "2026-01-02: Card X, driver 5.1, torch 2.9, cuDNN 91002, Python 3.12, 16 cores, commit abc\n" in text
    assert "| guard | failed | 3 s | no |" in text
    assert "| bf16 | 1 × 2 × 3 | 5.0e-01 | 1.0e-01 | **wrong** |" in text
    assert "| `test_a` | 2 of 2 | 5.0 s | most 0.7 |" in text
    assert "| `test_b` | 0 of 1 | 0.0 s |  |" in text
    assert "- `test_b` crashed: its process ended" in text
    assert text.count("test_a") == 1
    assert "| teacher | 12,795,657 | 489.4 | 4,000 (cut off) | 500 s | 3,500 | 0.910 | 0.100 |" in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{collect.MARKS[0]}\nof long ago\n{collect.MARKS[1]}\nafter\n")
    once = collect.between_marks(page.read_text(), text, page)
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "of long ago" not in once
    assert text in once
    assert collect.between_marks(once, text, page) == once
    with pytest.raises(SystemExit, match="needs the marks"):
        collect.between_marks("no marks", text, page)


def test_models_come_with_their_curves(tmp_path: Path) -> None:
    model = network()
    weights.write_weights(tmp_path, "net", model)
    curve = [{"step": 1.0, "total": 0.5}, {"step": 2.0, "total": 0.25, "voi": 3.0}]
    collect.write_models([tmp_path], tmp_path / "models", [{"job": "teacher", "key": "net", "curve": curve}])
    assert load_model(tmp_path / "models" / "net.safetensors").meta == model.meta
    assert (tmp_path / "models" / "net.csv").read_text() == "step,total,voi\n1.0,0.5,\n2.0,0.25,3.0\n"
