"""Arrow's types and values: what can be read, kept and written."""
