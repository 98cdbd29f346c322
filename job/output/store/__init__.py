"""The file system of a run directory: names, and durable reads and writes."""
