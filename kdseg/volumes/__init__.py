"""Volumes: what formats are read, how they are stored, and a phantom."""
