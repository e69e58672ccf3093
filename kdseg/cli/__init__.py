"""The command line: one command per rule of the workflow, and a few for people."""

from __future__ import annotations

from kdseg.cli import learning, outside, people, scoring, segmentation
from kdseg.cli.common import main

__all__ = ["learning", "main", "outside", "people", "scoring", "segmentation"]
