"""Tools around the programs: demo, benches, comparisons under faults, and what they share with the system tests (lab)."""
