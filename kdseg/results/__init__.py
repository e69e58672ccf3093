"""What a run leaves: manifests and their claims, tables, links to buckets."""
