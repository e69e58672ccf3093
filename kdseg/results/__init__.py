"""Results of a run: manifests and their claims, tables, links to buckets."""
