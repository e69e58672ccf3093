"""Options of the distillation of graphs: relations between instances, and variation between layers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from kdseg.config.base import Count, Positive, Weight
from kdseg.config.terms.base import DistillationSection, Level, Tap


class GraphRelationOptions(DistillationSection):
    """Graph relation distillation (Liu et al., arXiv 2401.06370): instances as nodes, cosines as edges.

    Each of the five parts has a weight of its own, which `weight` multiplies. Tapped at `affinities`, an edge is
    the mean affinity over a contact and the affinity part compares probabilities; nodes and the relations to
    other crops need vectors and are left out.
    """

    term: ClassVar[str] = "kdseg.training.losses.graph:GraphRelationTerm"
    name: Literal["graph_relation"] = "graph_relation"
    taps: Annotated[tuple[Tap, ...], Field(min_length=1)] = ("embedding",)
    """Outputs to compare; several are averaged. Decoder levels serve as embeddings for networks that have none."""
    node: Weight = 0.0
    """Of the distance between instance means. Depends on the basis of the embedding, unlike the other parts."""
    edge: Weight = 0.5
    """Of the relations between the instances of a crop."""
    affinity: Weight = 1.0
    """Of the affinities between neighbouring voxels."""
    balanced: bool = True
    """Let the pairs of voxels that the teacher cuts count as much as those that it joins; off as published."""
    inter_edge: Weight = 0.25
    """Of the relations between the instances of a crop and those of earlier crops."""
    inter_affinity: Weight = 0.25
    """Of the relations between the voxels of a crop and those of earlier crops."""
    graph: Literal["full", "rag", "knn", "mixed"] = "mixed"
    """Pairs of instances with an edge: all pairs; those that touch, by contact area; each one's nearest for the
    teacher; half all pairs and half contacts."""
    neighbours: Count = 8
    """Of each instance, for `knn`."""
    node_space: Literal["raw", "unit"] = "unit"
    """Compare the means as they are, or as unit vectors."""
    node_power: Literal[1, 2] = 2
    """Of the distance; 1 is what the published code does, 2 what the paper says."""
    size_weight: Literal["none", "sqrt", "linear"] = "none"
    """Weight of an instance by its voxels."""
    min_size: Count = 32
    """Voxels; smaller instances are left out."""
    max_nodes: Count = 512
    """Per crop; the largest instances are kept."""
    core: bool = False
    """Take the mean over voxels whose six neighbours belong to the instance too."""
    offsets: Literal["nearest", "all"] = "nearest"
    """For which offsets voxel affinities are compared."""
    inter: Literal["moment", "kl"] = "moment"
    """Relations to earlier crops: squared differences, exactly, by the second moment of all that was seen; or the
    divergence of their softmax over a queue of tokens."""
    memory: Count = 32
    """Batches that the moment remembers (1/e of the weight lies further back), or the queue holds."""
    memory_start: Annotated[int, Field(ge=0)] = 50
    """Batches seen before the relations to earlier crops count."""
    tokens: Count = 256
    """Vectors that the queue keeps of each crop, for `kl`."""
    temperature: Positive = 1.0
    """Of the softmax, for `kl`."""
    projector: bool = True
    """Where widths differ, learn a linear map to the teacher's for the parts that need one."""

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """All taps."""
        return self.taps

    @model_validator(mode="after")
    def _has_a_part(self) -> Self:
        scalar = self.edge + self.affinity
        if not scalar + (self.node + self.inter_edge + self.inter_affinity) * (set(self.taps) != {"affinities"}):
            raise ValueError(
                f"no part that the taps {self.taps} have carries a weight: at `affinities` there are edge and affinity"
            )
        return self

    @property
    def idle_batches(self) -> int:
        """Those that are seen before the relations to earlier crops count, if no other part has a weight."""
        return 0 if self.node + self.edge + self.affinity else self.memory_start

    @property
    def late_batches(self) -> int:
        """Those that are seen before the relations to earlier crops count."""
        return self.memory_start if self.inter_edge or self.inter_affinity else 0

    @property
    def instances_used(self) -> bool:
        """Whether a part with nodes has a weight."""
        return self.node + self.edge + self.inter_edge > 0


class GraphFlowOptions(DistillationSection):
    """Graph Flow (Zou et al. 2022, arXiv 2203.08667): how channels and their correlations vary between layers.

    For each level, the graph of the encoder's channels is taken from that of the decoder's. Vertices are the
    patches around a channel's strongest responses, edges the cosines between vertices.
    """

    term: ClassVar[str] = "kdseg.training.losses.flow:GraphFlowTerm"
    name: Literal["graph_flow"] = "graph_flow"
    levels: Annotated[tuple[Level, ...], Field(min_length=1)] = (0,)
    """Levels whose encoder and decoder outputs are compared; the bottleneck has only one output."""
    vertices: Weight = 1.0
    edges: Weight = 1.0
    patch: Annotated[int, Field(ge=1)] = 5
    """Extent of a patch in voxels along each axis, odd."""
    peaks: Count = 4
    """Patches per channel; 1 is the published arg-max."""
    at: Literal["teacher", "own"] = "teacher"
    """Whose strongest responses: the teacher's for both networks, or each its own, as published."""
    paraphraser: Literal["pca", "autoencoder"] = "pca"
    """Map of the teacher's channels to the student's number: principal axes in closed form, or the trained
    auto-encoder of the paper."""
    fit: Count = 50
    """Batches at the start over which the paraphraser is fitted and the term is 0."""
    sample: Count = 65536
    """Voxels of a batch that the principal axes are fitted to."""

    @model_validator(mode="after")
    def _patch_is_odd(self) -> Self:
        if self.patch % 2 == 0:
            raise ValueError(f"patch must be odd, so that it has a centre; got {self.patch}")
        return self

    @property
    def taps_used(self) -> tuple[Tap, ...]:
        """All levels."""
        return self.levels

    @property
    def idle_batches(self) -> int:
        """Those of the fit."""
        return self.fit
