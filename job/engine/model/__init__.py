"""A model: what is known before its weights are loaded, and how they are loaded and sharded."""
