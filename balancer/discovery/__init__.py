"""From names to addresses; used by the prober only."""
