"""Exports a run's rows as one file. Knows run directories and file formats, but not what made the rows."""
