"""Batch offline LLM inference over datasets."""

__version__ = "0.4.0"
