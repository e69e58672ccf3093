"""Segmentations for people and programs that correct them."""
