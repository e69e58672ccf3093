"""The agglomeration tree over synthetic region graphs of growing size, in one process.

    OMP_NUM_THREADS=1 python benchmarks/agglomeration_tree.py [--stress] 1e5 1e6 1e7

A lattice of fragments, six edges each, in "neurons" (cells of random points): affinities are high inside of a neuron
and low between two. With `--stress`, fragments of 2 x 2 x 2 voxels without neurons: up to four contacts, all means
equally likely, so that a few regions grow through everything. Edges are made leaf by leaf and handed on in files, as
the stage does it. Prints a row per size: edges, merges, seconds (without making the edges), edges per second, share of
the rows that the leaves hand on, and the largest resident memory of the process so far.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np

from kdseg.results.tables import read_table, write_table
from kdseg.segmentation.agglomeration.contraction import Rows
from kdseg.segmentation.agglomeration.linkage import rows_of
from kdseg.segmentation.agglomeration.tree import decide, layout
from kdseg.segmentation.graph.edge_table import from_columns, join, to_columns
from kdseg.segmentation.graph.rag import Edges

BLOCK = (8, 8, 8)
LEAF = (64, 64, 64)
STEPS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1))
CELL = 6
"""Mean extent of a neuron in fragments."""
THRESHOLD = 0.5


def mix(values: np.ndarray) -> np.ndarray:
    """Return 64 pseudorandom bits of each value (splitmix64)."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def uniform(values: np.ndarray) -> np.ndarray:
    return (mix(values) >> np.uint64(11)).astype(np.float64) / 2**53


def neuron(places: np.ndarray) -> np.ndarray:
    """Return the neuron of each place (n, 3): the nearest random point, one in each cell."""
    best, name = np.full(len(places), np.inf), np.zeros(len(places), np.uint64)
    for shift in product((-1, 0, 1), repeat=3):
        cell = (places // CELL + shift + 2).astype(np.uint64)
        key = (cell[:, 0] << np.uint64(40)) | (cell[:, 1] << np.uint64(20)) | cell[:, 2]
        point = np.stack([uniform(key * np.uint64(3) + np.uint64(k)) for k in range(3)], 1)
        distance = (((cell.astype(np.float64) - 2 + point) * CELL - places) ** 2).sum(1)
        name, best = np.where(distance < best, key, name), np.minimum(distance, best)
    return name


def ids(places: np.ndarray, size: int) -> np.ndarray:
    blocks, local = places // 8, places % 8
    per = -(-size // 8)
    number = (blocks[:, 0] * per + blocks[:, 1]) * per + blocks[:, 2]
    return (number * 512 + (local[:, 0] * 8 + local[:, 1]) * 8 + local[:, 2] + 1).astype(np.uint64)


def leaf_edges(index: tuple[int, int, int], size: int, stress: bool = False) -> Edges:
    """Return the edges with an end in a leaf; those that begin in another one with a contact of 0."""
    low = np.maximum(np.array(index) * 64 - 1, 0)
    high = np.minimum(np.array(index) * 64 + 65, size)
    places = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), -1)
    name, own = neuron(places.reshape(-1, 3)).reshape(places.shape[:3]), (places // 64 == index).all(-1)
    fragment = ids(places.reshape(-1, 3), size).reshape(places.shape[:3])
    columns = []
    for k, step in enumerate(STEPS):
        here = tuple(slice(0, n - s) for n, s in zip(name.shape, step, strict=True))
        there = tuple(slice(s, n) for n, s in zip(name.shape, step, strict=True))
        wanted = own[here] | own[there]
        a, b, mine = fragment[here][wanted], fragment[there][wanted], own[here][wanted]
        same = (name[here] == name[there])[wanted]
        noise = a * np.uint64(8) + np.uint64(k)
        least, range_ = (1, 4) if stress else (20, 380)
        contact = np.where(mine, least + mix(noise) % np.uint64(range_), 0).astype(np.uint64)
        random = uniform(noise + np.uint64(1 << 60))
        mean = random if stress else np.clip(np.where(same, 0.8, 0.25) + 0.5 * (random - 0.5), 0, 1)
        columns.append((np.minimum(a, b), np.maximum(a, b), (mean * 255 * contact).astype(np.uint64), contact))
    return Edges(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def run(size: int, folder: Path, stress: bool) -> None:
    where = layout((size,) * 3, LEAF, BLOCK)
    edges = merges = handed = 0
    seconds = 0.0
    for level in range(where.levels):
        count = -(-size // where.node(level)[0])
        for z, y, x in product(range(count), repeat=3):
            if level == 0:
                table = leaf_edges((z, y, x), size, stress)
                edges += int((table.contact > 0).sum())
                started = time.process_time()
                rows = rows_of(table)
            else:
                started = time.process_time()
                children = [(2 * z + i, 2 * y + j, 2 * x + k) for i, j, k in product((0, 1), repeat=3)]
                paths = [folder / f"{level - 1}_{'_'.join(map(str, child))}.npz" for child in children]
                rows = join(from_columns(Rows, read_table(path)) for path in paths if path.exists())
            found, left = decide(rows, where, level, (z, y, x), THRESHOLD)
            write_table(folder / f"{level}_{z}_{y}_{x}.npz", to_columns(left))
            seconds += time.process_time() - started
            merges += len(found.a)
            handed += left.u.size if level == 0 and where.levels > 1 else 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"| {edges:,} | {merges:,} | {where.levels} | {seconds:.1f} | {edges / seconds / 1e6:.2f} | "
        f"{handed / edges:.0%} | {peak:.2f} |",
        flush=True,
    )


def main() -> None:
    run_small = 12
    with tempfile.TemporaryDirectory() as folder:
        sys.stdout, out = open("/dev/null", "w"), sys.stdout  # noqa: PTH123, SIM115
        run(run_small, Path(folder), False)  # compiles
        sys.stdout = out
    print("| edges | merges | levels | CPU s | Medge/s | handed on by leaves | peak GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    stress, sizes = "--stress" in sys.argv, [one for one in sys.argv[1:] if one != "--stress"]
    for wanted in map(float, sizes):
        with tempfile.TemporaryDirectory() as folder:
            run(max(round((wanted / 6) ** (1 / 3)), 2), Path(folder), stress)


if __name__ == "__main__":
    main()
