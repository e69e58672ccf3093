"""What all commands share: the group, the options that most of them take, errors in one line."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kdseg import __version__
from kdseg.errors import KdsegError

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, dir_okay=False)


_TROUBLE = {"same": 2}
"""Exit codes on errors, where 1 means something else: as of cmp and diff."""


class _OneLineErrors(click.Group):
    """Prints an error that was raised on purpose, or by the disk, as one line, and exits with 1 (or `_TROUBLE`)."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KdsegError, OSError, json.JSONDecodeError) as error:
            click.echo(f"kdseg {ctx.invoked_subcommand}: {error}", err=True)
            sys.exit(_TROUBLE.get(ctx.invoked_subcommand or "", 1))


def manifests(*names: str) -> Callable[[F], F]:
    """Return a decorator that adds a required option per name, the manifest of an input."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            function = click.option(f"--{name}", required=True, type=FILE, help=f"Manifest of the {name}.")(function)
        return function

    return decorate


def writes(function: F) -> F:
    """Add the options of a command that writes a manifest."""
    function = click.option(
        "--overwrite", is_flag=True, envvar="KDSEG_OVERWRITE", help="Clear what other options or inputs made."
    )(function)
    return click.option("--manifest", required=True, type=FILE, help="Manifest to write.")(function)


options_json = click.option("--options", required=True, help="The section of the configuration, as JSON.")


def _with_remote(_context: click.Context, _option: click.Parameter, text: str) -> str:
    # The workflow hands the bucket over beside the section: it says where, and must make nothing run again.
    bucket = os.environ.get("KDSEG_REMOTE")
    return text if bucket is None else json.dumps({"remote": bucket, **json.loads(text)})


storage_json = click.option(
    "--storage",
    default="{}",
    callback=_with_remote,
    help="The section `storage`, as JSON; its `remote` may be in KDSEG_REMOTE.",
)
workers_count = click.option("--workers", default=1, type=click.IntRange(1), help="Processes; changes no result.")
gpu_count = click.option("--gpus", default=1, type=click.IntRange(1), help="Processes on CUDA, one GPU each.")
cluster_json = click.option(
    "--cluster", envvar="KDSEG_CLUSTER", default='{"kind": "local"}', help="The section `cluster`, as JSON."
)


def _device(context: click.Context, option: click.Parameter, name: str) -> str:
    """Return the name of a device, as the configuration knows them; whether it is there is found out later."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise click.BadParameter(f"expected auto, cpu, cuda or cuda:N, got {name!r}", context, option)
    return name


device_name = click.option("--device", default="auto", callback=_device, help="auto, cpu, cuda or cuda:N.")


@click.group(cls=_OneLineErrors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Distil a heavy EM segmentation network into a light one, run it blockwise, score the result.

    Snakemake calls most of these. By hand you need `check`, `clear`, `evaluate`, `same`, `tune` and `export`; with
    affinities of your own `adopt`, `fragments`, `edges`, `agglomerate` and `segment` (docs/segmentation.md).
    """
    # Read when torch is loaded, hence now. Its threads would spin while they wait for each other: beside other jobs a
    # step of a training took up to ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
