"""Parts of `make bench`: the peers and the backend in front of which they all run, the works, the load, the report."""
