"""Published recipes, on top of the shipped configurations."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from snakemake.utils import update_config
from workflow import ROOT

from kdseg.config import Config, validate
from kdseg.config.terms import (
    AdversarialOptions,
    CpkdOptions,
    GraphFlowOptions,
    GraphRelationOptions,
    SoftAffinityOptions,
)

BASES = ("config.yaml", "cremi.yaml", "fib25.yaml", "mine.example.yaml")
RECIPES = sorted(path.name for path in (ROOT / "config" / "published").glob("*.yaml"))


def joined(base: str, recipe: str) -> Config:
    """The configuration that Snakemake makes of two files."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "config" / base).read_text())
    update_config(values, yaml.safe_load((ROOT / "config" / "published" / recipe).read_text()))
    return validate(values)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fits_on_every_configuration(base: str, recipe: str) -> None:
    before = validate(yaml.safe_load((ROOT / "config" / base).read_text()))
    after = joined(base, recipe)
    assert after.volumes == before.volumes
    assert after.all_models.keys() == before.all_models.keys()
    assert all(after.all_models[name] == made for name, made in before.all_models.items() if name == "student_alone")
    assert after.all_models["student"].network == before.all_models["student"].network
    assert after.all_models["student"].train.steps == before.all_models["student"].train.steps


def test_graph_relations_are_as_published() -> None:
    train = joined("cremi.yaml", "grd.yaml").all_models["student"].train
    (term,) = (one for one in train.terms if isinstance(one, GraphRelationOptions))
    # lambda 1 to 5 are 0.1, 0.1, 10, 1, 1; the third sums three offsets, the last 12 x 2 pairs of crops
    assert (term.node, term.edge, term.affinity, term.inter_edge, term.inter_affinity) == (0.1, 0.1, 30, 1, 24)
    assert (term.node_space, term.node_power, term.graph, term.min_size, term.balanced) == ("raw", 1, "full", 1, False)
    assert (term.taps, term.memory, term.memory_start) == (("embedding",), 32, 0)
    assert (train.learning_rate, train.weight_decay, train.warmup, train.batch, train.ema) == (1e-4, 1e-6, 0, 2, 0)
    assert train.optimiser.model_dump() == {
        "kind": "adam", "epsilon": 1e-2, "amsgrad": True, "decay": "none", "drops": (),
    }  # fmt: skip


def test_graph_flow_is_as_published() -> None:
    train = joined("fib25.yaml", "graph_flow.yaml").all_models["student"].train
    terms = {type(one): one for one in train.terms}
    flow, critic = terms[GraphFlowOptions], terms[AdversarialOptions]
    assert isinstance(flow, GraphFlowOptions)
    assert isinstance(critic, AdversarialOptions)
    assert (flow.patch, flow.peaks, flow.at, flow.paraphraser) == (3, 1, "own", "autoencoder")
    assert (flow.vertices, flow.edges) == pytest.approx((1e-5 * 64, 1e-9 * 64**2), rel=0.01)
    assert (critic.weight, critic.learning_rate, critic.betas, critic.gradient_penalty) == (0.1, 3e-5, (0.9, 0.99), 10)
    assert terms[SoftAffinityOptions].weight == 1
    assert (train.learning_rate, train.weight_decay, train.optimiser.kind) == (3e-3, 2e-4, "adam")
    assert (train.optimiser.decay, train.optimiser.drops) == ("polynomial", (0.25, 0.5, 0.75))


def test_cpkd_has_both_relations() -> None:
    terms = joined("fib25.yaml", "cpkd.yaml").all_models["student"].train.terms
    (term,) = (one for one in terms if isinstance(one, CpkdOptions))
    assert (term.channel, term.pixel) == (1, 1)
