"""Commands that make results again, as they can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdseg.config import Config, load
from kdseg.errors import KdsegError


def forced(configuration: Path | str, targets: Sequence[Path | str]) -> str:
    """Return the command that makes results of a configuration again, whatever their times say."""
    return shlex.join(["kdseg", "run", str(configuration), *map(str, targets), "--", "--force"])


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
            yield forced(path, [f"{config.results}/{one.resolve().relative_to(folder)}" for one in below])
        left = {one: None for one in left if one not in below}
    if left:
        found = forced("CONFIG", list(left))
        yield f"run the commands that made them, or, with the path of your configuration for CONFIG: {found}"


def _configurations(manifests: Sequence[Path]) -> Iterator[tuple[Path, Config]]:
    """Yield the configurations that there are near results, the nearest first."""
    beside = [folder / "config.yaml" for one in manifests for folder in one.resolve().parents]
    for path in dict.fromkeys([*beside, *sorted(Path("config").glob("*.yaml")), *sorted(Path().glob("*.yaml"))]):
        try:
            yield path, load(path)
        except KdsegError:  # not there, or another program's
            continue
