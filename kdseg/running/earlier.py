"""The folder of an earlier run whose blocks a run is to reuse, looked into before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from kdseg.config import Config
from kdseg.config.tasks import Product
from kdseg.errors import ConfigError, KdsegError
from kdseg.results.manifests import read


def expect_earlier(config: Config) -> None:
    """Refuse a folder to reuse where there is nothing of use; stages would make all blocks, and only their logs say so.

    Raises:
        ConfigError: if it is not there, or holds no finished predictions or fragments of this configuration.
    """
    if config.reuse is None:
        return
    if not Path(config.reuse).is_dir():
        raise ConfigError(
            f"reuse: no folder at {config.reuse!r}, expected the `results` of an earlier run: name these, or take "
            "`reuse` out"
        )
    models = (*config.all_models, *config.pretrained)
    made = (
        Path(config.reuse, model, volume, f"{product}.json")
        for model in models
        for volume in config.volumes
        for product in (*get_args(Product), "fragments")
    )
    if not any(map(_finished, made)):
        raise ConfigError(
            f"reuse: {config.reuse!r} holds no finished prediction or fragments of a network {sorted(models)} on a "
            f"volume {sorted(config.volumes)}, expected the `results` of an earlier run of this configuration: name "
            "these, or take `reuse` out"
        )


def _finished(manifest: Path) -> bool:
    try:
        read(manifest)
    except KdsegError:
        return False
    return True
