"""Kinds of answers, one file each; ``table`` lists them."""
