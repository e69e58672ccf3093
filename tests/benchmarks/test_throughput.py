"""Throughput of the hot functions: `pytest tests/benchmarks --benchmark-enable --benchmark-only`."""

import numpy as np
import pytest

from kdseg.config.data import PhantomOptions
from kdseg.config.segmentation import WatershedOptions
from kdseg.evaluation.measures import measure
from kdseg.evaluation.metrics.contingency import block_contingency
from kdseg.evaluation.thresholds import tables_at
from kdseg.geometry import Roi
from kdseg.segmentation.agglomeration.linkage import agglomerate, cut
from kdseg.segmentation.fragments.watershed import fragments
from kdseg.segmentation.graph.rag import block_edges
from kdseg.segmentation.lut import apply, lut
from kdseg.volumes.phantom import phantom_block

SHAPE = (64, 128, 128)
WHOLE = Roi((0, 0, 0), SHAPE)
NEAREST = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


@pytest.fixture(scope="module")
def tissue():
    raw, labels = phantom_block(PhantomOptions(shape=SHAPE), WHOLE)
    rng = np.random.default_rng(0)
    affinities = np.zeros((3, *SHAPE), np.uint8)
    for c in range(3):
        same = np.ones(SHAPE, bool)
        here = tuple(slice(1, None) if a == c else slice(None) for a in range(3))
        there = tuple(slice(None, -1) if a == c else slice(None) for a in range(3))
        same[here] = labels[here] == labels[there]
        affinities[c] = np.clip(190.0 * same + rng.normal(30, 15, SHAPE), 0, 255)
    ids = fragments(affinities, NEAREST, WatershedOptions())
    edges = block_edges(ids, affinities, NEAREST, WHOLE.slices())
    return raw, labels, affinities, ids, edges


def report(benchmark, voxels, run):
    result = benchmark(run)
    if benchmark.stats:
        benchmark.extra_info["mvox_per_s"] = round(voxels / benchmark.stats["mean"] / 1e6, 2)
    return result


def test_phantom(benchmark):
    raw, _ = report(benchmark, WHOLE.size, lambda: phantom_block(PhantomOptions(shape=SHAPE), WHOLE))
    assert raw.shape == SHAPE


def test_fragments(benchmark, tissue):
    affinities = tissue[2]
    found = report(benchmark, WHOLE.size, lambda: fragments(affinities, NEAREST, WatershedOptions()))
    assert found.max() > 50


def test_edges(benchmark, tissue):
    _, _, affinities, ids, edges = tissue
    found = report(benchmark, WHOLE.size, lambda: block_edges(ids, affinities, NEAREST, WHOLE.slices()))
    assert len(found.u) == len(edges.u)


def test_agglomerate(benchmark, tissue):
    edges = tissue[4]
    assert len(benchmark(lambda: agglomerate(edges, 1.0)).a)


def test_relabel(benchmark, tissue):
    ids, edges = tissue[3], tissue[4]
    old = np.unique(ids[ids > 0])
    new = lut(old, *cut(agglomerate(edges, 1.0), 0.5))
    assert report(benchmark, WHOLE.size, lambda: apply(ids, old, new)).shape == SHAPE


def test_contingency(benchmark, tissue):
    _, labels, _, ids, _ = tissue
    assert report(benchmark, WHOLE.size, lambda: block_contingency(ids, labels)).count.sum() == WHOLE.size


def test_a_hundred_thresholds(benchmark, tissue):
    _, labels, _, ids, edges = tissue
    table, merges = block_contingency(ids, labels), agglomerate(edges, 1.0)
    thresholds = [k / 101 for k in range(1, 101)]
    found = benchmark(lambda: [measure(at)["voi"] for at in tables_at(table, merges, thresholds)])
    assert len(set(found)) > 10
