"""From merges to the segmentation."""
