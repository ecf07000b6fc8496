"""Framed mode: each request to the best backend, over connections that are kept and shared."""
