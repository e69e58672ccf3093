"""Commands that make results again, as they can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdseg.config import Config, load
from kdseg.errors import KdsegError

SNAKEFILE = Path(__file__).parents[2] / "Snakefile"


def snakemake(configuration: Path | str) -> str:
    """Return the command that runs the workflow with a configuration, on all cores."""
    where = ["--snakefile", str(SNAKEFILE)] if SNAKEFILE.is_file() else []
    return shlex.join(["snakemake", "--cores", "all", *where, "--configfile", str(configuration)])


def commands(manifests: Sequence[Path]) -> Iterator[str]:
    """Yield lines that say how to make results again, and only these: a command for each configuration found for them.

    A manifest does not know its configuration: that lies in the folder of results, where a command wrote it, in the
    working directory, or in its folder ``config``.
    """
    left = dict.fromkeys(manifests)
    for path, config in _configurations(manifests):
        folder = Path(config.results).resolve()
        below = [one for one in left if one.resolve().is_relative_to(folder)]
        if below:  # by the names that the workflow has for them
            yield f"{snakemake(path)} --force {_named(config, folder, below)}"
        left = {one: None for one in left if one not in below}
    if left:
        found = f"{snakemake('CONFIG')} --force {shlex.join(map(str, left))}"
        yield f"run the commands that made them, or, with the path of your configuration for CONFIG: {found}"


def _named(config: Config, folder: Path, manifests: Sequence[Path]) -> str:
    return shlex.join(f"{config.results}/{one.resolve().relative_to(folder)}" for one in manifests)


def _configurations(manifests: Sequence[Path]) -> Iterator[tuple[Path, Config]]:
    """Yield the configurations that there are near results, the nearest first."""
    beside = [folder / "config.yaml" for one in manifests for folder in one.resolve().parents]
    for path in dict.fromkeys([*beside, *sorted(Path("config").glob("*.yaml")), *sorted(Path().glob("*.yaml"))]):
        try:
            yield path, load(path)
        except KdsegError:  # not there, or another program's
            continue
