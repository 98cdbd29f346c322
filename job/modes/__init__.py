"""Kinds of answers, a file each; ``table`` names them."""
