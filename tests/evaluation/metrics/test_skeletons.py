"""Expected run length, against walking along the skeletons, and skeletons in files."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdseg.errors import DataError, MissingError, ShapeError
from kdseg.evaluation.metrics.skeletons import Skeletons, join, run_lengths
from kdseg.evaluation.skeleton_files import read_skeletons
from kdseg.results.tables import write_table

U64 = np.uint64


def chain(neuron: int, *steps: float) -> Skeletons:
    """Nodes in a line along x, ``steps`` nm apart."""
    x = np.cumsum([0.0, *steps])
    nodes = np.arange(x.size)
    position = np.stack([np.zeros_like(x), np.zeros_like(x), x], 1)
    return Skeletons(position, np.full(x.size, neuron, U64), np.stack([nodes[:-1], nodes[1:]], 1))


def test_by_hand() -> None:
    """A neuron of 100 nm split at 60..70 nm, one of 50 nm whose last 20 nm are in background."""
    skeletons = join(chain(1, 30, 30, 10, 30), chain(2, 30, 10, 10))
    got = run_lengths(skeletons, np.array([5, 5, 5, 6, 6, 7, 7, 0, 0], U64))
    assert got.erl == pytest.approx((60**2 + 30**2 + 30**2) / 150)
    assert got.best == pytest.approx((100**2 + 50**2) / 150)
    assert got.nerl == pytest.approx(got.erl / got.best)
    assert (got.correct, got.split, got.merged, got.omitted) == pytest.approx((120, 10, 0, 20))
    assert got.neuron.tolist() == [1, 2]
    assert got.length.tolist() == [100, 50]
    assert got.run == pytest.approx([(60**2 + 30**2) / 100, 30**2 / 50])


def test_a_merge_takes_all_edges_of_the_segment() -> None:
    skeletons = join(chain(1, 10, 10, 10), chain(2, 10, 10, 10))
    segments = np.array([5, 5, 6, 6, 7, 7, 7, 5], U64)
    got = run_lengths(skeletons, segments)
    assert got.merging.tolist() == [5]
    assert (got.correct, got.split, got.merged, got.omitted) == pytest.approx((30, 20, 10, 0))
    assert got.erl == pytest.approx((10**2 + 20**2) / 60)
    tolerant = run_lengths(skeletons, segments, tolerance=1)
    assert tolerant.merging.tolist() == []
    assert tolerant.erl == pytest.approx((10**2 + 10**2 + 20**2) / 60)


def test_background_between_neurons_is_no_merge() -> None:
    got = run_lengths(join(chain(1, 10), chain(2, 10)), np.zeros(4, U64))
    assert (got.erl, got.omitted, got.merging.tolist()) == (0, 20, [])


def test_coming_back_to_a_segment_is_one_run_or_two() -> None:
    skeletons, segments = chain(1, 10, 5, 5, 10), np.array([5, 5, 6, 5, 5], U64)
    assert run_lengths(skeletons, segments).erl == pytest.approx(20**2 / 30)
    assert run_lengths(skeletons, segments, runs="path").erl == pytest.approx((10**2 + 10**2) / 30)


@st.composite
def forests(draw: st.DrawFn) -> tuple[Skeletons, np.ndarray]:
    parts = []
    for neuron in range(1, draw(st.integers(1, 4)) + 1):
        n = draw(st.integers(1, 8))
        position = draw(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=n, max_size=n, unique=True))
        edges = [(draw(st.integers(0, k - 1)), k) for k in range(1, n)]
        parts.append(
            Skeletons(np.array(position, float), np.full(n, neuron, U64), np.array(edges, np.int64).reshape(-1, 2))
        )
    skeletons = join(*parts)
    n = skeletons.neuron.size
    return skeletons, np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)), U64)


@settings(deadline=None, max_examples=150)
@given(forest=forests(), tolerance=st.integers(0, 3), path=st.booleans())
def test_equals_walking(forest: tuple[Skeletons, np.ndarray], tolerance: int, path: bool) -> None:
    skeletons, segments = forest
    if not len(skeletons.edge):
        with pytest.raises(DataError, match="no length"):
            run_lengths(skeletons, segments)
        return
    got = run_lengths(skeletons, segments, tolerance=tolerance, runs="path" if path else "segment")
    nodes: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for neuron, segment in zip(skeletons.neuron.tolist(), segments.tolist(), strict=True):
        nodes[segment][neuron] += 1
    merging = {s for s, by in nodes.items() if s and sum(n > tolerance for n in by.values()) > 1}
    assert set(got.merging.tolist()) == merging
    runs: list[tuple[set[int], list[float]]] = []  # nodes, lengths
    total = 0.0
    for u, v in skeletons.edge.tolist():
        length = math.dist(skeletons.position[u], skeletons.position[v])
        total += length
        if segments[u] != segments[v] or segments[u] == 0 or int(segments[u]) in merging:
            continue
        key = {u, v} if path else {-1 - int(skeletons.neuron[u]) * 100 - int(segments[u])}
        same = [run for run in runs if run[0] & key]
        runs = [run for run in runs if not run[0] & key]
        runs.append((key.union(*(run[0] for run in same)), [length, *(n for run in same for n in run[1])]))
    assert got.erl == pytest.approx(sum(sum(lengths) ** 2 for _, lengths in runs) / total)
    assert got.correct == pytest.approx(sum(sum(lengths) for _, lengths in runs))
    assert got.correct + got.split + got.merged + got.omitted == pytest.approx(total)
    assert (got.run * got.length).sum() / got.length.sum() == pytest.approx(got.erl)
    assert 0 <= got.nerl <= 1
    assert run_lengths(skeletons, skeletons.neuron).nerl == pytest.approx(1)


def test_refuses_what_does_not_fit() -> None:
    skeletons = join(chain(1, 10), chain(2, 10))
    segments = np.ones(4, U64)
    with pytest.raises(ShapeError, match="4 nodes"):
        run_lengths(skeletons, segments[1:])
    with pytest.raises(ShapeError, match=r"\(n, 3\)"):
        run_lengths(skeletons._replace(position=skeletons.position[:, 1:]), segments)
    with pytest.raises(DataError, match="int64"):
        run_lengths(skeletons, segments.astype(np.int64))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="-1"):
        run_lengths(skeletons, segments, tolerance=-1)
    with pytest.raises(DataError, match="two neurons"):
        run_lengths(skeletons._replace(edge=np.array([[0, 2]])), segments)
    with pytest.raises(DataError, match="beyond"):
        run_lengths(skeletons._replace(edge=np.array([[0, 4]])), segments)
    with pytest.raises(DataError, match="finite"):
        run_lengths(skeletons._replace(position=skeletons.position * np.nan), segments)


SWC = "# made by hand\n3 2 4.5 5 6 1 1  # parents may come later\n1 1 1 2 3 1 -1\n\n7 2 0 0 0 1 -1\n"


def test_reads_swc(tmp_path: Path) -> None:
    (tmp_path / "12.swc").write_text(SWC)
    (tmp_path / "9.swc").write_text("1 0 0 0 0 1 -1\n2 0 1 0 0 1 1\n")
    one = read_skeletons(tmp_path / "12.swc", nm_per_unit=1000)
    assert one.position.tolist() == [[6000, 5000, 4500], [3000, 2000, 1000], [0, 0, 0]]
    assert one.edge.tolist() == [[1, 0]]
    assert one.neuron.tolist() == [12] * 3
    both = read_skeletons(tmp_path)
    assert both.neuron.tolist() == [12] * 3 + [9] * 2
    assert both.edge.tolist() == [[1, 0], [3, 4]]
    (tmp_path / "axon.swc").write_text(SWC)
    assert read_skeletons(tmp_path).neuron.tolist() == [1] * 3 + [2] * 2 + [3] * 3


def test_reads_csv_and_npz(tmp_path: Path) -> None:
    text = "neuron,node,parent,x,y,z\n4,1,-1,1,2,3\n5,1,-1,0,0,0\n4,2,1,4,5,6\n"
    (tmp_path / "a.csv").write_text(text)
    got = read_skeletons(tmp_path / "a.csv", nm_per_unit=2)
    assert got.position.tolist() == [[6, 4, 2], [0, 0, 0], [12, 10, 8]]
    assert (got.neuron.tolist(), got.edge.tolist()) == ([4, 5, 4], [[0, 2]])
    write_table(tmp_path / "a.npz", got._asdict())
    again = read_skeletons(tmp_path / "a.npz", nm_per_unit=2)
    assert all((a == b).all() for a, b in zip(got, again, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.swc", "1 1 1 2 3 1\n", "line 1"),
        ("a.swc", "1 1 1 2 z 1 -1\n", "line 1"),
        ("a.swc", "1 1 1 2 3 1 8\n", "parent 8"),
        ("a.swc", "1 1 1 2 3 1 -1\n1 1 1 2 3 1 -1\n", "twice"),
        ("a.csv", "node,parent,z,y,x\n", "neuron"),
        ("a.csv", "neuron,node,parent,z,y,x\n1,1,-1,1,1\n", "line 2"),
        ("a.txt", "", "a.txt"),
    ],
)
def test_refuses_other_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_skeletons(tmp_path / name)


def test_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="swc"):
        read_skeletons(tmp_path)
    with pytest.raises(MissingError, match=r"a\.npz"):
        read_skeletons(tmp_path / "a.npz")
    write_table(tmp_path / "a.npz", {"position": np.zeros((1, 3))})
    with pytest.raises(DataError, match="neuron"):
        read_skeletons(tmp_path / "a.npz")


@pytest.mark.parametrize("parents", [(2, 3, 2), (1, 1, 2), (-1, 3, 2)])
def test_a_skeleton_that_goes_round_is_refused(tmp_path, parents):
    path = tmp_path / "round.csv"
    lines = [f"7,{node},{parent},0,0,{node}" for node, parent in zip((1, 2, 3), parents, strict=True)]
    path.write_text("\n".join(["neuron,node,parent,z,y,x", *lines]) + "\n")
    with pytest.raises(DataError, match="is its own ancestor"):
        read_skeletons(path)
