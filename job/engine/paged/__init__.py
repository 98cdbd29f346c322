"""Continuous batching: one ragged batch per step over a paged KV cache.

    scheduler -> Step -> cache (block tables, index tensors) -> model with our attention -> logits -> sampler

The leader's scheduler decides what a step computes and packs it into a ``Step``; every rank of the replica executes the
same step. Followers need nothing else.
"""
