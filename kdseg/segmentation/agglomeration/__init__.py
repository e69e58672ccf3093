"""From the region graph to merges: a tree of chunks, each contracted on its own."""
