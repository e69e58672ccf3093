"""Crops of volumes, for training."""

from __future__ import annotations

from kdseg.training.sampling.crops import Crops, collate, loader
from kdseg.training.sampling.source import Addresses, Guide, Source

__all__ = ["Addresses", "Crops", "Guide", "Source", "collate", "loader"]
