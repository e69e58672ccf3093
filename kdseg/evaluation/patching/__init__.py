"""A region that was segmented again, put into the segmentation of the whole."""
