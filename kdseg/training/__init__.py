"""Training of one network."""

from __future__ import annotations

from kdseg.training.loop import Result, learning_rate, train

__all__ = ["Result", "learning_rate", "train"]
