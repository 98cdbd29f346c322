"""From token ids to token ids: load and shard a model, complete requests."""
