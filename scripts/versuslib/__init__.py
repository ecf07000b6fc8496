"""Parts of `make versus`."""
