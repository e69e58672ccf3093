"""The graph of the run as SVG: one lane per model and volume, one column per stage.

::

    volumes     train           predict   fragments   …   evaluate    report
    [cube] ──── [teacher] ───── [ 3 s] ── [ 2 s] ──── … ─ [0.1 s] ─┬─ [page]
       └─────── [student] ───── [ 1 s] ── [ 2 s] ──── … ─ [0.1 s] ─┘
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from kdseg.report.results import STAGES, Results

VERBS = ("predict", "fragments", "edges", "agglomerate", "sweep", "relabel", "score")
"""Headings of the columns of ``STAGES``: the commands that make them."""
PITCH_X, PITCH_Y, NODE_W, NODE_H, TOP, GAP = 112, 38, 82, 24, 34, 14


@dataclass(frozen=True)
class Node:
    """One manifest, or a volume's few.

    Attributes:
        key: path of the manifest below the folder of results.
        column: from the left, 0 is the volumes.
        y: centre of the node, in pixels.
        title: written into it.
        kind: colour in the style sheet.
        caption: written above it.
        inputs: keys of the nodes that it is made from.
    """

    key: str
    column: int
    y: float
    title: str
    kind: str
    caption: str = ""
    inputs: tuple[str, ...] = ()


def graph(results: Results) -> Markup:
    """Return the graph of the stages that the configuration asks for; what is not done has a dashed border."""
    found = nodes(results)
    at = {node.key: node for node in found}
    last = max(node.column for node in found)
    width = (last + 1) * PITCH_X - (PITCH_X - NODE_W) + 20
    height = max(node.y for node in found) + PITCH_Y
    edges = "".join(_edge(at[name], node) for node in found for name in node.inputs if name in at)
    heads = "".join(
        f'<text class="head" x="{_left(k) + NODE_W / 2}" y="16" text-anchor="middle">{escape(text)}</text>'
        for k, text in enumerate(_headings(results))
    )
    body = "".join(_node(node, results) for node in found)
    alt = f"Graph of the run: {', '.join(_headings(results))}; {len(found)} results."
    return Markup(
        f'<svg class="graph" viewBox="0 0 {width} {height:.0f}" style="min-width:{0.8 * width:.0f}px" role="img" '
        f'aria-label="{escape(alt)}">{heads}{edges}{body}</svg>'
    )


def nodes(results: Results) -> list[Node]:
    """Return the nodes in an order in which they can be made, placed in columns and lanes."""
    config = results.config
    models, lanes = _needed(results), _lanes(results)
    first = 2 + max(_depth(results, model) for model in models)
    trained: list[Node] = []
    staged: list[Node] = []
    y = TOP + PITCH_Y / 2
    for model in models:
        own = lanes if model in config.evaluate.models else []
        middle = y + PITCH_Y * (max(len(own), 1) - 1) / 2
        trained.append(_model_node(results, model, middle))
        for volume in own:
            staged += _lane(results, model, volume, y, first)
            y += PITCH_Y
        y += GAP if own else PITCH_Y + GAP
    judged = [volume for volume in config.evaluate.volumes if config.volumes[volume].labelled]
    baselines = [volume for volume in judged if config.volumes[volume].baseline]
    for volume in baselines:
        source, target = f"volumes/{volume}/baseline", f"baseline/{volume}/scores"
        staged.append(Node(source, 0, y, f"{volume} baseline", "data"))
        staged.append(_stage_node(results, target, first + 6, y, "", (source,)))
        y += PITCH_Y
    report = Node(
        "report", first + len(STAGES), (TOP + y - GAP) / 2, "this page", "report", inputs=tuple(_scores(results))
    )
    return [*_volume_nodes(results, y - len(baselines) * PITCH_Y), *trained, *staged, report]


def _lane(results: Results, model: str, volume: str, y: float, first: int) -> Iterator[Node]:
    config = results.config
    scored = volume in config.evaluate.volumes
    first_key = results.prediction(model, volume)
    for k, stage in enumerate(STAGES):
        key = f"{model}/{volume}/{stage}"
        inputs: tuple[str, ...] = (f"{model}/{volume}/{STAGES[k - 1]}",)
        if key == first_key:
            inputs = (f"{model}/model", f"volumes/{volume}")
        elif stage == "segmentation":
            chosen = [f"{model}/{tuned}/sweep" for tuned in config.evaluate.tuned] or [f"{model}/model"]
            fixed = config.segment.threshold is not None or config.tuned_options != "none"
            inputs = (f"{model}/{volume}/agglomeration", *(() if fixed else chosen))
        elif stage == "scores":
            inputs = (f"{model}/{volume}/segmentation",)
        if stage == "affinities" and key != first_key:
            continue  # fragments are made without storing them
        if stage in ("sweep", "scores") and not config.volumes[volume].labelled:
            continue
        if scored or stage not in ("segmentation", "scores"):
            yield _stage_node(results, key, first + k, y, volume if key == first_key else "", inputs)


def _stage_node(results: Results, key: str, column: int, y: float, caption: str, inputs: tuple[str, ...]) -> Node:
    kind = key.rpartition("/")[2]
    return Node(key, column, y, _duration(results, key), kind, caption, inputs)


def _model_node(results: Results, model: str, y: float) -> Node:
    key = f"{model}/model"
    if model in results.config.pretrained:
        return Node(key, 1, y, _duration(results, key), "model", model)
    train = results.config.models[model].train
    volumes = dict.fromkeys((*train.volumes, train.validate_on, *train.active_unlabelled))
    inputs = (
        *(f"volumes/{volume}" for volume in volumes),
        *(f"{name}/model" for name in results.config.own_teachers(model)),
    )
    return Node(key, 1 + _depth(results, model), y, _duration(results, key), "model", model, inputs)


def _volume_nodes(results: Results, end: float) -> list[Node]:
    used = {name for model in _needed(results) for name in _model_node(results, model, 0).inputs}
    used |= {f"volumes/{volume}" for volume in _lanes(results)}
    names = [volume for volume in results.config.volumes if f"volumes/{volume}" in used]
    step = (end - GAP - TOP) / max(len(names), 1)
    return [Node(f"volumes/{name}", 0, TOP + step * (k + 0.5), name, "data") for k, name in enumerate(names)]


def _needed(results: Results) -> list[str]:
    """Scored models in their order, each after the teachers that it needs and that are not scored."""
    found: list[str] = []

    def add(model: str) -> None:
        for teacher in results.config.own_teachers(model):
            add(teacher)
        if model not in found:
            found.append(model)

    for model in results.config.evaluate.models:
        add(model)
    return found


def _lanes(results: Results) -> list[str]:
    evaluate = results.config.evaluate
    return [*dict.fromkeys((*evaluate.tuned, *evaluate.volumes))]


def _scores(results: Results) -> Iterator[str]:
    evaluate = results.config.evaluate
    labelled = {volume: results.config.volumes[volume].labelled for volume in evaluate.volumes}
    for name in (*evaluate.models, "baseline"):
        yield from (f"{name}/{volume}/{'scores' if known else 'segmentation'}" for volume, known in labelled.items())


def _depth(results: Results, model: str) -> int:
    teachers = results.config.own_teachers(model)
    return max((1 + _depth(results, teacher) for teacher in teachers), default=0)


def _headings(results: Results) -> list[str]:
    depth = max(_depth(results, model) for model in _needed(results))
    return ["volumes", "train", *("distil" for _ in range(depth)), *VERBS, "report"]


def _duration(results: Results, key: str) -> str:
    if key not in results.manifests:
        return "not run"
    seconds = results.number(key, "seconds")
    if seconds is None:
        return "done"
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds >= 0.1 else "< 0.1 s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _done(results: Results, key: str) -> bool:
    keys: Sequence[str] = [key]
    if key.startswith("volumes/") and key.count("/") == 1:
        labelled = results.config.volumes[key.removeprefix("volumes/")].labelled
        keys = [f"{key}/raw", *([f"{key}/labels"] if labelled else [])]
    return key == "report" or all(k in results.manifests for k in keys)


def _left(column: int) -> float:
    return 10 + column * PITCH_X


def _edge(source: Node, target: Node) -> str:
    x1, x2 = _left(source.column) + NODE_W, _left(target.column)
    bend, y1, y2 = min((x2 - x1) / 2, 60), source.y, target.y
    if y1 == y2 and target.column - source.column > 1 and source.column:
        # An edge that passes a node of its own lane goes below it, else it seems to start there.
        low = y1 + NODE_H / 2 + 5
        curve = f"M{x1:.0f} {y1:.1f}C{x1 + 15:.0f} {y1:.1f} {x1 + 12:.0f} {low:.1f} {x1 + 30:.0f} {low:.1f}"
        curve += f"H{x2 - 30:.0f}C{x2 - 12:.0f} {low:.1f} {x2 - 15:.0f} {y2:.1f} {x2:.0f} {y2:.1f}"
        return f'<path class="edge {source.kind}" d="{curve}"/>'
    curve = f"M{x1:.0f} {y1:.1f}C{x1 + bend:.0f} {y1:.1f} {x2 - bend:.0f} {y2:.1f} {x2:.0f} {y2:.1f}"
    return f'<path class="edge {source.kind}" d="{curve}"/>'


def _node(node: Node, results: Results) -> str:
    left, top, title = _left(node.column), node.y - NODE_H / 2, escape(_short(node.title, 13))
    state = "" if _done(results, node.key) else " missing"
    finished = results.manifests[node.key].finished if node.key in results.manifests else ""
    caption = (
        f'<text class="caption" x="{left + 2}" y="{top - 3:.1f}">{escape(_short(node.caption, 15))}</text>'
        if node.caption
        else ""
    )
    return (
        f"<g><title>{escape(f'{node.key} {finished}'.strip())}</title>"
        f'<rect class="node {node.kind}{state}" x="{left}" y="{top:.1f}" width="{NODE_W}" height="{NODE_H}" rx="5"/>'
        f'<text x="{left + NODE_W / 2}" y="{node.y + 4:.1f}" text-anchor="middle">{title}</text>'
        f"{caption}</g>"
    )


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
