"""The loss term that CONTRIBUTING.md walks through the house is one."""

import re
import textwrap

import numpy as np
import pytest
import torch
from term_cases import CONTEXT, OURS, THEIRS, make_batch, outputs
from torch.nn.functional import cosine_similarity
from workflow import ROOT

from kdseg.config.terms import feature as options
from kdseg.training.losses import feature as terms


def test_the_example_is_a_term():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"^ *```python\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    names = {**vars(options), **vars(terms), "cosine_similarity": cosine_similarity}
    for block in blocks:
        exec(textwrap.dedent(block), names)
    made = names["CosineTerm"](names["CosineOptions"](level=1), CONTEXT)
    student, teacher = outputs(1, OURS), outputs(2, THEIRS)
    found = made(student, teacher, make_batch())

    voxels = [made.projector(student.features[1]), teacher.features[1]]
    ours, theirs = (values.detach().movedim(1, -1).flatten(0, -2).numpy() for values in voxels)
    distances = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(ours, theirs, strict=True)]
    assert found.item() == pytest.approx(np.mean(distances), rel=1e-5)
    found.backward()
    assert torch.any(student.features[1].grad)
