"""The parts of `make bench`: peers and the backend they all stand in front of, the load, the measure, the report."""
