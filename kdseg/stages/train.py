"""Train one model: what `kdseg train` does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kdseg.config import parse_options
from kdseg.config.networks import ModelOptions
from kdseg.geometry import Offsets
from kdseg.training import Result, train


def run(
    options: str,
    *,
    offsets: Offsets,
    volumes: Mapping[str, tuple[Path, Path | None]],
    out: Path,
    teacher: Path | None = None,
    device: str = "auto",
) -> Result:
    """Train the model that ``options`` describe, or continue its training.

    The state and the curve of the run lie beside the model file, in ``{stem}.training/``.

    Args:
        options: JSON of `ModelOptions`.
        offsets: one affinity channel each, nearest first.
        volumes: addresses of raw data and labels by the names that the options use.
        out: model file to write; its stem is the model's name.
        teacher: model file to distil from, where the options name a teacher.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: if the options are not valid; see `kdseg.training.train` for the rest.
    """
    return train(
        parse_options(ModelOptions, options),
        offsets=offsets,
        volumes=volumes,
        out=out,
        folder=out.with_name(f"{out.stem}.training"),
        teacher=teacher,
        name=out.stem,
        device=device,
    )
