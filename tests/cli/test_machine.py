"""Full disks, lost disks, no memory, Ctrl-C: one line, a status of its own, and the same bytes after another run."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from command import interruptible, invoke
from listening import family
from pipeline import store
from toy_models import save
from toy_volumes import write_volume

from kdseg.cli.machine import of_the_machine

MOUNTS = shutil.which("unshare") is not None and os.geteuid() == 0
OWN_DISK = pytest.mark.skipif(not MOUNTS, reason="small disks are mounted, for which one must be root on Linux")


def in_own_mounts(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script of bash that may mount what it likes: nobody else sees it, and it is gone with the script."""
    command = ["unshare", "--mount", "bash", "-eu", "-c", script, "bash", sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a volume of noise, which no codec makes smaller: 1 MB, four blocks of a conversion."""
    voxels = np.random.default_rng(3).integers(0, 256, (40, 160, 160), np.uint8)
    return write_volume(tmp_path_factory.mktemp("raw") / "raw.zarr", voxels)


def contents(store: Path) -> dict[Path, bytes]:
    return {path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def convert(raw: Path, out: Path, workers: int = 2) -> list[str]:
    options = f'{{"raw": "{raw}"}}'
    return [
        "convert",
        "--kind",
        "raw",
        "--manifest",
        f"{out}/raw.json",
        "--options",
        options,
        "--workers",
        f"{workers}",
    ]


@pytest.fixture(scope="module")
def converted(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    out = tmp_path_factory.mktemp("converted")
    done = invoke(*convert(raw, out, 1))
    assert done.exit_code == 0, done.output
    return contents(out / "raw.zarr")


GROW = """
python=$1 small=$2 out=$3
shift 3
mount -t tmpfs -o size=40k tmpfs "$small"
for size in $(seq 140 200 4000); do
    code=0
    "$python" -m kdseg "$@" 2> "$out/said" || code=$?
    echo "$code $(grep -c . "$out/said" || true) $(tail -1 "$out/said")"
    if [ $code = 0 ]; then break; fi
    mount -o remount,size=${size}k "$small"
done
cp -r "$small/raw.zarr" "$out"
"""


@OWN_DISK
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_is_full_again_and_again(
    raw: Path, converted: dict[Path, bytes], tmp_path: Path, workers: int
) -> None:
    (small := tmp_path / "small").mkdir()
    done = in_own_mounts(GROW, small, tmp_path, *convert(raw, small, workers))
    assert done.returncode == 0, done.stderr
    *refused, last = done.stdout.splitlines()
    assert last.split()[0] == "0"
    assert len(refused) > 3
    for line in refused:
        assert re.match(r"1 \d+ kdseg convert: .*No space left on device.*make room", line), line
    assert contents(tmp_path / "raw.zarr") == converted


FULL_LATER = """
import os, sys, tempfile
from pathlib import Path
from kdseg.geometry import Roi
from kdseg.running.runner import Place, run_blocks
try:
    with (Path(tempfile.gettempdir()) / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
except OSError as error:
    print(error)
out = Path(sys.argv[1])
run_blocks("a", Roi((0, 0, 0), (8, 8, 64)), (8, 8, 8), lambda block: (out / str(block.index[2])).touch(), Place(2), out)
"""
NO_ROOM_TO_SHARE = """
mkdir "$2/tmp"
mount -t tmpfs -o size=400k tmpfs "$2/tmp"
mount -t tmpfs -o size=8k tmpfs /dev/shm
head -c 20000 /dev/zero > /dev/shm/fill || true
mkdir "$2/out"
TMPDIR=$2/tmp "$1" -c "$3" "$2/out"
"""


@OWN_DISK
def test_full_disks_of_temporary_files_kill_no_stage(tmp_path: Path) -> None:
    """Memory that forks share is no file, which would be a bus error as soon as it is written to."""
    done = in_own_mounts(NO_ROOM_TO_SHARE, tmp_path, FULL_LATER)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert "No space left on device" in done.stdout
    assert {f"{k}" for k in range(8)} < {path.name for path in (tmp_path / "out").iterdir()}


def interrupted(words: list[str], line: str, wait: Callable[[int], None]) -> tuple[int, list[str]]:
    """Press Ctrl-C, which all processes of a terminal get; return the status and what was said.

    Args:
        words: of the command.
        line: after which.
        wait: for what then; it is given the process.
    """
    command = [sys.executable, "-m", "kdseg", *words]
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
    )
    assert run.stdout is not None
    for said in run.stdout:
        if line in said:
            break
    wait(run.pid)
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=100)
    return run.returncode, [one for one in said.splitlines() if " INFO " not in one and not one.endswith(("…", " s"))]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.5])
def test_ctrl_c_is_a_line_and_the_rest_is_the_same(
    raw: Path, converted: dict[Path, bytes], tmp_path: Path, seconds: float
) -> None:
    words = convert(raw, tmp_path)
    status, said = interrupted(words, "blocks to do", lambda _: time.sleep(seconds))
    assert (status, said) == (130, ["kdseg convert: interrupted; what is done is kept, run it again to go on"])
    assert not (tmp_path / "raw.json").exists()
    assert invoke(*words).exit_code == 0
    assert contents(tmp_path / "raw.zarr") == converted


@pytest.mark.slow
@pytest.mark.parametrize("error", [None, "traceback"])
def test_a_log_that_another_run_removed_is_put_back(raw: Path, tmp_path: Path, error: str | None) -> None:
    """As by a second Snakemake, before its job is refused."""
    log, go = tmp_path / "convert.log", tmp_path / "go"
    code = f"""
import sys, time
from pathlib import Path
from kdseg.cli import main
from kdseg.volumes import convert
def run(task):
    print("half of it is done", flush=True)
    while not Path({str(go)!r}).exists():
        time.sleep(0.01)
    if {error is not None}:
        raise RuntimeError("of the program")
    print("all of it is done")
convert.run = run
main(sys.argv[1:])
"""
    with log.open("w") as file:
        run = subprocess.Popen([sys.executable, "-c", code, *convert(raw, tmp_path)], stdout=file, stderr=file)
    while "half" not in log.read_text():
        time.sleep(0.01)
    log.unlink()
    log.write_text("refused")
    go.touch()
    assert run.wait() == (0 if error is None else 1)
    lines = [line for line in log.read_text().splitlines() if " INFO " not in line]
    assert lines[0] == "half of it is done"
    assert lines[-1] == ("all of it is done" if error is None else "RuntimeError: of the program")
    assert "refused" not in lines


def until_workers_begin(process: int) -> None:
    def begun() -> bool:
        return any("spawn_main" in word for one in family(process)[1:] for word in one.cmdline())

    while psutil.Process(process).status() != psutil.STATUS_ZOMBIE and not begun():
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_is_a_line_while_workers_of_dask_begin_and_while_they_predict(tmp_path: Path, begun: bool) -> None:
    raw = store(tmp_path / "raw.json", np.random.default_rng(3).integers(0, 256, (64, 128, 128), np.uint8))
    model = save(tmp_path / "model.json")
    words = ["predict", "--raw", f"{raw}", "--model", f"{model}", "--manifest", f"{tmp_path}/affinities.json"]
    words += ["--options", '{"block": [32, 32, 32], "tile": [16, 16, 16]}', "--device", "cpu", "--workers", "2"]
    words += ["--storage", '{"chunk": [16, 16, 16], "shard": [32, 32, 32]}']
    done = tmp_path / ".affinities" / "32x32x32" / "predict.txt"

    def until_a_block_is_done(process: int) -> None:
        while psutil.Process(process).status() != psutil.STATUS_ZOMBIE and not (done.exists() and done.read_text()):
            time.sleep(0.01)

    status, said = interrupted(words, "blocks to do", until_a_block_is_done if begun else until_workers_begin)
    assert (status, said) == (130, ["kdseg predict: interrupted; what is done is kept, run it again to go on"])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["convert", "fragments"])
def test_ctrl_c_ends_a_chain_of_stages(raw: Path, tmp_path: Path, stage: str) -> None:
    words = ["segment", str(raw), f"{tmp_path}/out", "--model", "fib25-s", "--device", "cpu", "--workers", "2"]
    status, said = interrupted(words, f"{stage} …", lambda _: time.sleep(0.1))
    assert (status, said) == (130, ["kdseg segment: interrupted; what is done is kept, run it again to go on"])


def test_a_disk_that_does_not_answer_is_a_line() -> None:
    """Nobody may read the first page of a process, which Linux calls an error of input and output."""
    with pytest.raises(OSError, match="Input/output error") as real:
        Path("/proc/self/mem").read_bytes()
    said = of_the_machine(real.value)
    assert said is not None
    assert said.startswith("[Errno 5] Input/output error: the disk does not answer")
    assert "\n" not in said


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EREMOTEIO])
def test_other_words_for_a_lost_disk(number: int) -> None:
    said = of_the_machine(OSError(number, os.strerror(number), "/mnt/a"))
    assert said is not None
    assert "'/mnt/a': the disk does not answer" in said


def test_no_memory_is_a_line() -> None:
    with pytest.raises(MemoryError) as real:
        np.empty(1 << 60, np.uint8)
    said = of_the_machine(real.value)
    assert said is not None
    assert re.match(r"out of memory \(Unable to allocate .*\): take fewer workers", said)


def test_an_error_of_the_program_is_not_hidden() -> None:
    assert of_the_machine(ValueError("no room")) is None
