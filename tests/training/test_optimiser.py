"""The optimiser and its schedule, as options say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import options
from torch import nn

from kdseg.training import learning_rate
from kdseg.training.run import _optimiser


def test_the_learning_rate_falls_as_options_say() -> None:
    made = options(steps=110, warmup=10, learning_rate=0.5, optimiser={"decay": "polynomial"}).train
    assert [learning_rate(step, made, 110) for step in (4, 10, 60, 110)] == pytest.approx([0.25, 0.5, 0.5**1.9, 0])
    made = options(steps=100, warmup=0, learning_rate=0.5, optimiser={"decay": "none", "drops": [0.2, 0.5]}).train
    rates = [learning_rate(step, made, 100) for step in (0, 19, 20, 49, 50, 100)]
    assert rates == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005, 0.005])


@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_step_is_that_of_its_paper(kind: Any, amsgrad: bool) -> None:
    given = {"kind": kind, "amsgrad": amsgrad, "epsilon": 1e-2}
    made = options(optimiser=given, weight_decay=0.3, learning_rate=0.1).train
    layer = nn.Linear(1, 1).double()
    optimiser = _optimiser(layer, made)
    expected = {name: p.item() for name, p in layer.named_parameters()}
    first, second, largest = dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0), dict.fromkeys(expected, 0.0)
    for step, slope in enumerate((2.0, 0.0, 0.01, 0.0), 1):
        for name, parameter in layer.named_parameters():
            parameter.grad = torch.full_like(parameter, slope)
            decay = 0.3 if name == "weight" else 0.0
            gradient = slope + decay * expected[name] * (kind == "adam")
            expected[name] *= 1 - 0.1 * decay * (kind == "adamw")
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            largest[name] = max(largest[name], second[name])
            root = np.sqrt((largest if amsgrad else second)[name] / (1 - 0.999**step)) + 1e-2
            expected[name] -= 0.1 * first[name] / (1 - 0.9**step) / root
        optimiser.step()
    assert {name: p.item() for name, p in layer.named_parameters()} == pytest.approx(expected, rel=1e-12)
