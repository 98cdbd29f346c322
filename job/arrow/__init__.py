"""Arrow types and values: which of them can be read, kept and written."""
