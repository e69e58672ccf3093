"""From affinities to a segmentation: fragments, region graph, agglomeration, lookup table."""
