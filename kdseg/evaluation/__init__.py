"""Scores of segmentations, counted block by block."""
