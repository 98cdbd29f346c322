"""What makes the engine fast on a GPU."""
