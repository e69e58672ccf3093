"""The command line: one command per rule of the workflow, and a few for people."""

from __future__ import annotations

from kdseg.cli import evaluation, learning, outside, people, scoring, segmentation
from kdseg.cli.common import main

__all__ = ["evaluation", "learning", "main", "outside", "people", "scoring", "segmentation"]
