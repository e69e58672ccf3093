"""A first configuration, made from what the files themselves say; see `kdseg init`."""
