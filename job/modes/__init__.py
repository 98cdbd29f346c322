"""Kinds of answers and the columns that they add, a file each; ``registry`` lists them."""
