"""Attention over the paged cache: the interface, the cache, and the backends to choose from."""
