"""Checkpoints whose weights are stored in fewer bits: what they hold, and the dense weights that are made of them."""
