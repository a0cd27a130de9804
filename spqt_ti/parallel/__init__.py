"""Independent evaluations on one model: in this process, in local ones, or on a Dask cluster, with the same results."""
