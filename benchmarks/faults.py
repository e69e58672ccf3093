"""Faults planted in a run of the workflow: found by `kdseg verify`, mended by what it says, the same bytes again.

    python benchmarks/faults.py [--config FILE] [--faults N] [--seed N]

The configuration runs in a temporary folder. Then files of its results, of all kinds in turn, are damaged in one of
eight ways. What `kdseg verify --repair` says is done, `kdseg clear` and `kdseg run`, until it finds nothing
more. A fault may hide behind another one, as those of a volume behind a manifest that cannot be read: it is found
later, or never, where the whole result is made again. At the end all volumes, tables and networks have to be what they
were.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "config" / "test.yaml"
KINDS = {
    "shard": "**/*.zarr/*/c/**/*",
    "shard of a pyramid": "**/*.zarr/[12]/c/**/*",
    "zarr.json": "**/*.zarr/**/zarr.json",
    "checksums": "**/*.checksums.npz",
    "table of a block": "**/*.tables/*",
    "table of a stage": "**/*.parquet",
    "weights": "**/model.safetensors",
    "manifest": "**/*.json",
    "claim": "**/.*/claim.json",
}
"""Files of a run by what they are; manifests are those with a folder of their stage."""


def flipped(data: bytes, draw: random.Random) -> bytes:
    where = draw.randrange(len(data))
    return data[:where] + bytes([data[where] ^ 1 << draw.randrange(8)]) + data[where + 1 :]


FAULTS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "a bit flipped": flipped,
    "gone": lambda *_: None,
    "cut off": lambda data, draw: data[: draw.randrange(1, len(data))],
    "zeros": lambda data, _: bytes(len(data)),
    "longer": lambda data, draw: data + draw.randbytes(7),
    "noise": lambda data, draw: draw.randbytes(len(data)),
    "empty": lambda *_: b"",
}
SWAPPED = "another of its kind"
ROUNDS = 6


def files(run: Path, kind: str) -> list[Path]:
    found = sorted(path for path in run.glob(KINDS[kind]) if path.is_file())
    if kind == "manifest":
        return [path for path in found if path.with_name(f".{path.stem}").is_dir()]
    return found


def digests(run: Path) -> dict[str, str]:
    """Return the SHA-256 of all files of results; manifests and claims hold times, and are read by `verify`."""
    made = [path for kind in KINDS if kind not in ("manifest", "claim") for path in files(run, kind)]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in made}


def plant(run: Path, count: int, seed: int) -> list[tuple[Path, str, str]]:
    """Damage files; return them with their kinds and faults."""
    draw, planted = random.Random(seed), list[tuple[Path, str, str]]()
    for kind, way in zip(cycle(KINDS), cycle([*FAULTS, SWAPPED]), strict=False):
        if len(planted) == count:
            break
        free = [path for path in files(run, kind) if path not in [one for one, _, _ in planted]]
        # a stage without a manifest has not finished: the workflow runs it
        if not free or (kind == "manifest" and way == "gone"):
            continue
        file = draw.choice(free)
        if way == SWAPPED:
            other = draw.choice([path for path in free if path.read_bytes() != file.read_bytes()])
            data: bytes | None = other.read_bytes()
        else:
            data = FAULTS[way](file.read_bytes(), draw)
        file.unlink()
        if data is not None:
            file.write_bytes(data)
        planted.append((file, kind, way))
    return planted


def call(folder: Path, *command: str | Path) -> tuple[int, str]:
    done = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--faults", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kdseg = [sys.executable, "-m", "kdseg"]
    workflow = [*kdseg, "run", "config.yaml", "--", "--keep-going"]
    with TemporaryDirectory() as made:
        folder = Path(made)
        run = Path(yaml.safe_load(given.config.read_text())["results"])
        (folder / "config.yaml").write_text(given.config.read_text())  # where `verify` looks for it
        call(folder, *workflow)
        before = digests(folder / run)
        print(f"{len(before)} files of results; {call(folder, *kdseg, 'verify', run)[1].strip()}\n")
        planted = plant(folder / run, given.faults, given.seed)
        found, rounds, damaged = dict[Path, int](), 0, 1
        while damaged and rounds < ROUNDS:
            rounds += 1
            damaged, said = call(folder, *kdseg, "verify", run, "--repair")
            found = {file: rounds for file, _, _ in planted if str(file.relative_to(folder)) in said} | found
            for manifest in sorted(set(re.findall(r"kdseg clear (\S+?\.json)", said))):
                call(folder, *kdseg, "clear", manifest)
            for command in re.findall(r"^kdseg (run .*)", said, re.MULTILINE):
                call(folder, *kdseg, *shlex.split(command), "--keep-going")
            call(folder, *workflow)
        print("| file | kind | fault | found in round |\n| --- | --- | --- | --- |")
        for file, kind, way in planted:
            print(f"| {file.relative_to(folder / run)} | {kind} | {way} | {found.get(file, '-')} |")
        after = digests(folder / run)
        other = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        print(f"\n{len(found)} of {len(planted)} found, the others made again unseen; ", end="")
        print("still damaged; " if damaged else f"nothing is damaged in round {rounds}; ", end="")
        print(f"{len(after) - len(other)} of {len(before)} files are the same bytes as before", *other)
    sys.exit(bool(damaged or other))


if __name__ == "__main__":
    main()
