"""Commands that hand results to other programs."""

from __future__ import annotations

from pathlib import Path

import click

from kdseg.cli.common import main, manifests


@main.command()
@manifests("edges", "agglomeration", "fragments")
@click.option(
    "--spatial-bits", type=click.IntRange(1), help="Of PyChunkedGraph's chunk coordinates; default the fewest."
)
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def graph(edges: Path, agglomeration: Path, fragments: Path, spatial_bits: int | None, out: Path) -> None:
    """Region graph, merge tree and fragments → Parquet files in the folder OUT."""
    from kdseg.stages import graph as stage

    stage.run(edges, agglomeration, fragments, out, spatial_bits=spatial_bits)


@main.command()
@manifests("segmentation")
@click.option("--least", default=0, type=click.IntRange(0), help="Leave out segments of fewer voxels.")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
def properties(segmentation: Path, least: int, out: Path) -> None:
    """Size, place and bounding box of segments → neuroglancer's segment properties in the folder OUT."""
    from kdseg.stages import properties as stage

    click.echo(f"wrote {stage.run(segmentation, out, least=least)} segments to {out / 'info'}")
