"""Commands that compare volumes, wherever these were made, and print what is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from kdseg.cli.generated import add
from kdseg.config.questions import DiffTask, EvaluateTask, RunlengthTask, SameTask
from kdseg.errors import UnreadableError

JsonFile = Annotated[Path | None, Parameter(name="--json", help="Write all that is known of the result.")]


def add_evaluation(app: App, look: Group, *, whole: bool) -> None:
    """Add the commands."""
    add(app, "evaluate", EvaluateTask, _evaluate, look, "segmentation", "labels", "out", whole=whole)
    add(app, "same", SameTask, _same, look, "a", "b", whole=whole)
    add(app, "diff", DiffTask, _diff, look, "old", "new", whole=whole)
    add(app, "runlength", RunlengthTask, _runlength, look, "segmentation", "skeletons", whole=whole)


def _evaluate(
    task: EvaluateTask,
    *,
    worst: Annotated[int, Parameter(help="Objects to list of each kind.", validator=Number(gte=0))] = 3,
    json_path: JsonFile = None,
) -> None:
    from kdseg.evaluation import evaluate as stage
    from kdseg.results.manifests import write_json
    from kdseg.running.forks import one_heap

    one_heap()  # zarr's threads, of every worker, would keep 80 MB more
    answer = stage.run(task)
    for line in _described(answer["what"]):
        print(line)
    print()
    for name, value in answer["scores"].items():
        low, high = answer.get("intervals", {}).get(name, (None, None))
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}]"
        print(f"{name:16}{value:10.4f}{interval}  {answer['conventions'][name]}")
    print()
    for name, value in answer["details"].items():
        print(f"{name:16}{value:10.4f}  {answer['conventions'][name]}")
    if "boundaries" in answer:
        _echo_boundaries(answer["boundaries"])
    for kind, other in (("splits", "segments"), ("merges", "labels")):
        for fault in answer.get("worst", {}).get(kind, [])[:worst]:
            parts = ", ".join(f"{one['id']} from {_place(one['at'])}" for one in fault["overlaps"][:3])
            print(
                f"false {kind}: {fault['id']} ({fault['size']} voxels, {fault['bits']:.4f} bits) has {fault['parts']} "
                f"{other}: {parts}{', ...' if fault['parts'] > 3 else ''}"
            )
    if "bootstrap" in answer:
        print("[ ]: 95 % of {resamples} resamples of blocks, seed {seed}".format(**answer["bootstrap"]))
    if json_path is not None:
        write_json(json_path, answer)


def _runlength(task: RunlengthTask, *, json_path: JsonFile = None) -> None:
    from kdseg.evaluation import runlength as stage
    from kdseg.results.manifests import write_json

    answer = stage.run(task)
    print(f"{answer['nodes']} nodes, {answer['outside']} of them outside of the volume")
    print(f"ERL {answer['erl']:.1f} nm of {answer['best']:.1f}, NERL {answer['nerl']:.4f} (1 is best)")
    parts = ", ".join(f"{name} {answer[name]:.1f}" for name in ("correct", "split", "merged", "omitted"))
    print(f"nm of edges: {parts}; {len(answer['merging'])} merging segments")
    if json_path is not None:
        write_json(json_path, answer)


def _same(task: SameTask, *, json_path: JsonFile = None) -> None:
    from kdseg.evaluation import same as stage
    from kdseg.results.manifests import write_json

    answer = stage.run(task)
    if json_path is not None:
        write_json(json_path, answer)
    if answer["same"]:
        print(f"same: all {answer['voxels']} voxels agree, but for the names of segments")
        return
    print(
        f"different: {answer['differing']} of {answer['voxels']} voxels under the best matching of ids, the first at "
        f"{_place(answer['first'])}\nVI {answer['vi']:.6f} bits: H(A | B) {answer['h_a_given_b']:.6f}, H(B | A) "
        f"{answer['h_b_given_a']:.6f}"
    )
    for one in answer["pairs"]:
        print(
            f"{one['voxels']:>12} voxels are {one['a']} in A (of {one['size_a']}) and {one['b']} in B (of "
            f"{one['size_b']}), from {_place(one['at'])}"
        )
    sys.exit(1)


def _diff(task: DiffTask, *, json_path: JsonFile = None) -> None:
    from kdseg.evaluation.difference import stage
    from kdseg.results.manifests import write_json
    from kdseg.running.forks import one_heap

    one_heap()
    answer = stage.run(task)
    for one in answer["results"]:
        print(f"{one['name']}: {one['state']}{', ' + one['why'] if 'why' in one else ''}")
        for line in (*one["made_of"], *one.get("stats", ()), *_compared(one)):
            print(f"  {line}")
    for which, names in (("OLD", answer["only_old"]), ("NEW", answer["only_new"])):
        for name in names:
            print(f"{name}: only in {which}")
    if json_path is not None:
        write_json(json_path, answer)
    if unreadable := [one["name"] for one in answer["results"] if one["state"] == "unreadable"]:
        raise UnreadableError(f"{len(unreadable)} results could not be read, the reasons are above: {unreadable}")
    if not answer["same"]:
        sys.exit(1)


def _compared(one: dict[str, Any]) -> Iterator[str]:
    """Yield what is known of two volumes, in words."""
    if any(one.get("beyond", ())):
        yield (
            f"compared where both are, {_box(one['region'])} of OLD; beyond it OLD has {one['beyond'][0]} voxels, NEW "
            f"{one['beyond'][1]}"
        )
    if one.get("differing"):
        share = f"{one['differing']} of {one['voxels']} voxels ({one['differing'] / one['voxels']:.2%})"
        if "objects" in one:
            yield f"{share} have another id"
        else:
            yield f"{share} differ, all in {_box(one['box'])}, by at most {one['largest']:g}"
    if "objects" not in one or one["state"] == "identical":
        return
    yield "objects: {old} → {new}, {equal} equal ({renamed} renamed), {changed} changed".format(**one["objects"])
    yield "  {split} split, {vanished} vanished; in NEW {merged} merged, {appeared} appeared".format(**one["objects"])
    yield "VOI split {voi_split:.6f}, merge {voi_merge:.6f} bits, ARAND {arand:.6f}".format(**one)
    for row in one["changes"]:
        was, now = _object(row["old"], row["old_size"]), _object(row["new"], row["new_size"])
        at = _place([row["z"], row["y"], row["x"]])
        yield f"{row['voxels']:>12} voxels of {was} are {now}, from {at}; change {row['change']}"


def _object(name: int, size: int) -> str:
    return f"{name} (of {size})" if name else "background"


def _box(bounds: list[list[int]]) -> str:
    return f"[{', '.join(f'{low}:{high}' for low, high in zip(*bounds, strict=True))}]"


def _echo_boundaries(found: dict[str, Any]) -> None:
    print()
    for name, value in found["scores"].items():
        print(f"{name:19}{value:7.4f}  {found['conventions'][name]}")
    print(
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
    if not what["dust"]:
        lines.append(f"{'dust':13} labels of all sizes count; --dust N leaves small ones out, as `dust` of a run")
    if what["per_section"]:
        lines.append(f"{'sections':13} each z is an image of its own: ids in two sections are two ids")
    if what["components"]:
        lines.append(f"{'components':13} labels were split into {what['components']} components")
    return lines
