"""Crops of volumes, for training."""

from __future__ import annotations

from kdseg.sampling.crops import Crops, collate, loader
from kdseg.sampling.source import Addresses, Guide, Source

__all__ = ["Addresses", "Crops", "Guide", "Source", "collate", "loader"]
