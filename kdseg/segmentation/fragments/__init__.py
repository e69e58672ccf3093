"""From affinities to fragments, block by block."""
