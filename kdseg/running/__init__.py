"""Blocks over worker processes: daisy's on this machine, Dask's here or on a cluster."""
