"""A model: what is known about it before its weights are loaded, and how they are loaded and sharded."""
