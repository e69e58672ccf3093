"""The stages: each reads, runs blocks and writes. They never import each other; Snakemake connects them."""
