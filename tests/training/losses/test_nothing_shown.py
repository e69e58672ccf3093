"""Where a stored embedding is 0, a voxel shows nothing: terms are those of the crop without such voxels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdseg.config.terms import CadOptions, CwdOptions, GraphRelationOptions
from kdseg.networks.models import Batch, Outputs, Widths
from kdseg.training.losses import Context, build_terms

OFFSETS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (1, 2, -3), (-2, 0, 0))
WIDTHS = Widths({"affinities": len(OFFSETS), "embedding": 4}, (), ())
SHAPE = (4, 7, 6)
SHOWN = 5
"""Rows of y; those after it show nothing."""
GRAPH = {"node": 1.0, "edge": 1.0, "memory_start": 0, "min_size": 1, "memory": 4, "offsets": "all"}
CASES: dict[str, Any] = {
    "graph_relation": GraphRelationOptions(**GRAPH, balanced=True),
    "unbalanced": GraphRelationOptions(**GRAPH, balanced=False),
    "queue": GraphRelationOptions(**GRAPH, inter="kl", tokens=512),
    "cad": CadOptions(offsets="all", target="teacher"),
    "cwd": CwdOptions(tap="embedding"),
}


def drawn(seed: int) -> Tensor:
    """Vectors of which some neighbours agree."""
    noise = torch.randn(2, 4, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise.cumsum(-1).cumsum(-2)


def parts(options: Any, rows: int, *, shown: bool = False) -> tuple[dict[str, float], Tensor]:
    """Return the parts of a term of the first rows, after a batch before, and the slope by the student's vectors."""
    made = build_terms([options], Context(OFFSETS, (10.0, 10.0, 10.0), WIDTHS, WIDTHS))[options.name].double()
    ids = torch.arange(6).repeat_interleave(28).reshape(4, 7, 6) + 1
    labels = torch.stack([ids, ids + 6])
    labels[:, :, SHOWN:] = 0
    labels = labels[:, :, :rows]
    batch = Batch(torch.zeros(2, 1, *labels.shape[1:]), labels, labels > 0, labels)

    def seen(seed: int, teacher: bool) -> Outputs:
        values = drawn(seed)
        if teacher and not shown:
            values[:, :, :, SHOWN:] = 0
        embedding = values[:, :, :, :rows].clone().requires_grad_(not teacher)
        return Outputs({"affinities": torch.zeros(2, len(OFFSETS), *embedding.shape[2:]), "embedding": embedding}, ())

    made.parts(seen(1, False), seen(2, True), batch)
    student = seen(3, False)
    found = made.parts(student, seen(4, True), batch)
    (slope,) = torch.autograd.grad(torch.stack(list(found.values())).sum(), student.logits["embedding"])
    return {name: value.item() for name, value in found.items()}, slope


@pytest.mark.parametrize("case", CASES)
def test_voxels_that_show_nothing_do_not_count(case: str) -> None:
    found, slope = parts(CASES[case], SHAPE[1])
    expected, inner = parts(CASES[case], SHOWN)
    assert found == pytest.approx(expected, rel=1e-5)
    assert all(value > 0 for value in expected.values())
    assert slope[:, :, :, :SHOWN].any()
    assert not slope[:, :, :, SHOWN:].any()
    torch.testing.assert_close(slope[:, :, :, :SHOWN], inner, rtol=1e-5, atol=1e-9)
    assert parts(CASES[case], SHAPE[1], shown=True)[0] != pytest.approx(expected, rel=1e-3)
