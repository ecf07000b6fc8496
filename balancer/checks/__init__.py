"""Health checks of backends; used by the prober only."""
