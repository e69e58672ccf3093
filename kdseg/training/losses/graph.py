"""Graph relation distillation: instances as nodes, their cosines as edges (Liu et al., arXiv 2401.06370)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from kdseg.config.terms import GraphRelationOptions, Tap
from kdseg.errors import ConfigError
from kdseg.geometry import Offsets, Triple, nearest_count
from kdseg.networks.models import Batch, Outputs
from kdseg.training.losses.base import EPSILON, Context, Term
from kdseg.training.losses.fields import Compared, compare
from kdseg.training.losses.instances import at_level, core, given
from kdseg.training.losses.memory import Moment, TokenQueue, moment_distances, spread
from kdseg.training.losses.nodes import (
    Nodes,
    contact_areas,
    contact_distance,
    edge_distance,
    probability_distance,
    select_nodes,
)
from kdseg.training.losses.taps import aligned, width

_PARTS = ("node", "edge", "affinity", "inter_edge", "inter_affinity")
_SCALAR_PARTS = ("edge", "affinity")
"""Parts that exist for scalars: affinities instead of vectors."""
_PROJECTED = ("node", "inter_edge", "inter_affinity")
"""Parts that need vectors of the teacher's width."""
_NEAREST: Offsets = ((-1, 0, 0), (0, -1, 0), (0, 0, -1))


class GraphRelationTerm(Term):
    """Relations between instances, between voxels, and of both to earlier crops; see `GraphRelationOptions`.

    With nodes ``v_i``, the means of the embedding over an instance, unit vectors ``u``, and the second moment ``G``
    of what the teacher showed before, the parts are, each a mean over crops and over taps::

        node            mean_i |v_i^S - v_i^T|^2
        edge            mean_ij (u_i^S.u_j^S - u_i^T.u_j^T)^2, pairs of one crop, weighted by their contact
        affinity        mean_p (u_p^S.u_p+o^S - u_p^T.u_p+o^T)^2, pairs inside the crop, class-balanced, mean over o
        inter_edge      mean_i (u_i^S - u_i^T)' G (u_i^S - u_i^T)
        inter_affinity  the same of voxels

    The published code sums over taps, offsets and earlier crops, so that its weights depend on their number.
    """

    def __init__(self, options: GraphRelationOptions, context: Context) -> None:
        """Set up the term.

        Raises:
            ConfigError: if no part has a weight.
        """
        super().__init__()
        self.options, self.offsets = options, context.offsets
        self.nearest = self.offsets[: nearest_count(self.offsets)]
        vectors = [tap for tap in options.taps if tap != "affinities"]
        possible = _PARTS if vectors else _SCALAR_PARTS
        self.weights = MappingProxyType({part: getattr(options, part) for part in possible if getattr(options, part)})
        if not self.weights:
            raise ConfigError(
                f"the term {options.name!r} has no part: of {', '.join(possible)}, which the taps {options.taps} have, "
                "none has a weight above 0"
            )
        self.links = nn.ModuleDict()
        for tap in options.taps:
            ours, theirs = (width(context, side, tap, options.name) for side in ("student", "teacher"))
            if tap != "affinities":
                self.links[str(tap)] = _Link(ours, theirs, self.weights.keys(), options, tap)

    def values(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return the parts; see `Term`."""
        name = self.options.name
        nodes = None
        if {"node", "edge", "inter_edge"}.intersection(self.weights):
            nodes = select_nodes(given(batch, name), self.options, batch.instanced)
        found: dict[str, list[Tensor]] = {part: [] for part in self.weights}
        for part, value in self._taps(student, teacher, nodes):
            found[part].append(value)
        return {part: torch.stack(values).mean() for part, values in found.items()}

    def _taps(self, student: Outputs, teacher: Outputs, nodes: Nodes | None) -> Iterator[tuple[str, Tensor]]:
        area = None
        if nodes is not None and "edge" in self.weights and self.links and self.options.graph in ("rag", "mixed"):
            area = contact_areas(nodes)
        for tap in self.options.taps:
            if tap == "affinities":
                yield from self._direct(student, teacher, nodes)
            else:
                link = cast("_Link", self.links[str(tap)])
                ours, theirs = _vectors(student, tap), _vectors(teacher, tap).detach()
                if ours.shape[2:] != theirs.shape[2:]:
                    theirs = aligned(theirs.float(), ours)
                yield from link(ours, theirs, nodes, area, self._offsets_at(tap, student, ours))

    def _direct(self, student: Outputs, teacher: Outputs, nodes: Nodes | None) -> Iterator[tuple[str, Tensor]]:
        ours, theirs = student.logits["affinities"].float(), teacher.logits["affinities"].detach().float()
        known = torch.ones_like(theirs, dtype=torch.bool) if teacher.known is None else teacher.known
        if "affinity" in self.weights:
            offsets = self.offsets if self.options.offsets == "all" else self.nearest
            yield "affinity", probability_distance(ours, theirs, known, offsets, balanced=self.options.balanced)
        if "edge" in self.weights and nodes is not None:
            yield "edge", contact_distance(ours, theirs, known, nodes, self.nearest)

    def _offsets_at(self, tap: Tap, student: Outputs, values: Tensor) -> Offsets:
        """Return the voxel pairs to compare, in voxels of the grid of a tap."""
        if "affinity" not in self.weights:
            return ()
        if self.options.offsets == "nearest":
            return self.nearest if tap == "embedding" else _NEAREST[-len(self.nearest) :]
        full = student.logits["affinities"].shape[2:]
        steps = [f // n for f, n in zip(full, values.shape[2:], strict=True)]
        return _coarser(self.offsets, steps)


class _Link(nn.Module):
    """State of one tap: a projector, and the memories of the teacher's nodes and voxels."""

    def __init__(self, ours: int, theirs: int, parts: Iterable[str], options: GraphRelationOptions, tap: Tap) -> None:
        super().__init__()
        self.options, self.wanted = options, frozenset(parts)
        needing = sorted(self.wanted.intersection(_PROJECTED))
        self.projector: nn.Module = nn.Identity()
        if needing and ours != theirs:
            if not options.projector:
                raise ConfigError(
                    f"the parts {needing} of the term {options.name!r} compare vectors of one width, but tap {tap!r} "
                    f"has {ours} channels in the student and {theirs} in the teacher: set `projector: true`, or the "
                    "weights of these parts to 0"
                )
            self.projector = nn.Linear(ours, theirs)
        self.nodes = self._memory(theirs) if "inter_edge" in self.wanted else None
        self.voxels = self._memory(theirs) if "inter_affinity" in self.wanted else None

    def _memory(self, channels: int) -> Moment | TokenQueue:
        options = self.options
        if options.inter == "kl":
            return TokenQueue(channels, options.memory, options.tokens, options.memory_start)
        return Moment(channels, options.memory, options.memory_start)

    def forward(
        self, ours: Tensor, theirs: Tensor, nodes: Nodes | None, area: Tensor | None, offsets: Offsets
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the parts of this tap.

        Args:
            ours: float (n, c, z, y, x), the student's vectors.
            theirs: float (n, d, z, y, x), the teacher's.
            nodes: where a part has any.
            area: of the contacts of nodes, where edges are weighted by it.
            offsets: voxel pairs of the affinity part, on this grid.
        """
        same = isinstance(self.projector, nn.Identity)
        ids = None if nodes is None else self._placed(nodes.ids, ours)
        metric = self.voxels.metric() if isinstance(self.voxels, Moment) else None
        found = compare(
            ours,
            theirs,
            instances=ids,
            count=0 if nodes is None else nodes.number,
            offsets=offsets,
            metric=metric if same else None,
            balanced=self.options.balanced,
        )
        if "affinity" in self.wanted:
            yield "affinity", found.affinity
        if nodes is not None:
            yield from self._of_nodes(found, nodes, area)
        if isinstance(self.voxels, TokenQueue):
            yield "inter_affinity", self._of_tokens(self.voxels, ours, theirs)
        elif self.voxels is not None:
            if not same:
                rows = ours.movedim(1, -1).to(torch.promote_types(ours.dtype, torch.float32))
                found = compare(self.projector(rows).movedim(-1, 1), theirs, metric=metric)
            yield "inter_affinity", found.distance
            if self.training:
                self.voxels.update(found.second, found.voxels)

    def _placed(self, ids: Tensor, values: Tensor) -> Tensor:
        """Return the nodes on the grid of the values, less their rim if only the core counts."""
        z, y, x = values.shape[2:]
        ids = ids if ids.shape[1:] == values.shape[2:] else at_level(ids, (z, y, x))
        return core(ids) if self.options.core else ids

    def _of_nodes(self, found: Compared, nodes: Nodes, area: Tensor | None) -> Iterator[tuple[str, Tensor]]:
        present = found.sizes > 0
        weights = nodes.weights * present
        if "edge" in self.wanted:
            ours, theirs, counted = (nodes.padded(values) for values in (found.student, found.teacher, weights))
            yield "edge", edge_distance(ours, theirs, counted, area, self.options, nodes.crops)
        if not self.wanted.intersection(("node", "inter_edge")):
            return
        ours, theirs = self.projector(found.student), found.teacher
        units = normalize(ours, dim=1, eps=EPSILON), normalize(theirs, dim=1, eps=EPSILON)
        if "node" in self.wanted:
            one, other = units if self.options.node_space == "unit" else (ours, theirs)
            distance = ((one - other) ** 2).sum(1)
            if self.options.node_power == 1:
                # the root has no gradient at 0
                distance = (distance + EPSILON**2).sqrt() - EPSILON
            yield "node", nodes.mean(distance, weights)
        if isinstance(self.nodes, Moment):
            yield "inter_edge", nodes.mean(moment_distances(units[0] - units[1], self.nodes.metric()), weights)
            if self.training:
                counted = units[1] * present[:, None]
                self.nodes.update(counted.T @ counted, present.sum())
        elif self.nodes is not None:
            yield "inter_edge", nodes.mean(self.nodes.divergences(*units, self.options.temperature), weights)
            if self.training:
                self.nodes.push(units[1], present)

    def _of_tokens(self, queue: TokenQueue, ours: Tensor, theirs: Tensor) -> Tensor:
        tokens = self.options.tokens
        one = normalize(self.projector(spread(ours, tokens)), dim=1, eps=EPSILON)
        other = normalize(spread(theirs, tokens), dim=1, eps=EPSILON)
        shown = other.any(1)
        divergences = queue.divergences(one, other, self.options.temperature)
        if self.training:
            queue.push(other, shown)
        return (divergences * shown).sum() / shown.sum().clamp_min(1)


def _vectors(outputs: Outputs, tap: Tap) -> Tensor:
    """Return the vectors of a tap as the network gave them: they are brought to float32 where they are used."""
    return outputs.logits[tap] if isinstance(tap, str) else outputs.features[tap]


def _coarser(offsets: Offsets, steps: list[int]) -> Offsets:
    """Return offsets on a coarser grid, rounded, each pair of opposite ones once, without those that vanish."""
    found: dict[Triple, None] = {}
    for offset in offsets:
        z, y, x = (round(o / s) for o, s in zip(offset, steps, strict=True))
        if (z, y, x) != (0, 0, 0) and (-z, -y, -x) not in found:
            found[(z, y, x)] = None
    return tuple(found)
