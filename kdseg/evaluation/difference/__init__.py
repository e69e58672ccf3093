"""Two results compared: what they are made of, their voxels, their objects."""
