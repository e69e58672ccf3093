"""Commands for people that compare volumes, wherever these were made."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from kdseg.cli.common import FILE, F, main, workers_count

_NONE = "none"


def _ids(ctx: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Return the ids that an option was given, none for the word `none`."""
    if values == (_NONE,):
        return ()
    wrong = [value for value in values if not (value.isdecimal() and int(value) < 1 << 64)]
    if wrong:
        raise click.BadParameter(f"expected ids, 0 to 2**64 - 1, or `none` alone; got {wrong[0]!r}", ctx, option)
    return tuple(int(value) for value in values)


def _nm(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, nargs=3, type=float, metavar="Z Y X", help=text)


voxel_size = _nm("--voxel-size", "nm, of files that do not say.")
region = click.option("--roi", help="voxels:z0:z1,y0:y1,x0:x1 or nm:…; voxels are those of the second volume.")
block_shape = click.option(
    "--block", nargs=3, type=click.IntRange(1), default=(128, 128, 128), show_default=True, help="Voxels per task."
)
json_file = click.option("--json", "json_path", type=FILE, help="Write all that is known of the result.")


@main.command()
@click.argument("segmentation")
@click.argument("labels")
@click.argument("out", required=False, type=click.Path(path_type=Path, file_okay=False))
@region
@click.option("--mask", help="Volume; voxels where it is 0, or which it does not cover, are left out.")
@click.option("--ignore-label", multiple=True, default=("0",), callback=_ids, help="Instead of 0; repeat, or `none`.")
@click.option("--ignore-segment", multiple=True, callback=_ids, help="Repeat, or `none`, the default.")
@click.option("--dust", default=0, type=click.IntRange(0), help="Leave out labels of fewer scored voxels.")
@click.option("--ignore-border", type=float, help="Leave out voxels within so many nm of labels' borders, as CREMI.")
@click.option("--boundaries", type=float, help="Score boundary voxels, too, with this tolerance in nm.")
@click.option("--per-section", is_flag=True, help="Score each z as an image of its own.")
@click.option("--components", is_flag=True, help="Split labels into connected components of the region first.")
@click.option("--bootstrap", default=0, type=click.IntRange(0), help="Resamples of blocks, for 95 % intervals.")
@click.option("--worst", default=3, show_default=True, type=click.IntRange(0), help="Objects to list of each kind.")
@voxel_size
@_nm("--segmentation-offset", "nm, of the first voxel, instead of what the file says.")
@_nm("--labels-offset", "nm, of the first voxel, instead of what the file says.")
@block_shape
@json_file
@click.option("--overwrite", is_flag=True, help="Clear what other options or inputs left in OUT.")
@workers_count
def evaluate(
    out: Path | None,
    ignore_label: tuple[int, ...],
    ignore_segment: tuple[int, ...],
    json_path: Path | None,
    overwrite: bool,
    workers: int,
    worst: int,
    **how: Any,
) -> None:
    """Score SEGMENTATION against LABELS, addresses as in docs/evaluation.md; a killed run goes on if OUT is given."""
    from kdseg.evaluation import evaluate as stage
    from kdseg.results.manifests import write_json
    from kdseg.running.forks import one_heap

    one_heap()  # zarr's threads, of every worker, would keep 80 MB more
    question = stage.Question(**how, ignore_labels=ignore_label, ignore_segments=ignore_segment)
    answer = stage.run(question, out, workers=workers, overwrite=overwrite)
    for line in _described(answer["what"]):
        click.echo(line)
    click.echo()
    for name, value in answer["scores"].items():
        low, high = answer.get("intervals", {}).get(name, (None, None))
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        click.echo(f"{name:16}{value:10.4f}{interval}  {answer['conventions'][name]}")
    click.echo()
    for name, value in answer["details"].items():
        click.echo(f"{name:16}{value:10.4f}  {answer['conventions'][name]}")
    if "boundaries" in answer:
        _echo_boundaries(answer["boundaries"])
    for kind, other in (("splits", "segments"), ("merges", "labels")):
        for fault in answer.get("worst", {}).get(kind, [])[:worst]:
            parts = ", ".join(f"{one['id']} from {_place(one['at'])}" for one in fault["overlaps"][:3])
            click.echo(
                f"false {kind}: {fault['id']} ({fault['size']} voxels, {fault['bits']:.4f} bits) has {fault['parts']} "
                f"{other}: {parts}{', ...' if fault['parts'] > 3 else ''}"
            )
    if "bootstrap" in answer:
        click.echo("[ ]: 95 % of {resamples} resamples of blocks, seed {seed}".format(**answer["bootstrap"]))
    if json_path is not None:
        write_json(json_path, answer)


@main.command()
@click.argument("segmentation")
@click.argument("skeletons", type=click.Path(path_type=Path))
@click.option(
    "--nm-per-unit", default=1.0, show_default=True, help="What SWC and CSV files count in; micrometres: 1000."
)
@click.option("--tolerance", default=0, type=click.IntRange(0), help="Nodes of another neuron that are no merge yet.")
@click.option("--runs", default="segment", type=click.Choice(["segment", "path"]), help="What one run is.")
@voxel_size
@_nm("--offset", "nm, of the first voxel's centre, instead of what the file says.")
@json_file
def runlength(json_path: Path | None, **how: Any) -> None:
    """Expected run length of SEGMENTATION along SKELETONS (.swc, a folder of these, .csv or .npz)."""
    from kdseg.evaluation import runlength as stage
    from kdseg.results.manifests import write_json

    answer = stage.run(**how)
    click.echo(f"{answer['nodes']} nodes, {answer['outside']} of them outside of the volume")
    click.echo(f"ERL {answer['erl']:.1f} nm of {answer['best']:.1f}, NERL {answer['nerl']:.4f} (1 is best)")
    parts = ", ".join(f"{name} {answer[name]:.1f}" for name in ("correct", "split", "merged", "omitted"))
    click.echo(f"nm of edges: {parts}; {len(answer['merging'])} merging segments")
    if json_path is not None:
        write_json(json_path, answer)


@main.command()
@click.argument("a")
@click.argument("b")
@region
@click.option("--pairs", default=10, show_default=True, type=click.IntRange(0), help="Pairs of ids to list.")
@block_shape
@json_file
@workers_count
def same(json_path: Path | None, **how: Any) -> None:
    """Compare the segmentations A and B: exit 0 if they are the same but for ids, 1 if they differ, 2 on trouble."""
    from kdseg.evaluation import same as stage
    from kdseg.results.manifests import write_json

    answer = stage.run(**how)
    if json_path is not None:
        write_json(json_path, answer)
    if answer["same"]:
        click.echo(f"same: all {answer['voxels']} voxels agree, but for the names of segments")
        return
    click.echo(
        f"different: {answer['differing']} of {answer['voxels']} voxels under the best matching of ids, the first at "
        f"{_place(answer['first'])}\nVI {answer['vi']:.6f} bits: H(A | B) {answer['h_a_given_b']:.6f}, H(B | A) "
        f"{answer['h_b_given_a']:.6f}"
    )
    for one in answer["pairs"]:
        click.echo(
            f"{one['voxels']:>12} voxels are {one['a']} in A (of {one['size_a']}) and {one['b']} in B (of "
            f"{one['size_b']}), from {_place(one['at'])}"
        )
    sys.exit(1)


def _echo_boundaries(found: dict[str, Any]) -> None:
    click.echo()
    for name, value in found["scores"].items():
        click.echo(f"{name:19}{value:7.4f}  {found['conventions'][name]}")
    click.echo(
        "boundary voxels within {0:g} nm: {found_near} of {found} of the segmentation, {true_near} of {true} of the "
        "labels".format(found["tolerance_nm"], **found["counts"])
    )


def _place(voxel: list[int]) -> str:
    return f"({', '.join(map(str, voxel))})"


def _described(what: dict[str, Any]) -> list[str]:
    lines = []
    for name, volume in what["volumes"].items():
        z, y, x = volume["shape"]
        lines.append(f"{name:13} {volume['address']}: {volume['dtype']}, {z} x {y} x {x} voxels")
        if max(volume["ratio"]) > 1:
            lines.append(f"{'':13} one voxel is {' x '.join(map(str, volume['ratio']))} voxels of the grid")
    size = what["voxel_size_nm"]
    unit = "unknown size" if size is None else " x ".join(f"{v:g}" for v in size) + " nm"
    start, shape = what["region"]["offset"], what["region"]["shape"]
    box = ", ".join(f"{o}:{o + n}" for o, n in zip(start, shape, strict=True))
    lines.append(f"{'grid':13} voxels of {unit}, {what['sampling']}")
    lines.append(f"{'region':13} [{box}], counted from the first voxel of the labels")
    lines.append(
        f"{'scored':13} {what['scored_voxels']} of {what['region']['voxels']} voxels: {what['segments']} segments, "
        f"{what['labels']} labels"
    )
    left = [f"label {one}" for one in what["ignored_labels"]] + [f"segment {one}" for one in what["ignored_segments"]]
    left += [f"labels below {what['dust']} voxels"] if what["dust"] else []
    border = what["ignored_border_nm"]
    left += [f"voxels within {border:g} nm of a border in their section"] if border is not None else []
    left += ["voxels outside of the mask"] if "mask" in what["volumes"] else []
    lines.append(f"{'left out':13} {', '.join(left) or 'nothing'}")
    if what["per_section"]:
        lines.append(f"{'sections':13} each z is an image of its own: ids in two sections are two ids")
    if what["components"]:
        lines.append(f"{'components':13} labels were split into {what['components']} components")
    return lines
