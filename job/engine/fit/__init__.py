"""Whether a model fits, and the least time that it needs: from its configuration, without weights or a GPU."""
