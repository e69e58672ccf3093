"""Commands that hand results to other programs."""

from __future__ import annotations

from pathlib import Path

import click

from kdseg.cli.common import main, manifests, storage_json, workers_count, writes
from kdseg.config import StorageOptions, parse_options
from kdseg.errors import ConfigError


def _triples(text: str) -> list[list[int]]:
    try:
        return [[int(value) for value in step.split(",")] for step in text.split()]
    except ValueError:
        raise ConfigError(f"expected steps like '-1,0,0 0,-1,0 0,0,-1', got {text!r}") from None


@main.command()
@click.argument("address")
@click.option("--offsets", required=True, help="One step z,y,x in voxels per channel: '-1,0,0 0,-1,0 0,0,-1'.")
@click.option("--voxel-size", type=(float, float, float), help="nm, z y x, where the file does not say.")
@click.option("--invert", is_flag=True, help="Values are high between neurons, not within.")
@storage_json
@writes
@workers_count
def adopt(
    address: str,
    offsets: str,
    voxel_size: tuple[float, float, float] | None,
    invert: bool,
    storage: str,
    manifest: Path,
    workers: int,
    overwrite: bool,
) -> None:
    """Affinities that another program made (ADDRESS: path.zarr/group or path.h5:/dataset) → affinities for kdseg."""
    from kdseg.segmentation import adopt as stage

    layout = parse_options(StorageOptions, storage)
    stage.run(
        address,
        manifest,
        layout,
        offsets=_triples(offsets),
        voxel_size=voxel_size,
        invert=invert,
        workers=workers,
        overwrite=overwrite,
    )


@main.command()
@manifests("edges", "agglomeration", "fragments")
@click.option(
    "--spatial-bits", type=click.IntRange(1), help="Of PyChunkedGraph's chunk coordinates; default the fewest."
)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def graph(edges: Path, agglomeration: Path, fragments: Path, spatial_bits: int | None, out: Path) -> None:
    """Region graph, merge tree and fragments → Parquet files in the folder OUT."""
    from kdseg.segmentation.proofreading import graph as stage

    stage.run(edges, agglomeration, fragments, out, spatial_bits=spatial_bits)


@main.command()
@manifests("segmentation")
@click.option("--least", default=0, type=click.IntRange(0), help="Leave out segments of fewer voxels.")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def properties(segmentation: Path, least: int, out: Path) -> None:
    """Size, place and bounding box of segments → neuroglancer's segment properties in the folder OUT."""
    from kdseg.segmentation.proofreading import properties as stage

    click.echo(f"wrote {stage.run(segmentation, out, least=least)} segments to {out / 'info'}")
