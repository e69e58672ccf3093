"""Scores of a segmentation against ground truth, from additive tables of overlaps."""
